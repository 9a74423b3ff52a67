"""Which cells are alike: highly variable genes, principal components, nearest neighbours, their weights."""
