"""Maximum mean discrepancy. Gretton et al. 2012, "A kernel two-sample test", eq. 3 (unbiased) and section 6."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sde_score.metrics.base import METRICS, FeatureSet, Metric, MetricResult, as_pair, squared_distances
from sde_score.metrics.errors import block_indices, number_of_blocks, require_blocks, standard_error

Kernel = Callable[[Tensor, Tensor], Tensor]


def unbiased_mmd2(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """Unbiased estimate of MMD^2; negative values are normal when the laws agree.

        MMD^2 = mean over i != j of k(x_i, x_j) + mean over i != j of k(y_i, y_j) - 2 mean of k(x_i, y_j)

    Args:
        x: ``(N, d)``; y: ``(M, d)``; both with at least two rows.
        kernel: maps ``(N, d), (M, d)`` to ``(N, M)``.

    Raises:
        ValueError: fewer than two rows, or features that are not finite.
    """
    x, y = (features.x for features in as_pair(x, y))
    n, m = x.shape[0], y.shape[0]
    kxx, kyy = kernel(x, x), kernel(y, y)
    within = (kxx.sum() - kxx.diagonal().sum()) / (n * (n - 1)) + (kyy.sum() - kyy.diagonal().sum()) / (m * (m - 1))
    return within - 2 * kernel(x, y).mean()


def block_mmd2(x: Tensor, y: Tensor, kernel: Kernel, *, blocks: int, seed: int) -> Tensor:
    """Unbiased estimates on disjoint blocks, ``(blocks,)``: independent, so their mean has an honest standard error."""
    ours, theirs = block_indices(len(x), blocks, seed), block_indices(len(y), blocks, seed + 1)
    return torch.stack([unbiased_mmd2(x[i], y[j], kernel) for i, j in zip(ours, theirs, strict=True)])


def median_distance(x: Tensor, *, limit: int = 1000) -> float:
    """Median distance between rows that differ (of the first ``limit``), the usual bandwidth; duplicates do not count,
    or a set of which most are duplicates would have none."""
    x = x[:limit]
    distances = squared_distances(x, x).sqrt()
    distances = distances[distances > 0]
    return float(distances.median()) if len(distances) else 1.0  # all rows equal: there is no scale


class RBF:
    """Sum of Gaussian kernels, k(x, y) = mean over s of exp(-|x - y|^2 / (2 s^2))."""

    def __init__(self, bandwidths: tuple[float, ...]) -> None:
        self.bandwidths = bandwidths

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        d2 = squared_distances(x, y)
        return sum(torch.exp(-d2 / (2 * s * s)) for s in self.bandwidths) / len(self.bandwidths)


@METRICS.register("mmd")
class MMD(Metric):
    """Unbiased MMD^2 with Gaussian kernels, mean over disjoint blocks.

        MMD^2 as in ``unbiased_mmd2``,    k(x, y) = mean over scales c of exp(-|x - y|^2 / (2 c^2 m^2)),
        m = median distance between real samples that differ

    Sees every difference of the two laws, most of all those at the kernels' scales; between 0 and 2 up to its noise,
    and independent of the features' unit and origin. m counts as given, though it comes from the data.

    The blocks are independent, so the standard error is that of a mean of independent values, s / sqrt(blocks).

    Args:
        scales: bandwidths as multiples of the median distance m.
        blocks: disjoint blocks; ``None`` takes at least 10 and keeps a block at 1,000 samples or fewer.
        seed: of the partition.
    """

    name = "mmd"

    def __init__(
        self, scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0), blocks: int | None = None, seed: int = 0
    ) -> None:
        if not scales or min(scales) <= 0:
            raise ValueError(
                f"MMD(scales={scales}): write positive multiples of the median distance, e.g. (0.5, 1., 2.)."
            )
        require_blocks("MMD", blocks)
        self.scales, self.blocks, self.seed = tuple(scales), blocks, seed

    def __call__(
        self, fake: FeatureSet | Tensor, real: FeatureSet | Tensor, train: FeatureSet | None = None
    ) -> list[MetricResult]:
        fake, real = as_pair(fake, real)
        median = median_distance(real.x)
        kernel = RBF(tuple(s * median for s in self.scales))
        blocks = number_of_blocks(len(fake), len(real), self.blocks)
        values = block_mmd2(fake.x, real.x, kernel, blocks=blocks, seed=self.seed)
        stderr = standard_error(values)
        return [self.result("mmd2", values.mean(), fake, real, stderr=stderr, n_blocks=blocks, median_distance=median)]
