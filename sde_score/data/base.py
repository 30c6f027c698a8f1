"""Data sets: splits that are read by index, and `load_dataset`, which finds them by name or by path."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_score.data.info import DataInfo, Scaler
from sde_score.registry import Registry
from sde_score.tensors import mix_seed

DATASETS = Registry("dataset", group="sde_score.datasets")
"""Functions `(**settings) -> DataSplits`. Settings named root, image_size, channels, holdout, download, on_error or
layout are offered by `load_dataset`."""


class Split(ABC):
    """One part of a data set, read by sample numbers."""

    name: str = "data"

    @abstractmethod
    def __len__(self) -> int:
        """How many samples there are."""

    @abstractmethod
    def _read(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """The samples `indices` (int64, in range), as `(x, y)`."""

    def __getitem__(self, indices: Tensor | Sequence[int] | slice) -> tuple[Tensor, Tensor | None]:
        """The samples `indices: (B,)`, as `x: (B, *)` in uint8 (levels) or float32 and `y: (B,)` in int64, or `None`
        without labels."""
        if isinstance(indices, slice):
            indices = range(*indices.indices(len(self)))
        if isinstance(indices, int):
            raise TypeError(f"A split is read in batches: write split[[{indices}]] for one sample.")
        indices = torch.as_tensor(list(indices) if isinstance(indices, range) else indices, dtype=torch.int64)
        if indices.ndim != 1:
            raise IndexError(f"Sample numbers have one axis, (B,); got shape {tuple(indices.shape)}.")
        if len(indices) and not (0 <= int(indices.min()) and int(indices.max()) < len(self)):
            raise IndexError(
                f"{self.name} has {len(self)} samples, 0 to {len(self) - 1}; asked for {int(indices.min())} .. "
                f"{int(indices.max())}."
            )
        return self._read(indices)


class TensorSplit(Split):
    """Samples in memory: `x: (N, *)` in uint8 or float32, `y: (N,)` in int64 or `None`."""

    def __init__(self, x: Tensor, y: Tensor | None = None, *, name: str = "data") -> None:
        if x.dtype not in (torch.uint8, torch.float32):
            raise TypeError(f"`TensorSplit(x)` holds uint8 levels or float32 values; got {x.dtype}.")
        if y is not None and (y.dtype != torch.int64 or tuple(y.shape) != (len(x),)):
            raise ValueError(
                f"`TensorSplit(y)` must be int64 of shape ({len(x)},), a label per sample; got {y.dtype} "
                f"{tuple(y.shape)}."
            )
        self.x, self.y, self.name = x, y, name

    def __len__(self) -> int:
        return len(self.x)

    def _read(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.x[indices], None if self.y is None else self.y[indices]


class LazySplit(Split):
    """Samples read when they are asked for: `read(i) -> x` for one sample, of shape `(*)`; labels in memory."""

    def __init__(self, read: Callable[[int], Tensor], n: int, y: Tensor | None = None, *, name: str = "data") -> None:
        self.read, self.n, self.y, self.name = read, n, y, name

    def __len__(self) -> int:
        return self.n

    def _read(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        x = torch.stack([self.read(i) for i in indices.tolist()])
        return x, None if self.y is None else self.y[indices]


class Subset(Split):
    """The samples `indices` of another split, in that order."""

    def __init__(self, split: Split, indices: Tensor, *, name: str = "data") -> None:
        self.split, self.indices, self.name = split, indices, name

    def __len__(self) -> int:
        return len(self.indices)

    def _read(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.split[self.indices[indices]]


@dataclass
class DataSplits:
    """A data set: its training part, its held-out part, the facts about it, and the exact law where it is known."""

    train: Split
    test: Split
    info: DataInfo
    law: Any = None

    def scaler(self, *, centered: bool = True, dequantize: bool = True, standardize: bool | None = None) -> Scaler:
        """The scaler for these data: grey levels to [-1, 1] or [0, 1], continuous data to mean 0 and deviation 1.

        `standardize=None` does so for every continuous data set but those with a known law, which keep their units.
        Statistics come from the training split: per number for vectors, per channel otherwise. Raises `ValueError`
        where a number or a channel is constant.
        """
        info = self.info
        if info.levels is not None:
            return Scaler(info.shape, levels=info.levels, centered=centered, dequantize=dequantize)
        if standardize is None:
            standardize = self.law is None
        mean, std = statistics(self.train) if standardize else (0.0, 1.0)
        return Scaler(info.shape, mean=mean, std=std)


def statistics(split: Split, *, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (float64) of a split: `(D,)` for vectors, `(C, 1, ..)` per channel otherwise.

    One pass in chunks; sums are taken about the first sample's mean, so that a large offset does not cancel the
    variance away.
    """
    first = split[[0]][0]
    axes = (0, *range(2, first.ndim))
    pivot = first.double().mean(axes, keepdim=True)
    total = total_sq = torch.zeros_like(pivot)
    count = 0
    for start in range(0, len(split), chunk):
        x = split[range(start, min(start + chunk, len(split)))][0].double() - pivot
        total, total_sq = total + x.sum(axes, keepdim=True), total_sq + x.square().sum(axes, keepdim=True)
        count += x.numel() // pivot.numel()
    mean = total / count
    std = (total_sq / count - mean.square()).clamp_min(0).sqrt()
    mean = mean + pivot
    constant = std <= 1e-12 * mean.abs().clamp_min(1e-30)
    if constant.any():
        where = constant.flatten().nonzero().flatten().tolist()[:8]
        raise ValueError(
            f"{split.name}: the numbers or channels {where} are constant, so the data have no density there. Leave "
            "them out."
        )
    return mean[0], std[0]


def hold_out(n: int, holdout: float, *, seed: int = 0, what: str = "the data") -> tuple[Tensor, Tensor]:
    """Numbers of the training and of the held-out samples: the last `holdout` of a fixed permutation of `n`.

    Both ascending, and the same on every machine and in every run for the same `n`.
    """
    if not 0 < holdout < 1:
        raise ValueError(
            f"`holdout` is the fraction of samples kept for testing, between 0 and 1; got {holdout}. Example: "
            "holdout=0.1."
        )
    if n < 2:
        raise ValueError(
            f"{what} has {n} sample{'s' * (n != 1)}: at least two are needed, one to train on and one to hold out."
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(mix_seed(seed, n)))
    held = min(max(1, round(n * holdout)), n - 1)
    return order[: n - held].sort().values, order[n - held :].sort().values


def split_tensors(x: Tensor, y: Tensor | None, *, holdout: float, name: str) -> tuple[TensorSplit, TensorSplit]:
    """Cut tensors into a training and a held-out split by `hold_out`."""
    parts = []
    for part, indices in zip(("train", "test"), hold_out(len(x), holdout, what=name)):
        parts.append(TensorSplit(x[indices], None if y is None else y[indices], name=f"{name}/{part}"))
    return parts[0], parts[1]


def data_root(root: str | os.PathLike | None) -> Path:
    """Where downloaded data sets lie: `root`, or the environment variable SDE_SCORE_DATA, or `./datasets`."""
    return Path(root if root is not None else os.environ.get("SDE_SCORE_DATA", "datasets")).expanduser()


def size_pair(image_size: int | Sequence[int]) -> tuple[int, int]:
    """`image_size` as (height, width): one number means square."""
    pair = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(pair) != 2 or not all(isinstance(n, int) and n >= 1 for n in pair):
        raise ValueError(f"`image_size` is a positive number, or a (height, width) pair of them; got {image_size!r}.")
    return pair


ARRAY_SUFFIXES = (".npy", ".npz")


def _looks_like_path(spec: str) -> bool:
    """Whether a data set's name is a path: it starts like one, ends like one, or has a separator before any bracket."""
    text = spec.strip()
    if text.startswith(("/", ".", "~")) or re.match(r"[A-Za-z]:[\\/]", text):
        return True
    if text.lower().endswith((".zip", *ARRAY_SUFFIXES)) or any(mark in text.partition("(")[0] for mark in "/\\"):
        return True
    return text.partition("(")[0].strip() not in DATASETS.names() and Path(text).is_dir()


def _from_path(text: str, **context: Any) -> DataSplits:
    """The data set at a bare path: an array file, or a folder or zip of images."""
    path = Path(text.strip()).expanduser()
    suffix = path.suffix.lower()
    if path.exists() and not path.is_dir() and suffix not in (".zip", *ARRAY_SUFFIXES):
        raise ValueError(
            f"Cannot read {str(path)!r} as a data set. Give a folder or a .zip of images, or a .npy or .npz array."
        )
    name = "array" if suffix in ARRAY_SUFFIXES and not path.is_dir() else "folder"
    # The path goes in as a value: no character in it can be mistaken for spec syntax.
    return DATASETS.build(name, str(path), **context)


def load_dataset(
    spec: str | DataSplits,
    *,
    root: str | os.PathLike | None = None,
    image_size: int | Sequence[int] | None = None,
    channels: int | None = None,
    holdout: float | None = None,
    download: bool | None = None,
    on_error: str | None = None,
    layout: str | None = None,
) -> DataSplits:
    """Load the data set that `spec` names.

    Args:
        spec: a registered name with settings (`"digits"`, `"mixture_grid(side=5)"`, `"folder(path='./cats',
            on_error='skip')"`), or a bare path: a folder or .zip of images, a .npy or .npz array. A `DataSplits` is
            returned as it is.
        root: folder of downloaded data sets; default: the environment variable SDE_SCORE_DATA, or `./datasets`.
        image_size: a number or (height, width) to which images are cropped and resized.
        channels: 1 or 3; by default what the data have.
        holdout: fraction kept for testing where there is no official test split.
        download: whether a missing data set may be fetched.
        on_error: `"raise"` or `"skip"`: what to do about a broken image.
        layout: order of an array's axes, for example `"NHWC"`.

    The settings after `spec` apply to data sets that have them; those written inside the spec win. Raises `ValueError`
    for unknown names and for an image size or channel count that the data set does not have, `FileNotFoundError` for a
    path where nothing is.
    """
    if isinstance(spec, DataSplits):
        return spec
    if not isinstance(spec, str):
        raise TypeError(
            f"A data set is a name, a path or `DataSplits`; got {type(spec).__name__}. From tensors: "
            "`sde_score.data.from_arrays(x, y)`."
        )
    offered = dict(
        root=root,
        image_size=image_size,
        channels=channels,
        holdout=holdout,
        download=download,
        on_error=on_error,
        layout=layout,
    )
    context = {k: v for k, v in offered.items() if v is not None}
    if _looks_like_path(spec):
        splits = _from_path(spec, **context)
    else:
        try:
            splits = DATASETS.build(spec, **context)
        except ValueError as error:
            if str(error).startswith("Unknown dataset"):
                raise ValueError(
                    f"{error} For data of your own give a path: './my_images', './images.zip', './array.npz'."
                ) from None
            raise
    if not isinstance(splits, DataSplits):
        raise TypeError(
            f"The data set {spec!r} returned {type(splits).__name__}: a registered function must return `DataSplits`."
        )
    info = splits.info
    if (
        image_size is not None
        and info.kind == "image"
        and "image_size" not in spec
        and info.shape[1:] != size_pair(image_size)
    ):
        raise ValueError(
            f"The images of {info.name} are {info.shape[1]}x{info.shape[2]}; image_size={image_size} is not available. "
            "Leave it out."
        )
    if channels is not None and info.kind == "image" and "channels" not in spec and info.channels != channels:
        raise ValueError(
            f"The images of {info.name} have {info.channels} channel(s); channels={channels} is not available. Leave "
            "it out."
        )
    return splits
