"""From a configuration to objects."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from sde_score.data import CODECS, Codec, DataInfo, DataSplits, load_dataset
from sde_score.likelihood import TRACES
from sde_score.models import MODELS, ScoreModel
from sde_score.objectives import OBJECTIVES, Objective
from sde_score.registry import SettingError, parse_spec, suggest
from sde_score.sampling import SAMPLERS, Sampler, make_sampler
from sde_score.sdes import SDE, SDES
from sde_score.solvers import SOLVERS
from sde_score.tensors import default_dtype
from sde_score.training import make_optimizer

# keys of section `data` that go to whoever loads it
LOADING = (
    "root", "image_size", "channels", "holdout", "on_error", "frames", "download", "layout", "levels", "columns",
    "max_pixels", "memory_gb",
)  # fmt: skip
GIVEN = "given in Python"  # `config.data.name` of a run trained on data that were handed over, not named


@contextmanager
def naming(key: str, *, work: bool = False) -> Iterator[None]:
    """Say in an error which key of the configuration is to blame: a `SettingError`. With `work` more is done than
    settings are read, and what is none stays a `ValueError`.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        if type(error) not in (ValueError, TypeError, SettingError):  # those with a name of their own say it themselves
            raise
        kind = ValueError if work and not isinstance(error, SettingError) else SettingError
        raise kind(f"{key}: {error}") from error


def build_sde(config: ConfigDict) -> SDE:
    """The SDE of `config.sde`. Raises `ValueError` where its noise is too large for float32."""
    with naming("config.sde"):
        sde = SDES.build(config.sde)
        try:
            std = sde.marginal_coeffs(torch.tensor([sde.t_min, sde.T], dtype=torch.float32))[1]
        except NotImplementedError:
            return sde
        if not torch.isfinite(std**2).all():
            raise ValueError(
                f"{config.sde} has noise of standard deviation {std.max():g} at T, too large for float32, in which "
                "everything is computed: its square must stay below 3e38."
            )
        return sde


def build_data(config: ConfigDict) -> DataSplits:
    """The data of section `data`."""
    data = config.data
    settings = {k: data[k] for k in LOADING if data[k] is not None}
    if data.name == GIVEN:
        raise ValueError(
            "This run was trained on data given in Python. Hand them over again: sde_score.load(workdir, data=...)."
        )
    if not data.name:
        raise SettingError(
            "config.data.name is missing: the data to train on, a path or the name of a data set, such as "
            "--config.data.name=./photos."
        )
    with naming("config.data", work=True):
        return load_dataset(data.name, **settings)


def build_codec(config: ConfigDict, data: DataSplits) -> Codec:
    """The codec of `config.data.codec`, fitted to the data where it has something to fit."""
    section = config.data
    with naming("config.data.codec", work=True):
        return CODECS.build(section.codec, data, centered=section.centered, dequantize=section.uniform_dequantization)


def told_conditions(config: ConfigDict, info: DataInfo) -> tuple[str, ...]:
    """The names of the conditions that the network is told. Raises `ValueError` for one that the data do not have."""
    if config.model.class_conditional and info.num_classes is None:
        raise SettingError(f"config.model.class_conditional is True, but the data set {info.name!r} has no labels.")
    names = dict.fromkeys((("y",) if config.model.class_conditional else ()) + tuple(config.model.conditions))
    for name in names:
        if name not in info.conditions:
            raise SettingError(
                f"config.model.conditions: the data set {info.name!r} has no condition "
                f"{name!r}.{suggest(name, info.conditions)}"
            )
    return tuple(names)


def build_model(
    config: ConfigDict, info: DataInfo, sde: SDE | None = None, shape: tuple[int, ...] | None = None
) -> ScoreModel:
    """The score model of section `model`, for data like `info` and samples of `shape` in model space (default: as the
    data's).

    A network's constructor arguments `shape`, `channels`, `image_size`, `dim` and `centered` are filled from these
    where the spec leaves them open, and from the conditions it is told `conditions` (their descriptions by name) and
    `num_classes`.
    """
    shape = info.shape if shape is None else shape
    context: dict[str, Any] = {
        "shape": shape,
        "channels": shape[0],
        "dim": math.prod(shape),
        "centered": config.data.centered and info.levels is not None,
    }
    if len(shape) == 3:
        context["image_size"] = max(shape[1:])
    told = told_conditions(config, info)
    if told:
        context["conditions"] = {name: info.conditions[name] for name in told}
    if "y" in told and info.num_classes is not None:
        context["num_classes"] = info.num_classes
    sde = sde if sde is not None else build_sde(config)
    with naming("config.model"):
        with default_dtype(torch.float32):  # what everything here is computed in, whatever the user has chosen
            network = MODELS.build(config.model.name, **context)
            _check_listens(network, told)
            return ScoreModel(network, sde, config.model.parameterization)


def _check_listens(network: nn.Module, told: tuple[str, ...]) -> None:
    """Raise `ValueError` where a network has no argument for what it is to be told."""
    parameters = list(inspect.signature(network.forward).parameters.values())[2:]  # after x and c_noise
    deaf = [name for name in told if name not in {p.name for p in parameters}]
    if deaf and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        taken = ", ".join(p.name for p in parameters) or "none"
        raise ValueError(
            f"{type(network).__name__} cannot be told {', '.join(map(repr, deaf))}: its `forward` takes no such "
            f"argument (conditions it takes: {taken})."
        )


def noise_measure(sde: SDE) -> Callable[[Tensor], Tensor] | None:
    """`sde.log_snr` where the SDE has one, None otherwise: by what validation losses are sorted."""
    try:
        sde.log_snr(torch.full((1,), sde.T, dtype=torch.float32))
    except NotImplementedError:
        return None
    return sde.log_snr


def build_objective(config: ConfigDict, sde: SDE) -> Objective:
    """The objective of `config.training.objective`."""
    with naming("config.training.objective"):
        return OBJECTIVES.build(config.training.objective, sde)


def build_sampler(config: ConfigDict, sde: SDE) -> Sampler:
    """The sampler of section `sampling`. Keys that are None, and keys the method does not have, are left to its own
    defaults.
    """
    section = config.sampling
    with naming("config.sampling"):
        if section.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {section.batch_size}.")
        return make_sampler(section.method, sde, **sampler_settings(config))


def sampler_settings(config: ConfigDict) -> dict[str, Any]:
    """The keys of section `sampling` that are set and that its method has."""
    section = config.sampling
    known = inspect.signature(SAMPLERS.get(parse_spec(section.method)[0])).parameters
    return {k: section[k] for k in section if k in known and section[k] is not None}


def check_likelihood(config: ConfigDict, sde: SDE) -> None:
    """Can likelihoods be computed with section `likelihood`? Raises `ValueError` where they cannot."""
    section = config.likelihood
    with naming("config.likelihood"):
        TRACES.build(section.trace)
        SOLVERS.build(section.solver)
        if section.t_min is not None and not 0 <= section.t_min < sde.T:
            raise ValueError(f"t_min must lie in [0, T) = [0, {sde.T:g}); got {section.t_min}.")
        if section.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {section.batch_size}.")
        if section.space not in ("data", "model"):
            raise ValueError(f"space is 'data' or 'model'; got {section.space!r}.")


def build_optimizer(config: ConfigDict, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of section `optim` for the parameters that learn."""
    optim = config.optim
    settings = {key: optim[key] for key in ("name", "lr", "beta1", "beta2", "eps", "weight_decay")}
    return make_optimizer([p for p in model.parameters() if p.requires_grad], **settings)
