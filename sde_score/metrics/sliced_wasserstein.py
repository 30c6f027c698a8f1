"""Sliced Wasserstein distance. Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters", section 3."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_score.metrics.base import METRICS, FeatureSet, Metric, MetricResult, as_pair, standard_error


def wasserstein_1d(x: Tensor, y: Tensor, *, p: float = 2.0) -> Tensor:
    """W_p^p of empirical laws on the line, column by column: integral over u of |F^-1(u) - G^-1(u)|^p.

    Exact for any two sizes: both quantile functions are constant between the levels i/N and j/M.

    Args:
        x: ``(N, m)``; y: ``(M, m)``.

    Returns:
        ``(m,)``.
    """
    x, y = x.sort(0).values, y.sort(0).values
    n, m = len(x), len(y)
    if n == m:
        return (x - y).abs().pow(p).mean(0)
    # Levels as integers in units of 1 / (n m), so that equal levels are seen to be equal.
    levels = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    widths = torch.diff(levels, prepend=levels.new_zeros(1)).to(x.dtype) / (n * m)
    i, j = (levels - 1) // m, (levels - 1) // n
    return (widths[:, None] * (x[i] - y[j]).abs().pow(p)).sum(0)


def sliced_wasserstein(x: Tensor, y: Tensor, *, projections: int = 128, p: float = 2.0, seed: int = 0) -> Tensor:
    """W_p^p along random directions, ``(projections,)``; their mean is SW_p^p.

    Args:
        x: ``(N, d)``; y: ``(M, d)``.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(x.shape[1], projections, generator=generator, dtype=x.dtype)
    directions = directions / directions.norm(dim=0, keepdim=True)
    return wasserstein_1d(x @ directions, y @ directions, p=p)


@METRICS.register("sliced_wasserstein")
class SlicedWasserstein(Metric):
    """Root of the mean over random directions; the standard error is that of the directions, not of the samples.

    Args:
        projections: number of directions; the same ones for every call with this seed.
        p: order.
        seed: of the directions.
    """

    name = "sliced_wasserstein"

    def __init__(self, projections: int = 128, p: float = 2.0, seed: int = 0) -> None:
        if projections < 1 or p < 1:
            raise ValueError(f"SlicedWasserstein(projections={projections}, p={p}): both must be at least 1.")
        self.projections, self.p, self.seed = projections, p, seed

    def __call__(
        self, fake: FeatureSet | Tensor, real: FeatureSet | Tensor, train: FeatureSet | None = None
    ) -> list[MetricResult]:
        fake, real = as_pair(fake, real, least=1)
        powers = sliced_wasserstein(fake.x, real.x, projections=self.projections, p=self.p, seed=self.seed)
        mean = float(powers.mean())
        value = mean ** (1 / self.p)
        spread = standard_error(powers)
        # Delta method for the root; at zero it has no derivative.
        stderr = None if spread is None else (spread * value / (self.p * mean) if mean > 0 else 0.0)
        return [self.result("sliced_wasserstein", value, fake, real, stderr=stderr)]
