"""Likelihoods and sample quality of a run."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from sde_score.data import Codec, Split, iterate
from sde_score.likelihood import bits_per_dim, log_likelihood, summarize
from sde_score.run.build import build_objective, check_likelihood, noise_measure, told_conditions
from sde_score.run.facts import RunFacts, provenance, write_json
from sde_score.run.sample import sample
from sde_score.tensors import SampleNoise
from sde_score.training import ValidationLoss, distributed

FIT_SAMPLES = 10_000  # training samples that baselines and the small classifier see


def _split(run: RunFacts, name: str) -> Split:
    if name not in ("train", "test"):
        raise ValueError(f"There is no split {name!r}; choose 'test' or 'train'.")
    return getattr(run.data, name)


def likelihood(
    run: RunFacts,
    split: str = "test",
    *,
    num: int | None = None,
    repeats: int = 1,
    seed: int = 0,
    baselines: bool = True,
    progress: bool = False,
) -> dict[str, Any]:
    """Log-likelihood of a split by the probability-flow ODE, with the settings of `run.config.likelihood`.

    For images in grey levels: bits/dim with uniform dequantisation (fresh noise in each of `repeats` passes), with its
    standard error over the images, and baselines beside it. For continuous data: nats per sample in the data's own
    units. With `config.likelihood.space="model"`: nats of what the codec makes of the data. Every image counts, those
    of an incomplete last batch too. Writes `likelihood/<split>.json` in the run directory, for model space
    `<split>_model.json`. Raises `ValueError` where the codec leaves the data no density.
    """
    section, data = run.config.likelihood, _split(run, split)
    if repeats < 1 or (num is not None and num < 1):
        raise ValueError(f"A likelihood needs at least one sample and one pass; got num={num}, repeats={repeats}.")
    check_likelihood(run.config, run.sde)
    run.warn_of_prior()
    began, in_data_units = time.monotonic(), section.space == "data"
    total = len(data) if num is None else min(num, len(data))
    logp, log_det, nfe = _log_densities(run, data, total, repeats, seed, _bar(total * repeats, split, progress))
    result: dict[str, Any] = {
        "split": split,
        "num": len(logp),
        "repeats": repeats,
        "seed": seed,
        "step": run.step,
        "sde": run.config.sde,
        "solver": section.solver,
        "trace": section.trace,
        "t_min": section.t_min if section.t_min is not None else run.sde.t_min,
        "nfe": nfe,
        "seconds": round(time.monotonic() - began, 2),
        "space": section.space,
        "nats": _mean_and_error(logp + log_det),
    }
    if in_data_units:
        result |= _compared(run, data, total, logp, log_det, baselines=baselines)
    result["provenance"] = provenance()
    if distributed.is_main():
        (run.workdir / "likelihood").mkdir(exist_ok=True)
        write_json(run.workdir / "likelihood" / f"{split}{'' if in_data_units else '_model'}.json", result)
    return result


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
    run: RunFacts, data: Split, total: int, logp: Tensor, log_det: Tensor, *, baselines: bool
) -> dict[str, Any]:
    """What a log density of the data is held against: bits/dim and baselines for grey levels, the law where it is
    known.
    """
    if run.info.levels is not None:
        bpd = bits_per_dim(logp, dim=run.info.dim, levels=run.info.levels, log_det=log_det, dequantisation="uniform")
        facts = {"levels": run.info.levels, "dequantisation": "uniform"}
        found: dict[str, Any] = {"bits_per_dim": _mean_and_error(bpd) | facts}
        if baselines and distributed.is_main():
            found["baselines"] = _baselines(run, data, total)
        return found
    if run.data.law is not None:
        return {"truth": _mean_and_error(run.data.law.log_prob(data[range(total)].x.double()))}
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


def evaluate(run: RunFacts, *, seed: int = 0, progress: bool = False) -> dict[str, Any]:
    """Compare samples with the test data in a feature space, and the loss by noise level; settings in
    `run.config.evaluation` and `.sampling`.

    Beside each figure of the model stands that of as many training samples: what perfect samples would get. Writes
    `eval/metrics.json`.
    """
    from sde_score.metrics import FEATURES, compare, extract

    section, info = run.config.evaluation, run.info
    count = min(section.num_samples, len(run.data.train))
    began = time.monotonic()
    drawn = sample(run, count, seed=seed, progress=progress)
    train = run.data.train[range(min(len(run.data.train), FIT_SAMPLES))]
    train_x, train_y = train.x, train.y if info.num_classes is not None else None
    test_x = run.data.test[range(min(len(run.data.test), FIT_SAMPLES))].x
    images = info.levels is not None
    name = section.features
    if name == "auto":
        name = "classifier" if images and train_y is not None and len(info.shape) == 3 else "pixels"
    feature: Any = FEATURES.build(name)
    levels = info.levels if images else 256
    fake, real, seen = (drawn.levels, test_x, train_x) if images else (drawn.x, test_x, train_x)
    if name == "classifier":
        feature = feature.fit(train_x, train_y, levels=levels)
    fake, real, seen = (extract(feature, x, levels=levels) if images else x.flatten(1) for x in (fake, real, seen))
    metrics = tuple(section.metrics) + (("classes",) if name == "classifier" else ())
    rows = {"model": compare(fake, real, train=seen, metrics=metrics)}
    reference = seen.take(torch.arange(count)) if images else seen[:count]
    rows["training data"] = compare(reference, real, train=seen, metrics=metrics)
    result: dict[str, Any] = {
        "features": name,
        "num": count,
        "num_real": len(test_x),
        "seed": seed,
        "step": run.step,
        "nfe": drawn.facts["nfe"],
        "sampling": drawn.facts["sampling"],
        "metrics": {who: [m.as_dict() for m in found] for who, found in rows.items()},
        "loss_by_noise": loss_by_noise(run),
    }
    result["seconds"] = round(time.monotonic() - began, 2)
    result["provenance"] = provenance()
    if distributed.is_main():
        (run.workdir / "eval").mkdir(exist_ok=True)
        write_json(run.workdir / "eval" / "metrics.json", result)
    return result


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
