"""Likelihoods and sample quality of a run."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from sde_score.data import Scaler, Split, iterate
from sde_score.likelihood import bits_per_dim, log_likelihood, summarize
from sde_score.run.build import build_objective, check_likelihood, noise_measure
from sde_score.run.run import Run, provenance, write_json
from sde_score.run.sample import sample
from sde_score.tensors import SampleNoise
from sde_score.training import distributed

FIT_SAMPLES = 10_000  # training samples that baselines and the small classifier see


def _split(run: Run, name: str) -> Split:
    if name not in ("train", "test"):
        raise ValueError(f"There is no split {name!r}; choose 'test' or 'train'.")
    return getattr(run.data, name)


def likelihood(
    run: Run,
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
        standard error over the
    images, and baselines beside it. For continuous data: nats per sample in the data's own units. Every image counts,
    those of an incomplete last batch too. Writes `likelihood/<split>.json` in the run directory.
    """
    section, data = run.config.likelihood, _split(run, split)
    if repeats < 1 or (num is not None and num < 1):
        raise ValueError(f"A likelihood needs at least one sample and one pass; got num={num}, repeats={repeats}.")
    check_likelihood(run.config, run.sde)
    images = run.info.levels is not None
    scaler = _dequantizing(run)
    began, values, nfes = time.monotonic(), {}, []
    total = len(data) if num is None else min(num, len(data))
    bar = _bar(total * repeats, f"likelihood of {split}", progress)
    for repeat in range(repeats):
        for number, batch in enumerate(iterate(data, section.batch_size, limit=num)):
            if number % distributed.world_size() != distributed.rank():
                continue
            noise = SampleNoise((seed, repeat), batch.positions)
            x = scaler.encode(batch.x, noise).to(run.device)
            cond = {"y": batch.y.to(run.device)} if run.config.model.class_conditional else {}
            found = log_likelihood(
                run.sde,
                run.score_fn(**cond),
                x,
                solver=section.solver,
                trace=section.trace,
                t_min=section.t_min,
                noise=noise,
            )
            values[repeat, number] = found.logp.detach().cpu().double()
            nfes.append(found.nfe.cpu().double().mean().item())
            bar.update(len(x))
    bar.close()
    values = {k: v for part in distributed.gather(values) for k, v in part.items()}
    # several passes over one image are averaged first: the standard error is that over images
    logp = torch.stack([torch.cat([values[k] for k in sorted(values) if k[0] == r]) for r in range(repeats)]).mean(0)
    in_data_units = summarize(logp + scaler.log_det)
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
        "nfe": sum(nfes) / max(len(nfes), 1),
        "seconds": round(time.monotonic() - began, 2),
        "nats": {"mean": in_data_units.mean, "stderr": in_data_units.std_error},
    }
    if images:
        bpd = summarize(
            bits_per_dim(
                logp, dim=run.info.dim, levels=run.info.levels, log_det=scaler.log_det, dequantisation="uniform"
            )
        )
        result["bits_per_dim"] = {
            "mean": bpd.mean,
            "stderr": bpd.std_error,
            "levels": run.info.levels,
            "dequantisation": "uniform",
        }
        if baselines and distributed.is_main():
            result["baselines"] = _baselines(run, data, total)
    elif run.data.law is not None:
        truth = summarize(run.data.law.log_prob(data[range(total)][0].double()))
        result["truth"] = {"mean": truth.mean, "stderr": truth.std_error}
    result["provenance"] = provenance()
    if distributed.is_main():
        (run.workdir / "likelihood").mkdir(exist_ok=True)
        write_json(run.workdir / "likelihood" / f"{split}.json", result)
    return result


def _dequantizing(run: Run) -> Scaler:
    """The run's scaler, with uniform dequantisation also where training had none (as published): densities of grey
    levels need it.
    """
    if run.info.levels is None or run.scaler.dequantizes:
        return run.scaler
    return Scaler.from_state_dict(run.scaler.state_dict() | {"dequantize": True})


def _bar(total: int, label: str, shown: bool):
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=label, disable=None if shown else True, leave=False)


def _baselines(run: Run, data: Split, total: int) -> dict[str, Any]:
    """Bits/dim of simple models on the same images."""
    from sde_score.metrics import likelihood_baselines

    train = run.data.train[range(min(len(run.data.train), FIT_SAMPLES))][0]
    found = likelihood_baselines(train, data[range(total)][0], levels=run.info.levels)
    return {result.name: {"mean": result.value, "stderr": result.stderr, "details": result.details} for result in found}


def evaluate(run: Run, *, seed: int = 0, progress: bool = False) -> dict[str, Any]:
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
    train_x, train_y = run.data.train[range(min(len(run.data.train), FIT_SAMPLES))]
    test_x, _ = run.data.test[range(min(len(run.data.test), FIT_SAMPLES))]
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


def loss_by_noise(run: Run) -> dict[str, float | None]:
    """The validation loss of the averaged weights, in all and by log-SNR."""
    from sde_score.run.train import validation_batches
    from sde_score.training import ValidationLoss

    objective = build_objective(run.config, run.sde)
    validation = ValidationLoss(
        objective,
        validation_batches(run.config, run.data),
        log_snr=noise_measure(run.sde),
        prepare=run.scaler.encode,
        seed=run.config.seed,
    )
    values = validation.evaluate(run.model)
    return {k: None if v is None or not math.isfinite(v) else v for k, v in values.items()}
