import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unicoord_atlas.errors import ConfigError
from unicoord_atlas.loaders.plan import Cut, EpochPlan, Partition, expand_ranges, find_runs, rotate_ranges, slice_ranges
from unicoord_atlas.loaders.sampling import balanced_weights, draw_rows

CUTS = st.builds(
    Cut,
    world_size=st.integers(1, 4),
    batch_size=st.integers(1, 9),
    window_batches=st.integers(1, 5),
    block_cells=st.integers(1, 12),
)
PLANS = st.builds(
    EpochPlan,
    num_cells=st.integers(0, 150),
    cut=CUTS,
    key=st.tuples(st.integers(0, 5), st.integers(0, 5), st.just(0)),
    order=st.sampled_from(["shuffled", "stored"]),
    drop_last=st.booleans(),
)


def delivered(plan, rank):
    """Positions and weights that a rank delivers, window after window."""
    windows = [plan.window(rank, window) for window in range(plan.num_windows)]
    positions = [expand_ranges(window.ranges)[window.order] for window in windows]
    return np.concatenate([np.arange(0), *positions]), np.concatenate([np.ones(0), *(w.weights for w in windows)])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_partition_deals_every_block_once(world_size):
    deck = np.random.default_rng(0).permutation(10)
    dealt = np.concatenate([Partition(rank, world_size).take(deck) for rank in range(world_size)])
    assert sorted(dealt) == list(range(10))


def test_partition_refuses_a_rank_outside_the_world():
    with pytest.raises(ConfigError, match=r"rank must be in 0\.\.1, got 2"):
        Partition(2, 2)


def test_partition_splits_evenly():
    assert [Partition(rank, 3).split(10) for rank in range(3)] == [(0, 4), (4, 7), (7, 10)]
    assert [Partition(rank, 3).split(2) for rank in range(3)] == [(0, 1), (1, 2), (2, 2)]


@given(PLANS)
def test_plan_delivers_every_cell_once_over_all_ranks(plan):
    ranks = [delivered(plan, rank) for rank in range(plan.cut.world_size)]
    real = np.concatenate([positions[weights > 0] for positions, weights in ranks])
    assert len(np.unique(real)) == len(real)
    if plan.drop_last:
        assert {len(positions) for positions, _ in ranks} == {plan.num_batches * plan.cut.batch_size}
        assert plan.num_cells - len(real) < plan.cut.world_size * plan.cut.batch_size
    else:
        assert sorted(real) == list(range(plan.num_cells))
        assert {len(positions) for positions, _ in ranks} == {plan.share_cells}
        assert sum((weights == 0).sum() for _, weights in ranks) < plan.cut.world_size


@given(PLANS, st.integers(0, 200))
def test_consumed_is_what_the_ranks_delivered_so_far(plan, num_batches):
    num_batches = min(num_batches, plan.num_batches)
    first = num_batches * plan.cut.batch_size
    expected = np.concatenate(
        [p[:first][w[:first] > 0] for p, w in (delivered(plan, r) for r in range(plan.cut.world_size))]
    )
    assert sorted(plan.consumed(num_batches)) == sorted(expected)


@given(PLANS)
def test_windows_are_of_equal_size(plan):
    sizes = np.diff(plan.window_starts)
    assert sizes.sum() == plan.num_batches
    assert not len(sizes) or (sizes.max() <= plan.cut.window_batches and sizes.max() - sizes.min() <= 1)


def test_order_follows_seed_and_epoch_only():
    def order(*key):
        return delivered(EpochPlan(1000, Cut(2, 16, 4, 8), key), rank=1)[0].tolist()

    assert order(3, 0, 0) == order(3, 0, 0)
    assert len({tuple(order(*key)) for key in ((3, 0, 0), (3, 1, 0), (4, 0, 0), (3, 0, 1))}) == 4


def test_window_mixes_cells_from_all_over_the_atlas():
    plan = EpochPlan(100_000, Cut(1, 100, 50, 50), (0, 0, 0))
    first = expand_ranges(plan.window(0, 0).ranges)
    tenths = np.bincount(first // 10_000, minlength=10) / len(first)
    assert tenths.min() > 0.04 and tenths.max() < 0.2


def test_stored_order_is_that_of_the_store():
    plan = EpochPlan(10, Cut(2, 3, 1, 4), (0, 0, 0), "stored")
    assert delivered(plan, 0)[0].tolist() == [0, 1, 2, 3, 4]
    assert delivered(plan, 1)[0].tolist() == [5, 6, 7, 8, 9]


def test_ranges_by_hand():
    ranges = np.array([[10, 13], [0, 2], [20, 24]])  # 10 11 12 0 1 20 21 22 23
    assert expand_ranges(ranges).tolist() == [10, 11, 12, 0, 1, 20, 21, 22, 23]
    assert slice_ranges(ranges, 2, 6).tolist() == [[12, 13], [0, 2], [20, 21]]
    assert slice_ranges(ranges, 3, 3).tolist() == []
    assert rotate_ranges(ranges, 5, 26).tolist() == [[15, 18], [5, 7], [25, 26], [0, 3]]
    assert find_runs(np.array([4, 5, 6, 2, 2, 3])).tolist() == [[4, 7], [2, 3], [2, 4]]


@given(st.lists(st.integers(0, 20)))
def test_runs_are_the_inverse_of_expanding(numbers):
    runs = find_runs(np.array(numbers, np.int64))
    assert expand_ranges(runs).tolist() == numbers


def test_draws_follow_the_weights():
    weights = np.array([0.0, 1.0, 2.0, 0.5, 0.5])  # 4 draws a epoch: 1, 2, 0.5, 0.5 expected
    rng = np.random.default_rng(0)
    epochs = [draw_rows(weights, None, rng) for _ in range(2000)]
    times = np.stack([np.bincount(rows, minlength=5) for rows in epochs])
    assert set(times.sum(axis=1)) == {4}
    np.testing.assert_array_equal(times[:, :3], [[0, 1, 2]] * 2000)
    np.testing.assert_allclose(times.mean(axis=0)[3:], 0.5, atol=0.05)


def test_draws_of_a_subset_stay_in_it():
    rows = np.array([1, 3, 4])
    drawn = draw_rows(np.array([9.0, 1.0, 9.0, 1.0, 4.0]), rows, np.random.default_rng(0))
    assert len(drawn) == 3 and set(drawn) <= {1, 3, 4}
    with pytest.raises(ConfigError, match="weights must be finite"):
        draw_rows(np.zeros(5), rows, np.random.default_rng(0))


def test_a_class_of_one_cell_is_drawn_half_a_million_times_at_once():
    weights = balanced_weights(np.arange(1_000_000, dtype=np.int32) // 999_999)
    drawn = draw_rows(weights, None, np.random.default_rng(0))
    assert (drawn == 999_999).sum() == 500_000
    assert (np.diff(drawn[: np.argmin(np.diff(drawn)) + 1]) > 0).all()  # each once, then what is drawn again
    assert (drawn[-400_000:] == 999_999).all()


def test_balanced_weights_draw_categories_alike():
    codes = np.array([0] * 90 + [1] * 9 + [2] + [-1] * 5, np.int32)
    for temperature, expected in ((1.0, [1 / 3, 1 / 3, 1 / 3]), (0.0, [0.9, 0.09, 0.01])):
        weights = balanced_weights(codes, temperature)
        shares = np.bincount(codes[:100], weights[:100]) / weights.sum()
        np.testing.assert_allclose(shares, expected)
        assert weights[100:].sum() == 0
