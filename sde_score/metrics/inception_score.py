"""Scores of class probabilities: inception score (Salimans et al. 2016, section 4), confidence and class histogram."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_score.metrics.base import METRICS, FeatureSet, Metric, MetricResult, as_features
from sde_score.metrics.errors import block_indices, standard_error


def inception_score(probabilities: Tensor) -> float:
    """IS = exp E_x KL(p(y|x) || p(y)), between 1 and the number of classes.

    Args:
        probabilities: ``(N, K)``, rows sum to one.

    Raises:
        ValueError: rows that are no probabilities.
    """
    p = _checked(probabilities)
    marginal = p.mean(0, keepdim=True)
    kl = (torch.xlogy(p, p) - torch.xlogy(p, marginal)).sum(1)
    return math.exp(float(kl.mean()))


def _checked(probabilities: Tensor) -> Tensor:
    p = torch.as_tensor(probabilities).detach().cpu().double()
    if p.ndim != 2 or p.numel() == 0:
        raise ValueError(f"probabilities must be (N, K) with N > 0 and K > 0, got {tuple(p.shape)}.")
    bad = ~(((p.sum(1) - 1).abs() < 1e-4) & (p >= 0).all(1))  # true for NaN as well
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"Rows of probabilities must be non-negative and sum to 1, but row {first} is "
            f"{p[first, :5].tolist()}{' ...' if p.shape[1] > 5 else ''}; pass logits.softmax(1)."
        )
    return p


def _probabilities(features: FeatureSet, metric: str) -> Tensor:
    if features.probabilities is None:
        raise ValueError(
            f"{metric} needs class probabilities, feature {features.feature!r} gives none. Use a classifier as "
            "feature: 'classifier' fitted on labelled data, or 'inception'."
        )
    if len(features.probabilities) != len(features):
        raise ValueError(f"{len(features.probabilities)} rows of probabilities belong to {len(features)} samples.")
    return _checked(features.probabilities)


def _of_real(real: FeatureSet | Tensor | None) -> Tensor | None:
    """The probabilities of the real set, if it is given and has any."""
    if real is None or as_features(real, least=1).probabilities is None:
        return None
    return _checked(real.probabilities)


@METRICS.register("inception_score")
class InceptionScore(Metric):
    """Inception score over all samples at once.

        IS = exp E_x KL(p(y|x) || p(y)),    p(y) = mean over the samples of p(y|x)

    It looks at the generated samples only, and assumes that the classifier's classes are what should vary. Biased for
    few samples, so compare at equal N only. ``details["real_value"]`` is the score of the real samples.

    The standard error comes from disjoint splits of at least 10 samples, s / sqrt(splits). (The published figure is
    the mean of 10 splits and their deviation s.)

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
        theirs = _of_real(real)
        details = {} if theirs is None else {"real_value": inception_score(theirs)}
        name = "inception_score" if fake.feature.startswith("inception") else "classifier_score"
        return [self.result(name, inception_score(p), fake, stderr=stderr, better="higher", n_splits=splits, **details)]


@METRICS.register("classes")
class Classes(Metric):
    """How sure a classifier is of the samples, and which classes come.

        recognised    = share of samples whose largest class probability exceeds ``threshold``
        class entropy = -sum over classes c of q_c log2 q_c,    q_c = share of samples whose likeliest class is c

    Assumes a classifier that knows the data. Recognised samples are a binomial count: its error is
    sqrt(r (1 - r) / N). The entropy in bits lies between 0 and log2 K; plugged in, it is too low by about
    (K - 1) / (2 N ln 2), and its error is the delta method's sqrt((sum of q log2^2 q - H^2) / N), which vanishes for
    equal shares though the entropy then still varies by an amount of order 1/N.

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
        n = len(p)
        q = histogram[histogram > 0].double() / n
        entropy = float((q * -q.log2()).sum())
        spread = float((q * q.log2().square()).sum()) - entropy**2
        counts, theirs = {"histogram": histogram.tolist()}, {}
        r = _of_real(real)
        if r is not None:
            counts["real_histogram"] = torch.bincount(r.argmax(1), minlength=r.shape[1]).tolist()
            theirs["real_value"] = float((r.max(1).values > self.threshold).double().mean())
        share = float(sure.mean())
        sure_error, entropy_error = math.sqrt(share * (1 - share) / n), math.sqrt(max(spread, 0.0) / n)
        return [
            self.result("recognised", share, fake, stderr=sure_error, better="higher", **counts, **theirs),
            self.result("class_entropy_bits", entropy, fake, stderr=entropy_error, better=None, **counts),
        ]
