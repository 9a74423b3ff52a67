import numpy as np
import torch
from scipy import stats

from unicoord_atlas.model.augment import thin, thin_at_once
from unicoord_atlas.model.noise import EntryNoise, Noise, Purpose


def test_noise_depends_only_on_seed_step_purpose_and_cell():
    rows = torch.arange(100)
    whole = Noise(0, 7, rows).normal(Purpose.GAUSSIAN, 5)
    parts = torch.cat([Noise(0, 7, part).normal(Purpose.GAUSSIAN, 5) for part in rows.split(30)])
    assert torch.equal(whole, parts)
    for other in (Noise(1, 7, rows), Noise(0, 8, rows), Noise(0, 7, rows + 1)):
        assert not torch.isclose(other.normal(Purpose.GAUSSIAN, 5), whole).any(dim=1).all()
    assert not torch.equal(Noise(0, 7, rows).normal(Purpose.GUMBEL, 5), whole)


def test_noise_has_the_distributions_it_promises():
    noise = Noise(3, 0, torch.arange(4000))
    draws = {
        "uniform": noise.uniform(Purpose.GAUSSIAN, 10),
        "norm": noise.normal(Purpose.GAUSSIAN, 10),
        "gumbel_r": noise.gumbel(Purpose.GUMBEL, 10),
    }
    for name, values in draws.items():
        assert torch.isfinite(values).all()
        assert stats.kstest(values.flatten().numpy(), name).pvalue > 1e-3, name
    columns = np.corrcoef(draws["norm"].numpy().T)
    assert np.abs(columns - np.eye(10)).max() < 0.08


def thinned(counts, keep, noise):
    """One count a cell, all of gene 7."""
    entries = EntryNoise(noise, torch.arange(len(counts)), torch.full((len(counts),), 7))
    first = entries.draws(Purpose.THINNING)[0]
    ways = [way(counts, keep, first, entries) for way in (thin, thin_at_once)]
    assert torch.equal(*ways)
    return ways[0]


def test_thin_keeps_binomial_mean_and_variance():
    n = 20_000
    noise = Noise(0, 0, torch.arange(n))
    for count in (1, 2, 4, 5, 50):
        kept = thinned(torch.full((n,), float(count)), torch.full((n,), 0.7), noise)
        assert ((kept >= 0) & (kept <= count) & (kept == kept.round())).all()
        assert abs(kept.mean() - 0.7 * count) < 4 * np.sqrt(0.21 * count / n) + 0.02
        assert abs(kept.var() / (0.21 * count) - 1) < 0.12, count
    counts = torch.arange(1, 9).float()
    assert torch.equal(thinned(counts, torch.ones(8), Noise(0, 0, torch.arange(8))), counts)


def test_thin_of_a_mixture_is_that_of_each_count():
    """Counts are sorted by size on the way; each must come back to its own place."""
    counts = torch.tensor([1.0, 50.0, 3.0, 1.0, 7.0, 2.0, 1.0, 4.0, 300.0])
    keep = torch.rand(9)
    alone = [thinned(counts[i : i + 1], keep[i : i + 1], Noise(5, 0, torch.tensor([i]))) for i in range(9)]
    assert torch.equal(thinned(counts, keep, Noise(5, 0, torch.arange(9))), torch.cat(alone))


def test_draws_of_entries_are_uniform_and_independent():
    """Over cells of one gene, genes of one cell, steps of one entry, and of each other."""
    grid = torch.cartesian_prod(torch.arange(400), torch.arange(400))
    first, second = EntryNoise(Noise(1, 2, torch.arange(400)), *grid.T).draws(Purpose.THINNING)
    later, _ = EntryNoise(Noise(1, 3, torch.arange(400)), *grid.T).draws(Purpose.THINNING)
    tables = [draws.view(400, 400).double().numpy() / 65536 for draws in (first, second, later)]
    for table in tables:
        assert stats.kstest(table.ravel(), "uniform").pvalue > 1e-3
        for columns in (table, table.T):
            off = np.corrcoef(columns)[np.triu_indices(400, 1)]
            assert abs(off.std() * 20 - 1) < 0.02 and abs(off.mean()) < 0.002  # 1 / sqrt(400)
    assert np.abs(np.corrcoef([table.ravel() for table in tables]) - np.eye(3)).max() < 0.01
    bits = np.unpackbits(first.numpy().astype(">u2").view(np.uint8)).reshape(-1, 16)
    assert np.abs(np.corrcoef(bits.T) - np.eye(16)).max() < 0.015


def test_draws_of_elements_are_uniform_and_independent():
    """Over cells, over elements (two share a counter), and between purposes; of cells alone as of all together."""
    noise = Noise(1, 2, torch.arange(400))
    first, other = (noise.draws(Purpose.DROPOUT + layer, 401) for layer in (0, 1))
    assert torch.equal(first[100:107], Noise(1, 2, torch.arange(100, 107)).draws(Purpose.DROPOUT, 401))
    tables = [draws.double().numpy() / 65536 for draws in (first, other)]
    for table in tables:
        assert table.shape == (400, 401) and stats.kstest(table.ravel(), "uniform").pvalue > 1e-3
        for columns in (table, table.T):
            off = np.corrcoef(columns)[np.triu_indices(columns.shape[0], 1)]
            assert abs(off.std() * 20 - 1) < 0.02 and abs(off.mean()) < 0.002  # 1 / sqrt(400)
    assert abs(np.corrcoef(*(table.ravel() for table in tables))[0, 1]) < 0.01
