"""Conformance checks of predictors, in the manner of `sde_score.testing.checks`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sde_score.protocols import NoiseFn
from sde_score.sdes.base import SDE
from sde_score.testing.checks import SIGMAS, Check, CheckResult, _name, _require, _run
from sde_score.testing.probes import Noise
from sde_score.testing.step_checks import (
    ExactScore,
    check_step_arguments,
    check_step_device,
    check_step_independence,
    check_step_noise,
    check_step_remembers_nothing,
    check_step_shapes,
    check_step_times,
    sample_shape,
)

Advance = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def check_predictor(
    predictor, *, steps: int = 300, samples: int = 2000, tolerance: float = 0.05, skip: dict[str, str] | None = None
) -> list[CheckResult]:
    """Check a predictor: shapes, devices, noise, x_mean, independence within the batch, no step in no time, and that it
    recovers a Gaussian.

    Args:
        predictor: an instance, with its `sde`, which must know the law of x_t given x_0.
        steps: steps from T to t_min, even in log-SNR.
        samples: paths.
        tolerance: allowance for the discretisation, relative; the statistical one (5 standard errors) comes on top.
        skip: names of checks to leave out, with the reason.
    """
    checks = predictor_checks(predictor, steps=steps, samples=samples, tolerance=tolerance)
    return _run(iter(checks), _name(predictor), skip)


def predictor_checks(predictor, *, steps: int = 300, samples: int = 2000, tolerance: float = 0.05) -> list[Check]:
    """The checks of a predictor, each callable without arguments."""
    checks = [
        check_predictor_shapes, check_predictor_arguments, check_predictor_noise, check_predictor_device,
        check_predictor_memory, check_predictor_times, check_predictor_independence, check_predictor_no_time,
        check_predictor_to_zero, check_predictor_recovers_gaussian,
    ]  # fmt: skip
    settings = {"steps": steps, "samples": samples, "tolerance": tolerance}
    return [partial(c, predictor, **(settings if c is check_predictor_recovers_gaussian else {})) for c in checks]


def begin(predictor, score: ExactScore, grid: Tensor, noise: NoiseFn) -> Advance:
    """A run over `grid`, `(N, 2)` times: by `start` where the predictor has it (multistep predictors), else step by
    step."""
    if hasattr(predictor, "start"):
        return predictor.start(score, grid, noise)

    def advance(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return predictor.step(score, x, *(time.expand(len(x)) for time in grid[k]), noise)

    return advance


def steps_alone(predictor) -> bool:
    """Has it a step of its own, at a time for each sample? A multistep predictor has not."""
    sde = predictor.sde
    x = torch.zeros(1, *sample_shape(sde), dtype=torch.float64)
    t = torch.full((1,), 0.6 * sde.T, dtype=torch.float64)
    try:
        copy.deepcopy(predictor).step(ExactScore(sde), x, t, 0.95 * t, Noise(0))
    except (NotImplementedError, AttributeError) as error:
        if hasattr(predictor, "start"):
            return False
        raise error
    return True


def one_step(predictor, score, x: Tensor, t: Tensor, t_next: Tensor, noise: NoiseFn) -> tuple[Tensor, Tensor]:
    """One step; for a multistep predictor the first of a run, at the time of the first sample."""
    if steps_alone(predictor):
        return predictor.step(score, x, t, t_next, noise)
    return begin(predictor, score, torch.stack([t[0], t_next[0]])[None], noise)(x, 0)


def check_predictor_times(predictor) -> None:
    """The score is asked at times from t_next to t only: beyond them a process may not be defined."""
    check_step_times(_as_step(predictor), predictor.sde, 0.95)


def _as_step(predictor):
    return lambda score, x, t, noise: one_step(predictor, score, x, t, 0.95 * t, noise)


def check_predictor_shapes(predictor) -> None:
    """A step returns two finite tensors of the shape and dtype of x, for samples of one to four axes."""
    check_step_shapes(_as_step(predictor), predictor.sde)


def check_predictor_arguments(predictor) -> None:
    """A step leaves its arguments alone."""
    check_step_arguments(_as_step(predictor), predictor.sde)


def check_predictor_noise(predictor) -> None:
    """All randomness comes from `noise`; x_mean is the new state without it."""
    check_step_noise(_as_step(predictor), predictor.sde)


def check_predictor_device(predictor) -> None:
    """No constant is pinned to the CPU."""
    check_step_device(_as_step(predictor), predictor.sde)


def check_predictor_memory(predictor) -> None:
    """Nothing of a run stays on the object."""
    check_step_remembers_nothing(_as_step(predictor), predictor.sde)


def check_predictor_independence(predictor) -> None:
    """A sample's step does not change when its companions do."""
    coupled = getattr(predictor, "batch_coupled", False)
    alone = steps_alone(predictor)
    check_step_independence(_as_step(predictor), predictor.sde, coupled=coupled, same_time=not alone)


def check_predictor_no_time(predictor) -> None:
    """From t to t nothing happens."""
    sde = predictor.sde
    x = torch.randn(4, *sample_shape(sde), dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    t = torch.full((4,), 0.5 * sde.T, dtype=torch.float64)
    gap = float((one_step(predictor, ExactScore(sde), x, t, t, Noise(0))[0] - x).abs().max())
    _require(gap < 1e-5, f"a step from t to t moves x by {gap:.2g}: the step size does not come from t_next − t.")


def check_predictor_to_zero(predictor) -> None:
    """The last step, from t_min to t = 0, gives finite numbers: a sampler may end with it."""
    sde = predictor.sde
    if float(sde.t_min) <= 0:
        return
    x = torch.randn(4, *sample_shape(sde), dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    t = torch.full((4,), float(sde.t_min), dtype=torch.float64)
    for name, value in zip(("x", "x_mean"), one_step(predictor, ExactScore(sde), x, t, 0 * t, Noise(0))):
        _require(
            torch.isfinite(value).all(),
            f"{name} of a step from t_min to t = 0 is not finite: something is divided by the std at t_next, which is "
            "0 there.",
        )


def _log_snr_grid(sde: SDE, steps: int) -> list[float]:
    """Times from T to t_min, even in log-SNR, or in log t where there is no single log-SNR."""
    T, t_min = float(sde.T), max(float(sde.t_min), 1e-6 * float(sde.T))
    lam = None
    try:
        lam = sde.log_snr(torch.tensor([T, t_min], dtype=torch.float64))
        inner = torch.linspace(float(lam[0]), float(lam[1]), steps + 1, dtype=torch.float64)
        times = sde.time_of_log_snr(inner)[1:-1]
    except (NotImplementedError, AttributeError):
        lam = None
    if lam is None or sample_shape(sde) != (2,):
        times = torch.logspace(math.log10(T), math.log10(t_min), steps + 1, dtype=torch.float64)[1:-1]
    return [T, *times.tolist(), t_min]


def _arrival(predictor, steps: int, samples: int) -> tuple[Tensor, Tensor]:
    """Error of the mean and ratio of the standard deviation where a run from the prior arrives."""
    sde = predictor.sde
    score, noise = ExactScore(sde), Noise(6)
    times = torch.tensor(_log_snr_grid(sde, steps), dtype=torch.float64)
    grid = torch.stack([times[:-1], times[1:]], dim=1)
    x = sde.prior_sampling((samples, *sample_shape(sde)), noise=noise, dtype=torch.float64)
    advance = begin(predictor, score, grid, noise)
    for k in range(len(grid)):
        x, _ = advance(x, k)
        _require(torch.isfinite(x).all(), f"the state is not finite after the step from t={float(times[k]):.4g}.")
    return score.errors(x, torch.full((samples,), float(times[-1]), dtype=torch.float64))


def check_predictor_recovers_gaussian(
    predictor, *, steps: int = 300, samples: int = 2000, tolerance: float = 0.05
) -> None:
    """From the prior, with an exact score, the predictor arrives at the Gaussian data law; or, with four times as many
    steps, at less than half the distance: a coarse rule is not a wrong one."""
    mean, ratio = _arrival(predictor, steps, samples)
    excess = ((ratio - 1).abs() - SIGMAS / (2 * samples) ** 0.5).max()
    excess_mean = (mean.abs() - SIGMAS / samples**0.5).max()
    if max(excess, excess_mean) < tolerance:
        return
    if max(excess, excess_mean) < 10 * tolerance:
        finer_mean, finer = _arrival(predictor, 4 * steps, samples)
        if ((finer - 1).abs() < 0.5 * (ratio - 1).abs() + tolerance).all() and (
            finer_mean.abs() < 0.5 * mean.abs() + tolerance
        ).all():
            return
    _require(
        excess < tolerance,
        f"with an exact score the predictor gives {float(ratio.mean()):.4g} times the standard deviation of the data: "
        "a missing factor 2 in its drift or noise, or √dt forgotten.",
    )
    _require(
        excess_mean < tolerance,
        f"with an exact score the predictor misses the mean by {float(mean.abs().max()):.3g} standard deviations: "
        "wrong sign?",
    )
