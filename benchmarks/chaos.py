"""Every stage is disturbed, and started again with the same command; it should end as if nothing had happened.

Stages from simulate to report run on a small simulated atlas.  Each is disturbed in these ways, at seeded random
moments of the time that it takes undisturbed:
kill        SIGKILL, --moments times
term        SIGTERM, a quarter as often; it must end with 143, or be done
full disk   all happens on a disk of its own (tmpfs) with some bytes left, a quarter as often: refused with 65, or done
            if none more had to; then there is room again.  Needs root, or user namespaces
large file  no file may grow over a size (RLIMIT_FSIZE), a quarter as often: as above
cut off     a file that it reads ends early, each in turn: refused with 65, names it; then the file is whole again
flipped     a byte of such a file is another: as above, where there are checksums
Then the same command runs undisturbed, and all that it made is compared with what an undisturbed one made: bytes; of a
run the weights' bytes and all losses, for it holds times, too.  Exit code 1 if anything differs.

    python benchmarks/chaos.py --moments 20 --json benchmarks/results/chaos.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from chaos_disk import enter_namespace, leave, make_room, own_disk, used_bytes
from chaos_stages import DAMAGE, Stage, stages, write_sets

from unicoord_atlas.errors import DataError
from unicoord_atlas.jobs import (  # all that the stages import: children are forked, and begin at once
    build_graph,
    cli,
    export_latents,
    export_reference,
    ingest,
    ingest_write,
    map_query,
    reorder,
    report,
    report_album,
    report_cells,
    select_gene_sets,
    simulate,
    train,
)
from unicoord_atlas.loaders.zarr_layout import MatrixLayout
from unicoord_atlas.report.plane import umap_of_points
from unicoord_atlas.training.metrics import SPEED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

IMPORTED = (build_graph, export_latents, export_reference, ingest, map_query, reorder, report, report_album)
IMPORTED += (report_cells, select_gene_sets, simulate, train)
TIMED = ("checkpoints", "tensorboard", "metrics.jsonl", "steps.jsonl", "model/config.json", "model/manifest.json")
"""Of a run: what holds times, or checksums of what does.  Losses and weights are compared by themselves."""
LONGEST = 300


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, below 0 for a signal."""

    seconds: float
    code: int
    said: str


@dataclass(frozen=True)
class Plan:
    """One disturbance: a way to run a stage in a folder, and the exit codes that it may have."""

    what: str
    run: Callable[[Path], Ended]
    allowed: tuple[int, ...]
    own_disk: bool = False


def main() -> int:
    """Run, print a line a disturbance and a table, and exit 1 if any ended otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20, help="kills a stage")
    parser.add_argument("--quick", action="store_true", help="one kill a stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", choices=[stage.name for stage in stages()], help="disturb these only")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    enter_namespace()
    compile_umap()
    moments = 1 if args.quick else args.moments
    ingest_write.MatrixLayout = partial(MatrixLayout, inner_chunk=4096, chunks_per_shard=4)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        whole.mkdir()
        write_sets(whole / "sets.gmt")
        for stage in stages():
            before = Path(name) / "before"
            shutil.copytree(whole, before)
            ended = run(whole, stage)
            if ended.code:
                raise SystemExit(f"{stage.name} fails undisturbed:\n{ended.said}")
            if not args.stages or stage.name in args.stages:
                for plan in plans(stage, before, whole, ended.seconds, moments, args.seed):
                    rows.append(shown(disturbed(stage, plan, before, whole)))
            shutil.rmtree(before)
    bad = summarize(rows)
    if args.json:
        args.json.write_text(
            json.dumps({"command": " ".join(["python", *sys.argv]), "disturbances": rows}, indent=1) + "\n"
        )
    return int(bad > 0)


def compile_umap() -> None:
    """Or each child that writes a report would; in threads of numba's own, since those of OpenMP forbid to fork."""
    numba.config.THREADING_LAYER = "workqueue"
    umap_of_points(np.random.default_rng(0).random((200, 60), np.float32))


def plans(stage: Stage, before: Path, whole: Path, seconds: float, moments: int, seed: int) -> Iterator[Plan]:
    """All disturbances of a stage that takes so many seconds, and leads from one folder to the other."""
    rng = np.random.default_rng([seed, len(stage.name), *stage.name.encode()])
    few = max(moments // 4, 1)
    for number in range(moments + few):
        kind = signal.SIGKILL if number < moments else signal.SIGTERM
        moment = rng.uniform(0, seconds)
        allowed = (0, -9) if kind == signal.SIGKILL else (0, 143, -15)
        yield Plan(f"{kind.name} at {moment:.2f} s", partial(run, stage=stage, sent=(kind, moment)), allowed)
    largest = max(path.stat().st_size for made in stage.made for path in files_of(whole / made))
    for _ in range(few):
        limit = int(rng.integers(1, largest))
        yield Plan(f"files up to {limit:,} bytes", partial(run, stage=stage, largest_file=limit), (0, 65))
    for _ in range(few):
        room = int(rng.integers(1, used_bytes(whole) - used_bytes(before)))
        yield Plan(f"{room:,} bytes of disk", partial(run_on_full_disk, stage=stage, room=room), (0, 65), own_disk=True)
    for file in stage.damaged:
        for way in file.ways:
            damage = partial(DAMAGE[way], rng)
            yield Plan(f"{way}: {file.path}", partial(run_damaged, stage=stage, name=file.path, damage=damage), (65,))


def disturbed(stage: Stage, plan: Plan, before: Path, whole: Path) -> dict[str, Any]:
    """How a disturbed stage ended, how the next run ended, and what differs then."""
    with (
        tempfile.TemporaryDirectory(dir=whole.parent) as name,
        own_disk(Path(name)) if plan.own_disk else nullcontext(),
    ):
        folder = Path(name) / "again"
        shutil.copytree(before, folder)
        first = plan.run(folder)
        again = 0 if first.code == 0 else run(folder, stage).code
        differs = [path for made in stage.made for path in differences(folder / made, whole / made)]
        left = sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
    fault = "" if first.code in plan.allowed else f"ended with {first.code}: {first.said[-LONGEST:]}"
    fault = fault or ("" if again == 0 else f"the next run ended with {again}")
    fault = fault or (f"differs: {differs[:3]}" if differs else "") or (f"left behind: {left}" if left else "")
    return {"stage": stage.name, "disturbance": plan.what, "code": first.code, "equal": not fault, "fault": fault}


def run(
    folder: Path, stage: Stage, sent: tuple[signal.Signals, float] | None = None, largest_file: int | None = None
) -> Ended:
    """A stage's command in a child, to which a signal is sent after some seconds."""
    begun = time.perf_counter()
    reading, writing = os.pipe()  # no file: a full disk is not to cut short what the child says
    child = os.fork()
    if child == 0:
        try:
            os._exit(in_child(folder, stage.words, writing, largest_file))
        finally:
            os._exit(1)  # whatever happens: it must not go on as if it were the parent
    os.close(writing)
    said = bytearray()
    listener = threading.Thread(target=keep_what_is_said, args=(reading, said))
    listener.start()
    if sent:
        kind, moment = sent
        while time.perf_counter() - begun < moment and not has_ended(child):
            time.sleep(0.002)
        os.kill(child, kind)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    listener.join()
    return Ended(time.perf_counter() - begun, code, said.decode(errors="replace"))


def keep_what_is_said(pipe: int, said: bytearray) -> None:
    """Add all that comes through a pipe."""
    with open(pipe, "rb") as said_by_child:
        said += said_by_child.read()


def in_child(folder: Path, words: Sequence[str], writing: int, largest_file: int | None) -> int:
    """Run a command in a folder, its output into a pipe."""
    os.chdir(folder)
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    os.close(writing)
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(largest_file, 1), resource.RLIM_INFINITY))
    sys.argv = ["unicoord-atlas", *words]
    try:
        return cli.run_command(cli.app)
    except BaseException:  # noqa: BLE001 - what any program does with one, before the child ends
        traceback.print_exc()
        return 1


def has_ended(child: int) -> bool:
    """Whether a child has ended; it stays to be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def run_on_full_disk(folder: Path, stage: Stage, room: int) -> Ended:
    """Run while a folder's own disk has little room left."""
    leave(folder.parent, room)
    ended = run(folder, stage)
    make_room(folder.parent)
    return ended


def run_damaged(folder: Path, stage: Stage, name: str, damage: Callable[[bytes], bytes]) -> Ended:
    """Run with a damaged input, which is whole again afterwards, with its times; the file must be named."""
    path = folder / name
    content, times = path.read_bytes(), path.stat()
    path.write_bytes(damage(content))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    ended = run(folder, stage)
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    if ended.code == DataError.exit_code and name.partition("/")[2] not in ended.said:
        return replace(ended, code=1)
    return ended


def files_of(path: Path) -> list[Path]:
    """A file, or all of a directory."""
    return sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]


def differences(found: Path, expected: Path) -> list[str]:
    """Files that are not alike."""
    if found.name == "run":
        alike = curve(found) == curve(expected)
        skipped: tuple[str, ...] = TIMED
    else:
        alike, skipped = True, ()
    contents = []
    for root in (found, expected):
        names = {str(path.relative_to(root.parent)): path for path in files_of(root) if path.exists()}
        contents.append(
            {n: p.read_bytes() for n, p in names.items() if not n.partition("/")[2].startswith(skipped or ("\0",))}
        )
    first, second = contents
    odd = sorted(first.keys() ^ second.keys()) + [
        name for name in first if second.get(name, first[name]) != first[name]
    ]
    return odd + ([] if alike else ["losses"])


def curve(run_folder: Path) -> list[dict[str, Any]]:
    """All that a run said of its losses, but for times."""
    files = [run_folder / name for name in ("steps.jsonl", "metrics.jsonl")]
    entries = [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name not in SPEED} for entry in entries]


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """Print a row as soon as it is there."""
    print(f"{row['stage']:<17} {row['disturbance']:<50} {row['code']:>4}  {row['fault'] or 'equal'}", flush=True)
    return row


def summarize(rows: list[dict[str, Any]]) -> int:
    """Print a table of stages; how many disturbances ended otherwise."""
    for name in dict.fromkeys(row["stage"] for row in rows):
        of_stage = [row for row in rows if row["stage"] == name]
        cut = sum(row["code"] != 0 for row in of_stage)
        print(f"{name:<17} {sum(row['equal'] for row in of_stage):>3} of {len(of_stage)} equal; {cut} were cut short")
    bad = sum(not row["equal"] for row in rows)
    print(f"bar disturbed_runs_not_equal {bad} <= 0 {'ok' if not bad else 'SHORT'}")
    return bad


if __name__ == "__main__":
    sys.exit(main())
