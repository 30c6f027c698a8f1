"""What a data set holds, to be looked at before anything is trained on it."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from sde_score.data.base import MAX_PIXELS, DataSplits, Split
from sde_score.data.pictures import decode
from sde_score.data.survey import BrokenImage, Files, on_threads, survey

if TYPE_CHECKING:
    from PIL.Image import Image

EXAMPLES = 5


def _spread(n: int, most: int) -> range | list[int]:
    """At most `most` of the numbers 0 .. n - 1, evenly spaced: the same for the same `n`."""
    return range(n) if n <= most else [k * n // most for k in range(most)]


# --- files


@dataclass(frozen=True)
class Inspection:
    """What was found at a path with images, without an error for any of them.

    Attributes:
        path: the folder or archive.
        names: of the good images, in order; with all frames taken, `file#2` is the second of its file.
        broken: of files that cannot be read, the reasons.
        sizes: how many images have each size (height, width).
        frames: of files that hold several images, how many.
        others: how many files of other kinds lie there, by suffix.
        decoded: so many were decoded to the last pixel; of the others the beginning is good.
    """

    path: str
    names: tuple[str, ...]
    broken: Mapping[str, str]
    sizes: Mapping[tuple[int, int], int]
    frames: Mapping[str, int]
    others: Mapping[str, int]
    decoded: int


def inspect_source(
    path: str | os.PathLike,
    *,
    frames: str = "first",
    levels: int | None = None,
    max_pixels: int = MAX_PIXELS,
    memory_gb: float = 2.0,
    sample: int = 2000,
) -> Inspection:
    """Look at all images of a folder, .zip or .tar, and decode at most `sample` of them, evenly spaced.

    The other arguments are those of the data set `folder`. Raises `FileNotFoundError` and `ValueError` where there are
    no images at all, but for no broken one.
    """
    files = Files.at(path, max_pixels, memory_gb)
    found = survey(files, frames, levels)
    broken = {name: str(error).removeprefix(f"{name}: ") for name, error in found.broken.items()}
    chosen = [found.items[k] for k in _spread(len(found.items), sample)]

    def whole(item: tuple[str, int]) -> None:
        def use(image: Image, data: bytes) -> None:
            for frame in files.frames(image, [item[1]]):
                # whether levels are declared is a question of all images, not of this one
                decode(frame, levels, undeclared=2**32)

        files.opened(item[0], use)

    for (name, _), result in zip(chosen, on_threads(whole, chosen)):
        if isinstance(result, BrokenImage):
            broken[name] = str(result).removeprefix(f"{name}: ")
    good = [k for k, (name, _) in enumerate(found.items) if name not in broken]
    return Inspection(
        path=str(path),
        names=tuple(found.names[k] for k in good),
        broken=dict(sorted(broken.items())),
        sizes=dict(Counter(found.looks[k].size for k in good).most_common()),
        frames={name: count for name, count in found.several.items() if name not in broken},
        others=dict(files.source.others.most_common()),
        decoded=sum(name not in broken for name, _ in chosen),
    )


# --- samples


@dataclass(frozen=True)
class Repeats:
    """Samples that are equal byte by byte: how many are there once more, and pairs of their names."""

    count: int = 0
    examples: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Overview:
    """What a data set holds.

    Attributes:
        name, kind, shape, levels: as in `DataInfo`.
        counts: samples of each part: train, val (where there is one), test.
        looked_at: so many of them were read for what follows: all, or a fixed part, evenly spaced.
        ranges: of each column or channel over all parts, by name: minimum, mean, maximum, in the user's units.
        classes: of each class, how many samples of each part that were looked at; `None` without labels.
        duplicates: equal samples within a part (`"train"`) and of another part that are in the training part too
            (`"test in train"`).
        constant: columns or channels that have one value in all training samples.
        flat: samples, other than vectors, whose numbers are all equal: how many, and names.
        files: what is there on the disk, for images.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    levels: int | None
    counts: Mapping[str, int]
    looked_at: Mapping[str, int]
    ranges: Mapping[str, tuple[float, float, float]]
    classes: Mapping[str, Mapping[str, int]] | None
    duplicates: Mapping[str, Repeats]
    constant: tuple[str, ...]
    flat: tuple[int, tuple[str, ...]]
    files: tuple[Inspection, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as JSON keeps them; a size is `"40x56"`."""
        values = asdict(self)
        for found in values["files"]:
            found["sizes"] = {f"{height}x{width}": n for (height, width), n in found["sizes"].items()}
        return json.loads(json.dumps(values))

    def lines(self) -> list[str]:
        """The same in words, one finding per line."""
        what = {"image": "images", "vector": "rows", "series": "series", "volume": "volumes"}[self.kind]
        size = "x".join(map(str, self.shape[1:])) if len(self.shape) > 1 else f"{self.shape[0]} columns"
        channels = {1: "1 channel"}.get(self.shape[0], f"{self.shape[0]} channels")
        form = f"{size}, {channels}" if len(self.shape) > 1 else size
        values = "real numbers" if self.levels is None else f"{self.levels} levels"
        lines = [
            f"{self.name}: {what} of {form}, {values}",
            f"samples: {', '.join(f'{part} {n}' for part, n in self.counts.items())}",
        ]
        part = {name: n for name, n in self.looked_at.items() if n < self.counts[name]}
        if part:
            lines.append(f"looked at, evenly spaced: {', '.join(f'{n} of {name}' for name, n in part.items())}")
        for label, (low, mean, high) in list(self.ranges.items())[:12]:
            d = _digits(low, high)
            lines.append(f"{label}: {low:.{d}g} to {high:.{d}g}, mean {mean:.{d}g}")
        if len(self.ranges) > 12:
            lines.append(f"and {len(self.ranges) - 12} more columns or channels")
        if self.classes is not None:
            shown = [f"{name} {'/'.join(map(str, counts.values()))}" for name, counts in self.classes.items()]
            lines.append(f"classes ({'/'.join(self.counts)}): {_few(shown, 12)}")
        for where, found in self.duplicates.items():
            pairs = _few([f"{a} = {b}" for a, b in found.examples], EXAMPLES)
            lines.append(f"equal samples, {where}: {found.count}{f' ({pairs})' if found.count else ''}")
        if self.constant:
            lines.append(f"the same in all training samples: {_few(self.constant, 12)}")
        if self.flat[0]:
            lines.append(f"{what} of one value: {self.flat[0]} ({_few(self.flat[1], EXAMPLES)})")
        for found in self.files:
            lines += _file_lines(found)
        return lines


def _digits(low: float, high: float) -> int:
    """So many significant digits tell a thousandth of the range."""
    if not high > low:
        return 6
    return min(17, max(6, 4 + math.ceil(math.log10(max(abs(low), abs(high)) / (high - low)))))


def _few(things: Sequence[str], most: int) -> str:
    return ", ".join(things[:most]) + (f" and {len(things) - most} more" if len(things) > most else "")


def _file_lines(found: Inspection) -> list[str]:
    sizes = [f"{height}x{width} {n}" for (height, width), n in found.sizes.items()]
    lines = [f"{found.path}: {len(found.names)} good images, {found.decoded} of them decoded to the end"]
    lines.append(f"sizes: {_few(sizes, 8)}")
    if found.broken:
        reasons = [f"{name} ({reason})" for name, reason in found.broken.items()]
        lines.append(f"broken files: {len(reasons)}: {_few(reasons, EXAMPLES)}")
    if found.frames:
        counts = [f"{name} {n}" for name, n in found.frames.items()]
        lines.append(f"files of several images: {len(counts)}: {_few(counts, EXAMPLES)}")
    if found.others:
        lines.append(f"files of other kinds: {_few([f'{n} {suffix}' for suffix, n in found.others.items()], 8)}")
    return lines


@dataclass
class _Count:
    """What one pass over a part adds up."""

    digests: list[bytes] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    low: torch.Tensor | None = None
    high: torch.Tensor | None = None
    total: torch.Tensor | float = 0.0
    flat: list[str] = field(default_factory=list)
    classes: Counter[int] = field(default_factory=Counter)


def _read(split: Split, part: str, numbers: int, has_classes: bool) -> _Count:
    """One pass over at most so many `numbers` of a split, in chunks of a million of them."""
    count = _Count()
    size = split[[0]].x.numel()
    chosen = _spread(len(split), max(1, numbers // size))
    step = max(1, 2**20 // size)
    for start in range(0, len(chosen), step):
        rows = chosen[start : start + step]
        batch = split[rows]
        x = batch.x.flatten(2).transpose(1, 2).flatten(0, 1) if batch.x.ndim > 2 else batch.x  # (numbers, C)
        low, high = x.amin(0).double(), x.amax(0).double()
        count.low = low if count.low is None else torch.minimum(count.low, low)
        count.high = high if count.high is None else torch.maximum(count.high, high)
        count.total = count.total + x.double().sum(0)
        names = [split.names[k] if split.names is not None else f"{part}[{k}]" for k in rows]
        count.names += names
        count.digests += [hashlib.blake2b(one.tobytes(), digest_size=16).digest() for one in batch.x.numpy()]
        if batch.x.ndim > 2:
            flat = (batch.x.flatten(1) == batch.x.flatten(1)[:, :1]).all(1)
            count.flat += [name for name, one in zip(names, flat.tolist()) if one]
        if has_classes:
            count.classes.update(batch.y.tolist())
    return count


def _repeats(first: dict[bytes, str], digests: Iterable[bytes], names: Iterable[str], grow: bool) -> Repeats:
    """Those among `first` already, by name; with `grow` each new one joins them."""
    found = []
    for digest, name in zip(digests, names):
        if digest in first:
            found.append((first[digest], name))
        elif grow:
            first[digest] = name
    return Repeats(len(found), tuple(found[:EXAMPLES]))


def overview(
    splits: DataSplits, *, files: Inspection | Sequence[Inspection] | None = None, numbers: int = 2**28
) -> Overview:
    """Look through a data set: counts, ranges, classes, equal samples, constant ones.

    Args:
        splits: the data set. Its samples are read; for images with broken files load it with `on_error="skip"`.
        files: what `inspect_source` found, for images.
        numbers: of each part samples with at most so many numbers are read, evenly spaced.
    """
    info = splits.info
    parts = {"train": splits.train} | ({} if splits.val is None else {"val": splits.val}) | {"test": splits.test}
    counted = {part: _read(split, part, numbers, info.num_classes is not None) for part, split in parts.items()}
    word = "column" if info.kind == "vector" else "channel"
    columns = getattr(info, "columns", None) or [f"{word} {k}" for k in range(info.shape[0])]
    if info.kind == "image" and len(columns) in (1, 3):
        columns = ["grey"] if len(columns) == 1 else ["red", "green", "blue"]
    per_sample = info.dim // info.shape[0]
    low = torch.stack([count.low for count in counted.values()]).amin(0)
    high = torch.stack([count.high for count in counted.values()]).amax(0)
    mean = sum(count.total for count in counted.values()) / (
        per_sample * sum(len(count.names) for count in counted.values())
    )
    trained: dict[bytes, str] = {}
    duplicates = {"train": _repeats(trained, counted["train"].digests, counted["train"].names, True)}
    for part, count in counted.items():
        if part != "train":
            duplicates[part] = _repeats({}, count.digests, count.names, True)
            duplicates[f"{part} in train"] = _repeats(trained, count.digests, count.names, False)
    classes = None
    if info.num_classes is not None:
        labels = info.class_names or [str(k) for k in range(info.num_classes)]
        classes = {label: {part: count.classes[k] for part, count in counted.items()} for k, label in enumerate(labels)}
    constant = (counted["train"].low == counted["train"].high).tolist()
    flat = [name for count in counted.values() for name in count.flat]
    found = () if files is None else (files,) if isinstance(files, Inspection) else tuple(files)
    return Overview(
        name=info.name,
        kind=info.kind,
        shape=info.shape,
        levels=info.levels,
        counts={part: len(split) for part, split in parts.items()},
        looked_at={part: len(count.names) for part, count in counted.items()},
        ranges=dict(zip(columns, zip(low.tolist(), mean.tolist(), high.tolist()))),
        classes=classes,
        duplicates=duplicates,
        constant=tuple(name for name, one in zip(columns, constant) if one),
        flat=(len(flat), tuple(flat[:EXAMPLES])),
        files=found,
    )
