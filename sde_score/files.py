"""Files that are whole or absent, folders that stay what they were, archives that are what they say. Standard library
only.
"""

from __future__ import annotations

import errno
import os
import platform
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

LOCK = ".lock"
_DOS_FOLDER = 0x10  # of the external attributes of a zip entry


def write_atomically(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> Path:
    """Let `write(file)` produce the file `path`, which appears whole or not at all, also when the power fails: a
    temporary name, fsync, rename, fsync of the folder.

    The folder must be there. None is made, so that a run whose directory was deleted does not bring it back.

    Raises:
        OSError: what the system said; the temporary file is removed and an earlier `path` is left alone.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "There is no such folder", str(path.parent))
    # two processes that write the same file (a report, say) must not write into each other's half
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            guard = _Guard(file)
            write(guard)  # type: ignore[arg-type]
            if guard.error is not None:
                raise guard.error
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return path


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """`write_atomically` of bytes that are there already."""
    return write_atomically(path, lambda file: file.write(data))


class _Guard:
    """A file that remembers the first error of the system, and lets a writer in C++ (that of `torch.save`, which
    would abort) come to its end undisturbed.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        if self.error is None:
            try:
                self.file.flush()
            except OSError as error:
                self.error = error


def _sync_folder(folder: Path) -> None:
    """Make a rename last; a system that cannot open folders (Windows) does without."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FolderGone(FileNotFoundError):
    """A folder was deleted or moved while it was in use; the message says which."""


class SameFolder:
    """A folder that must stay the one it was when it was first looked at: `with folder: ...` for what writes in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._identity: tuple[int, int] | None = None

    def check(self) -> None:
        """Raise `FolderGone` where the folder is missing, or is another one under the same name."""
        try:
            found = os.stat(self.folder)
        except FileNotFoundError:
            found = None
        identity = None if found is None else (found.st_dev, found.st_ino)
        if identity is None or self._identity not in (None, identity):
            raise FolderGone(
                f"The folder {self.folder} was deleted or moved while it was in use; nothing more is written there. A "
                "run that was moved goes on at its new place: the same command with another --workdir."
            )
        self._identity = identity

    def __enter__(self) -> None:
        self.check()

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OSError):
            self.check()  # it may have gone in between


class FolderInUse(RuntimeError):
    """Another process holds the folder; the message says which."""


@contextmanager
def held_alone(folder: Path, *, say: Callable[[str], None] = print) -> Iterator[None]:
    """Hold `folder`, which must be there, against every other process that asks the same.

    The lock (flock on the file `LOCK` in it) belongs to the process, so that one that is killed leaves none behind;
    the file stays. Where the system or its disk knows no locks, `say` is told and work goes on.

    Raises:
        FolderInUse: when another process holds it, or another thread of this one.
    """
    with ExitStack() as until_the_end:
        try:
            import fcntl

            file = until_the_end.enter_context(open(folder / LOCK, "a+", encoding="utf-8"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise FolderInUse(
                f"{folder} is in use: {file.read(200).strip() or 'another process'} is training in it. Wait until that "
                "has ended, or choose another --workdir."
            ) from None
        except (ImportError, OSError) as error:
            say(f"{folder} cannot be locked ({first_line(error)}): see to it that only one training uses it.")
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
        yield


class DamagedArchive(ValueError):
    """A zip archive is incomplete, changed, or laid out as no `torch.save` lays one out."""


def check_archive(file: IO[bytes]) -> None:
    """Compare the zip archive of a `torch.save` with its own checksums, and its directory with what is there.

    torch itself does neither. Its reader (miniz) takes an entry marked as a folder, or of no stored bytes, as read
    without reading anything: the tensor is then whatever lay in memory. `file` is left at its beginning.

    Raises:
        DamagedArchive: with the reason.
    """
    try:
        archive = zipfile.ZipFile(file)
        entries = archive.infolist()
        for entry in entries:
            if entry.external_attr & _DOS_FOLDER or entry.filename.endswith("/"):
                raise DamagedArchive(f"its record {entry.filename!r} is marked as a folder")
            if entry.file_size and not entry.compress_size:
                raise DamagedArchive(f"its record {entry.filename!r} should have {entry.file_size} bytes and has none")
        if len({entry.filename for entry in entries}) < len(entries):
            raise DamagedArchive("two of its records have the same name")
        bad = archive.testzip()
    except DamagedArchive:
        raise
    except Exception as error:  # whatever zipfile makes of arbitrary bytes
        raise DamagedArchive(first_line(error)) from error
    if bad is not None:
        raise DamagedArchive(f"the checksum of its record {bad!r} is wrong")
    file.seek(0)


def first_line(error: BaseException) -> str:
    """The beginning of an error's text, or its name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
