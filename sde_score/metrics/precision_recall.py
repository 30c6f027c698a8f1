"""Fidelity and diversity apart, by k-nearest-neighbour manifolds.

Kynkäänniemi et al. 2019, "Improved precision and recall", eq. 1 and 2; Naeem et al. 2020, "Reliable fidelity and
diversity metrics", eq. 3 and 4 (density, coverage).
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sde_score.metrics.base import (
    METRICS,
    FeatureSet,
    Metric,
    MetricResult,
    as_pair,
    jackknife,
    jackknife_error,
    require_groups,
    squared_distances,
)


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
        k: neighbours; both sets need more than k samples.
        chunk: generated samples at a time; bounds the memory.

    Raises:
        ValueError: too few samples, or features that are not finite.
    """
    fake, real = (features.x for features in as_pair(fake, real))
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
    precision, recall, coverage = (float(hit.double().mean()) for hit in (precise, recalled, covered))
    return PRDC(precision, recall, inside / (k * len(fake)), coverage)


@METRICS.register("prdc")
class PrecisionRecall(Metric):
    """Improved precision and recall, density and coverage; the formulas stand at ``prdc``.

    They assume that distances in the feature space mean likeness. All depend on both set sizes, so compare at equal N
    only; precision, recall and coverage lie in [0, 1], density has the expectation 1 for equal laws of equal size.

    The standard errors are those of a delete-a-group jackknife over both sets: 0.9 to 1.9 times the true spread
    (Gaussian features, d = 2 and 10, N = 300). A binomial error would count the evaluated samples alone and be up to
    eight times too small, since neighbours share the balls that decide. A value of exactly 0 or 1 whose leave-out
    values are all the same has the error 0.

    Args:
        k: neighbours that define a ball; the papers use 3 and 5.
        groups: groups of the jackknife, each of which costs nearly as much as the values; 0 for no standard error.
        seed: of the partition into groups.
    """

    name = "prdc"

    def __init__(self, k: int = 5, groups: int = 10, seed: int = 0) -> None:
        if k < 1:
            raise ValueError(f"PrecisionRecall(k={k}) must be at least 1; the papers use 3 and 5.")
        require_groups("PrecisionRecall", groups)
        self.k, self.groups, self.seed = k, groups, seed

    def __call__(
        self, fake: FeatureSet | Tensor, real: FeatureSet | Tensor, train: FeatureSet | None = None
    ) -> list[MetricResult]:
        fake, real = as_pair(fake, real)
        values = prdc(fake.x, real.x, k=self.k)
        left_out = jackknife(
            partial(prdc, k=self.k), fake.x, real.x, groups=self.groups, seed=self.seed, least=self.k + 1
        )
        errors = [None] * len(values) if left_out is None else jackknife_error(left_out).tolist()
        return [
            self.result(name, value, fake, real, stderr=stderr, better="higher")
            for name, value, stderr in zip(values._fields, values, errors)
        ]
