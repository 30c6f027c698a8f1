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


class PRDC(NamedTuple):
    """Precision, recall, density, coverage."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbour_radii(x: Tensor, k: int, *, chunk: int = 2000) -> Tensor:
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
    """
    real_radii, fake_radii = neighbour_radii(real, k), neighbour_radii(fake, k)
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
    mean = lambda hit: float(hit.double().mean())  # noqa: E731
    return PRDC(mean(precise), mean(recalled), inside / (k * len(fake)), mean(covered))


@METRICS.register("prdc")
class PrecisionRecall(Metric):
    """Improved precision and recall, density and coverage.

    The standard errors of the shares are binomial: they count the evaluated samples, not the choice of the manifold.
    Precision and recall depend on both set sizes, so compare at equal N only.

    Args:
        k: neighbours that define a ball; the papers use 3 and 5.
    """

    name = "prdc"

    def __init__(self, k: int = 5) -> None:
        if k < 1:
            raise ValueError(f"PrecisionRecall(k={k}) must be at least 1; the papers use 3 and 5.")
        self.k = k

    def __call__(
        self, fake: FeatureSet | Tensor, real: FeatureSet | Tensor, train: FeatureSet | None = None
    ) -> list[MetricResult]:
        fake, real = as_pair(fake, real)
        values = prdc(fake.x, real.x, k=self.k)
        counts = {"precision": len(fake), "recall": len(real), "coverage": len(real)}
        results = []
        for name, value in values._asdict().items():
            stderr = math.sqrt(value * (1 - value) / counts[name]) if name in counts else None
            results.append(self.result(name, value, fake, real, stderr=stderr, better="higher"))
        return results
