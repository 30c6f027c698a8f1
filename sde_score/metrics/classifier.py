"""A small classifier, trained in seconds on the labelled training data, whose hidden layer serves as feature map.

Inception features say little about 8x8 or medical images. The features of a classifier of the very data do, at no
download.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sde_score.metrics.base import FEATURES, extract, to_unit
from sde_score.tensors import default_dtype


@FEATURES.register("classifier")
class SmallClassifier(nn.Module):
    """Two convolutions (a plain network for vectors), one hidden layer of features, class probabilities.

    ``fit`` first; then the call maps ``(B, *)`` in [0, 1] to ``((B, hidden), (B, K))``. Deterministic: the weights,
    the order of the data and the result depend on ``seed`` and the data only, and the global generator stays as it is.
    The features are standardised over the training data. ``accuracy`` on held-out images tells whether they say much.

    Args:
        hidden: width of the feature layer.
        width: channels of the first convolution.
        epochs: passes over the data; more for small sets, so that there are 200 steps.
        max_steps: optimiser steps, at most; keeps large data sets to seconds.
        batch_size: of the training.
        lr: largest learning rate (one-cycle schedule).
        seed: of weights, shuffling and the one-pixel shifts used as augmentation.
    """

    def __init__(
        self,
        hidden: int = 64,
        width: int = 32,
        epochs: int = 25,
        max_steps: int = 600,
        batch_size: int = 64,
        lr: float = 3e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.name = "classifier"
        self.hidden, self.width, self.seed = hidden, width, seed
        self.epochs, self.max_steps, self.batch_size, self.lr = epochs, max_steps, batch_size, lr
        self.body: nn.Module | None = None
        self.head: nn.Module | None = None
        self.register_buffer("centre", torch.tensor(0.0, dtype=torch.float32))
        self.register_buffer("spread", torch.tensor(1.0, dtype=torch.float32))
        # Each feature is brought to mean 0 and deviation 1 over the training data, so that distances have a scale.
        self.register_buffer("feature_mean", torch.zeros(hidden, dtype=torch.float32))
        self.register_buffer("feature_std", torch.ones(hidden, dtype=torch.float32))

    def _build(self, shape: torch.Size, num_classes: int) -> None:
        rank = len(shape) - 1
        if rank == 0:
            parts: list[nn.Module] = [nn.Linear(shape[0], 4 * self.hidden), nn.GELU()]
            flat = 4 * self.hidden
        elif rank <= 3:
            conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
            pool: Callable[..., nn.Module] = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[
                rank - 1
            ]
            half = tuple(max(1, min(14, n // 2)) for n in shape[1:])
            quarter = tuple(max(1, min(4, n // 2)) for n in half)
            w = self.width
            parts = [conv(shape[0], w, 3, padding=1), nn.GELU(), pool(half)]
            parts += [conv(w, 2 * w, 3, padding=1), nn.GELU(), pool(quarter), nn.Flatten()]
            flat = 2 * w
            for n in quarter:
                flat *= n
        else:
            raise ValueError(
                f"SmallClassifier takes vectors, series, images and volumes, not samples of shape {tuple(shape)}."
            )
        self.body = nn.Sequential(*parts, nn.Linear(flat, self.hidden), nn.GELU())
        self.head = nn.Linear(self.hidden, num_classes)

    def fit(self, images: Tensor, labels: Tensor, *, levels: int = 256) -> SmallClassifier:
        """Train on ``(N, *)`` images, floats in [0, 1] or integers below ``levels``, and ``(N,)`` integer labels."""
        images, labels = to_unit(images, levels=levels).float().cpu(), _as_labels(labels)
        if labels.shape != images.shape[:1]:
            raise ValueError(f"labels must be ({len(images)},), one for each image, got {tuple(labels.shape)}.")
        if len(labels) == 0 or int(labels.min()) < 0:
            raise ValueError("SmallClassifier.fit needs at least one image and labels from 0 upwards.")
        if not torch.isfinite(images).all():
            raise ValueError("SmallClassifier.fit got images with NaN or infinite values.")
        self.centre, self.spread = images.mean(), images.std(unbiased=False).clamp(min=1e-6)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self.seed)
            with default_dtype(torch.float32):
                self._build(images.shape[1:], int(labels.max()) + 1)
            self._train(images, labels)
        self.eval()
        with torch.no_grad():
            features = torch.cat([self._features(part) for part in images.split(1000)])
            self.feature_mean = features.mean(0)
            self.feature_std = features.std(0, unbiased=False)
            typical = float(self.feature_std.square().mean().sqrt())
            self.feature_std.clamp_(min=max(1e-3 * typical, 1e-6))  # a dead feature stays small
        return self

    def _train(self, images: Tensor, labels: Tensor) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        batch = min(self.batch_size, len(images))
        per_epoch = -(-len(images) // batch)
        steps = max(1, min(max(self.epochs * per_epoch, 200), self.max_steps))  # small sets need more passes
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=max(steps, 2))
        self.train()
        order = torch.empty(0, dtype=torch.long)
        for _ in range(steps):
            if len(order) == 0:
                order = torch.randperm(len(images), generator=generator)
            index, order = order[:batch], order[batch:]
            x = _shifted(images[index], generator)
            loss = nn.functional.cross_entropy(self.head(self._features(x)), labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        if not torch.isfinite(loss):
            raise RuntimeError(f"The classifier's training diverged (loss {float(loss)}); lower lr={self.lr}.")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.body is None or self.head is None:
            raise ValueError(
                "This classifier is not fitted. Write: feature = FEATURES.build('classifier').fit(train_images, "
                "train_labels)"
            )
        features = self._features(x)
        return (features - self.feature_mean) / self.feature_std, self.head(features).double().softmax(1)

    def _features(self, x: Tensor) -> Tensor:
        return self.body((x.float() - self.centre) / self.spread)

    def accuracy(self, images: Tensor, labels: Tensor, *, levels: int = 256) -> float:
        """Share of images whose likeliest class is their label."""
        labels = _as_labels(labels)
        predicted = extract(self, images, levels=levels).probabilities.argmax(1)
        if predicted.shape != labels.shape:
            raise ValueError(f"labels must be ({len(predicted)},), one for each image, got {tuple(labels.shape)}.")
        return float((predicted == labels).double().mean())


def _as_labels(labels: Tensor) -> Tensor:
    labels = torch.as_tensor(labels).cpu()
    if labels.dtype.is_floating_point or labels.dtype.is_complex:
        raise ValueError(f"labels must be integers, got {labels.dtype}. Write labels.long() if they are whole numbers.")
    return labels.long()


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """The whole batch moved by -1, 0 or 1 along each spatial axis; edges that leave are replaced by zeros."""
    for axis in range(2, x.ndim):
        step = int(torch.randint(-1, 2, (), generator=generator))
        if step and x.shape[axis] >= 16:  # on coarser grids one pixel is a large move
            x = x.roll(step, axis)
            x.select(axis, 0 if step > 0 else -1).zero_()
    return x
