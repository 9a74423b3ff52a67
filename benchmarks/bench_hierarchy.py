"""Two levels of labels tied by the hierarchical loss: zeisel's level1 > level2, and cell_class > cell_type of PBMC.

For each data set the model is trained as it is by default ("tied"), with weight 0 of the loss ("weight_0"), and with
weight 0 and heads that know nothing of one another ("untied"), everything else the same.  A fifth of the cells is taken
out of the files before anything else and mapped at the end.  Over these: how often the raw arg-maxes of both heads
agree, before any consistent decoding, and macro-F1 of the finer level over the labelled ones, with consistent decoding
beside it.

    python benchmarks/bench_hierarchy.py --data ../shared/data --json benchmarks/results/hierarchy.json
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from held_out_files import split_file

from unicoord_atlas.columns import label_codes
from unicoord_atlas.config import RunConfig
from unicoord_atlas.encode import softmax
from unicoord_atlas.jobs import ingest, train
from unicoord_atlas.lineage import agreement, chain_above, consistent_codes, hierarchical_f1
from unicoord_atlas.loaders.sources import open_source
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.query import QueryBatches
from unicoord_atlas.reference import ReferenceModel
from unicoord_atlas.training.finish import macro_f1

AGREE = 0.99
KINDS = {
    "tied": [],
    "weight_0": ["loss.hierarchical=0"],
    "untied": ["loss.hierarchical=0", "latent.conditional=false"],
}
SETS = {
    "zeisel": (["zeisel2015_cortex"], ("level1", "level2")),
    "pbmc": (["pbmc8k_raw_labelled", "pbmc4k_soupx"], ("cell_class", "cell_type")),
}


def main() -> int:
    """Run, print, and exit 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the data sets")
    parser.add_argument("--quick", action="store_true", help="zeisel only, 10 epochs")
    parser.add_argument("--only", choices=sorted(SETS), help="one data set")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], help="any setting of train: section.key=value")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    settings = [*(["train.epochs=10"] if args.quick else []), *args.set]
    result: dict[str, Any] = {"command": " ".join(["python", *sys.argv])}
    missed = 0
    for name in ["zeisel"] if args.quick else [args.only] if args.only else sorted(SETS):
        with tempfile.TemporaryDirectory() as folder:
            runs = _compare(args.data, Path(folder), name, settings, args.seeds)
        result[name] = runs
        tied, untied = (
            {key: float(np.mean([run[key] for run in runs[kind]])) for key in ("agreement", "macro_f1")}
            for kind in ("tied", "untied")
        )
        bars = {
            f"{name}_agreement": (tied["agreement"], AGREE),
            f"{name}_macro_f1": (tied["macro_f1"], untied["macro_f1"]),
        }
        for bar, (value, limit) in bars.items():
            missed += value < limit
            print(f"bar {bar} {value:.4f} >= {limit:.4f} {'ok' if value >= limit else 'SHORT'}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(missed > 0)


def _compare(data: Path, folder: Path, name: str, settings: list[str], seeds: int) -> dict[str, list[dict[str, float]]]:
    sources, (parent, child) = SETS[name]
    files = [split_file(data, source, folder, number) for number, source in enumerate(sources)]
    atlas = _ingest([train_file for train_file, _ in files], folder / "atlas.zarr", data, name)
    tests = [_ingest([file], folder / f"{file.stem}.zarr", data, name) for _, file in files]
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for seed in range(seeds):
        for kind, extra in KINDS.items():
            fixed = [f'latent.discrete=["{child}"]', f'latent.hierarchy=["{parent} > {child}"]', f"train.seed={seed}"]
            config = RunConfig.load(None, [*fixed, *settings, *extra])
            out = folder / f"{kind}{seed}"
            with contextlib.redirect_stderr(io.StringIO()):
                train.run(train.TrainOptions(atlas, out, config))
            scores = _held_out(tests, out, child)
            runs[kind].append(scores)
            facts = ", ".join(f"{key} {value:.4f}" for key, value in scores.items())
            print(f"{name}, seed {seed}, {kind}: {facts}", flush=True)
    return runs


def _ingest(files: list[Path], out: Path, data: Path, name: str) -> Path:
    """A store of these cells with both levels of labels."""
    label_map = data / "pbmc_labels.csv" if name == "pbmc" else None
    options = ingest.IngestOptions(
        [str(file) for file in files], out, labels=SETS[name][1], label_map=label_map, unlabelled=["(none)"]
    )
    with contextlib.redirect_stderr(io.StringIO()):
        ingest.run(options)
    return out


def _held_out(tests: list[Path], run: Path, child: str) -> dict[str, float]:
    """Scores of cells of other stores, each mapped by itself."""
    reference = ReferenceModel.load(run / "model")
    label = reference.label(child)
    names = [each.name for each in reference.config.labels]
    parts, codes = [], []
    for path in tests:
        with open_source(path) as source:
            batches = QueryBatches(source, reference.schema, reference.normalization)
            parts += [part.encoded.logits for part in reference.annotate(batches, batches.measured_g)]
        known = open_store(path).obs([child])[child].astype("string")
        codes.append(label_codes(pd.DataFrame({child: known.mask(known.isin(list(label.folded)), "other")}), label))
    logits = [np.concatenate([part[number] for part in parts]) for number in range(len(names))]
    raw = {name: values.argmax(axis=1) for name, values in zip(names, logits, strict=True)}
    ties = reference.config.ties
    joint = consistent_codes({name: softmax(values) for name, values in zip(names, logits, strict=True)}, ties)
    true = np.concatenate(codes)
    labelled, chain = true >= 0, chain_above(child, ties)
    sizes = [logits[names.index(tie.parent)].shape[1] for tie in chain]
    return {
        "agreement": agreement(raw[child], raw[ties[0].parent], ties[0]),
        "macro_f1": macro_f1(true[labelled], raw[child][labelled]),
        "macro_f1_consistent": macro_f1(true[labelled], joint[child][labelled]),
        "hierarchical_f1": hierarchical_f1(true[labelled], raw[child][labelled], chain, sizes),
        "cells": float(len(true)),
    }


if __name__ == "__main__":
    sys.exit(main())
