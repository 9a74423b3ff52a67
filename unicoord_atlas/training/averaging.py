"""A running average of the weights over the later part of training: what validation, exports and users get.

After t updates the average is  a_t = a_(t-1) + (eta + 1) / (t + eta) (w_t - a_(t-1)),  so that w_t counts in proportion
to about t^eta: the last third makes up most of it, however long the run is.
Source: Shamir & Zhang 2013, "Stochastic gradient descent for non-smooth optimization", section 4.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ETA = 3
EVERY_STEPS = 10


class AveragedWeights:
    """The average of a model's parameters, updated every few steps: one pass over the weights in ten steps.

    In epochs of fewer steps it is updated at the end of each: what is validated and exported was always trained.
    """

    def __init__(self, model: nn.Module, steps_per_epoch: int) -> None:
        self._every = max(1, min(EVERY_STEPS, steps_per_epoch))
        self._parameters = dict(model.named_parameters())
        self._averages = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._updates = 0

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after a step into account."""
        if step % self._every == 0:
            self._updates += 1
            share = (ETA + 1) / (self._updates + ETA)
            torch._foreach_lerp_(list(self._averages.values()), list(self._parameters.values()), share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside, its own again afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def keep(self) -> None:
        """The model has the averaged weights from now on."""
        self._swap()

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name, and the number of updates."""
        return {**self._averages, "updates": torch.tensor(self._updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""
        self._updates = int(state["updates"])
        for name, average in self._averages.items():
            average.copy_(state[name])

    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self._averages[name] = self._averages[name], parameter.data
