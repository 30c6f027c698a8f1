"""Training from a configuration."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict

from sde_score.config import from_json, is_run, read_run, to_json, with_plugins
from sde_score.data import BatchLoader, DataSplits, load_codec
from sde_score.files import LOCK, FolderGone, SameFolder, held_alone
from sde_score.models import ScoreModel
from sde_score.models.ema import EMA
from sde_score.objectives import Objective
from sde_score.registry import SettingError
from sde_score.run.build import (
    GIVEN,
    build_codec,
    build_data,
    build_objective,
    build_optimizer,
    build_sampler,
    build_sde,
    check_likelihood,
    naming,
    told_conditions,
)
from sde_score.run.evaluate import validation_loss
from sde_score.run.facts import (
    Data,
    RunFacts,
    as_splits,
    check_same_run,
    check_same_sources,
    provenance,
    saved_state,
    write_json,
)
from sde_score.run.plugins import import_plugins, trust
from sde_score.run.run import Run, load
from sde_score.run.snapshot import Snapshots
from sde_score.run.unused import check_given
from sde_score.training import (
    Cadence,
    CheckpointStore,
    JSONLWriter,
    Limits,
    MetricsWriter,
    Record,
    Schedule,
    StepSettings,
    TensorBoardWriter,
    TextLog,
    Trainer,
    TrainResult,
    distributed,
    load_checkpoint,
)
from sde_score.training.checkpoint import list_checkpoints

RUN_FILES = (
    "config.json",
    "run.json",
    "metrics.jsonl",
    "log.txt",
    "checkpoints",
    "samples",
    "plots",
    "likelihood",
    "eval",
    "tensorboard",
    "report.html",
)
LEFT_ALONE = (*RUN_FILES, LOCK)  # what is no stranger in a run directory


@contextmanager
def _workdir_held(config: ConfigDict, workdir: Path, overwrite: bool) -> Iterator[None]:
    """Make the run directory ready and hold it alone; only the main process of a run does."""
    if not distributed.is_main():
        yield
        return
    _refuse_strangers(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with held_alone(workdir, say=TextLog()):
        _prepare_workdir(config, workdir, overwrite)
        yield


def _refuse_strangers(workdir: Path) -> None:
    """Refuse a directory that holds something else than a run, before anything is written there."""
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"{workdir} is a file; choose another --workdir.")
    if is_run(workdir):
        return
    there = [p.name for p in workdir.iterdir()] if workdir.is_dir() else []
    # what a run killed at its very beginning leaves behind is no stranger
    strangers = sorted(
        n for n in there if n == "config.json" or (n not in LEFT_ALONE and not (n[0] == "." and n.endswith(".tmp")))
    )
    if strangers:
        raise ValueError(
            f"{workdir} is not empty and not a run directory (it holds {', '.join(strangers[:4])}); choose another "
            "--workdir."
        )


def _prepare_workdir(config: ConfigDict, workdir: Path, overwrite: bool) -> None:
    """Refuse to mix two runs in one directory; `overwrite` begins anew."""
    if not is_run(workdir):
        return
    if overwrite:
        for name in RUN_FILES:
            path = workdir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    elif list_checkpoints(workdir / "checkpoints"):  # before the first one there is nothing that could be contradicted
        check_same_run(read_run(workdir), config, "This training")


def _check_flip(config: ConfigDict, data: DataSplits) -> None:
    """Refuse mirrored copies of what is no image, before anything is built."""
    if config.data.random_flip and data.info.kind != "image":
        raise SettingError(
            f"config.data.random_flip=True mirrors images, but {data.info.name!r} holds {data.info.kind} samples of "
            f"shape {data.info.shape}. Let a configuration be chosen for them, sde-score train --data=PATH, or write "
            "--config.data.random_flip=False (and for vectors --config.model.name=mlp)."
        )


def _check_condition_dropout(config: ConfigDict, data: DataSplits, model: ScoreModel) -> None:
    """Can the network be told no condition, if it shall learn to do without? Raises `ValueError` if not."""
    rate, told = config.training.condition_dropout, told_conditions(config, data.info)
    if not rate:
        return
    with naming("config.training.condition_dropout"):
        StepSettings(condition_dropout=rate).check_model(model)
        if not told:
            raise ValueError(
                f"{rate:g} of the samples were to be trained without their conditions, but the network is told none. "
                "Set config.model.class_conditional=True or config.model.conditions."
            )
        model.network.no_condition({name: data.train[[0]].cond[name] for name in told})


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    overwrite: bool = False,
    data: Data | None = None,
    loaded: DataSplits | None = None,
    plugins: Iterable[str] | None = None,
    given: Collection[str] = (),
) -> tuple[Run, TrainResult]:
    """Train the model of a configuration in a run directory, or go on where it stopped.

    Args:
        config: what to train.
        workdir: the run directory; the same command again resumes it, bit for bit on the CPU.
        overwrite: delete a run that is there and begin anew.
        data: use these data instead of those of section `data` (from Python): `DataSplits`, an array `(N, *)`, or a
            pair, `(x, y)` with labels or `(x, cond)` with a mapping of conditions.
        loaded: the data of section `data`, where they have been loaded already.
        plugins: which of the configuration's plug-ins the user has named; the others must be trusted. None: all of
            them, as in a configuration of one's own.
        given: the keys that the user has set, such as `sampling.steps`: each must have an effect.

    Returns the trained run and how training ended. Raises `ValueError` when the configuration contradicts the run in
    `workdir`.
    """
    workdir = Path(workdir)
    config = from_json(to_json(config))  # a copy of our own, in the shape of the defaults
    config.plugins = with_plugins((), config.plugins)  # the run may be used from elsewhere
    named = config.plugins if plugins is None else with_plugins((), plugins)
    if data is not None:
        config.data.name = GIVEN
    import_plugins(config.plugins, named=named)
    if distributed.launched_as_main():
        try:
            trust(named)
        except OSError as error:
            print(f"Plug-ins are not remembered as trusted: name them each time ({error})", file=sys.stderr)
    sde = build_sde(config)
    objective = build_objective(config, sde)
    build_sampler(config, sde)  # a misspelt sampler is an error now, not after the training
    check_likelihood(config, sde)
    check_given(config, given)
    with distributed.processes(config.device) as device, _workdir_held(config, workdir, overwrite):
        distributed.barrier()
        data = as_splits(data) if data is not None else build_data(config) if loaded is None else loaded
        check_given(config, given, data.info)
        _check_flip(config, data)
        begun = None
        if list_checkpoints(workdir / "checkpoints"):
            begun = load_checkpoint(workdir, say=lambda message: None)  # the trainer says what is wrong with which file
        codec = build_codec(config, data) if begun is None else load_codec(config.data.codec, begun.codec)
        torch.manual_seed(config.seed)  # the initial weights
        run = RunFacts.assemble(config, data.info, codec, workdir, device, sde=sde)
        run._data, run.fingerprint = data, data.fingerprint()
        if begun is not None and begun.config:
            check_same_sources(begun.config, run)
        _check_condition_dropout(config, data, run.model)
        result = _fit(run, objective)
        distributed.barrier()
    return load(workdir, config, data=data), result


def _fit(run: RunFacts, objective: Objective) -> TrainResult:
    """Train the model of a run and write down how it ended."""
    config, say = run.config, _text_log(run)
    run.compare_prior()
    if say is not None and (warning := run.prior_warning()):
        say(f"Warning: {warning}")
    loader = _loader(run)
    trainer = _trainer(run, objective, loader, say)
    facts: dict[str, Any] = {"device": str(run.device), "processes": distributed.world_size()}
    try:
        if distributed.is_main():  # not before everything could be built: a flag in error leaves a run as it was
            write_json(run.workdir / "config.json", config.to_dict())
            write_json(run.workdir / "run.json", provenance() | facts | {"status": "running"})
        with SameFolder(run.workdir):  # also what others write there, as TensorBoard, ends with the reason
            result = trainer.run()
    except FolderGone:
        raise
    except BaseException as error:
        if distributed.is_main():
            with suppress(OSError):  # on a full disk the first error is the one to tell
                write_json(
                    run.workdir / "run.json",
                    provenance() | facts | {"status": "failed", "error": f"{type(error).__name__}: {error}"},
                )
        raise
    finally:
        loader.close()
    if distributed.is_main():
        ended = {"status": result.status, "step": result.step, "seconds": round(result.seconds, 1)}
        write_json(run.workdir / "run.json", provenance() | facts | ended | {"skipped": result.skipped})
    return result


def _text_log(run: RunFacts) -> TextLog | None:
    """The log of the main process, begun with what is to be trained."""
    if not distributed.is_main():
        return None
    say = TextLog(run.workdir / "log.txt")
    if run.config.training.compile:
        say("The network will be compiled in the first step (config.training.compile).")
    count = sum(p.numel() for p in run.model.parameters())
    say(
        f"{run.info.name}: {len(run.data.train)} training and {len(run.data.test)} test samples of shape "
        f"{run.info.shape}; {count:,} parameters on {run.device}."
    )
    return say


def _loader(run: RunFacts) -> BatchLoader:
    """This process's share of the training data, batch by batch."""
    return BatchLoader(
        run.data.train,
        run.config.training.batch_size,
        seed=run.config.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        flip=run.config.data.random_flip,
        workers=run.config.data.workers,
    )


def _trainer(run: RunFacts, objective: Objective, loader: BatchLoader, say: TextLog | None) -> Trainer:
    """The trainer that sections `training`, `optim` and `model` describe."""
    config, section, optim = run.config, run.config.training, run.config.optim
    told, writers = told_conditions(config, run.info), _writers(run, say)
    snapshots = Snapshots(run, section.snapshot_samples, config.seed, say=say or print, writers=writers)

    def batch(step: int):
        read = loader.batch(step)
        return read.x, {name: read.cond[name] for name in told}, read.positions

    return Trainer(
        run.model,
        EMA(run.model, config.model.ema_rate, ramp=config.model.ema_ramp),
        objective,
        build_optimizer(config, run.model),
        batch,
        Schedule(section.n_iters, optim.warmup, optim.schedule, optim.published_warmup),
        seed=config.seed,
        prepare=run.codec.encode,
        step=StepSettings(
            grad_clip=optim.grad_clip,
            micro_batches=section.micro_batches,
            precision=section.precision,
            compile=section.compile,
            condition_dropout=section.condition_dropout,
        ),
        limits=Limits(section.max_seconds, section.max_skips),
        cadence=Cadence(
            section.log_freq,
            section.checkpoint_freq,
            [
                (section.eval_freq, validation_loss(run)),
                (section.snapshot_freq, snapshots),
            ],
        ),
        record=Record(
            checkpoints=CheckpointStore(run.workdir, keep=section.keep_checkpoints, say=say or print),
            writers=writers,
            say=say,
            config=saved_state(run),
            codec=run.codec.state_dict(),
        ),
    )


def _writers(run: RunFacts, say: TextLog | None) -> list[MetricsWriter]:
    """Where the main process writes numbers."""
    if say is None:
        return []
    writers: list[MetricsWriter] = [JSONLWriter(run.workdir / "metrics.jsonl")]
    if run.config.training.tensorboard:
        writers.append(TensorBoardWriter(run.workdir / "tensorboard", say=say))
    return writers
