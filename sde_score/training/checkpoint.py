"""Checkpoints: written whole or not at all, verified when read, and never executed.

A checkpoint is one file `checkpoints/step_00002000.pt`: the zip archive of `torch.save`, holding tensors, plain
values and JSON strings only, so that it can be read with `weights_only=True`. The archive carries a CRC-32 of each of
its records; they are compared before anything is used. A file appears under its name only when it is complete and on
the disk (temporary name, fsync, rename, fsync of the folder), so a process killed at any moment leaves the earlier
checkpoints as they were.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

FORMAT = 1  # raised when a reader of this file would misunderstand a newer one
_NAME = re.compile(r"step_(\d+)\.pt")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read or used; the message says which file, why, and what to do."""


class DamagedCheckpoint(CheckpointError):
    """The file is incomplete or its bytes have changed since it was written."""


class UnsafeCheckpoint(CheckpointError):
    """The file holds something other than tensors and plain values; it was refused unexecuted."""


@dataclass
class Checkpoint:
    """What a checkpoint holds: `model` and `ema` weights, `optimizer` state, `progress` of the run, `config` (as
    saved, from JSON), and the state of the `codec` between data and model space.
    """

    path: Path
    step: int
    model: dict[str, Tensor]
    ema: dict[str, Any] | None = None
    optimizer: dict[str, Any] | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    rng: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    codec: dict[str, Any] | None = None

    def weights(self, *, ema: bool = True) -> dict[str, Tensor]:
        """The state dict to sample with: the averaged weights where the run kept them, unless `ema=False`."""
        return self.ema["model"] if ema and self.ema is not None else self.model


class CheckpointStore:
    """The checkpoints of one run directory.

    Args:
        run_dir: the run directory; the files lie in its folder `checkpoints`.
        keep: how many of the newest checkpoints are kept.
        permanent_every: a checkpoint whose step is a multiple of this is never deleted; 0: none.
        say: where messages go.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        *,
        keep: int = 3,
        permanent_every: int = 0,
        say: Callable[[str], None] = print,
    ) -> None:
        if keep < 1:
            raise ValueError(
                f"`CheckpointStore(keep=...)` must be at least 1, got {keep}; 2 or more survive a damaged newest file."
            )
        self.folder = Path(run_dir) / "checkpoints"
        self.keep = keep
        self.permanent_every = permanent_every
        self.say = say

    def files(self) -> list[Path]:
        """The checkpoints there are, oldest first."""
        return list_checkpoints(self.folder)

    def save(self, state: Mapping[str, Any]) -> Path:
        """Write `state` (with its key "step") and forget what is too old.

        Raises:
            CheckpointError: when the disk is full or not writable; earlier checkpoints stay as they were.
        """
        path = self.folder / f"step_{state['step']:08d}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))
            latest = json.dumps({"file": path.name, "step": state["step"]})
            write_atomically(self.folder / "latest.json", lambda file: file.write(latest.encode() + b"\n"))
        except OSError as error:
            raise CheckpointError(self._cannot_write(path, error)) from error
        self._forget_old()
        return path

    def load_newest(self, *, repair: bool = False) -> Checkpoint | None:
        """The newest good checkpoint, or None where the run has none yet.

        A damaged one is reported and the one before it is taken. With `repair` (the run itself, not a mere reader)
        the damaged file is renamed to `*.damaged`, and what a killed process left half-written is removed.

        Raises:
            CheckpointError: when there are checkpoints and none is good, or one of them holds code.
        """
        if repair and self.folder.is_dir():
            for leftover in self.folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)
        found = self.files()
        for path in reversed(found):
            try:
                return read_checkpoint(path)
            except DamagedCheckpoint as error:
                self.say(f"{error} Falling back to the checkpoint before it.")
                if repair:
                    path.rename(path.with_name(path.name + ".damaged"))
        if found:
            raise CheckpointError(
                f"None of the {len(found)} checkpoints in {self.folder} can be read. Restore a copy, or start the run "
                "anew."
            )
        return None

    def _forget_old(self) -> None:
        for path in self.files()[: -self.keep]:
            if not (self.permanent_every and step_of(path) % self.permanent_every == 0):
                path.unlink(missing_ok=True)

    def _cannot_write(self, path: Path, error: OSError) -> str:
        left = [file.name for file in self.files()]
        kept = f"Earlier checkpoints are intact (newest: {left[-1]})" if left else "No earlier checkpoint exists"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(self.folder).free / 2**20 if self.folder.is_dir() else 0.0
            reason = f"no room on the disk ({free:.1f} MiB free, {error.strerror})"
            advice = "Free some space, or keep fewer checkpoints"
        else:
            reason, advice = str(error), "Check that the run directory exists and is writable"
        return (
            f"Cannot write checkpoint {path}: {reason}. {kept}. {advice}, and run the same command again to go on from "
            "there."
        )


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint."""
    match = _NAME.fullmatch(path.name)
    assert match, path
    return int(match[1])


def list_checkpoints(folder: Path) -> list[Path]:
    """Files named like checkpoints in `folder`, oldest step first."""
    return sorted((path for path in folder.glob("step_*.pt") if _NAME.fullmatch(path.name)), key=step_of)


def load_checkpoint(where: str | os.PathLike[str], *, say: Callable[[str], None] = print) -> Checkpoint:
    """The checkpoint in the file `where`, or the newest good one of the run directory (or its folder `checkpoints`)
    `where`.

    Tensors arrive on the CPU. Nothing in the file is executed.

    Raises:
        FileNotFoundError: when there is no such file, or no checkpoint in the directory.
        CheckpointError: when the file is damaged, of another kind, or holds code.
    """
    path = Path(where)
    if path.is_dir():
        run_dir = path.parent if path.name == "checkpoints" and not (path / "checkpoints").is_dir() else path
        newest = CheckpointStore(run_dir, say=say).load_newest()
        if newest is None:
            raise FileNotFoundError(
                f"No checkpoint in {run_dir / 'checkpoints'}. Is {path} the run directory (--workdir) of a training "
                "run?"
            )
        return newest
    if not path.exists():
        raise FileNotFoundError(
            f"No checkpoint {path}. Give a run directory, or a file such as {path.parent / 'step_00002000.pt'}."
        )
    return read_checkpoint(path)


def read_checkpoint(path: Path) -> Checkpoint:
    """Verify one file and read it; see `load_checkpoint`."""
    _verify(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeCheckpoint(
            f"{path} holds more than tensors and plain values, as a checkpoint of this library never does. It was "
            "refused and nothing in it was executed. If it comes from another program, convert it there to a plain "
            f"state dict. ({_first_line(error)})"
        ) from error
    except (RuntimeError, OSError, ValueError, KeyError, EOFError) as error:
        raise DamagedCheckpoint(f"Checkpoint {path} is damaged ({_first_line(error)}).") from error
    if not isinstance(state, dict) or "format" not in state:
        raise CheckpointError(f"{path} is a torch file, but not a checkpoint of a training run of this library.")
    if state["format"] > FORMAT:
        raise CheckpointError(
            f"{path} was written by a newer version (format {state['format']}, known: {FORMAT}). Update sde_score."
        )
    config = json.loads(state["config"]) if state.get("config") else None
    names = ("step", "model", "ema", "optimizer", "progress", "rng", "codec")
    return Checkpoint(path=path, config=config, **{key: state[key] for key in names if key in state})


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write(file)` produce the file `path`, which appears whole or not at all, also when the power fails.

    Raises:
        OSError: what the system said; the temporary file is removed and an earlier `path` is left alone.
    """
    temporary = path.with_name(f".{path.name}.tmp")
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


class _Guard:
    """A file for `torch.save` that remembers the first error of the system, and lets the C++ writer come to its end
    undisturbed.
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


def _verify(path: Path) -> None:
    """Compare each record of the archive with its CRC-32 (torch itself does not)."""
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except (PermissionError, FileNotFoundError) as error:
        raise CheckpointError(f"Cannot read checkpoint {path}: {error.strerror}.") from error
    except Exception as error:  # whatever zipfile makes of arbitrary bytes
        raise DamagedCheckpoint(f"Checkpoint {path} is damaged or incomplete ({_first_line(error)}).") from error
    if bad is not None:
        raise DamagedCheckpoint(f"Checkpoint {path} is damaged: the checksum of its record {bad!r} is wrong.")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
