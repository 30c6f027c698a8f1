"""The bins of validation by hand, and who loses a condition for a seed."""

import pytest
import torch

from sde_score.training import ValidationLoss
from sde_score.training.batch import Share

LEVELS = torch.tensor([-9.0, -6.5, -6.0, -4.0, -3.0, -1.0, 0.0, 2.0, 3.0, 5.0, 6.0, 8.0])


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, t):
        return self.w * x


def objective(model, x0, *, noise):
    """The loss of sample k is k², at the time that its first number says."""
    model(x0, x0[:, 0])
    return x0[:, 1] ** 2


def validation(**settings):
    x = torch.stack([LEVELS, torch.arange(12.0)], 1)
    return ValidationLoss(objective, [(x[:5], None), (x[5:], None)], log_snr=lambda t: t, **settings)


def test_bins_have_the_names_and_means_of_their_samples():
    """A level on an edge belongs to the bin below it."""
    values = validation().evaluate(Model())
    parts = {"<-6": [0, 1, 2], "-6..-3": [3, 4], "-3..0": [5, 6], "0..3": [7, 8], "3..6": [9, 10], ">6": [11]}
    exact = {f"val/loss/logsnr{name}": sum(k**2 for k in ks) / len(ks) for name, ks in parts.items()}
    assert values == pytest.approx({"val/loss": sum(k**2 for k in range(12)) / 12, **exact})


def test_bins_without_samples_are_not_told():
    values = validation(edges=(-100.0, 7.0, 9.0), repeats=2).evaluate(Model(), "x")
    assert list(values) == ["x/loss", "x/loss/logsnr-100..7", "x/loss/logsnr7..9"]
    assert values["x/loss/logsnr7..9"] == 121


def test_who_loses_a_condition_stays_who_it_was():
    """A run that a later version resumes drops the conditions of the same samples."""
    share = Share.of(torch.zeros(12, 2), torch.arange(12), range(100, 112), torch.device("cpu"))
    kept = share.without_some_conditions(0.5, 5, 7, lambda cond: {"y": torch.full_like(cond["y"], 99)})
    assert kept.cond["y"].tolist() == [0, 99, 99, 3, 4, 99, 99, 99, 8, 9, 10, 99]
