"""Conditions from the data to the network: in training, sampling and likelihoods, and what is said where they miss."""

import pytest
import torch
from torch import nn

import sde_score
from sde_score.config import load_config
from sde_score.models import MODELS


class Told(nn.Module):
    """A network that is told what the data have; it notes what it was given."""

    seen: list = []

    def __init__(self, shape, conditions, num_classes=None):
        super().__init__()
        self.conditions, self.num_classes = conditions, num_classes
        self.net = nn.Linear(shape[0] + 2, shape[0])
        self.class_table = nn.Embedding((num_classes or 0) + 1, 1)

    def forward(self, x, c_noise, angle, y=None):
        Told.seen.append((x.detach().clone(), angle.detach().clone(), y))
        y = x.new_zeros(len(x), 1) if y is None else self.class_table(y)
        return self.net(torch.cat([x, angle, y], 1))

    def no_condition(self, cond):
        none = {"angle": torch.full_like(cond["angle"], -100.0)}
        return none | ({"y": torch.full_like(cond["y"], self.num_classes)} if "y" in cond else {})


@pytest.fixture
def start(toy_config, tmp_path, fresh_registries):
    MODELS.register("told")(Told)
    Told.seen = []
    config = load_config(str(toy_config))
    config.model.name = "told"
    config.model.parameterization = "eps(c_noise='t')"

    def train(x, cond, **sections):
        return sde_score.train(config, workdir=tmp_path / "run", data=(x, cond), **sections)

    return train


def numbers():
    """200 points whose angle and class can be told from them."""
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    return x, {"angle": torch.atan2(x[:, 1], x[:, 0]), "y": (x[:, 0] > 0).long()}


def test_the_network_is_told_what_it_asks_for(start, tmp_path):
    x, cond = numbers()
    run = start(x, cond, model={"class_conditional": True, "conditions": ("angle",)}, training={"n_iters": 4})
    assert run.model.network.num_classes == 2 and run.info.conditions["angle"].kind == "vector"
    assert set(run.model.network.conditions) == {"y", "angle"}
    angles = torch.cat([angle for _, angle, _ in Told.seen[:4]])
    assert angles.shape == (4 * 32, 1) and torch.isin(angles[:, 0], cond["angle"]).all()

    Told.seen = []
    wanted = {"angle": torch.tensor([0.5, -0.5, 1.0]), "y": torch.tensor([1, 0])}
    samples = run.sample(7, condition=wanted)
    assert samples.cond["angle"][:, 0].tolist() == [0.5, -0.5, 1.0, 0.5, -0.5, 1.0, 0.5]
    assert samples.labels.tolist() == [1, 0, 1, 0, 1, 0, 1]
    for _, angle, y in Told.seen:
        assert torch.equal(angle, samples.cond["angle"]) and torch.equal(y, samples.labels)
    assert not torch.equal(run.sample(7, condition=wanted | {"angle": torch.zeros(1)}).x, samples.x)
    with pytest.raises(ValueError, match="not told 'angel'.*'angle'"):
        run.sample(3, condition={"angel": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"'angle' must hold real numbers"):
        run.sample(3, condition={"angle": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="from 0 to 2; they run from 0 to 1"):
        run.sample(3, condition={"y": torch.tensor([0, 2])})

    Told.seen = []
    held_out = run.data.test[range(20)]
    assert torch.equal(run.sample(20).cond["angle"], held_out.cond["angle"]), "by default those of the test data"
    Told.seen = []
    run.likelihood(num=20)
    sizes = [len(angle) for _, angle, _ in Told.seen]
    assert set(sizes) == {16, 4}
    assert torch.equal(next(angle for _, angle, _ in Told.seen if len(angle) == 4), held_out.cond["angle"][16:])

    again = sde_score.load(tmp_path / "run")  # without the data: what it shall be told must be said
    assert torch.equal(again.sample(7, condition=wanted).x, samples.x)
    with pytest.raises(ValueError, match="data given in Python"):
        again.sample(2)
    with pytest.raises(ValueError, match="a condition 'y' that is .*; these data have none of that name"):
        sde_score.load(tmp_path / "run", data=(x, {"angle": cond["angle"]}))


def test_a_share_is_trained_without_conditions(start):
    x, cond = numbers()
    start(x, cond, model={"conditions": ("angle",)}, training={"n_iters": 20, "condition_dropout": 0.25})
    angles = torch.cat([angle for _, angle, _ in Told.seen[:20] if len(angle) == 32])
    share = float((angles == -100.0).float().mean())
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / angles.numel()) ** 0.5


@pytest.mark.parametrize(
    "model, training, words",
    [
        ({"conditions": ("angel",)}, {}, "config.model.conditions: .*no condition 'angel'.*'angle'"),
        ({"name": "mlp(width=8)"}, {"condition_dropout": 0.1}, "config.training.condition_dropout: .*"),
        ({"name": "mlp(width=8)", "conditions": ("angle",)}, {}, r"MLP cannot be told 'angle'.*takes: y\)"),
        (
            {"name": "mlp(width=8)", "conditions": ()},
            {"condition_dropout": 1.5},
            "config.training.condition_dropout=1.5 .*below 1",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_training(start, tmp_path, model, training, words):
    x, cond = numbers()
    with pytest.raises(ValueError, match=words):
        start(x, cond, model=model, training=training)
    assert not (tmp_path / "run" / "checkpoints").exists()
