"""What a metric is: a number with its standard error and its origin.

Two registries. ``FEATURES`` holds maps from images to vectors, ``METRICS`` holds distances between two sets of such
vectors. Settings go to the constructor and data to the call, so that a metric is chosen by a component spec:

>>> from sde_score.metrics import METRICS
>>> METRICS.build("kid(blocks=5)").blocks
5
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sde_score.registry import Registry

METRICS = Registry("metric", group="sde_score.metrics")
FEATURES = Registry("feature", group="sde_score.features")


@dataclass(frozen=True)
class MetricResult:
    """One number and everything one needs to obtain it again.

    Args:
        name: what was measured, e.g. ``"fd"``.
        value: the number; NaN only together with ``error``.
        stderr: its standard error, ``None`` when it has none.
        better: ``"lower"``, ``"higher"`` or ``None``.
        n: number of generated samples that went in.
        provenance: numbers of samples, feature and its fingerprint, settings, seeds.
        details: further numbers, such as values per class.
        error: why there is no value.
    """

    name: str
    value: float
    stderr: float | None = None
    better: str | None = None
    n: int | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def __post_init__(self) -> None:
        if self.error is None and not math.isfinite(self.value):
            raise ValueError(f"{self.name} came out as {self.value}. Inspect the features: {self.provenance}")

    @property
    def label(self) -> str:
        """Name with the number of samples, since most metrics depend on it: ``fd@500``."""
        return self.name if self.n is None else f"{self.name}@{self.n}"

    def __float__(self) -> float:
        return float(self.value)

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.label} failed: {self.error}"
        spread = "" if self.stderr is None else f" ± {self.stderr:.2g}"
        return f"{self.label} = {self.value:.4g}{spread}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a failed metric has the value ``None``."""
        out = asdict(self)
        if self.error is not None:
            out["value"] = None
        return {"label": self.label, **out}


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set of samples.

    Args:
        x: features, ``(N, d)``, float64 on the CPU.
        feature: name of the feature map.
        fingerprint: hash of its weights, empty when it has none.
        data_hash: hash of the samples that went in.
        source: where the samples come from, in words.
        probabilities: class probabilities ``(N, K)`` when the feature map is a classifier.
    """

    x: Tensor
    feature: str = "given"
    fingerprint: str = ""
    data_hash: str = ""
    source: str = ""
    probabilities: Tensor | None = None

    def __len__(self) -> int:
        return self.x.shape[0]

    def take(self, index: Tensor) -> FeatureSet:
        """The subset with these indices."""
        probabilities = None if self.probabilities is None else self.probabilities[index]
        return replace(self, x=self.x[index], probabilities=probabilities, data_hash="")


def as_features(x: FeatureSet | Tensor, *, least: int = 2) -> FeatureSet:
    """Check features ``(N, d)`` at the door: rank, number and finiteness.

    Raises:
        ValueError: fewer than ``least`` rows, a wrong rank, or a row that is not finite (it is named).
    """
    features = x if isinstance(x, FeatureSet) else FeatureSet(torch.as_tensor(x))
    values = features.x
    if values.ndim != 2:
        raise ValueError(
            f"Features must be (N, d), got {tuple(values.shape)}. Pass images through extract('pixels', images) first."
        )
    if values.shape[0] < least:
        raise ValueError(f"This metric needs at least {least} samples, got {values.shape[0]}.")
    values = values.detach().to("cpu").double()
    bad = ~torch.isfinite(values).all(dim=1)
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} of {len(values)} samples have features that are not finite, the first is sample "
            f"{int(bad.nonzero()[0])}. Look at them first: x[~torch.isfinite(x).flatten(1).all(1)]."
        )
    return replace(features, x=values)


def as_pair(a: FeatureSet | Tensor, b: FeatureSet | Tensor, *, least: int = 2) -> tuple[FeatureSet, FeatureSet]:
    """Two feature sets that can be compared: the same map, the same weights, the same width."""
    a, b = as_features(a, least=least), as_features(b, least=least)
    if a.x.shape[1] != b.x.shape[1]:
        raise ValueError(
            f"Features differ in width: {a.x.shape[1]} against {b.x.shape[1]}. Use one feature map for both."
        )
    if (a.feature, a.fingerprint) != (b.feature, b.fingerprint) and "given" not in (a.feature, b.feature):
        raise ValueError(
            f"Features come from different maps: {a.feature} {a.fingerprint} against {b.feature} {b.fingerprint}. "
            "Extract both sets with the same object."
        )
    return a, b


def to_unit(x: Tensor, *, levels: int = 256) -> Tensor:
    """Images as floats in [0, 1]: integers are divided by ``levels - 1``, floats pass."""
    x = torch.as_tensor(x)
    if x.dtype.is_floating_point:
        return x.float() if x.dtype != torch.float64 else x
    return x.float() / (levels - 1)


def data_hash(x: Tensor) -> str:
    """First twelve hexadecimal digits of the SHA-256 of type, shape and bytes."""
    x = x.detach().cpu().contiguous()
    head = f"{x.dtype} {tuple(x.shape)}".encode()
    return hashlib.sha256(head + x.numpy().tobytes()).hexdigest()[:12]


def module_hash(module: nn.Module) -> str:
    """Hash of the weights of a network, so that two numbers can be told to be of the same feature map."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {data_hash(value)};".encode())
    return digest.hexdigest()[:12]


@torch.no_grad()
def extract(
    feature: str | Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    levels: int = 256,
    batch_size: int = 500,
    source: str = "",
    device: torch.device | str | None = None,
) -> FeatureSet:
    """Features of images.

    Args:
        feature: a spec (``"pixels"``, ``"random_conv(width=32)"``), any ``nn.Module`` or any callable that maps
            floats in [0, 1] of shape ``(B, *)`` to ``(B, d)``. A classifier returns ``(features, probabilities)``.
        images: ``(N, *)``, floats in [0, 1] or integers in ``0 .. levels - 1``.
        levels: number of grey levels of integer images.
        batch_size: images per call; the result does not depend on it for a network in evaluation mode.
        source: where the images come from, kept in the result.
        device: where to compute; default: where the images are.
    """
    function = FEATURES.build(feature) if isinstance(feature, str) else feature
    images = torch.as_tensor(images)
    if images.ndim < 2 or images.shape[0] == 0:
        raise ValueError(f"extract needs images (N, *) with N > 0, got {tuple(images.shape)}.")
    training = isinstance(function, nn.Module) and function.training
    if training:
        function.eval()
    rows, probabilities = [], []
    try:
        for chunk in images.split(batch_size):
            out = function(to_unit(chunk, levels=levels).to(device or images.device))
            if isinstance(out, tuple):
                out, p = out
                probabilities.append(p.cpu().double())
            rows.append(out.flatten(1).cpu().double())
    finally:
        if training:
            function.train()
    name = getattr(function, "name", None) or getattr(function, "__name__", None) or type(function).__name__
    return FeatureSet(
        x=torch.cat(rows),
        feature=name,
        fingerprint=module_hash(function) if isinstance(function, nn.Module) else "",
        data_hash=data_hash(images),
        source=source,
        probabilities=torch.cat(probabilities) if probabilities else None,
    )


class Metric(ABC):
    """A comparison of generated with real features; settings in the constructor, data in the call."""

    name: str = ""

    @abstractmethod
    def __call__(self, fake: FeatureSet, real: FeatureSet, train: FeatureSet | None = None) -> list[MetricResult]:
        """Compare.

        Args:
            fake: generated samples, ``(N, d)``.
            real: real samples that the model has not seen, ``(M, d)``.
            train: the training set; only metrics of memorisation ask for it.
        """

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, for the provenance."""
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}

    def result(
        self,
        name: str,
        value: float,
        fake: FeatureSet,
        real: FeatureSet | None = None,
        /,
        *,
        stderr: float | None = None,
        better: str | None = "lower",
        **details: Any,
    ) -> MetricResult:
        """A result with the provenance of both sets."""
        provenance: dict[str, Any] = {
            "metric": self.name,
            "settings": self.settings(),
            "feature": fake.feature,
            "feature_hash": fake.fingerprint,
            "dimension": fake.x.shape[1],
            "n_fake": len(fake),
            "fake": fake.source,
            "fake_hash": fake.data_hash,
        }
        if real is not None:
            provenance |= {"n_real": len(real), "real": real.source, "real_hash": real.data_hash}
        return MetricResult(name, float(value), stderr, better, len(fake), provenance, details)


def compare(
    fake: FeatureSet,
    real: FeatureSet,
    *,
    train: FeatureSet | None = None,
    metrics: Iterable[str | Metric] = ("fd", "kid", "prdc"),
    on_error: str = "record",
) -> list[MetricResult]:
    """Several metrics at once. With ``on_error="record"`` a failure becomes a result with its reason, so that a metric
    never ends a training run; with ``"raise"`` it is raised."""
    if on_error not in ("record", "raise"):
        raise ValueError(f"on_error is {on_error!r}; write 'record' or 'raise'.")
    results: list[MetricResult] = []
    for spec in metrics:
        metric = METRICS.build(spec)
        try:
            results += metric(fake, real, train)
        except (ValueError, RuntimeError, ArithmeticError) as error:
            if on_error == "raise":
                raise
            results.append(MetricResult(metric.name, math.nan, n=len(fake), error=f"{type(error).__name__}: {error}"))
    return results


def block_indices(n: int, blocks: int, seed: int) -> list[Tensor]:
    """A seeded random partition of ``range(n)`` into ``blocks`` disjoint sets whose sizes differ by one at most."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return list(order.tensor_split(blocks))


def standard_error(values: Tensor | Sequence[float]) -> float | None:
    """Standard error of the mean of independent values; ``None`` for fewer than two."""
    values = torch.as_tensor(values, dtype=torch.float64)
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances, ``(N, M)``. Exact differences while they are affordable, since the expanded form
    turns the distance 0 of equal rows into 1e-8 and so loses duplicates."""
    exact = a.shape[0] * b.shape[0] * a.shape[1] < 2e10
    mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist"
    return torch.cdist(a, b, compute_mode=mode).square()
