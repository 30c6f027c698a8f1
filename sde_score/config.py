"""Configurations: their sections and defaults, named files, and JSON that comes back in the same shape. Imports no
torch.
"""

from __future__ import annotations

import importlib.util
import json
import math
import numbers
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from sde_score import words
from sde_score.keys import KEYS
from sde_score.registry import SettingError, suggest

# Keys that decide what a run is: they cannot change once it has begun.
IDENTITY = ("sde", "model", "data", "seed")
# and the whole section `optim`: to go on with others is another training run
TRAINING_IDENTITY = ("objective", "batch_size")
# where the data lie, who reads them and how much memory that may take is no matter
NOT_IDENTITY = ("data.root", "data.download", "data.workers", "data.max_pixels", "data.memory_gb")
CONFIG_FOLDERS = (
    Path("configs"),
    Path(__file__).resolve().parent.parent / "configs",
    Path(__file__).resolve().parent / "configs",
)


def default_config() -> ConfigDict:
    """Every section with its defaults; see `sde_score.keys`. A component is chosen by a spec: `"name"` or
    `"name(argument=value)"`; its own defaults are its own.

    `None` means: the component's own default.
    """
    config = ConfigDict()
    for path, key in KEYS.items():
        section, _, name = path.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict()
        place = config[section] if section else config
        place[name] = placeholder(key.default) if isinstance(key.default, type) else key.default
    return config


_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text", tuple: "a tuple of texts"}


def checked(key: str, value: Any, kind: type) -> Any:
    """`value` for a key such as `training.batch_size`, as a `kind`. Raises `SettingError` where it is none, or is not
    one of those allowed.
    """
    fits = {
        bool: isinstance(value, bool),
        int: isinstance(value, numbers.Integral) and not isinstance(value, bool),
        float: isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value),
        # of tuples of one's own it is not known what they hold
        tuple: isinstance(value, (tuple, list)) and (key not in KEYS or all(isinstance(item, str) for item in value)),
        type(None): True,  # a key of one's own that was left open
    }.get(kind, isinstance(value, kind))
    limits = KEYS[key].limits if key in KEYS else None
    if not fits or (limits and not limits[1](value)):
        kinds = "" if kind is object else _KINDS.get(kind, kind.__name__)
        wanted = ", ".join(filter(None, (kinds, limits[0] if limits else "")))
        raise SettingError(f"config.{key}={_shown(value)} cannot be: it must be {wanted}.{_hint(kind, value)}")
    if kind is object:
        return tuple(value) if isinstance(value, list) else value
    return kind(value) if kind in _KINDS else value


def _hint(kind: type, value: Any) -> str:
    """What to write for a text that is no number, but means one."""
    if not isinstance(value, str):
        return ""
    length = re.fullmatch(r"([\d.]+) ?(s|sec|m|min|h|d)\w*", value)
    if kind in (int, float) and length:
        seconds = float(length[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[length[2][0]]
        return f" Seconds are meant: write {seconds:g}."
    if kind is bool and value.lower() in ("yes", "on", "y", "no", "off", "n"):
        return f" Write {value.lower() in ('yes', 'on', 'y')}."
    multiple = re.fullmatch(r"([\d.]+)([kKM])", value)
    if kind in (int, float) and multiple:
        return f" Write {float(multiple[1]) * {'k': 1e3, 'K': 1e3, 'M': 1e6}[multiple[2]]:.0f}."
    return ""


def read_value(key: str, text: str, kind: type) -> Any:
    """The value that `text` stands for, for a key of type bool, int, float or str. Raises as `checked`."""
    value: Any = text
    if kind is bool and text.lower() in ("true", "false", "t", "f", "1", "0"):
        value = text.lower() in ("true", "t", "1")
    elif kind in (int, float):
        with suppress(ValueError):
            value = kind(text)
    return checked(key, value, kind)


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) < 60 else f"{shown[:57]}..."


def make_config(**sections: Any) -> ConfigDict:
    """The defaults with some keys changed: `make_config(sde="ve", model={"name": "mlp"})`. Unknown keys are errors with
    the nearest known one.
    """
    config = default_config()
    merge(config, sections)
    return config


def merge(config: ConfigDict, changes: dict[str, Any], path: str = "config") -> None:
    """Set keys that exist; `SettingError` names one that does not, or a value that cannot be."""
    for key, value in changes.items():
        if key not in config:
            raise no_key(f"{path}.{key}", config.keys())
        if isinstance(value, dict):
            if not isinstance(config[key], ConfigDict):
                raise SettingError(f"{path}.{key} is one value, such as {config[key]!r}, not a section; got {value!r}.")
            merge(config[key], value, f"{path}.{key}")
        elif isinstance(config[key], ConfigDict):
            raise SettingError(f"{path}.{key} is a section, {{key: value}}; got {_shown(value)}.")
        elif value is None:  # back to the component's own default
            with config.ignore_type():
                config[key] = None
        else:
            config[key] = checked(f"{path}.{key}".removeprefix("config."), value, config.get_type(key))


def no_key(path: str, known: Iterable[str]) -> SettingError:
    """The error about a key, such as `config.sampling.snr`, that there is none of in a section of `known` keys."""
    section, _, name = path.removeprefix("config.").rpartition(".")
    command = {"training": "train", "sampling": "sample", "evaluation": "evaluate"}.get(section, section)
    near, instead = suggest(name, known), words.for_flag(name, command)
    return SettingError(f"There is no key {path}.{f' Write {instead}.' if instead else ''}{near}")


def to_json(config: ConfigDict) -> str:
    """The configuration as JSON text."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str, origin: str = "") -> ConfigDict:
    """A configuration written by `to_json`, in the shape of the defaults (tuples, open placeholders); keys of one's own
    are kept.

    Raises `SettingError` for what is no configuration and for values that cannot be; with an `origin`, a file that is
    not the user's own writing, a `ValueError` that begins with it.
    """
    config = default_config()

    def fill(section: ConfigDict, values: dict[str, Any], path: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                if key not in section:
                    section[key] = ConfigDict()
                if not isinstance(section[key], ConfigDict):
                    raise ValueError(f"config.{path}{key} is one value, such as {section[key]!r}, not a section.")
                fill(section[key], value, f"{path}{key}.")
            elif key not in section:
                section[key] = tuple(value) if isinstance(value, list) else value
            elif isinstance(section[key], ConfigDict):
                raise ValueError(f"config.{path}{key} is a section, {{key: value}}; got {_shown(value)}.")
            elif value is not None:
                section[key] = checked(f"{path}{key}", value, section.get_type(key))

    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"a configuration is an object of sections; got {_shown(values)}.")
        fill(config, values, "")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{origin}: {error}") if origin else SettingError(str(error)) from error
    return config


def read_run(workdir: str | Path) -> ConfigDict:
    """The configuration of a run directory. Raises `FileNotFoundError` where there is none, `ValueError` for a value in
    it that cannot be.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{workdir} is not a run directory (it has no config.json). Train first: sde-score train --config=digits "
            f"--workdir={workdir}"
        )
    if not is_run(workdir):
        raise ValueError(
            f"{path} is not the configuration of a run of ours, or it is damaged; choose another --workdir, or restore "
            "that file."
        )
    return from_json(path.read_text(encoding="utf-8"), str(path))


def is_run(workdir: str | Path) -> bool:
    """Does the directory hold a configuration of ours, whole?"""
    try:
        values = json.loads((Path(workdir) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and {"sde", "model", "data", "training"} <= values.keys()


def flat(section: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a configuration, or of changes to one, by key: `{"sampling.steps": 100}`."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        nested = isinstance(value, (ConfigDict, Mapping))
        found |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def differences(a: ConfigDict, b: ConfigDict, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Keys on which two configurations differ, with both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted(set(a.keys()) | set(b.keys())):
        x, y = a.get(key), b.get(key)
        if isinstance(x, ConfigDict) and isinstance(y, ConfigDict):
            found |= differences(x, y, f"{prefix}{key}.")
        elif x != y:
            found[f"{prefix}{key}"] = (x, y)
    return found


def identity(key: str) -> bool:
    """Does a change of this key (such as `optim.lr`) make another run of it?"""
    section, _, rest = key.partition(".")
    if key in NOT_IDENTITY:
        return False
    return section in (*IDENTITY, "optim") or (section == "training" and rest in TRAINING_IDENTITY)


def with_plugins(plugins: Iterable[str], given: Iterable[str]) -> tuple[str, ...]:
    """`plugins` and those `given`, as absolute paths; one that has moved takes the place of its former self."""
    given = tuple(str(Path(p).resolve()) if str(p).endswith(".py") else p for p in given)
    names = {Path(p).name for p in given}
    return (*(p for p in plugins if Path(p).name not in names), *given)


def config_path(name: str) -> Path:
    """The file of a configuration given by path or by name (`digits` for `configs/digits.py`).

    Raises `FileNotFoundError` with the names there are.
    """
    direct = Path(name)
    if direct.suffix == ".py" and direct.is_file():
        return direct
    for folder in CONFIG_FOLDERS:
        candidate = folder / f"{name}.py"
        if candidate.is_file():
            return candidate
    known = config_names()
    instead = words.CONFIGS.get(words.plainly(name))
    hint = f" Write {instead}. Known: {', '.join(known)}." if instead else suggest(direct.stem, known)
    raise FileNotFoundError(f"There is no configuration {name!r}, neither as a file nor by name.{hint}")


def config_names() -> list[str]:
    """The names of the configurations that need no path."""
    found = {p.stem for folder in CONFIG_FOLDERS if folder.is_dir() for p in folder.glob("[!_]*.py")}
    return sorted(found - {"common"})


def load_config(spec: str) -> ConfigDict:
    """The configuration of a spec `NAME_OR_FILE[:ARGUMENT]`, for example `"digits:ve"`."""
    name, _, argument = spec.partition(":")
    path = config_path(name)
    module_spec = importlib.util.spec_from_file_location(f"sde_score_config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(
            f"{path} has no function get_config; a configuration file defines get_config() and returns a ConfigDict."
        )
    return module.get_config(argument) if argument else module.get_config()
