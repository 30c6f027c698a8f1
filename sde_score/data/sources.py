"""Where image files lie: a folder with its sub-folders, or a .zip; and how large a file may be."""

from __future__ import annotations

import os
import stat
import threading
import warnings
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pnm")


class Source(ABC):
    """Image files by relative name, in sorted order."""

    path: Path
    names: list[str]
    seen: int  # files of any kind

    @abstractmethod
    def size(self, name: str) -> int:
        """The bytes that `read` will give."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of one file."""


def _is_image(name: str) -> bool:
    parts = name.split("/")
    return name.lower().endswith(SUFFIXES) and not any(part.startswith(".") or part == "__MACOSX" for part in parts)


def walk(root: Path) -> tuple[list[str], list[str]]:
    """The files below a folder, as relative names, and what links lead out of it, as `name -> place`.

    Links are followed: data sets are often put together from them. Each folder is entered once, known by its device and
    inode, so that a link that leads back ends there; by its own name first, by a link only where there is no other way.
    """
    files: list[str] = []
    out: list[str] = []
    visited: set[tuple[int, int]] = set()
    own, links = [root], []
    inside = root.resolve()
    while own or links:
        folder = own.pop(0) if own else links.pop(0)
        try:
            status = folder.stat()
        except OSError:  # a link to nowhere is no folder
            continue
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):  # the same order on every file system
            place = folder / entry.name
            if entry.is_symlink() and not place.resolve().is_relative_to(inside):
                out.append(f"{place.relative_to(root).as_posix()} -> {place.resolve()}")
            if entry.is_dir():
                (links if entry.is_symlink() else own).append(place)
            else:
                files.append(place.relative_to(root).as_posix())
    return files, out


class Folder(Source):
    """The images of a folder and its sub-folders."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found, out = walk(path)
        if out:
            warnings.warn(
                f"{len(out)} link(s) lead out of {str(path)!r} and are followed: "
                f"{', '.join(out[:4])}{' ...' if len(out) > 4 else ''}.",
                stacklevel=5,
            )
        self.seen = len(found)
        self.names = sorted(filter(_is_image, found))

    def size(self, name: str) -> int:
        status = (self.path / name).stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, for ever
            raise ValueError("is no regular file")
        return status.st_size

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


class Zip(Source):
    """The images in a zip archive."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"Cannot open {str(path)!r} as a zip archive: {error}. Is the file complete?") from error
        files = [name for name in self.archive.namelist() if not name.endswith("/")]
        self.seen = len(files)
        self.names = sorted(set(filter(_is_image, files)))
        self.lock = threading.Lock()

    def size(self, name: str) -> int:
        return self.archive.getinfo(name).file_size  # zipfile unpacks no more than this

    def read(self, name: str) -> bytes:
        with self.lock:
            return self.archive.read(name)


def open_source(path: str | os.PathLike) -> Source:
    """The images at a path. Raises `FileNotFoundError` and `ValueError` where there are none."""
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
    source = Folder(where) if where.is_dir() else Zip(where)
    if not source.names:
        raise ValueError(
            f"There are no images in {str(path)!r}: {source.seen} file(s) seen, none of them {', '.join(SUFFIXES)}."
        )
    return source
