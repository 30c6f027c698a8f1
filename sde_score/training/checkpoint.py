"""Checkpoints: written whole or not at all, verified when read, and never executed.

A checkpoint is one file `checkpoints/step_00002000.pt`: the zip archive of `torch.save`, holding tensors, plain
values and JSON strings only, so that it can be read with `weights_only=True`, and behind it the line

    sha256:0123...  (64 digits)

the SHA-256 of all bytes before that line, which is compared before a tensor is used. (By hand: `head -c -73 FILE |
sha256sum`.) A file appears under its name only when it is complete and on the disk (temporary name, fsync, rename,
fsync of the folder), so a process killed at any moment leaves the earlier checkpoints as they were.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from sde_score.files import DamagedArchive, SameFolder, check_archive, first_line, write_atomically, write_bytes

FORMAT = 2  # raised when a reader of this file would misunderstand a newer one; 1 had no digest
SEAL = b"\nsha256:"
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
        self.run_dir = SameFolder(Path(run_dir))
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
            FolderGone: when the run directory was deleted or moved; it is not made again.
        """
        self.run_dir.check()
        path = self.folder / f"step_{state['step']:08d}.pt"
        try:
            self.folder.mkdir(exist_ok=True)
            write_atomically(path, lambda file: _write_sealed({"format": FORMAT, **state}, file))
            latest = json.dumps({"file": path.name, "step": state["step"]})
            write_bytes(self.folder / "latest.json", latest.encode() + b"\n")
        except OSError as error:
            self.run_dir.check()
            raise CheckpointError(self._cannot_write(path, error)) from error
        self._forget_old()
        return path

    def load_newest(self, *, repair: bool = False) -> Checkpoint | None:
        """The newest good checkpoint, or None where the run has none yet.

        A damaged one is reported and the one before it is taken. With `repair` (the run itself, not a mere reader)
        the damaged file is renamed to `*.damaged`, what a killed process left half-written is removed, and the folder
        is made where there is none.

        Raises:
            CheckpointError: when there are checkpoints and none is good, or one of them holds code.
        """
        if repair:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.run_dir.check()
            for leftover in self.folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)
        found = self.files()
        for path in reversed(found):
            try:
                return read_checkpoint(path, say=self.say)
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
    return read_checkpoint(path, say=say)


def read_checkpoint(path: Path, *, say: Callable[[str], None] = print) -> Checkpoint:
    """Verify one file and read it; see `load_checkpoint`. `say` is told of a file that has no digest."""
    try:
        with open(path, "rb") as file:  # one opened file: what is read is what was verified
            sealed = _verify(file, path)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise UnsafeCheckpoint(
            f"{path} holds more than tensors and plain values, as a checkpoint of this library never does. It was "
            "refused and nothing in it was executed. If it comes from another program, convert it there to a plain "
            f"state dict. ({first_line(error)})"
        ) from error
    except OSError as error:
        raise CheckpointError(f"Cannot read checkpoint {path}: {error.strerror or error}.") from error
    except Exception as error:  # whatever torch makes of arbitrary bytes
        raise DamagedCheckpoint(f"Checkpoint {path} is damaged ({first_line(error)}).") from error
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise CheckpointError(f"{path} is a torch file, but not a checkpoint of a training run of this library.")
    if state["format"] > FORMAT:
        raise CheckpointError(
            f"{path} was written by a newer version (format {state['format']}, known: {FORMAT}). Update sde_score."
        )
    if not sealed and state["format"] >= 2:
        raise DamagedCheckpoint(f"Checkpoint {path} is damaged: the digest at its end is missing.")
    if not sealed:
        say(
            f"Checkpoint {path} is of format {state['format']}, which has no digest: its records agree with their "
            "checksums, other bytes are not covered. The next checkpoint of the run will have one."
        )
    return _checkpoint(path, state)


def _checkpoint(path: Path, state: dict[str, Any]) -> Checkpoint:
    """The entries of a file as a `Checkpoint`, after a look at the type of each."""

    def refuse(key: str, wanted: str) -> CheckpointError:
        found = f"is of type {type(state[key]).__name__}" if key in state else "is missing"
        return CheckpointError(f"{path} cannot be used: its entry {key!r} {found}; it must be {wanted}.")

    if type(state.get("step")) is not int or state["step"] < 0:
        raise refuse("step", "a whole number")
    if not _is_state_dict(state.get("model")):
        raise refuse("model", "a state dict: tensors by name")
    ema = state.get("ema")
    if ema is not None and not (isinstance(ema, dict) and _is_state_dict(ema.get("model")) and "num_updates" in ema):
        raise refuse("ema", "None, or a dict with the keys num_updates and model")
    optimizer = state.get("optimizer")
    if optimizer is not None and not (isinstance(optimizer, dict) and {"state", "param_groups"} <= optimizer.keys()):
        raise refuse("optimizer", "None, or a dict with the keys state and param_groups")
    for key in ("progress", "rng"):
        if not isinstance(state.get(key, {}), dict):
            raise refuse(key, "a dict")
    if not isinstance(state.get("codec"), dict | None):
        raise refuse("codec", "None, or a dict")
    config = state.get("config")
    try:
        config = json.loads(config) if config else None
    except (TypeError, ValueError, RecursionError):
        raise refuse("config", "the text of a JSON object") from None
    if not isinstance(config, dict | None):
        raise refuse("config", "the text of a JSON object")
    names = ("step", "model", "ema", "optimizer", "progress", "rng", "codec")
    known = {key: state[key] for key in names if key in state}
    return Checkpoint(path=path, config=config, **known)


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


# The digest


class _Hashed:
    """A file for `torch.save` that takes the SHA-256 of what passes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _write_sealed(state: Mapping[str, Any], file: IO[bytes]) -> None:
    """The archive of `torch.save`, and after its end (where readers of zip archives look no further) its digest."""
    hashed = _Hashed(file)
    torch.save(state, hashed)
    file.write(_seal(hashed.digest.hexdigest()))


def _seal(digest: str) -> bytes:
    return SEAL + digest.encode() + b"\n"


def _verify(file: IO[bytes], path: Path) -> bool:
    """Compare the file with its digest, or where it has none, the archive with its own checksums; whether it had one.

    Raises:
        DamagedCheckpoint: where anything differs.
    """
    size = len(_seal("0" * 64))
    content = file.seek(0, os.SEEK_END) - size
    seal = b""
    if content > 0:
        file.seek(content)
        seal = file.read(size)
    file.seek(0)
    if seal.startswith(SEAL):
        digest = hashlib.sha256()
        while content > 0 and (block := file.read(min(content, 2**20))):
            digest.update(block)
            content -= len(block)
        if seal != _seal(digest.hexdigest()):
            raise DamagedCheckpoint(
                f"Checkpoint {path} is damaged: its bytes have changed since it was written (their SHA-256 is not the "
                "one at the end of the file)."
            )
        file.seek(0)
        return True
    try:
        check_archive(file)
    except DamagedArchive as error:
        raise DamagedCheckpoint(f"Checkpoint {path} is damaged or incomplete: {error}.") from error
    return False
