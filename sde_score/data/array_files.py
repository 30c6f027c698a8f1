"""Array files: `.npy`, which is mapped and never whole in memory, and `.npz`."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from sde_score.data.arrays import Columns, from_arrays
from sde_score.data.base import DATASETS, MAX_PIXELS, DataSplits, select_columns
from sde_score.data.conversion import check_dtype
from sde_score.registry import suggest

X_WORDS = ("x", "images", "data", "samples")
Y_WORDS = ("y", "labels", "targets", "classes")
PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


class MappedFile:
    """The array of a `.npy` file; each reading maps it anew, so that what was read does not stay in memory."""

    is_lazy = True

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype, offset: int, order: str) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        self.settings: dict[str, Any] = dict(shape=shape, dtype=dtype, offset=offset, order=order)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return np.array(np.memmap(self.path, mode="r", **self.settings)[rows])


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


def _check_size(shape: tuple[int, ...], max_pixels: int, where: str) -> None:
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
    _check_size(shape, max_pixels, repr(str(path)))
    check_dtype(dtype, repr(str(path)))
    return {"x": np.empty(shape, dtype) if 0 in shape else MappedFile(path, shape, dtype, offset, order)}


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
        _check_size(shape, self.max_pixels, where)
        with _reading(self.path), zipfile.ZipFile(self.path) as archive, archive.open(self.members[key]) as file:
            return np.lib.format.read_array(file, allow_pickle=False)


def _open_arrays(path: Path, max_pixels: int, memory_gb: float) -> Mapping[str, Any]:
    with open(path, "rb") as file:
        packed = file.read(2) == b"PK"
    return _NpzArrays(path, max_pixels, memory_gb) if packed else _open_npy(path, max_pixels)


def _words(words: Sequence[str], part: str) -> Iterator[str]:
    """How an array may be called: `x_test`, `test_x`, `images_test`; for training also `x`."""
    for word in words:
        if part == "train":
            yield word
        yield from (name for said in PARTS[part] for name in (f"{word}_{said}", f"{said}_{word}"))


def _find(arrays: Mapping[str, Any], words: Sequence[str], part: str, unnamed: str, path: object) -> str | None:
    """The key of one array, by its name in lower case; `ValueError` where there are two."""
    wanted = {*_words(words, part), *((unnamed,) if part == "train" else ())}
    found = [key for key in arrays if key.lower() in wanted]
    if len(found) > 1:
        raise ValueError(
            f"{str(path)!r} holds {' and '.join(found)}: which one is meant? Choose it, "
            f"--config.data.name=\"array(path={str(path)!r}, x={found[0]!r})\", or keep one of them."
        )
    return found[0] if found else None


def _pick(
    arrays: Mapping[str, Any], x: str | None, cond: Sequence[str], labels: bool, path: object
) -> dict[str, Any]:
    """The arguments of `from_arrays` among the arrays of a file.

    Raises `ValueError` for a file without data and for arrays of which it is not known what they are, unless `x` says
    which one is meant.
    """
    if x is not None and x not in arrays:
        raise ValueError(f"{str(path)!r} holds no {x!r}.{suggest(x, arrays)}")
    picked: dict[str, str] = {}
    for part in PARTS:
        ending = "" if part == "train" else f"_{part}"
        data = _find(arrays, X_WORDS, part, "arr_0", path) if x is None else x if part == "train" else None
        if data is not None:
            picked["x" + ending] = data
        known = _find(arrays, Y_WORDS, part, "arr_1", path)
        if known is not None and known != data:
            picked["y" + ending] = known
    if "x" not in picked:
        held = ", ".join(arrays) or "nothing"
        raise ValueError(f"{str(path)!r} holds {held}: name the data x, or x_train and x_test.")
    more: dict[str, dict[str, str]] = {}
    for name in cond:
        for part in PARTS:
            key = name if part == "train" and name in arrays else f"{name}_{part}"
            if key in arrays:
                more.setdefault("cond" + ("" if part == "train" else f"_{part}"), {})[name] = key
        if name not in more.get("cond", {}):
            raise ValueError(f"{str(path)!r} holds no condition {name!r}.{suggest(name, arrays)}")
    used = {*picked.values(), *(key for keys in more.values() for key in keys.values())}
    unknown = [key for key in arrays if key not in used]
    if unknown and x is None:
        first = unknown[0]
        raise ValueError(
            f"{str(path)!r} holds {', '.join(unknown)} beside {', '.join(sorted(used))}, and it is not known what that "
            f"is. If the network shall be told it, say cond=({first!r},); to use {picked['x']} alone, say "
            f"x={picked['x']!r}: --config.data.name=\"array(path={str(path)!r}, x={picked['x']!r})\"."
        )
    read: dict[str, Any] = {
        role: arrays[key] for role, key in picked.items()
        if (labels or not role.startswith("y")) and (role[0] == "x" or "x" + role[1:] in picked)
    }  # fmt: skip
    return read | {role: {name: arrays[key] for name, key in keys.items()} for role, keys in more.items()}


@DATASETS.register("array")
def array(
    path: str | os.PathLike,
    layout: str | None = None,
    levels: int | None = None,
    holdout: float = 0.1,
    labels: bool = True,
    x: str | None = None,
    cond: Sequence[str] = (),
    columns: Sequence[str | int] = (),
    on_error: str = "raise",
    max_pixels: int = MAX_PIXELS,
    memory_gb: float = 8.0,
) -> DataSplits:
    """Your own array: a .npy or .npz file of uint8 images or of floats.

    A .npy is read from the disk batch by batch, so it may be larger than memory; a .npz is unpacked into memory, up to
    `memory_gb`. A .npz holds the data under `x`, `images`, `data` or `samples`, labels under `y`, `labels`, `targets`
    or `classes`; parts of their own end in `_train`, `_val`, `_test` (`x_train`, `y_test`); arrays without names are
    the data and the labels. Pickled objects are refused. Floats are continuous data of any rank: (N, D), (N, C, L),
    (N, C, H, W), (N, C, D, H, W). Samples of more than `max_pixels` numbers are refused.

    Args:
        path: the file.
        layout, levels, holdout, on_error: see `from_arrays`.
        labels: whether labels of a .npz are used.
        x: the key of the data in a .npz, whatever it is called; other arrays are then left alone.
        cond: keys in a .npz of what the network can be told besides.
        columns: the numbers of a vector that are kept, counted from 0; default: all.
        max_pixels, memory_gb: limits of what is read.
    """
    where = Path(path).expanduser()
    if not where.is_file():
        raise FileNotFoundError(
            f"There is no array file at {str(path)!r} (looked for {where.absolute()}). Check the path."
        )
    parts = _pick(_open_arrays(where, max_pixels, memory_gb), x, cond, labels, path)
    names: tuple[str, ...] | None = None
    if columns:
        for role in [role for role in parts if role.startswith("x")]:
            rows = parts[role]
            if len(rows.shape) != 2:
                raise ValueError(f"`columns` choose among the numbers of vectors, (N, D); {path} has {rows.shape}.")
            chosen = select_columns(columns, None, rows.shape[1], str(path))
            parts[role], names = Columns(rows, chosen), tuple(map(str, chosen))
    return from_arrays(
        **parts, columns=names, layout=layout, levels=levels, holdout=holdout, on_error=on_error, name=where.stem
    )
