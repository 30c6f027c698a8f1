"""The weights of a run in a file for others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import sde_score
from sde_score.config import to_json
from sde_score.files import write_bytes
from sde_score.registry import SettingError
from sde_score.run.facts import RunFacts
from sde_score.run.import_official import export_official
from sde_score.run.run import load

FORMATS = {
    ".safetensors": "the weights that sampling uses, of any run, with its configuration",
    ".pth": "model and averaged weights under the original release's names, of the published networks",
}


def export(run: RunFacts, path: str | os.PathLike[str], *, checkpoint: str | None = None) -> Path:
    """Write the weights of a run to `path`, in the format that its suffix names (see `FORMATS`).

    A .safetensors file holds the tensors of `run.model` under their own names, and as metadata the texts `config` and
    `info` (JSON), `step` and `sde_score`, its version. A .pth file is made from `checkpoint`, default the newest.

    Raises `SettingError`, a `ValueError`, for another suffix, and where the original release has no such network;
    `ImportError` where the package safetensors is missing.
    """
    path = Path(path)
    known = "; ".join(f"{suffix}: {what}" for suffix, what in FORMATS.items())
    if path.suffix not in FORMATS:
        raise SettingError(f"{path.name!r} says no format that is known. {known}.")
    if path.suffix == ".safetensors":
        return write_bytes(path, _safetensors(run))
    raw, averaged = (
        load(run.workdir, checkpoint=checkpoint, ema=ema, plugins=run.config.plugins) for ema in (False, True)
    )
    try:
        export_official(raw, averaged, path)
    except ValueError as error:
        raise SettingError(f"{error} {known}.") from error
    return path


def _safetensors(run: RunFacts) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError:
        raise ImportError("Writing .safetensors needs the package: pip install 'sde_score[export]'.") from None
    facts = {"config": to_json(run.config), "info": json.dumps(run.info.to_dict())}
    facts |= {"step": str(run.step), "sde_score": sde_score.__version__, "format": "pt"}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in run.model.state_dict().items()}
    return save(tensors, metadata=facts)
