"""Training cells that are drawn by their classes.  Shapes: N cells of the store, t training cells."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from unicoord_atlas.errors import DataError, UsageError

from .sampling import balanced_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unicoord_atlas.config import StreamConfig
    from unicoord_atlas.losses.objective import LabelFacts
    from unicoord_atlas.training.preparation import Preparation


def with_balance(prepared: Preparation, stream: StreamConfig, obs: pd.DataFrame) -> Preparation:
    """The preparation with weights by which `stream.balance` has training cells drawn; as it is if that is empty.

    The split and the counts of the classes stay, and so does what is taken from training and validation cells once
    the model is trained.

    Raises
    ------
    UsageError
        If `stream.balance` is neither a label nor a column of obs.
    DataError
        If no training cell has a class there.
    """
    if not stream.balance:
        return prepared
    codes = _classes(prepared, stream.balance, obs)
    num_cells, num_classes = len(prepared.training_rows), len(np.unique(codes[codes >= 0]))
    if not num_classes:
        raise DataError(f"stream.balance = {stream.balance!r}: none of the {num_cells} training cells is labelled")
    weights = balanced_weights(codes, stream.balance_temperature)
    facts = _facts_as_drawn(prepared, weights)
    balanced = replace(prepared, weights=weights, facts=facts)
    remark = f"stream.balance = {stream.balance!r}: {balanced.num_drawn:,} draws an epoch from {num_classes:,} classes"
    if balanced.num_drawn < num_cells:
        remark += f"; {num_cells - balanced.num_drawn:,} training cells without one are left out"
    return replace(balanced, remarks=(*prepared.remarks, remark))


def _classes(prepared: Preparation, name: str, obs: pd.DataFrame) -> NDArray[np.int32]:
    """(N,) class of each training cell; -1 of one that has none, and of all other cells."""
    names = [label.name for label in prepared.labels]
    if name in names:
        found = prepared.columns.codes[:, names.index(name)]
    elif name in obs:
        found = pd.factorize(obs[name])[0]
    else:
        raise UsageError(
            f"stream.balance = {name!r}: obs has no such column; it has: {', '.join(map(str, obs.columns))}"
        )
    codes = np.full(len(found), -1, np.int32)
    codes[prepared.training_rows] = found[prepared.training_rows]
    return codes


def _facts_as_drawn(prepared: Preparation, weights: NDArray[np.float64]) -> LabelFacts:
    """Shares of cells with a label, or a value, among those drawn: the supervised losses are relative to them."""
    rows = prepared.training_rows
    drawn_t = weights[rows] / weights.sum()
    labelled = [float(drawn_t[codes_t >= 0].sum()) for codes_t in prepared.columns.codes[rows].T]
    known = [float(drawn_t[~np.isnan(values_t)].sum()) for values_t in prepared.columns.values[rows].T]
    return replace(
        prepared.facts, labelled_shares=tuple(labelled), known_shares_c=torch.tensor(known, dtype=torch.float32)
    )
