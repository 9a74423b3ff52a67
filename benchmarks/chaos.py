"""Every stage is disturbed, and started again with the same command; it should end as if nothing had happened.

Stages from simulate to report run on a small simulated atlas.  Each is disturbed in these ways, at seeded random
moments of the time that it takes undisturbed:
kill        SIGKILL, --moments times
term        SIGTERM, a quarter as often; it must end with 143, or be done
full disk   no file may grow over a size (RLIMIT_FSIZE), a quarter as often: refused with 65, or done if none had to
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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from chaos_stages import CUT_OFF, FLIPPED, Stage, stages, write_sets

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
from unicoord_atlas.training.metrics import SPEED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

IMPORTED = (build_graph, export_latents, export_reference, ingest, map_query, reorder, report, report_album)
IMPORTED += (report_cells, select_gene_sets, simulate, train)
TIMED = ("checkpoints", "tensorboard", "metrics.jsonl", "steps.jsonl", "model/config.json", "model/manifest.json")
"""Of a run: what holds times, or checksums of what does.  Losses and weights are compared by themselves."""
LONGEST = 300


def main() -> int:
    """Run, print a line a disturbance and a table, and exit 1 if any ended otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20, help="kills a stage")
    parser.add_argument("--quick", action="store_true", help="one kill a stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", choices=[stage.name for stage in stages()], help="disturb these only")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
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
            seconds, code = run(whole, stage, None)
            if code:
                raise SystemExit(f"{stage.name} fails undisturbed:\n{said(whole)}")
            if not args.stages or stage.name in args.stages:
                rows += [shown(row) for row in disturb(stage, before, whole, seconds, moments, args.seed)]
            shutil.rmtree(before)
    bad = summarize(rows)
    if args.json:
        args.json.write_text(
            json.dumps({"command": " ".join(["python", *sys.argv]), "disturbances": rows}, indent=1) + "\n"
        )
    return int(bad > 0)


def disturb(
    stage: Stage, before: Path, whole: Path, seconds: float, moments: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Each disturbance of a stage: how it ended, how the next run ended, and what differs then."""
    rng = np.random.default_rng([seed, len(stage.name), *stage.name.encode()])
    few = max(moments // 4, 1)
    plans: list[tuple[str, Callable[[Path], tuple[float, int]], tuple[int, ...]]] = []
    for number in range(moments + few):
        kind = signal.SIGKILL if number < moments else signal.SIGTERM
        moment = rng.uniform(0, seconds)
        allowed = (0, -9) if kind == signal.SIGKILL else (0, 143, -15)
        plans.append((f"{kind.name} at {moment:.2f} s", partial(run, stage=stage, disturbance=(kind, moment)), allowed))
    largest = max(path.stat().st_size for made in stage.made for path in files_of(whole / made))
    for _ in range(few):
        limit = int(rng.integers(1, largest))
        plans.append((f"files up to {limit:,} bytes", partial(run, stage=stage, disturbance=limit), (0, 65)))
    for file in stage.damaged:
        for way in file.ways:
            damage = partial(DAMAGE[way], rng)
            plans.append(
                (f"{way}: {file.path}", partial(run_damaged, stage=stage, name=file.path, damage=damage), (65,))
            )
    for what, plan, allowed in plans:
        with tempfile.TemporaryDirectory(dir=whole.parent) as name:
            folder = Path(name) / "again"
            shutil.copytree(before, folder)
            _, code = plan(folder)
            first = said(folder)
            again = 0 if code == 0 else run(folder, stage, None)[1]
            differs = [path for made in stage.made for path in differences(folder / made, whole / made)]
            left = sorted(path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != ".log")
        fault = "" if code in allowed else f"ended with {code}: {first[-LONGEST:]}"
        fault = fault or ("" if again == 0 else f"the next run ended with {again}")
        fault = fault or (f"differs: {differs[:3]}" if differs else "") or (f"left behind: {left}" if left else "")
        yield {"stage": stage.name, "disturbance": what, "code": code, "equal": not fault, "fault": fault}


def run(folder: Path, stage: Stage, disturbance: tuple[signal.Signals, float] | int | None) -> tuple[float, int]:
    """Seconds and exit code, below 0 for a signal, of a stage's command in a child."""
    begun = time.perf_counter()
    reading, writing = os.pipe()  # the limit on files is not to cut short what the child says
    child = os.fork()
    if child == 0:
        try:
            os._exit(in_child(folder, stage.words, writing, disturbance if isinstance(disturbance, int) else None))
        finally:
            os._exit(1)  # whatever happens: it must not go on as if it were the parent
    os.close(writing)
    listener = threading.Thread(target=keep_what_is_said, args=(reading, folder / ".log"))
    listener.start()
    if isinstance(disturbance, tuple):
        kind, moment = disturbance
        while time.perf_counter() - begun < moment and not has_ended(child):
            time.sleep(0.002)
        os.kill(child, kind)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    listener.join()
    return time.perf_counter() - begun, code


def keep_what_is_said(pipe: int, log: Path) -> None:
    """Write all that comes through a pipe to a file."""
    with open(pipe, "rb") as said_by_child, log.open("wb") as file:
        shutil.copyfileobj(said_by_child, file)


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


def run_damaged(folder: Path, stage: Stage, name: str, damage: Callable[[bytes], bytes]) -> tuple[float, int]:
    """Run with a damaged input, which is whole again afterwards, with its times; the file must be named."""
    path = folder / name
    content, times = path.read_bytes(), path.stat()
    path.write_bytes(damage(content))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    seconds, code = run(folder, stage, None)
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    if code == DataError.exit_code and name.partition("/")[2] not in said(folder):
        return seconds, 1
    return seconds, code


def cut_off(rng: np.random.Generator, content: bytes) -> bytes:
    """A part from the start."""
    return content[: int(rng.integers(1, len(content)))]


def flip(rng: np.random.Generator, content: bytes) -> bytes:
    """One byte is another."""
    place = int(rng.integers(len(content)))
    return content[:place] + bytes([content[place] ^ int(rng.integers(1, 256))]) + content[place + 1 :]


DAMAGE = {CUT_OFF: cut_off, FLIPPED: flip}


def said(folder: Path) -> str:
    """What the last command said."""
    return (folder / ".log").read_text(errors="replace")


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
