"""Settings without effect: a user who gives one is told so, and where it belongs. Defaults may lie in any section."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from ml_collections import ConfigDict

from sde_score.config import NOT_IDENTITY, identity
from sde_score.data import CODECS, DataInfo, settings_of
from sde_score.keys import KEYS
from sde_score.likelihood import TRACES
from sde_score.models import MODELS
from sde_score.registry import SettingError, parse_spec
from sde_score.run.build import GIVEN, LOADING, naming
from sde_score.sampling import SAMPLERS, Sampler

SAID = "says it already. Leave one of them out."
EVERY_METHOD = ("method", "batch_size", "compile")  # keys that serve whatever samples
# what a command on a trained run reads of its configuration, besides what the run is
READ: dict[str, tuple[str, ...]] = {
    "sample": ("sampling",),
    "likelihood": ("likelihood",),
    "evaluate": ("evaluation", "sampling", "training.eval_samples"),
    "report": ("likelihood.t_min",),
}
ANYWHERE = ("device", "plugins", *(key for key in NOT_IDENTITY if key != "data.workers"))


def check_given(config: ConfigDict, given: Collection[str], info: DataInfo | None = None) -> None:
    """Raise `SettingError` where one of the keys that a user has `given` has no effect beside the others.

    Args:
        config: the configuration with them.
        given: keys such as `sampling.steps`.
        info: what the data are, once it is known.
    """
    idle = without_effect(config, info) if given else {}
    for key in given:
        value = config
        for part in key.split("."):
            value = value[part]
        if key in idle and value is not None:
            raise SettingError(f"config.{key}={value} has no effect: {idle[key]}")


def check_read(command: str, given: Mapping[str, bool]) -> list[str]:
    """Of the keys given on the line of a command on a trained run those that it reads. `given` tells of each whether it
    changes the run's own: one that repeats it, harms nobody. Raises `SettingError` for one that is not read, and is not
    part of what the run is (about which more is to be said).
    """
    read = []
    for key, changes in given.items():
        section, _, name = key.partition(".")
        if any(key == part or key.startswith(f"{part}.") for part in (*READ[command], *ANYWHERE)):
            read.append(key)
        elif changes and not (identity(key) and section not in ("training", "optim")):
            own = [f"{part}.{name}" for part in READ[command] if f"{part}.{name}" in KEYS]
            where = {"sampling": "sample", "likelihood": "likelihood", "evaluation": "evaluate"}.get(section, "train")
            raise SettingError(
                f"config.{key} has no effect here: it belongs to sde-score {where}, and {command} does not read it. "
                + (f"Write --config.{own[0]}, or leave it out." if own else "Leave it out.")
            )
    return read


def check_beside_object(sampler: Sampler, settings: Iterable[str]) -> None:
    """Raise `SettingError` for a key of `config.sampling` given beside a sampler, which is made already."""
    idle = [key for key in settings if key not in EVERY_METHOD[1:]]
    if idle:
        raise SettingError(
            f"{idle[0]}=... has no effect beside sampler={type(sampler).__name__}(...), which is made already: set it "
            "there, or name the sampler instead."
        )


def check_repeats(config: ConfigDict, info: DataInfo, repeats: int) -> None:
    """Raise `SettingError` for several passes of a likelihood in which nothing is drawn at random."""
    if repeats > 1 and info.levels is None:
        probes = TRACES.build(config.likelihood.trace).draw(torch.zeros(1, 1), torch.randn_like)
        if not probes.any():
            raise SettingError(
                f"repeats={repeats} has no effect: these data are continuous, and with config.likelihood.trace="
                f"{config.likelihood.trace} every pass gives the same. Leave it out."
            )


def without_effect(config: ConfigDict, info: DataInfo | None = None) -> dict[str, str]:
    """The keys of a configuration that have no effect beside its other values, with the reason and what to write."""
    found = _of_sampling(config) | _of_loading(config) | _of_learning(config)
    return found if info is None else found | _of_data(config, info)


def _parameters(maker: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(maker).parameters)


def _of_sampling(config: ConfigDict) -> dict[str, str]:
    section, found = config.sampling, {}
    with naming("config.sampling"):
        method, written = parse_spec(section.method)
        takes = _parameters(SAMPLERS.get(method))
        times = parse_spec(section.times)[1] if section.times is not None and "times" in takes else {}
    for key in section:
        if key in EVERY_METHOD:
            continue
        if key in written:
            found[f"sampling.{key}"] = f"config.sampling.method={section.method} {SAID}"
        elif key in times and key in ("steps", "t_min"):
            found[f"sampling.{key}"] = f"config.sampling.times={section.times} {SAID}"
        elif key not in takes:
            others = [name for name in SAMPLERS.names() if key in _parameters(SAMPLERS.get(name))]
            belongs = f"it belongs to the method{'s' if len(others) > 1 else ''} {', '.join(others)}" if others else ""
            if key == "steps" and "solver" in takes:
                instead = f'A solver has steps of its own: --config.sampling.solver="heun(steps={section.steps})".'
            else:
                instead = f"Write --config.sampling.method={others[0]}, or leave it out." if others else "Leave it out."
            found[f"sampling.{key}"] = f"the method is {method}, {belongs or 'which has none'}. {instead}"
    return found


def _of_loading(config: ConfigDict) -> dict[str, str]:
    name = config.data.name
    if name == GIVEN:
        return {f"data.{key}": "the data were given in Python, not loaded. Leave it out." for key in LOADING}
    if not name:
        return {}
    try:
        has, written = settings_of(name)
    except SettingError:  # the loader has more to say of it
        return {}
    found = {}
    for key in LOADING:
        if key in written:
            found[f"data.{key}"] = f"config.data.name={name} {SAID}"
        # of size and channels the loader says whether the data have them; what is not there is not fetched either
        elif key not in has | {"image_size", "channels"} and (key != "download" or config.data.download):
            found[f"data.{key}"] = f"the data set {name!r} has no such setting. Leave it out."
    return found


def _of_learning(config: ConfigDict) -> dict[str, str]:
    found = {}
    if config.optim.published_warmup and not config.optim.warmup:
        found["optim.published_warmup"] = "there is no warm-up. Write --config.optim.warmup=STEPS."
    if config.model.ema_ramp and not config.model.ema_rate:
        found["model.ema_ramp"] = "with config.model.ema_rate=0 nothing is averaged. Leave it out."
    return found


def _of_data(config: ConfigDict, info: DataInfo) -> dict[str, str]:
    data, found = config.data, {}
    if data.random_flip and len(info.shape) != 3:
        found["data.random_flip"] = f"it mirrors images, and samples here have shape {info.shape}. Leave it out."
    with naming("config.data.codec"):
        codec, written = parse_spec(data.codec)
        takes = _parameters(CODECS.get(codec).fit)
    with naming("config.model"):
        takes |= _parameters(MODELS.get(parse_spec(config.model.name)[0]))
    for key, argument in (("centered", "centered"), ("uniform_dequantization", "dequantize")):
        if info.levels is None and (data[key] or key == "centered"):
            found[f"data.{key}"] = (
                "it is for images in grey levels, and these data are continuous. How they are scaled: "
                '--config.data.codec="scaler(standardize=True)".'
            )
        elif argument in written:
            found[f"data.{key}"] = f"config.data.codec={data.codec} {SAID}"
        elif argument not in takes:
            found[f"data.{key}"] = f"the codec {codec!r} has no such setting. Leave it out."
    return found
