"""What map-query says of the cells that it mapped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from unicoord_atlas.calls import NOVEL, UNSURE

from .console_text import one_line, plain_console

if TYPE_CHECKING:
    import pandas as pd

    from unicoord_atlas.calls import CallRule
    from unicoord_atlas.reference import ReferenceModel

LOW_CONFIDENCE = 0.5


def say_predictions(obs: pd.DataFrame, reference: ReferenceModel) -> dict[str, dict[str, int]]:
    """Print cells per class with their mean confidence, for labels that are not technical."""
    predictions: dict[str, dict[str, int]] = {}
    for label in reference.config.labels:
        predicted, confidence = obs[f"{label.name}_predicted"], obs[f"{label.name}_confidence"]
        counts = predicted.value_counts()
        predictions[label.name] = {str(name): int(count) for name, count in counts.items() if count}
        if label.name in reference.config.technical:
            continue
        table = Table("class", "cells", "mean confidence", "below 0.5", title=f"{label.name} predicted")
        for name in predictions[label.name]:
            inside = confidence[predicted == name]
            low = (inside < LOW_CONFIDENCE).mean()
            table.add_row(one_line(name), f"{len(inside):,}", f"{inside.mean():.2f}", f"{low:.1%}")
        plain_console().print(table)
    return predictions


def say_calls(obs: pd.DataFrame, reference: ReferenceModel, rule: CallRule) -> dict[str, Any]:
    """Print how many cells are called at which level, and how many are too strange or not sure enough."""
    console = plain_console()
    if reference.novelty is None:
        console.print("the reference does not know how strange its own cells are: no novelty (export it anew for that)")
    levels = {}
    for label in reference.config.labels:
        counts = obs[f"{label.name}_call_level"].value_counts()
        levels[label.name] = {str(name): int(count) for name, count in counts.items()}
        if label.name not in reference.config.technical:
            words = {UNSURE: f"below {rule.min_confidence:g}", NOVEL: f"novelty_p < {rule.max_novelty_p:g}"}
            said = ", ".join(
                f"{name} {count:,}" + (f" ({words[name]})" if name in words else "")
                for name, count in levels[label.name].items()
            )
            console.print(f"{label.name}_call_level: {said}")
    return {"call_levels": levels}
