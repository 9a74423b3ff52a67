"""How good predictions, their confidences and their coordinates are.

Shapes: n cells, k categories, d dimensions.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .tree_levels import OTHER

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

NUM_BINS = 15
_LEAST = 1e-12


def as_classes(names_n: NDArray[np.str_], categories: Collection[str], folded: Collection[str]) -> NDArray[np.str_]:
    """(n,) names of types as a reference has them: what it folded, and "Others" in any case, is its class "other".

    Parameters
    ----------
    categories
        The reference's classes; where "other" is none of them, names stay as they are.
    folded
        Classes with too few training cells, which became "other".
    """
    if "other" not in categories:
        return names_n
    distinct, codes = np.unique(names_n, return_inverse=True)
    goes = [name not in categories and (name in folded or name.lower() in OTHER) for name in map(str, distinct)]
    result: NDArray[np.str_] = np.where(goes, "other", distinct)[codes]
    return result


def class_scores(true_n: NDArray[np.str_], predicted_n: NDArray[np.str_]) -> pd.DataFrame:
    """Precision, recall, F1 and cells of each class that occurs in either; index = class.

    A class that never occurs among the true ones has recall 0, one that is never predicted precision 0.
    """
    rows = {}
    for name in np.union1d(true_n, predicted_n):
        is_true, is_predicted = true_n == name, predicted_n == name
        hits = int((is_true & is_predicted).sum())
        rows[str(name)] = {
            "precision": hits / max(int(is_predicted.sum()), 1),
            "recall": hits / max(int(is_true.sum()), 1),
            "f1": 2 * hits / int(is_true.sum() + is_predicted.sum()),
            "cells": int(is_true.sum()),
            "predicted": int(is_predicted.sum()),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def calibration_bins(right_n: NDArray[np.bool_], confidence_n: NDArray[np.float32]) -> pd.DataFrame:
    """Cells, mean confidence and accuracy in up to 15 bins of equal mass, from the least confident on.

    Source: Nixon et al. 2019, "Measuring calibration in deep learning", adaptive calibration error.
    """
    order = np.argsort(confidence_n, kind="stable")
    parts = [part for part in np.array_split(order, NUM_BINS) if len(part)]
    return pd.DataFrame(
        {
            "cells": [len(part) for part in parts],
            "confidence": [float(confidence_n[part].mean()) for part in parts],
            "accuracy": [float(right_n[part].mean()) for part in parts],
        }
    )


def calibration_error(bins: pd.DataFrame) -> float:
    """Mean over cells of the distance between confidence and accuracy of their bin: the ECE."""
    gaps = (bins["confidence"] - bins["accuracy"]).abs()
    return float((gaps * bins["cells"]).sum() / bins["cells"].sum())


def negative_log_likelihood(probabilities_nk: NDArray[np.float32], codes_n: NDArray[np.integer]) -> float:
    """Mean of -log of the probability of the true class, in nats."""
    likely = np.maximum(probabilities_nk[np.arange(len(codes_n)), codes_n], _LEAST)
    return float(-np.log(likely).mean())


def selective_accuracy(right_n: NDArray[np.bool_], confidence_n: NDArray[np.float32], share: float) -> float:
    """Accuracy among this share of the cells, the most confident ones."""
    kept = np.argsort(-confidence_n, kind="stable")[: max(round(share * len(right_n)), 1)]
    return float(right_n[kept].mean())


def ancestry(name: str, above: Sequence[Mapping[str, Collection[str]]]) -> list[set[str]]:
    """A class, then all its ancestors of each level above; a level where it has none is empty.

    Parameters
    ----------
    above
        The parents of each category, level by level from the label upwards; what belongs to none may be left out.
    """
    levels = [{name}]
    for parents in above:
        levels.append({parent for child in levels[-1] for parent in parents.get(child, ())})
    return levels


def hierarchical_f1(
    true_n: NDArray[np.str_], predicted_n: NDArray[np.str_], above: Sequence[Mapping[str, Collection[str]]]
) -> float:
    """F1 over classes and all their ancestors, over all cells together: see `lineage.hierarchical_f1`, of codes.

    Parameters
    ----------
    above
        See `ancestry`.

    Source: Kiritchenko et al. 2006, "Learning and evaluation in the presence of class hierarchies".
    """
    common = total = 0
    for (true, predicted), cells in Counter(zip(true_n.tolist(), predicted_n.tolist(), strict=True)).items():
        levels = list(zip(ancestry(true, above), ancestry(predicted, above), strict=True))
        common += cells * sum(len(one & other) for one, other in levels)
        total += cells * sum(len(one) + len(other) for one, other in levels)
    return 2 * common / total


def separation(strange_n: NDArray[np.bool_], scores_n: NDArray[np.float32]) -> float:
    """Probability that a strange cell scores higher than another (ties half): the area under the ROC curve."""
    ranks = pd.Series(scores_n).rank().to_numpy()
    num_strange, num_known = int(strange_n.sum()), int((~strange_n).sum())
    above = ranks[strange_n].sum() - num_strange * (num_strange + 1) / 2
    return float(above / (num_strange * num_known))


def explained_by(labels: pd.DataFrame, values_nd: NDArray[np.float32], names: Sequence[str]) -> pd.DataFrame:
    """(labels, d) share of each dimension's variance that each obs column explains: what a dimension knows of a label.

    A category explains by its means, a number by a straight line; cells without the label, or with a number that is
    not finite, are left out, and so are columns that no cell is left of.
    """
    rows = {}
    for title, column in labels.items():
        is_number = pd.api.types.is_numeric_dtype(column)
        values_n = column.to_numpy(np.float64, na_value=np.nan) if is_number else None
        known = column.notna().to_numpy(np.bool_) if values_n is None else np.isfinite(values_n)
        if not known.any():
            continue
        part = values_nd[known].astype(np.float64)
        centred = part - part.mean(axis=0)
        total_d = np.maximum((centred**2).sum(axis=0), _LEAST)
        if values_n is not None:
            numbers = values_n[known] - values_n[known].mean()
            rows[str(title)] = (numbers @ centred) ** 2 / max(float(numbers @ numbers), _LEAST) / total_d
        else:
            codes = pd.Categorical(column[known]).codes
            sums = np.stack([np.bincount(codes, weights) for weights in centred.T], axis=1)
            sizes = np.bincount(codes)[:, None]
            rows[str(title)] = (sums**2 / np.maximum(sizes, 1)).sum(axis=0) / total_d
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(names))


def activities_by_group(
    groups_n: NDArray[np.str_], values_nd: NDArray[np.float32], names: Sequence[str]
) -> pd.DataFrame:
    """Dimensions of each group of cells, those that set it apart most first: group, name, score, mean, mean of others.

    The score is Welch's t of the group against all other cells, as in scanpy's rank_genes_groups.
    """
    rows = []
    for group in np.unique(groups_n):
        inside = values_nd[groups_n == group].astype(np.float64)
        outside = values_nd[groups_n != group].astype(np.float64)
        if len(inside) < 2 or len(outside) < 2:
            continue
        spread = inside.var(axis=0, ddof=1) / len(inside) + outside.var(axis=0, ddof=1) / len(outside)
        means = inside.mean(axis=0), outside.mean(axis=0)
        scores = (means[0] - means[1]) / np.sqrt(np.maximum(spread, _LEAST))
        for number in np.argsort(-scores, kind="stable"):
            rows.append((str(group), names[number], scores[number], means[0][number], means[1][number]))
    return pd.DataFrame(rows, columns=["group", "name", "score", "mean", "mean_of_others"])
