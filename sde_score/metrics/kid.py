"""Kernel distance (KID with Inception features). Binkowski et al. 2018, "Demystifying MMD GANs", section 4."""

from __future__ import annotations

from torch import Tensor

from sde_score.metrics.base import METRICS, FeatureSet, Metric, MetricResult, as_pair
from sde_score.metrics.errors import number_of_blocks, require_blocks, standard_error
from sde_score.metrics.mmd import block_mmd2


def polynomial_kernel(x: Tensor, y: Tensor, *, degree: int = 3) -> Tensor:
    """k(x, y) = (x.y / d + 1)^degree, ``(N, d), (M, d) -> (N, M)``; Binkowski et al. 2018, section 4."""
    return (x @ y.T / x.shape[1] + 1) ** degree


@METRICS.register("kid")
class KernelDistance(Metric):
    """Unbiased polynomial MMD^2, mean over disjoint blocks.

        KID = mean over blocks of MMD^2(k),    k(x, y) = (x.y / d + 1)^degree,    MMD^2 as in ``unbiased_mmd2``

    Compares moments up to ``degree`` and assumes nothing of the law beyond their existence. Unbiased for every N, so
    small sets can be compared; a value below zero means "no difference seen". It depends on the features' origin and
    unit.

    The blocks are independent, so the standard error is that of a mean of independent values, s / sqrt(blocks). (The
    published code draws overlapping subsets and reports their deviation, which is no error of the mean.)

    Args:
        degree: of the polynomial; 3 is the published one.
        blocks: disjoint blocks; ``None`` takes at least 10 and keeps a block at 1,000 samples or fewer.
        seed: of the partition.
    """

    name = "kid"

    def __init__(self, degree: int = 3, blocks: int | None = None, seed: int = 0) -> None:
        if degree < 1:
            raise ValueError(f"KernelDistance(degree={degree}) must be at least 1; the published kernel has degree 3.")
        require_blocks("KernelDistance", blocks)
        self.degree, self.blocks, self.seed = degree, blocks, seed

    def __call__(
        self, fake: FeatureSet | Tensor, real: FeatureSet | Tensor, train: FeatureSet | None = None
    ) -> list[MetricResult]:
        fake, real = as_pair(fake, real)
        blocks = number_of_blocks(len(fake), len(real), self.blocks)
        values = block_mmd2(
            fake.x, real.x, lambda x, y: polynomial_kernel(x, y, degree=self.degree), blocks=blocks, seed=self.seed
        )
        name = "kid" if fake.feature.startswith("inception") else "kd"
        return [self.result(name, values.mean(), fake, real, stderr=standard_error(values), n_blocks=blocks)]
