"""Does the prior stand for the law of the data at T? If not, samples and likelihoods would be wrong in silence."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from sde_score.protocols import NoiseFn
from sde_score.sdes.base import SDE
from sde_score.tensors import rows

MEAN_GAP, STD_RATIO, REACH = 0.2, 1.2, 2.0  # what is worth a word, see `PriorGap.warning`
FEWEST = 20  # samples whose moments say something
SEEN = 512  # points among which the largest distance is looked for


@dataclass(frozen=True)
class PriorGap:
    """How far the law of the data at T is from the prior, all in units of the prior's standard deviation.

    Attributes:
        mean: largest difference of the means over the dimensions.
        std_ratio: standard deviation at T over the prior's, in the dimension where it is farthest from 1.
        reach: largest Euclidean distance between two data points, carried to T without noise (Song & Ermon 2020,
            technique 1, asks for 1 at most).
    """

    mean: float
    std_ratio: float
    reach: float

    def warning(self, sde: SDE) -> str | None:
        """What is wrong and what mends it, or None when the prior fits.

        The mean may be off by 0.2 prior standard deviations, the standard deviation by a factor 1.2, and two data
        points may lie 2 standard deviations apart: less noise no longer covers what the data are.
        """
        wrong = []
        if self.mean > MEAN_GAP:
            wrong.append(f"the mean is off by {self.mean:.2g} prior standard deviations")
        if not 1 / STD_RATIO < self.std_ratio < STD_RATIO:
            wrong.append(f"the standard deviation is {self.std_ratio:.3g} times the prior's")
        if self.reach > REACH:
            wrong.append(f"data points still lie up to {self.reach:.2g} prior standard deviations apart")
        if not wrong:
            return None
        return (
            f"The prior of {type(sde).__name__} does not stand for these data at T = {sde.T:g}: {'; '.join(wrong)}. "
            f"Samples and likelihoods will be wrong by about that much. {sde.prior_advice(self.reach)}"
        )

    def to_dict(self) -> dict[str, float]:
        """Plain numbers."""
        return asdict(self)


def prior_gap(sde: SDE, x0: Tensor, *, noise: NoiseFn = torch.randn_like) -> PriorGap:
    """Compare the law at T of data `x0` `(N, *)` with the prior, by the moments of simulated ends and prior draws.

    The difference between two data points is carried to T by the mean of `simulate` where the SDE is linear, and by
    simulation with common noise otherwise. Moments of N samples are known to about 1/√N, which is allowed for: no
    gap is reported that draws of one law could show.
    """
    x0 = x0[torch.isfinite(rows(x0)).all(1)]
    n = len(x0)
    if n < FEWEST:
        raise ValueError(f"Comparing the prior with the data at T needs at least {FEWEST} finite samples; got {n}.")
    t = torch.full((n,), sde.T, dtype=x0.dtype, device=x0.device)
    drawn = rows(sde.prior_sampling(tuple(x0.shape), noise=noise, dtype=x0.dtype, device=x0.device))
    try:
        mean, std = sde.marginal_prob(x0, t)
        still = rows(mean)
        end_mean = still.mean(0)
        end_std = torch.sqrt(still.var(0) + rows(std.expand_as(x0)).square().mean(0))
    except NotImplementedError:
        end = rows(sde.simulate(x0, t, noise))
        still = rows(sde.simulate(x0, t, lambda like: noise(like)[:1].expand_as(like)))
        end_mean, end_std = end.mean(0), end.std(0)
    unit = drawn.std(0).clamp(min=1e-30)
    # five standard errors are taken off: of a difference of means, and of the logarithm of a ratio of deviations
    gaps = ((end_mean - drawn.mean(0)).abs() / unit - 5 * (2 / n) ** 0.5).clamp(min=0)
    ratio = torch.log(end_std / unit)
    worst = ratio[ratio.abs().argmax()]
    worst = torch.exp(torch.sign(worst) * (worst.abs() - 5 / n**0.5).clamp(min=0))
    distance = torch.cdist(still[:SEEN] / unit, still[:SEEN] / unit).max()
    return PriorGap(float(gaps.max()), float(worst), float(distance))
