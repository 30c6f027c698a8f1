"""The data sets that torchvision fetches and unpacks: MNIST, Fashion-MNIST, CIFAR-10, SVHN, CelebA, LSUN.

The IDX files of the two MNISTs are read here, so that files on the disk, gzipped or not, need neither torchvision nor
the network.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_score import _torchvision
from sde_score.data.base import DATASETS, DataSplits, LazySplit, TensorSplit, data_root, size_pair
from sde_score.data.info import Condition, DataInfo

IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

MAX_BYTES = 2**31


def read_idx(path: Path) -> Tensor:
    """A uint8 IDX file (`.gz` or not) as a tensor.

    Two zero bytes, type 8, number of axes, the lengths as big-endian 32-bit integers, then the values.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            start = file.read(4)
            axes = start[3] if len(start) == 4 and start[:3] == b"\0\0\x08" else 0
            lengths = file.read(4 * axes)
            if not axes or len(lengths) < 4 * axes:
                raise ValueError(
                    f"{str(path)!r} is not an IDX file of bytes: it begins with {start.hex(' ') or 'nothing'}. Delete "
                    "it and fetch it again."
                )
            shape = struct.unpack(f">{axes}I", lengths)
            size = math.prod(shape)
            if size > MAX_BYTES:  # the header tells, before anything is unpacked
                raise ValueError(f"{str(path)!r} is said to hold {size} bytes of data, more than {MAX_BYTES}: damaged?")
            content = bytearray(file.read(size + 1))
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"Cannot read {str(path)!r}: {error}. Delete it and fetch it again.") from error
    if len(content) != size:
        found = len(content) if len(content) < size else "more"
        raise ValueError(
            f"{str(path)!r} should hold {size} bytes of data and holds {found}: it is cut short or damaged. Fetch it "
            "again."
        )
    return torch.frombuffer(content, dtype=torch.uint8).reshape(shape)


def _find_idx(folders: Sequence[Path]) -> dict[str, Path] | None:
    """The four IDX files in the first folder that has them all."""
    for folder in folders:
        found = {}
        for name in (n for pair in IDX_FILES.values() for n in pair):
            for path in (folder / name, folder / f"{name}.gz"):
                if path.is_file():
                    found[name] = path
                    break
        if len(found) == 4:
            return found
    return None


def _fetch(make: Callable[..., Any], name: str, root: Path, download: bool, **settings: Any) -> Any:
    """A torchvision data set, its failures in one sentence."""
    try:
        return make(str(root), download=download, **settings)
    except ImportError:
        raise
    except (OSError, RuntimeError) as error:  # no network, no files, wrong checksum
        advice = (
            "Check the network, or put the files there by hand."
            if download
            else f'Write "{name}(download=True)" to fetch it.'
        )
        raise FileNotFoundError(
            f"Cannot load {name} from {str(root)!r}: {error} {advice} Another folder: `root`."
        ) from error


def _ten_classes(name: str, shape: tuple[int, ...], class_names: Sequence[str]) -> DataInfo:
    return DataInfo(name, shape, levels=256, conditions={"y": Condition(num=10, names=tuple(class_names))})


def _mnist_like(
    name: str, class_name: str, root: str | os.PathLike | None, download: bool, class_names: tuple[str, ...]
) -> DataSplits:
    folder = data_root(root)
    places = [folder / class_name / "raw", folder / class_name, folder]
    found = _find_idx(places)
    if found is None and download:
        make = getattr(_torchvision.load("datasets"), class_name)
        for train in (True, False):
            _fetch(make, name, folder, True, train=train)
        found = _find_idx(places)
    if found is None:
        looked = ", ".join(str(place) for place in places)
        raise FileNotFoundError(
            f"{name}: the four files {', '.join(n for pair in IDX_FILES.values() for n in pair)} (or their .gz) are in "
            f'none of {looked}. Write "{name}(download=True)" to fetch them, or give their folder as `root`.'
        )
    parts = {}
    for part, (images, labels) in IDX_FILES.items():
        x, y = read_idx(found[images]), read_idx(found[labels])
        if x.ndim != 3 or y.shape != x.shape[:1]:
            raise ValueError(
                f"{name}: {found[images].name} has shape {tuple(x.shape)}, {found[labels].name} {tuple(y.shape)}: they "
                "do not belong together."
            )
        parts[part] = TensorSplit(x.unsqueeze(1), {"y": y.long()}, name=f"{name}/{part}")
    info = _ten_classes(name, tuple(parts["train"].x.shape[1:]), class_names)
    return DataSplits(parts["train"], parts["test"], info)


@DATASETS.register("mnist")
def mnist(root: str | os.PathLike | None = None, download: bool = True) -> DataSplits:
    """Handwritten digits, 28x28 grey (60,000 train, 10,000 test).

    Reads the four IDX files, also gzipped, from `<root>/MNIST/raw`, `<root>/MNIST` or `<root>`, without network; else
    torchvision fetches them.
    """
    return _mnist_like("mnist", "MNIST", root, download, tuple("0123456789"))


@DATASETS.register("fashion_mnist")
def fashion_mnist(root: str | os.PathLike | None = None, download: bool = True) -> DataSplits:
    """Clothes, 28x28 grey (60,000 train, 10,000 test). Files as for `mnist`, in `<root>/FashionMNIST/raw`."""
    names = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
    return _mnist_like("fashion_mnist", "FashionMNIST", root, download, names)


@DATASETS.register("cifar10")
def cifar10(root: str | os.PathLike | None = None, download: bool = True) -> DataSplits:
    """Objects and animals, 32x32 RGB, ten classes (50,000 train, 10,000 test)."""
    make = _torchvision.load("datasets").CIFAR10
    parts = []
    for part in ("train", "test"):
        source = _fetch(make, "cifar10", data_root(root), download, train=part == "train")
        y = torch.as_tensor(source.targets, dtype=torch.int64)
        # torchvision keeps NHWC; seen as NCHW without a copy
        parts.append(TensorSplit(torch.from_numpy(source.data).permute(0, 3, 1, 2), {"y": y}, name=f"cifar10/{part}"))
    return DataSplits(parts[0], parts[1], _ten_classes("cifar10", (3, 32, 32), source.classes))


@DATASETS.register("svhn")
def svhn(root: str | os.PathLike | None = None, download: bool = True, extra: bool = False) -> DataSplits:
    """Street view house numbers, 32x32 RGB, ten classes (73,257 train, 26,032 test).

    `extra=True` adds the 531,131 easier ones to the training part.
    """
    make = _torchvision.load("datasets").SVHN
    parts = []
    for part, names in (("train", ("train", "extra") if extra else ("train",)), ("test", ("test",))):
        sources = [_fetch(make, "svhn", data_root(root), download, split=name) for name in names]
        images = [torch.from_numpy(source.data) for source in sources]
        x = images[0] if len(images) == 1 else torch.cat(images)
        y = torch.cat([torch.as_tensor(source.labels, dtype=torch.int64) for source in sources])
        parts.append(TensorSplit(x, {"y": y}, name=f"svhn/{part}"))
    return DataSplits(parts[0], parts[1], _ten_classes("svhn", (3, 32, 32), "0123456789"))


def _lazy(source: Any, name: str, prepare: Callable[[Any], Tensor]) -> LazySplit:
    return LazySplit(lambda i: prepare(source[i][0]), len(source), name=name)


@DATASETS.register("celeba")
def celeba(
    root: str | os.PathLike | None = None, download: bool = True, image_size: int | Sequence[int] = 64, crop: int = 140
) -> DataSplits:
    """Faces: the central `crop` x `crop` of the aligned CelebA, resized (162,770 train, 19,962 test; no labels).

    Resized with an antialiased bicubic filter; the published systems use a bilinear one. `crop=0` keeps the largest
    fitting rectangle.
    """
    from sde_score.data.pictures import centre_crop, to_tensor

    make, size = _torchvision.load("datasets").CelebA, size_pair(image_size)

    def prepare(image: Any) -> Tensor:
        return to_tensor(centre_crop(image, crop) if crop else image, size, 3)

    parts = [
        _lazy(_fetch(make, "celeba", data_root(root), download, split=part), f"celeba/{part}", prepare)
        for part in ("train", "test")
    ]
    return DataSplits(parts[0], parts[1], DataInfo("celeba", (3, *size), levels=256))


@DATASETS.register("lsun")
def lsun(
    category: str = "church_outdoor", root: str | os.PathLike | None = None, image_size: int | Sequence[int] = 128
) -> DataSplits:
    """One LSUN category, cropped and resized (no labels; needs the `lmdb` package and the files).

    torchvision does not download LSUN: unzip `<category>_train_lmdb` and `<category>_val_lmdb` into `<root>`. The
    validation part is the test split. Categories: `bedroom`, `church_outdoor`, `cat` and more.
    """
    from sde_score.data.pictures import to_tensor

    make, size, folder = _torchvision.load("datasets").LSUN, size_pair(image_size), data_root(root)
    missing = [str(p) for p in (folder / f"{category}_{part}_lmdb" for part in ("train", "val")) if not p.is_dir()]
    if missing:
        raise FileNotFoundError(
            f"lsun: there is no folder {' and no '.join(missing)}. Unzip the category there, or give the folder as "
            "`root`."
        )
    parts = []
    for part, suffix in (("train", "train"), ("test", "val")):
        try:
            source = make(str(folder), classes=[f"{category}_{suffix}"])
        except ModuleNotFoundError as error:
            raise ImportError(f"lsun needs the package {error.name!r}: `pip install {error.name}`.") from error
        parts.append(_lazy(source, f"lsun/{part}", lambda image: to_tensor(image, size, 3)))
    return DataSplits(parts[0], parts[1], DataInfo(f"lsun_{category}", (3, *size), levels=256))
