"""Which sets are active in which types: each type against all other cells, as scanpy's `rank_genes_groups` tests genes.

Shapes: n cells, s sets, k types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from unicoord_atlas.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def activity_table(scores: pd.DataFrame, types: pd.Series) -> pd.DataFrame:
    """A row a type and set, sets of a type by falling score.

    Parameters
    ----------
    scores
        (n, s) by name.
    types
        Type of each cell, missing where unlabelled; such cells are left out.

    Returns
    -------
    DataFrame with type, set, cells, mean, mean_rest, difference, score (Welch's t), pval, pval_adj (Benjamini and
    Hochberg, within the type) and share_above (of the type's cells, those above the mean over all cells).

    Raises
    ------
    DataError
        If fewer than two types have two cells.
    """
    known = types.notna().to_numpy(bool)
    codes = pd.Categorical(types[known].astype(str))
    values_ns = scores.to_numpy(np.float64)[known]
    counts_k = np.bincount(codes.codes, minlength=len(codes.categories))
    tested = np.flatnonzero(counts_k >= 2)
    if len(tested) < 2:
        raise DataError(f"{types.name}: fewer than two types with two cells each; choose another --label")
    parts = [_of_type(values_ns, codes.codes == code, scores.columns, codes.categories[code]) for code in tested]
    return pd.concat(parts, ignore_index=True)


def _of_type(
    values_ns: NDArray[np.float64], inside_n: NDArray[np.bool_], names: Sequence[str], title: str
) -> pd.DataFrame:
    own_ns, rest_ns = values_ns[inside_n], values_ns[~inside_n]
    with np.errstate(divide="ignore", invalid="ignore"):
        t_s, p_s = stats.ttest_ind_from_stats(
            own_ns.mean(axis=0), own_ns.std(axis=0, ddof=1), len(own_ns),
            rest_ns.mean(axis=0), rest_ns.std(axis=0, ddof=1), len(rest_ns), equal_var=False,
        )  # fmt: skip
    t_s, p_s = np.nan_to_num(t_s), np.where(np.isnan(p_s), 1.0, p_s)  # a set with one score in all cells says nothing
    table = pd.DataFrame(
        {
            "type": title,
            "set": list(names),
            "cells": len(own_ns),
            "mean": own_ns.mean(axis=0),
            "mean_rest": rest_ns.mean(axis=0),
            "difference": own_ns.mean(axis=0) - rest_ns.mean(axis=0),
            "score": t_s,
            "pval": p_s,
            "pval_adj": stats.false_discovery_control(p_s),
            "share_above": (own_ns > values_ns.mean(axis=0)).mean(axis=0),
        }
    )
    return table.sort_values("score", ascending=False, kind="stable")
