import pytest
import torch

from unicoord_atlas.config import TrainConfig
from unicoord_atlas.training.optimizer import (
    FORGET_EVERY,
    even_batch_size,
    forget_tiny_moments,
    learning_rate,
    make_optimizer,
)


@pytest.mark.parametrize(("cells", "size"), [(510, 255), (256, 256), (100, 100), (257, 128), (9180, 255), (1, 1)])
def test_batches_are_cut_evenly(cells, size):
    assert even_batch_size(cells, 256) == size
    assert cells - cells // size * size < cells // size  # fewer left over than there are batches


def test_learning_rate_warms_up_over_at_most_a_tenth():
    config = TrainConfig(learning_rate=1.0, warmup_steps=200)
    assert [learning_rate(step, config, 10_000) for step in (0, 99, 199, 5000)] == [1 / 200, 0.5, 1.0, 1.0]
    assert [learning_rate(step, config, 100) for step in (0, 9, 50)] == [0.1, 1.0, 1.0]
    assert learning_rate(0, TrainConfig(learning_rate=1.0, warmup_steps=0), 100) == 1.0


@pytest.mark.parametrize("forgets", [False, True])
def test_moments_of_dead_weights_do_not_stay_subnormal(forgets):
    """Without it they do, which takes processors many times as long.  The weights are the same, to the bit."""
    noise = torch.Generator().manual_seed(0)
    layers = [torch.nn.Linear(8, 64, bias=False) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    both = [make_optimizer(layer, TrainConfig()) for layer in layers]
    for step in range(1_500):
        gradient = torch.randn(64, 8, generator=noise) * 1e-3
        gradient[:, 3:] *= step < 100
        for layer, optimizer in zip(layers, both, strict=True):
            layer.weight.grad = gradient.clone()
            optimizer.step()
        if forgets and (step + 1) % FORGET_EVERY == 0:
            forget_tiny_moments(both[0])
    moment = both[0].state[layers[0].weight]["exp_avg"].abs()
    smallest = torch.finfo(torch.float32).tiny
    assert bool(((moment > 0) & (moment < smallest)).any()) != forgets
    assert (moment[:, :3] > smallest).all()
    assert torch.equal(layers[0].weight, layers[1].weight)
