"""The user's own images: a folder or a .zip, any sizes, grey or colour, with a clear word about every broken file."""

from __future__ import annotations

import io
import os
import threading
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_score.data.base import DATASETS, DataSplits, LazySplit, Split, Subset, TensorSplit, hold_out, size_pair
from sde_score.data.info import DataInfo

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pnm")
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")


class BrokenImage(ValueError):
    """An image file that cannot be read; the message names the file."""


# --- where the bytes are


class _Source(ABC):
    """Image files by relative name, in sorted order."""

    path: Path
    names: list[str]
    seen: int  # files of any kind

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of one file."""


def _is_image(name: str) -> bool:
    parts = name.split("/")
    return name.lower().endswith(SUFFIXES) and not any(part.startswith(".") or part == "__MACOSX" for part in parts)


class _Folder(_Source):
    def __init__(self, path: Path) -> None:
        self.path = path
        found = []
        # os.walk with links followed: data sets are often put together from them. Sorted, for the same order on every
        # file system.
        for folder, _, files in os.walk(path, followlinks=True):
            found += [(Path(folder) / file).relative_to(path).as_posix() for file in files]
        self.seen = len(found)
        self.names = sorted(filter(_is_image, found))

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


class _Zip(_Source):
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"Cannot open {str(path)!r} as a zip archive: {error}. Is the file complete?") from error
        files = [name for name in self.archive.namelist() if not name.endswith("/")]
        self.seen = len(files)
        self.names = sorted(filter(_is_image, files))
        self.lock = threading.Lock()

    def read(self, name: str) -> bytes:
        with self.lock:
            return self.archive.read(name)


def _open_source(path: str | os.PathLike) -> _Folder | _Zip:
    where = Path(path).expanduser()
    if not where.exists():
        near = next((parent for parent in where.absolute().parents if parent.is_dir()), None)
        raise FileNotFoundError(
            f"There is no folder or .zip of images at {str(path)!r} (looked for {where.absolute()}; {near} exists). "
            "Check the path."
        )
    if not where.is_dir() and where.suffix.lower() != ".zip":
        raise ValueError(
            f"{str(path)!r} is neither a folder nor a .zip of images. Put the images into a folder and give that."
        )
    source = _Folder(where) if where.is_dir() else _Zip(where)
    if not source.names:
        raise ValueError(
            f"There are no images in {str(path)!r}: {source.seen} file(s) seen, none of them {', '.join(SUFFIXES)}."
        )
    return source


# --- one image


def _explain(name: str, error: Exception) -> str:
    reason = "not an image, or a damaged one" if type(error).__name__ == "UnidentifiedImageError" else f"{error}"
    return f"{name}: {reason}"


def _opened(source: _Source, name: str, use: Callable[[Any], Any]) -> Any:
    """`use(image)` for one file; whatever goes wrong becomes a `BrokenImage` that names it."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(source.read(name))) as image:
            return use(image)
    except Image.DecompressionBombError as error:
        raise BrokenImage(f"{name}: too large to be opened safely ({error}). Make it smaller first.") from error
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
    function: Callable[[str], Any], names: Sequence[str], on_error: str, where: Path
) -> tuple[list[str], list[Any]]:
    """`function(name)` on threads (Pillow decodes without the interpreter lock); broken images are skipped and named,
    or refused."""

    def attempt(name: str) -> Any:
        try:
            return function(name)
        except BrokenImage as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = list(pool.map(attempt, names))
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
    good = [(name, result) for name, result in zip(names, results) if not isinstance(result, BrokenImage)]
    return [name for name, _ in good], [result for _, result in good]


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
    source: _Source,
    names: list[str],
    size: tuple[int, int],
    channels: int,
    on_error: str,
    memory_gb: float,
    title: str,
) -> tuple[Split, list[str]]:
    """The images as one split, decoded now if they fit into `memory_gb`, else when asked for; and their names."""

    def decode(name: str) -> Tensor:
        return _opened(source, name, lambda image: to_tensor(image, size, channels))

    if len(names) * channels * size[0] * size[1] <= memory_gb * 2**30:
        names, tensors = _map_images(decode, names, on_error, source.path)
        return TensorSplit(torch.stack(tensors), name=title), names

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

    return LazySplit(read, len(names), name=title), names


@DATASETS.register("folder")
def folder(
    path: str | os.PathLike,
    test_path: str | os.PathLike | None = None,
    image_size: int | Sequence[int] | None = None,
    channels: int | None = None,
    on_error: str = "raise",
    holdout: float = 0.1,
    memory_gb: float = 2.0,
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
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"`folder(on_error=...)` is 'raise' or 'skip'; got {on_error!r}.")
    if channels not in (None, 1, 3):
        raise ValueError(
            f"`folder(channels=...)` is 1 (grey) or 3 (colour); got {channels!r}. Other channel counts: "
            "`array(path=...)`."
        )
    paths = [path] if test_path is None else [path, test_path]
    sources = [_open_source(p) for p in paths]
    names, headers = [], {}
    for source in sources:
        kept, found = _map_images(
            lambda name, source=source: _opened(source, name, _header), source.names, on_error, source.path
        )
        names.append(kept)
        headers.update({f"{source.path}/{name}": header for name, header in zip(kept, found)})
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

    splits: list[Split] = []
    for k, source in enumerate(sources):
        split, names[k] = _make_split(source, names[k], size, channels, on_error, memory_gb, title)
        splits.append(split)
    parts = [_strip_common(n) for n in names]
    is_test = _official(parts[0]) if test_path is None else None
    labelled = [_labels(p if is_test is None else [q[1:] for q in p]) for p in parts]
    class_names: tuple[str, ...] | None = None
    if all(labels is not None for labels in labelled):
        class_names = tuple(sorted({label for labels in labelled for label in labels}))
        number = {name: k for k, name in enumerate(class_names)}
        for split, labels in zip(splits, labelled):
            split.y = torch.tensor([number[label] for label in labels])

    if test_path is not None:
        train, test = splits
    else:
        if is_test is not None:
            mask = torch.tensor(is_test)
            chosen = (~mask).nonzero()[:, 0], mask.nonzero()[:, 0]
        else:
            chosen = hold_out(len(splits[0]), holdout, what=str(path))
        train, test = (_part(splits[0], indices) for indices in chosen)
    train.name, test.name = f"{title}/train", f"{title}/test"
    info = DataInfo(title, (channels, *size), len(class_names) if class_names else None, 256, "image", class_names)
    return DataSplits(train, test, info)


def _part(split: Split, indices: Tensor) -> Split:
    if isinstance(split, TensorSplit):
        return TensorSplit(split.x[indices], None if split.y is None else split.y[indices])
    return Subset(split, indices)
