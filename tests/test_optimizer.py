import pytest

from unicoord_atlas.config import TrainConfig
from unicoord_atlas.training.optimizer import even_batch_size, learning_rate


@pytest.mark.parametrize(("cells", "size"), [(510, 255), (256, 256), (100, 100), (257, 128), (9180, 255), (1, 1)])
def test_batches_are_cut_evenly(cells, size):
    assert even_batch_size(cells, 256) == size
    assert cells - cells // size * size < cells // size  # fewer left over than there are batches


def test_learning_rate_warms_up_over_at_most_a_tenth():
    config = TrainConfig(learning_rate=1.0, warmup_steps=200)
    assert [learning_rate(step, config, 10_000) for step in (0, 99, 199, 5000)] == [1 / 200, 0.5, 1.0, 1.0]
    assert [learning_rate(step, config, 100) for step in (0, 9, 50)] == [0.1, 1.0, 1.0]
    assert learning_rate(0, TrainConfig(learning_rate=1.0, warmup_steps=0), 100) == 1.0
