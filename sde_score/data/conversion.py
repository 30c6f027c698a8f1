"""Whatever holds numbers, as an array: one conversion for files and for Python, with one set of refusals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray | Tensor


def as_array(values: Any, what: str) -> Array:
    """Numbers as a NumPy array or a tensor on the CPU, not copied where they are one already.

    Takes arrays of any order, stride, byte order and width, tensors on any device and with gradients, nested lists,
    lists of arrays or tensors, and whatever NumPy knows how to read. Raises `ValueError` for what is not plain real
    numbers: masked, sparse, quantised, complex, structured, text, dates, Python objects; each with what to do.
    """
    if isinstance(values, (list, tuple)) and values and isinstance(values[0], Tensor):
        values = _stacked(values, what)
    if isinstance(values, Tensor):
        return _plain_tensor(values, what)
    if isinstance(values, np.ma.MaskedArray):
        hidden = int(np.ma.count_masked(values))
        if hidden:
            raise ValueError(
                f"{what} has {hidden} masked values, and what they hide must not be learnt from. Fill them, "
                "x.filled(...), or leave those samples out."
            )
        values = values.data
    if not isinstance(values, np.ndarray):
        values = _read_by_numpy(values, what)
    check_dtype(values.dtype, what)
    return np.asarray(values)  # a plain array also of a subclass


def check_dtype(dtype: np.dtype, what: str) -> None:
    """Raise `ValueError` for a type of array that holds no plain real numbers."""
    if dtype.kind in "biuf":
        return
    if dtype.kind == "c":
        raise ValueError(f"{what} is complex: store the real and the imaginary part as two channels.")
    advice = {
        "O": "Python objects: convert them, x.astype(float), or if they are of unequal length, bring them to one",
        "V": "records: choose fields that are numbers, and stack them along a last axis",
        "M": "dates: say them as numbers, such as (x - x[0]) / np.timedelta64(1, 's')",
        "m": "times: say them as numbers, x / np.timedelta64(1, 's')",
    }.get(dtype.kind, "text")
    raise ValueError(f"{what} holds {dtype}, which are not numbers but {advice}.")


def _stacked(values: Sequence[Any], what: str) -> Tensor:
    try:
        return torch.stack([_plain_tensor(value, what) for value in values])
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{what} is a list of tensors that are not all alike: {error}.") from None


def _plain_tensor(x: Tensor, what: str) -> Tensor:
    if x.layout is not torch.strided:
        raise ValueError(f"{what} is a sparse tensor: give x.to_dense().")
    if x.is_quantized:
        raise ValueError(f"{what} is quantised: give x.dequantize(), or x.int_repr() for its levels.")
    if x.is_nested:
        raise ValueError(f"{what} is a nested tensor: samples must all have one shape.")
    if x.is_complex():
        raise ValueError(f"{what} is complex: store the real and the imaginary part as two channels.")
    if x.device.type == "meta":
        raise ValueError(f"{what} is on the device 'meta', where there are no values.")
    return x.detach().cpu().resolve_neg()


def _read_by_numpy(values: Any, what: str) -> np.ndarray:
    if values is None or isinstance(values, (str, bytes, Mapping, set)) or (
        isinstance(values, Iterable) and not hasattr(values, "__len__") and not hasattr(values, "__array__")
    ):  # fmt: skip
        raise ValueError(
            f"{what} is {'None' if values is None else 'of type ' + type(values).__name__}: give an array or a tensor, "
            "samples along its first axis."
        )
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{what}: NumPy makes no array of this {type(values).__name__}: {error}.") from None


def as_tensor(values: Array) -> Tensor:
    """The numbers of `as_array` as a tensor that computes: without a copy where torch can take them as they are."""
    if isinstance(values, np.ndarray):
        dtype = values.dtype
        if dtype.kind == "u" and dtype.itemsize > 1:  # torch computes little with wider unsigned types
            if dtype.itemsize == 8 and values.size and values.max() > np.iinfo(np.int64).max:
                raise ValueError(f"Whole numbers above 2^63 cannot be told apart here; got {values.max()}.")
            dtype = np.dtype(np.int64)
        elif dtype.kind == "f" and dtype.itemsize > 8:
            dtype = np.dtype(np.float64)
        # torch takes the machine's byte order only, no negative strides, and no memory it may not write to
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which is found later
            values = np.ascontiguousarray(values, dtype=dtype.newbyteorder("="))
        usable = values.flags.writeable and all(stride >= 0 for stride in values.strides)
        values = torch.from_numpy(values if usable else values.copy())
    elif values.dtype in (torch.uint16, torch.uint32, torch.uint64):
        values = as_tensor(values.numpy())
    return values


def as_labels(values: Any, n: int, what: str) -> Tensor | list[str]:
    """Labels of `n` samples, `(n,)` or `(n, 1)`: whole numbers, booleans or text, by the user's own values.

    Raises `ValueError` for others: a real number is no label, and a missing one none either.
    """
    if not isinstance(values, (Tensor, np.ndarray)):
        values = _labels_in_list(values, what)
    if isinstance(values, np.ndarray) and values.dtype.kind in "USO":
        values = values.reshape(-1) if values.ndim == 2 and values.shape[1] == 1 else values
        return _text_labels(values, n, what)
    y = as_tensor(as_array(values, what))
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.is_floating_point() and bool((torch.isfinite(y) & (y == y.round())).all()) and len(y):
        y = y.long()
    if y.is_floating_point() or y.ndim != 1 or len(y) != n:
        raise ValueError(
            f"{what} must be {n} whole numbers or texts, shape ({n},); got {y.dtype} {tuple(y.shape)}. Real numbers "
            "that a network is told are a condition of another name: cond={'angle': values}."
        )
    return y


def as_condition(values: Any, n: int, what: str) -> Tensor | list[str]:
    """What `n` samples are told, `(n, *)`: numbers as a tensor, text as labels."""
    found = values if isinstance(values, (np.ndarray, Tensor)) else _labels_in_list(values, what)
    if isinstance(found, np.ndarray):
        kind = found.dtype.kind
        if kind in "US" or (kind == "O" and any(isinstance(value, str) for value in found.flat)):
            return as_labels(values, n, what)
    return as_tensor(as_array(found, what))


def _labels_in_list(values: Any, what: str) -> Array:
    """A list, a column of a data frame: text and objects stay what they are."""
    if isinstance(values, (list, tuple)) and any(isinstance(value, str) for value in values):
        return np.array(values, dtype=object)
    if hasattr(values, "to_numpy"):
        return np.asarray(values.to_numpy())
    return _stacked(values, what) if _are_tensors(values) else _read_by_numpy(values, what)


def _are_tensors(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and bool(values) and isinstance(values[0], Tensor)


def _text_labels(values: np.ndarray, n: int, what: str) -> Tensor | list[str]:
    if values.shape != (n,):
        raise ValueError(f"{what} must be {n} whole numbers or texts, shape ({n},); got shape {values.shape}.")
    if all(isinstance(value, int) for value in values.tolist()):
        return torch.tensor(values.tolist(), dtype=torch.int64)
    found = []
    for row, value in enumerate(values.tolist()):
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        if isinstance(text, float) and text.is_integer():
            text = int(text)
        if not isinstance(text, (str, int)) or text == "":
            raise ValueError(f"{what} are missing at row {row}: {value!r}. Name them, or drop those rows.")
        found.append(str(text))
    return found


def from_dataset(values: Any, what: str) -> tuple[Any, dict[str, Any]] | None:
    """The samples and the conditions of a data set in the manner of `torch.utils.data.Dataset`, read once into memory;
    `None` for anything else.

    Its items are samples `x`, pairs `(x, y)`, or mappings with `x` (or `image`, `images`, `data`) and conditions by
    name. Pictures may be arrays, tensors or images of Pillow.
    """
    if isinstance(values, torch.utils.data.IterableDataset) or isinstance(values, torch.utils.data.DataLoader):
        raise ValueError(f"{what} is a {type(values).__name__}, which has no samples by number: give its data set.")
    if not isinstance(values, torch.utils.data.Dataset):
        return None
    items = [values[i] for i in range(len(values))]
    if not items:
        raise ValueError(f"{what} is empty.")
    if isinstance(items[0], Mapping):
        key = next((k for k in ("x", "image", "images", "data") if k in items[0]), None)
        if key is None:
            raise ValueError(f"{what} has items with {', '.join(map(str, items[0]))}: call the sample 'x'.")
        rest = {("y" if k in ("label", "labels", "target") else k): [i[k] for i in items] for k in items[0] if k != key}
        return _gathered([item[key] for item in items]), rest
    if isinstance(items[0], (tuple, list)):
        if len(items[0]) > 2:
            raise ValueError(f"{what} has items of {len(items[0])} parts: make them x, (x, y), or mappings by name.")
        return _gathered([item[0] for item in items]), {"y": [item[1] for item in items]} if len(items[0]) == 2 else {}
    return _gathered(items), {}


def _gathered(samples: list[Any]) -> list[Any]:
    return samples if isinstance(samples[0], Tensor) else [np.asarray(sample) for sample in samples]
