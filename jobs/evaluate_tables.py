"""What `evaluate MAPPED` writes: evaluation.json, CSV tables, a readable summary and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from .console_text import one_line, plain_console
from .workdir import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd

    from .evaluate import LabelEvaluation

_WIDTH = 110


def write_evaluation(
    folder: Path,
    found: Sequence[LabelEvaluation],
    explained: pd.DataFrame,
    activities: pd.DataFrame | None,
    mixing: Mapping[str, float],
) -> None:
    """Write all of it, and print the summary on stderr; ConfigError if matplotlib is not installed."""
    from .evaluate_figures import draw_calibration, draw_confusion, draw_flow  # late: matplotlib is an extra

    write_json(folder / "evaluation.json", _facts(found, mixing))
    explained.to_csv(folder / "explained_variance.csv")
    if activities is not None:
        activities.to_csv(folder / "activities.csv", index=False)
    for each in found:
        each.classes.to_csv(folder / f"{each.label}_classes.csv", index_label="class")
        each.bins.to_csv(folder / f"{each.label}_calibration.csv", index=False)
        each.confusion.to_csv(folder / f"{each.label}_confusion.csv")
        each.flow.to_csv(folder / f"{each.label}_flow.csv")
        draw_confusion(each.confusion, each.label, folder / f"{each.label}_confusion.png")
        draw_calibration(each.bins, each.metrics["ece"], folder / f"{each.label}_calibration.png")
        draw_flow(each.flow, each.label, folder / f"{each.label}_flow.png")
    tables = [*(table for each in found for table in _summary(each)), *([_mixing_table(mixing)] if mixing else [])]
    with (folder / "summary.txt").open("w", encoding="utf-8") as file:
        for console in (plain_console(file=file, width=_WIDTH), plain_console()):
            for table in tables:
                console.print(table)


def _facts(found: Sequence[LabelEvaluation], mixing: Mapping[str, float]) -> dict[str, Any]:
    labels = {
        each.label: {
            "metrics": each.metrics,
            "classes": each.classes.to_dict(orient="index"),
            "calibration": each.bins.to_dict(orient="records"),
            "confusion": each.confusion.to_dict(orient="index"),
            "flow": each.flow.to_dict(orient="index"),
        }
        for each in found
    }
    return {"labels": labels, **({"mixing": dict(mixing)} if mixing else {})}


def _summary(each: LabelEvaluation) -> list[Table]:
    overall = Table("metric", "value", title=f"{each.label}: all classes")
    for name, value in each.metrics.items():
        overall.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
    classes = Table("class", "precision", "recall", "F1", "cells", "predicted", title=f"{each.label}: by class")
    for name, row in each.classes.iterrows():
        shares = [f"{row[key]:.3f}" for key in ("precision", "recall", "f1")]
        classes.add_row(one_line(str(name)), *shares, f"{int(row['cells']):,}", f"{int(row['predicted']):,}")
    return [overall, classes]


def _mixing_table(mixing: Mapping[str, float]) -> Table:
    table = Table("metric", "value", title="batches and types in X_unicoord_bio (scib-metrics)")
    for name, value in mixing.items():
        table.add_row(name, f"{value:.4f}")
    return table
