"""The user's own arrays, tensors, data frames and data sets at hand. Images, vectors, series and volumes.

An array is put into shape and type batch by batch: it is held as it is, a `.npy` file not even that.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sde_score.data.base import DataSplits, Split, Subset, chunks_of, split_off
from sde_score.data.conversion import Array, as_array, as_condition, as_labels, as_tensor, check_dtype, from_dataset
from sde_score.data.info import Condition, DataInfo
from sde_score.registry import suggest

# Axes of the whole array -> the order that makes one sample channels-first; "+" is a new channel axis.
LAYOUTS = {
    "ND": "ND", "NCL": "NCL", "NLC": "NCL", "NL": "N+L",
    "NCHW": "NCHW", "NHWC": "NCHW", "NHW": "N+HW",
    "NCDHW": "NCDHW", "NDHWC": "NCDHW", "NDHW": "N+DHW",
}  # fmt: skip


class Rows(Protocol):
    """Samples `(N, *)` that are read by a slice or by numbers: an array, a tensor, a mapped file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Any, /) -> Array: ...


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
        f"{', '.join(fitting)}), for a file --config.data.layout={fitting[0]}."
    )


class Columns:
    """Some of the numbers of vectors `(N, D)`, in the order asked for."""

    is_lazy = True

    def __init__(self, rows: Rows, chosen: Sequence[int]) -> None:
        self.rows, self.chosen = rows, list(chosen)
        self.shape = (rows.shape[0], len(self.chosen))
        self.dtype = rows.dtype

    def __getitem__(self, rows: Any) -> Array:
        return self.rows[rows][:, self.chosen]


class ArraySplit(Split):
    """The samples of an array, made uint8 levels or real values, channels first, when they are read.

    Values are float64 where the array is, and float32 otherwise.

    Args:
        rows: an array, a tensor or a mapped file, `(N, *)`.
        layout: the order of its axes, a key of `LAYOUTS`.
        discrete: whether it holds levels.
        cond: conditions, each `(N, *)`.
        name: for messages.
    """

    def __init__(self, rows: Rows, layout: str, discrete: bool, cond: Mapping[str, Tensor], *, name: str) -> None:
        self.rows, self.layout, self.cond, self.name = rows, layout, dict(cond), name
        wide = as_tensor(rows[:1]).dtype == torch.float64
        self.dtype = torch.uint8 if discrete else torch.float64 if wide else torch.float32

    def __len__(self) -> int:
        return self.rows.shape[0]

    def _read(self, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = as_tensor(self.rows[indices] if isinstance(self.rows, Tensor) else self.rows[indices.numpy()])
        x, target = x.to(self.dtype), LAYOUTS[self.layout]
        x = x.unsqueeze(1) if "+" in target else x.permute([self.layout.index(axis) for axis in target])
        return x.contiguous(), {name: values[indices] for name, values in self.cond.items()}


def _choose_layout(rows: Rows, layout: str | None, discrete: bool, what: str) -> str:
    shape = tuple(rows.shape)
    layout = layout or _guess_layout(shape, discrete, what)
    if layout not in LAYOUTS:
        raise ValueError(f"Unknown layout {layout!r}.{suggest(layout, LAYOUTS)}")
    if len(layout) != len(shape):
        raise ValueError(f"{what} has shape {shape}, {len(shape)} axes; layout={layout!r} names {len(layout)}.")
    return layout


def _count_levels(rows: Rows, levels: int | None, what: str) -> int | None:
    """The number of levels of an array, `None` for real numbers; levels are looked through in chunks."""
    shape = tuple(rows.shape)
    if len(shape) < 2 or math.prod(shape) == 0:
        raise ValueError(
            f"{what} has shape {shape}: it needs samples along the first axis and at least one more axis, none of "
            "length 0."
        )
    dtype = as_tensor(rows[:1]).dtype
    if dtype == torch.bool:
        return 2
    if dtype.is_floating_point:
        if levels is not None:
            raise ValueError(
                f"{what} holds {dtype}: levels={levels} is for integers. Convert to uint8 levels, or leave "
                "`levels` out."
            )
        return None
    if dtype == torch.uint8 and levels in (None, 256):
        return 256
    ends = [(int(x.min()), int(x.max())) for _, x in _chunks(rows)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if levels is None:
        kind = str(getattr(rows, "dtype", dtype)).removeprefix("torch.")
        count = max(2, high + 1)
        grey = f" If they are grey levels, say how many: levels={count}, for a file --config.data.levels={count}."
        raise ValueError(
            f"{what} holds whole numbers from {low} to {high} ({kind}).{grey if 0 <= low and high < 256 else ''} If "
            "they are measurements, convert them: x.astype('float32')."
        )
    if low < 0 or high >= levels or not 2 <= levels <= 256:
        raise ValueError(
            f"{what} holds values from {low} to {high}; levels={levels} stands for 0 .. {levels - 1}, and 2 to 256 "
            "levels are possible."
        )
    return levels


def _chunks(rows: Rows) -> Iterator[tuple[int, Tensor]]:
    """(number of the first sample, some samples), one after the other."""
    for chunk in chunks_of(rows.shape[0], math.prod(rows.shape[1:])):
        yield chunk.start, as_tensor(rows[chunk.start : chunk.stop])


def _finite_samples(rows: Rows, skip: bool, columns: Sequence[str] | None, what: str) -> Tensor | None:
    """The numbers of the samples that are finite in float32, `None` for all of them.

    Raises `ValueError` naming the first that is not, unless they are to be skipped: then how many are is said.
    """
    bad, first, value = [], None, None
    for start, x in _chunks(rows):
        wrong = ~torch.isfinite(x.to(torch.float32))
        if wrong.any():
            bad.append(start + wrong.flatten(1).any(1).nonzero()[:, 0])
            if first is None:
                place = tuple(wrong.nonzero()[0].tolist())
                first, value = (start + place[0], *place[1:]), x[place].item()
    if first is None:
        return None
    n, numbers = rows.shape[0], torch.cat(bad)
    named = f" (column {columns[first[1]]!r})" if columns is not None and len(first) == 2 else ""
    said = (
        f"{what} is NaN, infinite or too large for float32 in {len(numbers)} of {n} samples, first at index "
        f"{first}{named}: {value}."
    )
    if not skip:
        raise ValueError(
            f"{said} Repair these samples, or leave them out: x[numpy.isfinite(x).reshape(len(x), -1).all(1)], for a "
            "file --config.data.on_error=skip."
        )
    if len(numbers) == n:
        raise ValueError(f"{said} No sample is left.")
    warnings.warn(f"{said} They are left out.", stacklevel=4)
    kept = torch.ones(n, dtype=torch.bool)
    kept[numbers] = False
    return kept.nonzero()[:, 0]


def _gather_conditions(y: Any, cond: Mapping[str, Any] | None, n: int, what: str) -> dict[str, Tensor | list[str]]:
    """Classes `y` and other conditions as one mapping, not yet converted."""
    found = {
        name: as_condition(values, n, f"The condition {name!r} of {what}") for name, values in (cond or {}).items()
    }
    if y is not None:
        if "y" in found:
            raise ValueError(f"{what}: `y` is given twice, as an argument and in `cond`.")
        found["y"] = as_labels(y, n, f"The labels of {what}")
    return found


def _pixel_range(split: Split, numbers: int = 2**20) -> tuple[float, float] | None:
    """The 0.5 % and 99.5 % quantiles of the values of a fixed part of a split, `None` for a constant."""
    size = split[[0]].x.numel()
    count = min(len(split), max(16, numbers // size))
    values = split[torch.arange(count) * (len(split) - 1) // max(1, count - 1)].x.double().numpy()
    low, high = (float(q) for q in np.quantile(values, (0.005, 0.995)))
    if low == high:  # nearly all values are one
        low, high = float(values.min()), float(values.max())
    return (low, high) if low < high else None


def from_arrays(
    x: Any,
    y: Any = None,
    *,
    cond: Mapping[str, Any] | None = None,
    x_test: Any = None,
    y_test: Any = None,
    cond_test: Mapping[str, Any] | None = None,
    x_val: Any = None,
    y_val: Any = None,
    cond_val: Mapping[str, Any] | None = None,
    conditions: Mapping[str, Condition] | None = None,
    columns: Sequence[str] | None = None,
    layout: str | None = None,
    levels: int | None = None,
    holdout: float = 0.1,
    on_error: str = "raise",
    name: str = "array",
) -> DataSplits:
    """A data set from arrays, tensors, data frames or a `torch.utils.data.Dataset`.

    Arrays and tensors are not copied; they may be of any order, stride, byte order and width. What they hold in float64
    stays float64 until it has been centred. A data frame (anything with `columns` and `to_numpy`, of pandas or polars)
    gives vectors of its columns of numbers; a column called `label`, `class` or the like is the labels. A data set is
    read once, into memory: its items are samples, pairs `(x, y)` or mappings with `x`.

    Args:
        x: `(N, ...)`. uint8 (or integers with `levels`) is discrete data; floats are continuous and will be
            standardised.
        y: labels `(N,)`, whole numbers or text; the same as `cond={"y": ...}`. The classes are those that occur.
        cond: what is known of each sample besides, by name, each `(N, *)`: `{"y": classes, "angle": radians}`.
        x_test, y_test, cond_test: the test part; by default the fraction `holdout` is held out, see `hold_out`.
        x_val, y_val, cond_val: a validation part; it is the test part where there is none.
        conditions: what the entries of `cond` are, where their type and axes do not tell: see `Condition.of`.
        columns: names of a vector's numbers, or of the channels.
        layout: the order of the axes, such as `"NHWC"`, where the shape does not tell: see `LAYOUTS`.
        levels: number of levels of integer data.
        holdout: fraction kept for testing.
        on_error: `"skip"` leaves samples out that are not finite, and says how many.
        name: for messages and reports.

    Raises `ValueError` for what is not plain real numbers (masked, complex, sparse, text, objects), NaN and infinite
    values (with their index), values outside the levels, unclear or unequal shapes, test labels that training lacks.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"`on_error` is 'raise' or 'skip'; got {on_error!r}.")
    given = [("train", x, y, cond, name)]
    for part, values, labels, more in (("val", x_val, y_val, cond_val), ("test", x_test, y_test, cond_test)):
        if values is not None:
            given.append((part, values, labels, more, f"the {part} part of {name}"))
    known: list[_Part] = []
    for part, values, labels, more, what in given:
        rows, labels, more, columns = _open(values, labels, more, columns, what)
        found = _count_levels(rows, levels, what)
        if known and found != levels:
            raise ValueError(f"{name}: only one of its parts holds grey levels.")
        levels = found
        known.append(_Part(part, rows, _gather_conditions(labels, more, rows.shape[0], what), what))
    described = _describe(known, conditions or {}, name)
    splits: dict[str, Split] = {}
    for one in known:
        converted = {
            key: described[key].convert(entry, one.rows.shape[0], f"The condition {key!r} of {one.what}")
            for key, entry in one.cond.items()
        }
        order = _choose_layout(one.rows, layout, levels is not None, one.what)
        split: Split = ArraySplit(one.rows, order, levels is not None, converted, name=f"{name}/{one.part}")
        kept = None if levels is not None else _finite_samples(one.rows, on_error == "skip", columns, one.what)
        splits[one.part] = split if kept is None else Subset(split, kept, name=split.name)
    shapes = {part: tuple(split[[0]].x.shape[1:]) for part, split in splits.items()}
    for part, shape in shapes.items():
        if shape != shapes["train"]:
            raise ValueError(
                f"{name}: the {part} part has samples of shape {shape}, the training part of {shapes['train']}."
            )
    if "test" not in splits:
        if "val" in splits:
            splits["test"] = splits.pop("val")
        else:
            splits["train"], splits["test"] = split_off(splits["train"], holdout, name=name)
    shown = _pixel_range(splits["train"]) if levels is None else None
    info = DataInfo(name, shapes["train"], levels, conditions=described, columns=columns, range=shown)
    return DataSplits(splits["train"], splits["test"], info, val=splits.get("val"))


class _Part:
    """One part of a data set as it was given."""

    def __init__(self, part: str, rows: Rows, cond: dict[str, Tensor | list[str]], what: str) -> None:
        self.part, self.rows, self.cond, self.what = part, rows, cond, what


def _open(
    values: Any, y: Any, cond: Mapping[str, Any] | None, columns: Sequence[str] | None, what: str
) -> tuple[Rows, Any, Mapping[str, Any] | None, Sequence[str] | None]:
    """(samples, labels, conditions, names of columns) of whatever was given."""
    from sde_score.data.tables import as_table  # which makes data sets with `from_arrays`

    if hasattr(values, "is_lazy"):
        check_dtype(values.dtype, what)
        return values, y, cond, columns
    table = as_table(values, what)
    if table is not None:
        label = table.find_label() if y is None and "y" not in (cond or {}) else None
        chosen = tuple(column for column in table.names if column != label)
        return table.numbers(chosen), y if label is None else table.columns[label], cond, columns or chosen
    items = from_dataset(values, what)
    if items is not None:
        values, more = items
        cond = more | dict(cond or {})
        if y is None:
            y = cond.pop("y", None)
    return as_array(values, what), y, cond, columns


def _describe(known: Sequence[_Part], given: Mapping[str, Condition], name: str) -> dict[str, Condition]:
    """What each condition is: classes by the training part, tokens by all parts."""
    train = known[0].cond
    if any(set(other.cond) != set(train) for other in known):
        raise ValueError(f"{name}: give labels and other conditions for all parts or for none.")
    missing = sorted(set(given) - set(train))
    if missing:
        raise ValueError(f"{name}: `conditions` describes {', '.join(missing)}, of which no values are given.")
    described = dict(given)
    for key in train.keys() - given.keys():
        described[key] = Condition.of(train[key], f"The condition {key!r} of {name}")
        if described[key].kind == "sequence":
            whole = torch.cat([as_tensor(one.cond[key]) for one in known])
            described[key] = Condition.of(whole, f"The condition {key!r} of {name}")
    return {key: described[key] for key in train}
