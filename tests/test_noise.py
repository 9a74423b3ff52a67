import numpy as np
import torch
from scipy import stats

from unicoord_atlas.model.noise import Noise, Purpose, thin


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


def test_thin_keeps_binomial_mean_and_variance():
    n = 20_000
    bits = Noise(0, 0, torch.arange(n)).bits(Purpose.THINNING, 1)[:, 0]
    for count in (1, 2, 4, 5, 50):
        kept = thin(torch.full((n,), float(count)), torch.full((n,), 0.7), bits)
        assert ((kept >= 0) & (kept <= count) & (kept == kept.round())).all()
        assert abs(kept.mean() - 0.7 * count) < 4 * np.sqrt(0.21 * count / n) + 0.02
        assert abs(kept.var() / (0.21 * count) - 1) < 0.12, count
    assert torch.equal(thin(torch.arange(9.0), torch.ones(9), bits[:9]), torch.arange(9.0))


def test_thin_of_a_mixture_is_that_of_each_count():
    """Counts are sorted by size on the way; each must come back to its own place."""
    counts = torch.tensor([1.0, 50.0, 0.0, 3.0, 1.0, 7.0, 2.0, 1.0, 4.0, 300.0])
    keep, bits = torch.rand(10), Noise(5, 0, torch.arange(10)).bits(Purpose.THINNING, 1)[:, 0]
    alone = [thin(counts[i : i + 1], keep[i : i + 1], bits[i : i + 1]) for i in range(10)]
    assert torch.equal(thin(counts, keep, bits), torch.cat(alone))
