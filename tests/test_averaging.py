import pytest
import torch

from unicoord_atlas.training.averaging import ETA, EVERY_STEPS, AveragedWeights


def test_average_weighs_later_weights_more():
    """Against the weights written out: update s of t counts s (s + 1) ... (s + eta - 1)."""
    model = torch.nn.Linear(1, 1, bias=False)
    averaged = AveragedWeights(model, 100)
    for step in range(1, 8 * EVERY_STEPS + 1):
        with torch.no_grad():
            model.weight.fill_(float(step))
        averaged.update(step)
    shares = torch.tensor([float(torch.prod(torch.arange(s, s + ETA))) for s in range(1, 9)])
    expected = (shares * torch.arange(1, 9) * EVERY_STEPS).sum() / shares.sum()
    with averaged.applied():
        assert torch.isclose(model.weight[0, 0], expected)
    assert model.weight.item() == 8 * EVERY_STEPS


def test_a_saved_average_goes_on():
    torch.manual_seed(0)
    weights = torch.randn(6, 2, 3)
    whole = torch.nn.Linear(3, 2, bias=False)
    one, state = AveragedWeights(whole, 100), {}
    for number, value in enumerate(weights, start=1):
        whole.weight.data.copy_(value)
        if number == 4:
            state = {name: tensor.clone() for name, tensor in one.state_dict().items()}
        one.update(number * EVERY_STEPS)
    other_model = torch.nn.Linear(3, 2, bias=False)
    other = AveragedWeights(other_model, 100)
    other.load_state_dict(state)
    for number in (4, 5, 6):
        other_model.weight.data.copy_(weights[number - 1])
        other.update(number * EVERY_STEPS)
    assert torch.equal(other.state_dict()["weight"], one.state_dict()["weight"])


@pytest.mark.parametrize("steps_per_epoch", [1, 3, EVERY_STEPS - 1])
def test_what_is_validated_after_a_short_epoch_was_trained(steps_per_epoch):
    model = torch.nn.Linear(1, 1, bias=False)
    averaged = AveragedWeights(model, steps_per_epoch)
    for step in range(1, steps_per_epoch + 1):
        model.weight.data.fill_(float(step))
        averaged.update(step)
    with averaged.applied():
        assert model.weight.item() == steps_per_epoch
