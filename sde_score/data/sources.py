"""Where image files lie: a folder with its sub-folders, a .zip or a .tar; and how large a file may be."""

from __future__ import annotations

import lzma
import os
import stat
import tarfile
import threading
import warnings
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TypeVar

M = TypeVar("M")

SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp", ".pbm", ".pgm",
    ".ppm", ".pnm",
)  # fmt: skip
TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
ARCHIVES = (".zip", *TARS)


class Source(ABC):
    """Image files by relative name, in sorted order.

    Attributes:
        path: where they are.
        names: theirs, in sorted order, parts divided by "/".
        others: how many files of other kinds there are, by suffix. Hidden files do not count.
    """

    path: Path
    names: list[str]
    others: Counter[str]

    def _sort(self, found: Iterable[str]) -> None:
        """Tell images from other files."""
        shown = [name for name in found if not _is_hidden(name)]
        self.names = sorted({name for name in shown if name.lower().endswith(SUFFIXES)})
        rest = [PurePosixPath(name) for name in shown if not name.lower().endswith(SUFFIXES)]
        self.others = Counter(name.suffix.lower() or "without suffix" for name in rest)

    @abstractmethod
    def size(self, name: str) -> int:
        """The bytes that `read` will give."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of one file."""


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


# --- folders


def walk(root: Path) -> tuple[list[str], list[str], list[str]]:
    """The files below a folder, as relative names; what links lead out of it, as `name -> place`; and the names of the
    links that were left out because the file they lead to is among the others.

    Links are followed: data sets are often put together from them. Each folder is entered once, known by its device and
    inode, so that a link that leads back ends there; by its own name first, by a link only where there is no other way.
    In the same way each file that links lead to is taken once.
    """
    files: list[str] = []
    out: list[str] = []
    linked: list[Path] = []
    visited: set[tuple[int, int]] = set()
    own, links = [root], []
    inside = root.resolve()

    def is_new(place: Path) -> bool:
        try:
            status = place.stat()
        except OSError:  # a link to nowhere
            return False
        key = (status.st_dev, status.st_ino)
        return not (key in visited or visited.add(key))

    while own or links:
        folder = own.pop(0) if own else links.pop(0)
        if not is_new(folder):
            continue
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):  # the same order on every file system
            place = folder / entry.name
            if entry.is_symlink() and not place.resolve().is_relative_to(inside):
                out.append(f"{place.relative_to(root).as_posix()} -> {place.resolve()}")
            if entry.is_dir():
                (links if entry.is_symlink() else own).append(place)
            elif entry.is_symlink() and place.exists():
                linked.append(place)
            else:
                files.append(place.relative_to(root).as_posix())
                is_new(place)
    known = [place.relative_to(root).as_posix() for place in linked]
    chosen = {name for name, place in zip(known, linked) if is_new(place)}
    return files + sorted(chosen), out, sorted(set(known) - chosen)


class Folder(Source):
    """The images of a folder and its sub-folders."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found, out, again = walk(path)
        for links, words in (
            (out, f"lead out of {str(path)!r} and are followed"),
            ([name for name in again if name.lower().endswith(SUFFIXES)],
             f"in {str(path)!r} lead to images that are there already and are left out"),
        ):  # fmt: skip
            if links:
                warnings.warn(
                    f"{len(links)} link(s) {words}: {', '.join(links[:4])}{' ...' if len(links) > 4 else ''}.",
                    stacklevel=5,
                )
        self._sort(found)

    def size(self, name: str) -> int:
        status = (self.path / name).stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, for ever
            raise ValueError("is no regular file")
        return status.st_size

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


# --- archives: read where they lie; nothing is ever extracted to the disk, so names in them can lead nowhere


def _relative(name: str) -> str:
    """A member's name without what would lead out of the archive; some programs write the other slash."""
    return "/".join(part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", ".."))


def _say_links(path: Path, names: Iterable[str]) -> None:
    """Links in archives: where they lead to may be anywhere, so that they are not followed."""
    links = sorted(name for name in names if name.lower().endswith(SUFFIXES) and not _is_hidden(name))
    if links:
        warnings.warn(
            f"{len(links)} link(s) in {str(path)!r} are left out: {', '.join(links[:4])}{' ...' if links[4:] else ''}. "
            "If they lead to images, pack it anew with these in place of the links.",
            stacklevel=6,
        )


def _unpacked(members: dict[str, M]) -> dict[str, M]:
    """Members by their names below the folder that was packed, if it was one: as if it were read itself."""
    tops = {name.partition("/")[0] for name in members if not _is_hidden(name)}
    if len(tops) != 1 or not all("/" in name for name in members if not _is_hidden(name)):
        return members
    return {name.partition("/")[2] if not _is_hidden(name) else name: member for name, member in members.items()}


class Zip(Source):
    """The images in a zip archive."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"Cannot open {str(path)!r} as a zip archive: {error}. Is the file complete?") from error
        files = [file for file in self.archive.infolist() if file.filename[-1:] not in "/\\"]
        links = {file.filename for file in files if stat.S_ISLNK(file.external_attr >> 16)}
        _say_links(path, links)
        found = {_relative(file.filename): file.filename for file in files if file.filename not in links}
        self.members = _unpacked(found)
        self._sort(self.members)
        self.lock = threading.Lock()

    def size(self, name: str) -> int:
        return self.archive.getinfo(self.members[name]).file_size  # zipfile unpacks no more than this

    def read(self, name: str) -> bytes:
        with self.lock:
            return self.archive.read(self.members[name])


class Tar(Source):
    """The images in a tar archive. A plain one is read image by image.

    A compressed one can only be read from its beginning on, so the files of its images are kept in memory: up to
    `memory` bytes in all, known from its headers before any is kept. One of more than `limit` bytes is not read at all.
    """

    def __init__(self, path: Path, limit: int, memory: float) -> None:
        self.path = path
        with open(path, "rb") as file:
            packed = file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))
        try:
            with tarfile.open(path) as archive:
                found, links = self._members(archive)
                members = _unpacked(found)
                self._sort(members)
                self.members = {name: members[name] for name in self.names}
                self.kept = self._keep(archive, limit, memory) if packed else {}
        except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            reason = str(error).partition(":\n")[0]
            raise ValueError(f"Cannot open {str(path)!r} as a tar archive: {reason}. Is the file complete?") from error
        _say_links(path, links)

    @staticmethod
    def _members(archive: tarfile.TarFile) -> tuple[dict[str, tarfile.TarInfo], list[str]]:
        """The regular files by name, of two of one name the later, and the names of the links that lead to none of
        them. A hard link is the file that it names once more."""
        found: dict[str, tarfile.TarInfo] = {}
        links: list[str] = []
        for member in archive:
            if member.isreg():
                found[_relative(member.name)] = member
            elif member.islnk() and (target := found.get(_relative(member.linkname))) is not None:
                found[_relative(member.name)] = target
            elif member.issym() or member.islnk():
                links.append(_relative(member.name))
        # tarfile says nothing where the archive is cut between two files, or goes on after its end
        file = archive.fileobj
        file.seek(archive.offset)
        mark = file.read(512)
        if mark != bytes(512):
            raise tarfile.ReadError("it ends without the mark that ends an archive")
        while rest := file.read(2**20):  # to the end, where a compressed one has its checksum
            if rest.strip(b"\0"):
                raise tarfile.ReadError("something follows its end; unpack it and give the folder")
        return found, links

    def _keep(self, archive: tarfile.TarFile, limit: int, memory: float) -> dict[int, bytes]:
        """The files by their places in the archive."""
        wanted = {member.offset_data: member for member in self.members.values() if member.size <= limit}
        total = sum(member.size for member in wanted.values())
        if total > memory:
            raise ValueError(
                f"The images in {str(self.path)!r} take {total / 2**30:.3g} GiB, and a compressed .tar must be held in "
                f"memory: at most memory_gb={memory / 2**30:g} are. Unpack it, or make a plain .tar or a .zip of it, "
                f"which are read image by image; or raise it with --config.data.memory_gb={total / 2**30 + 0.1:.1f}."
            )
        # in the order of the file: going back would unpack all of it again
        return {place: archive.extractfile(wanted[place]).read() for place in sorted(wanted)}

    def size(self, name: str) -> int:
        return self.members[name].size

    def read(self, name: str) -> bytes:
        member = self.members[name]
        if member.offset_data in self.kept:
            return self.kept[member.offset_data]
        if member.issparse():
            raise ValueError("is stored with holes. Pack it without --sparse")
        with open(self.path, "rb") as file:
            file.seek(member.offset_data)
            return file.read(member.size)


def open_source(path: str | os.PathLike, limit: int = 2**30, memory: float = 2**31) -> Source:
    """The images at a path; files of more than `limit` bytes are not read, and no more than `memory` bytes are kept.

    Raises `FileNotFoundError` and `ValueError` where there are none.
    """
    where = Path(path).expanduser()
    if not where.exists():
        near = next((parent for parent in where.absolute().parents if parent.is_dir()), None)
        raise FileNotFoundError(
            f"There is no folder, .zip or .tar of images at {str(path)!r} (looked for {where.absolute()}; {near} "
            "exists). Check the path."
        )
    name = where.name.lower()
    if not where.is_dir() and not name.endswith(ARCHIVES):
        raise ValueError(
            f"{str(path)!r} is neither a folder nor a .zip or .tar of images. Put the images into a folder and give "
            "that."
        )
    if where.is_dir():
        source: Source = Folder(where)
    else:
        source = Zip(where) if name.endswith(".zip") else Tar(where, limit, memory)
    if not source.names:
        common = sorted(source.others.items(), key=lambda item: (-item[1], item[0]))[:6]
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in common)
        raise ValueError(
            f"There are no images in {str(path)!r}: {source.others.total()} file(s) seen{kinds and f' ({kinds})'}, "
            f"none of them {', '.join(SUFFIXES)}."
        )
    return source
