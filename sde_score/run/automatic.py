"""A configuration chosen from what the data are: for `train --data=PATH` and `sde_score.train(data=...)`."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict

from sde_score.config import from_json, merge, to_json
from sde_score.data import DataInfo, DataSplits
from sde_score.data.overview import inspect_source
from sde_score.data.sources import ARCHIVES
from sde_score.run.build import build_codec, build_data, build_model, build_objective, build_optimizer, build_sde
from sde_score.run.plugins import import_plugins
from sde_score.tensors import SampleNoise, to_device
from sde_score.training import distributed
from sde_score.training.progress import in_words

# Minutes of training where the user names none: what one waits for, and what a GPU makes something of.
MINUTES = {"cpu": 2.0, "gpu": 30.0}
PASSES = 400  # over the training data, where there is time for them
FEWEST_STEPS, MOST_STEPS = 1000, 50_000
MOST_PIXELS = {"cpu": 48 * 64, "gpu": 128 * 128}  # larger images are made smaller, if no size is given
MEASURED = 3  # steps that are timed, after one to warm up
WORTH_A_SNAPSHOT = 10.0  # minutes; of a shorter training `sample` shows enough
ENOUGH_OF_A_CLASS = 10  # samples that each class needs, on average, for a class-conditional network


@dataclass(frozen=True)
class Automatic:
    """A configuration and why it is like that, a line for each choice."""

    config: ConfigDict
    reasons: tuple[str, ...]


def configure(
    data: DataSplits,
    base: ConfigDict,
    given: Mapping[str, Any] | None = None,
    *,
    device: torch.device,
    minutes: float | None = None,
) -> Automatic:
    """Choose network, loss, batch, length of training and sampler for data.

    Args:
        data: the data; their shape, number, levels and classes decide.
        base: a configuration whose `data`, `seed`, `device` and `plugins` stay as they are.
        given: keys that the user has set, which win: `{"sde": "ve", "training": {"batch_size": 32}}`.
        device: where it will be trained: on a CPU networks are small and training is short.
        minutes: of training; a step is timed, and the schedule ends then. Default: `MINUTES`, or less where the data
            have been seen `PASSES` times before.
    """
    config, info, n = from_json(to_json(base)), data.info, len(data.train)
    cpu = device.type == "cpu"
    _check_enough(data)
    told = _tells_classes(info, n)
    sigma_data = _spread(config, data)
    network, about_network = _network(info, n, cpu=cpu)
    batch = _batch_size(info, n, cpu=cpu)
    grey = info.levels is not None
    loss = f"dsm(weighting='edm', times='log_normal(mean=-2.0, std=1.7)', sigma_data={sigma_data:g})"
    choice: dict[str, Any] = {
        "sde": "vp(t_min=1e-4)",
        "model": {
            "name": network,
            "parameterization": f"edm(sigma_data={sigma_data:g})",
            "ema_rate": 0.999,
            "class_conditional": told,
        },
        "training": {
            "objective": loss if grey else "dsm(times='mixed(share=0.5)')",
            "batch_size": batch,
            "condition_dropout": 0.1 if told else 0.0,
            "eval_samples": min(512, len(data.test)),
        },
        "optim": {
            "name": "adamw",
            "lr": 1e-3 if cpu else 5e-4,
            "beta2": 0.99,
            "weight_decay": 0.01,
            "schedule": "cosine",
        },
        "likelihood": {
            "trace": "exact" if info.dim <= 16 else "hutchinson(probes=1)",
            "batch_size": batch if info.kind != "vector" else 500,
        },
        "evaluation": {"num_samples": min(1000, max(n, 2))},
    }
    merge(config, choice)
    merge(config, dict(given or {}))  # what is timed is what will run
    batch = config.training.batch_size
    step_seconds, forward_seconds = _measure(config, data, device)
    steps, about_length = _length(n, batch, step_seconds, minutes, cpu=cpu)
    patient = forward_seconds * 64 / batch < 0.15  # of 64 samples
    merge(
        config,
        {
            "training": {
                "n_iters": steps,
                "max_seconds": 60.0 * _minutes(minutes, cpu) * 1.2,
                "log_freq": max(1, min(100, steps // 20)),
                "eval_freq": max(1, steps // 2),
                "snapshot_freq": 0 if _minutes(minutes, cpu) < WORTH_A_SNAPSHOT else max(1, steps // 4),
                "snapshot_samples": 16 if info.kind != "vector" else 1000,
                "checkpoint_freq": max(1, steps // 4),
            },
            "optim": {"warmup": min(200, max(1, steps // 20))},
            "sampling": {
                "predictor": "reverse_diffusion",
                "corrector": "langevin(snr=0.16, norms='expected')" if grey and patient else "none",
                "steps": 200 if not grey and patient else 100,
                "times": "karras(rho=7.)" if grey else "power(rho=2.)",
                "batch_size": 64 if info.kind != "vector" else 1000,
            },
            # half the evaluations for an error of about 0.002 bits/dim, where each of them is felt
            "likelihood": {} if patient or not grey else {"solver": "adams(steps=60, power=2)"},
        },
    )
    merge(config, dict(given or {}))
    if config.training.n_iters != steps:
        steps = config.training.n_iters
        about_length = f"{steps:,} steps of {batch} samples, as you say: about {in_words(steps * step_seconds)} here"
    reasons = (
        f"data      {describe(data)}",
        f"network   {about_network if config.model.name == network else config.model.name}",
        f"process   {config.sde}; the data spread by {sigma_data:g} in the network's units, which sets its scaling",
        f"length    {about_length}",
        f"besides   {_besides(config, info, n, told)}",
    )
    return Automatic(config, reasons)


def fitting(
    base: ConfigDict,
    given: Mapping[str, Any] | None = None,
    *,
    data: DataSplits | None = None,
    minutes: float | None = None,
    plugins: Iterable[str] = (),
) -> tuple[ConfigDict, DataSplits]:
    """The configuration for the data of `base.data` (or those handed over), said with its reasons; and the data.

    See `configure`. `plugins` are those that the user has named. Of several processes the main one chooses.
    """
    import_plugins(base.plugins, named=plugins)
    with distributed.processes(base.device) as device:
        why = ""
        if data is None:
            base, why = with_image_size(base, cpu=device.type == "cpu")
            data = build_data(base)
        chosen = configure(data, base, given, device=device, minutes=minutes) if distributed.is_main() else None
        if chosen is not None:
            first, *others = chosen.reasons
            print("\n".join([first + why, *others]), file=sys.stderr)
        text = distributed.share(None if chosen is None else to_json(chosen.config))
    return from_json(text), data


def with_image_size(base: ConfigDict, *, cpu: bool) -> tuple[ConfigDict, str]:
    """A configuration with a size for its images, where they have several or are larger than is wise; and why."""
    path = Path(base.data.name).expanduser()
    images = path.is_dir() or path.name.lower().endswith(ARCHIVES)
    if base.data.image_size is not None or not images or not path.exists():
        return base, ""
    keys = ("frames", "max_pixels", "memory_gb")
    found = inspect_source(path, sample=0, **{k: base.data[k] for k in keys if base.data[k] is not None})
    size = fitting_size(found.sizes, MOST_PIXELS["cpu" if cpu else "gpu"])
    if size is None:
        return base, ""
    config = from_json(to_json(base))
    config.data.image_size = size
    most, count = next(iter(found.sizes.items()))
    which = (
        f"their size is {most[0]}x{most[1]}" if len(found.sizes) == 1
        else f"they have {len(found.sizes)} sizes, {count} of them {most[0]}x{most[1]}"
    )  # fmt: skip
    return config, f" ({which}; they are brought to {size[0]}x{size[1]}: --config.data.image_size='{size}')"


def fitting_size(sizes: Mapping[tuple[int, int], int], most_pixels: int) -> tuple[int, int] | None:
    """The size (height, width) to which images are brought; None: they are as they should be.

    Multiples of 8, in the proportions of most of them or else square, with at most so many pixels, and no larger than
    the smallest of them where that is possible.
    """
    if len(sizes) == 1 and math.prod(next(iter(sizes))) <= most_pixels:
        return None
    proportions: dict[float, int] = {}
    for (height, width), count in sizes.items():
        proportion = round(math.log(height / width), 1)
        proportions[proportion] = proportions.get(proportion, 0) + count
    commonest = max(proportions, key=lambda p: proportions[p])
    of_most = [size for size in sizes if round(math.log(size[0] / size[1]), 1) == commonest]
    ratio = of_most[0][0] / of_most[0][1] if 2 * proportions[commonest] > sum(sizes.values()) else 1.0
    height = min(min(h for h, _ in sizes), min(w for _, w in sizes) * ratio, math.sqrt(most_pixels * ratio))
    return tuple(max(8, int(side / 8 + 0.001) * 8) for side in (height, height / ratio))


def describe(data: DataSplits) -> str:
    """A data set in a line: `200 images of 40x56, grey, 256 levels, no classes: 180 to train on, 20 held out`."""
    info, train, test = data.info, len(data.train), len(data.test)
    size = "x".join(map(str, info.shape[1:]))
    what = {
        "vector": f"rows of {info.dim} numbers" if info.dim > 1 else "single numbers",
        "series": f"series of {size} steps, {info.channels} channel{'s' * (info.channels > 1)}",
        "image": f"images of {size}, {({1: 'grey', 3: 'colour'}.get(info.channels) or f'{info.channels} channels')}",
        "volume": f"volumes of {size}, {info.channels} channel{'s' * (info.channels > 1)}",
    }[info.kind]
    levels = f", {info.levels} levels" if info.levels else ", real numbers" if info.kind != "vector" else ""
    classes = f", {info.num_classes} classes" if info.num_classes else ""
    return f"{train + test:,} {what}{levels}{classes}: {train:,} to train on, {test:,} held out"


def _check_enough(data: DataSplits) -> None:
    if len(data.train) < 2:
        raise ValueError(
            f"{data.info.name} has {len(data.train)} sample to train on: a law cannot be learnt from one. A hundred "
            "are few, thousands are good."
        )


def _tells_classes(info: DataInfo, n: int) -> bool:
    return bool(info.num_classes) and info.num_classes > 1 and n >= ENOUGH_OF_A_CLASS * info.num_classes


def _spread(config: ConfigDict, data: DataSplits) -> float:
    """The standard deviation of the training data in model space, of a fixed part of them, to two digits."""
    count = min(len(data.train), 1000)
    chosen = torch.linspace(0, len(data.train) - 1, count).long()
    z = build_codec(config, data).encode(data.train[chosen].x)
    return float(f"{float(z.double().std()):.2g}") or 1.0


def _network(info: DataInfo, n: int, *, cpu: bool) -> tuple[str, str]:
    """The network's spec, and why."""
    dropout = ", dropout=0.1" if n < 10_000 else ""
    few = f"; {n:,} samples are few, so it drops a tenth of its features while it learns" if dropout else ""
    if info.kind == "vector":
        width = 128 if info.dim <= 32 else 256 if info.dim <= 256 or cpu else 512
        return f"mlp(width={width}, blocks=3{dropout})", f"mlp of width {width}, since rows have no neighbourhood{few}"
    size = info.shape[1:]
    taps = math.prod(size) * 3 ** len(size)
    width = (32 if taps <= 4000 else 16) if cpu else (64 if taps <= 20_000 else 96)
    long = max(size)
    levels = min(4, max(1, int(math.log2(max(long / 4, 1))) + 1))
    mult = (1, 2, 4, 4)[:levels] if width == 16 else (1, 2, 2, 2)[:levels]
    places = math.prod(math.ceil(s / 2 ** (levels - 1)) for s in size)
    attention = f"({levels - 1},)" if places <= 256 else "()"
    spec = f"unet(width={width}, mult={mult if levels > 1 else '(1,)'}, attention={attention}{dropout})"
    where = "a CPU" if cpu else "a GPU"
    return spec, f"unet of {levels} levels and width {width}, for {'x'.join(map(str, size))} places on {where}{few}"


def _batch_size(info: DataInfo, n: int, *, cpu: bool) -> int:
    """A power of two: what a step can carry, and an eighth of the data at most, but at least 8."""
    if info.kind == "vector":
        fits = 256
    else:
        taps = math.prod(info.shape[1:]) * 3 ** len(info.shape[1:])
        fits = min(64, 300_000 // taps) if cpu else min(128, 30_000_000 // taps)
    limit = max(8, min(fits, n // 8))
    return min(2 ** int(math.log2(limit)), 512)


def _measure(config: ConfigDict, data: DataSplits, device: torch.device) -> tuple[float, float]:
    """Seconds of a training step and of a forward pass with the configuration's batch, on this machine, now."""
    state = torch.random.get_rng_state()
    try:
        sde, codec = build_sde(config), build_codec(config, data)
        model = build_model(config, data.info, sde, codec.shape).to(device)
        objective, optimizer = build_objective(config, sde), build_optimizer(config, model)
        chosen = torch.arange(config.training.batch_size) % len(data.train)
        batch, noise = data.train[chosen], SampleNoise(0, range(len(chosen)))
        cond = {"y": batch.y.to(device)} if config.model.class_conditional else {}
        times = []
        for _ in range(1 + MEASURED):
            began = time.monotonic()
            optimizer.zero_grad()
            x0 = codec.encode(to_device(batch.x, device), noise)
            objective(model, x0, noise=noise, **cond).mean().backward()
            optimizer.step()
            _wait(device)
            times.append(time.monotonic() - began)
        began = time.monotonic()
        model.score_fn(**cond)(x0, torch.full((len(x0),), 0.5 * sde.T, dtype=x0.dtype, device=device))
        _wait(device)
        return min(times[1:]), time.monotonic() - began
    finally:
        torch.random.set_rng_state(state)  # the weights of the run do not depend on whether this was measured


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _minutes(minutes: float | None, cpu: bool) -> float:
    return MINUTES["cpu" if cpu else "gpu"] if minutes is None else minutes


def _length(n: int, batch: int, seconds: float, minutes: float | None, *, cpu: bool) -> tuple[int, str]:
    """How many steps, and why."""
    by_size = min(MOST_STEPS, max(FEWEST_STEPS, PASSES * n // batch))
    by_time = 0.9 * 60.0 * _minutes(minutes, cpu) / seconds  # a tenth is for validation and checkpoints
    steps = by_time if minutes is not None else min(by_size, by_time)
    digits = 10 ** max(0, int(math.log10(max(steps, 1))) - 1)
    steps = max(20, int(steps) // digits * digits)
    told = in_words(steps * seconds)
    why = (
        f"{PASSES} passes over the data are enough" if minutes is None and by_size <= by_time
        else "as long as --minutes says" if minutes is not None
        else f"cut to {MINUTES['cpu' if cpu else 'gpu']:g} minutes; --minutes=60 for better samples"
    )  # fmt: skip
    return steps, (
        f"{steps:,} steps of {batch} samples, {steps * batch / n:.0f} passes, about {told} at {seconds:.2g} s a step "
        f"on this machine ({why})"
    )


def _besides(config: ConfigDict, info: DataInfo, n: int, told: bool) -> str:
    parts = []
    if told:
        parts.append(
            "the network is told the class, a tenth of the time not (off: --config.model.class_conditional=False)"
        )
    elif info.num_classes:
        parts.append(f"{n:,} samples of {info.num_classes} classes are too few to tell the network the class")
    if info.kind == "image" and not config.data.random_flip:
        parts.append("no mirrored copies (where a mirrored image is as good: --config.data.random_flip=True)")
    if info.levels is None:
        parts.append("every number is brought to mean 0 and deviation 1, and back in all that you see")
    return "; ".join(parts) or "nothing"
