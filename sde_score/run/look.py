"""A look at data before anything is trained on them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from ml_collections import ConfigDict

from sde_score.config import from_json, to_json
from sde_score.data import DataSplits
from sde_score.data.overview import Inspection, Overview, inspect_source, overview
from sde_score.data.sources import ARCHIVES
from sde_score.run.automatic import configure, with_image_size
from sde_score.run.build import build_data
from sde_score.run.pictures import draw_picture
from sde_score.run.plugins import import_plugins
from sde_score.training.distributed import pick_device

SHOWN, SHOWN_ROWS = 64, 2000  # samples in the picture; of vectors


@dataclass(frozen=True)
class Look:
    """What was seen: the overview, a picture of some samples (None where none can be drawn), and the configuration that
    would be chosen, with its reasons."""

    overview: Overview
    picture: Path | None
    config: ConfigDict
    reasons: tuple[str, ...]


def look_at(
    base: ConfigDict, picture: Path, *, minutes: float | None = None, plugins: Iterable[str] = ()
) -> Look:
    """Look at the data of `base.data`. Broken images are told, not refused.

    Raises `FileNotFoundError` and `ValueError` where there is nothing that could be read.
    """
    import_plugins(base.plugins, named=plugins)
    device = pick_device(base.device)
    files = _files(base)
    config, why = with_image_size(base, cpu=device.type == "cpu")
    if files is not None and files.broken:
        config = from_json(to_json(config))
        config.data.on_error = "skip"
    with warnings.catch_warnings():
        if files is not None:  # which lists the broken ones itself
            warnings.simplefilter("ignore")
        data = build_data(config)
    chosen = configure(data, config, device=device, minutes=minutes)
    first, *others = chosen.reasons
    return Look(overview(data, files=files), _draw(data, picture), chosen.config, (first + why, *others))


def _files(base: ConfigDict) -> Inspection | None:
    path = Path(base.data.name).expanduser()
    if not path.exists() or not (path.is_dir() or path.name.lower().endswith(ARCHIVES)):
        return None
    keys = ("frames", "max_pixels", "memory_gb")
    return inspect_source(path, **{k: base.data[k] for k in keys if base.data[k] is not None})


def _draw(data: DataSplits, path: Path) -> Path | None:
    """A picture of some training samples, evenly spaced; one that fails is told."""
    most = SHOWN_ROWS if data.info.kind == "vector" else SHOWN
    chosen = torch.linspace(0, len(data.train) - 1, min(most, len(data.train))).long()
    x = data.train[chosen].x
    try:
        return draw_picture(path, data.info, {"data": x / (data.info.levels - 1) if data.info.levels else x})
    except Exception as error:
        print(f"No picture: {error}", file=sys.stderr)
        return None
