"""What a model says of samples that are handed to it, in the units of the data: densities, scores, codes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_score.likelihood import log_likelihood
from sde_score.run.build import check_likelihood, told_conditions
from sde_score.run.facts import RunFacts, provenance
from sde_score.run.sample import Samples, conditions_of
from sde_score.run.unused import check_repeats
from sde_score.sampling import ODESampler
from sde_score.score import Score
from sde_score.tensors import SampleNoise

Points = Tensor | np.ndarray | Sequence
"""Samples as a user has them; see `stored`."""


@dataclass(frozen=True)
class LogProb:
    """Log-likelihoods of samples in nats, in the units of the data.

    Attributes:
        values: `(B,)` in float64. Continuous data: the log density. Images in grey levels: the log probability of the
            levels, from below (uniform dequantisation; Theis et al. 2016, section 3.1).
        std_error: `(B,)`, of each value over Hutchinson's probes or the passes over it; zero where nothing is drawn;
            None for one pass with one probe, which does not tell.
        bits_per_dim: `(B,)`, `−values / (D ln 2)`, of images in grey levels; otherwise None.
        nfe: evaluations of the score for each sample, `(B,)`.
    """

    values: Tensor
    std_error: Tensor | None
    bits_per_dim: Tensor | None
    nfe: Tensor

    def __len__(self) -> int:
        return len(self.values)


def stored(run: RunFacts, x: Points) -> Tensor:
    """Samples as the data set stores them: grey levels in uint8, or real numbers; `(B, *shape)`.

    Grey levels are taken as whole numbers `0 .. levels − 1`, or between 0 and 1 as `Samples.x` has them. Raises
    `ValueError` for another shape, values in between, and what is not finite.
    """
    x = x if isinstance(x, Tensor) else torch.as_tensor(x)
    info = run.info
    if info.shape[0] == 1 and tuple(x.shape[1:]) == info.shape[1:]:
        x = x[:, None]
    if tuple(x.shape[1:]) != info.shape:
        hint = " Write x[None] for a single one." if tuple(x.shape) == info.shape else ""
        raise ValueError(
            f"This run knows samples of shape {info.shape}, a batch (B, {', '.join(map(str, info.shape))}); got "
            f"{tuple(x.shape)}.{hint}"
        )
    if x.is_complex() or not (x.is_floating_point() or info.levels is not None or x.dtype != torch.bool):
        raise ValueError(f"Samples are real numbers; got {x.dtype}.")
    if x.is_floating_point() and not torch.isfinite(x).all():
        where = tuple((~torch.isfinite(x)).nonzero()[0].tolist())
        raise ValueError(f"The samples are not finite, first at index {where}: {x[where].item()}.")
    if info.levels is None:
        return x if x.is_floating_point() else x.to(torch.float64)
    return _levels(x, info.levels)


def _levels(x: Tensor, levels: int) -> Tensor:
    if x.is_floating_point():
        scaled = x.double() * (levels - 1)
        whole = scaled.round()
        if len(x) and not (0 <= float(x.min()) and float(x.max()) <= 1 and (scaled - whole).abs().max() < 1e-2):
            raise ValueError(
                f"The data of this run are {levels} grey levels: whole numbers 0 .. {levels - 1}, or these divided by "
                f"{levels - 1}; got real numbers from {float(x.min()):g} to {float(x.max()):g}. For states of the "
                "process use run.score and run.denoise, which take any real numbers."
            )
        return whole.to(torch.uint8)
    if len(x) and not (int(x.min()) >= 0 and int(x.max()) < levels):
        raise ValueError(f"Grey levels run from 0 to {levels - 1} here; got {int(x.min())} to {int(x.max())}.")
    return x.to(torch.uint8)


def score_of(
    run: RunFacts, n: int, labels: Sequence[int | str] | None, condition: Mapping[str, Tensor] | None
) -> Score:
    """The model at rest, told the conditions of n samples; without any where it has learnt to do without.

    Raises `ValueError` where it must be told and nothing is given.
    """
    told, score = told_conditions(run.config, run.info), run.score_fn()
    if told and labels is None and not condition:
        if not run.config.training.condition_dropout:
            raise ValueError(
                f"This model is told {', '.join(told)} and was never trained without "
                "(config.training.condition_dropout=0): give labels=... or condition={...}, one for each sample."
            )
        return score.bind(**_any(run, told, n)).unconditional()
    known = conditions_of(run, n, labels, condition)
    return score.bind(**{name: values.to(run.device) for name, values in known.items()})


def _any(run: RunFacts, told: Sequence[str], n: int) -> dict[str, Tensor]:
    """Some condition of each kind for n samples, which `unconditional` will take away."""
    found = {}
    for name in told:
        described = run.info.conditions[name]
        whole = described.num is not None and described.kind != "labels"
        dtype = torch.int64 if whole else torch.float32
        found[name] = torch.zeros((n, *described.shape), dtype=dtype, device=run.device)
    return found


def log_prob(
    run: RunFacts,
    x: Points,
    *,
    labels: Sequence[int | str] | None = None,
    condition: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    repeats: int = 1,
) -> LogProb:
    """Log-likelihoods of `x` `(B, *)` in nats and in the units of the data, with the settings of
    `run.config.likelihood`.

    Args:
        run: the run.
        x: samples; see `stored`.
        labels, condition: what the network is told of each. None: the density without conditions, of a network that
            has learnt to do without.
        seed: of dequantisation and probes; those of sample i depend on (seed, pass, i) only.
        repeats: passes with fresh noise, averaged.

    Raises `ValueError` for samples of another kind and for a codec that leaves the data no density.
    """
    if repeats < 1:
        raise ValueError(f"A likelihood needs at least one pass; got repeats={repeats}.")
    section, data, codec = run.config.likelihood, stored(run, x), run.codec.for_density()
    check_likelihood(run.config, run.sde)
    check_repeats(run.config, run.info, repeats)
    score = score_of(run, len(data), labels, condition)
    values, errors, nfe = [], [], []
    for repeat in range(repeats):
        parts: list[tuple[Tensor, Tensor | None, Tensor]] = []
        for start in range(0, len(data), section.batch_size):
            chosen = range(start, min(start + section.batch_size, len(data)))
            noise = SampleNoise((seed, repeat), chosen)
            z = codec.encode(data[chosen.start : chosen.stop], noise).to(run.device)
            log_det = codec.log_det(z)
            if log_det is None:
                raise ValueError(f"The codec {run.config.data.codec!r} is no bijection: the data have no density.")
            found = log_likelihood(
                run.sde, score.select(list(chosen)), z, solver=section.solver, trace=section.trace, t_min=section.t_min,
                noise=noise,
            )  # fmt: skip
            parts.append(((found.logp + log_det).cpu().double(), found.trace_std_error, found.nfe.cpu()))
        values.append(torch.cat([p[0] for p in parts]) if parts else torch.zeros(0, dtype=torch.float64))
        known = [p[1] for p in parts]
        errors.append(None if any(e is None for e in known) else torch.cat([e.cpu().double() for e in known] or values))
        nfe.append(torch.cat([p[2] for p in parts]) if parts else torch.zeros(0))
    passes = torch.stack(values)
    mean, grey = passes.mean(0), run.info.levels is not None
    if repeats > 1:
        error = passes.std(0) / math.sqrt(repeats)
    else:  # one pass over dequantised data hides what the noise does
        error = None if grey else errors[0]
    bits = None
    if grey:
        mean = mean - run.info.dim * math.log(run.info.levels)
        bits = -mean / (run.info.dim * math.log(2))
    return LogProb(mean, error, bits, torch.stack(nfe).double().mean(0))


def _states(run: RunFacts, x: Points) -> Tensor:
    """States of the process given in the units of the data (images: the unit cube, and beyond it), in float."""
    x = x if isinstance(x, Tensor) else torch.as_tensor(x)
    if run.info.levels is not None and not x.is_floating_point():
        x = stored(run, x).float() / (run.info.levels - 1)
    if tuple(x.shape[1:]) != run.info.shape:
        stored(run, x)  # says what is wrong with the shape
    return x.to(run.device, torch.float32 if not x.is_floating_point() else x.dtype)


def _to_model(run: RunFacts, x: Tensor) -> Tensor:
    """Real numbers in data units to model space, with a graph."""
    if run.info.levels is None:
        return run.codec.encode(x).to(torch.float32)
    if not hasattr(run.codec, "forward"):
        raise ValueError(
            f"The codec {run.config.data.codec!r} takes whole grey levels only: work in model space, "
            "with run.score_fn()."
        )
    return run.codec.forward(x).to(torch.float32)


def _times(run: RunFacts, t: float | Tensor, x: Tensor) -> Tensor:
    t = torch.as_tensor(t, dtype=torch.float32, device=run.device).expand(len(x))
    if len(t) and not (0 < float(t.min()) and float(t.max()) <= run.sde.T):
        raise ValueError(f"Times of this process lie in (0, {run.sde.T:g}]; got {float(t.min()):g}.")
    return t


def score(
    run: RunFacts,
    x: Points,
    t: float | Tensor,
    *,
    labels: Sequence[int | str] | None = None,
    condition: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """`∇ log p_t` at `x` `(B, *)` in the units of the data, at time(s) `t`: `(B, *)`.

    The process runs in model space, z = encode(x), so by the chain rule `∇ₓ log p_t = (∂z/∂x)ᵀ ∇_z log p_t(z) +
    ∇ₓ log |det ∂z/∂x|`. Images: x in the unit cube, where p_t is that of the dequantised image.
    """
    x = _states(run, x).detach().requires_grad_(True)
    with torch.enable_grad():
        z = _to_model(run, x)
        inner = score_of(run, len(x), labels, condition)(z.detach(), _times(run, t, x)).detach()
        total = (z * inner).sum()
        log_det = run.codec.log_det(z)
        if log_det is None:
            raise ValueError(f"The codec {run.config.data.codec!r} is no bijection: the data have no density.")
        total = total + log_det.sum() if log_det.requires_grad else total
        return torch.autograd.grad(total, x)[0]


def denoise(
    run: RunFacts,
    x: Points,
    t: float | Tensor,
    *,
    labels: Sequence[int | str] | None = None,
    condition: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The posterior mean `E[x_0 | x_t = x]` `(B, *)` in the units of the data (images: the unit cube).

    The mean is taken in model space and brought back, which is the same for codecs that are affine.
    """
    with torch.no_grad():
        z = _to_model(run, _states(run, x))
        return run.codec.decode(score_of(run, len(z), labels, condition).denoise(z, _times(run, t, z)))


def _flow(run: RunFacts, solver: str | None) -> ODESampler:
    section = run.config.likelihood
    return ODESampler(run.sde, solver or section.solver, t_min=section.t_min, denoise="none")


def encode(
    run: RunFacts,
    x: Points,
    *,
    solver: str | None = None,
    labels: Sequence[int | str] | None = None,
    condition: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The latent codes `x_T` of samples, `(B, *)` in model space: where the probability-flow ODE carries them.

    The solver is that of `run.config.likelihood`, or `solver`. Grey levels enter at the centres of their cells, so that
    a code belongs to a sample. They follow the prior, about.
    """
    data = stored(run, x)
    with torch.no_grad():
        z = run.codec.encode(data).to(run.device)
        return _flow(run, solver).encode(score_of(run, len(z), labels, condition), z).x


def decode(
    run: RunFacts,
    code: Tensor,
    *,
    solver: str | None = None,
    labels: Sequence[int | str] | None = None,
    condition: Mapping[str, Tensor] | None = None,
) -> Samples:
    """The samples of latent codes `(B, *)`: the inverse of `encode`."""
    if tuple(code.shape[1:]) != run.codec.shape:
        raise ValueError(f"Codes of this run have the shape (B, *{run.codec.shape}); got {tuple(code.shape)}.")
    found = _flow(run, solver)(score_of(run, len(code), labels, condition), code.to(run.device, torch.float32))
    x = (run.codec.to_levels if run.info.levels is not None else run.codec.decode)(found.x).cpu()
    given = conditions_of(run, len(code), labels, condition) if labels or condition else {}
    facts = {
        "num": len(x),
        "step": run.step,
        "sde": run.config.sde,
        "sampling": {"method": "ode", "solver": solver or run.config.likelihood.solver},
        "nfe": found.nfe,
        "provenance": provenance(),
    }
    return Samples(stored=x, info=run.info, cond=given, facts=facts)


def interpolate(
    run: RunFacts,
    a: Points,
    b: Points,
    steps: int = 8,
    *,
    solver: str | None = None,
    labels: Sequence[int | str] | None = None,
    condition: Mapping[str, Tensor] | None = None,
) -> Samples:
    """`steps` samples on the way from `a` to `b`, two samples `(*shape)`: their codes are joined by a great circle,

        z(s) = (sin((1 − s) ω) z_a + sin(s ω) z_b) / sin ω,   ω the angle between z_a and z_b,

    on which the norm stays that of the prior, and decoded (Shoemake, SIGGRAPH 1985). Labels and conditions are those of
    all on the way.
    """
    if steps < 2:
        raise ValueError(f"An interpolation has at least its two ends; got steps={steps}.")
    ends = []
    for end in (a, b):
        end = end if isinstance(end, Tensor) else torch.as_tensor(end)
        ends.append(end if tuple(end.shape) == run.info.shape else end.reshape(-1, *end.shape[1:])[0])
    told: dict[str, Any] = {"solver": solver, "labels": labels, "condition": condition}
    codes = encode(run, torch.stack(ends), **told)
    return decode(run, great_circle(codes[0], codes[1], steps), **told)


def great_circle(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Points on the great circle from `a` to `b`, `(steps, *)`; on the straight line where they are parallel."""
    s = torch.linspace(0, 1, steps, dtype=torch.float64, device=a.device).reshape(-1, *(1,) * a.ndim)
    first, last = a.double(), b.double()
    norms = first.norm() * last.norm()
    cosine = float((first * last).sum() / norms) if float(norms) > 0 else 1.0
    omega = math.acos(min(1.0, max(-1.0, cosine)))
    if math.sin(omega) < 1e-6:
        return ((1 - s) * first + s * last).to(a.dtype)
    return ((torch.sin((1 - s) * omega) * first + torch.sin(s * omega) * last) / math.sin(omega)).to(a.dtype)
