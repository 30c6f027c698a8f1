"""Fidelity and diversity apart, by k-nearest-neighbour manifolds.

Kynkäänniemi et al. 2019, "Improved precision and recall", eq. 1 and 2; Naeem et al. 2020, "Reliable fidelity and
diversity metrics", eq. 3 and 4 (density, coverage).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sde_score.metrics.base import METRICS, FeatureSet, Metric, MetricResult, as_pair, squared_distances
from sde_score.metrics.errors import block_indices, number_of_blocks, require_blocks, standard_error


class PRDC(NamedTuple):
    """Precision, recall, density, coverage."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbour_radii(x: Tensor, k: int, *, chunk: int) -> Tensor:
    """Squared distance of each row to its k-th nearest other row, ``(N,)``."""
    if not 1 <= k < len(x):
        raise ValueError(f"k = {k} neighbours need more than {k} samples and k >= 1, got {len(x)} samples.")
    radii = []
    for start in range(0, len(x), chunk):
        d2 = squared_distances(x[start : start + chunk], x)
        own = torch.arange(len(d2))
        d2[own, own + start] = math.inf  # a row is not its own neighbour
        radii.append(d2.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def prdc(fake: Tensor, real: Tensor, *, k: int = 5, chunk: int = 2000) -> PRDC:
    """The four numbers.

        precision = share of generated samples inside some ball of a real sample
        recall    = share of real samples inside some ball of a generated sample
        density   = mean number of real balls that hold a generated sample, over k
        coverage  = share of real balls that hold a generated sample

    A ball reaches to the k-th nearest neighbour in its own set.

    Args:
        fake: ``(N, d)``; real: ``(M, d)``.
        k: neighbours; both sets need more than k samples.
        chunk: samples at a time; bounds the memory.

    Raises:
        ValueError: too few samples, or features that are not finite.
    """
    fake, real = (features.x for features in as_pair(fake, real))
    real_radii, fake_radii = neighbour_radii(real, k, chunk=chunk), neighbour_radii(fake, k, chunk=chunk)
    precise = torch.zeros(len(fake), dtype=torch.bool)
    covered = torch.zeros(len(real), dtype=torch.bool)
    recalled = torch.zeros(len(real), dtype=torch.bool)
    inside = 0
    for start in range(0, len(fake), chunk):
        part = slice(start, start + chunk)
        d2 = squared_distances(fake[part], real)
        in_real = d2 <= real_radii[None]
        precise[part] = in_real.any(1)
        covered |= in_real.any(0)
        recalled |= (d2 <= fake_radii[part, None]).any(0)
        inside += int(in_real.sum())
    precision, recall, coverage = (float(hit.double().mean()) for hit in (precise, recalled, covered))
    return PRDC(precision, recall, inside / (k * len(fake)), coverage)


@METRICS.register("prdc")
class PrecisionRecall(Metric):
    """Improved precision and recall, density and coverage; the formulas stand at ``prdc``.

    They assume that distances in the feature space mean likeness. All depend on both set sizes, so compare at equal N
    only; precision, recall and coverage lie in [0, 1], density has the expectation 1 for equal laws of equal size.

    The values are those of all samples. Their standard errors come from disjoint blocks of both sets, s / sqrt(blocks):
    the values on small sets are others, but fluctuate as those on the whole do, neighbours being local. They were 0.7
    to 1.1 times the true spread (up to twice for a precision near 1; Gaussian features, d = 2 and 10, N = 300 and
    1,000). A binomial error would count the evaluated samples alone, as if the balls were given, and was up to three
    times too small there.

    Args:
        k: neighbours that define a ball; the papers use 3 and 5.
        blocks: disjoint blocks; ``None`` takes at least 10 and keeps a block at 1,000 samples or fewer. A block has at
            least 5 (k + 1) samples of each set; where there are not enough for two, there is no standard error.
        seed: of the partition.
    """

    name = "prdc"

    def __init__(self, k: int = 5, blocks: int | None = None, seed: int = 0) -> None:
        if k < 1:
            raise ValueError(f"PrecisionRecall(k={k}) must be at least 1; the papers use 3 and 5.")
        require_blocks("PrecisionRecall", blocks)
        self.k, self.blocks, self.seed = k, blocks, seed

    def __call__(
        self, fake: FeatureSet | Tensor, real: FeatureSet | Tensor, train: FeatureSet | None = None
    ) -> list[MetricResult]:
        fake, real = as_pair(fake, real)
        values = prdc(fake.x, real.x, k=self.k)
        blocks = number_of_blocks(len(fake), len(real), self.blocks, least=5 * (self.k + 1))
        ours, theirs = (block_indices(len(x), blocks, self.seed + i) for i, x in enumerate((fake, real)))
        parts = [prdc(fake.x[i], real.x[j], k=self.k) for i, j in zip(ours, theirs, strict=True)] if blocks > 1 else []
        columns = zip(*parts) if parts else [()] * len(values)
        return [
            self.result(name, value, fake, real, stderr=standard_error(column), better="higher", n_blocks=blocks)
            for name, value, column in zip(PRDC._fields, values, columns, strict=True)
        ]
