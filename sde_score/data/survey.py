"""The images of one source: opened one at a time, and looked at before the first of them is made a sample."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sde_score.data.pictures import Look, look
from sde_score.data.sources import Source, open_source

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
_REDUCED = 254  # TIFF's word for a page that shows another one smaller


class BrokenImage(ValueError):
    """An image file that cannot be read; the message names the file."""


# --- opening


def _explain(name: str, error: Exception) -> str:
    unknown = type(error).__name__ == "UnidentifiedImageError"
    reason = "not an image, a damaged one, or of a kind that Pillow does not read" if unknown else f"{error}"
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


def _largest_file(max_pixels: int) -> int:
    """No file of an image of so many pixels needs more: four channels of 16 bits, and some words besides."""
    return 8 * max_pixels + 2**20


@dataclass(frozen=True)
class Files:
    """The images of one source, opened one at a time and none larger than `max_pixels`."""

    source: Source
    max_pixels: int

    @classmethod
    def at(cls, path: str | os.PathLike, max_pixels: int, memory_gb: float) -> Files:
        """Those at a path. Raises as `open_source` does."""
        return cls(open_source(path, _largest_file(max_pixels), memory_gb * 2**30), max_pixels)

    def opened(self, name: str, use: Callable[[Image, bytes], T]) -> T:
        """`use(image, bytes of the file)`; whatever goes wrong becomes a `BrokenImage` that names the file."""
        try:
            if (size := self.source.size(name)) > _largest_file(self.max_pixels):
                raise ValueError(
                    f"takes {size} bytes, more than an image of max_pixels={self.max_pixels} does. If it is meant, "
                    "raise --config.data.max_pixels"
                )
            data = self.source.read(name)
            with _without_pillows_limit as Image, Image.open(io.BytesIO(data)) as image:
                return use(image, data)
        except Exception as error:  # Pillow's decoders raise nearly every kind on damaged files
            raise BrokenImage(_explain(name, error)) from error

    def frames(self, image: Image, numbers: Sequence[int]) -> Iterator[Image]:
        """An opened image at some of its frames in turn, each known to be small enough before it is decoded."""
        for number in numbers:
            image.seek(number)
            width, height = image.size
            if width * height > self.max_pixels:
                raise ValueError(
                    f"is {height}x{width}, {height * width} pixels; at most max_pixels={self.max_pixels} are decoded. "
                    f"Make it smaller, or raise --config.data.max_pixels={height * width}"
                )
            yield image


def _frame_numbers(image: Image) -> list[int]:
    """The frames or pages of an opened image. Those that a camera adds to a photograph (a preview, a map of depth), and
    smaller versions of a page, are no images of their own."""
    count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if image.format != "TIFF" or count == 1:
        return list(range(count))

    def is_reduced(number: int) -> bool:
        image.seek(number)
        return bool(image.tag_v2.get(_REDUCED, 0) & 1)

    return [0, *(number for number in range(1, count) if not is_reduced(number))]


# --- a look at all of them


@dataclass
class Survey:
    """What a look at the images of one source has shown: of the good ones, in order, file, frame, name and `Look`; of
    the broken files, the errors; of files with several frames, how many."""

    files: Files
    items: list[tuple[str, int]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    broken: dict[str, BrokenImage] = field(default_factory=dict)
    several: dict[str, int] = field(default_factory=dict)


def on_threads(function: Callable[[T], Any], things: Sequence[T]) -> list[Any]:
    """`function` of each, or the `BrokenImage` it raised: Pillow decodes without the interpreter lock."""

    def attempt(thing: T) -> Any:
        try:
            return function(thing)
        except BrokenImage as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(attempt, things))


def survey(files: Files, frames: str, levels: int | None) -> Survey:
    """Look at all images of a source; of each file at its first frame or at all, as `frames` says."""

    def use(image: Image, data: bytes) -> tuple[list[int], int, list[Look]]:
        numbers = _frame_numbers(image)
        chosen = numbers if frames == "all" else [0]
        return chosen, len(numbers), [look(frame, data, levels) for frame in files.frames(image, chosen)]

    found = Survey(files)
    names = files.source.names
    for name, result in zip(names, on_threads(lambda name: files.opened(name, use), names)):
        if isinstance(result, BrokenImage):
            found.broken[name] = result
            continue
        numbers, count, looks = result
        if count > 1:
            found.several[name] = count
        found.items += [(name, number) for number in numbers]
        found.names += [name] if len(numbers) == 1 else [f"{name}#{number + 1}" for number in numbers]
        found.looks += looks
    return found


def refuse_or_say(broken: Mapping[str, BrokenImage], n: int, on_error: str, where: Path) -> None:
    """Raise for broken files, or warn that they are left out."""
    if broken and on_error == "raise":
        raise BrokenImage(
            f"{len(broken)} of {n} images in {str(where)!r} cannot be read: {_listing(broken.values())}. Repair or "
            "remove them, or leave them out with on_error='skip' (--config.data.on_error=skip)."
        )
    if broken:
        warnings.warn(
            f"Left out {len(broken)} of {n} images in {str(where)!r}: {_listing(broken.values())}.", stacklevel=4
        )
    if len(broken) == n:
        raise ValueError(f"None of the {n} images in {str(where)!r} can be read.")


def _listing(things: Iterable[object], most: int = 10) -> str:
    lines = [str(thing) for thing in things]
    return "; ".join(lines[:most]) + (f"; and {len(lines) - most} more" if len(lines) > most else "")


def say_frames(surveys: Sequence[Survey]) -> None:
    several = {name: count for found in surveys for name, count in found.several.items()}
    if several:
        total = sum(len(found.files.source.names) for found in surveys)
        counts = _listing((f"{name} {count}" for name, count in several.items()), most=4)
        warnings.warn(
            f"{len(several)} of {total} files hold several images ({counts}): the first of each is taken. All are "
            "with frames='all' (--config.data.frames=all).",
            stacklevel=3,
        )
