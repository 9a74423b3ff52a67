"""Minibatches on the device before they are asked for: a thread takes, pins and sends the next ones during a step.

What a step waits for is then neither the copy of its cells out of their window nor their way over the bus.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from .prefetch import computed_ahead

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from unicoord_atlas.batch import MiniBatch
    from unicoord_atlas.training.run import BatchStream

_TURN_SECONDS = 5e-4


class DeviceFeed:
    """A stream whose minibatches are on a CUDA device; its position is that of the last one handed out.

    After the last one of an epoch that is the end of the epoch, where a CellStream is at the start of the next.
    """

    def __init__(self, stream: BatchStream, device: torch.device) -> None:
        self._stream, self._device = stream, device
        self._sending = torch.cuda.Stream(device)
        self._position: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Batches that the coming iteration yields."""
        return len(self._stream)

    def __iter__(self) -> Iterator[MiniBatch]:
        with _short_turns():
            for batch, position, sent in computed_ahead(self._sent()):
                self._position = position
                using = torch.cuda.current_stream(self._device)
                using.wait_event(sent)
                yield batch.map(partial(_kept_for, using))

    def set_epoch(self, epoch: int) -> None:
        """See CellStream."""
        self._position = None
        self._stream.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """See CellStream."""
        return self._stream.state_dict() if self._position is None else self._position

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See CellStream."""
        self._position = None
        self._stream.load_state_dict(state)

    def facts(self) -> dict[str, float]:
        """See CellStream."""
        return self._stream.facts()

    def _sent(self) -> Iterator[tuple[MiniBatch, dict[str, Any], torch.cuda.Event]]:
        for batch in self._stream:
            with torch.cuda.stream(self._sending):
                moved = batch.map(torch.Tensor.pin_memory).to(self._device)
                sent = torch.cuda.Event()
                sent.record(self._sending)
            yield moved, self._stream.state_dict(), sent


@contextmanager
def _short_turns() -> Iterator[None]:
    """Python's lock changes hands more often: a thread that sends would wait 5 ms for one that starts kernels."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(_TURN_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def _kept_for(stream: torch.cuda.Stream, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, whose memory is not used again before what the stream has been given is done."""
    tensor.record_stream(stream)
    return tensor
