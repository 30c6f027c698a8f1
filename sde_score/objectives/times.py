"""Training times: maps from uniform numbers `u` in [0, 1) to times, with the factor that an importance sampler owes.

Each is called as `times(u) -> (t, factor)`, or as `times.draw(noise, like)`, which takes `u` from the noise. `factor`
is the uniform density over the sampler's own, so that the expected weighted loss is that of uniform times. Where the
density of times is itself part of the objective (log-normal, mixed), `factor` is 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from sde_score.protocols import NoiseFn
from sde_score.registry import Registry
from sde_score.sdes.base import SDE
from sde_score.tensors import draw_uniform

TIME_SAMPLERS = Registry("time sampler", group="sde_score.time_samplers")
TABLE = 1025  # places in the table of times by log-SNR


def log_snr_ends(sde: SDE, t_min: float) -> tuple[float, float]:
    """Log-SNR at `T` and at `t_min`. Raises `ValueError` where it is infinite."""
    low, high = sde.log_snr(torch.tensor([sde.T, t_min], dtype=torch.float64)).tolist()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"Times by log-SNR need a finite log-SNR at both ends; at t_min = {t_min:g} there is none. Set t_min, e.g. "
            "1e-5."
        )
    return low, high


class TimeSampler(ABC):
    """Times in `[t_min, T]`; `t_min` is the SDE's own unless given."""

    def __init__(self, sde: SDE, t_min: float | None = None) -> None:
        self.sde = sde
        self.t_min = sde.t_min if t_min is None else float(t_min)
        if not 0 <= self.t_min < sde.T:
            raise ValueError(f"Training times need a t_min in [0, {sde.T:g}); got {t_min}.")

    @abstractmethod
    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Times and factors for uniform numbers, all of shape `(B,)`."""

    def draw(self, noise: NoiseFn, like: Tensor) -> tuple[Tensor, Tensor]:
        """Times and factors for a batch, from its noise: of the shape `(B,)`, the type and the device of `like`."""
        return self(draw_uniform(noise, like))

    def _uniform(self, u: Tensor) -> Tensor:
        return u * (self.sde.T - self.t_min) + self.t_min

    @cached_property
    def _table(self) -> tuple[float, float, Tensor]:
        """Ends of the log-SNR, and log t at equal distances between them."""
        low, high = log_snr_ends(self.sde, self.t_min)
        times = self.sde.time_of_log_snr(torch.linspace(low, high, TABLE, dtype=torch.float64))
        return low, high, torch.log(times.clamp(min=max(self.t_min, 1e-12)))

    def _time(self, log_snr: Tensor) -> Tensor:
        """The time of a log-SNR, clamped to the interval: from the table, then one Newton step with `d(log SNR)/dt =
        −g²/std²`.

        A step of training asks for it, and a bisection would cost as much as a small network.
        """
        low, high, table = self._table
        place = (log_snr - low) * ((TABLE - 1) / (high - low))
        index = place.long().clamp(0, TABLE - 2)
        table = table.to(log_snr)
        t = torch.exp(torch.lerp(table[index], table[index + 1], (place - index).clamp(0, 1))).clamp(
            self.t_min, self.sde.T
        )
        t = t + (self.sde.log_snr(t) - log_snr) / self.sde.log_snr_rate(t)
        return t.clamp(self.t_min, self.sde.T).to(log_snr.dtype)

    def _uniform_in_log_snr(self, u: Tensor) -> Tensor:
        low, high, _ = self._table
        return self._time(low + (high - low) * u)


@TIME_SAMPLERS.register("uniform")
class UniformTimes(TimeSampler):
    """Uniform on [t_min, T], independent for each sample: the published rule."""

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self._uniform(u), torch.ones_like(u)


@TIME_SAMPLERS.register("stratified")
class StratifiedTimes(TimeSampler):
    """Uniform on [t_min, T] with one sample in each of B equal strata: less variance of the loss (cf. Kingma et al.
    2021, appendix I.1).

    The strata are those of the whole batch, over all micro-batches and processes, where the noise knows the samples'
    places in it, as in training; otherwise those of the batch the objective is called with.
    """

    def draw(self, noise: NoiseFn, like: Tensor) -> tuple[Tensor, Tensor]:
        u, places = draw_uniform(noise, like), getattr(noise, "places", None)
        return self(u) if places is None else self._in_strata(u, places, noise.size)

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self._in_strata(u, torch.arange(len(u)), len(u))

    def _in_strata(self, u: Tensor, places: Tensor, size: int) -> tuple[Tensor, Tensor]:
        return self._uniform((places.to(u) + u) / size), torch.ones_like(u)


@TIME_SAMPLERS.register("importance")
class ImportanceTimes(TimeSampler):
    """Density ∝ g²/std², which makes the likelihood-weighted loss flat in t (Song et al. 2021, "Maximum Likelihood
    Training", eq. 11).

    Since `d(log SNR)/dt = −g²/std²` for every linear SDE, this is the uniform law in log-SNR.
    """

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        low, high, _ = self._table
        t = self._uniform_in_log_snr(u)
        return t, (high - low) / (self.sde.log_snr_rate(t) * (self.sde.T - self.t_min))


@TIME_SAMPLERS.register("mixed")
class MixedTimes(TimeSampler):
    """A `share` of the times uniform in log-SNR, the rest uniform in t: puts weight on the low noise that decides
    likelihoods.
    """

    def __init__(self, sde: SDE, share: float = 0.5, t_min: float | None = None) -> None:
        super().__init__(sde, t_min)
        if not 0 < share < 1:
            raise ValueError(f"mixed: share must lie between 0 (uniform in t) and 1 (uniform in log-SNR); got {share}.")
        self.share = float(share)

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        in_log_snr = u < self.share
        v = torch.where(in_log_snr, u / self.share, (u - self.share) / (1 - self.share))
        return torch.where(in_log_snr, self._uniform_in_log_snr(v), self._uniform(v)), torch.ones_like(u)


@TIME_SAMPLERS.register("log_normal")
class LogNormalTimes(TimeSampler):
    """`ln σ ~ N(mean, std²)` for `σ = std(t)/m(t)`, clipped to [t_min, T] (Karras et al. 2022, table 1). The density is
    part of the objective.
    """

    def __init__(self, sde: SDE, mean: float = -1.2, std: float = 1.2, t_min: float | None = None) -> None:
        super().__init__(sde, t_min)
        self.mean, self.std = float(mean), float(std)

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        log_sigma = self.mean + self.std * torch.special.ndtri(u.clamp(1e-7, 1 - 1e-7))
        return self._time(-2 * log_sigma), torch.ones_like(u)
