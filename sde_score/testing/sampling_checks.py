"""Conformance checks of predictors and correctors, in the manner of `sde_score.testing.checks`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sde_score.sdes.linear import LinearSDE
from sde_score.testing.checks import SIGMAS, CheckResult, _name, _require, _run
from sde_score.testing.probes import Noise as _Noise
from sde_score.testing.probes import diagonal_shape as _diagonal_shape
from sde_score.testing.probes import shapes_of as _shapes
from sde_score.testing.problems import Gaussian


def _law_of(sde: LinearSDE) -> Gaussian:
    return Gaussian(torch.full(_diagonal_shape(sde) or (2,), 0.4, dtype=torch.float64), 0.25)


def _moments(x: Tensor, law: Gaussian, sde: LinearSDE, t: float) -> tuple[Tensor, Tensor]:
    """Error of the mean, and ratio of the standard deviation to the truth, at time `t`; both for each dimension."""
    time = torch.full((1,), t, dtype=torch.float64)
    m, std = sde.marginal_prob(torch.ones((1, *law.shape), dtype=torch.float64), time)
    want = (m**2 * law.variances.reshape(law.shape) + std**2).sqrt()[0]
    return (x.mean(0) - (m * law.means[0])[0]) / want, x.std(0) / want


def check_predictor(
    predictor, *, steps: int = 300, samples: int = 2000, tolerance: float = 0.05, skip: dict[str, str] | None = None
) -> list[CheckResult]:
    """Check a predictor of a linear SDE: shapes, independence within the batch, no step in no time, and that it
    recovers a Gaussian.

    Args:
        predictor: an instance, with its `sde`.
        steps: steps from T to t_min, even in log-SNR.
        samples: paths.
        tolerance: allowance for the discretisation, relative; the statistical one (5 standard errors) comes on top.
        skip: names of checks to leave out, with the reason.
    """
    checks = [
        partial(check_predictor_shapes, predictor),
        partial(check_predictor_independence, predictor),
        partial(check_predictor_no_time, predictor),
        partial(check_predictor_recovers_gaussian, predictor, steps=steps, samples=samples, tolerance=tolerance),
    ]
    return _run(iter(checks), _name(predictor), skip)


def check_predictor_shapes(predictor) -> None:
    """`step` returns two finite tensors of the shape and dtype of x, for samples of one to four axes."""
    sde = predictor.sde
    for shape in _shapes(sde):
        x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
        t = torch.full((3,), 0.6 * sde.T)
        for name, value in zip(("x", "x_mean"), predictor.step(lambda x, t: -x, x, t, 0.98 * t, _Noise(0))):
            _require(value.shape == x.shape, f"{name} has shape {tuple(value.shape)} for x of shape {tuple(x.shape)}.")
            _require(value.dtype == x.dtype, f"{name} has dtype {value.dtype} for float32 data.")
            _require(torch.isfinite(value).all(), f"{name} is not finite.")


def _single(noise: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: noise.clone()


def check_predictor_independence(predictor) -> None:
    """A sample's step does not change when its companions do, at a time of its own."""
    sde = predictor.sde
    law = _law_of(sde)
    score = law.score_fn(sde)
    generator = torch.Generator().manual_seed(4)
    x, z = (torch.randn(4, *law.shape, dtype=torch.float64, generator=generator) for _ in range(2))
    t = torch.tensor([0.3, 0.5, 0.7, 0.9], dtype=torch.float64) * sde.T
    whole = predictor.step(score, x, t, 0.95 * t, _single(z))[0]
    alone = predictor.step(score, x[2:3], t[2:3], 0.95 * t[2:3], _single(z[2:3]))[0]
    gap = float((whole[2:3] - alone).abs().max())
    _require(
        gap < 1e-9 * (1 + float(alone.abs().max())), f"a sample's step depends on the rest of its batch (by {gap:.2g})."
    )


def check_predictor_no_time(predictor) -> None:
    """From t to t nothing happens."""
    sde = predictor.sde
    law = _law_of(sde)
    x = torch.randn(4, *law.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    t = torch.full((4,), 0.5 * sde.T, dtype=torch.float64)
    gap = float((predictor.step(law.score_fn(sde), x, t, t, _Noise(0))[0] - x).abs().max())
    _require(gap < 1e-5, f"a step from t to t moves x by {gap:.2g}: the step size does not come from t_next − t.")


def _log_snr_grid(sde: LinearSDE, steps: int) -> list[float]:
    ends = torch.tensor([sde.T, sde.t_min], dtype=torch.float64)
    lam = sde.log_snr(ends)
    if lam.ndim > 1:  # diagonal: no single log-SNR; even in log t
        return torch.logspace(math.log10(sde.T), math.log10(sde.t_min), steps + 1, dtype=torch.float64).tolist()
    times = sde.time_of_log_snr(torch.linspace(float(lam[0]), float(lam[1]), steps + 1, dtype=torch.float64))
    return [sde.T, *times[1:-1].tolist(), sde.t_min]


def check_predictor_recovers_gaussian(
    predictor, *, steps: int = 300, samples: int = 2000, tolerance: float = 0.05
) -> None:
    """From the prior, with an exact score, the predictor arrives at the Gaussian data law."""
    sde = predictor.sde
    law = _law_of(sde)
    score, noise = law.score_fn(sde), _Noise(6)
    times = _log_snr_grid(sde, steps)
    x = sde.prior_sampling((samples, *law.shape), noise=noise, dtype=torch.float64)
    for t, t_next in zip(times, times[1:]):
        x, _ = predictor.step(score, x, *(torch.full((samples,), v, dtype=torch.float64) for v in (t, t_next)), noise)
        _require(torch.isfinite(x).all(), f"the state is not finite after the step from t={t:.4g}.")
    mean, ratio = _moments(x, law, sde, times[-1])
    _require(
        ((ratio - 1).abs() < SIGMAS / (2 * samples) ** 0.5 + tolerance).all(),
        f"with an exact score the predictor gives {float(ratio.mean()):.4g} times the standard deviation of the data: "
        "a missing factor 2 in its drift or noise, or √dt forgotten.",
    )
    _require(
        (mean.abs() < SIGMAS / samples**0.5 + tolerance).all(),
        f"with an exact score the predictor misses the mean by {float(mean.abs().max()):.3g} standard deviations: "
        "wrong sign?",
    )


def check_corrector(
    corrector, *, samples: int = 2000, tolerance: float = 0.1, skip: dict[str, str] | None = None
) -> list[CheckResult]:
    """Check a corrector of a linear SDE: shapes, the declared independence, that it leaves p_t in place and leads
    back to it.

    Args:
        corrector: an instance, with its `sde`.
        samples: states.
        tolerance: allowance for the bias of a finite step, relative.
        skip: names of checks to leave out, with the reason.
    """
    checks = [
        partial(check_corrector_shapes, corrector),
        partial(check_corrector_independence, corrector),
        partial(check_corrector_keeps_law, corrector, samples=samples, tolerance=tolerance),
        partial(check_corrector_restores_law, corrector, samples=samples, tolerance=tolerance),
    ]
    return _run(iter(checks), _name(corrector), skip)


def check_corrector_shapes(corrector) -> None:
    """`step` returns two finite tensors of the shape and dtype of x."""
    sde = corrector.sde
    for shape in _shapes(sde):
        x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
        for name, value in zip(
            ("x", "x_mean"), corrector.step(lambda x, t: -x, x, torch.full((3,), 0.6 * sde.T), _Noise(0))
        ):
            _require(
                value.shape == x.shape and value.dtype == x.dtype,
                f"{name} is {value.dtype} of shape {tuple(value.shape)} for float32 {tuple(x.shape)}.",
            )
            _require(torch.isfinite(value).all(), f"{name} is not finite.")


def check_corrector_independence(corrector) -> None:
    """`batch_coupled` tells the truth."""
    sde = corrector.sde
    law = _law_of(sde)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(4, *law.shape, dtype=torch.float64, generator=generator)
    t = torch.full((4,), 0.5 * sde.T, dtype=torch.float64)
    changed = x.clone()
    changed[0] *= 5
    first, second = (corrector.step(law.score_fn(sde), state, t, _Noise(7))[0] for state in (x, changed))
    gap = float((first[1:] - second[1:]).abs().max())
    _require(
        gap < 1e-9 or corrector.batch_coupled,
        f"changing one sample changed another by {gap:.2g}, yet batch_coupled is False. Declare it.",
    )


def _correct(corrector, x: Tensor, law: Gaussian, t: float, steps: int) -> Tensor:
    score, noise, time = law.score_fn(corrector.sde), _Noise(8), torch.full((len(x),), t, dtype=torch.float64)
    for _ in range(steps):
        x = corrector.step(score, x, time, noise)[0]
    return x


def check_corrector_keeps_law(corrector, *, samples: int = 2000, tolerance: float = 0.1) -> None:
    """States drawn from p_t are still distributed as p_t after 30 steps."""
    sde, t = corrector.sde, 0.5 * corrector.sde.T
    law = _law_of(sde)
    x = law.sample_t(sde, samples, t, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    mean, ratio = _moments(_correct(corrector, x, law, t, 30), law, sde, t)
    _require(
        ((ratio - 1).abs() < SIGMAS / (2 * samples) ** 0.5 + tolerance).all(),
        f"p_t is not left in place: the standard deviation becomes {float(ratio.mean()):.4g} times the true one. Noise "
        "√(2e) belongs to the step e s.",
    )
    _require(
        (mean.abs() < SIGMAS / samples**0.5 + tolerance).all(),
        f"p_t is not left in place: the mean moves by {float(mean.abs().max()):.3g} standard deviations.",
    )


def check_corrector_restores_law(corrector, *, samples: int = 2000, tolerance: float = 0.1) -> None:
    """States that are spread too wide come nearer to p_t."""
    sde, t = corrector.sde, 0.5 * corrector.sde.T
    law = _law_of(sde)
    x = law.sample_t(sde, samples, t, generator=torch.Generator().manual_seed(10), dtype=torch.float64)
    _, before = _moments(1.5 * x, law, sde, t)
    _, after = _moments(_correct(corrector, 1.5 * x, law, t, 60), law, sde, t)
    _require(
        ((after - 1).abs() < 0.5 * (before - 1).abs() + tolerance).all(),
        f"states 1.5 times too wide do not come back to p_t: the ratio goes from {float(before.mean()):.3g} to "
        f"{float(after.mean()):.3g}. Wrong sign of the score?",
    )
