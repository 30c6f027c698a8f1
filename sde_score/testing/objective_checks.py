"""Conformance checks of training objectives, in the manner of `sde_score.testing.checks`."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from sde_score.tensors import expand_like
from sde_score.testing.checks import SIGMAS, Check, CheckFailed, CheckResult, _name, _require, _run
from sde_score.testing.probes import Noise, require_untouched
from sde_score.testing.step_checks import ExactScore, sample_shape

BINS = 4


def check_objective(objective, *, skip: dict[str, str] | None = None) -> list[CheckResult]:
    """Check a training objective: one loss per sample, noise, times, conditions, independence within the batch,
    gradient, and that the exact score of Gaussian data is its minimum at every noise level.

    Args:
        objective: an instance, with its `sde`, which must know the law of x_t given x_0; called as
            `objective(model, x0, noise=noise, **cond)`.
        skip: names of checks to leave out, with the reason.
    """
    return _run(iter(objective_checks(objective)), _name(objective), skip)


def objective_checks(objective) -> list[Check]:
    """The checks of an objective, each callable without arguments."""
    return [
        partial(check, objective)
        for check in (
            check_objective_shapes, check_objective_arguments, check_objective_noise, check_objective_independence,
            check_objective_conditions, check_objective_times, check_objective_gradient, check_objective_minimum,
        )
    ]  # fmt: skip


class Model(nn.Module):
    """The exact score of N(0.4, 0.25) and, in each of BINS parts of [0, T], an error `shift + tilt · y` of ε̂, with y
    the standardised state: what an objective is to drive to zero."""

    def __init__(self, objective) -> None:
        super().__init__()
        self.objective, self.sde = objective, objective.sde
        self.exact = ExactScore(self.sde)
        self.errors = nn.Parameter(torch.zeros(BINS, 2, dtype=torch.float64))
        self.times: list[Tensor] = []
        self.conditions: set[str] = set()

    def bin(self, t: Tensor) -> Tensor:
        return (t / float(self.sde.T) * BINS).long().clamp(0, BINS - 1)

    def eps(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        self.times.append(t.detach())
        self.conditions |= set(cond)
        mean, std = self.exact.law(x, t)
        errors = self.errors.to(x.dtype)[self.bin(t)]
        error = expand_like(errors[:, 0], x) + expand_like(errors[:, 1], x) * (x - mean) / std
        return self.sde.marginal_prob(x, t)[1] * (x - mean) / std**2 + error

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        return -self.eps(x, t, **cond) / self.sde.marginal_prob(x, t)[1]

    def eps_at_index(self, x: Tensor, index: Tensor, **cond: Tensor) -> Tensor:
        """For objectives on a discrete chain."""
        self.conditions |= set(cond)
        m, std = (expand_like(c.to(x), x) for c in self.objective.chain.marginal(index))
        total = (m**2 * self.exact.var + std**2).sqrt()
        y = (x - m * self.exact.mean) / total
        errors = self.errors.to(x.dtype)[self.bin((index + 0.5) / self.objective.chain.n * float(self.sde.T))]
        return std / total * y + expand_like(errors[:, 0], x) + expand_like(errors[:, 1], x) * y


def _data(objective, n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    z = torch.randn(n, *sample_shape(objective.sde), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (0.4 + 0.5 * z).to(dtype)


def check_objective_shapes(objective) -> None:
    """One finite loss per sample, of the dtype of the data."""
    for dtype in (torch.float32, torch.float64):
        for batch in (1, 5):
            loss = objective(Model(objective), _data(objective, batch, dtype=dtype), noise=Noise(1))
            _require(
                loss.shape == (batch,),
                f"the loss has shape {tuple(loss.shape)} for a batch of {batch}; it must be (B,), one number per "
                "sample: the trainer averages.",
            )
            _require(loss.dtype == dtype, f"the loss of {dtype} data is {loss.dtype}.")
            _require(torch.isfinite(loss).all(), "the loss is not finite.")


def check_objective_arguments(objective) -> None:
    """The data are the caller's."""
    require_untouched(
        "the objective", lambda x0: objective(Model(objective), x0, noise=Noise(1)), _data(objective, 4)
    )


def check_objective_noise(objective) -> None:
    """All randomness, that of the times too, comes from `noise`: validation and resuming rest on it."""
    x0 = _data(objective, 16)
    model = Model(objective)
    with torch.no_grad():
        model.errors.fill_(0.5)
        first, again, other = (objective(model, x0, noise=Noise(seed)) for seed in (1, 1, 2))
    _require(
        torch.equal(first, again) and not torch.equal(first, other),
        "the objective does not take its randomness from the argument noise (or not all of it): equal noise must give "
        "equal losses, other noise others. Draw noise(x0), and times with sde_score.tensors.draw_uniform(noise, ...).",
    )


def check_objective_independence(objective) -> None:
    """A sample's loss does not change when the data of another do."""
    x0 = _data(objective, 8)
    changed = x0.clone()
    changed[0] += 3.0
    model = Model(objective)
    with torch.no_grad():
        model.errors.fill_(0.5)
        first, second = (objective(model, x, noise=Noise(1)) for x in (x0, changed))
    gap = float((first[1:] - second[1:]).abs().max())
    _require(
        gap < 1e-9 * (1 + float(first.abs().max())) or getattr(objective, "batch_coupled", False),
        f"the loss of one sample changes with the rest of its batch (by {gap:.2g}): micro-batches and several "
        "processes would train something else. Average nothing over the batch.",
    )


def check_objective_conditions(objective) -> None:
    """What is given as `**cond` reaches the model."""
    model = Model(objective)
    objective(model, _data(objective, 4), noise=Noise(1), y=torch.zeros(4, dtype=torch.long))
    _require(
        "y" in model.conditions,
        "the objective drops its **cond: y=... does not reach the model. Write model.eps(x_t, t, **cond).",
    )


class _Ends(Noise):
    """Uniform numbers from 0, which `torch.rand` may give, almost to 1."""

    def uniform(self, x: Tensor) -> Tensor:
        return torch.linspace(0, 1 - 1e-7, x.numel(), dtype=x.dtype).reshape(x.shape)


def check_objective_times(objective) -> None:
    """The model is asked at times from t_min to T only."""
    model = Model(objective)
    objective(model, _data(objective, 1000), noise=_Ends(3))
    if not model.times:
        return
    times = torch.cat(model.times)
    low, high = float(times.min()), float(times.max())
    t_min = float(getattr(getattr(objective, "times", None), "t_min", objective.sde.t_min))
    slack = 1e-6 * float(objective.sde.T)
    _require(
        low >= t_min - 1e-3 * min(t_min, slack) - 1e-12 and high <= float(objective.sde.T) + slack,
        f"the model is asked at times from {low:.4g} to {high:.4g}, outside [t_min, T] = [{t_min:g}, "
        f"{float(objective.sde.T):g}].",
    )


def _losses(objective, model: Model, x0: Tensor, at: Tensor) -> Tensor:
    with torch.no_grad():
        model.errors.copy_(at)
    return objective(model, x0, noise=Noise(4)).detach()


def check_objective_gradient(objective) -> None:
    """The gradient in the model's weights is that of the loss."""
    x0, model = _data(objective, 200), Model(objective)
    at = torch.full((BINS, 2), 0.3, dtype=torch.float64)
    with torch.no_grad():
        model.errors.copy_(at)
    loss = objective(model, x0, noise=Noise(4)).sum()
    if not loss.requires_grad:
        raise CheckFailed(
            "the loss carries no gradient in the model's weights: use no detach() and no torch.no_grad() around it."
        )
    (got,) = torch.autograd.grad(loss, model.errors)
    h = 1e-4
    up, down = (_losses(objective, model, x0, at + s * h).sum() for s in (1, -1))
    want = float((up - down) / (2 * h))
    _require(
        abs(float(got.sum()) - want) < 1e-4 * (abs(want) + float(got.abs().max())),
        f"the gradient of the loss in the model's weights is {float(got.sum()):.5g}, and its derivative {want:.5g}: a "
        "part of the graph is detached.",
    )


def check_objective_minimum(objective, samples: int = 20_000) -> None:
    """At the exact score of Gaussian data the loss has its minimum, in each quarter of [0, T]: no slope in any
    direction (5 standard errors), and it rises both ways, so that weights are positive."""
    x0, model = _data(objective, samples, seed=5), Model(objective)
    zero = torch.zeros(BINS, 2, dtype=torch.float64)
    here = _losses(objective, model, x0, zero)
    for part in range(BINS):
        for column, kind in ((0, "a shift"), (1, "a stretch")):
            d = zero.clone()
            d[part, column] = 0.3
            up, down = (_losses(objective, model, x0, s * d) for s in (1, -1))
            touched = (up != here) | (down != here)
            if int(touched.sum()) < 100:  # hardly any times there, by the objective's own choice
                continue
            slope, rise = (up - down)[touched], (up + down - 2 * here)[touched]
            where = f"for t between {part / BINS:g} T and {(part + 1) / BINS:g} T"
            _require(
                float(rise.mean()) > 0,
                f"the exact score is a maximum of the loss {where}: negative weight, or the sign of the loss.",
            )
            gap = float(slope.mean().abs() - SIGMAS * slope.std() / len(slope) ** 0.5 - 1e-6 * rise.mean())
            _require(
                gap < 0,
                f"the exact score is not the minimum of the loss: {where} it falls with {kind} of ε̂, with slope "
                f"{float(slope.mean() / rise.mean()):.3g} (0 at a minimum; ±1 for one 0.15 away). Look at x_t = mean + "
                "std z, at the sign and scale of the target, and at the time the model is told.",
            )
