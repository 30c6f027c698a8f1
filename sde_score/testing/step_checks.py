"""What predictors and correctors have in common, as checks: a step is a function of its arguments and of its noise.

A step is looked at as `step(score_fn, x, t, noise) -> (x, x_mean)`; a predictor's goes to `0.95 t`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from sde_score.protocols import NoiseFn, ScoreFn
from sde_score.sdes.base import SDE
from sde_score.tensors import SampleNoise
from sde_score.testing.checks import _require
from sde_score.testing.probes import (
    Noise,
    Shape,
    diagonal_shape,
    require_device,
    require_untouched,
    shapes_of,
    times_like,
)

Step = Callable[[ScoreFn, Tensor, Tensor, NoiseFn], tuple[Tensor, Tensor]]


class ExactScore:
    """The score of data N(mean, var) under any SDE that knows the law of x_t given x_0; gives ε and the posterior mean
    as well."""

    def __init__(self, sde: SDE, mean: float = 0.4, var: float = 0.25) -> None:
        self.sde, self.mean, self.var = sde, mean, var
        self.calls = 0

    def law(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x_t, of the shape of x."""
        offset, std = self.sde.marginal_prob(torch.zeros_like(x), t)
        slope = self.sde.marginal_prob(torch.ones_like(x), t)[0] - offset
        return offset + slope * self.mean, torch.sqrt(slope**2 * self.var + std**2).expand_as(x)

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        self.calls += 1
        mean, std = self.law(x, t)
        return -(x - mean) / std**2

    def eps(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        return -self.sde.marginal_prob(x, t)[1] * self(x, t)

    def denoise(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        return self.sde.denoise(self, x, t)

    def predict(self, x: Tensor, t: Tensor, **cond: Tensor) -> SimpleNamespace:
        score = self(x, t)
        eps = -self.sde.marginal_prob(x, t)[1] * score
        return SimpleNamespace(score=score, eps=eps, x0=self.sde.denoise(lambda x, t: score, x, t))

    def draw(self, x: Tensor, t: Tensor, noise: NoiseFn) -> Tensor:
        """x_t, of the shape of x."""
        mean, std = self.law(x, t)
        return mean + std * noise(x)

    def errors(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Error of the mean in standard deviations, and ratio of the standard deviation to the truth, for each
        dimension."""
        mean, std = (c[0] for c in self.law(x, t))
        return (x.mean(0) - mean) / std, x.std(0) / std


def sample_shape(sde: SDE) -> Shape:
    """The shape of samples that laws are looked at with."""
    return diagonal_shape(sde) or (2,)


def check_step_shapes(step: Step, sde: SDE) -> None:
    """Two finite tensors of the shape and dtype of x, for samples of one to four axes."""
    for shape in shapes_of(sde):
        for dtype in (torch.float32, torch.float64):
            x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
            t = torch.full((3,), 0.6 * sde.T, dtype=dtype)
            for name, value in zip(("x", "x_mean"), step(ExactScore(sde), x, t, Noise(0))):
                _require(
                    value.shape == x.shape, f"{name} has shape {tuple(value.shape)} for x of shape {tuple(x.shape)}."
                )
                _require(value.dtype == dtype, f"{name} has dtype {value.dtype} for data of {dtype}.")
                _require(torch.isfinite(value).all(), f"{name} is not finite.")


def check_step_arguments(step: Step, sde: SDE) -> None:
    """x and t are the caller's."""
    x = torch.randn(3, *sample_shape(sde), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    require_untouched("step", lambda x, t: step(ExactScore(sde), x, t, Noise(0)), x, times_like(sde, 3))


def check_step_device(step: Step, sde: SDE) -> None:
    """No constant is pinned to the CPU."""
    require_device(
        "step",
        lambda x, t: step(lambda x, t, **cond: -x, x, t, torch.randn_like),
        (3, *sample_shape(sde)),
        (3,),
        waits=True,
    )


def check_step_noise(step: Step, sde: SDE) -> None:
    """All randomness comes from `noise`, drawn for each sample and each dimension; with no noise x is x_mean, and
    x_mean has none in it."""
    shape = sample_shape(sde)
    x = torch.full((8, *shape), 0.7, dtype=torch.float64)
    t = torch.full((8,), 0.6 * sde.T, dtype=torch.float64)
    score = ExactScore(sde)
    first, again, other = (step(score, x.clone(), t, Noise(seed)) for seed in (1, 1, 2))
    gap = float((first[0] - again[0]).abs().max())
    _require(
        gap == 0,
        f"a step repeated with the same arguments and the same noise gives another result (by {gap:.2g}): it draws "
        "from elsewhere than its argument noise, or keeps a state of its own between calls.",
    )
    still, still_mean = step(score, x.clone(), t, torch.zeros_like)
    gap = float((still - still_mean).abs().max())
    _require(
        gap < 1e-12 * (1 + float(still.abs().max())),
        f"where noise draws zeros, x and x_mean must be equal, and differ by {gap:.2g}: x_mean is the new state before "
        "its (last) noise is added, not the old state.",
    )
    if torch.equal(first[0], other[0]):  # no noise at all, as with eta = 0
        return
    _require(
        not torch.equal(first[0], first[1]),
        "x_mean equals x although noise was added: x_mean is the new state before its noise, which the last step of "
        "sampling returns.",
    )
    moved = first[0].reshape(8, -1)
    _require(
        float(moved.std(0).min()) > 0,
        "equal samples stay equal: one draw of noise is shared by the whole batch. Draw noise(x), of the shape of x.",
    )
    _require(
        moved.shape[1] == 1 or diagonal_shape(sde) != () or float(moved.std(1).min()) > 0,
        "equal dimensions stay equal: one draw of noise is shared by all of them. Draw noise(x), of the shape of x.",
    )


def check_step_times(step: Step, sde: SDE, part: float) -> None:
    """The score is asked at times from `part` t to t."""
    exact, asked = ExactScore(sde), []

    class Listening(ExactScore):
        def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
            asked.append(t / (0.6 * float(sde.T)))
            return exact(x, t)

    x = torch.ones(3, *sample_shape(sde), dtype=torch.float64)
    step(Listening(sde), x, torch.full((3,), 0.6 * float(sde.T), dtype=torch.float64), Noise(0))
    if asked:
        times = torch.cat(asked)
        low, high = float(times.min()), float(times.max())
        _require(
            low > part - 1e-6 and high < 1 + 1e-6,
            f"the score is asked at times from {low:.4g} t to {high:.4g} t; a step from t to {part:g} t may ask "
            "between its ends only.",
        )


def check_step_remembers_nothing(step: Step, sde: SDE) -> None:
    """The object keeps no state from call to call: one object serves many runs."""
    shape, score = sample_shape(sde), ExactScore(sde)
    x, y = (torch.randn(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (4, 5))
    t = torch.full((4,), 0.6 * sde.T, dtype=torch.float64)
    first = step(score, x.clone(), t, Noise(6))[0]
    step(score, y.clone(), 0.5 * t, Noise(7))
    gap = float((step(score, x.clone(), t, Noise(6))[0] - first).abs().max())
    _require(
        gap == 0,
        f"the same step gives another result after a step elsewhere (by {gap:.2g}): the object keeps a state, which "
        "would leak from one run into the next.",
    )


def check_step_independence(step: Step, sde: SDE, *, coupled: bool = False, same_time: bool = False) -> None:
    """A sample's step does not change with its companions, at a time of its own, unless `batch_coupled` says so."""
    score = ExactScore(sde)
    x = torch.randn(4, *sample_shape(sde), dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    t = torch.full((4,), 0.6 * sde.T, dtype=torch.float64) if same_time else times_like(sde, 4)
    whole = step(score, x.clone(), t, SampleNoise(0, range(4)))[0]
    alone = torch.cat([step(score, x[i : i + 1].clone(), t[i : i + 1], SampleNoise(0, [i]))[0] for i in range(4)])
    gap = float((whole - alone).abs().max())
    _require(
        coupled or gap < 1e-9 * (1 + float(alone.abs().max())),
        f"a sample's step depends on the rest of its batch (by {gap:.2g}), yet batch_coupled is not True. Declare it, "
        "or use x, t and noise of the sample alone.",
    )
