"""Program: stacked bars of full_heca, the share of each stage in time, and its peak memory.

python benchmarks/heca_plot.py RESULT.json OUT.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt

GIB = 2**30


def main(result: Path, out: Path) -> None:
    """A bar a size: minutes per 100,000 cells, one above the other; below, memory by stage."""
    runs = json.loads(result.read_text())["runs"]
    figure, (times, memory) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    names = list(runs[0]["stages"])
    sizes = [f"{run['cells']:,}" for run in runs]
    below = [0.0] * len(runs)
    for number, name in enumerate(names):
        color = plt.get_cmap("tab10")(number)
        height = [run["stages"][name]["wall_s"] / 60 / run["cells"] * 1e5 for run in runs]
        times.bar(sizes, height, bottom=below, color=color, label=name)
        below = [a + b for a, b in zip(below, height, strict=True)]
        memory.plot(sizes, [run["stages"][name]["peak_rss"] / GIB for run in runs], "o-", color=color)
    times.set(xlabel="cells x 43,878 genes", ylabel="minutes per 100,000 cells")
    memory.set(xlabel="cells x 43,878 genes", ylabel="peak memory, GiB", ylim=(0, None))
    handles, labels = times.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", fontsize=8)
    figure.suptitle("Simulated atlas of hECA's size, and smaller ones", fontsize=10)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
