"""Gene sets: their scores in cells, their selection by data, and their activities by type."""
