"""Condition: control cells of a donor never trained on set to stimulated; and cells of a donor to the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata
import numpy as np
from reconfigure_bars import Bar, dense, movable, quiet_fit, real

from unicoord_atlas.coordinate_changes import Changes
from unicoord_atlas.generate import Generation
from unicoord_atlas.restoration import pcc

if TYPE_CHECKING:
    from pathlib import Path

    from unicoord_atlas.reference import ReferenceModel

NAME = "kang_muscat_subset"
HELD_OUT = "107"
MARKER = "ISG15"


def measure(data: Path, settings: list[str]) -> tuple[dict[str, object], list[Bar]]:
    """Figures and bars."""
    cells = anndata.read_h5ad(data / NAME / f"{NAME}.h5ad")
    cells.obs_names_make_unique()
    figures, bars = _stimulate(cells, settings)
    nearer, real_nearer, apart = _other_donor(cells, settings)
    figures |= {
        "donor_nearer_to_target": nearer,
        "target_s_real_cells_nearer_to_the_others_of_their_donor": real_nearer,
        "donors_apart_over_halves_of_one_apart": apart,
    }
    return figures, [*bars, Bar("donor_nearer_to_target", nearer, 0.9)]


def _stimulate(cells: anndata.AnnData, settings: list[str]) -> tuple[dict[str, object], list[Bar]]:
    held_out = cells.obs["sample_id"].str.endswith(HELD_OUT).to_numpy()
    reference = quiet_fit(cells[~held_out].copy(), ["cell_type", "group_id"], [*movable(["group_id"]), *settings])
    control = cells[held_out & (cells.obs["group_id"] == "ctrl").to_numpy()].copy()
    stimulated = cells[held_out & (cells.obs["group_id"] == "stim").to_numpy()].copy()
    made = dense(reference, control, Generation(Changes({"group_id": "stim"}), min_value=0))
    before, after = real(reference, control), real(reference, stimulated)
    learned = _learned_change(reference, cells[~held_out])
    genes = np.array(reference.own_genes)
    change, ranks, transferred = {}, {}, {}
    for name in sorted(set(cells.obs["cell_type"])):
        of_control, of_stimulated = ((part.obs["cell_type"] == name).to_numpy() for part in (control, stimulated))
        base = before[of_control].mean(axis=0)
        predicted, truth = made[of_control].mean(axis=0) - base, after[of_stimulated].mean(axis=0) - base
        change[name] = float(pcc(predicted, truth))
        transferred[name] = float(pcc(learned[name], truth))
        ranks[name] = int((predicted > predicted[genes == MARKER][0]).sum()) + 1
    figures: dict[str, object] = {
        "pcc_of_change": change,
        "pcc_of_the_training_donor_s_change": transferred,
        f"rank_of_{MARKER}": ranks,
    }
    return figures, [
        Bar("condition_pcc_of_change_worst_type", min(change.values()), 0.7),
        Bar(f"condition_rank_of_{MARKER}_worst_type", max(ranks.values()), 10, at_least=False),
    ]


def _learned_change(reference: ReferenceModel, trained: anndata.AnnData) -> dict[str, np.ndarray]:
    """What one would say without a model: the change of the same type in the donor that was trained on."""
    values, obs = real(reference, trained.copy()), trained.obs
    return {
        name: values[((obs["cell_type"] == name) & (obs["group_id"] == "stim")).to_numpy()].mean(axis=0)
        - values[((obs["cell_type"] == name) & (obs["group_id"] == "ctrl")).to_numpy()].mean(axis=0)
        for name in set(obs["cell_type"])
    }


def _other_donor(cells: anndata.AnnData, settings: list[str]) -> tuple[float, float, dict[str, float]]:
    """Control cells of donor 101 set to 107.

    Returns
    -------
    The share that is nearer to 107's mean of their type than to 101's; the same of 107's real cells, each left out of
    the mean, which is the most to expect; and for each type how far both donors' means are apart, over how far two
    random parts of 101 are: near 1 there is no donor to be seen, only noise.
    """
    reference = quiet_fit(cells, ["cell_type", "sample_id"], [*movable(["sample_id"]), *settings])
    source, target = (cells[cells.obs["sample_id"] == name].copy() for name in ("ctrl101", "ctrl107"))
    made = dense(reference, source, Generation(Changes({"sample_id": "ctrl107"}), min_value=0))
    own, other = real(reference, source), real(reference, target)
    nearer, real_nearer, apart, rng = [], [], {}, np.random.default_rng(0)
    for name in set(cells.obs["cell_type"]):
        of_source, of_target = ((part.obs["cell_type"] == name).to_numpy() for part in (source, target))
        towards, away = (pcc(made[of_source], mean) for mean in (other[of_target].mean(0), own[of_source].mean(0)))
        nearer.append(towards > away)
        x = other[of_target]
        others = (x.sum(0) - x) / (len(x) - 1)
        real_towards = np.array([pcc(cell, mean) for cell, mean in zip(x, others, strict=True)])
        real_nearer.append(real_towards > pcc(x, own[of_source].mean(0)))
        shuffled = rng.permutation(own[of_source])
        part = min(int(of_target.sum()), len(shuffled) // 2)
        halves = np.linalg.norm(shuffled[:part].mean(0) - shuffled[part:].mean(0))
        apart[name] = float(np.linalg.norm(other[of_target].mean(0) - own[of_source].mean(0)) / halves)
    return float(np.concatenate(nearer).mean()), float(np.concatenate(real_nearer).mean()), apart
