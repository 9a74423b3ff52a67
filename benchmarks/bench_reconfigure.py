"""Reconfiguration and restoration on real data: whether what is made is where it should be.

    platform    Drop-seq cells set to CEL-seq2        (sc_mixology_cell_lines)
    type        blood cells set to CD8 T              (pbmc4k)
    condition   control cells set to stimulated, donor 107 held out; donor set to the other   (kang_muscat_subset)
    worm        six bins of embryo time left out      (worm_embryo_packer)
    mix         mixtures of RNA left out              (sc_mixology_RNAmix_continuous)
    batch       how held-out cells of three data sets mix in X_unicoord_bio   (pbmc8k, pbmc4k, pbmc3k; scib-metrics)

Each beside what one could say without a model, in the same run.

    python benchmarks/bench_reconfigure.py --data ../shared/data --json benchmarks/results/reconfigure.json
    python benchmarks/bench_reconfigure.py --part condition --quick
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import reconfigure_batch
import reconfigure_condition
import reconfigure_platform
import reconfigure_restore
import reconfigure_type

if TYPE_CHECKING:
    from reconfigure_bars import Bar

PARTS = ("platform", "type", "condition", "worm", "mix", "batch")
QUICK = ["data.genes=highly_variable", "data.num_highly_variable=2000"]


def main() -> int:
    """Run, print, and exit 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the data sets")
    parser.add_argument("--part", choices=PARTS, action="append", help="all of them if none is named")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each")
    parser.add_argument("--quick", action="store_true", help="2,000 genes, fewer levels left out")
    parser.add_argument("--set", action="append", default=[], help="any setting of train: section.key=value")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    runs, bars = [], []
    for part in args.part or PARTS:
        for seed in range(args.seeds):
            started = time.perf_counter()
            settings = [*(QUICK if args.quick else []), f"train.seed={seed}", *args.set]
            figures, reached = _measure(part, args.data, settings, args.quick)
            runs.append({"part": part, "seed": seed, "seconds": round(time.perf_counter() - started, 1), **figures})
            bars += reached
            print(f"{part}, seed {seed}: {json.dumps(runs[-1], indent=1)}", flush=True)
            for bar in reached:
                print(bar.line(), flush=True)
    if args.json:
        lines = [bar.line() for bar in bars]
        result = {"command": " ".join(["python", *sys.argv]), "runs": runs, "bars": lines}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(not all(bar.ok for bar in bars))


def _measure(part: str, data: Path, settings: list[str], quick: bool) -> tuple[dict[str, object], list[Bar]]:
    if part == "platform":
        return reconfigure_platform.measure(data, settings)
    if part == "condition":
        return reconfigure_condition.measure(data, settings)
    if part == "type":
        return reconfigure_type.measure(data, [name for name in settings if name not in QUICK])
    if part == "batch":
        with tempfile.TemporaryDirectory() as name:
            return reconfigure_batch.measure(data, Path(name), settings)
    measure = {"worm": reconfigure_restore.measure_worm, "mix": reconfigure_restore.measure_mix}[part]
    with tempfile.TemporaryDirectory() as name:
        return measure(data, Path(name), settings, quick)


if __name__ == "__main__":
    sys.exit(main())
