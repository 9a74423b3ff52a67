"""evaluate MAPPED: predictions, confidences and coordinates of mapped cells against the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from unicoord_atlas import evaluation
from unicoord_atlas.calls import UNASSIGNED
from unicoord_atlas.columns import require_column
from unicoord_atlas.errors import DataError, UsageError

from .evaluate_tables import write_evaluation
from .mapped_file import read_mapped
from .workdir import check_output, finished_directory

if TYPE_CHECKING:
    from pathlib import Path

    import anndata
    from numpy.typing import NDArray

UNLABELLED = "(unlabelled)"


@dataclass(frozen=True)
class EvaluateOptions:
    """What `unicoord-atlas evaluate MAPPED` is asked to do."""

    mapped: Path
    truth: list[str]
    """COLUMN or COLUMN=LABEL."""
    out: Path
    label_map: Path | None = None
    batch: str | None = None


@dataclass(frozen=True)
class LabelEvaluation:
    """One label's predictions against the truth."""

    label: str
    metrics: dict[str, float | None]
    """None of what cannot be measured: nll without probabilities."""
    classes: pd.DataFrame
    bins: pd.DataFrame
    confusion: pd.DataFrame
    """Cells of each true class that the reference has, by predicted class."""
    flow: pd.DataFrame
    """Cells of each label of the query, those that the reference lacks or has as "other" included, by prediction."""
    lacking: pd.DataFrame
    """Types that the reference lacks: their cells and, where novelty is known, how well they stand out."""


def run(options: EvaluateOptions) -> dict[str, Any]:
    """Measure, write JSON, tables and, if matplotlib is installed, figures."""
    inputs = [options.mapped, *([options.label_map] if options.label_map else [])]
    settings = {"truth": options.truth, "batch": options.batch}
    check_output(options.out, inputs, settings)
    if not options.truth:
        raise UsageError("--truth: name an obs column")
    labels = [text.partition("=")[2] or text for text in options.truth]
    if len(set(labels)) < len(labels):
        raise UsageError(f"--truth {','.join(options.truth)}: one truth for each label; evaluate the other by itself")
    adata = read_mapped(options.mapped)
    facts = adata.uns.get("unicoord")
    if facts is None or "categories" not in facts:
        raise DataError(f"{options.mapped}: map-query did not write it; give the file that it wrote")
    if options.batch:
        require_column(adata.obs, options.batch)
    found = [_evaluated(adata, facts, text, options) for text in options.truth]
    dims = [str(name) for name in facts["dims"]]
    coordinates = np.asarray(adata.obsm["X_unicoord"], np.float32)
    columns = [text.partition("=")[0] for text in options.truth] + ([options.batch] if options.batch else [])
    known = evaluation.explained_by(_labels(adata.obs, facts, columns), coordinates, dims)
    activities = _activities(adata, facts, found[0].label, coordinates, dims)
    mixing = _mixing(adata, columns[0], options.batch) if options.batch else {}
    with finished_directory(options.out, inputs, settings) as partial:
        write_evaluation(partial, found, known, activities, mixing)
    return {
        "evaluation": str(options.out),
        "labels": {each.label: each.metrics for each in found},
        **({"mixing": mixing} if mixing else {}),
    }


def _evaluated(adata: anndata.AnnData, facts: dict[str, Any], text: str, options: EvaluateOptions) -> LabelEvaluation:
    column, _, label = text.partition("=")
    label = label or column
    if label not in facts["categories"]:
        known = ", ".join(facts["categories"])
        raise UsageError(
            f"--truth {text}: the reference has no label {label!r}; write {column}=LABEL with one of: {known}"
        )
    names = _truth(adata.obs, column, label, options)
    categories = [str(name) for name in facts["categories"][label]]
    folded = {str(name) for name in facts.get("folded", {}).get(label, ())}  # older files do not say it
    truth = evaluation.as_classes(names, categories, folded)
    predicted = adata.obs[f"{label}_predicted"].to_numpy(str)
    confidence = adata.obs[f"{label}_confidence"].to_numpy(np.float32)
    inside = np.isin(truth, categories)
    strange = ~inside & (truth != UNLABELLED)
    if not inside.any():
        raise DataError(
            f"--truth {text}: none of its values ({', '.join(sorted(set(truth))[:5])}) is a class of the reference "
            f"({', '.join(categories[:5])}); name them alike with --label-map"
        )
    classes = evaluation.class_scores(truth[inside], predicted[inside])
    right = truth[inside] == predicted[inside]
    bins = evaluation.calibration_bins(right, confidence[inside])
    table, codes = adata.obsm.get(f"X_unicoord_{label}"), pd.Categorical(truth[inside], categories).codes
    metrics: dict[str, float | None] = {
        "cells": int(inside.sum()),
        "cells_of_other_types": int(strange.sum()),
        "accuracy": float(right.mean()),
        "macro_f1": float(classes["f1"].mean()),
        "ece": evaluation.calibration_error(bins),
        "accuracy_of_most_confident_90": evaluation.selective_accuracy(right, confidence[inside], 0.9),
        "nll": None if table is None else evaluation.negative_log_likelihood(np.asarray(table)[inside], codes),
    }
    above = _parents_above(facts, label)
    if above:
        metrics["hierarchical_f1"] = evaluation.hierarchical_f1(truth[inside], predicted[inside], above)
    metrics |= _call_metrics(adata.obs, label, truth, inside, above) | _novelty_metrics(adata.obs, inside, strange)
    confusion = pd.crosstab(truth[inside], predicted[inside], rownames=["truth"], colnames=["predicted"])
    flow = pd.crosstab(names, predicted, rownames=["truth"], colnames=["predicted"])
    lacking = _lacking(adata.obs, names, inside, strange)
    return LabelEvaluation(label, metrics, classes, bins, confusion, flow, lacking)


def _truth(obs: pd.DataFrame, column: str, label: str, options: EvaluateOptions) -> NDArray[np.str_]:
    """(n,) true types, under the reference's names where the label map has one; unlabelled cells are marked."""
    if column not in obs:
        raise UsageError(f"--truth {column}: obs has no such column; it has: {', '.join(map(str, obs.columns))}")
    values = obs[column].astype("string").replace("", pd.NA)
    if options.label_map:
        try:
            table = pd.read_csv(options.label_map, dtype=str)
        except (OSError, ValueError) as error:  # pandas' parsing errors are ValueErrors
            raise DataError(f"{options.label_map}: cannot be read as a label map ({error})") from error
        if not {"column", "label", label} <= set(table.columns):
            raise DataError(f"{options.label_map}: it needs the columns column, label and {label}")
        rows = table[table["column"] == column]
        names = dict(zip(rows["label"], rows[label], strict=True))
        if len(rows.groupby(["label", label])) > len(names):  # rows of several sources; a query is one
            twice = rows[["label", label]].drop_duplicates()["label"].mode()[0]
            raise DataError(f"{options.label_map}: {column} {twice!r} has several names; keep those of this query")
        values = values.map(lambda name: names.get(name, name), na_action="ignore")
    result: NDArray[np.str_] = values.fillna(UNLABELLED).to_numpy(str)
    return result


def _parents_above(facts: dict[str, Any], label: str) -> list[dict[str, set[str]]]:
    """The parents of each category, level by level from the label upwards."""
    levels = []
    ties = facts.get("parents", {})
    while label in ties:
        tie = ties[label]
        label, children = str(tie["level"]), [str(child) for child in tie["children"]]
        parents: dict[str, set[str]] = {child: set() for child in children}
        if "pairs" in tie:
            for child, parent in np.asarray(tie["pairs"]):
                parents[children[child]].add(str(facts["categories"][label][parent]))
        else:  # an older file: one of them, or ""
            for name, parent in zip(children, map(str, tie["parents"]), strict=True):
                parents[name] |= {parent} - {""}
        levels.append(parents)
    return levels


def _call_metrics(
    obs: pd.DataFrame,
    label: str,
    truth: NDArray[np.str_],
    inside: NDArray[np.bool_],
    above: list[dict[str, set[str]]],
) -> dict[str, float]:
    """How many cells of known types are called, and how many of these calls name the type or one of its ancestors."""
    if f"{label}_call" not in obs:
        return {}
    calls = obs[f"{label}_call"].to_numpy(str)[inside]
    lineages = {name: set[str]().union(*evaluation.ancestry(name, above)) for name in np.unique(truth[inside]).tolist()}
    right = np.array([call in lineages[name] for call, name in zip(calls, truth[inside], strict=True)])
    called = calls != UNASSIGNED
    metrics = {"called": float(called.mean())}
    return metrics | ({"accuracy_of_calls": float(right[called].mean())} if called.any() else {})


def _novelty_metrics(obs: pd.DataFrame, inside: NDArray[np.bool_], strange: NDArray[np.bool_]) -> dict[str, float]:
    """False alarms among known types; where the query has types that the reference lacks, how well they stand out."""
    if "novelty" not in obs:
        return {}
    metrics = {"false_alarms_at_0.05": float((obs["novelty_p"].to_numpy(np.float32)[inside] < 0.05).mean())}
    return metrics | (_standing_out(obs, inside, strange) if strange.any() else {})


def _standing_out(obs: pd.DataFrame, inside: NDArray[np.bool_], strange: NDArray[np.bool_]) -> dict[str, float]:
    """How well some cells that are strange are told from those of known types; nothing if novelty is not known."""
    if "novelty" not in obs:
        return {}
    novelty, p_values = obs["novelty"].to_numpy(np.float32), obs["novelty_p"].to_numpy(np.float32)
    either = inside | strange
    return {
        "novelty_auroc": evaluation.separation(strange[either], novelty[either]),
        "found_at_0.05": float((p_values[strange] < 0.05).mean()),
    }


def _lacking(
    obs: pd.DataFrame, names: NDArray[np.str_], inside: NDArray[np.bool_], strange: NDArray[np.bool_]
) -> pd.DataFrame:
    """Each type that the reference lacks by itself; index = type."""
    rows = {}
    for name in np.unique(names[strange]):
        own = strange & (names == name)
        rows[str(name)] = {"cells": int(own.sum()), **_standing_out(obs, inside, own)}
    return pd.DataFrame.from_dict(rows, orient="index")


def _labels(obs: pd.DataFrame, facts: dict[str, Any], asked: list[str]) -> pd.DataFrame:
    """What dimensions may know of the cells: the columns asked for, and those of obs that are a label of the reference.

    Discrete ones are text, whatever they are in obs; missing where a cell has none.
    """
    discrete = list(dict.fromkeys([*asked, *(name for name in facts["categories"] if name in obs)]))
    supervised = [name for name in map(str, facts.get("supervised", ())) if name in obs and name not in discrete]
    numbers = [name for name in supervised if pd.api.types.is_numeric_dtype(obs[name])]
    return obs[[*discrete, *numbers]].astype(dict.fromkeys(discrete, "string")).replace("", pd.NA)


def _activities(
    adata: anndata.AnnData, facts: dict[str, Any], label: str, coordinates: NDArray[np.float32], dims: list[str]
) -> pd.DataFrame | None:
    """Supervised continuous dimensions by predicted type; None if there are none."""
    chosen = [number for number, name in enumerate(dims) if name in set(map(str, facts.get("supervised", ())))]
    if not chosen:
        return None
    groups = adata.obs[f"{label}_predicted"].to_numpy(str)
    return evaluation.activities_by_group(groups, coordinates[:, chosen], [dims[number] for number in chosen])


def _mixing(adata: anndata.AnnData, label: str, batch: str) -> dict[str, float]:
    from .evaluate_mixing import mixing  # late: jax takes seconds, and is an extra

    return mixing(np.asarray(adata.obsm["X_unicoord_bio"], np.float32), adata.obs[label], adata.obs[batch])
