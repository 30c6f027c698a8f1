"""The user's own images: a folder, a .zip or a .tar, any sizes, grey or colour, with a clear word about every broken
file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
    hold_out,
    size_pair,
)
from sde_score.data.info import Condition, DataInfo
from sde_score.data.pictures import is_grey, levels_of, to_tensor
from sde_score.data.sources import ARCHIVES
from sde_score.data.survey import BrokenImage, Files, Survey, on_threads, refuse_or_say, say_frames, survey

if TYPE_CHECKING:
    from PIL.Image import Image

PARTS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
"""What top folders of these names hold."""

# --- what all have in common


def _decide_size(surveys: Sequence[Survey], image_size: int | Sequence[int] | None) -> tuple[int, int]:
    named = [(look.size, name) for found in surveys for name, look in zip(found.names, found.looks)]
    if image_size is None:
        sizes: dict[tuple[int, int], str] = {}
        for size, name in named:
            sizes.setdefault(size, name)
        if len(sizes) > 1:
            (first, one), (second, other) = list(sizes.items())[:2]
            raise ValueError(
                f"The images have {len(sizes)} different sizes ({one} is {first[0]}x{first[1]}, {other} "
                f"{second[0]}x{second[1]}): say to which size to bring them, for example image_size=64 or "
                'image_size=(48, 80) (--config.data.image_size=64 or --config.data.image_size="(48, 80)").'
            )
        return next(iter(sizes))
    height, width = size_pair(image_size)
    small = [name for size, name in named if size[0] < height or size[1] < width]
    if small:
        warnings.warn(
            f"{len(small)} of {len(named)} images are smaller than {height}x{width} and are enlarged: {small[0]} "
            "first.",
            stacklevel=3,
        )
    return height, width


def _undeclared(surveys: Sequence[Survey]) -> int | None:
    """One number of levels for all images whose files do not say it, from the largest number in any of them."""
    tops = [(look.top, n) for found in surveys for n, look in zip(found.names, found.looks) if look.top is not None]
    return levels_of(*max(tops)) if tops else None


def _is_grey(surveys: Sequence[Survey]) -> bool:
    """Whether all images are grey by their values. Those whose header does not tell are decoded until one is not."""
    if any(look.grey is False for found in surveys for look in found.looks):
        return False
    for found in surveys:
        files = found.files

        def one(item: tuple[str, int], files: Files = files) -> bool:
            name, number = item
            return files.opened(name, lambda im, _: all(map(is_grey, files.frames(im, [number]))))

        unseen = [item for item, look in zip(found.items, found.looks) if look.grey is None]
        for start in range(0, len(unseen), 16):
            if False in on_threads(one, unseen[start : start + 16]):  # broken ones are met when they are read
                return False
    return True


# --- parts and classes, from the names of folders


def _strip_common(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The names as path parts, without the folders that all of them share."""
    parts = [tuple(name.split("/")) for name in names]
    while all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    return parts


def _official(paths: Sequence[tuple[str, ...]], where: Path) -> list[str] | None:
    """The part of each image, `train`, `val` or `test`, where the top folders are called so; else `None`."""
    parts = [PARTS.get(p[0].lower()) if len(p) > 1 else None for p in paths]
    found = sorted({part for part in parts if part is not None})
    if "train" not in found or len(found) == 1:
        if found == ["test", "val"] and None not in parts:
            raise ValueError(f"{str(where)!r} has folders for validation and test, but none called train.")
        return None
    outside = ["/".join(path) for path, part in zip(paths, parts) if part is None]
    if outside:
        raise ValueError(
            f"{str(where)!r} has folders for {' and '.join(found)}, and {len(outside)} images outside them, "
            f"{outside[0]} first: in which part are these? Move them, or give the parts as "
            "folder(path='.../train', test_path='.../test')."
        )
    return parts


def _class_names(below: Mapping[str, Sequence[tuple[str, ...]]]) -> tuple[str, ...]:
    """The classes that the images' folders name, from the paths below each part, training first; none unless all images
    are in such folders and some part has two."""
    known = {part: {p[0] for p in paths if len(p) > 1} for part, paths in below.items()}
    if max(len(names) for names in known.values()) < 2:
        return ()
    loose = ["/".join(p) for paths in below.values() for p in paths if len(p) < 2]
    if loose:
        warnings.warn(
            f"The folders name no classes: {len(loose)} images are in none of them, {loose[0]} first.", stacklevel=4
        )
        return ()
    trained = known["train"]
    for part, names in known.items():
        if names - trained:
            raise ValueError(
                f"The {part} images have classes that no training image has: {', '.join(sorted(names - trained))} "
                f"(known: {', '.join(sorted(trained))}). Correct the names of the folders, or leave the classes out "
                "with folder(path=..., labels=False)."
            )
    return tuple(sorted(trained))


# --- splits


def _make_split(
    found: Survey,
    sample: Callable[[Image], Tensor],
    shape: tuple[int, int, int],
    on_error: str,
    memory_gb: float,
    title: str,
) -> TensorSplit | LazySplit:
    """The images as one split: decoded now if they fit into `memory_gb`, else when asked for."""
    files, items = found.files, found.items

    def decoded(name: str, numbers: Sequence[int]) -> list[Tensor]:
        return files.opened(name, lambda image, _: [sample(frame) for frame in files.frames(image, numbers)])

    if len(items) * shape[0] * shape[1] * shape[2] <= memory_gb * 2**30:
        x = torch.empty((len(items), *shape), dtype=torch.uint8)
        rows: dict[str, list[int]] = {}
        for row, (name, _) in enumerate(items):
            rows.setdefault(name, []).append(row)

        def place(name: str) -> None:
            for row, value in zip(rows[name], decoded(name, [items[row][1] for row in rows[name]])):
                x[row] = value

        broken = {n: r for n, r in zip(rows, on_threads(place, list(rows))) if r is not None}
        refuse_or_say(broken, len(rows), on_error, files.source.path)
        good = [row for row, (name, _) in enumerate(items) if name not in broken]
        split: TensorSplit | LazySplit = TensorSplit(x[good] if broken else x, name=title)
        split.names = [found.names[row] for row in good]
        return split

    def read(i: int) -> Tensor:
        for offset in range(min(16, len(items))):
            name, number = items[(i + offset) % len(items)]
            try:
                return decoded(name, [number])[0]
            except BrokenImage as error:
                if on_error == "raise":
                    raise
                # The next good image stands in: still a function of i alone.
                warnings.warn(f"{error}: its neighbour takes its place.", stacklevel=2)
        raise BrokenImage(f"16 images in a row cannot be read, from {items[i][0]} on.")

    split = LazySplit(read, len(items), name=title)
    split.names = found.names
    return split


def _split_of_names(names: Sequence[str], holdout: float, what: str) -> list[str]:
    """The part of each image, `train` or `test`, by its name; see `hold_out`."""
    _, held = hold_out((name.encode("utf-8", "surrogateescape") for name in names), holdout, what=what)
    parts = ["train"] * len(names)
    for k in held.tolist():
        parts[k] = "test"
    return parts


def _assemble(
    made: Sequence[TensorSplit | LazySplit], places: Sequence[Path], title: str, holdout: float, labels: bool
) -> tuple[dict[str, Split], dict[str, Condition]]:
    """The parts of one source, or of two: all but the test part, and the test part; and their classes."""
    paths = [_strip_common(split.names) for split in made]
    official = _official(paths[0], places[0])
    if official is not None:
        paths[0] = [p[1:] for p in paths[0]]
    if len(made) == 2:
        if official is not None and "test" in official:
            raise ValueError(f"test_path is given, and {str(places[0])!r} has a folder for test too: which is it?")
        roles = [official or ["train"] * len(made[0]), ["test"] * len(made[1])]
    elif official is not None:
        roles = [official if "test" in official else ["test" if role == "val" else role for role in official]]
    else:
        roles = [_split_of_names(["/".join(path) for path in paths[0]], holdout, title)]
    source = {"train": 0, "val": 0, "test": len(made) - 1}
    rows = {part: [k for k, role in enumerate(roles[s]) if role == part] for part, s in source.items()}

    is_cut = official is None and len(made) == 1  # by `holdout`: then the classes are those of all images
    below = {part: [paths[source[part]][k] for k in chosen] for part, chosen in rows.items() if chosen}
    names = _class_names({"train": paths[0]} if is_cut else below) if labels else ()
    if names:
        number = {name: k for k, name in enumerate(names)}
        for split, found in zip(made, paths):
            split.cond = {"y": torch.tensor([number[p[0]] for p in found])}
    splits: dict[str, Split] = {
        part: Subset(made[source[part]], torch.tensor(chosen), name=f"{title}/{part}")
        for part, chosen in rows.items() if chosen
    }  # fmt: skip
    return splits, {"y": Condition(num=len(names), names=names)} if names else {}


@DATASETS.register("folder")
def folder(
    path: str | os.PathLike,
    test_path: str | os.PathLike | None = None,
    image_size: int | Sequence[int] | None = None,
    channels: int | None = None,
    labels: bool = True,
    levels: int | None = None,
    frames: str = "first",
    on_error: str = "raise",
    holdout: float = 0.1,
    memory_gb: float = 2.0,
    max_pixels: int = MAX_PIXELS,
) -> DataSplits:
    """Your own images: a folder (with its sub-folders), a .zip or a .tar (also .tar.gz, .tgz, .tar.xz).

    Sub-folders at the first level are classes if every image is in one. If they are called `train` and `test`, they are
    the split, and classes are looked for below. `val` (or `valid`, `validation`) beside them is the validation part;
    without a `test` it is the test part. Otherwise images are held out by their names, each for itself.

    Photographs are turned upright, deeper integers become 8 bits, transparency is laid on white, colour profiles are
    not applied. Grey stays grey: the data have one channel if every image is grey by its values, however its file
    stores it: three channels that are equal everywhere count as one (as three they would have no density).

    Args:
        path: the folder, .zip or .tar. A compressed .tar is held in memory, up to `memory_gb`.
        test_path: another one with the test images; else the top folders, else `holdout`, decide.
        image_size: a number or (height, width): the largest central part of these proportions is cut out and resized
            (antialiased bicubic). Not needed when all images have one size.
        channels: 1 or 3. By default what the data have: grey if all are grey, else colour.
        labels: whether the folders' names are classes.
        levels: how many grey levels images of more than 8 bits have, where that is not what their files say: 4096 for
            12 bits kept in 16.
        frames: of a file that holds several images (GIF, TIFF, PNG, WebP): the `"first"`, or `"all"`, then called
            `file#1`, `file#2` and so on.
        on_error: `"raise"` refuses broken images, all of them named; `"skip"` leaves them out with a warning.
        holdout: fraction kept for testing.
        memory_gb: decoded images up to this size are kept in memory, larger sets are read from the files again and
            again.
        max_pixels: larger images are broken ones: their size is read off their headers, before they are decoded.
    """
    for name, value, known in (("on_error", on_error, ("raise", "skip")), ("frames", frames, ("first", "all"))):
        if value not in known:
            raise ValueError(f"`folder({name}=...)` is {known[0]!r} or {known[1]!r}; got {value!r}.")
    if channels not in (None, 1, 3):
        raise ValueError(
            f"`folder(channels=...)` is 1 (grey) or 3 (colour); got {channels!r}. Other channel counts: "
            "`array(path=...)`."
        )
    if levels is not None and not 2 <= levels <= 2**32:
        raise ValueError(f"`folder(levels=...)` is a number from 2 to 2**32; got {levels!r}.")
    surveys = [survey(Files.at(p, max_pixels, memory_gb), frames, levels) for p in (path, test_path) if p is not None]
    for found in surveys:
        refuse_or_say(found.broken, len(found.files.source.names), on_error, found.files.source.path)
    if levels is not None and not any(look.deep for found in surveys for look in found.looks):
        raise ValueError(
            f"`folder(levels={levels})` is for images of more than 8 bits, and {str(path)!r} holds none. Leave it out."
        )
    if frames == "first":
        say_frames(surveys)
    size, undeclared = _decide_size(surveys, image_size), _undeclared(surveys)
    channels = channels or (1 if _is_grey(surveys) else 3)
    place = Path(path).expanduser().resolve()
    suffix = next((end for end in ARCHIVES if place.name.lower().endswith(end)), "")
    title = place.name if place.is_dir() else place.name[: len(place.name) - len(suffix)]

    def sample(image: Image) -> Tensor:
        return to_tensor(image, size, channels, levels, undeclared)

    made = [_make_split(f, sample, (channels, *size), on_error, memory_gb, title) for f in surveys]
    parts, conditions = _assemble(made, [f.files.source.path for f in surveys], title, holdout, labels)
    info = DataInfo(title, (channels, *size), 256, conditions=conditions)
    return DataSplits(parts["train"], parts["test"], info, val=parts.get("val"))
