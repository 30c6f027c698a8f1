"""The keys of a configuration: default, meaning and allowed values of each, in one place. Imports no torch."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Limits = tuple[str, Callable[[Any], bool]]  # allowed values in words, and as a test


def _at_least(low: float) -> Limits:
    return f"at least {low} and at most 10**12", lambda value: low <= value <= 10**12


def _above(low: float) -> Limits:
    return f"above {low}", lambda value: value > low


def _between(low: int, high: int) -> Limits:
    return f"at least {low} and at most {high}", lambda value: low <= value <= high


def _below_one(low: str) -> Limits:
    return f"{low} 0 and below 1", lambda value: (0 < value if low == "above" else 0 <= value) and value < 1


def _one_of(*texts: str) -> Limits:
    return f"{', '.join(map(repr, texts[:-1]))} or {texts[-1]!r}", lambda value: value in texts


def _is_size(value: Any) -> bool:
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    whole = all(isinstance(n, numbers.Integral) and not isinstance(n, bool) and 1 <= n <= 10**12 for n in pair)
    return len(pair) == 2 and whole


@dataclass(frozen=True)
class Key:
    """One key of a configuration.

    Args:
        default: its value; a type stands for none (`None`): what it belongs to then takes its own default.
        meaning: one line.
        limits: the values that it may have, in words and as a test; None: any of its type.
        component: the kind of component that its spec names, as `sde-score list` has it.
    """

    default: Any
    meaning: str
    limits: Limits | None = None
    component: str | None = None

    @property
    def type(self) -> type:
        """The type of its values."""
        return self.default if isinstance(self.default, type) else type(self.default)

    @property
    def allowed(self) -> str:
        """The values that it may have, in words."""
        if self.component:
            return f"sde-score list {self.component}"
        return "True or False" if self.type is bool else self.limits[0] if self.limits else ""


KEYS: dict[str, Key] = {
    "seed": Key(
        0,
        "of initial weights, batches and noise in training",
        ("at least 0 and below 2**63", lambda value: 0 <= value < 2**63),
    ),
    "device": Key("auto", "cuda, mps or cpu; auto: whichever is there first"),
    "plugins": Key((), "modules or .py files to import first: they register the user's own components"),
    "sde": Key("vp", "the forward process", component="sdes"),
    "model.name": Key("unet", "the network", component="models"),
    "model.parameterization": Key("edm", "what the network's output means", component="parameterizations"),
    "model.ema_rate": Key(0.999, "rate of the averaged weights", _below_one("at least")),
    "model.ema_ramp": Key(True, "short memory at first: min(ema_rate, (1 + n)/(10 + n))"),
    "model.class_conditional": Key(False, "the network is told `y`, the class"),
    "model.conditions": Key((), "names of further conditions of the data that it is told, such as ('angle',)"),
    "data.name": Key(
        "digits",
        "a registered set, or a path: folder, .zip or .tar of images, .npy, .npz, .csv, .tsv, .parquet",
        component="datasets",
    ),
    "data.root": Key(str, "where downloads lie; default $SDE_SCORE_DATA or ./datasets"),
    "data.image_size": Key(
        object,
        "images are cropped and resized to so many pixels: a number, or (height, width)",
        ("a whole number of at least 1, or two: (height, width)", _is_size),
    ),
    "data.channels": Key(int, "1 or 3; default: as the images are", _at_least(1)),
    "data.holdout": Key(float, "share kept for testing where there is no official split", _below_one("above")),
    "data.on_error": Key(
        str, "what to do about a broken image, or a sample that is not finite", _one_of("raise", "skip")
    ),
    "data.frames": Key(str, "of a file that holds several images", _one_of("first", "all")),
    "data.layout": Key(str, "order of an array's axes, such as NHWC"),
    "data.levels": Key(int, "how many grey levels whole numbers have: an array's, or deep images'", _between(2, 2**16)),
    "data.columns": Key((), "of a table, by name, or of vectors, by number, those that are kept; (): all"),
    "data.download": Key(bool, "whether a missing data set may be fetched"),
    "data.centered": Key(True, "images scaled to [-1, 1]; False: [0, 1]"),
    "data.uniform_dequantization": Key(True, "uniform noise within a grey level, which gives images a density"),
    "data.random_flip": Key(False, "mirror half of the training images left to right"),
    "data.workers": Key(0, "processes that read training batches; 0: the training process itself", _at_least(0)),
    "data.max_pixels": Key(int, "larger images are refused before they are decoded; default 2^26", _at_least(1)),
    "data.memory_gb": Key(float, "how much decoded data may be kept in memory", _at_least(0)),
    "data.codec": Key("scaler", "from data to model space and back", component="codecs"),
    "training.objective": Key("dsm", "the loss", component="objectives"),
    "training.batch_size": Key(128, "samples in a step", _at_least(1)),
    "training.n_iters": Key(100_000, "steps in all", _at_least(1)),
    "training.max_seconds": Key(float, "wall-clock cap, earlier parts of a resumed run included", _above(0)),
    "training.micro_batches": Key(1, "a batch is worked off in so many parts, to need less memory", _at_least(1)),
    "training.condition_dropout": Key(
        0.0, "share of samples trained without their conditions; 0.1 if guidance is wanted", _below_one("at least")
    ),
    "training.precision": Key("float32", "of the network's inside while it trains", _one_of("float32", "bf16")),
    "training.compile": Key(False, "the network through torch.compile: the first step takes a minute or more"),
    "training.max_skips": Key(20, "so many steps in a row whose loss or gradient is not finite end it", _at_least(1)),
    "training.log_freq": Key(100, "steps between lines of metrics", _at_least(1)),
    "training.eval_freq": Key(5000, "steps between validation losses, and at the end; 0: none", _at_least(0)),
    "training.eval_samples": Key(512, "held-out samples of a validation loss", _at_least(1)),
    "training.snapshot_freq": Key(10_000, "steps between sample grids, and at the end; 0: none", _at_least(0)),
    "training.snapshot_samples": Key(64, "samples of a grid; 0: no grids", _at_least(0)),
    "training.checkpoint_freq": Key(5000, "steps between checkpoints; 0: after the last step only", _at_least(0)),
    "training.keep_checkpoints": Key(3, "the newest so many stay", _at_least(1)),
    "training.tensorboard": Key(True, "write TensorBoard events too"),
    "optim.name": Key("adam", "the optimiser", _one_of("adam", "adamw")),
    "optim.lr": Key(2e-4, "learning rate", _above(0)),
    "optim.beta1": Key(0.9, "decay of the mean of gradients", _below_one("at least")),
    "optim.beta2": Key(0.999, "decay of the mean of their squares", _below_one("at least")),
    "optim.eps": Key(1e-8, "added to the root of that mean", _above(0)),
    "optim.weight_decay": Key(0.0, "weight decay; 0: none", _at_least(0)),
    "optim.warmup": Key(1000, "steps in which the learning rate rises; 0: none", _at_least(0)),
    "optim.published_warmup": Key(False, "the published rule, whose first step has length 0"),
    "optim.schedule": Key("constant", "of the learning rate after the warm-up", _one_of("constant", "cosine")),
    "optim.grad_clip": Key(
        1.0, "largest norm of the gradient", ("0 or, as published, negative for no clipping", lambda value: True)
    ),
    "sampling.method": Key("pc", "how samples are drawn: pc, ode, sde ...", component="samplers"),
    "sampling.predictor": Key("reverse_diffusion", "of the methods pc and published", component="predictors"),
    "sampling.corrector": Key("none", "of the methods pc and published", component="correctors"),
    "sampling.solver": Key(str, "of the methods ode, sde and published_ode", component="solvers"),
    "sampling.steps": Key(1000, "of the methods pc, sde and published", _at_least(1)),
    "sampling.times": Key(str, "the grid of times of the method pc", component="times"),
    "sampling.t_min": Key(float, "where sampling ends; default: that of the SDE", _at_least(0)),
    "sampling.denoise": Key(str, "what is done about the noise left at t_min", _one_of("tweedie", "mean", "none")),
    "sampling.batch_size": Key(64, "samples drawn at a time", _at_least(1)),
    "sampling.compile": Key(False, "the network through torch.compile, for runs long enough to pay for it"),
    "likelihood.solver": Key("dopri5(rtol=1e-4, atol=1e-4)", "of the probability-flow ODE", component="solvers"),
    "likelihood.trace": Key("hutchinson(probes=1)", "how divergences are computed", component="traces"),
    "likelihood.t_min": Key(float, "where the ODE begins; default: that of the SDE", _at_least(0)),
    "likelihood.space": Key(
        "data", "densities in the data's units, or of what the codec makes of the data", _one_of("data", "model")
    ),
    "likelihood.batch_size": Key(100, "samples at a time", _at_least(1)),
    "evaluation.features": Key(
        "auto",
        "where samples are compared; auto: a small classifier where there are labels, pixels otherwise",
        component="features",
    ),
    "evaluation.metrics": Key(("fd", "kid", "prdc"), "what is compared", component="metrics"),
    "evaluation.num_samples": Key(1000, "samples drawn, at most as many as there are to train on", _at_least(1)),
}


def key_of_component(kind: str) -> str | None:
    """The key that names a component of a kind, such as `sampling.solver` for `solvers`."""
    return next((key for key, facts in KEYS.items() if facts.component == kind), None)
