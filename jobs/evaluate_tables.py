"""What `evaluate MAPPED` writes: evaluation.json, CSV tables, a readable summary and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from unicoord_atlas.evaluation import calibration_error

from .console_text import one_line, plain_console
from .optional_figures import can_draw
from .workdir import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd

    from .evaluate import LabelEvaluation

_WIDTH = 110
_NO_PROBABILITIES = "no probabilities: map again with --probabilities"


def write_evaluation(
    folder: Path,
    found: Sequence[LabelEvaluation],
    explained: pd.DataFrame,
    activities: pd.DataFrame | None,
    mixing: Mapping[str, float],
) -> None:
    """Write all of it, figures only if matplotlib is installed, and print the summary on stderr."""
    largest, activity = _largest(explained), _most_active(activities)
    labels = {each.label: _facts(each) for each in found}
    parts: dict[str, dict[str, Any]] = {
        "labels": labels,
        "explained_variance": largest,
        "activities": activity,
        "mixing": dict(mixing),
    }
    write_json(folder / "evaluation.json", {name: part for name, part in parts.items() if part})
    explained.to_csv(folder / "explained_variance.csv")
    if activities is not None:
        activities.to_csv(folder / "activities.csv", index=False)
    for each in found:
        each.classes.to_csv(folder / f"{each.label}_classes.csv", index_label="class")
        each.bins.to_csv(folder / f"{each.label}_calibration.csv", index=False)
        each.confusion.to_csv(folder / f"{each.label}_confusion.csv")
        each.flow.to_csv(folder / f"{each.label}_flow.csv")
        if len(each.lacking):
            each.lacking.to_csv(folder / f"{each.label}_lacking.csv", index_label="type")
    tables = [table for each in found for table in _summary(each)]
    tables += [_largest_table(largest)] if largest else []
    tables += [_activity_table(activity)] if activity else []
    tables += [_mixing_table(mixing)] if mixing else []
    with (folder / "summary.txt").open("w", encoding="utf-8") as file:
        for console in (plain_console(file=file, width=_WIDTH), plain_console()):
            for table in tables:
                console.print(table)
    if can_draw():
        _draw(folder, found)


def _draw(folder: Path, found: Sequence[LabelEvaluation]) -> None:
    from .evaluate_figures import draw_calibration, draw_confusion, draw_flow  # late: matplotlib is an extra

    for each in found:
        draw_confusion(each.confusion, each.label, folder / f"{each.label}_confusion.png")
        draw_calibration(each.bins, calibration_error(each.bins), folder / f"{each.label}_calibration.png")
        draw_flow(each.flow, each.label, folder / f"{each.label}_flow.png")


def _facts(each: LabelEvaluation) -> dict[str, Any]:
    return {
        "metrics": each.metrics,
        "classes": each.classes.to_dict(orient="index"),
        "calibration": each.bins.to_dict(orient="records"),
        "confusion": each.confusion.to_dict(orient="index"),
        "flow": each.flow.to_dict(orient="index"),
        "lacking": each.lacking.to_dict(orient="index"),
    }


def _largest(explained: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Of each label: the dimension that knows most of it, and the share of its variance that the label explains."""
    return {
        str(label): {"dimension": str(row.idxmax()), "explained": float(row.max())}
        for label, row in explained.iterrows()
    }


def _most_active(activities: pd.DataFrame | None) -> dict[str, dict[str, Any]]:
    """Of each predicted type: the supervised dimension that sets it apart most, its row of activities.csv."""
    if activities is None:
        return {}
    first = activities.drop_duplicates("group").set_index("group")  # those of a group are sorted
    return dict(first.to_dict(orient="index"))


def _summary(each: LabelEvaluation) -> list[Table]:
    overall = Table("metric", "value", title=f"{each.label}: all classes")
    for name, value in each.metrics.items():
        overall.add_row(name, _shown(value))
    classes = Table("class", "precision", "recall", "F1", "cells", "predicted", title=f"{each.label}: by class")
    for name, row in each.classes.iterrows():
        shares = [f"{row[key]:.3f}" for key in ("precision", "recall", "f1")]
        classes.add_row(one_line(str(name)), *shares, f"{int(row['cells']):,}", f"{int(row['predicted']):,}")
    return [overall, classes, *([_lacking_table(each)] if len(each.lacking) else [])]


def _shown(value: float | None) -> str:
    if value is None:
        return _NO_PROBABILITIES
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _lacking_table(each: LabelEvaluation) -> Table:
    title = f"{each.label}: types that the reference lacks"
    table = Table("type", "cells", "AUROC of novelty", "found at 0.05", title=title)
    for name, row in each.lacking.iterrows():
        shares = [f"{row[key]:.3f}" for key in ("novelty_auroc", "found_at_0.05") if key in row]
        table.add_row(one_line(str(name)), f"{int(row['cells']):,}", *shares)
    return table


def _largest_table(largest: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table("label", "dimension", "explained", title="largest explained variance")
    for label, best in largest.items():
        table.add_row(one_line(label), one_line(best["dimension"]), f"{best['explained']:.1%}")
    return table


def _activity_table(activity: Mapping[str, Mapping[str, Any]]) -> Table:
    title = "what sets each predicted type apart"
    table = Table("type", "dimension", "score", "mean", "mean of others", title=title)
    for group, best in activity.items():
        numbers = [f"{best[key]:.3f}" for key in ("score", "mean", "mean_of_others")]
        table.add_row(one_line(group), one_line(best["name"]), *numbers)
    return table


def _mixing_table(mixing: Mapping[str, float]) -> Table:
    table = Table("metric", "value", title="batches and types in X_unicoord_bio (scib-metrics)")
    for name, value in mixing.items():
        table.add_row(name, f"{value:.4f}")
    return table
