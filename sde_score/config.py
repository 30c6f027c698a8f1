"""Configurations: their sections and defaults, named files, and JSON that comes back in the same shape. Imports no
torch.
"""

from __future__ import annotations

import importlib.util
import json
import math
import numbers
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

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
    """Every section with its defaults. A component is chosen by a spec: `"name"` or `"name(argument=value)"`; its own
    defaults are its own.

    `None` means: the component's own default.
    """
    config = ConfigDict()
    config.seed = 0
    config.device = "auto"  # cuda, mps or cpu, whichever is there first
    config.plugins = ()  # modules or .py files to import first: they register the user's own components
    config.sde = "vp"

    config.model = model = ConfigDict()
    model.name = "unet"
    model.parameterization = "edm"
    model.ema_rate = 0.999
    model.ema_ramp = True  # short memory at first: min(ema_rate, (1 + n)/(10 + n))
    model.class_conditional = False  # the network is told `y`, the class
    model.conditions = ()  # names of further conditions of the data that it is told, such as ("angle",)

    config.data = data = ConfigDict()
    data.name = "digits"  # a registered set, or a path: folder or .zip of images, .npy or .npz
    data.root = placeholder(str)  # where downloads lie; default $SDE_SCORE_DATA or ./datasets
    data.image_size = placeholder(int)
    data.channels = placeholder(int)
    data.holdout = placeholder(float)  # share kept for testing where there is no official split
    data.on_error = placeholder(str)  # a broken image: "raise" or "skip"
    data.download = placeholder(bool)
    data.centered = True  # images scaled to [-1, 1]; False: [0, 1]
    data.uniform_dequantization = True
    data.random_flip = False
    data.workers = 0
    data.max_pixels = placeholder(int)  # larger images are refused before they are decoded; default 2^26
    data.memory_gb = placeholder(float)  # how much decoded data may be kept in memory
    data.codec = "scaler"  # from data to model space and back

    config.training = training = ConfigDict()
    training.objective = "dsm"
    training.batch_size = 128
    training.n_iters = 100_000
    training.max_seconds = placeholder(float)  # wall-clock cap, earlier parts of a resumed run included
    training.micro_batches = 1
    training.condition_dropout = 0.0  # share of samples trained without their conditions; 0.1 if guidance is wanted
    training.precision = "float32"  # or "bf16"
    training.compile = False  # the network through torch.compile: the first step takes a minute or more
    training.max_skips = 20  # steps in a row whose loss or gradient is not finite
    training.log_freq = 100
    training.eval_freq = 5000
    training.eval_samples = 512
    training.snapshot_freq = 10_000  # sample grids, also after the last step; 0: none
    training.snapshot_samples = 64
    training.checkpoint_freq = 5000
    training.keep_checkpoints = 3
    training.tensorboard = True

    config.optim = optim = ConfigDict()
    optim.name = "adam"
    optim.lr = 2e-4
    optim.beta1 = 0.9
    optim.beta2 = 0.999
    optim.eps = 1e-8
    optim.weight_decay = 0.0
    optim.warmup = 1000
    optim.published_warmup = False
    optim.schedule = "constant"  # or "cosine"
    optim.grad_clip = 1.0

    config.sampling = sampling = ConfigDict()
    sampling.method = "pc"  # pc, ode, sde
    sampling.predictor = "reverse_diffusion"
    sampling.corrector = "none"
    sampling.solver = placeholder(str)  # of the methods ode and sde
    sampling.steps = 1000
    sampling.times = placeholder(str)
    sampling.t_min = placeholder(float)
    sampling.denoise = placeholder(str)
    sampling.batch_size = 64
    sampling.compile = False  # the network through torch.compile, for runs long enough to pay for it

    config.likelihood = likelihood = ConfigDict()
    likelihood.solver = "dopri5(rtol=1e-4, atol=1e-4)"
    likelihood.trace = "hutchinson(probes=1)"
    likelihood.t_min = placeholder(float)
    likelihood.space = "data"  # densities in the data's units, or "model": of what the codec makes of the data
    likelihood.batch_size = 100

    config.evaluation = evaluation = ConfigDict()
    # a small classifier where there are labels, pixels otherwise; or pixels, random_conv, inception
    evaluation.features = "auto"
    evaluation.metrics = ("fd", "kid", "prdc")
    evaluation.num_samples = 1000
    return config


def _at_least(low: float) -> tuple[str, Callable[[float], bool]]:
    return f"at least {low} and at most 10**12", lambda value: low <= value <= 10**12


def _above(low: float) -> tuple[str, Callable[[float], bool]]:
    return f"above {low}", lambda value: value > low


# The values that each number may have, in words and as a test. (Those of components are the components' own.)
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "seed": ("at least 0 and below 2**63", lambda value: 0 <= value < 2**63),
    "model.ema_rate": ("at least 0 and below 1", lambda value: 0 <= value < 1),
    "data.image_size": _at_least(1),
    "data.channels": _at_least(1),
    "data.holdout": ("above 0 and below 1", lambda value: 0 < value < 1),
    "data.workers": _at_least(0),
    "data.max_pixels": _at_least(1),
    "data.memory_gb": _at_least(0),
    "training.batch_size": _at_least(1),
    "training.n_iters": _at_least(1),
    "training.max_seconds": _above(0),
    "training.micro_batches": _at_least(1),
    "training.condition_dropout": ("at least 0 and below 1", lambda value: 0 <= value < 1),
    "training.max_skips": _at_least(1),
    "training.log_freq": _at_least(1),
    "training.eval_freq": _at_least(0),
    "training.eval_samples": _at_least(1),
    "training.snapshot_freq": _at_least(0),
    "training.snapshot_samples": _at_least(0),
    "training.checkpoint_freq": _at_least(0),
    "training.keep_checkpoints": _at_least(1),
    "optim.lr": _above(0),
    "optim.beta1": ("at least 0 and below 1", lambda value: 0 <= value < 1),
    "optim.beta2": ("at least 0 and below 1", lambda value: 0 <= value < 1),
    "optim.eps": _above(0),
    "optim.weight_decay": _at_least(0),
    "optim.warmup": _at_least(0),
    "optim.grad_clip": ("above 0, or negative for no clipping", lambda value: value != 0),
    "sampling.steps": _at_least(1),
    "sampling.t_min": _at_least(0),
    "sampling.batch_size": _at_least(1),
    "likelihood.t_min": _at_least(0),
    "likelihood.batch_size": _at_least(1),
    "evaluation.num_samples": _at_least(1),
}
TEXTS = ("plugins", "model.conditions", "evaluation.metrics")
_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text", tuple: "a tuple of texts"}


def _checked(key: str, value: Any, kind: type) -> Any:
    """`value` for a key such as `training.batch_size`, as a `kind`; `ValueError` where it is none or out of range."""
    fits = {
        bool: isinstance(value, bool),
        int: isinstance(value, numbers.Integral) and not isinstance(value, bool),
        float: isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value),
        tuple: isinstance(value, (tuple, list)) and (key not in TEXTS or all(isinstance(item, str) for item in value)),
        type(None): True,  # a key of one's own that was left open
    }.get(kind, isinstance(value, kind))
    words, test = RANGES.get(key, ("", lambda value: True))
    if not fits or not test(value):
        wanted = f"{_KINDS.get(kind, kind.__name__)}{words and ', '}{words}"
        raise ValueError(f"config.{key}={_shown(value)} cannot be: it must be {wanted}.")
    return kind(value) if kind in _KINDS else value


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
    """Set keys that exist; `ValueError` names one that does not, or a value that cannot be."""
    for key, value in changes.items():
        if key not in config:
            from sde_score.registry import suggest

            raise ValueError(f"There is no key {path}.{key}.{suggest(key, config.keys())}")
        if isinstance(value, dict):
            if not isinstance(config[key], ConfigDict):
                raise ValueError(f"{path}.{key} is one value, such as {config[key]!r}, not a section; got {value!r}.")
            merge(config[key], value, f"{path}.{key}")
        elif isinstance(config[key], ConfigDict):
            raise ValueError(f"{path}.{key} is a section, {{key: value}}; got {_shown(value)}.")
        elif value is None:  # back to the component's own default
            with config.ignore_type():
                config[key] = None
        else:
            config[key] = _checked(f"{path}.{key}".removeprefix("config."), value, config.get_type(key))


def to_json(config: ConfigDict) -> str:
    """The configuration as JSON text."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str, origin: str = "") -> ConfigDict:
    """A configuration written by `to_json`, in the shape of the defaults (tuples, open placeholders); keys of one's own
    are kept.

    Raises `ValueError`, beginning with `origin`, for what is no configuration and for values that cannot be.
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
                section[key] = _checked(f"{path}{key}", value, section.get_type(key))

    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"a configuration is an object of sections; got {_shown(values)}.")
        fill(config, values, "")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{origin}: {error}" if origin else str(error)) from error
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
    from sde_score.registry import suggest

    known = {p.stem for folder in CONFIG_FOLDERS if folder.is_dir() for p in folder.glob("[!_]*.py")} - {"common"}
    raise FileNotFoundError(
        f"There is no configuration {name!r}, neither as a file nor by name.{suggest(direct.stem, known)}"
    )


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
