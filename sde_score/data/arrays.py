"""The user's own arrays: `.npy`, `.npz`, or tensors at hand. Images, vectors, series and volumes.

An array is put into shape and type batch by batch: it is held as it is, a `.npy` file not even that.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from sde_score.data.base import DATASETS, MAX_PIXELS, DataSplits, Split, chunks_of, split_off
from sde_score.data.info import Condition, DataInfo

# Axes of the whole array -> the order that makes one sample channels-first; "+" is a new channel axis.
LAYOUTS = {
    "ND": "ND", "NCL": "NCL", "NLC": "NCL", "NL": "N+L",
    "NCHW": "NCHW", "NHWC": "NCHW", "NHW": "N+HW",
    "NCDHW": "NCDHW", "NDHWC": "NCDHW", "NDHW": "N+DHW",
}  # fmt: skip
X_KEYS = ("x", "images", "data", "arr_0")
Y_KEYS = ("y", "labels", "targets", "arr_1")


def _guess_layout(shape: tuple[int, ...], discrete: bool, what: str) -> str:
    """The order of an array's axes where only one makes sense; `ValueError` that asks for `layout` otherwise."""
    if len(shape) == 2:
        return "ND"
    if len(shape) == 3 and discrete:
        return "NHW"
    if len(shape) == 3 and shape[1] < shape[2]:
        return "NCL"
    if len(shape) in (4, 5):
        first, last = shape[1] in (1, 3), shape[-1] in (1, 3)
        if first != last:
            order = ("NCHW", "NHWC") if len(shape) == 4 else ("NCDHW", "NDHWC")
            return order[0] if first else order[1]
    fitting = [layout for layout in LAYOUTS if len(layout) == len(shape)]
    if not fitting:
        raise ValueError(f"{what} has shape {shape}: the first axis counts the samples, and a sample has 1 to 4 axes.")
    raise ValueError(
        f"{what} has shape {shape}: which axis holds the channels is not clear. Say it: layout='{fitting[0]}' (one of "
        f"{', '.join(fitting)})."
    )


def _as_tensor(values: Any) -> Tensor:
    """Numbers as a tensor, without a copy where torch can take them as they are."""
    if isinstance(values, np.ndarray):
        dtype = values.dtype
        if dtype.kind not in "biufc":
            raise ValueError(f"The array holds {dtype}, which are not numbers.")
        if dtype.kind == "u" and dtype.itemsize > 1:  # torch computes little with wider unsigned types
            dtype = np.dtype(np.int64)
        elif dtype.kind == "f" and dtype.itemsize > 8:
            dtype = np.dtype(np.float64)
        # torch takes the machine's byte order only, no negative strides, and no memory it may not write to
        values = np.ascontiguousarray(values, dtype=dtype.newbyteorder("="))
        values = values if values.flags.writeable else values.copy()
    return torch.as_tensor(values)


class _MappedFile:
    """The array of a `.npy` file; each reading maps it anew, so that what was read does not stay in memory."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype, offset: int, order: str) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        self.settings: dict[str, Any] = dict(shape=shape, dtype=dtype, offset=offset, order=order)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return np.array(np.memmap(self.path, mode="r", **self.settings)[rows])


class ArraySplit(Split):
    """The samples of an array, made uint8 levels or float32 values, channels first, when they are read.

    Args:
        rows: an array, a tensor or a mapped file, `(N, *)`.
        layout: the order of its axes, a key of `LAYOUTS`.
        discrete: whether it holds levels.
        cond: conditions, each `(N, *)`.
        name: for messages.
    """

    def __init__(self, rows: Any, layout: str, discrete: bool, cond: Mapping[str, Tensor], *, name: str) -> None:
        self.rows, self.layout, self.cond, self.name = rows, layout, dict(cond), name
        self.dtype = torch.uint8 if discrete else torch.float32

    def __len__(self) -> int:
        return self.rows.shape[0]

    def _read(self, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = self.rows[indices] if isinstance(self.rows, Tensor) else self.rows[indices.numpy()]
        x = _as_tensor(chosen).to(self.dtype)
        target = LAYOUTS[self.layout]
        x = x.unsqueeze(1) if "+" in target else x.permute([self.layout.index(axis) for axis in target])
        return x.contiguous(), {name: values[indices] for name, values in self.cond.items()}


def _choose_layout(rows: Any, layout: str | None, what: str) -> str:
    shape = tuple(rows.shape)
    layout = layout or _guess_layout(shape, _as_tensor(rows[:1]).dtype in (torch.uint8, torch.bool), what)
    if layout not in LAYOUTS:
        raise ValueError(f"Unknown layout {layout!r}; known: {', '.join(LAYOUTS)}.")
    if len(layout) != len(shape):
        raise ValueError(f"{what} has shape {shape}, {len(shape)} axes; layout={layout!r} names {len(layout)}.")
    return layout


def _check_values(rows: Any, levels: int | None, what: str) -> int | None:
    """The number of levels of an array, `None` for real numbers; its values are looked through in chunks."""
    shape = tuple(rows.shape)
    if len(shape) < 2 or math.prod(shape) == 0:
        raise ValueError(
            f"{what} has shape {shape}: it needs samples along the first axis and at least one more axis, none of "
            "length 0."
        )
    first = _as_tensor(rows[:1])
    if first.dtype == torch.bool:
        return 2
    if first.is_complex():
        raise ValueError(f"{what} is complex: store the real and the imaginary part as two channels.")
    if first.is_floating_point():
        if levels is not None:
            raise ValueError(
                f"{what} holds {first.dtype}: levels={levels} is for integers. Convert to uint8 levels, or leave "
                "`levels` out."
            )
        _check_finite(rows, what)
        return None
    if first.dtype != torch.uint8 and levels is None:
        raise ValueError(
            f"{what} holds {first.dtype}: say how many levels there are (levels=17 for 0 .. 16, at most 256), or "
            "convert it to float32."
        )
    levels = levels or 256
    if first.dtype != torch.uint8 or levels != 256:
        _check_levels(rows, levels, what)
    return levels


def _chunks(rows: Any) -> Iterator[tuple[int, Tensor]]:
    """(number of the first sample, some samples), one after the other."""
    for chunk in chunks_of(rows.shape[0], math.prod(rows.shape[1:])):
        yield chunk.start, _as_tensor(rows[chunk.start : chunk.stop])


def _check_finite(rows: Any, what: str) -> None:
    bad, first, value = 0, None, None
    for start, x in _chunks(rows):
        wrong = ~torch.isfinite(x.to(torch.float32))
        if wrong.any():
            bad += int(wrong.flatten(1).any(1).sum())
            if first is None:
                place = tuple(wrong.nonzero()[0].tolist())
                first, value = (start + place[0], *place[1:]), x[place].item()
    if bad:
        raise ValueError(
            f"{what} is NaN, infinite or too large for float32 in {bad} of {rows.shape[0]} samples, first at index "
            f"{first}: {value}. Repair or remove them."
        )


def _check_levels(rows: Any, levels: int, what: str) -> None:
    ends = [(int(x.min()), int(x.max())) for _, x in _chunks(rows)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if low < 0 or high >= levels or not 2 <= levels <= 256:
        raise ValueError(
            f"{what} holds values from {low} to {high}; levels={levels} stands for 0 .. {levels - 1}, and 2 to 256 "
            "levels are possible."
        )


def _as_labels(values: Any, n: int, what: str) -> Tensor:
    y = _as_tensor(values)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.is_floating_point() or y.is_complex() or y.ndim != 1 or len(y) != n or int(y.min()) < 0:
        raise ValueError(
            f"The labels of {what} must be {n} integers from 0 up, shape ({n},); got {y.dtype} {tuple(y.shape)}."
        )
    return y


def _gather_conditions(y: Any, cond: Mapping[str, Any] | None, n: int, what: str) -> dict[str, Tensor]:
    """Classes `y` and other conditions as one mapping, not yet converted."""
    found = {name: _as_tensor(values) for name, values in (cond or {}).items()}
    if y is not None:
        if "y" in found:
            raise ValueError(f"{what}: `y` is given twice, as an argument and in `cond`.")
        found["y"] = _as_labels(y, n, what)
    return found


def from_arrays(
    x: Any,
    y: Any = None,
    *,
    cond: Mapping[str, Any] | None = None,
    x_test: Any = None,
    y_test: Any = None,
    cond_test: Mapping[str, Any] | None = None,
    conditions: Mapping[str, Condition] | None = None,
    layout: str | None = None,
    levels: int | None = None,
    holdout: float = 0.1,
    name: str = "array",
) -> DataSplits:
    """A data set from tensors or NumPy arrays, which are not copied.

    Args:
        x: `(N, ...)`. uint8 (or integers with `levels`) is discrete data; floats are continuous and will be
            standardised.
        y: integer labels `(N,)`; the same as `cond={"y": ...}`.
        cond: what is known of each sample besides, by name, each `(N, *)`: `{"y": classes, "angle": radians}`.
        x_test, y_test, cond_test: the test part; by default the fraction `holdout` is held out.
        conditions: what the entries of `cond` are, where their type and axes do not tell: see `Condition.of`.
        layout: the order of the axes, such as `"NHWC"`, where the shape does not tell: see `LAYOUTS`.
        levels: number of levels of integer data.
        holdout: fraction kept for testing.
        name: for messages and reports.

    Raises `ValueError` for NaN and infinite values (with their index), values outside the levels, unclear or unequal
    shapes.
    """
    held_out = f"the test part of {name}"
    arrays, known = [(x, y, cond, name)], []
    if x_test is not None:
        arrays.append((x_test, y_test, cond_test, held_out))
    for number, (values, labels, more, what) in enumerate(arrays):
        if not isinstance(values, (np.ndarray, Tensor, _MappedFile)):
            values = np.asarray(values)
        found = _check_values(values, levels, what)
        if number and found != levels:
            raise ValueError(f"{name}: only one of the training and the test part holds grey levels.")
        levels = found
        known.append((values, _gather_conditions(labels, more, values.shape[0], what), what))
    described = _describe(known, conditions or {}, name)
    splits = []
    for part, (values, more, what) in zip(("train", "test"), known):
        more = {
            key: described[key].convert(entry, values.shape[0], f"The condition {key!r} of {what}")
            for key, entry in more.items()
        }
        order = _choose_layout(values, layout, what)
        splits.append(ArraySplit(values, order, levels is not None, more, name=f"{name}/{part}"))
    shapes = [tuple(split[[0]].x.shape[1:]) for split in splits]
    if len(set(shapes)) > 1:
        raise ValueError(f"{name}: the test part has samples of shape {shapes[1]}, the training part of {shapes[0]}.")
    train, test = splits if len(splits) == 2 else split_off(splits[0], holdout, name=name)
    return DataSplits(train, test, DataInfo(name, shapes[0], levels, conditions=described))


def _describe(known: list, given: Mapping[str, Condition], name: str) -> dict[str, Condition]:
    """What each condition is, from the values of both parts."""
    names = [set(more) for _, more, _ in known]
    if any(other != names[0] for other in names):
        raise ValueError(f"{name}: give labels and other conditions for both parts or for neither.")
    missing = sorted(set(given) - names[0])
    if missing:
        raise ValueError(f"{name}: `conditions` describes {', '.join(missing)}, of which no values are given.")
    return {
        key: given[key] if key in given
        else Condition.of(torch.cat([more[key] for _, more, _ in known]), f"The condition {key!r} of {name}")
        for key in known[0][1]
    }  # fmt: skip


# --- files


@contextmanager
def _reading(path: str | os.PathLike) -> Iterator[None]:
    """What NumPy and zipfile say of a file, in one sentence."""
    try:
        yield
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error).lower():
            raise ValueError(
                f"{str(path)!r} holds pickled Python objects, or is not an array file: these are never loaded. Save "
                "one plain numeric array."
            ) from error
        raise ValueError(f"Cannot read {str(path)!r} as a .npy or .npz file: {error}. Is it complete?") from error


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], str, np.dtype]:
    """(shape, order, type) of an array in NumPy's format, from its first bytes."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its format is {version}, which no plain numbers need")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects")
    return shape, "F" if fortran else "C", dtype


def _check_header(shape: tuple[int, ...], dtype: np.dtype, max_pixels: int, where: str) -> None:
    if dtype.kind not in "biufc":
        raise ValueError(f"{where} holds {dtype}, which are not numbers.")
    size = math.prod(shape[1:])
    if size > max_pixels:
        raise ValueError(
            f"{where} has samples of {size} numbers (shape {shape}); at most max_pixels={max_pixels} are read. Raise "
            f"it with --config.data.max_pixels={size}, if that is meant."
        )


def _open_npy(path: Path, max_pixels: int) -> dict[str, Any]:
    with _reading(path), open(path, "rb") as file:
        shape, order, dtype = _read_header(file)
        offset = file.tell()
        if path.stat().st_size < offset + math.prod(shape) * dtype.itemsize:
            raise ValueError("it is shorter than its header says")
    _check_header(shape, dtype, max_pixels, repr(str(path)))
    return {"x": np.empty(shape, dtype) if 0 in shape else _MappedFile(path, shape, dtype, offset, order)}


class _NpzArrays(Mapping):
    """The arrays of a `.npz` file, each unpacked when asked for, once it is known how large it will be."""

    def __init__(self, path: Path, max_pixels: int, memory_gb: float) -> None:
        self.path, self.max_pixels, self.memory_gb = path, max_pixels, memory_gb
        with _reading(path), zipfile.ZipFile(path) as archive:
            self.members = {name.removesuffix(".npy"): name for name in archive.namelist()}

    def __iter__(self):
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, key: str) -> np.ndarray:
        where = f"{key!r} in {str(self.path)!r}"
        with _reading(self.path), zipfile.ZipFile(self.path) as archive, archive.open(self.members[key]) as file:
            shape, _, dtype = _read_header(file)
        gib = math.prod(shape) * dtype.itemsize / 2**30
        if gib > self.memory_gb:
            raise ValueError(
                f"{where} takes {gib:.3g} GiB when unpacked; at most memory_gb={self.memory_gb:g} are. Save it as "
                f".npy, which is read batch by batch, or raise it with --config.data.memory_gb={gib + 0.1:.1f}."
            )
        _check_header(shape, dtype, self.max_pixels, where)
        with _reading(self.path), zipfile.ZipFile(self.path) as archive, archive.open(self.members[key]) as file:
            return np.lib.format.read_array(file, allow_pickle=False)


def _open_arrays(path: Path, max_pixels: int, memory_gb: float) -> Mapping[str, Any]:
    with open(path, "rb") as file:
        packed = file.read(2) == b"PK"
    return _NpzArrays(path, max_pixels, memory_gb) if packed else _open_npy(path, max_pixels)


def _pick(arrays: Mapping[str, Any], labels: bool, path: str | os.PathLike) -> dict[str, Any]:
    """The arguments `x`, `y`, `x_test`, `y_test` of `from_arrays` among the arrays of a file."""
    if "x_train" in arrays:
        names = {"x": "x_train", "y": "y_train", "x_test": "x_test", "y_test": "y_test"}
    else:
        names = {part: next((k for k in keys if k in arrays), "") for part, keys in (("x", X_KEYS), ("y", Y_KEYS))}
        if not names["x"]:
            raise ValueError(
                f"{str(path)!r} holds {', '.join(arrays) or 'nothing'}: name the data {', '.join(X_KEYS)} or x_train."
            )
    wanted = {part: key for part, key in names.items() if key in arrays and (labels or not part.startswith("y"))}
    return {part: arrays[key] for part, key in wanted.items()}


@DATASETS.register("array")
def array(
    path: str | os.PathLike,
    layout: str | None = None,
    levels: int | None = None,
    holdout: float = 0.1,
    labels: bool = True,
    max_pixels: int = MAX_PIXELS,
    memory_gb: float = 8.0,
) -> DataSplits:
    """Your own array: a .npy or .npz file of uint8 images or of floats.

    A .npy is read from the disk batch by batch, so it may be larger than memory; a .npz is unpacked into memory, up to
    `memory_gb`. A .npz holds the data under `x`, `images`, `data` or `arr_0` and labels under `y`, `labels` or
    `targets`; or `x_train`, `y_train`, `x_test`, `y_test`. Pickled objects are refused. Floats are continuous data of
    any rank: (N, D), (N, C, L), (N, C, H, W), (N, C, D, H, W). Samples of more than `max_pixels` numbers are refused.
    """
    where = Path(path).expanduser()
    if not where.is_file():
        raise FileNotFoundError(
            f"There is no array file at {str(path)!r} (looked for {where.absolute()}). Check the path."
        )
    parts = _pick(_open_arrays(where, max_pixels, memory_gb), labels, path)
    return from_arrays(**parts, layout=layout, levels=levels, holdout=holdout, name=where.stem)
