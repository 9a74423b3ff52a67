"""What `train` says of its cells before it begins, and the table that it ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from unicoord_atlas.training.metrics import SPEED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from unicoord_atlas.training.preparation import Preparation

_VALIDATION = "validation_"


def preparation_text(prepared: Preparation, min_cells: int) -> str:
    """Numbers of cells, remarks, and the classes of each label; those with fewer than `min_cells` are folded."""
    lines = [f"{len(prepared.training_rows):,} training cells, {len(prepared.validation_rows):,} for validation"]
    lines += [f"  {remark}" for remark in prepared.remarks]
    for label in prepared.labels:
        lines.append(f"  {label.name}: {len(label.categories)} classes, {sum(label.counts):,} labelled training cells")
        if label.folded:
            rare = ", ".join(f"{name} ({count})" for name, count in label.folded.items())
            lines.append(f"  {label.name}: folded into 'other' (under data.min_cells = {min_cells} cells): {rare}")
    return "\n".join(lines)


def summary_table(entries: Sequence[Mapping[str, Any]], best_epoch: int, metrics: Mapping[str, float]) -> Table:
    """Training and validation side by side, the exported model's metrics below.

    Parameters
    ----------
    entries
        The lines of metrics.jsonl.
    best_epoch
        The epoch that is exported, counted from 1; the lines count from 0.
    metrics
        Of the finished model.
    """
    best = next(entry for entry in entries if entry["epoch"] == best_epoch - 1)
    seconds = sum(entry["seconds"] for entry in entries)
    cells = sum(entry["seconds"] * entry["cells_per_second"] for entry in entries)
    waited = sum(entry["seconds"] * entry["data_wait"] for entry in entries)
    speed = f"{cells / seconds:,.0f} cells/s, data wait {waited / seconds:.1%}"
    if taken := [entry["device_bytes"] for entry in entries if "device_bytes" in entry]:  # epochs may be of a CPU, too
        speed += f", at most {max(taken) / 2**30:.2f} GiB of the GPU's memory"
    table = Table(
        "", "training", "validation",
        title=f"epoch {best_epoch} of {len(entries)}",
        caption=f"{entries[-1]['step']:,} steps in {seconds / 60:,.1f} min: {speed}",
    )  # fmt: skip
    names = [name for name in best if name not in ("epoch", "step", *SPEED)]
    for name in dict.fromkeys(name.removeprefix(_VALIDATION) for name in names):
        table.add_row(name, *(_shown(best.get(key)) for key in (name, _VALIDATION + name)))
    for name, value in metrics.items():
        table.add_row(name, "", _shown(value), style="bold")
    return table


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:,.4f}"
