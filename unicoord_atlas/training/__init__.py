"""The training loop and what it keeps: split, optimizer, checkpoints, metrics."""
