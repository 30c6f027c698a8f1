"""Fréchet distance of Gaussians fitted to features; with Inception features it is the FID.

Heusel et al. 2017, "GANs trained by a two time-scale update rule", eq. 6.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sde_score.files import write_bytes
from sde_score.metrics.base import METRICS, FeatureSet, Metric, MetricResult, as_features, as_pair, require_same_map
from sde_score.metrics.errors import jackknife, jackknife_error, require_groups


@dataclass(frozen=True)
class GaussianStats:
    """Mean ``(d,)`` and unbiased covariance ``(d, d)`` of ``n`` features (0: unknown), float64, with what they are
    statistics of.
    """

    mean: Tensor
    cov: Tensor
    n: int
    feature: str = "given"
    fingerprint: str = ""
    source: str = ""

    @classmethod
    def of(cls, features: FeatureSet | Tensor) -> GaussianStats:
        """Of features ``(N, d)``, N at least 2; the covariance is sum of (x - mean)(x - mean)^T / (N - 1)."""
        f = as_features(features)
        mean = f.x.mean(0)
        centred = f.x - mean
        cov = centred.T @ centred / (len(f) - 1)
        return cls(mean, cov, len(f), f.feature, f.fingerprint, f.source)

    def save(self, path: str | os.PathLike) -> Path:
        """Write reference statistics as ``.npz``, whole or not at all.

        Raises:
            ValueError: another suffix.
        """
        import numpy as np

        if Path(path).suffix.lower() != ".npz":
            raise ValueError(f"Reference statistics are written as .npz; got {os.fspath(path)!r}.")

        buffer = io.BytesIO()
        np.savez(
            buffer, mean=self.mean.numpy(), cov=self.cov.numpy(), n=self.n,
            feature=self.feature, fingerprint=self.fingerprint, source=self.source,
        )  # fmt: skip
        return write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike) -> GaussianStats:
        """Read what ``save`` wrote, or what pytorch-fid and its kin do, the arrays ``mu`` and ``sigma``; executes no
        pickled code. The latter do not say how many features they are of, nor of which map.

        Raises:
            ValueError: the file is damaged or something else.
        """
        import zipfile

        import numpy as np

        try:
            with np.load(path, allow_pickle=False) as f:
                foreign = {"mu", "sigma"} <= set(f)
                missing = [] if foreign else [k for k in ("mean", "cov", "n", "feature", "fingerprint") if k not in f]
                if missing:
                    raise ValueError(f"it has {', '.join(sorted(f)) or 'no array'}, and lacks {', '.join(missing)}")
                mean, cov = (torch.from_numpy(f[k]).double() for k in (("mu", "sigma") if foreign else ("mean", "cov")))
                if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
                    raise ValueError(f"a mean of shape {tuple(mean.shape)}, a covariance of shape {tuple(cov.shape)}")
                if foreign:
                    return cls(mean, cov, 0, source=Path(path).name)
                return cls(mean, cov, int(f["n"]), str(f["feature"]), str(f["fingerprint"]), str(f["source"]))
        except (KeyError, ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{os.fspath(path)} holds no reference statistics ({error}). They are the arrays mean and cov that "
                "GaussianStats.of(features).save(path) writes, or mu and sigma as of pytorch-fid."
            ) from error


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

    Raises:
        ValueError: other shapes, or values that are not finite.
    """
    mean1, cov1, mean2, cov2 = (torch.as_tensor(a).double().cpu() for a in (mean1, cov1, mean2, cov2))
    d = mean1.numel()
    if not (mean1.shape == mean2.shape == (d,) and cov1.shape == cov2.shape == (d, d)):
        shapes = ", ".join(str(tuple(a.shape)) for a in (mean1, cov1, mean2, cov2))
        raise ValueError(f"frechet_distance needs means (d,) and covariances (d, d) of one width, got {shapes}.")
    if not all(a.isfinite().all() for a in (mean1, cov1, mean2, cov2)):
        raise ValueError(
            "Means or covariances are not finite, so the Fréchet distance has no value. Features with NaN or above "
            "1e150 do this: look for them, or divide the features by their deviation."
        )
    cross = torch.linalg.svdvals(_square_root(cov1) @ _square_root(cov2)).sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross
    return max(float(distance), 0.0)  # a squared distance; rounding gives -1e-15 for equal arguments


@METRICS.register("fd")
class FrechetDistance(Metric):
    """Fréchet distance of Gaussians fitted to features (FID with Inception features).

        FD = |mu1 - mu2|^2 + tr (S1 + S2 - 2 (S1 S2)^(1/2)),    mu, S = mean and unbiased covariance

    It compares two moments only and assumes nothing of the law beyond their existence; squared, in the features' unit
    squared. The plug-in value is biased upwards for few samples (2,000 Inception features give several units), so
    compare only equal N, or read ``details["bias_corrected"]``.

    The standard error is that of a delete-a-group jackknife over both sets: 0.9 to 1.5 times the true spread on
    Gaussian features (d = 10 and 64, N = 300 to 2,000). Of its G leave-out values v_j comes also the value without its
    bias of order 1/N, ``bias_corrected = G FD - (G - 1) mean v``, which may be negative.

    Args:
        groups: groups G of the jackknife; 0 for none, ``None`` for 10 up to width 512 (beyond that each costs seconds).
        seed: of the partition into groups.
    """

    name = "fd"

    def __init__(self, groups: int | None = None, seed: int = 0) -> None:
        require_groups("FrechetDistance", groups)
        self.groups, self.seed = groups, seed

    def __call__(
        self, fake: FeatureSet | Tensor, real: FeatureSet | Tensor | GaussianStats, train: FeatureSet | None = None
    ) -> list[MetricResult]:
        """``real`` may be features ``(M, d)`` or stored ``GaussianStats``; then only the generated set is resampled."""
        if isinstance(real, GaussianStats):
            fake, target, reference = as_features(fake), None, real
            require_same_map(
                (fake.feature, fake.fingerprint, fake.x.shape[1]),
                (real.feature, real.fingerprint, len(real.mean)),
            )
        else:
            fake, target = as_pair(fake, real)
            reference = GaussianStats.of(target)

        def distance(x: Tensor, y: Tensor | None = None) -> float:
            a, b = GaussianStats.of(x), reference if y is None else GaussianStats.of(y)
            return frechet_distance(a.mean, a.cov, b.mean, b.cov)

        value = distance(fake.x)
        groups = (10 if fake.x.shape[1] <= 512 else 0) if self.groups is None else self.groups
        sets = (fake.x,) if target is None else (fake.x, target.x)
        left_out = jackknife(distance, *sets, groups=groups, seed=self.seed)
        stderr, details = None, {"groups": 0}
        if left_out is not None:
            stderr = float(jackknife_error(left_out))
            groups = len(left_out)
            details = {"groups": groups, "bias_corrected": float(groups * value - (groups - 1) * left_out.mean())}
        # "fid" is reserved for Inception features: with others the number is not comparable with published ones.
        name = "fid" if fake.feature.startswith("inception") else "fd"
        result = self.result(name, value, fake, target, stderr=stderr, **details)
        if target is None:
            result.provenance.update(n_real=reference.n, real=reference.source, real_feature_hash=reference.fingerprint)
        return [result]
