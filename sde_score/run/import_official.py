"""Turn a checkpoint of the original release into a run directory of ours, and back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sde_score.config import load_config, to_json
from sde_score.data import DataInfo, Scaler
from sde_score.models import EMA
from sde_score.models.official import OfficialCheckpointError, load_official, save_official
from sde_score.published import network_spec
from sde_score.run.build import build_model, build_optimizer
from sde_score.run.run import Run, load, provenance, saved_state, write_json
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
        options: see `load_official`; for a configuration of ours, options are not needed.

    Model, EMA and step are taken over exactly; the optimiser's moments begin anew. Raises what `load_official` raises,
    and `ValueError` for a `workdir` that holds a run.
    """
    workdir = Path(workdir)
    if (workdir / "config.json").exists():
        raise ValueError(f"{workdir} holds a run already; choose another --workdir.")
    name = config if isinstance(config, str) else None
    found = load_official(source, name, **options)
    if name is None and not isinstance(config, ConfigDict):
        name = found.config
    if name is None and not isinstance(config, ConfigDict):
        raise OfficialCheckpointError(
            f"{source}: its tensors fit several published configurations or none. Say which it is: "
            "--config=ve/cifar10_ncsnpp, ..."
        )
    settings = config if isinstance(config, ConfigDict) else load_config(f"published:{name}")
    facts = found.facts
    settings.model.name = network_spec(facts)
    settings.data.centered = facts["centered"]
    size = facts.get("image_size") or settings.data.image_size or 32
    settings.data.image_size = size
    shape = (facts["channels"], size, size)
    info = DataInfo(facts.get("dataset", "images"), shape, levels=256)
    scaler = Scaler(shape, levels=256, centered=facts["centered"], dequantize=settings.data.uniform_dequantization)

    model = build_model(settings, info)
    model.network.load_state_dict(found.network.state_dict())
    ema = EMA(model, settings.model.ema_rate)
    averaged = copy.deepcopy(model)
    averaged.network.load_state_dict(found.best_network.state_dict())
    ema.load_state_dict({"num_updates": found.file.ema_updates or found.step or 0, "model": averaged.state_dict()})
    optimizer = build_optimizer(settings, model)
    state = TrainState(model, ema, optimizer, step=found.step or 0, codec=scaler.state_dict())

    workdir.mkdir(parents=True, exist_ok=True)
    CheckpointStore(workdir).save(state.state_dict(config=saved_state(settings, info)))
    (workdir / "config.json").write_text(to_json(settings) + "\n")
    write_json(workdir / "run.json", provenance() | {"status": "imported", "source": str(source), "step": state.step})
    return load(workdir)


def export_official(workdir: str | Path, path: str | Path, *, checkpoint: str | None = None) -> None:
    """Write the newest checkpoint of a run (or `checkpoint`) as an original `.pth` file, with model, EMA and step.

    Raises `ValueError` for a network that the original release does not have.
    """
    raw, averaged = (load(workdir, checkpoint=checkpoint, ema=ema) for ema in (False, True))
    save_official(
        path,
        raw.model.network,
        ema_network=averaged.model.network,
        step=raw.step,
        ema_decay=raw.config.model.ema_rate,
    )
