"""Conformance checks of SDEs, in the manner of `sde_score.testing.checks`: what every SDE must keep, and the list of
all checks. Priors, laws and closed forms have files of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from sde_score.sdes.base import SDE
from sde_score.sdes.linear import LinearSDE
from sde_score.testing.checks import Check, CheckResult, _name, _require, _run
from sde_score.testing.law_checks import (
    check_denoise,
    check_forward_simulation,
    check_moments,
    check_noise_square,
    check_reverse_sde,
)
from sde_score.testing.linear_checks import LINEAR_CHECKS
from sde_score.testing.prior_checks import check_prior, check_prior_density, check_prior_sampling
from sde_score.testing.probes import (
    Shape,
    knows_marginals,
    require_alone,
    require_device,
    require_dtype,
    require_untouched,
    shapes_of,
    states_of,
    times_like,
)


def check_sde(sde: SDE, *, shape: Shape | None = None, skip: dict[str, str] | None = None) -> list[CheckResult]:
    """Prove an SDE right as far as checks can: times, shapes, devices, precision, prior, marginals, transitions,
    simulation, reversal.

    A `LinearSDE` gets all checks. Another whose `marginal_prob` is known is compared with its own simulation and with
    the moment equations of its drift and diffusion; one without is simulated to its prior.

    Args:
        sde: the instance to check.
        shape: shape of a sample, without the batch axis, where the SDE lives on one shape only; otherwise several are
            tried.
        skip: names of checks to leave out, with the reason: `{"check_prior": "the prior is approximate by design"}`.

    Raises:
        CheckFailed: with every failure and what it hints at.
    """
    return _run(sde_checks(sde, shape=shape), f"{_name(sde)}", skip)


def sde_checks(sde: SDE, *, shape: Shape | None = None) -> Iterator[Check]:
    """The checks that apply to `sde`, each callable without arguments; for `pytest.mark.parametrize`."""
    for check in (
        check_times, check_prior_sampling, check_shapes, check_arguments, check_devices, check_dtypes, check_batch,
        check_gradient, check_prior_density, check_prior, check_noise_square, check_moments, check_forward_simulation,
        check_reverse_sde, check_denoise,
    ):  # fmt: skip
        yield partial(check, sde) if check is check_times else partial(check, sde, shape)
    if isinstance(sde, LinearSDE):
        for check in LINEAR_CHECKS:
            yield partial(check, sde)


def check_times(sde: SDE) -> None:
    """`0 <= t_min < T`, both finite."""
    T, t_min = float(sde.T), float(sde.t_min)
    _require(
        math.isfinite(T) and math.isfinite(t_min) and 0 <= t_min < T, f"needs 0 <= t_min < T; has t_min={t_min}, T={T}."
    )


def _marginals_at(sde: SDE, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = sde.marginal_prob(x, t)
    return mean, torch.as_tensor(std, device=x.device)


def _functions(sde: SDE, shape: Shape) -> dict[str, Callable]:
    """Everything of the SDE that maps x and t to tensors, by the name in a message: functions of `(x, t)`."""
    found: dict[str, Callable] = {}
    if isinstance(sde, LinearSDE):
        found = {
            "marginal_coeffs": lambda x, t: sde.marginal_coeffs(t),
            "transition": lambda x, t: sde.transition(0.4 * t, t),
            "log_snr": lambda x, t: sde.log_snr(t),
            "log_snr_rate": lambda x, t: sde.log_snr_rate(t),
        }
        if len(sde.log_snr(times_like(sde, 2)).shape) == 1:
            found["time_of_log_snr"] = lambda x, t: sde.time_of_log_snr(-torch.log(1 + t / sde.T))
    found |= {
        "drift": sde.drift,
        "diffusion (as apply_diffusion calls it)": lambda x, t: sde.apply_diffusion(x, t, torch.ones_like(x)),
        "apply_diffusion_sq": lambda x, t: sde.apply_diffusion_sq(x, t, torch.ones_like(x)),
        "diffusion_sq_divergence": lambda x, t: sde.diffusion_sq_divergence(x, t) + torch.zeros_like(x),
        "prior_logp": lambda x, t: sde.prior_logp(x),
    }
    if knows_marginals(sde, shape):
        found["marginal_prob"] = lambda x, t: _marginals_at(sde, x, t)
    if sde.can_denoise:
        found["denoise"] = lambda x, t: sde.denoise(lambda x, t: -x, x, t)
    return found


def check_shapes(sde: SDE, shape: Shape | None = None) -> None:
    """Drift, diffusion, prior and marginals have the shapes they must have for samples of one to four axes, and stay
    finite."""
    for sample in shapes_of(sde, shape):
        for batch in (1, 3):
            x = states_of(sde, sample, batch)
            t = times_like(sde, batch, 0.5)
            where = f"for x of shape {tuple(x.shape)}"
            drift = sde.drift(x, t)
            _require(
                drift.shape == x.shape, f"drift(x, t) has shape {tuple(drift.shape)} {where}; it must be that of x."
            )
            try:
                moved = sde.apply_diffusion(x, t, torch.ones_like(x))
            except RuntimeError:
                moved = None
            _require(
                moved is not None and moved.shape == x.shape,
                f"diffusion(x, t) does not broadcast against x {where}. Return expand_like(g, x), not g of shape (B,).",
            )
            _require(
                torch.isfinite(drift).all() and torch.isfinite(moved).all(),
                f"drift or diffusion is not finite {where}, a draw of the prior.",
            )
            divergence = torch.as_tensor(sde.diffusion_sq_divergence(x, t))
            _require(
                divergence.ndim == 0 or divergence.shape == x.shape,
                f"diffusion_sq_divergence(x, t) has shape {tuple(divergence.shape)} {where}; it is a vector field, of "
                "the shape of x.",
            )
            logp = sde.prior_logp(x)
            _require(
                logp.shape == (batch,),
                f"prior_logp(x) has shape {tuple(logp.shape)} {where}; it must be (B,): sum over all other axes.",
            )
            if knows_marginals(sde, sample):
                mean, std = _marginals_at(sde, x, t)
                _require(mean.shape == x.shape, f"marginal_prob mean has shape {tuple(mean.shape)} {where}.")
                _require(
                    std.ndim in (0, x.ndim) and torch.broadcast_shapes(std.shape, x.shape) == x.shape,
                    f"marginal_prob std has shape {tuple(std.shape)}, which does not broadcast {where}.",
                )


def check_arguments(sde: SDE, shape: Shape | None = None) -> None:
    """No function of the SDE changes the tensors it is given."""
    sample = shapes_of(sde, shape)[0]
    for name, function in _functions(sde, sample).items():
        require_untouched(name, function, states_of(sde, sample, 3), times_like(sde, 3))


def check_devices(sde: SDE, shape: Shape | None = None) -> None:
    """On another device than the CPU everything stays there."""
    sample = shapes_of(sde, shape)[0]
    for name, function in _functions(sde, sample).items():
        require_device(name, function, (3, *sample), (3,))


def check_dtypes(sde: SDE, shape: Shape | None = None) -> None:
    """Answers have the dtype of the arguments."""
    sample = shapes_of(sde, shape)[0]
    for name, function in _functions(sde, sample).items():
        require_dtype(name, function, states_of(sde, sample, 3), times_like(sde, 3))


def check_batch(sde: SDE, shape: Shape | None = None) -> None:
    """A sample's answer does not depend on its companions."""
    sample = shapes_of(sde, shape)[0]
    for name, function in _functions(sde, sample).items():
        require_alone(name, function, states_of(sde, sample, 4), times_like(sde, 4))


def check_gradient(sde: SDE, shape: Shape | None = None) -> None:
    """The gradient of the drift by autograd agrees with differences: the divergence of the probability flow, and so
    every likelihood, is made of it."""
    sample = shapes_of(sde, shape)[0]
    x, t = states_of(sde, sample, 4), times_like(sde, 4)
    other = states_of(sde, sample, 4, seed=1)
    direction = other - x  # towards another state: stays where the process lives
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    for name, function in (
        ("drift", lambda x: sde.drift(x, t)),
        ("apply_diffusion_sq", lambda x: sde.apply_diffusion_sq(x, t, v)),
    ):
        h = 1e-5
        expected = (function(x + h * direction) - function(x - h * direction)) / (2 * h)
        y = x.clone().requires_grad_(True)
        value = function(y)
        weights = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))
        got = torch.zeros(len(x), dtype=x.dtype)
        if value.requires_grad:
            (gradient,) = torch.autograd.grad((weights * value).sum(), y)
            got = (gradient * direction).reshape(len(x), -1).sum(1)
        want = (weights * expected).reshape(len(x), -1).sum(1)
        size = (weights * expected).abs().reshape(len(x), -1).sum(1) + 1e-6 * value.detach().abs().max()
        gap = float(((got - want).abs() / size).max())
        _require(
            gap < 1e-4 or not bool(value.abs().max() > 0),
            f"{name} has a gradient in x by autograd that is not its derivative (relative error {gap:.2g}). Use no "
            "detach(), .data or torch.no_grad(): likelihoods need the divergence.",
        )

