import math

import numpy as np
import pytest
import torch
from cells import counts_of_types, minibatch, sparse_rows
from torch.utils._python_dispatch import TorchDispatchMode

from unicoord_atlas.config import ModelConfig
from unicoord_atlas.log_normalize import log_normalize
from unicoord_atlas.model import joint_vae, sparse_input
from unicoord_atlas.model.center import Center
from unicoord_atlas.model.fused_decode import DecodeOptions, Target, fused_decode_error, partly_measured
from unicoord_atlas.model.gene_order import GeneOrder
from unicoord_atlas.model.joint_vae import JointVAE
from unicoord_atlas.model.latent import (
    ContinuousLatent,
    DiscreteLatent,
    LatentSpec,
    Posterior,
    one_hot,
    with_labels,
)
from unicoord_atlas.model.network_spec import NetworkSpec
from unicoord_atlas.model.noise import Noise, Purpose, below
from unicoord_atlas.model.refinement import GivenParents, Refinement
from unicoord_atlas.model.sparse_input import SparseLinear

N, G, H = 7, 33, 5


def _target(x: torch.Tensor, measured: torch.Tensor | None, sources: torch.Tensor) -> Target:
    rows = sparse_rows(x.numpy())
    order = GeneOrder.of(rows)
    parts = None if measured is None else partly_measured(measured, 8)
    return Target(order, rows.data[order.entries_z].to(x.dtype), sources, measured, parts)


@pytest.mark.parametrize("most", [1, 30, 10_000])
def test_parts_of_a_minibatch_are_its_cells(most):
    counts, types = counts_of_types(50, 40)
    counts[7] = 0
    whole = minibatch(counts, types[:, None], counts[:, :2])
    parts = list(whole.in_parts(most))
    entries = [part.counts.data.shape[0] for part in parts]
    assert all(n <= most or len(part) == 1 for n, part in zip(entries, parts))
    assert most > 1 or len(parts) >= 49
    np.testing.assert_array_equal(np.concatenate([part.counts.to_dense() for part in parts]), counts)
    for name in ("rows_n", "size_factors_n", "codes_nl", "values_nc", "weights_n"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(whole, name))


def test_some_entries_of_rows():
    """The first and the last row lose all of theirs."""
    dense = np.random.default_rng(0).poisson(1.0, (N, G)).astype(np.float32)
    kept = np.random.default_rng(1).random((N, G)) < 0.5
    kept[[0, -1]] = False
    rows = sparse_rows(dense)
    entries = torch.from_numpy(np.flatnonzero(kept[np.nonzero(dense)]))
    np.testing.assert_array_equal(rows.take(entries).to_dense().numpy(), dense * kept)


@pytest.fixture
def decoding():
    """Float64 inputs of a decode with three sources that measured different genes."""
    generator = torch.Generator().manual_seed(0)
    measured = torch.rand(3, G, generator=generator) < 0.8
    measured[:, :8] = True  # one tile without a gap
    sources = torch.randint(0, 3, (N,), generator=generator)
    x = (
        torch.rand(N, G, generator=generator).float().double()
        * (torch.rand(N, G, generator=generator) < 0.4)
        * measured[sources]
    )
    parameters = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((N, H), (G, H), (G,))]
    return x, measured, sources, [p.requires_grad_() for p in parameters], torch.rand(N, generator=generator).double()


def _plain(x, measured, sources, parameters, weights, relu_gradient):
    """The formula, with dense tensors."""
    hidden, weight, bias = parameters
    before = hidden @ weight.T + bias
    y = torch.relu(before)
    if relu_gradient == "y_or_x":
        passes = (before > 0) | (x > 0)
        y = torch.where(passes, before + (y - before).detach(), y.detach())
    errors = ((y - x).square() * measured[sources]).sum(dim=1)
    return (errors * weights).sum(), errors


@pytest.mark.parametrize("relu_gradient", ["y", "y_or_x"])
@pytest.mark.parametrize("tile", [8, 64])
def test_fused_decode_equals_the_dense_formula(decoding, relu_gradient, tile):
    x, measured, sources, parameters, weights = decoding
    target = _target(x, measured, sources)
    target = target if tile == 8 else Target(target.order, target.values_z, sources, measured)
    total, errors = fused_decode_error(*parameters, weights, target, DecodeOptions(torch.float64, relu_gradient, tile))
    expected, expected_errors = _plain(x, measured, sources, parameters, weights, relu_gradient)
    torch.testing.assert_close(errors, expected_errors)
    torch.testing.assert_close(total, expected)
    for ours, theirs in zip(torch.autograd.grad(3 * total, parameters), torch.autograd.grad(3 * expected, parameters)):
        torch.testing.assert_close(ours, theirs)


class _DecodedAnew(torch.autograd.Function):
    """Decodes again in each backward pass: gradcheck makes several, and the fused decode gives its gradients once."""

    @staticmethod
    def forward(ctx, decode, *parameters):
        ctx.decode = decode
        ctx.save_for_backward(*parameters)
        return decode(*parameters)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        parameters = [p.detach().requires_grad_() for p in ctx.saved_tensors]
        with torch.enable_grad():
            return None, *torch.autograd.grad(gradient * ctx.decode(*parameters), parameters)


def test_fused_decode_passes_gradcheck(decoding):
    x, measured, sources, parameters, weights = decoding
    target, options = _target(x, measured, sources), DecodeOptions(torch.float64, "y", 8)

    def decode(*parameters):
        return fused_decode_error(*parameters, weights, target, options)[0]

    assert torch.autograd.gradcheck(lambda *p: _DecodedAnew.apply(decode, *p), parameters)


def test_fused_decode_gives_its_gradients_once(decoding):
    x, measured, sources, parameters, weights = decoding
    total, _ = fused_decode_error(*parameters, weights, _target(x, measured, sources), DecodeOptions(torch.float64))
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="before"):
        total.backward()


def test_fused_decode_computes_no_gradient_that_nobody_asks_for(decoding):
    x, measured, sources, parameters, weights = decoding
    target, options = _target(x, measured, sources), DecodeOptions(torch.float64)
    products = []

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            products.append(function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm))
            return function(*args, **(kwargs or {}))

    counts = []
    for grad in (True, False):
        products.clear()
        with torch.set_grad_enabled(grad), Counted():
            fused_decode_error(*parameters, weights, target, options)
        counts.append(sum(products))
    tiles = -(-G // options.tile)
    assert counts == [4 * tiles, tiles]


@pytest.mark.parametrize("relu_gradient", ["y", "y_or_x"])
def test_fused_decode_in_float32_has_the_plain_gradient(relu_gradient):
    """Over more genes and cells than fit in a tile, relative to the largest entry of each gradient."""
    generator = torch.Generator().manual_seed(1)
    num_cells, num_genes, num_hidden = 65, 5000, 64
    x = torch.rand(num_cells, num_genes, generator=generator) * 4
    x *= torch.rand(num_cells, num_genes, generator=generator) < 0.05
    shapes = ((num_cells, num_hidden), (num_genes, num_hidden), (num_genes,))
    parameters = [(torch.randn(*shape, generator=generator) * 0.2).requires_grad_() for shape in shapes]
    measured, sources = torch.ones(1, num_genes, dtype=torch.bool), torch.zeros(num_cells, dtype=torch.int64)
    weights = torch.full((num_cells,), 1 / num_cells)
    total, _ = fused_decode_error(
        *parameters, weights, _target(x, None, sources), DecodeOptions(torch.float32, relu_gradient)
    )
    expected, _ = _plain(x, measured, sources, parameters, weights, relu_gradient)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(torch.autograd.grad(total, parameters), torch.autograd.grad(expected, parameters)):
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_fused_decode_in_bf16_is_close(decoding):
    x, measured, sources, parameters, weights = decoding
    singles = [p.detach().float().requires_grad_() for p in parameters]
    total, _ = fused_decode_error(
        *singles, weights.float(), _target(x.float(), measured, sources), DecodeOptions(torch.bfloat16, tile=8)
    )
    expected, _ = _plain(x, measured, sources, parameters, weights, "y_or_x")
    assert total.item() == pytest.approx(expected.item(), rel=0.02)
    for ours, theirs in zip(torch.autograd.grad(total, singles), torch.autograd.grad(expected, parameters)):
        assert torch.nn.functional.cosine_similarity(ours.flatten().double(), theirs.flatten(), dim=0) > 0.999


def _centers() -> list[Center | None]:
    """None, one panel for all, and three panels."""
    generator = torch.Generator().manual_seed(0)
    mean, panels = torch.rand(G, generator=generator), torch.rand(3, G, generator=generator) < 0.7
    panel_of_cell = torch.randint(0, 3, (N,), generator=generator)
    return [None, Center.of(mean, panels[:1], panel_of_cell), Center.of(mean, panels, panel_of_cell)]


def _less_center(x: np.ndarray, center: Center | None) -> torch.Tensor:
    dense = torch.from_numpy(x)
    if center is None:
        return dense
    return dense - (center.profiles_pg if center.panel_n is None else center.profiles_pg[center.panel_n])


@pytest.mark.parametrize("center", _centers())
def test_sparse_linear_equals_dense_linear(center):
    x = np.random.default_rng(0).poisson(0.3, (N, G)).astype(np.float32)
    rows, layer = sparse_rows(x), SparseLinear(G, H)
    weights = torch.randn(N, H)
    dense = _less_center(x, center) @ layer.weight + layer.bias
    expected = torch.autograd.grad((dense * weights).sum(), [layer.weight, layer.bias])
    ours = layer(rows, GeneOrder.of(rows), torch.float32, center)
    torch.testing.assert_close(ours, dense)
    torch.testing.assert_close(torch.autograd.grad((ours * weights).sum(), [layer.weight, layer.bias]), expected)
    torch.testing.assert_close(layer(rows, None, torch.float32, center), dense)


def test_a_centre_s_product_is_the_same_bits_wherever_the_table_lies():
    """A BLAS's is not (400 x 32: three results), and a run that is killed and goes on would end otherwise."""
    generator = torch.Generator().manual_seed(0)
    weight, profile = torch.randn(400, 32, generator=generator), torch.rand(1, 400, generator=generator)
    results = set()
    for offset in range(64):
        placed = torch.empty(weight.numel() + 64)[offset : offset + weight.numel()].view(weight.shape).copy_(weight)
        product = Center(profile).product(placed)
        results.add(product.numpy().tobytes())
    assert len(results) == 1
    torch.testing.assert_close(product, profile @ weight)


@pytest.mark.parametrize("center", _centers())
@pytest.mark.parametrize("size", [8, 11, 64])
def test_the_first_layer_in_dense_tiles_equals_a_dense_one(monkeypatch, size, center):
    """What a GPU does; no gene of the first two tiles is in any cell but one."""
    monkeypatch.setattr(sparse_input, "tile_size", lambda device, num_cells: size)
    x = np.random.default_rng(0).poisson(0.3, (N, G)).astype(np.float32)
    x[:, :16] = 0
    x[2, 9] = 3
    rows, weights = sparse_rows(x), torch.randn(N, H)
    weight = torch.randn(G, H, requires_grad=True)
    ours = sparse_input._TiledLinear.apply(weight, rows, GeneOrder.of(rows), torch.float32, center)
    torch.testing.assert_close(ours, torch.from_numpy(x) @ weight)  # the layer takes the centre's product off
    dense = _less_center(x, center) @ weight
    torch.testing.assert_close(*(torch.autograd.grad((each * weights).sum(), weight)[0] for each in (ours, dense)))


def test_augmented_entries_that_stay_as_zeros_are_those_that_are_gathered(monkeypatch):
    counts, types = counts_of_types()
    batch, model = minibatch(counts, types[:, None]), JointVAE(_spec(thinning=0.5, gene_dropout=0.3))
    noise = Noise(0, 0, batch.rows_n)
    gathered = model.augmented(batch, noise)
    real = joint_vae.left_over
    monkeypatch.setattr(joint_vae, "left_over", lambda *given, gathered: real(*given, gathered=False))
    kept = model.augmented(batch, noise)
    assert len(kept.data) == len(batch.counts.data) > len(gathered.data)
    assert torch.equal(kept.to_dense(), gathered.to_dense())


@pytest.mark.parametrize("centered", [False, True])
def test_the_encoder_on_sparse_rows_equals_a_dense_one_dropout_included(centered):
    """Value and gradients of the paper's encoder: three linear layers, ReLU, dropout after the first and second.

    Centred on the mean profile it sees differences from it, of the genes that a cell's source measured.
    """
    counts, types = counts_of_types()
    measured = torch.ones(3, 40, dtype=torch.bool)
    measured[1:, 30:] = False
    sources = np.arange(len(counts)) % 3
    counts[sources > 0, 30:] = 0
    batch = minibatch(counts, types[:, None], sources=sources)
    model = JointVAE(_spec(gene_dropout=0.4, thinning=0.5, centered=centered, num_sources=3))
    mean = torch.rand(40)
    model.start_from(measured_sg=measured, heard_g=torch.arange(40) != 7, center_g=mean)
    noise = Noise(0, 3, batch.rows_n)
    rows = model.augmented(batch, noise)
    hidden = rows.to_dense()
    if centered:
        hidden = hidden - mean * measured[batch.sources_n] * (torch.arange(40) != 7)
    layers = [
        (model.input_layer.weight, model.input_layer.bias),
        *((layer.weight.t(), layer.bias) for layer in model.encoder),
    ]
    for number, (weight, bias) in enumerate(layers):
        hidden = torch.relu(hidden @ weight + bias)
        if number < 2:
            keep = ~below(noise.draws(Purpose.DROPOUT + number, hidden.shape[1]), model.spec.model.dropout)
            hidden = hidden * keep / (1 - model.spec.model.dropout)
    expected = hidden @ model.mean.weight.t() + model.mean.bias
    ours = model.encode(rows, model.center(batch, noise), GeneOrder.of(rows), noise).mean_nd
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    learned = [*model.input_layer.parameters(), *model.encoder.parameters()]
    for sparse, dense in zip(
        torch.autograd.grad(ours.square().sum(), learned), torch.autograd.grad(expected.square().sum(), learned)
    ):
        assert (sparse - dense).abs().max() < 1e-5 * dense.abs().max().clamp(min=1)


def _spec(**changes) -> NetworkSpec:
    latent = LatentSpec(
        discrete=(
            DiscreteLatent(name="cell_type", num_categories=3),
            DiscreteLatent(name="u", num_categories=2, supervised=False),
        ),
        continuous=(ContinuousLatent(name="time"), ContinuousLatent(name="unsupervised_0", supervised=False)),
    )
    return NetworkSpec(num_genes=40, latent=latent, model=ModelConfig(hidden=(16, 12, 8)), **changes)


def test_joint_vae_has_the_paper_s_layers():
    shapes = {
        name: tuple(tensor.shape) for name, tensor in JointVAE(_spec()).named_parameters() if name.endswith("weight")
    }
    assert shapes == {
        "input_layer.weight": (40, 16),
        "encoder.0.weight": (12, 16),
        "encoder.1.weight": (8, 12),
        "mean.weight": (2, 8),
        "logvar.weight": (2, 8),
        "logits.0.weight": (3, 8),
        "logits.1.weight": (2, 8),
        "decoder.0.weight": (8, 7),
        "decoder.1.weight": (12, 8),
        "decoder.2.weight": (16, 12),
        "output_layer.weight": (40, 16),
    }


def test_a_label_path_is_a_network_of_its_own():
    torch.manual_seed(0)
    model = JointVAE(_spec(label_path=(6, 5), path_labels=(0,)))
    first = torch.randn(30, 22)
    own, path = first[:, :16].relu(), first[:, 16:].relu()
    hidden = model.encoder[1](model.encoder[0](own).relu()).relu()
    told = model.label_path.heads["0"](model.label_path.layers[0](path).relu())
    found = model.posterior_of(first)
    torch.testing.assert_close(found.logits[0], told)
    torch.testing.assert_close(found.logits[1], model.logits[1](hidden))
    torch.testing.assert_close(found.mean_nd, model.mean(hidden))
    torch.testing.assert_close(found.logvar_nd, model.logvar(hidden))
    assert found.helpers == ()


def test_the_encoder_s_own_heads_of_a_path_s_labels_are_trained_and_nothing_else():
    torch.manual_seed(0)
    model = JointVAE(_spec(label_path=(6, 5), path_labels=(0,)))
    noise = Noise(0, 0, torch.arange(30))
    found = model.posterior_of(torch.randn(30, 22), noise)
    ((label, helper),) = found.helpers
    assert label == 0 and helper.shape == (30, 3) and not torch.equal(helper, found.logits[0])
    head = model.logits[0].weight
    assert torch.autograd.grad(helper.sum(), head, retain_graph=True)[0].abs().sum() > 0
    said = sum(part.sum() for part in (*found.logits, found.mean_nd, found.logvar_nd))
    assert torch.autograd.grad(said, head, allow_unused=True) == (None,)


def test_a_finer_level_s_probabilities_are_shared_out_among_the_parents_children():
    rng = np.random.default_rng(0)
    child, parent = rng.normal(scale=6, size=(5, 6)), rng.normal(scale=3, size=(5, 3))
    shares = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1], [0, 0, 1]])
    expected = np.zeros((5, 6))
    for cell in range(5):
        of_parent = np.exp(parent[cell]) / np.exp(parent[cell]).sum()
        for number in range(3):
            below = shares[:, number] * np.exp(child[cell])
            expected[cell] += of_parent[number] * below / below.sum()
    given = GivenParents(_tie(0, 1, shares))
    own, above = torch.from_numpy(child).float(), torch.from_numpy(parent).float()
    found = given(own, above).softmax(dim=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found[:, :2].sum(dim=1), above.softmax(dim=1)[:, 0], atol=1e-6)
    far = own.mul(40).requires_grad_()
    given(far, above * 40)[:, [0, 5]].sum().backward()
    assert torch.isfinite(far.grad).all()
    assert far.grad.abs().sum() > 0
    torch.autograd.gradcheck(
        given.double(), (torch.from_numpy(child).requires_grad_(), torch.from_numpy(parent).requires_grad_())
    )


def _tie(parent: int, child: int, shares: np.ndarray) -> Refinement:
    rows = (tuple((code, share) for code, share in enumerate(row) if share) for row in shares.tolist())
    return Refinement(parent=parent, child=child, shares=tuple(rows))


def test_a_tie_that_does_not_fit_its_dimensions_is_refused():
    two = (DiscreteLatent(name="a", num_categories=2), DiscreteLatent(name="b", num_categories=3))
    for tie in (_tie(0, 2, np.eye(2)), _tie(1, 1, np.eye(3)), _tie(0, 1, np.eye(3)), _tie(0, 1, np.eye(2))):
        with pytest.raises(ValueError, match="cannot be tied"):
            LatentSpec(discrete=two, refinements=(tie,))


def test_heads_of_levels_that_are_tied_say_the_same_of_the_coarser_one():
    """Three levels: the class of the class, and a level that is not tied keeps its own head."""
    sizes = {"organ": 2, "cell_type": 5, "cell_class": 3, "platform": 2}
    organs, classes = np.eye(2)[[0, 0, 1]], np.eye(3)[[0, 0, 1, 2, 2]]
    latent = LatentSpec(
        discrete=tuple(DiscreteLatent(name=name, num_categories=size) for name, size in sizes.items()),
        continuous=(ContinuousLatent(name="unsupervised_0", supervised=False),),
        refinements=(_tie(0, 2, organs), _tie(2, 1, classes)),
    )
    model = JointVAE(NetworkSpec(num_genes=40, latent=latent, model=ModelConfig(hidden=(16, 8))))
    counts, types = counts_of_types()
    organ, cell_type, cell_class, _ = model(minibatch(counts, types[:, None])).posterior.probabilities()
    torch.testing.assert_close(cell_type @ torch.from_numpy(classes).float(), cell_class)
    torch.testing.assert_close(cell_class @ torch.from_numpy(organs).float(), organ)
    again = JointVAE(NetworkSpec.model_validate_json(model.spec.model_dump_json()))
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(minibatch(counts, types[:, None])).posterior.logits[1].softmax(1), cell_type)


def test_inference_is_deterministic_and_training_is_not():
    counts, types = counts_of_types()
    batch, model = minibatch(counts, types[:, None]), JointVAE(_spec(thinning=0.5, gene_dropout=0.3))
    first, second = model(batch), model(batch)
    assert torch.equal(first.errors_n, second.errors_n)
    noisy = [model(batch, Noise(0, step, batch.rows_n)).errors_n for step in (0, 0, 1)]
    assert torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0], noisy[2])


def test_a_step_shows_cells_as_one_other_source_saw_them():
    """What it did not measure is hidden, and taken for the mean profile's instead of for zero."""
    counts, types = counts_of_types()
    measured, mean = torch.ones(2, 40, dtype=torch.bool), torch.rand(40)
    measured[1, 20:] = False
    model = JointVAE(_spec(num_sources=2, gene_panels=0.9, centered=True))
    model.start_from(measured_sg=measured, center_g=mean)
    batch = minibatch(counts, types[:, None], sources=np.zeros(60))
    plain = log_normalize(batch.counts, batch.size_factors_n).to_dense()
    shares = []
    for step in range(12):
        noise = Noise(0, step, batch.rows_n)
        seen, center = model.augmented(batch, noise).to_dense(), model.center(batch, noise)
        hidden = (seen[:, 20:] == 0).all(dim=1) & (plain[:, 20:] > 0).any(dim=1)
        shares.append(hidden.float().mean().item())
        torch.testing.assert_close(seen[:, :20], plain[:, :20])
        torch.testing.assert_close(seen[~hidden], plain[~hidden])
        expected = mean.repeat(60, 1)
        expected[hidden, 20:] = 0
        told = (plain[:, 20:] > 0).any(dim=1)
        torch.testing.assert_close(center.profiles_pg[center.panel_n][told], expected[told])
    assert {round(share) for share in shares} == {0, 1}  # one of two panels a step
    assert 0.8 < np.mean([share for share in shares if share]) < 0.98


def test_gene_dropout_keeps_the_mean():
    counts, types = counts_of_types(num_cells=2000)
    batch = minibatch(counts, types[:, None])
    seen = JointVAE(_spec(gene_dropout=0.5)).augmented(batch, Noise(0, 0, batch.rows_n)).to_dense()
    plain = log_normalize(batch.counts, batch.size_factors_n).to_dense()
    kept = seen[plain > 0] != 0
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.01)
    torch.testing.assert_close(seen.mean(dim=0), plain.mean(dim=0), rtol=0.15, atol=0.02)
    torch.testing.assert_close(seen[seen > 0], 2 * plain[seen > 0])


def test_reconstruction_error_is_that_of_the_decoded_cells():
    counts, types = counts_of_types()
    batch, model = minibatch(counts, types[:, None]), JointVAE(_spec())
    output = model(batch)
    x = log_normalize(batch.counts, batch.size_factors_n).to_dense()
    expected = (model.decode(output.posterior.mode()) - x).square().sum(dim=1)
    torch.testing.assert_close(output.errors_n, expected)
    torch.testing.assert_close(output.mean_error, expected.mean())


def test_the_decoder_never_sees_the_labels():
    counts, types = counts_of_types()
    model = JointVAE(_spec())
    errors = [
        model(minibatch(counts, (types[:, None] + shift) % 3), Noise(0, 0, torch.arange(60))).errors_n
        for shift in (0, 1)
    ]
    assert torch.equal(*errors)


def test_a_model_of_some_genes_ignores_the_others():
    counts, types = counts_of_types()
    small = JointVAE(_spec().model_copy(update={"num_genes": 20, "num_atlas_genes": 40}))
    own = torch.arange(0, 40, 2)
    small.start_from(own_genes=own)
    changed = counts.copy()
    changed[:, 1::2] += 3
    first, second = minibatch(counts, types[:, None]), minibatch(changed, types[:, None])
    second = type(second)(second.counts, *(getattr(first, name) for name in list(first.__slots__)[1:]))
    torch.testing.assert_close(small(first).errors_n, small(second).errors_n)


def test_the_encoder_looks_only_at_genes_it_was_told_to():
    counts, types = counts_of_types()
    model = JointVAE(_spec())
    model.start_from(heard_g=torch.arange(40) < 20)
    changed = counts.copy()
    changed[:, 20:] = 0
    batches = [minibatch(counts, types[:, None]), minibatch(changed, types[:, None])]
    rows = [log_normalize(batch.counts, batches[0].size_factors_n) for batch in batches]
    torch.testing.assert_close(*(model.encode(each, None).mean_nd for each in rows))


def test_samples_approach_the_posterior():
    rows = torch.arange(4000)
    posterior = Posterior(
        torch.full((4000, 1), 2.0),
        torch.full((4000, 1), np.log(0.25)),
        (torch.tensor([[1.0, 0.0, -1.0]]).repeat(4000, 1),),
    )
    drawn = posterior.sample(Noise(0, 0, rows), temperature=0.01)
    assert drawn[:, 3].mean().item() == pytest.approx(2.0, abs=0.03)
    assert drawn[:, 3].std().item() == pytest.approx(0.5, abs=0.03)
    shares = drawn[:, :3].argmax(dim=1).bincount(minlength=3) / 4000
    torch.testing.assert_close(shares, torch.softmax(torch.tensor([1.0, 0.0, -1.0]), 0), atol=0.03, rtol=0)
    assert posterior.mode()[0].tolist() == [1.0, 0.0, 0.0, 2.0]


def test_one_hot_is_exact():
    assert one_hot(torch.tensor([2, 0]), torch.zeros(2, 3)).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_the_decoder_gets_known_labels_and_else_what_the_encoder_says():
    spec = LatentSpec(
        discrete=(
            DiscreteLatent(name="type", num_categories=3),
            DiscreteLatent(name="free", num_categories=2, supervised=False),
        ),
        continuous=(ContinuousLatent(name="time"), ContinuousLatent(name="u", supervised=False)),
    )
    said = torch.arange(14.0).reshape(2, 7) / 100
    given = with_labels(said, torch.tensor([[2], [-1]]), torch.tensor([[math.nan], [2.0]]), spec)
    expected = said.clone()
    expected[0, :3] = torch.tensor([0.0, 0.0, 1.0])
    expected[1, 5] = 2.0
    torch.testing.assert_close(given, expected)
