"""`sde_score.train` and `sde_score.load`: the same runs from Python."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sde_score.config import from_json, load_config, merge, to_json
from sde_score.run.run import Run, load
from sde_score.run.train import train as run_train

__all__ = ["load", "train"]


def train(
    config: str | ConfigDict,
    *,
    workdir: str | os.PathLike | None = None,
    data: Any = None,
    minutes: float | None = None,
    overwrite: bool = False,
    **sections: Any,
) -> Run:
    """Train a score model, or go on where it stopped; returns the trained run.

    Args:
        config: a configuration, or its name or file, as after `--config=`: `"digits"`, `"digits:ve"`, `"my_config.py"`.
        workdir: the run directory; default: `runs/` and the name.
        data: data of your own, in place of those of the configuration: an array or tensor `(N, *)`, a pair `(x, y)`
            with labels or `(x, cond)` with a mapping of conditions, or `DataSplits`.
        minutes: a cap on the training time; default: that of the configuration.
        overwrite: delete a run that is there and begin anew.
        sections: keys to change: `sde="ve"`, `optim={"lr": 1e-4}`, `plugins=("my_sde.py",)`.

    Raises `ValueError` for unknown keys and components, and when the configuration contradicts the run in `workdir`.
    """
    named = isinstance(config, (str, os.PathLike))
    settings = from_json(to_json(load_config(os.fspath(config)) if named else config))
    merge(settings, sections)
    if minutes is not None:
        if not minutes > 0:
            raise ValueError(f"`train(minutes=...)` must be positive; got {minutes}.")
        settings.training.max_seconds = 60.0 * minutes
    if workdir is None:
        name, _, argument = os.fspath(config).partition(":") if named else (settings.data.name, "", "")
        words = [Path(name).stem or "run", *([argument] if argument else [])]
        workdir = Path("runs") / re.sub(r"[^\w.-]+", "_", "_".join(words))
    return run_train(settings, workdir, overwrite=overwrite, data=data)[0]
