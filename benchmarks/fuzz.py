"""Inputs, settings and manifests drawn at random for as long as is asked: each is taken, or refused with one line.

The properties are those of tests/test_bad_inputs_drawn.py, which draws a few of each; here every run draws others.
Parsers of settings, TOML and manifests share the time evenly with whole files.  What breaks is printed, made as small
as hypothesis can make it: keep it as a test.

    python benchmarks/fuzz.py --minutes 60 --json benchmarks/results/fuzz.json
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import os
import platform
import signal
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings

AT_ONCE = 200
"""Cases between two looks at the clock."""
LONGEST = 120
"""Seconds: a case that has no answer by then ends the run with a stack, since a library in C cannot be stopped."""
LAST = Path(tempfile.gettempdir()) / "unicoord-fuzz-case.txt"
"""The case at work."""
SETTINGS = settings(
    max_examples=AT_ONCE, derandomize=False, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


def main() -> int:
    """Draw, print, and exit 1 if anything broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="in all")
    parser.add_argument("--only", nargs="+", metavar="PROPERTY", help="tables, settings, ...: not all of them")
    parser.add_argument("--quick", action="store_true", help="half a minute")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from test_bad_inputs_drawn import CASES

    if unknown := set(args.only or ()) - set(CASES):
        parser.error(f"--only {', '.join(sorted(unknown))}: there are {', '.join(CASES)}")
    chosen = {name: case for name, case in CASES.items() if not args.only or name in args.only}
    print(f"the case at work: {LAST}", flush=True)
    seconds = (0.5 if args.quick else args.minutes) * 60 / len(chosen)
    found = {name: drawn(name, function, values, seconds) for name, (function, values) in chosen.items()}
    result = {"command": " ".join(["python", *sys.argv]), **circumstances(), "properties": found}
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(any(row["broken"] for row in found.values()))


def drawn(name: str, function: Any, values: Any, seconds: float) -> dict[str, Any]:
    """One property for so long, or until it breaks."""
    count, start, broken = 0, time.perf_counter(), ""

    def counted(value: Any) -> None:
        nonlocal count
        count += 1
        LAST.write_text(f"{name}: {value!r}")
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                function(value)
        finally:
            faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a command that was run took it for itself

    check = SETTINGS(given(values)(counted))
    while time.perf_counter() - start < seconds and not broken:
        try:
            check()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            broken = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
    row = {"cases": count, "seconds": round(time.perf_counter() - start, 1), "broken": broken}
    print(f"{name:<14} {count:>9,} cases in {row['seconds']:,.0f} s  {broken or 'all taken or refused'}", flush=True)
    return row


def circumstances() -> dict[str, Any]:
    """Date, machine and versions."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "hypothesis": version("hypothesis"),
        "anndata": version("anndata"),
    }


if __name__ == "__main__":
    sys.exit(main())
