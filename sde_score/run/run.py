"""A run with its verbs; on disk, a run directory."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict

from sde_score.config import from_json, read_run, to_json, with_plugins
from sde_score.data import DataInfo, load_codec
from sde_score.run.build import build_sde
from sde_score.run.evaluate import evaluate as run_evaluate
from sde_score.run.evaluate import likelihood as run_likelihood
from sde_score.run.facts import RunFacts, as_splits, check_same_run
from sde_score.run.plugins import import_plugins
from sde_score.run.sample import Samples
from sde_score.run.sample import sample as draw_samples
from sde_score.sdes import PriorGap
from sde_score.training import Checkpoint, CheckpointError, load_checkpoint
from sde_score.training.distributed import pick_device
from sde_score.training.state import check_same_keys


class Run(RunFacts):
    """A trained model with all that is needed to use it. `model` holds the averaged weights (see `load`)."""

    def sample(
        self, num: int = 64, *, seed: int = 0, cond: Mapping[str, torch.Tensor] | None = None, **settings: Any
    ) -> Samples:
        """Draw samples, told the conditions `cond`; see `sde_score.run.sample`. Keyword arguments replace keys of
        `config.sampling`: `method="ode"`, `steps=100`.
        """
        return draw_samples(self.with_settings("sampling", settings), num, seed=seed, cond=cond)

    def likelihood(
        self, split: str = "test", *, num: int | None = None, seed: int = 0, **settings: Any
    ) -> dict[str, Any]:
        """Log-likelihoods of a split; see `sde_score.run.likelihood`."""
        return run_likelihood(self.with_settings("likelihood", settings), split, num=num, seed=seed)

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
        return run_evaluate(self.with_settings("evaluation", settings), seed=seed)


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
    local_rank = os.environ.get("LOCAL_RANK")  # each process of a torchrun has a GPU of its own
    device = pick_device(config.device, None if local_rank is None else int(local_rank))
    run = Run.assemble(config, info, codec, workdir, device, sde=build_sde(config))
    weights = found.weights(ema=ema)
    check_same_keys(run.model, weights, f"checkpoint {found.path}")
    run.model.load_state_dict(weights)
    run.model.eval().requires_grad_(False)
    run.step = found.step
    run.prior = PriorGap(**found.config["prior"]) if found.config.get("prior") else None
    run._data = None if data is None else run.check_data(as_splits(data))
    return run
