"""README.md of a reference: what it is, what it was trained on, how good it is, how to use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .discrete import unsupervised_discrete

if TYPE_CHECKING:
    from .reference import ReferenceModel


def model_card(reference: ReferenceModel) -> str:
    """Markdown with the front matter that model hubs read."""
    config, latent = reference.config, reference.config.network.latent
    sources = "\n".join(f"| {name} | {cells:,} |" for name, cells in config.atlas.get("sources", {}).items())
    labels = "\n".join(
        f"- **{label.name}**{' (technical)' if label.name in config.technical else ''}: "
        + ", ".join(f"{name} ({count:,})" for name, count in zip(label.categories, label.counts, strict=True))
        for label in config.labels
    )
    folded = "\n".join(
        f"- {label.name}: {', '.join(f'{name} ({count})' for name, count in label.folded.items())}"
        for label in config.labels
        if label.folded
    )
    continuous = ", ".join(each.name for each in latent.continuous if each.supervised) or "none"
    clusters = ", ".join(
        f"{each.name} (classes 0 to {len(each.categories) - 1})" for each in unsupervised_discrete(config).values()
    )
    metrics = "\n".join(f"| {name} | {value:,.4g} |" for name, value in config.metrics.items())
    return f"""---
library_name: unicoord-atlas
tags: [single-cell, annotation, variational-autoencoder]
---
# UniCoord reference model

A joint-VAE coordinate system of cells (Gao et al. 2024, doi 10.1038/s42003-024-06564-0), trained by unicoord-atlas
on {config.atlas.get("training_cells", 0):,} cells and {config.network.num_genes:,} genes, named by
{reference.schema.gene_key}.

    unicoord-atlas map-query QUERY.h5ad --reference THIS_DIRECTORY --out mapped.h5ad

## Trained on

| source | cells |
|---|---|
{sources}

## Coordinates

{labels}
- supervised continuous: {continuous}
- unsupervised continuous: {sum(not each.supervised for each in latent.continuous)} dimensions
- unsupervised discrete: {clusters or "none"}

Classes folded into "other" for having too few labelled training cells:

{folded or "none"}

## Measured on {config.atlas.get("validation_cells", 0):,} validation cells

| metric | value |
|---|---|
{metrics}

"genes never predicted" counts genes whose decoded value is 0 for every one of up to 2,000 training cells.
"""
