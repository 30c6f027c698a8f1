"""The 39 published configurations.

    python tools/train.py --config=configs/published.py:ve/cifar10_ncsnpp_continuous --workdir=...

The facts and the published results are in `sde_score/published.py`; `get_config` puts them into our format. Samplers,
objectives and labels are the published ones; `published_results` are numbers of the authors' code, not of ours. The
authors report 0.56 s per training step of ve/cifar10_ncsnpp_continuous on four V100: more than a week in all.
"""

from __future__ import annotations

from typing import Any

import ml_collections

from sde_score.published import PUBLISHED, network_spec

__all__ = ["PUBLISHED", "get_config", "sections"]


def get_config(name: str = "ve/cifar10_ncsnpp_continuous") -> ml_collections.ConfigDict:
    """The published configuration `name` in our format."""
    if name not in PUBLISHED:
        from sde_score.registry import suggest

        raise ValueError(f"Unknown published configuration {name!r}.{suggest(name, PUBLISHED)}")
    config = ml_collections.ConfigDict(sections(PUBLISHED[name]))
    config.name = name
    return config


def sections(facts: dict[str, Any]) -> dict[str, Any]:
    """One configuration in our sections: the only place that knows both vocabularies."""
    ve, n = facts["sde"] == "ve", facts["num_scales"]
    first, last = ("sigma_min", "sigma_max") if ve else ("beta_min", "beta_max")
    reduce = "mean" if facts["reduce_mean"] else "half_sum"
    if facts["continuous"]:
        parameterization = "score(label='sigma')" if ve else "eps(label='999t', scale_input=False)"
        weighting = "likelihood" if facts["likelihood_weighting"] else "sigma2"
        objective = f"dsm(weighting={weighting!r}, reduce={reduce!r})"
    else:
        parameterization = f"smld(n={n})" if ve else f"ddpm(n={n})"
        objective = f"discrete_dsm(n={n}, reduce={reduce!r})"
    data = f"{facts['dataset']}(category={facts['category']!r})" if facts["category"] else facts["dataset"]
    return {
        "seed": facts["seed"],
        "sde": f"{facts['sde']}({first}={facts[first]!r}, {last}={facts[last]!r})",
        "model": {
            "name": network_spec(facts),
            "parameterization": parameterization,
            "ema_rate": facts["ema_rate"],
        },
        "data": {
            "name": data,
            "image_size": facts["image_size"],
            "centered": facts["centered"],
            "random_flip": facts["random_flip"],
            "uniform_dequantization": facts["uniform_dequantization"],
        },
        "training": {
            "objective": objective,
            "batch_size": facts["batch_size"],
            "n_iters": facts["n_iters"],
            "log_freq": facts["log_freq"],
            "eval_freq": facts["eval_freq"],
            "snapshot_freq": facts["snapshot_freq"],
            "preemption_freq": facts["preemption_freq"],
        },
        "optim": {key: facts[key] for key in ("lr", "beta1", "eps", "weight_decay", "warmup", "grad_clip")},
        "sampling": {
            "method": "pc",
            "predictor": _predictor(facts),
            "corrector": _corrector(facts),
            "steps": n,
            "times": "published",
            "t_min": 1e-5 if ve else 1e-3,
            # Corrector-only samplers never removed their noise, although asked to: the posterior mean does.
            "denoise": "tweedie" if facts["predictor"] == "none" else "mean",
        },
        "evaluation": {
            "batch_size": facts["eval_batch_size"],
            "num_samples": facts["num_samples"],
            "begin_ckpt": facts["begin_ckpt"],
            "end_ckpt": facts["end_ckpt"],
            "bpd_dataset": facts["bpd_dataset"],
        },
        "published_results": dict(facts["results"]),
    }


def _predictor(facts: dict[str, Any]) -> str:
    return "none" if facts["predictor"] == "none" else f"{facts['predictor']}(chain={facts['num_scales']})"


def _corrector(facts: dict[str, Any]) -> str:
    if facts["corrector"] == "none":
        return "none"
    return f"{facts['corrector']}(snr={facts['snr']!r}, n_steps={facts['n_steps']})"
