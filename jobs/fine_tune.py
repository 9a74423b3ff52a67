"""fine-tune: a query's batch becomes a class of a reference's technical label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.loaders.query_cells import open_query
from unicoord_atlas.query import MIN_COVERAGE, QueryBatches, require_coverage
from unicoord_atlas.reference import ReferenceModel
from unicoord_atlas.training.fine_tune import changed_tensors, fit_class, with_class

from .map_query import require_cells
from .reference_cells import copy_cells
from .workdir import check_output, finished_directory

if TYPE_CHECKING:
    from pathlib import Path

_BATCH = 256


@dataclass(frozen=True)
class FineTuneOptions:
    """What `unicoord-atlas fine-tune` is asked to do."""

    query: Path
    reference: Path
    out: Path
    label: str
    name: str
    epochs: int = 20
    min_coverage: float = MIN_COVERAGE
    """Cells whose genes carry less of the reference's mean profile are refused."""


def run(options: FineTuneOptions) -> dict[str, Any]:
    """Learn the new class, check that nothing else has changed, and write the reference under a new name."""
    settings = {"label": options.label, "name": options.name, "epochs": options.epochs}
    inputs = [options.query, options.reference]
    check_output(options.out, inputs, settings)
    if options.epochs < 1:
        raise UsageError(f"--epochs {options.epochs}: at least 1")
    reference = ReferenceModel.load(options.reference)
    with open_query(options.query, input=reference.normalization.input) as source:
        require_cells(source.n_obs, options.query)
        batches = QueryBatches(source, reference.schema, reference.normalization, _BATCH)
        require_coverage(batches.coverage, options.query, options.min_coverage)
        tuned = with_class(reference, options.label, options.name, source.n_obs)
        errors = fit_class(tuned, options.label, batches, options.epochs)
    changed = changed_tensors(reference, tuned, options.label)
    if changed:
        raise DataError(
            f"{options.reference}: fine-tuning changed {', '.join(changed)}, which it must not; report this"
        )
    with finished_directory(options.out, inputs, settings) as partial:
        tuned.save(partial)
        copy_cells(options.reference, partial)
    return {"reference": str(options.out), "errors": [errors[0], errors[-1]], "frozen_weights": "bit-equal"}
