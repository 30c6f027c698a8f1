"""Likelihoods and sample quality of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_score.data import Codec, Split, iterate
from sde_score.files import first_line
from sde_score.likelihood import bits_per_dim, log_likelihood, summarize
from sde_score.run.build import build_objective, check_likelihood, noise_measure, told_conditions
from sde_score.run.facts import RunFacts, provenance, write_json
from sde_score.run.pictures import in_units, shown_range
from sde_score.run.results import result_name, settings_of, spec_word, weights_digest, write_table
from sde_score.run.sample import Samples, load_samples, sample, sampler_tag
from sde_score.run.unused import check_repeats
from sde_score.tensors import SampleNoise
from sde_score.training import ValidationLoss, distributed

FIT_SAMPLES = 10_000  # training samples that baselines and the small classifier see


def _split(run: RunFacts, name: str) -> Split:
    if name not in ("train", "test"):
        raise ValueError(f"There is no split {name!r}; choose 'test' or 'train'.")
    return getattr(run.data, name)


class Likelihood(dict[str, Any]):
    """The facts and numbers of a likelihood, as its JSON file has them, and beside them `per_sample`: columns `(N,)`
    with the values of each sample.

    `index` is its position in the split, `label` its class where there are classes, `nats` its log density,
    `bits_per_dim` what that is for grey levels.
    """

    per_sample: dict[str, Tensor]


def likelihood(
    run: RunFacts,
    split: str = "test",
    *,
    num: int | None = None,
    repeats: int = 1,
    seed: int = 0,
    baselines: bool = True,
    progress: bool = False,
) -> Likelihood:
    """Log-likelihood of a split by the probability-flow ODE, with the settings of `run.config.likelihood`.

    For images in grey levels: bits/dim with uniform dequantisation (fresh noise in each of `repeats` passes), with its
    standard error over the images, and baselines beside it. For continuous data: nats per sample in the data's own
    units. With `config.likelihood.space="model"`: nats of what the codec makes of the data. Every image counts, those
    of an incomplete last batch too. Raises `ValueError` where the codec leaves the data no density.

    Writes `likelihood/<name>.json` in the run directory, and the values of each sample as .csv and .npz beside it. The
    name says what it is: split, number, solver, step, seed, so that another result never takes its place. The paths
    are `["file"]` and `["per_sample_files"]`.
    """
    section, data = run.config.likelihood, _split(run, split)
    if repeats < 1 or (num is not None and num < 1):
        raise ValueError(f"A likelihood needs at least one sample and one pass; got num={num}, repeats={repeats}.")
    check_likelihood(run.config, run.sde)
    check_repeats(run.config, run.info, repeats)
    run.warn_of_prior()
    began, in_data_units = time.monotonic(), section.space == "data"
    total = len(data) if num is None else min(num, len(data))
    logp, log_det, nfe = _log_densities(run, data, total, repeats, seed, _bar(total * repeats, split, progress))
    result = Likelihood({
        "split": split,
        "num": len(logp),
        "num_split": len(data),
        "repeats": repeats,
        "seed": seed,
        "step": run.step,
        "weights": weights_digest(run.model),
        "sde": run.config.sde,
        "solver": section.solver,
        "trace": section.trace,
        "t_min": section.t_min if section.t_min is not None else run.sde.t_min,
        "nfe": nfe,
        "seconds": round(time.monotonic() - began, 2),
        "space": section.space,
    })  # fmt: skip
    asked = {k: v for k, v in settings_of(result).items() if k != "nfe"} | {"baselines": baselines}
    result["nats"] = _mean_and_error(logp + log_det)
    known = {"index": torch.arange(total)} | _labels(run, data, total)
    result.per_sample = known | {"nats": logp + log_det}
    if in_data_units:
        result |= _compared(run, data, total, result.per_sample, logp, log_det, baselines=baselines)
    result["provenance"] = provenance()
    words = [split, None if total == len(data) else f"first{total}", spec_word(section.solver),
             None if repeats == 1 else f"repeats{repeats}", None if in_data_units else "model", f"step{run.step}",
             f"seed{seed}"]  # fmt: skip
    path = run.workdir / "likelihood" / f"{result_name(words, asked)}.json"
    if distributed.is_main():
        path.parent.mkdir(exist_ok=True)
        write_json(path, result)
        columns: dict[str, Tensor | list[int | str]] = dict(result.per_sample)
        if "label" in result.per_sample:
            columns["label"] = run.info.conditions["y"].own_labels(result.per_sample["label"])
        for table in (path.with_suffix(".csv"), path.with_suffix(".npz")):
            write_table(table, columns)
    result["file"] = str(path)
    result["per_sample_files"] = [str(path.with_suffix(suffix)) for suffix in (".csv", ".npz")]
    return result


def _labels(run: RunFacts, data: Split, total: int) -> dict[str, Tensor]:
    """The classes of the first samples, where they have classes."""
    if run.info.num_classes is None:
        return {}
    found = [batch.y for batch in iterate(data, 256, limit=total)]
    return {"label": torch.cat(found)} if all(y is not None for y in found) else {}


def _log_densities(
    run: RunFacts, data: Split, total: int, repeats: int, seed: int, bar: Any
) -> tuple[Tensor, Tensor, float]:
    """Log densities in model space and log-determinants of the codec, `(total,)` each, and the mean NFE; the work is
    shared among the processes.
    """
    section, codec, score = run.config.likelihood, run.codec.for_density(), run.score_fn()
    values, nfes = {}, []
    for repeat in range(repeats):
        for number, batch in enumerate(iterate(data, section.batch_size, limit=total)):
            if number % distributed.world_size() != distributed.rank():
                continue
            noise = SampleNoise((seed, repeat), batch.positions)
            z = codec.encode(batch.x, noise).to(run.device)
            log_det = _log_det(codec, z, run) if section.space == "data" else z.new_zeros(len(z))
            found = log_likelihood(
                run.sde,
                score.bind(**run.told(batch)),
                z,
                solver=section.solver,
                trace=section.trace,
                t_min=section.t_min,
                noise=noise,
            )
            values[repeat, number] = torch.stack([found.logp.detach(), log_det]).cpu().double()
            nfes.append(found.nfe.cpu().double().mean().item())
            bar.update(len(z))
    bar.close()
    values = {k: v for part in distributed.gather(values) for k, v in part.items()}
    # several passes over one image are averaged first: the standard error is that over images
    passes = [torch.cat([values[k] for k in sorted(values) if k[0] == r], 1) for r in range(repeats)]
    logp, log_det = torch.stack(passes).mean(0)
    return logp, log_det, sum(nfes) / max(len(nfes), 1)


def _mean_and_error(values: Tensor) -> dict[str, float]:
    found = summarize(values)
    return {"mean": found.mean, "stderr": found.std_error}


def _compared(
    run: RunFacts,
    data: Split,
    total: int,
    per_sample: dict[str, Tensor],
    logp: Tensor,
    log_det: Tensor,
    *,
    baselines: bool,
) -> dict[str, Any]:
    """What a log density of the data is held against: bits/dim and baselines for grey levels, the law where it is
    known. Single samples' values join `per_sample`.
    """
    if run.info.levels is not None:
        bpd = bits_per_dim(logp, dim=run.info.dim, levels=run.info.levels, log_det=log_det, dequantisation="uniform")
        per_sample["bits_per_dim"] = bpd
        facts = {"levels": run.info.levels, "dequantisation": "uniform"}
        found: dict[str, Any] = {"bits_per_dim": _mean_and_error(bpd) | facts}
        if baselines and distributed.is_main():
            found["baselines"] = _baselines(run, data, total)
        return found
    if run.data.law is not None:
        per_sample["truth"] = run.data.law.log_prob(data[range(total)].x.double())
        return {"truth": _mean_and_error(per_sample["truth"])}
    return {}


def _log_det(codec: Codec, z: Tensor, run: RunFacts) -> Tensor:
    """What turns a density of model space into one of the data."""
    log_det = codec.log_det(z)
    if log_det is None:
        raise ValueError(
            f"The codec {run.config.data.codec!r} is no bijection, so the data have no density under this model. The "
            "likelihood of what it makes of the data: --config.likelihood.space=model."
        )
    return log_det


def _bar(total: int, split: str, shown: bool):
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=f"likelihood of {split}", disable=None if shown else True, leave=False)


def _baselines(run: RunFacts, data: Split, total: int) -> dict[str, Any]:
    """Bits/dim of simple models on the same images."""
    from sde_score.metrics import likelihood_baselines

    train = run.data.train[range(min(len(run.data.train), FIT_SAMPLES))].x
    found = likelihood_baselines(train, data[range(total)].x, levels=run.info.levels)
    return {result.name: {"mean": result.value, "stderr": result.stderr, "details": result.details} for result in found}


HELD_OUT = "held-out data"
AS_MANY = "model, as many samples"


def evaluate(
    run: RunFacts, *, seed: int = 0, progress: bool = False, samples: Samples | str | Path | None = None
) -> dict[str, Any]:
    """Compare samples with the test data in a feature space, and the loss by noise level; settings in
    `run.config.evaluation` and `.sampling`.

    Three rows of figures: `"model"`, all samples against all held-out data; `"held-out data"`, one half of the held-out
    data in the place of samples against the other half, which is what a perfect sampler would get (neither was seen in
    training, nor by features fitted to the training data); `"model, as many samples"`, so many samples against that
    other half, the number to compare with it, since most figures depend on how many samples there are. A figure that
    cannot be had has its reason in the place of a value. Writes `eval/<name>.json` in the run directory, whose path is
    `["file"]`.

    Args:
        run: the run.
        seed: of the samples.
        progress: show a bar.
        samples: samples drawn before, or the name of a set in the run directory, or an .npz file; default: new ones.

    Raises `ValueError` for unknown features and metrics, and for samples that are not there.
    """
    from sde_score.metrics import METRICS, compare

    section = run.config.evaluation
    for spec in section.metrics:  # a misspelt one is an error now, not after the sampling
        METRICS.build(spec)
    given = load_samples(run, samples) if isinstance(samples, (str, Path)) else samples
    began = time.monotonic()
    name, features = _features(run)
    asked = section.num_samples
    drawn = given or sample(run, min(asked, len(run.data.train)), seed=seed, progress=progress)
    train = run.data.train[range(min(len(run.data.train), FIT_SAMPLES))].x
    test = run.data.test[range(min(len(run.data.test), FIT_SAMPLES))].x
    metrics = tuple(section.metrics) + (("classes",) if spec_word(name) == "classifier" else ())
    half = len(test) // 2
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))  # files may be sorted by class
    fake, real, seen = features(drawn.stored, "samples"), features(test, "held-out data"), features(train, "training")

    def row(fake: Any, real: Any) -> list[dict[str, Any]]:
        return [m.as_dict() for m in compare(fake, real, train=seen, metrics=metrics)]

    first, second = real.take(order[:half]), real.take(order[half:])
    few = torch.arange(min(half, len(fake)))
    facts = drawn.facts
    result: dict[str, Any] = {
        "features": name,
        "num": len(fake),
        "num_asked": asked if given is None else len(fake),
        "num_real": len(test),
        "num_reference": [len(first), len(second)],
        "seed": facts.get("seed"),
        "step": facts.get("step"),
        "weights": facts.get("weights"),
        "told": facts.get("told"),
        "nfe": facts.get("nfe"),
        "sampling": facts.get("sampling"),
        "samples": facts.get("file"),
    }
    words = [spec_word(name), f"n{len(fake)}", _drawn_by(run, drawn, given), f"step{result['step']}"]
    words += [] if given is not None else [f"seed{seed}"]
    settings = {k: v for k, v in result.items() if k != "samples"}
    settings |= {"metrics": metrics, "samples": facts.get("file") and _hash(drawn.stored)}
    path = run.workdir / "eval" / f"{result_name(words, settings)}.json"
    result["metrics"] = {"model": row(fake, real), HELD_OUT: row(first, second), AS_MANY: row(fake.take(few), second)}
    try:
        result["loss_by_noise"] = loss_by_noise(run)
    except Exception as error:  # an objective of one's own may refuse so few samples
        result |= {"loss_by_noise": {}, "loss_by_noise_error": first_line(error)}
    result["seconds"] = round(time.monotonic() - began, 2)
    result["provenance"] = provenance()
    if distributed.is_main():
        path.parent.mkdir(exist_ok=True)
        write_json(path, result)
    result["file"] = str(path)
    return result


def _hash(x: Tensor) -> str:
    from sde_score.metrics.base import data_hash

    return data_hash(x)


def _drawn_by(run: RunFacts, drawn: Samples, given: Samples | str | Path | None) -> str:
    """A word for where samples come from."""
    if given is None:
        return sampler_tag(run)
    file = drawn.facts.get("file")
    return Path(file).stem if file else "given"


def _features(run: RunFacts) -> tuple[str, Callable[[Tensor, str], Any]]:
    """The name of the feature map of `config.evaluation`, and the map from stored data and their origin to features.

    Grey levels are seen between 0 and 1, real numbers by `pixels` as they are, and by other maps in units of the range
    of the pictures, which the data's facts or the training data give.
    """
    from sde_score.metrics import FEATURES, extract

    info, name = run.info, run.config.evaluation.features
    train = run.data.train[range(min(len(run.data.train), FIT_SAMPLES))]
    if name == "auto":
        labelled = info.levels is not None and info.num_classes is not None and len(info.shape) == 3
        name = "classifier" if labelled else "pixels"
    limits = (0.0, 1.0) if info.levels is not None or spec_word(name) == "pixels" else shown_range(info, train.x)
    feature: Any = FEATURES.build(name, channels=info.channels, rank=max(len(info.shape) - 1, 1))
    clips = getattr(feature, "clips", False)

    def units(x: Tensor) -> Tensor:
        x = (in_units(info, x) - limits[0]) / (limits[1] - limits[0])
        return x.clamp(0, 1) if clips and info.levels is None else x

    if hasattr(feature, "fit"):
        if train.y is None:
            raise ValueError(
                f"config.evaluation.features={name!r} is fitted to the classes of the training data; {info.name!r} has "
                "none. Without classes: 'pixels'."
            )
        feature = feature.fit(units(train.x), train.y)

    def features(x: Tensor, source: str) -> Any:
        return extract(feature, units(x), source=source)

    return name, features


def validation_loss(run: RunFacts) -> ValidationLoss:
    """The loss on held-out samples, with what the network is told."""
    told = told_conditions(run.config, run.info)
    batches = iterate(run.data.test, 256, limit=run.config.training.eval_samples)
    return ValidationLoss(
        build_objective(run.config, run.sde),
        [(batch.x, {name: batch.cond[name] for name in told}) for batch in batches],
        log_snr=noise_measure(run.sde),
        prepare=run.codec.encode,
        seed=run.config.seed,
    )


def loss_by_noise(run: RunFacts) -> dict[str, float | None]:
    """The validation loss of the averaged weights, in all and by log-SNR."""
    values = validation_loss(run).evaluate(run.model)
    return {k: None if v is None or not math.isfinite(v) else v for k, v in values.items()}
