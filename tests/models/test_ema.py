"""The moving average of the weights: published numbers, laws of the update, state."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from sde_score.models.ema import EMA


class Row(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(values).clone())


def test_published_ema(golden_dir):
    data = np.load(golden_dir / "ema.npz")
    for i, case in enumerate(json.loads(str(data["meta_json"]))["cases"]):
        rows, shadows = torch.from_numpy(data[f"c{i}_params"]), torch.from_numpy(data[f"c{i}_shadow"])
        model = Row(rows[0])
        ema = EMA(model, case["decay"], ramp=case["use_num_updates"])
        for row, shadow in zip(rows[1:], shadows):
            model.w.data.copy_(row)
            ema.update(model)
            torch.testing.assert_close(ema.model.w.data, shadow, atol=1e-5, rtol=0)


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def shake(model):
    for p in model.parameters():
        p.data += torch.randn_like(p)


def test_decay_zero_reproduces_the_parameters():
    model = make_net()
    ema = EMA(model, 0.0)
    shake(model)
    ema.update(model)
    assert all(torch.equal(a, b) for a, b in zip(ema.model.parameters(), model.parameters()))


def test_against_the_weighted_sum_written_out():
    """After n updates without ramp the average is decay^n p_0 + (1 - decay) sum_k decay^(n-k) p_k."""
    decay, model = 0.9, make_net().double()
    ema = EMA(model, decay, ramp=False)
    history = [model[0].weight.detach().clone()]
    for _ in range(7):
        shake(model)
        ema.update(model)
        history.append(model[0].weight.detach().clone())
    expected = decay**7 * history[0] + (1 - decay) * sum(decay ** (7 - k) * history[k] for k in range(1, 8))
    torch.testing.assert_close(ema.model[0].weight.data, expected)  # float64: rounding only


def test_a_wrapped_layer_and_replaced_buffers_are_followed():
    """As with a compiled network (a wrapper without buffers), and after a move that makes new buffers."""
    model = make_net()
    ema = EMA(model, 0.5)
    model[1] = nn.Sequential(model[1])
    for _ in range(2):
        shake(model)
        model(torch.randn(8, 3))
        ema.update(model)
        assert torch.equal(ema.model[1].running_mean, model[1][0].running_mean)
        model[1][0].running_mean = model[1][0].running_mean.clone()


def test_buffers_are_copied_and_the_copy_is_frozen():
    model = make_net()
    ema = EMA(model, 0.999)
    model(torch.randn(8, 3))  # moves the running statistics
    ema.update(model)
    assert torch.equal(ema.model[1].running_mean, model[1].running_mean)
    assert torch.equal(ema.model[1].num_batches_tracked, model[1].num_batches_tracked)
    assert not ema.model.training and not any(p.requires_grad for p in ema.model.parameters())
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_state_continues_the_ramp():
    model = make_net()
    one, other = EMA(model, 0.9999), EMA(make_net(), 0.9999)
    for _ in range(3):
        shake(model)
        one.update(model)
    other.load_state_dict(one.state_dict())
    shake(model)
    one.update(model)
    other.update(model)
    assert other.num_updates == 4
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters()))


def test_the_ramp_and_the_decay_that_ends_it():
    """From 0 towards 1 the distance to 1 shrinks by d_n: 2/11, 3/12, 4/13, ..., never above `decay`."""
    model, decay = Row(torch.zeros((), dtype=torch.float64)), 0.3
    ema = EMA(model, decay)
    model.w.data.fill_(1.0)
    for expected in (2 / 11, 3 / 12, 0.3, 0.3):
        before = 1.0 - ema.model.w.item()
        ema.update(model)
        assert (1.0 - ema.model.w.item()) / before == pytest.approx(expected, rel=1e-12)


def test_another_model_may_take_over():
    first, second = make_net(), make_net()
    ema = EMA(first, 0.0)
    ema.update(first)
    shake(second)
    ema.update(second)
    assert all(torch.equal(a, b) for a, b in zip(ema.model.parameters(), second.parameters()))


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_decay_out_of_range(decay):
    with pytest.raises(ValueError, match="EMA.decay=...."):
        EMA(make_net(), decay)
