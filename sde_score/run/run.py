"""A run with its verbs; on disk, a run directory."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from torch import Tensor

from sde_score.config import from_json, read_run, to_json, with_plugins
from sde_score.data import DataInfo, load_codec
from sde_score.protocols import Constraint
from sde_score.registry import parse_spec
from sde_score.run import points
from sde_score.run.build import build_sde
from sde_score.run.evaluate import evaluate as run_evaluate
from sde_score.run.evaluate import likelihood as run_likelihood
from sde_score.run.facts import Data, RunFacts, Setting, as_splits, check_same_run
from sde_score.run.plugins import import_plugins
from sde_score.run.report import write_run_report
from sde_score.run.sample import Samples
from sde_score.run.sample import sample as draw_samples
from sde_score.run.unused import check_beside_object
from sde_score.sampling import Callback, Sampler
from sde_score.sdes import PriorGap
from sde_score.training import Checkpoint, CheckpointError, load_checkpoint
from sde_score.training.distributed import pick_device
from sde_score.training.state import check_same_keys


class Run(RunFacts):
    """A trained model with all that is needed to use it. `model` holds the averaged weights (see `load`).

    Everything that goes in and comes out is in the units of the data; the words are those of the commands.
    """

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.model.parameters())
        return (
            f"Run({str(self.workdir)!r}: {self.info.name} {self.info.shape}, sde={self.config.sde}, "
            f"{parse_spec(self.config.model.name)[0]} of {count:,} parameters, step {self.step:,}, on {self.device})"
        )

    def sample(
        self,
        n: int = 64,
        *,
        labels: Sequence[int | str] | None = None,
        condition: Mapping[str, Tensor] | None = None,
        sampler: Sampler | str | None = None,
        steps: int | None = None,
        seed: int = 0,
        constraint: Constraint | None = None,
        callback: Callback | None = None,
        trajectory: bool = False,
        progress: bool = False,
        **settings: Setting,
    ) -> Samples:
        """Draw `n` samples; see `sde_score.run.sample`.

        Args:
            n: how many.
            labels: classes of a class-conditional model, as the data name them, repeated in turn.
            condition: other conditions the model is told, by name, each `(k, *)`, repeated in turn.
            sampler: a sampler, or the name of one (`config.sampling.method`): `"pc"`, `"ode"`.
            steps: how many steps a sampler with steps takes.
            seed: sample i is a function of (seed, i).
            constraint: `(z, moment) -> z` in model space, applied after each update; see `Sampler.__call__`.
            callback: sees every step, of each chunk of the batch.
            trajectory: keep some states of the first samples.
            progress: show a bar.
            settings: other keys of `config.sampling` for this call: `predictor="ancestral_sampling"`,
                `solver="heun(steps=20)"`.
        """
        named = {"method": sampler} if isinstance(sampler, str) else {}
        named |= {} if steps is None else {"steps": steps}
        if isinstance(sampler, Sampler):
            check_beside_object(sampler, named | settings)
        return draw_samples(
            self.with_settings("sampling", named | settings),
            n,
            seed=seed,
            labels=labels,
            cond=condition,
            sampler=None if isinstance(sampler, str) else sampler,
            constraint=constraint,
            callback=callback,
            trajectory=trajectory,
            progress=progress,
        )

    def log_prob(
        self,
        x: points.Points,
        *,
        labels: Sequence[int | str] | None = None,
        condition: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        repeats: int = 1,
        **settings: Setting,
    ) -> points.LogProb:
        """Log-likelihood of each of your samples, with standard errors; see `points.log_prob`. Keyword arguments
        replace keys of `config.likelihood`: `trace="exact"`.
        """
        run = self.with_settings("likelihood", settings)
        return points.log_prob(run, x, labels=labels, condition=condition, seed=seed, repeats=repeats)

    def likelihood(
        self, split: str = "test", *, num: int | None = None, repeats: int = 1, seed: int = 0, **settings: Setting
    ) -> dict[str, Any]:
        """Log-likelihoods of a split of the data; see `sde_score.run.likelihood`. Of samples at hand: `log_prob`."""
        if not isinstance(split, str):
            raise TypeError(
                f"run.likelihood(split) takes the name of a split, 'test' or 'train'; got {type(split).__name__}. The "
                "log-likelihoods of samples at hand: run.log_prob(x)."
            )
        run = self.with_settings("likelihood", settings)
        return run_likelihood(run, split, num=num, repeats=repeats, seed=seed)

    def bits_per_dim(
        self, split: str = "test", *, num: int | None = None, seed: int = 0, **settings: Setting
    ) -> tuple[float, float]:
        """Mean bits/dim of a split and its standard error."""
        if self.info.levels is None:
            raise ValueError(
                f"The data {self.info.name!r} are continuous and have no bits/dim; use likelihood(), which gives nats."
            )
        result = self.likelihood(split, num=num, seed=seed, **settings)
        return result["bits_per_dim"]["mean"], result["bits_per_dim"]["stderr"]

    def nats(
        self, split: str = "test", *, num: int | None = None, seed: int = 0, **settings: Setting
    ) -> tuple[float, float]:
        """Mean log density of a split in nats, in the units of the data (images: the unit cube), and its standard
        error."""
        result = self.likelihood(split, num=num, seed=seed, **settings)
        return result["nats"]["mean"], result["nats"]["stderr"]

    def score(
        self,
        x: points.Points,
        t: float | Tensor,
        *,
        labels: Sequence[int | str] | None = None,
        condition: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The score `∇ log p_t(x)` in the units of the data; see `points.score`."""
        return points.score(self, x, t, labels=labels, condition=condition)

    def denoise(
        self,
        x: points.Points,
        t: float | Tensor,
        *,
        labels: Sequence[int | str] | None = None,
        condition: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The posterior mean of the data given the state `x` at time `t`; see `points.denoise`."""
        return points.denoise(self, x, t, labels=labels, condition=condition)

    def encode(
        self,
        x: points.Points,
        *,
        solver: str | None = None,
        labels: Sequence[int | str] | None = None,
        condition: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Latent codes of samples by the probability-flow ODE; see `points.encode`."""
        return points.encode(self, x, solver=solver, labels=labels, condition=condition)

    def decode(
        self,
        code: Tensor,
        *,
        solver: str | None = None,
        labels: Sequence[int | str] | None = None,
        condition: Mapping[str, Tensor] | None = None,
    ) -> Samples:
        """The samples of latent codes: the inverse of `encode`; see `points.decode`."""
        return points.decode(self, code, solver=solver, labels=labels, condition=condition)

    def interpolate(
        self,
        a: points.Points,
        b: points.Points,
        steps: int = 8,
        *,
        solver: str | None = None,
        labels: Sequence[int | str] | None = None,
        condition: Mapping[str, Tensor] | None = None,
    ) -> Samples:
        """Samples on the way from `a` to `b`; see `points.interpolate`."""
        return points.interpolate(self, a, b, steps, solver=solver, labels=labels, condition=condition)

    def evaluate(self, *, seed: int = 0, **settings: Setting) -> dict[str, Any]:
        """Compare samples with the test data; see `sde_score.run.evaluate`."""
        return run_evaluate(self.with_settings("evaluation", settings), seed=seed)

    def report(self) -> Path:
        """Write `report.html` of the run anew; returns its path."""
        return write_run_report(self)

    def export(self, path: str | os.PathLike[str]) -> Path:
        """Write the weights to a file for others, .safetensors or .pth; see `sde_score.run.export`."""
        from sde_score.run.export import export  # which loads runs itself

        return export(self, path)


def load(
    workdir: str | os.PathLike[str],
    config: ConfigDict | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    ema: bool = True,
    data: Data | None = None,
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
    run.step, run.fingerprint = found.step, found.config.get("data")
    run.prior = PriorGap(**found.config["prior"]) if found.config.get("prior") else None
    run._data = None if data is None else run.check_data(as_splits(data))
    return run
