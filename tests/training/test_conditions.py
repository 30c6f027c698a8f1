"""Conditions on their way through the trainer, and the share of them that is dropped."""

import pytest
import torch
from torch import nn

from sde_score.tensors import SampleNoise, draw_uniform
from sde_score.training import Record, Schedule, StepSettings, Trainer, ValidationLoss
from sde_score.training.batch import Share


class Recorder(nn.Module):
    """A network told a class and an angle; it notes what it was given. Class 10 and the angle -1 mean none."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.seen = []

    def forward(self, x, t, y=None, angle=None):
        self.seen.append((x.detach().clone(), y, angle))
        return x * self.weight

    def no_condition(self, cond):
        return {"y": torch.full_like(cond["y"], 10), "angle": torch.full_like(cond["angle"], -1.0)}


def objective(model, x0, *, noise, **cond):
    t = draw_uniform(noise, x0[:, 0])
    return ((model(x0 + noise(x0), t, **cond) - x0) ** 2).sum(1)


def batch(step, size=50):
    """Sample p is p itself; its class and its angle tell it too."""
    positions = torch.arange(step * size, (step + 1) * size)
    x = positions[:, None].float().expand(-1, 2)
    return x, {"y": positions % 10, "angle": positions[:, None].float()}, positions


def train(net=None, data=batch, steps=4, loss=objective, seed=3, **settings):
    net = net or Recorder()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    record = Record(say=lambda message: None, progress=False)
    trainer = Trainer(
        net, None, loss, optimizer, data, Schedule(steps), seed=seed, step=StepSettings(**settings), record=record
    )
    trainer.run()
    x, y, angle = (torch.cat(column) for column in zip(*net.seen))
    return x, y, angle


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_conditions_stay_with_their_samples(micro_batches):
    _, y, angle = train(micro_batches=micro_batches)
    assert torch.equal(angle[:, 0], torch.arange(200.0)) and torch.equal(y, torch.arange(200) % 10)


def test_the_right_share_is_dropped_all_conditions_of_a_sample_together():
    """Binomial(4000, 0.3): five standard deviations, once in two million seeds."""
    _, y, angle = train(steps=80, condition_dropout=0.3)
    dropped = y == 10
    assert abs(int(dropped.sum()) - 1200) < 5 * (4000 * 0.3 * 0.7) ** 0.5
    assert torch.equal(dropped, angle[:, 0] == -1.0)
    kept = ~dropped
    numbers = torch.arange(4000)[kept]
    assert torch.equal(angle[kept, 0], numbers.float()) and torch.equal(y[kept], numbers % 10)
    # in each step anew: the k-th sample of a batch is not always the one that is dropped
    rates = dropped.view(80, 50).float().mean(0)
    assert rates.min() > 0 and rates.max() < 0.7


def test_who_is_dropped_depends_neither_on_micro_batches_nor_on_the_share_of_a_process():
    whole = train(condition_dropout=0.5)[1]
    assert torch.equal(train(condition_dropout=0.5, micro_batches=7)[1], whole)
    halves = []
    for part in (slice(0, 20), slice(20, 50)):

        def data(step, part=part):
            x, cond, positions = batch(step)
            return x[part], {name: values[part] for name, values in cond.items()}, positions[part]

        halves.append(train(data=data, condition_dropout=0.5)[1].view(4, -1))
    assert torch.equal(torch.cat(halves, 1).flatten(), whole)


def test_who_is_dropped_depends_on_seed_step_and_position():
    """Two choices of one half agree for about half of 200 samples: Binomial(200, 1/2), five standard deviations."""
    whole = train(condition_dropout=0.5)[1] == 10

    def agree(other):
        return abs(int((other == whole).sum()) - 100) < 5 * 50**0.5

    assert agree(train(condition_dropout=0.5, data=lambda step: batch(step + 9))[1] == 10)
    assert agree(train(condition_dropout=0.5, seed=4)[1] == 10)
    # the same positions in every step, as a user's own batches may have them
    again = train(condition_dropout=0.5, data=lambda step: (*batch(0)[:2], range(50)))[1].view(4, 50) == 10
    assert all(not torch.equal(again[0], other) for other in again[1:])


def test_dropping_leaves_the_noise_of_the_loss_alone():
    x = train()[0]
    assert torch.equal(train(condition_dropout=0.5)[0], x)


def test_a_larger_share_drops_more_of_the_same():
    less, more = (train(condition_dropout=rate)[1] == 10 for rate in (0.2, 0.6))
    assert (more | ~less).all() and less.sum() < more.sum()


def test_nothing_is_dropped_in_validation_or_at_zero():
    assert not (train(condition_dropout=0.0)[1] == 10).any()
    net = Recorder()
    x, cond, _ = batch(0)
    ValidationLoss(objective, [(x, cond)]).evaluate(net)
    assert torch.equal(net.seen[0][1], cond["y"])


def test_what_cannot_be_is_refused_at_the_start():
    class Plain(nn.Linear):
        pass

    with pytest.raises(ValueError, match=r"condition_dropout=0.1 needs .*Plain has no method `no_condition\(cond\)`"):
        train(net=Plain(2, 2), condition_dropout=0.1)
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match="share of the samples"):
            StepSettings(condition_dropout=rate)
    x, cond, positions = batch(0)
    for wrong in ({"y": cond["y"][:3]}, {"y": 5}, {"y": torch.tensor(1)}):
        with pytest.raises(ValueError, match=r"'y' must be a tensor with one entry per sample, shape \(50, \*\)"):
            Share.of(x, wrong, positions, torch.device("cpu"))


def test_a_share_knows_its_places():
    share = Share.of(*batch(2, size=7), torch.device("cpu"))
    parts = share.cut(3)
    assert [len(p) for p in parts] == [3, 3, 1] and [p.size for p in parts] == [7] * 3
    assert torch.equal(torch.cat([p.places for p in parts]), torch.arange(7))
    z = torch.cat([p.noise(5, 2)(p.x) for p in parts])
    assert torch.equal(z, SampleNoise((5, 2), range(14, 21))(share.x))
