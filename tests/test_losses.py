import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cells import counts_of_types, minibatch
from torch.distributions import Categorical, Normal, kl_divergence

from unicoord_atlas.batch import MiniBatch
from unicoord_atlas.config import LossConfig, ModelConfig
from unicoord_atlas.errors import ConfigError
from unicoord_atlas.hierarchy import Hierarchy
from unicoord_atlas.losses.elbo import capacity_weight_step, categorical_kl, clustering, gaussian_kl
from unicoord_atlas.losses.independence import (
    Told,
    distance_correlation,
    distances,
    independence,
    labels_to_hide,
    u_centred,
)
from unicoord_atlas.losses.objective import LabelFacts, Objective
from unicoord_atlas.losses.supervised import class_weights, classification, hierarchical, regression
from unicoord_atlas.model.joint_vae import JointVAE
from unicoord_atlas.model.latent import ContinuousLatent, DiscreteLatent, LatentSpec
from unicoord_atlas.model.network_spec import NetworkSpec
from unicoord_atlas.model.noise import Noise

NAN = float("nan")


def test_gaussian_kl_is_torch_s():
    mean, logvar = torch.randn(6, 4), torch.randn(6, 4)
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(torch.zeros(6, 4), torch.ones(6, 4))).sum(dim=1)
    torch.testing.assert_close(gaussian_kl(mean, logvar), expected)


def test_categorical_kl_is_torch_s():
    logits = torch.randn(6, 5)
    expected = kl_divergence(Categorical(logits=logits), Categorical(logits=torch.zeros(6, 5)))
    torch.testing.assert_close(categorical_kl(logits), expected)


def test_regression_by_hand():
    error = regression(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[2.0, NAN], [3.0, 1.0]]))
    assert error.tolist() == [[1.0, 0.0], [0.0, 9.0]]


def test_regression_has_no_gradient_where_the_label_is_missing():
    mean = torch.ones(2, 1, requires_grad=True)
    regression(mean, torch.tensor([[NAN], [0.0]])).sum().backward()
    assert mean.grad.tolist() == [[0.0], [2.0]]


def test_classification_by_hand():
    loss = classification(
        torch.tensor([[0.0, math.log(3)], [5.0, 1.0]]), torch.tensor([1, -1]), torch.tensor([1.0, 2.0])
    )
    assert loss.tolist() == pytest.approx([2 * -math.log(6 / 7), 0.0])


def test_weighted_classification_learns_the_classes_as_they_are():
    codes, weights = torch.tensor([0] * 90 + [1] * 10), torch.tensor([0.5, 5.0])
    logits = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        classification(logits.expand(100, 2), codes, weights).sum().backward()
        optimizer.step()
    assert torch.softmax(logits.detach(), 0).tolist() == pytest.approx([0.9, 0.1], abs=1e-3)


def test_hierarchical_by_hand():
    parents = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    child, parent = torch.log(torch.tensor([[0.5, 0.25, 0.25]])), torch.log(torch.tensor([[0.9, 0.1]]))
    assert hierarchical(child, parent, parents).item() == pytest.approx(-0.75 * math.log(0.9) - 0.25 * math.log(0.1))


def test_clustering_by_hand():
    distance, p = torch.tensor([[0.0, 2.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert clustering(distance, p).item() == pytest.approx(2 * 4 * -0.1 / 4)


@pytest.mark.parametrize("kind, ratio", [("none", 1.0), ("sqrt", 2.0), ("balanced", 4.0)])
def test_class_weights_average_to_one_over_cells(kind, ratio):
    counts = torch.tensor([400.0, 100.0])
    weights = class_weights(counts, kind)
    assert (weights[1] / weights[0]).item() == pytest.approx(ratio)
    assert ((weights * counts).sum() / counts.sum()).item() == pytest.approx(1.0)


def test_capacity_rises_to_its_end():
    assert [capacity_weight_step(step, 5.0, 100) for step in (0, 50, 100, 1000)] == [0.0, 2.5, 5.0, 5.0]


def _objective(config: LossConfig = LossConfig(), **network) -> tuple[Objective, JointVAE]:
    latent = LatentSpec(
        discrete=(
            DiscreteLatent(name="cell_type", num_categories=3),
            DiscreteLatent(name="cell_class", num_categories=2),
        ),
        continuous=(
            ContinuousLatent(name="time", offset=10.0, scale=2.0),
            ContinuousLatent(name="z", supervised=False),
        ),
    )
    facts = LabelFacts((torch.tensor([10.0, 20.0, 30.0]), torch.tensor([30.0, 30.0])), (0.5, 1.0), torch.tensor([0.25]))
    tree = Hierarchy("cell_class", "cell_type", np.array([[1, 0], [1, 0], [0, 1]], np.float32))
    torch.manual_seed(0)
    model = JointVAE(NetworkSpec(num_genes=40, latent=latent, model=ModelConfig(hidden=(16, 8)), **network))
    return Objective(config, latent, facts, (tree,), 40, torch.device("cpu")), model


def _labelled_batch() -> MiniBatch:
    counts, types = counts_of_types()
    codes = np.stack([np.where(np.arange(60) % 2, types, -1), types // 2], axis=1)
    return minibatch(counts, codes, np.where(np.arange(60)[:, None] % 4, np.nan, 12.0))


def test_helpers_are_classified_as_labels_are():
    objective, model = _objective(label_path=(6, 5), path_labels=(0,))
    batch = _labelled_batch()
    trained, shown = model(batch, Noise(0, 0, batch.rows_n)), model(batch)
    known = batch.codes_nl[:, 0] >= 0
    ((_, helper),) = trained.posterior.helpers
    chosen = batch.codes_nl[known, 0]
    expected = -300 * torch.log_softmax(helper, 1)[known, chosen].sum() / (60 * 0.5)
    torch.testing.assert_close(objective(trained, batch, step=0).terms["helpers"], expected.detach())
    assert "helpers" not in objective(shown, batch, step=0).terms


def test_objective_is_the_weighted_sum_of_its_formulas():
    objective, model = _objective(LossConfig(beta=0.3, beta_warmup_steps=10, class_weights="sqrt"))
    batch = _labelled_batch()
    output, p = model(batch), model(batch).posterior
    result = objective(output, batch, step=4)
    labelled = batch.codes_nl[:, 0] >= 0
    weights = class_weights(torch.tensor([10.0, 20.0, 30.0]), "sqrt")
    chosen = batch.codes_nl[labelled, 0]
    first = -(weights[chosen] * torch.log_softmax(p.logits[0] + weights.log(), 1)[labelled, chosen]).sum() / (60 * 0.5)
    second = -torch.log_softmax(p.logits[1], 1)[torch.arange(60), batch.codes_nl[:, 1]].mean()
    known = torch.arange(60) % 4 == 0
    expected = {
        "reconstruction": output.errors_n.mean(),
        "kl": 0.15
        * (gaussian_kl(p.mean_nd, p.logvar_nd) + categorical_kl(p.logits[0]) + categorical_kl(p.logits[1])).mean(),
        "regression": 100 * (p.mean_nd[known, 0] - 1.0).square().sum() / (60 * 0.25),
        "classification": 300 * (first + second),
        "hierarchical": 10 * hierarchical(p.logits[0], p.logits[1], torch.tensor([[1.0, 0], [1, 0], [0, 1]])).mean(),
    }
    assert set(result.terms) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(result.terms[name], value.detach(), msg=name)
    torch.testing.assert_close(result.total, sum(expected.values()))


def test_terms_of_halves_add_up_to_the_whole():
    objective, model = _objective()
    batch = _labelled_batch()
    whole = objective(model(batch), batch, 0).terms
    counts, _types = counts_of_types()
    codes, values = batch.codes_nl.numpy(), batch.values_nc.numpy()
    halves = [minibatch(counts[part], codes[part], values[part]) for part in (slice(0, 30), slice(30, 60))]
    parts = [objective(model(half), half, 0).terms for half in halves]
    for name in whole:
        torch.testing.assert_close(whole[name], (parts[0][name] + parts[1][name]) / 2, msg=name)


def test_losses_between_cells_are_left_out_where_cells_lie_as_they_are_stored():
    objective, model = _objective(LossConfig(independent_of=("cell_class",)))
    batch = _labelled_batch()
    every, some = (objective(model(batch), batch, 0, between_cells=asked).terms for asked in (True, False))
    assert set(every) - set(some) == {"independence"}


def test_padding_weighs_nothing():
    objective, model = _objective()
    batch = _labelled_batch()
    weights = torch.ones(60)
    weights[40:] = 0
    padded = MiniBatch(*(getattr(batch, name) if name != "weights_n" else weights for name in batch.__slots__))
    counts, _ = counts_of_types()
    real = minibatch(counts[:40], batch.codes_nl.numpy()[:40], batch.values_nc.numpy()[:40])
    for name, value in objective(model(padded), padded, 0).terms.items():
        torch.testing.assert_close(value, objective(model(real), real, 0).terms[name], msg=name)


def _slow_distance_correlation(z, y):
    """Székely & Rizzo 2014, equations 3.1 to 3.3, entry by entry."""

    def centred(x):
        n = len(x)
        a = np.array([[np.sqrt(((p - q) ** 2).sum() + (1e-4 if x is z else 0)) for q in x] for p in x])
        u = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                if i != j:
                    u[i, j] = a[i, j] - a[i].sum() / (n - 2) - a[:, j].sum() / (n - 2) + a.sum() / ((n - 1) * (n - 2))
        return u

    a, b = centred(z), centred(y)
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def test_independence_is_the_distance_correlation():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(12, 3)), rng.normal(size=(12, 1))
    apart = torch.from_numpy(np.abs(y - y.T))
    found = distance_correlation(torch.from_numpy(z), apart, torch.zeros(12))
    assert float(found) == pytest.approx(_slow_distance_correlation(z, y), rel=1e-6)
    left_out = torch.cat([torch.zeros(12), torch.tensor([-1.0, -1, 1, 1, 1])])
    more = torch.from_numpy(np.concatenate([z, rng.normal(size=(5, 3))]))
    apart = torch.nn.functional.pad(apart, (0, 5, 0, 5), value=3.0)
    assert float(distance_correlation(more, apart, left_out)) == pytest.approx(float(found), rel=1e-6)


def test_independence_is_0_for_a_label_that_only_follows_the_stratum_and_1_for_one_that_is_the_place():
    rng = np.random.default_rng(0)
    stratum = np.repeat([0, 1], 200)
    label = (rng.random(400) < np.where(stratum == 0, 0.2, 0.8)).astype(float)
    apart = torch.from_numpy((label[:, None] != label).astype(float))
    z = torch.from_numpy(rng.normal(size=(400, 2)) + 4 * stratum[:, None])
    assert abs(float(distance_correlation(z, apart, torch.from_numpy(stratum)))) < 0.02
    assert float(distance_correlation(z, apart, torch.zeros(400))) > 0.2
    told = torch.from_numpy(5 * label[:, None])
    assert float(distance_correlation(told, apart, torch.from_numpy(stratum))) == pytest.approx(1, abs=1e-3)
    assert float(distance_correlation(z[:3], apart[:3, :3], torch.zeros(3))) == 0


def test_independence_looks_at_labelled_cells_and_names_what_it_may_hide():
    latent = LatentSpec(
        discrete=(DiscreteLatent(name="type", num_categories=2), DiscreteLatent(name="platform", num_categories=2)),
        continuous=(ContinuousLatent(name="time"), ContinuousLatent(name="u", supervised=False)),
    )
    (told,) = labels_to_hide(["platform"], latent)
    assert (told.column, told.is_value, told.within) == (1, False, ((0, 2),))
    (value,) = labels_to_hide(["time"], latent)
    assert (value.column, value.is_value, value.within) == (0, True, ((0, 2), (1, 2)))
    assert labels_to_hide([], latent) == ()
    with pytest.raises(ConfigError, match="type, platform, time"):
        labels_to_hide(["organ"], latent)
    rng = np.random.default_rng(0)
    codes = np.stack([np.arange(40) % 2, rng.integers(0, 2, 40)], axis=1)
    z = torch.from_numpy(rng.normal(size=(40, 1)).astype(np.float32)).requires_grad_()
    whole = independence(z, minibatch(np.ones((40, 3)), codes), [told])
    whole.backward()
    assert torch.isfinite(z.grad).all()
    assert z.grad.abs().sum() > 0
    more = np.concatenate([codes, [[-1, 1], [0, -1]]])
    padded = torch.cat([z, z.new_full((2, 1), 99.0)])
    again = independence(padded.detach(), minibatch(np.ones((42, 3)), more), [told])
    torch.testing.assert_close(again, whole.detach())


def test_of_many_cells_the_same_are_compared_in_whatever_order_they_come():
    """Processes hold a minibatch's cells in another order than one does; each step compares others of them."""
    rng = np.random.default_rng(2)
    told = Told(0, False, ())
    codes = rng.integers(0, 2, (1_500, 1))
    z = torch.from_numpy(rng.normal(size=(1_500, 2)) + codes)
    batch = minibatch(np.ones((1_500, 3)), codes)
    order = torch.from_numpy(rng.permutation(1_500))
    turned = replace(minibatch(np.ones((1_500, 3)), codes[order.numpy()]), rows_n=batch.rows_n[order])
    first = independence(z, batch, [told], step=7)
    torch.testing.assert_close(independence(z[order], turned, [told], step=7), first)
    assert independence(z, batch, [told], step=8) != first


def test_strata_are_weighed_together():
    """The sums over strata are those of each one, centred by itself."""
    rng = np.random.default_rng(1)
    z, label, stratum = rng.normal(size=(30, 2)), rng.integers(0, 3, 30), rng.integers(0, 3, 30)
    apart = label[:, None] != label
    sums = np.zeros(3)
    for number in range(3):
        own = stratum == number
        a = u_centred(distances(torch.from_numpy(z[own])), torch.ones(own.sum(), own.sum(), dtype=torch.float64))
        b = u_centred(torch.from_numpy(apart[np.ix_(own, own)] * 1.0), torch.ones_like(a))
        sums += np.array([(a * b).sum(), (a * a).sum(), (b * b).sum()]) / (own.sum() - 3)
    found = distance_correlation(torch.from_numpy(z), torch.from_numpy(apart * 1.0), torch.from_numpy(stratum))
    assert float(found) == pytest.approx(sums[0] / np.sqrt(sums[1] * sums[2]), rel=1e-9)


def test_independence_is_warmed_up():
    objective, model = _objective(LossConfig(independent_of=("cell_type",), independence_warmup_steps=10))
    batch = _labelled_batch()
    terms = [objective(model(batch), batch, step).terms["independence"] for step in (0, 4, 9, 30)]
    assert terms[0] != 0
    torch.testing.assert_close(torch.stack(terms) / terms[3], torch.tensor([0.1, 0.5, 1.0, 1.0]))
    assert "independence" not in _objective(LossConfig())[0](model(batch), batch, 0).terms


@pytest.mark.parametrize("log_input", [False, True])
def test_clusters_are_compared_by_the_cells_that_the_model_sees(log_input):
    """Of the genes that it looks at, normalized as it normalizes them."""
    latent = LatentSpec(
        discrete=(DiscreteLatent(name="u", num_categories=4, supervised=False),),
        continuous=(ContinuousLatent(name="z", supervised=False),),
    )
    spec = NetworkSpec(
        num_genes=25, latent=latent, model=ModelConfig(hidden=(16, 8)), log_input=log_input, num_atlas_genes=40
    )
    torch.manual_seed(0)
    model = JointVAE(spec)
    model.start_from(own_genes=torch.arange(25))
    objective = Objective(
        LossConfig(clustering=2.0), latent, LabelFacts((), (), torch.zeros(0)), (), 25, torch.device("cpu")
    )
    batch = _labelled_batch()
    output = model(batch)
    counts = batch.counts.to_dense()[:, :25]
    x = counts if log_input else torch.log1p(counts * 1e4 / batch.size_factors_n[:, None])
    expected = 2 * clustering(torch.cdist(x, x), output.posterior.probabilities()[0])
    torch.testing.assert_close(objective(output, batch, 0).terms["clustering"], expected.detach())
    assert "clustering" not in objective(output, batch, 0, between_cells=False).terms
