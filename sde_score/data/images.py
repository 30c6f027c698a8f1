"""The user's own images: a folder or a .zip, any sizes, grey or colour, with a clear word about every broken file."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_score.data.base import (
    DATASETS,
    MAX_PIXELS,
    DataSplits,
    LazySplit,
    Split,
    Subset,
    TensorSplit,
    size_pair,
    split_off,
)
from sde_score.data.info import Condition, DataInfo
from sde_score.data.sources import Source, open_source

TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")


class BrokenImage(ValueError):
    """An image file that cannot be read; the message names the file."""


# --- one image


def _explain(name: str, error: Exception) -> str:
    reason = "not an image, or a damaged one" if type(error).__name__ == "UnidentifiedImageError" else f"{error}"
    return f"{name}: {reason}"


class _PillowsLimit:
    """Pillow's own limit on the size of images, lifted while one of our threads reads: ours, which the user can set, is
    asked instead. Pillow's is a global that warns or refuses, so it comes back with the last thread."""

    def __init__(self) -> None:
        self.lock, self.readers, self.saved = threading.Lock(), 0, None

    def __enter__(self) -> Any:
        from PIL import Image

        with self.lock:
            if self.readers == 0:
                self.saved, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self.readers += 1
        return Image

    def __exit__(self, *error: object) -> None:
        from PIL import Image

        with self.lock:
            self.readers -= 1
            if self.readers == 0:
                Image.MAX_IMAGE_PIXELS = self.saved


_without_pillows_limit = _PillowsLimit()


@dataclass(frozen=True)
class _Files:
    """The images of one source, opened one at a time and none larger than `max_pixels`."""

    source: Source
    max_pixels: int

    def opened(self, name: str, use: Callable[[Any], Any]) -> Any:
        """`use(image)` for one file; whatever goes wrong becomes a `BrokenImage` that names it."""
        try:
            # no file of an image that size needs more: four channels of 16 bits, and some words besides
            if (size := self.source.size(name)) > 8 * self.max_pixels + 2**20:
                raise ValueError(
                    f"takes {size} bytes, more than an image of max_pixels={self.max_pixels} does. If it is meant, "
                    "raise --config.data.max_pixels"
                )
            with _without_pillows_limit as Image, Image.open(io.BytesIO(self.source.read(name))) as image:
                width, height = image.size
                if width * height > self.max_pixels:
                    raise ValueError(
                        f"is {height}x{width}, {height * width} pixels; at most max_pixels={self.max_pixels} are "
                        f"decoded. Make it smaller, or raise --config.data.max_pixels={height * width}"
                    )
                return use(image)
        except Exception as error:  # Pillow's decoders raise nearly every kind on damaged files
            raise BrokenImage(_explain(name, error)) from error


def _header(image: Any) -> tuple[int, int, int]:
    """(height, width, channels) of an opened image, as it will be shown: turned by its EXIF orientation; 1 channel
    where it is grey."""
    width, height = image.size
    # Asking a PNG for EXIF that it has not shown yet would decode the whole of it.
    exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
    if exif.get(0x0112, 1) in (5, 6, 7, 8):
        width, height = height, width
    if image.mode == "F":
        raise ValueError("holds floating-point values; save such data as a .npy array and use `array(path=...)`")
    return height, width, 1 if image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I") else 3


def _eight_bit(image: Any) -> Any:
    """An opened image in mode L or RGB: turned upright, 16 bits scaled to 8, transparency laid on white."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow itself would clip 16-bit values at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                "holds values outside 0 .. 65535; save such data as a .npy array and use `array(path=...)`"
            )
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA"):
        image = image.convert("LA" if image.mode in ("LA", "La") else "RGBA")
        paper = Image.new("RGBA", image.size, "white")
        flat = Image.alpha_composite(paper, image.convert("RGBA"))
        return flat.convert("L" if image.mode == "LA" else "RGB")
    return image.convert("L") if image.mode == "1" else image if image.mode in ("L", "RGB") else image.convert("RGB")


def centre_crop(image: Any, side: int) -> Any:
    """The central `side` x `side` pixels of a Pillow image."""
    width, height = image.size
    left, top = (width - side) // 2, (height - side) // 2
    if left < 0 or top < 0:
        raise ValueError(f"cannot crop {side}x{side} out of {height}x{width} pixels")
    return image.crop((left, top, left + side, top + side))


def to_tensor(image: Any, size: tuple[int, int], channels: int) -> Tensor:
    """A Pillow image as uint8 `(channels, H, W)`: the largest central part of the right proportions, resized by an
    antialiased bicubic filter whose overshoot is clamped to 0 .. 255."""
    from PIL import Image

    image = _eight_bit(image)
    image = image.convert("L" if channels == 1 else "RGB")
    (height, width), (w, h) = size, image.size
    if (h, w) != size:
        scale = max(height / h, width / w)
        cut_w, cut_h = min(w, width / scale), min(h, height / scale)
        left, top = (w - cut_w) / 2, (h - cut_h) / 2
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + cut_w, top + cut_h))
    values = torch.from_numpy(np.array(image))
    return values.unsqueeze(0) if channels == 1 else values.permute(2, 0, 1).contiguous()


# --- many images


def _map_images(
    function: Callable[[int], Any], names: Sequence[str], on_error: str, where: Path
) -> tuple[list[int], list[Any]]:
    """`function(number)` for each name, on threads (Pillow decodes without the interpreter lock): the numbers of the
    good images, and the results. Broken ones are left out and named, or refused."""

    def attempt(number: int) -> Any:
        try:
            return function(number)
        except BrokenImage as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = list(pool.map(attempt, range(len(names))))
    broken = [result for result in results if isinstance(result, BrokenImage)]
    if broken and on_error == "raise":
        raise BrokenImage(
            f"{len(broken)} of {len(names)} images in {str(where)!r} cannot be read: {_listing(broken)}. Repair or "
            "remove them, or leave them out with on_error='skip'."
        )
    if broken:
        warnings.warn(
            f"Left out {len(broken)} of {len(names)} images in {str(where)!r}: {_listing(broken)}.", stacklevel=4
        )
    if len(broken) == len(names):
        raise ValueError(f"None of the {len(names)} images in {str(where)!r} can be read.")
    good = [number for number, result in enumerate(results) if not isinstance(result, BrokenImage)]
    return good, [results[number] for number in good]


def _listing(errors: Iterable[Exception], most: int = 10) -> str:
    lines = [str(error) for error in errors]
    return "; ".join(lines[:most]) + (f"; and {len(lines) - most} more" if len(lines) > most else "")


def _decide_size(headers: dict[str, tuple[int, int, int]], image_size: int | Sequence[int] | None) -> tuple[int, int]:
    if image_size is not None:
        return size_pair(image_size)
    sizes: dict[tuple[int, int], str] = {}
    for name, (height, width, _) in headers.items():
        sizes.setdefault((height, width), name)
    if len(sizes) > 1:
        (first, one), (second, other) = list(sizes.items())[:2]
        raise ValueError(
            f"The images have {len(sizes)} different sizes ({one} is {first[0]}x{first[1]}, {other} "
            f"{second[0]}x{second[1]}): say to which size to bring them, for example image_size=64 or image_size=(48, "
            "80)."
        )
    return next(iter(sizes))


def _strip_common(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The names as path parts, without the folders that all of them share."""
    parts = [tuple(name.split("/")) for name in names]
    while all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    return parts


def _labels(parts: Sequence[tuple[str, ...]]) -> list[str] | None:
    """The class folder of each image, or `None` unless every image is in one and there are at least two."""
    if any(len(p) < 2 for p in parts) or len({p[0] for p in parts}) < 2:
        return None
    return [p[0] for p in parts]


def _official(parts: Sequence[tuple[str, ...]]) -> list[bool] | None:
    """Whether each image belongs to the test part, where the top folders are called train and test (or val); else
    `None`."""
    tops = {p[0].lower() for p in parts if len(p) > 1}
    if (
        any(len(p) < 2 for p in parts)
        or not tops & set(TRAIN_FOLDERS)
        or not tops & set(TEST_FOLDERS)
        or tops - set(TRAIN_FOLDERS + TEST_FOLDERS)
    ):
        return None
    return [p[0].lower() in TEST_FOLDERS for p in parts]


def _make_split(
    files: _Files,
    names: list[str],
    size: tuple[int, int],
    channels: int,
    on_error: str,
    memory_gb: float,
    title: str,
) -> tuple[TensorSplit | LazySplit, list[str]]:
    """The images as one split, decoded now if they fit into `memory_gb`, else when asked for; and their names."""

    def decode(name: str) -> Tensor:
        return files.opened(name, lambda image: to_tensor(image, size, channels))

    if len(names) * channels * size[0] * size[1] <= memory_gb * 2**30:
        x = torch.empty((len(names), channels, *size), dtype=torch.uint8)

        def place(number: int) -> None:
            x[number] = decode(names[number])

        good, _ = _map_images(place, names, on_error, files.source.path)
        split: TensorSplit | LazySplit = TensorSplit(x if len(good) == len(names) else x[good], name=title)
        names = [names[k] for k in good]
        split.names = ["/".join(parts) for parts in _strip_common(names)]
        return split, names

    def read(i: int) -> Tensor:
        for offset in range(min(16, len(names))):
            name = names[(i + offset) % len(names)]
            try:
                return decode(name)
            except BrokenImage as error:
                if on_error == "raise":
                    raise
                # The next good image stands in: still a function of i alone.
                warnings.warn(f"{error}: its neighbour takes its place.", stacklevel=2)
        raise BrokenImage(f"16 images in a row cannot be read, from {names[i]} on.")

    split = LazySplit(read, len(names), name=title)
    split.names = ["/".join(parts) for parts in _strip_common(names)]
    return split, names


def _read_headers(
    files: Sequence[_Files], on_error: str
) -> tuple[list[list[str]], dict[str, tuple[int, int, int]]]:
    """The names of each source's good images, and (height, width, channels) of each by its path."""
    names, headers = [], {}
    for one in files:
        source = one.source
        good, found = _map_images(
            lambda k, one=one, source=source: one.opened(source.names[k], _header), source.names, on_error, source.path
        )
        names.append([source.names[k] for k in good])
        headers |= {f"{source.path}/{name}": header for name, header in zip(names[-1], found)}
    return names, headers


def _label(
    splits: Sequence[TensorSplit | LazySplit], parts: Sequence[Sequence[tuple[str, ...]]]
) -> dict[str, Condition]:
    """Give the splits the classes that their images' folders name, if all do; what the classes are."""
    labelled = [_labels(p) for p in parts]
    if any(labels is None for labels in labelled):
        return {}
    class_names = tuple(sorted({label for labels in labelled for label in labels}))
    number = {name: k for k, name in enumerate(class_names)}
    for split, labels in zip(splits, labelled):
        split.cond = {"y": torch.tensor([number[label] for label in labels])}
    return {"y": Condition(num=len(class_names), names=class_names)}


def _train_and_test(splits: Sequence[Split], is_test: list[bool] | None, holdout: float, title: str) -> list[Split]:
    """Two sources are the two parts; one is cut as its top folders say, or by `holdout`."""
    if len(splits) == 2:
        for split, part in zip(splits, ("train", "test")):
            split.name = f"{title}/{part}"
        return list(splits)
    if is_test is None:
        return list(split_off(splits[0], holdout, name=title))
    mask = torch.tensor(is_test)
    return [
        Subset(splits[0], chosen.nonzero()[:, 0], name=f"{title}/{part}")
        for part, chosen in (("train", ~mask), ("test", mask))
    ]


@DATASETS.register("folder")
def folder(
    path: str | os.PathLike,
    test_path: str | os.PathLike | None = None,
    image_size: int | Sequence[int] | None = None,
    channels: int | None = None,
    on_error: str = "raise",
    holdout: float = 0.1,
    memory_gb: float = 2.0,
    max_pixels: int = MAX_PIXELS,
) -> DataSplits:
    """Your own images: a folder (with its sub-folders) or a .zip.

    Sub-folders at the first level are classes if every image is in one. If they are called `train` and `test` (or
    `val`), they are the split, and classes are looked for below. Photographs are turned upright, 16 bits become 8,
    transparency is laid on white.

    Args:
        path: the folder or .zip.
        test_path: another one with the test images; else the top folders, else `holdout`, decide.
        image_size: a number or (height, width): the largest central part of these proportions is cut out and resized
            (antialiased bicubic). Not needed when all images have one size.
        channels: 1 or 3. By default what the data have: grey if all are grey, else colour.
        on_error: `"raise"` refuses broken images, all of them named; `"skip"` leaves them out with a warning.
        holdout: fraction kept for testing.
        memory_gb: decoded images up to this size are kept in memory, larger sets are read from the files again and
            again.
        max_pixels: larger images are broken ones: their size is read off their headers, before they are decoded.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"`folder(on_error=...)` is 'raise' or 'skip'; got {on_error!r}.")
    if channels not in (None, 1, 3):
        raise ValueError(
            f"`folder(channels=...)` is 1 (grey) or 3 (colour); got {channels!r}. Other channel counts: "
            "`array(path=...)`."
        )
    files = [_Files(open_source(p), max_pixels) for p in ([path] if test_path is None else [path, test_path])]
    names, headers = _read_headers(files, on_error)
    size = _decide_size(headers, image_size)
    small = [name for name, (height, width, _) in headers.items() if height < size[0] or width < size[1]]
    if small:
        warnings.warn(
            f"{len(small)} of {len(headers)} images are smaller than {size[0]}x{size[1]} and are enlarged: {small[0]} "
            "first.",
            stacklevel=2,
        )
    channels = channels or max(header[2] for header in headers.values())
    place = Path(path).expanduser().resolve()
    title = place.name if place.is_dir() else place.stem

    made = [_make_split(f, n, size, channels, on_error, memory_gb, title) for f, n in zip(files, names)]
    splits, parts = [split for split, _ in made], [_strip_common(kept) for _, kept in made]
    is_test = _official(parts[0]) if test_path is None else None
    conditions = _label(splits, parts if is_test is None else [[p[1:] for p in parts[0]]])
    train, test = _train_and_test(splits, is_test, holdout, title)
    return DataSplits(train, test, DataInfo(title, (channels, *size), 256, conditions=conditions))
