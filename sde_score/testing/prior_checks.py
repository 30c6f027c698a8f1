"""Conformance checks of priors: what is drawn, its density, and whether it is the law at T."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_score.sdes.base import SDE
from sde_score.sdes.linear import LinearSDE
from sde_score.tensors import expand_like, sum_except_batch
from sde_score.testing.checks import SIGMAS, CheckFailed, _require
from sde_score.testing.probes import Noise, Shape, diagonal_shape, knows_marginals, shapes_of

DRAWS = 20_000


def check_prior_sampling(sde: SDE, shape: Shape | None = None) -> None:
    """`prior_sampling` returns the shape, dtype and device asked for, and all its randomness comes from `noise`."""
    for sample in shapes_of(sde, shape):
        for batch in (1, 3):
            for dtype in (torch.float32, torch.float64):
                x = sde.prior_sampling((batch, *sample), noise=Noise(0), dtype=dtype)
                _require(
                    x.shape == (batch, *sample),
                    f"prior_sampling({(batch, *sample)}) returns shape {tuple(x.shape)}.",
                )
                _require(
                    x.dtype == dtype,
                    f"prior_sampling(..., dtype={dtype}) ignores dtype: its draws are {x.dtype}.",
                )
                _require(torch.isfinite(x).all(), f"prior_sampling({(batch, *sample)}) is not finite.")
    full = (3, *sample)
    try:
        device = sde.prior_sampling(full, noise=torch.randn_like, device="meta", dtype=torch.float32).device
    except (RuntimeError, NotImplementedError) as error:
        raise CheckFailed(
            f"prior_sampling(..., device='meta') fails on that device ({str(error).splitlines()[0]}): draw "
            "noise(torch.empty(shape, device=device, dtype=dtype)) and make constants there."
        ) from None
    _require(device.type == "meta", f"prior_sampling(..., device='meta') ignores device: its draws are on {device}.")
    first, again, other = (sde.prior_sampling(full, noise=Noise(s), dtype=torch.float64) for s in (1, 1, 2))
    _require(
        torch.equal(first, again) and not torch.equal(first, other),
        "prior_sampling does not take its randomness from the argument noise (or not all of it): equal noise must give "
        "equal draws, other noise others. Seeds live in noise; draw with noise(torch.empty(shape, ...)).",
    )


def check_prior_density(sde: SDE, shape: Shape | None = None) -> None:
    """`prior_logp` is the density of what `prior_sampling` draws: E[∇log p] = 0 and E[x ∇log p(x)ᵀ] = −I (Stein's
    identity, true of every smooth density), and it is normalised; for a linear SDE it is that of N(c, prior_std²)."""
    sample = shapes_of(sde, shape)[0]
    x = sde.prior_sampling((DRAWS, *sample), noise=Noise(1), dtype=torch.float64).detach().requires_grad_(True)
    score = torch.autograd.grad(sde.prior_logp(x).sum(), x)[0].detach().reshape(DRAWS, -1)[:, :16]
    x = x.detach()
    flat = x.reshape(DRAWS, -1)[:, :16]
    scale = flat.std(0)
    centred = flat - flat.median(0).values
    for what, value, want in (
        ("E[∇log p] = {:.3g} (in units of 1/std) instead of 0: they have different means", score * scale, 0.0),
        ("E[x ∇log p] = {:.4g} instead of −1, as if the variances had the ratio of its size", centred * score, -1.0),
    ):
        error = (value.mean(0) - want).abs() / (value.std(0) / DRAWS**0.5 + 1e-12)
        at = int(error.argmax())
        _require(
            error.max() < SIGMAS,
            f"prior_sampling and prior_logp disagree: {what.format(float(value.mean(0)[at]))}. The draws have mean "
            f"{float(flat.mean()):.4g} and standard deviation {float(scale.mean()):.4g}.",
        )
    cross = (centred[:, :, None] * score[:, None, :]).flatten(1)
    error = (cross.mean(0) / (cross.std(0) / DRAWS**0.5 + 1e-12)).reshape(flat.shape[1], -1).fill_diagonal_(0)
    _require(
        error.abs().max() < SIGMAS + 1,  # more comparisons than elsewhere
        "prior_sampling and prior_logp disagree: E[x_i ∂_j log p] is not 0 for two dimensions i and j; the draws of "
        "one sample depend on one another as the density does not.",
    )
    if isinstance(sde, LinearSDE):
        _require_normal(sde, x)
    elif shape is None or math.prod(shape) <= 4:
        _require_normalised(sde, shape or (1,))
        _require_normalised(sde, shape or (3,))


def _require_normal(sde: LinearSDE, x: Tensor) -> None:
    """The density is exactly that of N(c, prior_std²), with one c."""
    x = x[:500].clone().requires_grad_(True)
    logp = sde.prior_logp(x)
    (score,) = torch.autograd.grad(logp.sum(), x)
    x, logp = x.detach(), logp.detach()
    std = torch.as_tensor(sde.prior_std, dtype=torch.float64)
    std = (std if std.ndim == 0 else expand_like(std, x)).expand_as(x)
    centre = x + std**2 * score.detach()  # the same for every x when the density is normal
    spread = float(((centre - centre.mean(0)).abs() / std).max())
    _require(
        spread < 1e-5,
        "prior_logp is not the density of N(c, prior_std²): its gradient is not −(x − c)/prior_std² (off by "
        f"{spread:.2g}/prior_std).",
    )
    gap = logp - sum_except_batch(torch.distributions.Normal(centre.mean(0).expand_as(x), std).log_prob(x))
    _require(
        gap.abs().max() < 1e-6 * max(1.0, float(logp.abs().max())),
        f"prior_logp is off by {float(gap.mean()):.5g} nats on samples of {x[0].numel()} dimensions "
        f"({float(gap.mean()) / x[0].numel():.4g} per dimension) from N(c, prior_std²): look for a missing log std, a "
        "missing 2π, or a constant that forgets the number of dimensions.",
    )


def _require_normalised(sde: SDE, sample: Shape) -> None:
    """∫ p = 1, by E_p[q/p] = 1 with a narrow normal density q in the middle of p: bounded, so that 5 standard errors
    mean what they say."""
    x = sde.prior_sampling((DRAWS, *sample), noise=Noise(2), dtype=torch.float64)
    low, middle, high = torch.quantile(x, torch.tensor([0.25, 0.5, 0.75], dtype=x.dtype), dim=0)
    narrow = torch.distributions.Normal(middle, 0.4 * (high - low).clamp(min=1e-12))
    ratio = torch.exp(sum_except_batch(narrow.log_prob(x)) - sde.prior_logp(x))
    gap = float((ratio.mean() - 1).abs() - SIGMAS * ratio.std() / DRAWS**0.5)
    _require(
        gap < 0.01,
        f"prior_logp is not normalised: on samples of shape {sample} exp(prior_logp) integrates to about "
        f"{float(1 / ratio.mean()):.4g}, not 1. Look for a missing log std, a missing 2π, or a constant that forgets "
        "the number of dimensions.",
    )


def check_prior(sde: SDE, shape: Shape | None = None, tolerance: float = 0.02) -> None:
    """The prior is the law at T: its mean and standard deviation are those of x_T, and hardly anything of the data is
    left there. For an SDE that does not know its marginals the simulation tells."""
    if isinstance(sde, LinearSDE):
        _require_prior_std(sde, tolerance)
    sample = diagonal_shape(sde) or shapes_of(sde, shape)[0]
    if not knows_marginals(sde, sample):
        return
    x0 = torch.zeros(2, *sample, dtype=torch.float64)
    x0[1] = 1.0
    mean, std = sde.marginal_prob(x0, torch.full((2,), float(sde.T), dtype=torch.float64))
    mean, std = mean.reshape(2, -1), torch.as_tensor(std).expand_as(x0).reshape(2, -1)
    left = float(((mean[1] - mean[0]).abs() / std[0]).max())
    _require(
        left < 0.3,
        f"at T the data still count: two data one apart have means that differ by {left:.3g} standard deviations. The "
        "prior is then far from the law at T; make T or the noise larger.",
    )
    draws = sde.prior_sampling((DRAWS, *sample), noise=Noise(3), dtype=torch.float64).reshape(DRAWS, -1)
    gap = ((draws.mean(0) - mean[0]).abs() - left * std[0]) / std[0]
    _require(
        float(gap.max()) < SIGMAS / DRAWS**0.5 + tolerance,
        f"wrong prior: its mean is {float(draws.mean()):.4g}, and that of x_T by marginal_prob is "
        f"{float(mean[0].mean()):.4g}, with standard deviation {float(std.mean()):.4g}.",
    )
    ratio = draws.std(0) / std[0]
    _require(
        float((ratio - 1).abs().max()) < SIGMAS / (2 * DRAWS) ** 0.5 + tolerance,
        f"wrong prior: its standard deviation is {float(ratio.mean()):.4g} times that of x_T by marginal_prob.",
    )


def _require_prior_std(sde: LinearSDE, tolerance: float) -> None:
    m, std = (c.reshape(1, -1) for c in sde.marginal_coeffs(torch.full((1,), sde.T, dtype=torch.float64)))
    prior = torch.as_tensor(sde.prior_std, dtype=torch.float64).reshape(1, -1)
    ratio = prior / std
    worst = float(ratio.reshape(-1)[(ratio - 1).abs().reshape(-1).argmax()])
    _require(
        abs(worst - 1) < tolerance,
        f"wrong prior: prior_std is {worst:.4g} times std(T) = {float(std.reshape(-1)[0]):.4g}. Leave prior_std out to "
        "have it derived.",
    )
    left = float((m / std).max())
    _require(
        left < 0.3,
        f"at T the data still count: m(T)/std(T) = {left:.3g}. The prior N(0, std²) is then far from the law at T; "
        "make T or the noise larger.",
    )
