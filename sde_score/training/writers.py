"""Where a run's numbers and messages go: `metrics.jsonl` always, TensorBoard on request, and a text log."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sde_score.files import FolderGone, SameFolder, write_bytes

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class MetricsWriter(Protocol):
    """What a writer of numbers does. Only the main process calls it."""

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Note `values` at `step`; None stands for a number that does not exist."""

    def image(self, step: int, name: str, picture: np.ndarray | Tensor) -> None:
        """Note a picture `(C, H, W)` with values in [0, 1]; a writer of numbers alone leaves it."""

    def rewind(self, step: int) -> None:
        """Forget everything after `step`, since the run goes on from there. Called once, before the first `write`."""

    def flush(self) -> None:
        """Put everything on the disk. Called before a checkpoint is written, so that no line it relies on is lost."""


class JSONLWriter:
    """One JSON object a line, `{"step": 200, "time": 3.1, "loss": 0.12, ...}`, appended to `path`. NaN and infinities
    become null.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.folder = SameFolder(self.path.parent)

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Append a line. Raises `FolderGone` where the folder was deleted or moved: it is not made again."""
        clean = {key: value if value is None or math.isfinite(value) else None for key, value in values.items()}
        with self.folder, open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **clean}) + "\n")

    def image(self, step: int, name: str, picture: np.ndarray | Tensor) -> None:
        """Pictures are files of their own."""

    def rewind(self, step: int) -> None:
        """Drop the lines after `step`, and a last line that a killed process left unfinished."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.folder.check()
        if not self.path.exists():
            return
        content = self.path.read_text(encoding="utf-8", errors="replace")
        lines = content.splitlines(keepends=True)
        kept = "".join(line for line in lines if line.endswith("\n") and _is_up_to(line, step))
        if kept != content:
            write_bytes(self.path, kept.encode())

    def flush(self) -> None:
        if self.path.exists():
            with self.folder, open(self.path, "ab") as file:
                os.fsync(file.fileno())


def _is_up_to(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


class TensorBoardWriter:
    """TensorBoard events in `folder`. Where tensorboard is not installed, it says so once and does nothing."""

    def __init__(self, folder: str | os.PathLike[str], *, say: Callable[[str], None] = print) -> None:
        self.folder = str(folder)
        self.say = say
        self._events: Any = None

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        if self._events is not None:
            for name, value in values.items():
                if value is not None:
                    self._events.add_scalar(name, value, step)

    def image(self, step: int, name: str, picture: np.ndarray | Tensor) -> None:
        """A picture `(C, H, W)` with values in [0, 1], a tensor or an array."""
        if self._events is not None:
            self._events.add_image(name, picture, step)

    def rewind(self, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.say(
                "TensorBoard is not installed, so no events are written (metrics.jsonl is). To have them: pip install "
                "tensorboard"
            )
            return
        self._events = SummaryWriter(self.folder, purge_step=step + 1)

    def flush(self) -> None:
        if self._events is not None:
            self._events.flush()


class TextLog:
    """Messages for people: to stderr (past a progress bar, if one is there) and, with the time, to the end of the
    file `path`, whose folder must be there.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.folder = None if path is None else SameFolder(self.path.parent)

    def __call__(self, message: str) -> None:
        from tqdm import tqdm

        tqdm.write(message, file=sys.stderr)
        if self.path is not None:
            with suppress(FolderGone):  # the message has been shown, and no folder is brought back for it
                with self.folder, open(self.path, "a", encoding="utf-8") as file:
                    file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")
