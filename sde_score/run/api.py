"""`sde_score.train` and `sde_score.load`: the same runs from Python."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sde_score.config import default_config, flat, from_json, is_run, load_config, merge, read_run, to_json
from sde_score.data import DataSplits
from sde_score.registry import SettingError, suggest
from sde_score.run.automatic import fitting
from sde_score.run.build import GIVEN
from sde_score.run.facts import Data, Setting, as_splits
from sde_score.run.run import Run, load
from sde_score.run.train import train as run_train

__all__ = ["load", "train"]

OWN_WORDS = ("workdir", "data", "minutes", "overwrite")


def train(
    config: str | os.PathLike[str] | ConfigDict | None = None,
    *,
    workdir: str | os.PathLike[str] | None = None,
    data: Data | str | os.PathLike[str] | Mapping[str, Any] | None = None,
    minutes: float | None = None,
    overwrite: bool = False,
    **sections: Setting | tuple[str, ...] | Mapping[str, Any],
) -> Run:
    """Train a score model, or go on where it stopped; returns the trained run.

    Args:
        config: a configuration, or its name or file, as after `--config=`: `"digits"`, `"digits:ve"`, `"my_config.py"`.
            None: one is chosen from the data; see `sde_score.run.automatic`.
        workdir: the run directory; default: `runs/` and the name.
        data: data of your own, in place of those of the configuration: a path; an array, tensor or data frame
            `(N, *)`; a pair `(x, y)` with labels or `(x, cond)` with a mapping of conditions; `DataSplits`. Or keys of
            the section `data`: `{"random_flip": True}`.
        minutes: a cap on the training time; default: that of the configuration.
        overwrite: delete a run that is there and begin anew.
        sections: keys to change: `sde="ve"`, `optim={"lr": 1e-4}`, `plugins=("my_sde.py",)`.

    Raises `ValueError` for unknown keys and components, and when the configuration contradicts the run in `workdir`.
    """
    given: dict[str, Any] = dict(sections)
    _check_words(given)
    if minutes is not None and not minutes > 0:
        raise ValueError(f"`train(minutes=...)` must be positive; got {minutes}.")
    if isinstance(data, Mapping) and not {"x", "x_train"} & data.keys():
        given["data"], data = dict(data), None
    if isinstance(data, (str, os.PathLike)):
        given["data"], data = {"name": os.fspath(data)}, None
    workdir = _default_workdir(config, given) if workdir is None else Path(workdir)
    splits = None if data is None else as_splits(data)
    settings, loaded = _settings(config, given, workdir, splits, minutes, overwrite)
    if minutes is not None:
        if "training.max_seconds" in flat(given):
            raise SettingError("minutes= and training={'max_seconds': ...} say the same; leave one of them out.")
        settings.training.max_seconds = 60.0 * minutes
    return run_train(
        settings, workdir, overwrite=overwrite, data=splits, loaded=loaded, given=flat(given)
    )[0]


def _settings(
    config: str | os.PathLike[str] | ConfigDict | None,
    given: dict[str, Any],
    workdir: Path,
    splits: DataSplits | None,
    minutes: float | None,
    overwrite: bool,
) -> tuple[ConfigDict, DataSplits | None]:
    """The configuration that was named, that of the run that is there, or one chosen from the data, with the keys
    given; and the data, where they had to be looked at."""
    if config is not None:
        named = isinstance(config, (str, os.PathLike))
        settings = from_json(to_json(load_config(os.fspath(config)) if named else config))
        merge(settings, given)
        return settings, None
    if is_run(workdir) and not overwrite:
        settings = read_run(workdir)
        merge(settings, given)
        return settings, None
    settings = default_config()
    merge(settings, given)
    if splits is not None:
        settings.data.name = GIVEN
    elif "name" not in given.get("data", {}):
        raise ValueError(
            'There is nothing to train on: name a configuration, train("digits"), or give data of your own, '
            "train(data=x) or train(data='photos.zip')."
        )
    return fitting(settings, given, data=splits, minutes=minutes, plugins=settings.plugins)


def _check_words(given: Mapping[str, Any]) -> None:
    """A misspelt argument looks like a section: say what it may have been."""
    known = [*default_config().keys(), *OWN_WORDS]
    for word in given:
        if word not in known:
            raise ValueError(
                f"`train` has no argument {word!r}, and the configuration no key config.{word}.{suggest(word, known)}"
            )


def _default_workdir(config: str | os.PathLike[str] | ConfigDict | None, given: Mapping[str, Any]) -> Path:
    data = given.get("data", {}).get("name") or "data"
    if isinstance(config, (str, os.PathLike)):
        name, _, argument = os.fspath(config).partition(":")
    else:
        name, argument = data if config is None else config.data.name, ""
    words = [Path(name).stem or "run", *([argument] if argument else [])]
    return Path("runs") / re.sub(r"[^\w.-]+", "_", "_".join(words))
