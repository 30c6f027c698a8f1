"""A run: a configuration, the facts of its data, and a trained model; on disk, a run directory."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict

import sde_score
from sde_score.config import differences, from_json, identity, read_run, to_json, with_plugins
from sde_score.data import Batch, Codec, DataInfo, DataSplits, from_arrays, load_codec
from sde_score.files import write_bytes
from sde_score.models import ScoreModel
from sde_score.run.build import build_data, build_model, build_sde, told_conditions
from sde_score.run.plugins import import_plugins
from sde_score.sdes import SDE
from sde_score.training import Checkpoint, CheckpointError, load_checkpoint
from sde_score.training.distributed import pick_device
from sde_score.training.state import check_same_keys


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


def saved_state(config: ConfigDict, info: DataInfo) -> dict[str, Any]:
    """What a checkpoint carries besides weights and codec, so that it alone suffices for sampling."""
    return {"config": config.to_dict(), "info": info.to_dict()}


def as_splits(data: Any) -> DataSplits:
    """Data given in Python: `DataSplits`, an array `(N, *)`, or a pair: `(x, y)` with labels, `(x, cond)` with a
    mapping of conditions."""
    if isinstance(data, DataSplits):
        return data
    x, known = data if isinstance(data, tuple) else (data, None)
    return from_arrays(x, cond=known) if isinstance(known, Mapping) else from_arrays(x, known)


@dataclass
class Run:
    """A trained model with all that is needed to use it. `model` holds the averaged weights (see `load`)."""

    config: ConfigDict
    info: DataInfo
    codec: Codec
    sde: SDE
    model: ScoreModel
    workdir: Path
    step: int
    device: torch.device
    _data: DataSplits | None = None

    @property
    def data(self) -> DataSplits:
        """The data set, loaded when first asked for."""
        if self._data is None:
            self._data = self.check_data(build_data(self.config))
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

    def score_fn(self, **cond):
        """The model as a score function."""
        return self.model.score_fn(**cond)

    def sample(
        self, num: int = 64, *, seed: int = 0, cond: Mapping[str, torch.Tensor] | None = None, **settings: Any
    ):
        """Draw samples, told the conditions `cond`; see `sde_score.run.sample`. Keyword arguments replace keys of
        `config.sampling`: `method="ode"`, `steps=100`.
        """
        from sde_score.run.sample import sample

        return sample(self._with("sampling", settings), num, seed=seed, cond=cond)

    def likelihood(
        self, split: str = "test", *, num: int | None = None, seed: int = 0, **settings: Any
    ) -> dict[str, Any]:
        """Log-likelihoods of a split; see `sde_score.run.likelihood`."""
        from sde_score.run.evaluate import likelihood

        return likelihood(self._with("likelihood", settings), split, num=num, seed=seed)

    def bits_per_dim(self, split: str = "test", **settings: Any) -> tuple[float, float]:
        """Mean bits/dim of a split and its standard error."""
        result = self.likelihood(split, **settings)
        if "bits_per_dim" not in result:
            raise ValueError(
                f"The data {self.info.name!r} are continuous and have no bits/dim; use likelihood(), which gives nats."
            )
        return result["bits_per_dim"]["mean"], result["bits_per_dim"]["stderr"]

    def evaluate(self, *, seed: int = 0, **settings: Any) -> dict[str, Any]:
        """Compare samples with the test data; see `sde_score.run.evaluate`."""
        from sde_score.run.evaluate import evaluate

        return evaluate(self._with("evaluation", settings), seed=seed)

    def _with(self, section: str, settings: dict[str, Any]) -> Run:
        if not settings:
            return self
        from sde_score.config import merge

        config = from_json(to_json(self.config))
        merge(config[section], settings, f"config.{section}")
        return Run(
            config, self.info, self.codec, self.sde, self.model, self.workdir, self.step, self.device, self._data
        )


def check_same_run(saved: ConfigDict, asked: ConfigDict, what: str) -> None:
    """Refuse a configuration that contradicts the run's own, naming both values."""
    contradictions = {k: v for k, v in differences(saved, asked).items() if identity(k)}
    if contradictions:
        there = "in it" if what.startswith("The checkpoint") else "in the run"
        lines = "; ".join(
            f"config.{key} is {old!r} {there}, {new!r} asked for" for key, (old, new) in contradictions.items()
        )
        raise ValueError(
            f"{what} contradicts {'the run' if there == 'in it' else 'the run directory'}: {lines}. Leave these flags "
            "out, or choose another --workdir (or --overwrite when training)."
        )


def load(
    workdir: str | os.PathLike,
    config: ConfigDict | None = None,
    *,
    checkpoint: str | os.PathLike | None = None,
    ema: bool = True,
    data: Any = None,
    plugins: Iterable[str] = (),
) -> Run:
    """Load a run from its directory: nothing else is needed.

    Args:
        workdir: the run directory.
        config: the run's configuration with changed sampling, likelihood, evaluation, device or plugins; default: as it
            is.
        checkpoint: a checkpoint file; default: the newest good one.
        ema: use the averaged weights.
        data: the data, if they were given in Python when training; see `sde_score.train`.
        plugins: plug-ins to import, in the place of those of the run that have the same file name. What the run's own
            configuration names is run only if named here or trusted; see `sde_score.run.plugins`.

    Raises `ValueError` when `config` contradicts the run, `FileNotFoundError` and `CheckpointError` when there is
    nothing to load, `UntrustedPlugin` when it would run code that nobody here has named.
    """
    workdir = Path(workdir)
    saved = read_run(workdir)
    config = from_json(to_json(saved if config is None else config))
    config.plugins, given = with_plugins(config.plugins, plugins), with_plugins((), plugins)
    check_same_run(saved, config, "The configuration")
    import_plugins(config.plugins, named={*config.plugins} - {*saved.plugins} | {*given})
    found: Checkpoint = load_checkpoint(checkpoint if checkpoint else workdir, say=lambda m: print(m, file=sys.stderr))
    if not found.config or not {"config", "info"} <= found.config.keys() or found.codec is None:
        raise CheckpointError(f"{found.path} does not say what it is a model of; it was not written by a run of ours.")
    own = from_json(json.dumps(found.config["config"]), str(found.path))
    check_same_run(own, config, f"The checkpoint {found.path}")
    info = DataInfo.from_dict(found.config["info"])
    codec = load_codec(config.data.codec, found.codec)
    sde = build_sde(config)
    model = build_model(config, info, sde, codec.shape)
    weights = found.weights(ema=ema)
    check_same_keys(model, weights, f"checkpoint {found.path}")
    model.load_state_dict(weights)
    local_rank = os.environ.get("LOCAL_RANK")  # each process of a torchrun has a GPU of its own
    device = pick_device(config.device, None if local_rank is None else int(local_rank))
    model = model.to(device).eval().requires_grad_(False)
    run = Run(config, info, codec, sde, model, workdir, found.step, device)
    run._data = None if data is None else run.check_data(as_splits(data))
    return run
