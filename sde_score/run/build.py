"""From a configuration to objects."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path

from ml_collections import ConfigDict

from sde_score.data import DataInfo, DataSplits, load_dataset
from sde_score.models import MODELS, ScoreModel
from sde_score.objectives import OBJECTIVES, Objective
from sde_score.sampling import Sampler, make_sampler
from sde_score.sdes import SDE, SDES


def import_plugins(plugins: tuple[str, ...]) -> None:
    """Import modules or `.py` files that register the user's own components.

    Raises `ImportError` naming the plug-in and what to do.
    """
    for plugin in plugins:
        try:
            if plugin.endswith(".py"):
                _import_file(Path(plugin))
            else:
                importlib.import_module(plugin)
        except (ImportError, FileNotFoundError) as error:
            raise ImportError(
                f"The plug-in {plugin!r} cannot be imported: {error}. Give the path of a .py file or the name of an installed module; "
                "a run made with a plug-in that has moved takes its new place with --plugin=FILE."
            ) from error


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    name = f"sde_score_plugin_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def build_sde(config: ConfigDict) -> SDE:
    """The SDE of `config.sde`."""
    return SDES.build(config.sde)


def build_data(config: ConfigDict) -> DataSplits:
    """The data of section `data`."""
    data = config.data
    settings = {k: data[k] for k in ("root", "image_size", "channels", "holdout", "on_error", "download") if data[k] is not None}
    return load_dataset(data.name, **settings)


def build_model(config: ConfigDict, info: DataInfo, sde: SDE | None = None) -> ScoreModel:
    """The score model of section `model`, for data like `info`.

    A network's constructor arguments `shape`, `channels`, `image_size`, `dim` and `centered` are filled from the data where the spec leaves
    them open, `num_classes` if `model.class_conditional`.
    """
    context = {
        "shape": info.shape, "channels": info.channels, "dim": info.dim, "centered": config.data.centered and info.levels is not None,
    }  # fmt: skip
    if len(info.shape) == 3:
        context["image_size"] = info.shape[-1] if info.shape[-1] == info.shape[-2] else max(info.shape[1:])
    if config.model.class_conditional:
        if info.num_classes is None:
            raise ValueError(f"config.model.class_conditional is True, but the data set {info.name!r} has no labels.")
        context["num_classes"] = info.num_classes
    network = MODELS.build(config.model.name, **context)
    return ScoreModel(network, sde if sde is not None else build_sde(config), config.model.parameterization)


def build_objective(config: ConfigDict, sde: SDE) -> Objective:
    """The objective of `config.training.objective`."""
    return OBJECTIVES.build(config.training.objective, sde)


def build_sampler(config: ConfigDict, sde: SDE) -> Sampler:
    """The sampler of section `sampling`. Keys that are None, and keys the method does not have, are left to its own defaults."""
    section = config.sampling
    settings = {k: section[k] for k in section if k not in ("method", "batch_size") and section[k] is not None}
    return make_sampler(section.method, sde, **settings)
