"""SIGTERM and SIGINT while training: noted when they come, acted on after the step."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from unicoord_atlas.errors import UnicoordError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Stopped(UnicoordError):
    """A signal came; the run was saved and goes on with the same command."""

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signal_number).name} after step {step}; the same command goes on from there"
        )
        self.exit_code = 128 + signal_number


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT; the loop saves and stops at the next step.  A second one stops at once."""
    received: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: a notebook's or a test's caller handles signals itself
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
