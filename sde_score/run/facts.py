"""What a run is, before anything is done with it, and what is written down about it."""

from __future__ import annotations

import inspect
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

import sde_score
from sde_score.config import differences, from_json, identity, merge, to_json
from sde_score.data import Batch, Codec, DataInfo, DataSplits, from_arrays
from sde_score.files import write_bytes
from sde_score.models import ScoreModel
from sde_score.registry import SettingError, suggest
from sde_score.run.build import build_data, build_model, told_conditions
from sde_score.run.plugins import code_of
from sde_score.run.unused import check_given
from sde_score.score import Score
from sde_score.sdes import SDE, PriorGap, prior_gap
from sde_score.sdes.prior import FEWEST
from sde_score.tensors import SampleNoise
from sde_score.training import distributed

Setting = str | bool | int | float | None
"""A value of a key of the configuration."""

Array = Tensor | np.ndarray
Data = DataSplits | Array | tuple[Array, Array] | tuple[Array, Mapping[str, Array]] | Mapping[str, Array]
"""Data given in Python; see `as_splits`."""

PRIOR_SAMPLES, PRIOR_NUMBERS = 2048, 2**24  # at most so many samples, and numbers, are compared with the prior
PRIOR_STREAM = 0x9121  # a word that keeps this noise apart from that of training


def write_json(path: Path, values: Any) -> None:
    """Write JSON, whole or not at all. The folder must be there."""
    write_bytes(path, (json.dumps(plain(values), indent=2) + "\n").encode())


def plain(values: Any) -> Any:
    """Values as JSON knows them: numbers that are not finite, which it does not know, become null."""
    if isinstance(values, dict):
        return {key: plain(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [plain(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def provenance() -> dict[str, str]:
    """Versions and the command line: what one wants to know of a result a year later."""
    facts = {
        "sde_score": sde_score.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    try:
        here = Path(__file__).resolve().parent
        commit = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=5
        )
        if commit.returncode == 0:
            facts["commit"] = commit.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        pass
    return facts


def saved_state(run: RunFacts) -> dict[str, Any]:
    """What a checkpoint carries besides weights and codec, so that it alone suffices for sampling."""
    prior = None if run.prior is None else run.prior.to_dict()
    return {
        "config": run.config.to_dict(),
        "info": run.info.to_dict(),
        "prior": prior,
        "data": run.fingerprint,
        "plugins": code_of(run.config.plugins),
    }


def check_same_sources(saved: Mapping[str, Any], run: RunFacts) -> None:
    """Refuse to train on with other data, or another code of the plug-ins, than a checkpoint was trained with.

    `saved` is what `saved_state` gave. Raises `ValueError` that names the difference; nothing has been changed by then.
    """
    before, now = saved.get("data"), run.fingerprint
    way_out = "go on with what the run began with, or choose another --workdir (or --overwrite, to begin anew)"
    shapes = [tuple(saved["info"]["shape"]), run.info.shape]
    if shapes[0] != shapes[1]:
        raise ValueError(f"This run began with samples of shape {shapes[0]}, not {shapes[1]}. Please {way_out}.")
    if before and now and before != now:
        raise ValueError(f"The data have changed since this run began: {_changed(before, now)}. Please {way_out}.")
    code = code_of(run.config.plugins)
    changed = [name for name, digest in saved.get("plugins", {}).items() if code.get(name, digest) != digest]
    if changed:
        raise ValueError(
            f"The code of the plug-in {', '.join(changed)} has changed since this run began, so that what it would "
            f"train now is something else (comments and layout do not count). Please {way_out}."
        )


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    parts = [f"{part} samples: {before[part]} then, {now[part]} now" for part in ("train", "test")
             if before[part] != now[part]]  # fmt: skip
    return "; ".join(parts) or f"as many samples ({now['train']} and {now['test']}), but with other values"


def as_splits(data: Data) -> DataSplits:
    """Data given in Python: `DataSplits`, an array, data frame or data set, or a pair: `(x, y)` with labels, `(x,
    cond)` with a mapping of conditions; or a mapping of the arguments of `from_arrays`: `{"x": x, "x_test": more}`."""
    if isinstance(data, DataSplits):
        return data
    if isinstance(data, Mapping):
        named = {str(key).removesuffix("_train"): values for key, values in data.items()}
        known = inspect.signature(from_arrays).parameters
        for key in named:
            if key not in known:
                raise ValueError(f"Data have no part {key!r}.{suggest(key, known)}")
        return from_arrays(**named)
    x, known = data if isinstance(data, tuple) else (data, None)
    return from_arrays(x, cond=known) if isinstance(known, Mapping) else from_arrays(x, known)


@dataclass
class RunFacts:
    """What a run is made of: configuration, facts of the data, codec, process, model, and where it lies.

    What the commands do with it are functions of these facts; `sde_score.run.run.Run` has them as methods.
    """

    config: ConfigDict
    info: DataInfo
    codec: Codec
    sde: SDE
    model: ScoreModel
    workdir: Path
    step: int
    device: torch.device
    prior: PriorGap | None = None
    fingerprint: dict[str, Any] | None = None  # of the data it was trained on; see `DataSplits.fingerprint`
    _data: DataSplits | None = None

    @classmethod
    def assemble(
        cls, config: ConfigDict, info: DataInfo, codec: Codec, workdir: Path, device: torch.device, *, sde: SDE
    ) -> RunFacts:
        """The run of a configuration with a fresh model on `device`, its weights from torch's generator."""
        model = build_model(config, info, sde, codec.shape).to(device)
        return cls(config, info, codec, sde, model, workdir, 0, device)

    def with_settings(self, section: str, settings: Mapping[str, Any]) -> RunFacts:
        """The same run with other values in one section of its configuration. Raises `SettingError`, a `ValueError`,
        for one that has no effect beside the others.
        """
        if not settings:
            return self
        config = from_json(to_json(self.config))
        merge(config[section], settings, f"config.{section}")
        check_given(config, [f"{section}.{key}" for key in settings], self.info)
        return replace(self, config=config)

    def compare_prior(self) -> None:
        """Measure how far the law of the training data at T is from the prior."""
        count = min(len(self.data.train), PRIOR_SAMPLES, max(64, PRIOR_NUMBERS // math.prod(self.codec.shape)))
        if count < FEWEST:
            return
        noise = SampleNoise((self.config.seed, PRIOR_STREAM), range(count))
        z = self.codec.encode(self.data.train[range(count)].x, noise)
        try:
            self.prior = prior_gap(self.sde, z, noise=noise)
        except FloatingPointError:  # too stiff for the simulation; training need not stop for that
            self.prior = None

    def prior_warning(self) -> str | None:
        """What to say of a prior that does not stand for the data at T; None where it does, or nothing is known."""
        return None if self.prior is None else self.prior.warning(self.sde)

    def warn_of_prior(self) -> None:
        """Say it on stderr, from the main process."""
        if distributed.is_main() and (warning := self.prior_warning()):
            print(f"Warning: {warning}", file=sys.stderr)

    @property
    def data(self) -> DataSplits:
        """The data set, loaded when first asked for."""
        if self._data is None:
            self._data = self.check_data(build_data(self.config))
            now = self._data.fingerprint()
            if self.fingerprint and self.fingerprint != now and distributed.is_main():
                print(
                    f"Warning: the data have changed since training ({_changed(self.fingerprint, now)}): what is held "
                    "out now may have been trained on.",
                    file=sys.stderr,
                )
        return self._data

    def check_data(self, data: DataSplits) -> DataSplits:
        """The data, if the model fits them; otherwise `ValueError`."""
        for name in told_conditions(self.config, self.info):
            if data.info.conditions.get(name) != self.info.conditions[name]:
                raise ValueError(
                    f"The run was trained with a condition {name!r} that is {self.info.conditions[name]}; these data "
                    f"have {data.info.conditions.get(name, 'none of that name')}."
                )
        if (data.info.shape, data.info.levels) != (self.info.shape, self.info.levels):
            raise ValueError(
                f"The run was trained on samples of shape {self.info.shape} ({self.info.levels or 'no'} grey levels); "
                f"these data have shape {data.info.shape} ({data.info.levels or 'no'} grey levels)."
            )
        return data

    def told(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Of the conditions of a batch those that the network is told, on the model's device."""
        return {name: batch.cond[name].to(self.device) for name in told_conditions(self.config, self.info)}

    def has_data(self) -> bool:
        """Are the data still where the run found them? Sampling goes without."""
        try:
            return self.data is not None
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            print(
                f"The data of this run cannot be loaded, so pictures show none beside the samples ({error})",
                file=sys.stderr,
            )
            return False

    def score_fn(self, **cond: torch.Tensor) -> Score:
        """The model at rest, as a score with its conditions bound."""
        return self.model.score_fn(**cond)


class Contradiction(SettingError):
    """A configuration that makes another run than the one it is for.

    Args:
        what: what contradicts, as a sentence's beginning.
        pairs: by key the value of the run, and that asked for.
        advice: what to do, in whole sentences.
    """

    def __init__(self, what: str, pairs: Mapping[str, tuple[Any, Any]], advice: str) -> None:
        self.what, self.pairs = what, dict(pairs)
        rows = [("key", "run", "asked for"), *((f"config.{key}", repr(a), repr(b)) for key, (a, b) in pairs.items())]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        table = "".join(f"\n  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows)
        if len(rows) == 2:
            super().__init__(f"{what}: {rows[1][0]} is {rows[1][1]} there, {rows[1][2]} asked for. {advice}")
        else:
            super().__init__(f"{what}. {advice}{table}")

    def advised(self, advice: str) -> Contradiction:
        """The same with other advice."""
        return Contradiction(self.what, self.pairs, advice)


def check_same_run(saved: ConfigDict, asked: ConfigDict, what: str) -> None:
    """Raise `Contradiction`, a `ValueError`, for a configuration that contradicts the run's own: a table of keys with
    both values.
    """
    pairs = {key: values for key, values in differences(saved, asked).items() if identity(key)}
    if pairs:
        place = "run" if what.startswith("The checkpoint") else "run directory"
        raise Contradiction(
            f"{what} contradicts the {place}",
            pairs,
            "Leave these settings out, or choose another --workdir (or --overwrite when training).",
        )
