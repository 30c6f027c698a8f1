"""Turn a checkpoint of the original release into a run directory of ours, and back."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict

from sde_score.config import load_config
from sde_score.data import DataInfo, Scaler
from sde_score.models import EMA, MODELS
from sde_score.models.official import OfficialCheckpointError, load_official, save_official
from sde_score.published import network_spec
from sde_score.registry import parse_spec
from sde_score.run.build import build_optimizer, build_sde
from sde_score.run.facts import RunFacts, provenance, saved_state, write_json
from sde_score.run.run import Run, load
from sde_score.training import CheckpointStore
from sde_score.training.state import TrainState


def import_official(
    source: str | Path, workdir: str | Path, config: str | ConfigDict | None = None, **options: Any
) -> Run:
    """Read an original `.pth` file and write `workdir`, ready for sampling, likelihoods and further training.

    Args:
        source: the file; see `sde_score.models.official.load_official`.
        workdir: the run directory to be made; it must not hold a run yet.
        config: name of the published configuration the file belongs to, or a configuration of ours whose network has
            the tensors of the file. May be left out where the tensors determine it.
        options: see `load_official`. A configuration of ours says them all; those given here win over it.

    Model, EMA and step are taken over exactly; the optimiser's moments begin anew. Raises what `load_official` raises,
    and `ValueError` for a `workdir` that holds a run.
    """
    workdir = Path(workdir)
    if (workdir / "config.json").exists():
        raise ValueError(f"{workdir} holds a run already; choose another --workdir.")
    if isinstance(config, ConfigDict):
        found, settings = load_official(source, **(_said(config) | options)), config
    else:
        found = load_official(source, config, **options)
        if config is None and found.config is None:
            raise OfficialCheckpointError(
                f"{source}: its tensors fit several published configurations or none. Say which it is, for example "
                "config='ve/cifar10_ncsnpp' (on the command line --published=ve/cifar10_ncsnpp)."
            )
        settings = load_config(f"published:{config or found.config}")
    facts = found.facts
    settings.model.name = network_spec(facts)
    settings.data.centered = facts["centered"]
    size = facts.get("image_size") or settings.data.image_size or 32
    settings.data.image_size = size
    shape = (facts["channels"], size, size)
    info = DataInfo(facts.get("dataset", "images"), shape, levels=256)
    scaler = Scaler(shape, levels=256, centered=facts["centered"], dequantize=settings.data.uniform_dequantization)

    run = RunFacts.assemble(settings, info, scaler, workdir, torch.device("cpu"), sde=build_sde(settings))
    model = run.model
    model.network.load_state_dict(found.network.state_dict())
    ema = EMA(model, settings.model.ema_rate)
    averaged = copy.deepcopy(model)
    averaged.network.load_state_dict(found.best_network.state_dict())
    ema.load_state_dict({"num_updates": found.file.ema_updates or found.step or 0, "model": averaged.state_dict()})
    optimizer = build_optimizer(settings, model)
    state = TrainState(model, ema, optimizer, step=found.step or 0, codec=scaler.state_dict())

    workdir.mkdir(parents=True, exist_ok=True)
    CheckpointStore(workdir).save(state.state_dict(config=saved_state(run)))
    write_json(workdir / "config.json", settings.to_dict())
    write_json(workdir / "run.json", provenance() | {"status": "imported", "source": str(source), "step": state.step})
    return load(workdir)


def _said(config: ConfigDict) -> dict[str, Any]:
    """What a configuration of ours says of its network and the tensors of a file do not show, in the original words."""
    name, arguments = parse_spec(config.model.name)
    parameters = inspect.signature(MODELS.get(name)).parameters
    settings = {key: parameter.default for key, parameter in parameters.items()} | arguments
    if "activation" in settings:  # of the RefineNets
        settings["nonlinearity"] = settings["activation"]
    keys = ("nonlinearity", "scale_by_sigma", "skip_rescale", "fir", "fir_kernel", "dropout", "init_scale",
            "fourier_scale")  # fmt: skip
    said = {key: settings[key] for key in keys if key in settings} | {"model": name, "centered": config.data.centered}
    return said if config.data.image_size is None else said | {"image_size": config.data.image_size}


def export_official(raw: RunFacts, averaged: RunFacts, path: str | Path) -> None:
    """Write a run, with its last weights and with the averaged ones, as an original `.pth` file with model, EMA and
    step.

    Raises `ValueError` for a network that the original release does not have.
    """
    save_official(
        path,
        raw.model.network,
        ema_network=averaged.model.network,
        step=raw.step,
        ema_decay=raw.config.model.ema_rate,
    )
