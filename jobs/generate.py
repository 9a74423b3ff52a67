"""generate: cells with some of their coordinates changed."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from tqdm import tqdm

from unicoord_atlas.encode import encode_batches
from unicoord_atlas.errors import UsageError
from unicoord_atlas.generate import decode_rows, mode_latents, resolve_settings
from unicoord_atlas.loaders.sources import open_source
from unicoord_atlas.query import QueryBatches
from unicoord_atlas.reference import ReferenceModel

from .map_query import require_cells, require_suffix
from .write_coordinates import write_output

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MIN_VALUE = 0.01
"""Smaller generated values are dropped: they are what a ReLU leaves of nothing."""


@dataclass(frozen=True)
class GenerateOptions:
    """What `unicoord-atlas generate` is asked to do."""

    cells: Path
    reference: Path
    out: Path
    labels: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    layer: str | None = None


def run(options: GenerateOptions) -> dict[str, Any]:
    """Encode, set coordinates, decode; X holds log-normalized values."""
    require_suffix(options.out)
    reference = ReferenceModel.load(options.reference)
    codes, values = resolve_settings(reference, options.labels, _numbers(options.values))
    rows = []
    with open_source(options.cells, options.layer) as source:
        require_cells(source.n_obs, options.cells)
        batches = QueryBatches(source, reference.schema, reference.normalization, batch_size=256)
        bar = tqdm(total=len(batches), desc="generate", unit="cell", unit_scale=True, disable=not sys.stderr.isatty())
        for encoded in encode_batches(reference.model, batches, reference.device):
            decoded = decode_rows(reference.model, mode_latents(reference.model, encoded, codes, values))
            rows.append(sp.csr_matrix(np.where(decoded >= MIN_VALUE, decoded, 0)))
            bar.update(len(encoded.rows))
        bar.close()
        obs = source.obs
    for name, category in options.labels.items():
        obs[f"{name}_generated"] = pd.Categorical([category] * len(obs))
    for name, value in values.items():
        obs[f"{name}_generated"] = value
    provenance = {"reference": options.reference.name, "set_label": dict(options.labels), "set_value": values}
    adata = anndata.AnnData(
        sp.vstack(rows, format="csr"),
        obs=obs,
        var=pd.DataFrame(index=list(reference.own_genes)),
        uns={"unicoord": provenance},
    )
    write_output(adata, options.out, [options.cells, options.reference])
    return {"generated": str(options.out), "cells": adata.n_obs, "genes": adata.n_vars}


def _numbers(values: Mapping[str, str]) -> dict[str, float]:
    numbers = {}
    for name, text in values.items():
        try:
            numbers[name] = float(text)
        except ValueError:
            raise UsageError(f"--set-value {name}={text}: {text!r} is no number") from None
    return numbers
