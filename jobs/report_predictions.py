"""The sections of a report that compare predictions and coordinates with the truth.  Shapes: n cells."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from unicoord_atlas.evaluation import as_classes, calibration_bins, calibration_error, class_scores
from unicoord_atlas.report.page import Section, Table

from .evaluate_figures import draw_calibration, draw_confusion
from .report_figures import draw_against_truth

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from .report_album import Album
    from .report_inputs import Inputs

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Predictions:
    """One label's predictions of cells whose class is known and one of the reference's."""

    label: str
    cells: str
    """Which cells these are."""
    truth: NDArray[np.str_]
    predicted: NDArray[np.str_]
    confidence: NDArray[np.float32]


def predictions_section(inputs: Inputs, album: Album) -> tuple[Section, Numbers]:
    """Confusion and calibration, of validation cells and of mapped cells with a truth."""
    title, parts = "Predictions", []
    numbers: Numbers = {}
    for found in [*_of_validation(inputs), *_of_mapped(inputs)]:
        classes = class_scores(found.truth, found.predicted)
        right = found.truth == found.predicted
        bins = calibration_bins(right, found.confidence)
        confusion = pd.crosstab(found.truth, found.predicted, rownames=["truth"], colnames=["predicted"])
        metrics = {
            "cells": len(right),
            "accuracy": float(right.mean()),
            "macro_f1": float(classes["f1"].mean()),
            "ece": calibration_error(bins),
        }
        name = f"{found.label} of {found.cells}"
        parts.append(
            (
                Table(name, ("metric", "value"), list(metrics.items())),
                _class_table(name, classes),
                album.picture(f"confusion: {name}", partial(draw_confusion, confusion, found.label)),
                album.picture(f"calibration: {name}", partial(draw_calibration, bins, metrics["ece"])),
            )
        )
        numbers.setdefault(found.label, {})[found.cells] = {
            **metrics,
            "calibration": bins.to_dict(orient="records"),
            "confusion": confusion.to_dict(orient="index"),
        }
    if not parts:
        way = "--latents LATENTS gives them for validation cells, --mapped MAPPED for mapped cells with a truth in obs"
        return Section("predictions", title, left_out=f"Left out: {way}."), {}
    tables = [table for part in parts for table in part[:2]]
    return Section("predictions", title, tables=tables, pictures=[p for part in parts for p in part[2:]]), numbers


def continuous_section(inputs: Inputs, album: Album) -> tuple[Section, Numbers]:
    """Supervised continuous dimensions over their truth in validation cells."""
    title = "Supervised continuous dimensions"
    if not inputs.supervised:
        return Section("continuous", title, left_out="Left out: the run supervises none (train --continuous)."), {}
    if inputs.latents is None or not len(inputs.held_out.rows):
        why = "--latents LATENTS gives them" if inputs.latents is None else "the run held no cell out for validation"
        return Section("continuous", title, left_out=f"Left out: {why}."), {}
    rows, names = inputs.held_out.rows, list(inputs.held_out.continuous)
    if not names:
        return Section("continuous", title, left_out="Left out: --atlas ATLAS gives the table that is the truth."), {}
    lines = ["Validation cells whose value is known."]
    if missing := len(inputs.supervised) - len(names):
        lines.append(f"{missing} dimensions are left out: --atlas ATLAS gives the table that is their truth.")
    at = [inputs.reference.dims.index(name) for name in names]
    found = pd.DataFrame(inputs.latents.table("X_unicoord", rows)[:, at], columns=names)
    truth = pd.DataFrame(inputs.held_out.values_vc, columns=names)
    numbers = {name: _agreement(truth[name], found[name]) for name in names}
    table = [(name, *each.values()) for name, each in numbers.items()]
    return (
        Section(
            "continuous",
            title,
            lines,
            [Table("agreement", ("dimension", "cells", "Pearson's r", "root mean square error"), table)],
            [album.picture("coordinates against the truth", partial(draw_against_truth, truth, found))],
        ),
        numbers,
    )


def _of_validation(inputs: Inputs) -> Iterator[Predictions]:
    if inputs.latents is None:
        return
    held_out, obs = inputs.held_out, inputs.latents.obs
    for number, label in enumerate(held_out.labels):
        codes = held_out.codes_vl[:, number]
        rows = held_out.rows[codes >= 0]
        if len(rows):
            truth = np.array(label.categories)[codes[codes >= 0]]
            yield _predictions(label.name, "validation cells", truth, obs.iloc[rows])


def _of_mapped(inputs: Inputs) -> Iterator[Predictions]:
    if inputs.mapped is None:
        return
    obs = inputs.mapped.obs
    for label in inputs.reference.config.labels:
        if label.name in obs:
            names = obs[label.name].astype("string").fillna("").to_numpy(str)
            truth = as_classes(names, label.categories, label.folded)
            inside = np.isin(truth, label.categories)
            if inside.any():
                yield _predictions(label.name, "mapped cells", truth[inside], obs[inside])


def _predictions(label: str, cells: str, truth: NDArray[np.str_], obs: pd.DataFrame) -> Predictions:
    predicted = obs[f"{label}_predicted"].to_numpy(str)
    return Predictions(label, cells, truth, predicted, obs[f"{label}_confidence"].to_numpy(np.float32))


def _class_table(name: str, classes: pd.DataFrame) -> Table:
    rows = [(str(index), *(float(row[key]) for key in ("precision", "recall", "f1")), int(row["cells"]))
            for index, row in classes.iterrows()]  # fmt: skip
    return Table(f"{name}, by class", ("class", "precision", "recall", "F1", "cells"), rows)


def _agreement(truth: pd.Series, found: pd.Series) -> dict[str, float]:
    known = truth.notna()
    truth, found = (values[known].astype(np.float64) for values in (truth, found))
    gaps = truth - found
    return {
        "cells": int(known.sum()),
        "pearson": float(truth.corr(found)),
        "rmse": float(np.sqrt((gaps**2).mean())),
    }
