"""Conformance checks of correctors, in the manner of `sde_score.testing.checks`."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor

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

PARTS = (0.02, 0.15, 0.5, 0.95)
"""Where a corrector is looked at, in parts of T: a step size that is right in the middle may be wild at low noise."""


def check_corrector(
    corrector, *, samples: int = 2000, tolerance: float = 0.1, skip: dict[str, str] | None = None
) -> list[CheckResult]:
    """Check a corrector: shapes, devices, noise, x_mean, n_steps, the declared independence, that it leaves p_t in
    place and leads back to it, from low noise to high.

    Args:
        corrector: an instance, with its `sde`, which must know the law of x_t given x_0.
        samples: states.
        tolerance: allowance for the bias of a finite step, relative.
        skip: names of checks to leave out, with the reason.
    """
    return _run(iter(corrector_checks(corrector, samples=samples, tolerance=tolerance)), _name(corrector), skip)


def corrector_checks(corrector, *, samples: int = 2000, tolerance: float = 0.1) -> list[Check]:
    """The checks of a corrector, each callable without arguments."""
    plain = (
        check_corrector_shapes, check_corrector_arguments, check_corrector_noise, check_corrector_device,
        check_corrector_memory, check_corrector_times, check_corrector_n_steps, check_corrector_independence,
    )  # fmt: skip
    laws = (check_corrector_keeps_law, check_corrector_restores_law)
    settings = {"samples": samples, "tolerance": tolerance}
    return [*(partial(c, corrector) for c in plain), *(partial(c, corrector, **settings) for c in laws)]


def check_corrector_shapes(corrector) -> None:
    """`step` returns two finite tensors of the shape and dtype of x."""
    check_step_shapes(corrector.step, corrector.sde)


def check_corrector_arguments(corrector) -> None:
    """`step` leaves its arguments alone."""
    check_step_arguments(corrector.step, corrector.sde)


def check_corrector_noise(corrector) -> None:
    """All randomness comes from `noise`; x_mean is the new state without the last of it."""
    check_step_noise(corrector.step, corrector.sde)


def check_corrector_device(corrector) -> None:
    """No constant is pinned to the CPU."""
    check_step_device(corrector.step, corrector.sde)


def check_corrector_memory(corrector) -> None:
    """Nothing stays on the object from call to call."""
    check_step_remembers_nothing(corrector.step, corrector.sde)


def check_corrector_times(corrector) -> None:
    """The score is asked at t itself: another time has another law."""
    check_step_times(corrector.step, corrector.sde, 1.0)


def check_corrector_independence(corrector) -> None:
    """`batch_coupled` tells the truth."""
    check_step_independence(corrector.step, corrector.sde, coupled=corrector.batch_coupled)


def check_corrector_n_steps(corrector) -> None:
    """With `n_steps = 3` it evaluates the score and draws noise three times as often as with 1."""
    if not hasattr(corrector, "n_steps"):
        return
    sde = corrector.sde
    x = torch.ones(3, *sample_shape(sde), dtype=torch.float64)
    t = torch.full((3,), 0.5 * sde.T, dtype=torch.float64)
    counts = []
    for n in (1, 3):
        one = copy.copy(corrector)
        one.n_steps = n
        score, source, draws = ExactScore(sde), Noise(0), []
        one.step(score, x.clone(), t, lambda x, source=source, draws=draws: (draws.append(1), source(x))[1])
        counts.append((score.calls, len(draws)))
    (calls, draws), (calls3, draws3) = counts
    _require(
        calls3 == 3 * calls and draws3 == 3 * draws,
        f"n_steps is not the number of steps: for n_steps=1 and 3 the score is evaluated {calls} and {calls3} times, "
        f"and noise drawn {draws} and {draws3} times; each step needs its own.",
    )


def _correct(corrector, score: ExactScore, x: Tensor, t: Tensor, steps: int) -> Tensor:
    noise = Noise(8)
    for _ in range(steps):
        x = corrector.step(score, x, t, noise)[0]
    return x


def _times(sde: SDE, samples: int) -> list[Tensor]:
    low = max(10 * float(sde.t_min), 1e-4 * float(sde.T))
    return [torch.full((samples,), t, dtype=torch.float64) for t in (low, *(part * float(sde.T) for part in PARTS))]


def check_corrector_keeps_law(corrector, *, samples: int = 2000, tolerance: float = 0.1) -> None:
    """States drawn from p_t are still distributed as p_t after 30 steps, for spread-out data and for a single datum, at
    low and at high noise."""
    sde = corrector.sde
    for var in (0.25, 0.0):
        score = ExactScore(sde, var=var)
        for t in _times(sde, samples):
            x = score.draw(torch.zeros(samples, *sample_shape(sde), dtype=torch.float64), t, Noise(9))
            mean, ratio = score.errors(_correct(corrector, score, x, t, 30), t)
            where = f"p_t is not left in place at t={float(t[0]):.3g} (data of variance {var:g})"
            _require(
                ((ratio - 1).abs() < SIGMAS / (2 * samples) ** 0.5 + tolerance).all(),
                f"{where}: the standard deviation becomes {float(ratio.mean()):.4g} times the true one. Noise √(2e) "
                "belongs to the step e s; e must scale with std(t)², and the score be taken at t.",
            )
            _require(
                (mean.abs() < SIGMAS / samples**0.5 + tolerance).all(),
                f"{where}: the mean moves by {float(mean.abs().max()):.3g} standard deviations.",
            )


def check_corrector_restores_law(corrector, *, samples: int = 2000, tolerance: float = 0.1) -> None:
    """States that are spread too wide come nearer to p_t."""
    sde = corrector.sde
    if not getattr(corrector, "moves", True):
        return
    score = ExactScore(sde)
    t = torch.full((samples,), 0.5 * float(sde.T), dtype=torch.float64)
    x = 1.5 * score.draw(torch.zeros(samples, *sample_shape(sde), dtype=torch.float64), t, Noise(10))
    _, before = score.errors(x, t)
    _, after = score.errors(_correct(corrector, score, x, t, 60), t)
    _require(
        ((after - 1).abs() < 0.5 * (before - 1).abs() + tolerance).all(),
        f"states 1.5 times too wide do not come back to p_t: the ratio goes from {float(before.mean()):.3g} to "
        f"{float(after.mean()):.3g}. Wrong sign of the score?",
    )
