"""Fréchet distance of Gaussians fitted to features; with Inception features it is the FID.

Heusel et al. 2017, "GANs trained by a two time-scale update rule", eq. 6.
"""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sde_score.files import write_bytes

from .base import METRICS, FeatureSet, Metric, MetricResult, as_features, as_pair, block_indices


@dataclass(frozen=True)
class GaussianStats:
    """Mean ``(d,)`` and unbiased covariance ``(d, d)`` of features, float64, with what they are statistics of."""

    mean: Tensor
    cov: Tensor
    n: int
    feature: str = "given"
    fingerprint: str = ""
    source: str = ""

    @classmethod
    def of(cls, features: FeatureSet | Tensor) -> GaussianStats:
        f = as_features(features)
        mean = f.x.mean(0)
        centred = f.x - mean
        cov = centred.T @ centred / (len(f) - 1)
        return cls(mean, cov, len(f), f.feature, f.fingerprint, f.source)

    def save(self, path: str | os.PathLike) -> Path:
        """Write reference statistics as ``.npz``, whole or not at all."""
        import numpy as np

        buffer = io.BytesIO()
        np.savez(
            buffer, mean=self.mean.numpy(), cov=self.cov.numpy(), n=self.n,
            feature=self.feature, fingerprint=self.fingerprint, source=self.source,
        )  # fmt: skip
        return write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike) -> GaussianStats:
        """Read what ``save`` wrote; executes no pickled code."""
        import numpy as np

        with np.load(path, allow_pickle=False) as f:
            mean, cov = (torch.from_numpy(f[k]).double() for k in ("mean", "cov"))
            return cls(mean, cov, int(f["n"]), str(f["feature"]), str(f["fingerprint"]), str(f["source"]))


def _square_root(cov: Tensor) -> Tensor:
    """Symmetric square root; rounding may leave eigenvalues of -1e-18, which are zeros."""
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Squared Fréchet distance of two Gaussians.

        FD = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)
        tr (S1 S2)^(1/2) = sum of singular values of S1^(1/2) S2^(1/2)

    The singular values of the product of symmetric roots are real and need no further root: the result stays finite
    and accurate for rank-deficient covariances (fewer samples than dimensions, duplicates), where the square root of
    the non-symmetric product ``S1 S2`` becomes complex or NaN.

    Args:
        mean1, mean2: ``(d,)``.
        cov1, cov2: ``(d, d)``, positive semi-definite.
    """
    mean1, cov1, mean2, cov2 = (torch.as_tensor(a).double().cpu() for a in (mean1, cov1, mean2, cov2))
    cross = torch.linalg.svdvals(_square_root(cov1) @ _square_root(cov2)).sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross
    return max(float(distance), 0.0)  # a squared distance; rounding gives -1e-15 for equal arguments


@METRICS.register("fd")
class FrechetDistance(Metric):
    """Fréchet distance of Gaussians fitted to features (FID with Inception features), with its standard error.

    A delete-a-group jackknife gives the standard error, and in ``details`` the value without its bias of order 1/N.

    The distance is biased upwards for few samples (2,000 Inception features give several units), so compare only
    equal N, or read ``details["bias_corrected"]``.

    On Gaussian features (d = 10 and 64, N = 300 to 2,000) the standard error was 0.9 to 1.5 times the true spread.

    Args:
        groups: groups of the jackknife; 0 for none, ``None`` for 10 up to width 512 (beyond that each costs seconds).
        seed: of the partition into groups.
    """

    name = "fd"

    def __init__(self, groups: int | None = None, seed: int = 0) -> None:
        if groups is not None and (groups == 1 or groups < 0):
            raise ValueError(f"FrechetDistance(groups={groups}): write 0 for no standard error, or at least 2.")
        self.groups, self.seed = groups, seed

    def __call__(
        self, fake: FeatureSet | Tensor, real: FeatureSet | Tensor | GaussianStats, train: FeatureSet | None = None
    ) -> list[MetricResult]:
        """``real`` may be features ``(M, d)`` or stored ``GaussianStats``; then only the generated set is resampled."""
        if isinstance(real, GaussianStats):
            fake, reference, target = as_features(fake), real, None
        else:
            fake, target = as_pair(fake, real)
            reference = GaussianStats.of(target)
        stats = GaussianStats.of(fake)
        value = frechet_distance(stats.mean, stats.cov, reference.mean, reference.cov)

        smallest = min(len(fake), len(target) if target is not None else len(fake))
        groups = (10 if fake.x.shape[1] <= 512 else 0) if self.groups is None else self.groups
        groups = min(groups, smallest // 2)
        stderr, details = None, {}
        if groups >= 2:
            leave_out = self._leave_one_out(fake, target, reference, groups)
            spread = (leave_out - leave_out.mean()).square().sum()
            stderr = math.sqrt(float(spread) * (groups - 1) / groups)
            details["bias_corrected"] = float(groups * value - (groups - 1) * leave_out.mean())
        # "fid" is reserved for Inception features: with others the number is not comparable with published ones.
        name = "fid" if fake.feature.startswith("inception") else "fd"
        result = self.result(name, value, fake, target, stderr=stderr, groups=groups, **details)
        if target is None:
            result.provenance.update(n_real=reference.n, real=reference.source, real_feature_hash=reference.fingerprint)
        return [result]

    def _leave_one_out(
        self, fake: FeatureSet, target: FeatureSet | None, reference: GaussianStats, groups: int
    ) -> Tensor:
        ours = block_indices(len(fake), groups, self.seed)
        theirs = None if target is None else block_indices(len(target), groups, self.seed + 1)
        values = []
        for j in range(groups):
            a = GaussianStats.of(fake.take(torch.cat(ours[:j] + ours[j + 1 :])))
            b = reference if theirs is None else GaussianStats.of(target.take(torch.cat(theirs[:j] + theirs[j + 1 :])))
            values.append(frechet_distance(a.mean, a.cov, b.mean, b.cov))
        return torch.tensor(values, dtype=torch.float64)
