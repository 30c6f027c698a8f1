"""The user's own arrays: `.npy`, `.npz`, or tensors at hand. Images, vectors, series and volumes."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_score.data.base import DATASETS, DataSplits, TensorSplit, split_tensors
from sde_score.data.info import DataInfo, kind_of_shape

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


def _channels_first(x: Tensor, layout: str | None, what: str) -> Tensor:
    layout = layout or _guess_layout(tuple(x.shape), x.dtype == torch.uint8, what)
    if layout not in LAYOUTS:
        raise ValueError(f"Unknown layout {layout!r}; known: {', '.join(LAYOUTS)}.")
    if len(layout) != x.ndim:
        raise ValueError(f"{what} has shape {tuple(x.shape)}, {x.ndim} axes; layout={layout!r} names {len(layout)}.")
    target = LAYOUTS[layout]
    if "+" in target:
        return x.unsqueeze(1)
    return x.permute([layout.index(axis) for axis in target]).contiguous()


def _as_data(values: Any, levels: int | None, what: str) -> tuple[Tensor, int | None]:
    """Values as uint8 levels or finite float32, with the number of levels."""
    x = torch.as_tensor(values)
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(
            f"{what} has shape {tuple(x.shape)}: it needs samples along the first axis and at least one more axis, "
            "none of length 0."
        )
    if x.dtype == torch.bool:
        return x.to(torch.uint8), 2
    if x.is_complex():
        raise ValueError(f"{what} is complex: store the real and the imaginary part as two channels.")
    if x.is_floating_point():
        if levels is not None:
            raise ValueError(
                f"{what} holds {x.dtype}: levels={levels} is for integers. Convert to uint8 levels, or leave `levels` "
                "out."
            )
        data = x.to(torch.float32)
        bad = ~torch.isfinite(data)
        if bad.any():
            first = tuple(bad.nonzero()[0].tolist())
            samples = int(bad.flatten(1).any(1).sum())
            reason = "NaN, infinite or too large for float32"
            raise ValueError(
                f"{what} is {reason} in {samples} of {len(x)} samples, first at index {first}: {x[first].item()}. "
                "Repair or remove them."
            )
        return data, None
    if x.dtype != torch.uint8 and levels is None:
        raise ValueError(
            f"{what} holds {x.dtype}: say how many levels there are (levels=17 for 0 .. 16, at most 256), or convert "
            "it to float32."
        )
    levels = levels or 256
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= levels or not 2 <= levels <= 256:
        raise ValueError(
            f"{what} holds values from {low} to {high}; levels={levels} stands for 0 .. {levels - 1}, and 2 to 256 "
            "levels are possible."
        )
    return x.to(torch.uint8), levels


def _as_labels(values: Any, n: int, what: str) -> Tensor | None:
    if values is None:
        return None
    y = torch.as_tensor(values)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.is_floating_point() or y.is_complex() or y.ndim != 1 or len(y) != n or int(y.min()) < 0:
        raise ValueError(
            f"The labels of {what} must be {n} integers from 0 up, shape ({n},); got {y.dtype} {tuple(y.shape)}."
        )
    return y.to(torch.int64)


def from_arrays(
    x: Any,
    y: Any = None,
    *,
    x_test: Any = None,
    y_test: Any = None,
    layout: str | None = None,
    levels: int | None = None,
    holdout: float = 0.1,
    name: str = "array",
) -> DataSplits:
    """A data set from tensors or NumPy arrays.

    Args:
        x: `(N, ...)`. uint8 (or integers with `levels`) is discrete data; floats are continuous and will be
            standardised.
        y: integer labels `(N,)`.
        x_test, y_test: the test part; by default the fraction `holdout` is held out.
        layout: the order of the axes, such as `"NHWC"`, where the shape does not tell: see `LAYOUTS`.
        levels: number of levels of integer data.
        holdout: fraction kept for testing.
        name: for messages and reports.

    Raises `ValueError` for NaN and infinite values (with their index), values outside the levels, unclear or unequal
    shapes.
    """
    data, levels = _as_data(x, levels, name)
    data = _channels_first(data, layout, name)
    labels = _as_labels(y, len(data), name)
    if x_test is None:
        train, test = split_tensors(data, labels, holdout=holdout, name=name)
    else:
        data_test, _ = _as_data(x_test, levels, f"the test part of {name}")
        data_test = _channels_first(data_test, layout, f"the test part of {name}")
        if data_test.shape[1:] != data.shape[1:] or data_test.dtype != data.dtype:
            raise ValueError(
                f"{name}: the test part has samples {data_test.dtype} {tuple(data_test.shape[1:])}, the training part "
                f"{data.dtype} {tuple(data.shape[1:])}."
            )
        test_labels = _as_labels(y_test, len(data_test), f"the test part of {name}")
        if (labels is None) != (test_labels is None):
            raise ValueError(f"{name}: give labels for both parts or for neither.")
        train, test = (
            TensorSplit(data, labels, name=f"{name}/train"),
            TensorSplit(data_test, test_labels, name=f"{name}/test"),
        )
    num_classes = None if labels is None else 1 + max(int(part.y.max()) for part in (train, test))
    shape = tuple(data.shape[1:])
    return DataSplits(train, test, DataInfo(name, shape, num_classes, levels, kind_of_shape(shape)))


@DATASETS.register("array")
def array(
    path: str | os.PathLike,
    layout: str | None = None,
    levels: int | None = None,
    holdout: float = 0.1,
    labels: bool = True,
) -> DataSplits:
    """Your own array: a .npy or .npz file of uint8 images or of floats.

    A .npz holds the data under `x`, `images`, `data` or `arr_0` and labels under `y`, `labels` or `targets`; or
    `x_train`, `y_train`, `x_test`, `y_test`. Pickled objects are refused. Floats are continuous data of any rank:
    (N, D), (N, C, L), (N, C, H, W), (N, C, D, H, W).
    """
    where = Path(path).expanduser()
    if not where.is_file():
        raise FileNotFoundError(
            f"There is no array file at {str(path)!r} (looked for {where.absolute()}). Check the path."
        )
    try:
        content = np.load(where, allow_pickle=False)
        arrays = {"x": content} if isinstance(content, np.ndarray) else {key: content[key] for key in content.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        if "pickle" in str(error).lower():
            raise ValueError(
                f"{str(path)!r} holds pickled Python objects, or is not an array file: these are never loaded. Save "
                "one plain numeric array."
            ) from error
        raise ValueError(f"Cannot read {str(path)!r} as a .npy or .npz file: {error}. Is it complete?") from error
    parts: dict[str, Any] = {"x_test": None, "y_test": None}
    if "x_train" in arrays:
        parts["x"], parts["y"] = arrays["x_train"], arrays.get("y_train")
        parts["x_test"], parts["y_test"] = arrays.get("x_test"), arrays.get("y_test")
    else:
        key = next((key for key in X_KEYS if key in arrays), None)
        if key is None:
            raise ValueError(
                f"{str(path)!r} holds {', '.join(arrays) or 'nothing'}: name the data {', '.join(X_KEYS)} or x_train."
            )
        parts["x"] = arrays[key]
        parts["y"] = next((arrays[k] for k in Y_KEYS if k in arrays), None)
    if not labels:
        parts["y"] = parts["y_test"] = None
    for key, value in parts.items():
        if value is not None and value.dtype.kind not in "biufc":
            raise ValueError(f"{str(path)!r}: {key} holds {value.dtype}, which are not numbers.")
        if value is not None:
            if value.dtype.kind == "u" and value.dtype.itemsize > 1:  # torch computes little with wider unsigned types
                value = value.astype(np.int64)
            # A copy in the machine's byte order: torch takes no other, and no read-only memory.
            parts[key] = np.array(value, dtype=value.dtype.newbyteorder("="))
    return from_arrays(
        parts.pop("x"), parts.pop("y"), **parts, layout=layout, levels=levels, holdout=holdout, name=where.stem
    )
