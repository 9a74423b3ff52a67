"""Restoration of times of worm embryos and of mixtures of RNA, by `evaluate restore`."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING

from reconfigure_bars import Bar, movable

from unicoord_atlas.config import RunConfig
from unicoord_atlas.jobs import ingest, restore

if TYPE_CHECKING:
    from pathlib import Path

WORM, MIX = "worm_embryo_packer", "sc_mixology_RNAmix_continuous"
PROPORTIONS = ["H2228_prop", "H1975_prop", "HCC827_prop"]


def measure_worm(data: Path, folder: Path, settings: list[str], quick: bool) -> tuple[dict[str, object], list[Bar]]:
    """Six inner bins of embryo time."""
    inner = ["270-330", "330-390", "390-450", "450-510", "510-580", "580-650"][: 2 if quick else None]
    config = RunConfig.load(None, [*movable(["embryo.time"]), *settings])
    left_out = _restored(data, folder, WORM, config, (["embryo.time"], "embryo.time.bin", ",".join(inner)))
    own = sum(scores["nearest"] == name for name, scores in left_out.items())
    beyond = sum(scores["restored"]["mean"] >= scores["interpolation"]["mean"] for scores in left_out.values())
    needed = (1, 1) if quick else (4, 3)
    return left_out, [
        Bar("worm_bins_nearest_their_own", own, needed[0]),
        Bar("worm_bins_at_interpolation_or_above", beyond, needed[1]),
    ]


def measure_mix(data: Path, folder: Path, settings: list[str], quick: bool) -> tuple[dict[str, object], list[Bar]]:
    """Mixtures inside the triangle of three cell lines; of the corners there is no interpolation."""
    config = RunConfig.load(None, ['latent.discrete=["platform"]', *movable(PROPORTIONS), *settings])
    left_out = _restored(data, folder, MIX, config, (PROPORTIONS, "mix", "7" if quick else "each"))
    behind = [
        scores["interpolation"]["mean"] - scores["restored"]["mean"]
        for scores in left_out.values()
        if scores["interpolation"]
    ]
    return left_out, [Bar("mix_behind_interpolation_most", max(behind), 0.003, at_least=False)]


def _restored(
    data: Path, folder: Path, name: str, config: RunConfig, asked: tuple[list[str], str, str]
) -> dict[str, dict]:
    coordinates, levels, leave_out = asked
    atlas = folder / f"{name}.zarr"
    with contextlib.redirect_stderr(io.StringIO()):
        ingest.run(ingest.IngestOptions([str(data / name / f"{name}.h5ad")], atlas, labels=[levels]))
        options = restore.RestoreOptions(atlas, coordinates, folder / name, config, leave_out, levels)
        return restore.run(options)["left_out"]
