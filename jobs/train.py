"""train: an atlas to a run directory with checkpoints, metrics and a finished model."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unicoord_atlas.allocator import give_back_freed_memory, keep_freed_memory
from unicoord_atlas.errors import DataError
from unicoord_atlas.loaders.balance import with_balance
from unicoord_atlas.loaders.device_feed import DeviceFeed
from unicoord_atlas.loaders.graph_pass import moments_of_amounts
from unicoord_atlas.loaders.in_order import in_order
from unicoord_atlas.loaders.plan import ALONE, Partition
from unicoord_atlas.loaders.stream import CellStream
from unicoord_atlas.loaders.zarr_layout import MANIFEST
from unicoord_atlas.points import encode_points
from unicoord_atlas.reference import ReferenceModel
from unicoord_atlas.seeds import Seeds, seed_rows
from unicoord_atlas.training.assembly import (
    build_model,
    build_objective,
    listed_genes,
    num_epochs,
    own_genes,
    profile_of,
)
from unicoord_atlas.training.checkpoint import Progress, latest_progress, load_best, read_json, write_json
from unicoord_atlas.training.estimate import estimate
from unicoord_atlas.training.finish import finished_model
from unicoord_atlas.training.loop import run_training
from unicoord_atlas.training.metrics import read_metrics
from unicoord_atlas.training.novelty_fit import reference_rows
from unicoord_atlas.training.optimizer import even_batch_size, part_size
from unicoord_atlas.training.precision import choose_device, choose_precision
from unicoord_atlas.training.preparation import Preparation, prepare
from unicoord_atlas.training.ranks import make_accelerator
from unicoord_atlas.training.run import Training
from unicoord_atlas.training.signals import Stopped

from .cached_store import open_cached
from .console_text import plain_console
from .diffusion import graph_of, latent_table, with_neighbors
from .full_disk import full_disk_named
from .label_tables import columns_of_table
from .mirrored_run import mirrored, send_finished
from .run_identity import alone, by_dotted_name, claim, refuse_other
from .train_cells import shuffled
from .train_report import REPORT, write_report
from .train_summary import preparation_text, summary_table
from .workdir import finished_directory

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator

    from unicoord_atlas.config import RunConfig
    from unicoord_atlas.loaders.byte_cache import ByteCache
    from unicoord_atlas.loaders.object_mirror import RunMirror
    from unicoord_atlas.loaders.store import CellStore
    from unicoord_atlas.training.latent_table import LatentTable
    from unicoord_atlas.training.run import BatchStream

VALIDATION_BATCH = 1024


@dataclass(frozen=True)
class TrainOptions:
    """What `unicoord-atlas train` is asked to do."""

    store: Path
    out: Path
    config: RunConfig
    report: bool = False
    """Also RUN/report.html, if the extra `report` is installed."""
    cache: ByteCache | None = None
    """Keeps on this machine what is read of an atlas in an object store, or of a SOMA."""
    mirror: str | None = None
    """Address in an object store where a copy of the run is kept."""


def run(options: TrainOptions) -> dict[str, Any]:
    """Train, or go on training, and leave RUN/model: the best checkpoint, calibrated."""
    store, config = open_cached(options.store, options.cache), options.config
    mirror = mirrored(options.out, options.mirror, store, config)
    refuse_other(options.out, store, config)
    finished = _finished(options.out)
    if finished is not None:
        if os.environ.get("RANK", "0") != "0":  # the first process says so, and makes the page
            return {}
        if not (options.out / REPORT).exists():
            _report(options)  # a kill came between the model and its report
        send_finished(mirror, options.out)
        _say(f"{options.out} is finished already, from the same atlas and settings")
        return _summary(options, finished, dict(ReferenceModel.load(options.out / "model").config.metrics))
    with alone(options.out), full_disk_named(options.out):  # also of what others write: TensorBoard's events
        result = _train(options, store, mirror)
    if result is None:
        return {}
    gc.collect()
    give_back_freed_memory()  # the report is another process, which should not stand beside what training took
    page = _report(options)
    send_finished(mirror, options.out)
    return result | ({"report": str(page)} if page else {})


def _report(options: TrainOptions) -> Path | None:
    """RUN/report.html, if it is wanted and can be made."""
    return write_report(options.out, options.store) if options.report else None


def _train(options: TrainOptions, store: CellStore, mirror: RunMirror | None) -> dict[str, Any] | None:
    """Train to the end and write the model; None on other ranks than the first."""
    config = options.config
    keep_freed_memory()
    prepared = prepare_store(store, config)
    gc.collect()
    give_back_freed_memory()  # tables that became columns
    accelerator = make_accelerator(config.train, choose_device(config.train), options.out)
    if accelerator.is_main_process:
        _say(preparation_text(prepared, options.config.data.min_cells))
    run = _assemble(options, store, prepared, accelerator)
    run.mirror = mirror
    expected = estimate(run, options.config.stream.memory_bytes)
    if accelerator.is_main_process:
        _say(expected)
    # Of TensorBoard the folder's name in RUN, of others that of the project.
    project = "tensorboard" if {*config.train.trackers} <= {"tensorboard"} else "unicoord-atlas"
    accelerator.init_trackers(project, config=by_dotted_name(config))
    try:
        progress = run_training(run)
    except Stopped as stopped:
        if accelerator.is_main_process and stopped.exit_code == 128 + signal.SIGINT:
            _finish(options, store, prepared, run)
            _say(f"{options.out}/model holds what was best so far")
        if mirror is not None:
            mirror.wait()
        raise
    accelerator.end_training()
    if not accelerator.is_main_process:
        return None
    return _summary(options, progress, _finish(options, store, prepared, run))


def _finished(out: Path) -> Progress | None:
    """Where a finished run ended; None if there is something left to do."""
    if not (out / "model" / MANIFEST).exists():
        return None
    progress = latest_progress(out / "checkpoints")
    return progress if progress.finished else None


def prepare_store(store: CellStore, config: RunConfig) -> Preparation:
    """Split, labels, per-cell columns and how cells are drawn, of a store under a run's settings."""
    if not store.normalization.profile_g.any():
        raise DataError(
            f"{store.uri}: each gene makes up over 5 % of some cell's counts, so none is left for size factors; "
            "ingest with --min-cells above 1, or leave out cells of few counts"
        )
    latent = config.latent
    keys = [name.removeprefix("obsm:") for name in latent.continuous if name.startswith("obsm:")]
    tables = {key: columns_of_table(store, key) for key in keys}
    obs = store.obs(arrow_names=True)
    return with_balance(prepare(config, store.schema, obs, store.size_factors, tables), config.stream, obs)


def _assemble(options: TrainOptions, store: CellStore, prepared: Preparation, accelerator: Accelerator) -> Training:
    config = options.config
    graph = graph_of(store, config)
    partition = Partition(accelerator.process_index, accelerator.num_processes)
    batch_size = even_batch_size(prepared.num_drawn, config.train.batch_size)
    part = part_size(batch_size, partition.world_size, config.train.accumulate_steps)
    on_gpu = accelerator.device.type == "cuda"
    training = shuffled(store, prepared, config, part, partition, balanced=True, pinned=on_gpu)
    moments = partial(moments_of_amounts, store, partial(in_order, threads=2))
    genes = own_genes(config, store.schema, moments, listed_genes(config, store.schema, store.uri))
    # Of the same cells on every rank: what a model starts with beside its weights is not sent around.  Never one twice.
    first_cells = shuffled(store, prepared, config, batch_size, ALONE, balanced=False)
    profile = profile_of(first_cells, store.schema.measured_sg(), store.normalization)
    model = build_model(config, store.schema, store.normalization, prepared, genes, profile).to(accelerator.device)
    objective = build_objective(config, model, prepared, accelerator.device)  # it may refuse a label
    accelerator.wait_for_everyone()  # all have seen that the run directory is free, or theirs
    if accelerator.is_main_process:
        claim(options.out, store, config)
        _precision(options, accelerator.device)
    accelerator.wait_for_everyone()
    model.compute_dtype = _precision(options, accelerator.device)
    epochs = num_epochs(config, prepared.num_drawn)
    table: LatentTable | None = None
    stream: BatchStream = training
    if graph is not None:
        shares = partial(_in_order, store, prepared, prepared.training_rows)
        table = latent_table(options.out, store.n_obs, model, accelerator, shares)
        stream = with_neighbors(training, store, prepared, graph, table, config)  # what it reads depends on this step
    elif on_gpu:
        stream = DeviceFeed(training, accelerator.device)
    return Training(
        model,
        objective,
        stream,
        _in_order(store, prepared, prepared.validation_rows, partition) if len(prepared.validation_rows) else None,
        config.train,
        epochs,
        epochs * (len(training) // config.train.accumulate_steps),
        options.out,
        accelerator,
        table,
    )


def _precision(options: TrainOptions, device: torch.device) -> torch.dtype:
    """Chosen when a run starts and kept: a probe that came out differently would change the losses of a resumed run."""
    known = options.out / "run.json"
    facts = read_json(known)
    key = f"precision_{device.type}"
    if key not in facts:
        facts[key] = str(choose_precision(options.config.train, device)).removeprefix("torch.")
        write_json(known, facts)
    return torch.bfloat16 if facts[key] == "bfloat16" else torch.float32


def _in_order(
    store: CellStore, prepared: Preparation, rows: np.ndarray[Any, np.dtype[np.int64]], partition: Partition = ALONE
) -> CellStream:
    size = VALIDATION_BATCH
    return CellStream(store, prepared.columns, batch_size=size, order="stored", rows=rows, partition=partition)


def _finish(options: TrainOptions, store: CellStore, prepared: Preparation, run: Training) -> dict[str, float]:
    """Write RUN/model from the best epoch's weights."""
    load_best(options.out / "checkpoints", run.model, run.accelerator.device)
    sample = prepared.training_rows[:: max(len(prepared.training_rows) // 20_000, 1)]
    held_out = prepared.validation_rows
    checked, sampled = (
        _in_order(store, prepared, rows) if len(rows) else ()
        for rows in (held_out, held_out[:: max(len(held_out) // 10_000, 1)])
    )
    reference = finished_model(
        run.model,
        options.config,
        prepared,
        store.schema,
        store.normalization,
        _in_order(store, prepared, sample),
        checked,
        sampled,
        _in_order(store, prepared, reference_rows(prepared, options.config.latent.technical)),
    )
    rows = seed_rows(prepared.training_rows, prepared.columns.codes, options.config.train.seed)
    points = encode_points(run.model, _in_order(store, prepared, rows), run.accelerator.device)
    reference.seeds = Seeds.of(points, prepared.columns)
    folder = options.out / "model"
    shutil.rmtree(folder, ignore_errors=True)
    with finished_directory(folder, [Path(store.uri)], options.config.model_dump(mode="json")) as partial:
        reference.save(partial)
    return dict(reference.config.metrics)


def _summary(options: TrainOptions, progress: Progress, metrics: dict[str, float]) -> dict[str, Any]:
    entries = read_metrics(options.out / "metrics.jsonl")
    plain_console().print(summary_table(entries, progress.best_epoch, metrics))
    return {
        "run": str(options.out),
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "steps": progress.step,
        "training_seconds": round(progress.seconds, 1),
        "metrics": metrics,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr)
