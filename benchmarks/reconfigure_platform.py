"""Platform: Drop-seq cells of three cell lines set to CEL-seq2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata
import numpy as np
from reconfigure_bars import Bar, dense, movable, nearest, quiet_fit, real, reconstructed
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import NearestNeighbors

from unicoord_atlas.coordinate_changes import Changes
from unicoord_atlas.generate import Generation

if TYPE_CHECKING:
    from pathlib import Path

NAME = "sc_mixology_cell_lines"
LINES = ["H1975", "H2228", "HCC827"]
TARGET = "CEL-seq2"


def measure(data: Path, settings: list[str]) -> tuple[dict[str, object], list[Bar]]:
    """Figures and bars."""
    cells = anndata.read_h5ad(data / NAME / f"{NAME}.h5ad")
    cells = cells[(cells.obs["demuxlet_cls"] == "SNG") & cells.obs["cell_type"].isin(LINES)].copy()
    cells.obs_names_make_unique()
    reference = quiet_fit(cells, ["cell_type", "platform"], [*movable(["platform"]), *settings])
    line, is_target = cells.obs["cell_type"].to_numpy(str), (cells.obs["platform"] == TARGET).to_numpy()
    set_target = Changes({"platform": TARGET})
    expressed, before = real(reference, cells), reconstructed(reference, cells)
    source = cells[~is_target].copy()
    moved = dense(reference, source, Generation(set_target, sample="mode", min_value=0))
    drawn = dense(reference, source, Generation(set_target, min_value=0))
    drawn_target = reconstructed(reference, cells[is_target].copy(), "posterior")
    found = nearest(moved, expressed)
    left = {
        name: _shift_left(
            moved[line[~is_target] == name], before[~is_target & (line == name)], before[is_target & (line == name)]
        )
        for name in LINES
    }
    figures: dict[str, object] = {
        "nearest_is_target_before": float(is_target[nearest(before[~is_target], expressed)].mean()),
        "nearest_is_target": float(is_target[found].mean()),
        "nearest_is_target_drawn": float(is_target[nearest(drawn, expressed)].mean()),
        "shift_left": left,
        "mixing_mode": _mixing(moved, before[is_target]),
        "mixing_drawn": _mixing(drawn, drawn_target),
        "line_kept": float((line[found] == line[~is_target]).mean()),
        "genes_detected": {
            "source, real": _detected(expressed[~is_target], 0),
            "source, decoded": _detected(before[~is_target], 0.01),
            "set to target": _detected(moved, 0.01),
            "target, decoded": _detected(before[is_target], 0.01),
            "target, real": _detected(expressed[is_target], 0),
        },
        "two_sample_auc_drawn": _auc(drawn, drawn_target),
    }
    return figures, [
        Bar("platform_nearest_before", figures["nearest_is_target_before"], 0.05, at_least=False),
        Bar("platform_nearest", figures["nearest_is_target"], 0.95),
        Bar("platform_shift_left_worst_line", max(left.values()), 0.25, at_least=False),
        Bar("platform_mixing", figures["mixing_drawn"], 0.5),
        Bar("platform_line_kept", figures["line_kept"], 0.97),
        Bar("platform_two_sample_auc_aim", figures["two_sample_auc_drawn"], 0.85, at_least=False),
    ]


def _shift_left(moved: np.ndarray, source: np.ndarray, target: np.ndarray) -> float:
    """What remains of the distance between the decoded means of source and target."""
    means = [cells.mean(axis=0) for cells in (moved, source, target)]
    return float(np.linalg.norm(means[0] - means[2]) / np.linalg.norm(means[1] - means[2]))


def _components(first: np.ndarray, second: np.ndarray, number: int) -> np.ndarray:
    return PCA(number, random_state=0).fit_transform(np.concatenate([first, second]))


def _mixing(moved: np.ndarray, target: np.ndarray) -> float:
    """Share of target cells among the 15 neighbours of moved cells, over the share expected of a perfect mixture."""
    places = _components(moved, target, 50)
    found = NearestNeighbors(n_neighbors=16).fit(places).kneighbors(places[: len(moved)], return_distance=False)[:, 1:]
    return float((found >= len(moved)).mean() / (len(target) / (len(places) - 1)))


def _auc(moved: np.ndarray, target: np.ndarray) -> float:
    """How well a cross-validated logistic regression on 30 components tells moved cells from the target's."""
    places, is_target = _components(moved, target, 30), np.arange(len(moved) + len(target)) >= len(moved)
    model = LogisticRegression(max_iter=500)
    told = cross_val_predict(model, places / places.std(axis=0), is_target, cv=5, method="predict_proba")[:, 1]
    return float(roc_auc_score(is_target, told))


def _detected(cells: np.ndarray, above: float) -> float:
    return float((cells > above).sum(axis=1).mean())
