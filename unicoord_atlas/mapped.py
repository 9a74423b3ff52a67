"""An AnnData mapped onto a reference, all of it in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .calls import CallRule
from .coordinates import coordinates
from .memory import AnnDataCells
from .query import QueryBatches, require_coverage

if TYPE_CHECKING:
    import anndata

    from .reference import ReferenceModel


def map_anndata(
    reference: ReferenceModel,
    adata: anndata.AnnData,
    layer: str | None,
    probabilities: bool,
    rule: CallRule | None,
    consistent: bool,
    min_coverage: float,
) -> anndata.AnnData:
    """What `ReferenceModel.map` does; uns["unicoord"] also holds profile_share, as in what map-query writes.

    Raises
    ------
    DataError
        If the cells' genes carry less than `min_coverage` of the reference's mean profile, and as `AnnDataCells`.
    """
    cells = AnnDataCells(adata, layer, reference.normalization.input)
    batches = QueryBatches(cells, reference.schema, reference.normalization)
    require_coverage(batches.coverage, cells.path, min_coverage)
    mapped = coordinates(
        reference,
        batches,
        adata.obs,
        probabilities,
        "map",
        rule=rule or CallRule(),
        measured_g=batches.measured_g,
        consistent=consistent,
    )
    mapped.uns["unicoord"]["profile_share"] = batches.coverage.profile_share
    return mapped
