"""Data sets: splits that are read by index, and `load_dataset`, which finds them by name or by path."""

from __future__ import annotations

import inspect
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_score.data.info import DataInfo
from sde_score.data.sources import ARCHIVES
from sde_score.registry import Registry, SettingError, parse_spec, suggest

DATASETS: Registry[DataSplits] = Registry("dataset", group="sde_score.datasets")
"""Functions `(**settings) -> DataSplits`. Settings named root, image_size, channels, holdout, download, on_error,
frames, layout, levels, columns, max_pixels or memory_gb are offered by `load_dataset`."""

MAX_PIXELS = 2**26
"""Pixels of one image that are decoded, by default: 8192 x 8192."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples `x: (B, *)`, what is known of each besides, `cond`, each `(B, *)`, and their positions `(B,)`: the
    numbers that name their noise. Unpacks as `x, cond, positions`."""

    x: Tensor
    cond: dict[str, Tensor]
    positions: Tensor

    @property
    def y(self) -> Tensor | None:
        """The commonest condition: the classes `(B,)`, or `None`."""
        return self.cond.get("y")

    def __iter__(self) -> Iterator[Any]:
        return iter((self.x, self.cond, self.positions))


class Split(ABC):
    """One part of a data set, read by sample numbers."""

    name: str = "data"
    names: Sequence[str] | None = None  # of the samples, where they have some: files of images, for example

    @abstractmethod
    def __len__(self) -> int:
        """How many samples there are."""

    @abstractmethod
    def _read(self, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The samples `indices` (int64, in range), as `(x, cond)`."""

    def __getitem__(self, indices: Tensor | Sequence[int] | slice) -> Batch:
        """The samples `indices: (B,)`: `x: (B, *)` in uint8 (levels), float32 or float64, their conditions as
        `Condition` describes them, and as positions their numbers."""
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
        return Batch(*self._read(indices), indices)

    def keys(self, indices: Sequence[int]) -> list[bytes]:
        """What each of the samples `indices` is known by, whatever its number: its name where it has one, or else its
        values, as little-endian bytes in C order, without conditions."""
        if self.names is not None:
            return [self.names[i].encode("utf-8", "surrogateescape") for i in indices]
        return [row.tobytes() for row in _little_endian(self[indices].x)]


def _little_endian(x: Tensor) -> np.ndarray:
    values = x.contiguous().numpy()
    return values.astype(values.dtype.newbyteorder("<"), copy=False)


def _checked(cond: Mapping[str, Tensor] | None, n: int) -> dict[str, Tensor]:
    """Conditions of `n` samples."""
    cond = dict(cond or {})
    for name, values in cond.items():
        if values.ndim < 1 or len(values) != n:
            raise ValueError(
                f"The condition {name!r} must hold one entry per sample, shape ({n}, *); got {tuple(values.shape)}."
            )
    return cond


class TensorSplit(Split):
    """Samples in memory: `x: (N, *)` in uint8, float32 or float64, and their conditions, each `(N, *)`."""

    def __init__(self, x: Tensor, cond: Mapping[str, Tensor] | None = None, *, name: str = "data") -> None:
        if x.dtype not in (torch.uint8, torch.float32, torch.float64):
            raise TypeError(f"`TensorSplit(x)` holds uint8 levels, float32 or float64 values; got {x.dtype}.")
        self.x, self.cond, self.name = x, _checked(cond, len(x)), name

    def __len__(self) -> int:
        return len(self.x)

    def _read(self, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.x[indices].contiguous(), {name: values[indices] for name, values in self.cond.items()}


class LazySplit(Split):
    """Samples read when they are asked for: `read(i) -> x` for one sample, of shape `(*)`; conditions in memory."""

    def __init__(
        self, read: Callable[[int], Tensor], n: int, cond: Mapping[str, Tensor] | None = None, *, name: str = "data"
    ) -> None:
        self.read, self.n, self.cond, self.name = read, n, _checked(cond, n), name

    def __len__(self) -> int:
        return self.n

    def _read(self, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.stack([self.read(i) for i in indices.tolist()])
        return x, {name: values[indices] for name, values in self.cond.items()}


class Subset(Split):
    """The samples `indices` of another split, in that order; nothing is copied."""

    def __init__(self, split: Split, indices: Tensor, *, name: str = "data") -> None:
        self.split, self.indices, self.name = split, indices, name
        if split.names is not None:
            self.names = [split.names[i] for i in indices.tolist()]

    def __len__(self) -> int:
        return len(self.indices)

    def _read(self, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.split[self.indices[indices]]
        return batch.x, batch.cond


@dataclass
class DataSplits:
    """A data set: its training part, its held-out part, the facts about it, the exact law where it is known, and a
    validation part where it comes with one."""

    train: Split
    test: Split
    info: DataInfo
    law: Any = None
    val: Split | None = None

    def fingerprint(self, numbers: int = 2**20) -> dict[str, Any]:
        """What tells these data from others, the same on every machine: `{"train": n, "test": m, "digest": hex}`.

        The digest is of shape, levels and samples with their conditions: of all samples of a part of at most so many
        `numbers`, otherwise of as many as have that many, at least 16, evenly spread. Samples drawn from a known law
        are not looked at: they are what their name and settings say, and differ in a last digit between machines.
        """
        digest = blake2b(json.dumps([self.info.shape, self.info.levels]).encode(), digest_size=16)
        for split in (self.train, self.test) if self.law is None else ():
            count = min(len(split), max(16, numbers // self.info.dim))
            chosen = torch.arange(count) * (len(split) - 1) // max(1, count - 1)
            for chunk in chunks_of(count, self.info.dim):
                batch = split[chosen[chunk.start : chunk.stop]]
                for values in (batch.x, *(batch.cond[name] for name in sorted(batch.cond))):
                    digest.update(_little_endian(values).tobytes())
        return {"train": len(self.train), "test": len(self.test), "digest": digest.hexdigest()}


def chunks_of(n: int, size: int, numbers: int = 2**20) -> Iterator[range]:
    """0 .. n - 1 in ranges, each of samples with about `numbers` numbers in all; `size` of them per sample."""
    step = max(1, numbers // max(1, size))
    return (range(start, min(start + step, n)) for start in range(0, n, step))


def select_columns(
    wanted: str | int | Sequence[str | int], names: Sequence[str] | None, n: int, what: str
) -> list[int]:
    """The numbers of columns given by name or by number (from 0) among `n`; `ValueError` for one that is not there."""
    found = []
    for column in (wanted,) if isinstance(wanted, (str, int)) else wanted:
        if isinstance(column, str) and names is not None and column in names:
            found.append(list(names).index(column))
        elif str(column).lstrip("-").isdigit() and (names is None or not isinstance(column, str)):
            if not 0 <= int(column) < n:
                raise ValueError(f"{what} has the columns 0 .. {n - 1}; there is no column {column}.")
            found.append(int(column))
        else:
            raise ValueError(f"{what} has no column {column!r}.{suggest(str(column), names or map(str, range(n)))}")
    if len(set(found)) < len(found):
        raise ValueError(f"{what}: a column is asked for twice in {wanted}.")
    return found


def hold_out(keys: Iterable[bytes], holdout: float, *, what: str = "the data") -> tuple[Tensor, Tensor]:
    """Numbers of the training and of the held-out items, both ascending; `keys` are what the items are known by.

    An item is held out if a fixed hash of its key falls into the lowest `holdout` of the hash's range: about that share
    of them, the same on every machine, and none changes sides when others come or go. Equal keys stay together. If all
    fall on one side, the item nearest to the border goes to the other, with those equal to it. Raises `ValueError` for
    fewer than two items, or a `holdout` that is no fraction.
    """
    if not 0 < holdout < 1:
        raise ValueError(
            f"`holdout` is the fraction of samples kept for testing, between 0 and 1; got {holdout}. Example: "
            "holdout=0.1."
        )
    places = np.fromiter((int.from_bytes(blake2b(key, digest_size=8).digest(), "little") for key in keys), np.uint64)
    n = len(places)
    if n < 2:
        raise ValueError(
            f"{what} has {n} sample{'s' * (n != 1)}: at least two are needed, one to train on and one to hold out."
        )
    held = places < np.uint64(min(int(holdout * 2.0**64), 2**64 - 1))
    if held.all() or not held.any():
        nearest = places == (places.max() if held.all() else places.min())
        held = np.arange(n) == 0 if nearest.all() else held ^ nearest  # all: one item, n times over
    return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))


def split_off(split: Split, holdout: float, *, name: str) -> tuple[Subset, Subset]:
    """A training and a held-out part by `hold_out`; samples are read in chunks where they are known by their values."""
    size = split[[0]].x.numel() if len(split) and split.names is None else 1
    keys = (key for chunk in chunks_of(len(split), size) for key in split.keys(chunk))
    train, test = hold_out(keys, holdout, what=name)
    return Subset(split, train, name=f"{name}/train"), Subset(split, test, name=f"{name}/test")


def data_root(root: str | os.PathLike | None) -> Path:
    """Where downloaded data sets lie: `root`, or the environment variable SDE_SCORE_DATA, or `./datasets`."""
    return Path(root if root is not None else os.environ.get("SDE_SCORE_DATA", "datasets")).expanduser()


def size_pair(image_size: int | Sequence[int]) -> tuple[int, int]:
    """`image_size` as (height, width): one number means square."""
    pair = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(pair) != 2 or not all(isinstance(n, int) and n >= 1 for n in pair):
        raise ValueError(f"`image_size` is a positive number, or a (height, width) pair of them; got {image_size!r}.")
    return pair


ARRAY_SUFFIXES = (".npy", ".npz")
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")


def _looks_like_path(spec: str) -> bool:
    """Whether a data set's name is a path: it starts like one, ends like one, or has a separator before any bracket."""
    text = spec.strip()
    if text.startswith(("/", ".", "~")) or re.match(r"[A-Za-z]:[\\/]", text):
        return True
    known = (*ARCHIVES, *ARRAY_SUFFIXES, *TABLE_SUFFIXES)
    if text.lower().endswith(known) or any(mark in text.partition("(")[0] for mark in "/\\"):
        return True
    return text.partition("(")[0].strip() not in DATASETS.names() and Path(text).is_dir()


def _from_path(text: str, **context: Any) -> DataSplits:
    """The data set at a bare path: an array file, a table, or a folder, zip or tar of images."""
    path = Path(text.strip()).expanduser()
    known = (*ARCHIVES, *ARRAY_SUFFIXES, *TABLE_SUFFIXES)
    if path.exists() and not path.is_dir() and not path.name.lower().endswith(known):
        raise ValueError(
            f"Cannot read {str(path)!r} as a data set. Give a folder, a .zip or a .tar of images, a .npy or .npz "
            "array, or a .csv, .tsv or .parquet table."
        )
    # The path goes in as a value: no character in it can be mistaken for spec syntax.
    return DATASETS.build(_reader(path), str(path), **context)


def _reader(path: Path) -> str:
    """The registered data set that reads what lies at a path."""
    suffix = path.suffix.lower()
    if path.is_dir() or suffix not in ARRAY_SUFFIXES + TABLE_SUFFIXES:
        return "folder"
    return "array" if suffix in ARRAY_SUFFIXES else "table"


def load_dataset(
    spec: str | DataSplits,
    *,
    root: str | os.PathLike | None = None,
    image_size: int | Sequence[int] | None = None,
    channels: int | None = None,
    holdout: float | None = None,
    download: bool | None = None,
    on_error: str | None = None,
    frames: str | None = None,
    layout: str | None = None,
    levels: int | None = None,
    columns: Sequence[str | int] | None = None,
    max_pixels: int | None = None,
    memory_gb: float | None = None,
) -> DataSplits:
    """Load the data set that `spec` names.

    Args:
        spec: a registered name with settings (`"digits"`, `"mixture_grid(side=5)"`, `"folder(path='./cats',
            on_error='skip')"`), or a bare path: a folder, .zip or .tar of images, a .npy or .npz array,
            a .csv, .tsv or .parquet table. A `DataSplits` is returned as it is.
        root: folder of downloaded data sets; default: the environment variable SDE_SCORE_DATA, or `./datasets`.
        image_size: a number or (height, width) to which images are cropped and resized.
        channels: 1 or 3; by default what the data have.
        holdout: fraction kept for testing where there is no official test split.
        download: whether a missing data set may be fetched.
        on_error: `"raise"` or `"skip"`: what to do about a broken image, or a sample that is not finite.
        frames: `"first"` or `"all"`: what to take of a file that holds several images.
        layout: order of an array's axes, for example `"NHWC"`.
        levels: how many grey levels an array of whole numbers has, or images of more than 8 bits.
        columns: the columns of a table, or the numbers of vectors, that are kept: by name, or by number from 0.
        max_pixels: images of more pixels than these are refused before they are decoded; default 2^26.
        memory_gb: how much decoded data may be kept in memory.

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
        frames=frames,
        layout=layout,
        levels=levels,
        columns=columns or None,
        max_pixels=max_pixels,
        memory_gb=memory_gb,
    )
    context = {k: v for k, v in offered.items() if v is not None}
    if _looks_like_path(spec):
        splits = _from_path(spec, **context)
    else:
        try:
            splits = DATASETS.build(spec, **context)
        except ValueError as error:
            if str(error).startswith("Unknown dataset"):
                raise SettingError(
                    f"{error} For data of your own give a path: './my_images', './images.zip', './array.npz'."
                ) from None
            raise
    if not isinstance(splits, DataSplits):
        raise TypeError(
            f"The data set {spec!r} returned {type(splits).__name__}: a registered function must return `DataSplits`."
        )
    _check_facts(splits.info, spec, image_size, channels)
    return splits


def _check_facts(info: DataInfo, spec: str, image_size: int | Sequence[int] | None, channels: int | None) -> None:
    """Refuse settings that a data set did not follow; what the spec itself says is between the two of them."""
    if info.kind != "image":
        return
    if image_size is not None and "image_size" not in spec and info.shape[1:] != size_pair(image_size):
        raise SettingError(
            f"The images of {info.name} are {info.shape[1]}x{info.shape[2]}; image_size={image_size} is not available. "
            "Leave it out."
        )
    if channels is not None and "channels" not in spec and info.channels != channels:
        raise SettingError(
            f"The images of {info.name} have {info.channels} channel(s); channels={channels} is not available. Leave "
            "it out."
        )


def settings_of(spec: str) -> tuple[set[str], set[str]]:
    """The settings of `load_dataset` that the set named by `spec` has, and those that are written inside the spec."""
    if _looks_like_path(spec):
        name, written = _reader(Path(spec.strip()).expanduser()), {}
    else:
        name, written = parse_spec(spec)
    parameters = inspect.signature(DATASETS.get(name)).parameters.values()
    offered = {p.name for p in inspect.signature(load_dataset).parameters.values() if p.kind is p.KEYWORD_ONLY}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return offered if open_ended else offered & {p.name for p in parameters}, offered & written.keys()
