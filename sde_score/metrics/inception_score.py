"""Scores of class probabilities: inception score (Salimans et al. 2016, section 4), confidence and class histogram."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_score.metrics.base import METRICS, FeatureSet, Metric, MetricResult, as_features, block_indices, standard_error


def inception_score(probabilities: Tensor) -> float:
    """IS = exp E_x KL(p(y|x) || p(y)), between 1 and the number of classes.

    Args:
        probabilities: ``(N, K)``, rows sum to one.
    """
    p = torch.as_tensor(probabilities).double()
    if p.ndim != 2 or p.shape[0] == 0:
        raise ValueError(f"probabilities must be (N, K) with N > 0, got {tuple(p.shape)}.")
    if not torch.allclose(p.sum(1), torch.ones(len(p), dtype=p.dtype), atol=1e-4) or (p < 0).any():
        raise ValueError("Rows of probabilities must be non-negative and sum to 1; pass logits.softmax(1).")
    marginal = p.mean(0, keepdim=True)
    kl = (torch.xlogy(p, p) - torch.xlogy(p, marginal)).sum(1)
    return math.exp(float(kl.mean()))


def _probabilities(features: FeatureSet, metric: str) -> Tensor:
    if features.probabilities is None:
        raise ValueError(
            f"{metric} needs class probabilities, feature {features.feature!r} gives none. Use a classifier as "
            "feature: 'classifier' fitted on labelled data, or 'inception'."
        )
    return features.probabilities.double()


@METRICS.register("inception_score")
class InceptionScore(Metric):
    """Inception score over all samples at once; the standard error comes from disjoint splits.

    Args:
        splits: number of splits for the standard error; 1 for none.
        seed: of the partition.
    """

    name = "inception_score"

    def __init__(self, splits: int = 10, seed: int = 0) -> None:
        if splits < 1:
            raise ValueError(f"InceptionScore(splits={splits}) must be at least 1.")
        self.splits, self.seed = splits, seed

    def __call__(
        self, fake: FeatureSet, real: FeatureSet | None = None, train: FeatureSet | None = None
    ) -> list[MetricResult]:
        fake = as_features(fake, least=1)
        p = _probabilities(fake, "Inception score")
        splits = max(1, min(self.splits, len(p) // 10))
        parts = [inception_score(p[i]) for i in block_indices(len(p), splits, self.seed)]
        stderr = standard_error(parts)
        details = {}
        if real is not None and real.probabilities is not None:
            details["real_value"] = inception_score(real.probabilities)
        name = "inception_score" if fake.feature.startswith("inception") else "classifier_score"
        return [self.result(name, inception_score(p), fake, stderr=stderr, better="higher", n_splits=splits, **details)]


@METRICS.register("classes")
class Classes(Metric):
    """How sure a classifier is of the samples, and which classes come.

    Args:
        threshold: a sample counts as recognised when its largest class probability exceeds this.
    """

    name = "classes"

    def __init__(self, threshold: float = 0.9) -> None:
        if not 0 <= threshold < 1:
            raise ValueError(f"Classes(threshold={threshold}) must be in [0, 1).")
        self.threshold = threshold

    def __call__(
        self, fake: FeatureSet, real: FeatureSet | None = None, train: FeatureSet | None = None
    ) -> list[MetricResult]:
        fake = as_features(fake, least=1)
        p = _probabilities(fake, "The class histogram")
        sure = (p.max(1).values > self.threshold).double()
        histogram = torch.bincount(p.argmax(1), minlength=p.shape[1])
        q = histogram.double() / histogram.sum()
        details = {"histogram": histogram.tolist()}
        entropy = float(-torch.xlogy(q, q).sum() / math.log(2))
        if real is not None and real.probabilities is not None:
            r = real.probabilities
            details["real_value"] = float((r.max(1).values > self.threshold).double().mean())
            details["real_histogram"] = torch.bincount(r.argmax(1), minlength=r.shape[1]).tolist()
        n = len(sure)
        stderr = math.sqrt(float(sure.mean() * (1 - sure.mean())) / n)
        return [
            self.result("recognised", sure.mean(), fake, stderr=stderr, better="higher", **details),
            self.result("class_entropy_bits", entropy, fake, better=None, histogram=histogram.tolist()),
        ]
