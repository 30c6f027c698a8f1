"""The 39 published configurations.

    sde-score train --config=published:ve/cifar10_ncsnpp_continuous --workdir=...

The facts and the published results are in `sde_score/published.py`; `get_config` puts them into our format. Samplers,
objectives, c_noise and warm-up are the published ones. `config.published` holds the published results: numbers of the
authors' code, not of ours. The authors report 0.56 s per training step of ve/cifar10_ncsnpp_continuous on four V100,
more than a week in all. FFHQ and CelebA-HQ are folders of images: give their place as config.data.name.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from sde_score.config import make_config
from sde_score.published import PUBLISHED, network_spec
from sde_score.registry import SettingError, suggest

__all__ = ["PUBLISHED", "get_config", "sections"]


def get_config(name: str = "ve/cifar10_ncsnpp_continuous") -> ConfigDict:
    """The published configuration `name` in our format. Raises `ValueError` with the nearest known name."""
    if name not in PUBLISHED:
        raise SettingError(f"Unknown published configuration {name!r}.{suggest(name, PUBLISHED)}")
    config = make_config(**sections(PUBLISHED[name]))
    config.published = ConfigDict({"name": name, "results": dict(PUBLISHED[name]["results"])})
    return config


def sections(facts: dict[str, Any]) -> dict[str, Any]:
    """One configuration in our sections: the only place that knows both vocabularies."""
    ve, n = facts["sde"] == "ve", facts["num_scales"]
    first, last = ("sigma_min", "sigma_max") if ve else ("beta_min", "beta_max")
    reduce = "mean" if facts["reduce_mean"] else "half_sum"
    if facts["continuous"]:
        parameterization = "score(c_noise='sigma')" if ve else "eps(c_noise='999t', scale_input=False)"
        weighting = "likelihood" if facts["likelihood_weighting"] else "sigma2"
        objective = f"dsm(weighting={weighting!r}, reduce={reduce!r})"
    else:
        parameterization = f"smld(n={n})" if ve else f"ddpm(n={n})"
        objective = f"discrete_dsm(n={n}, reduce={reduce!r})"
    corrector = facts["corrector"]
    if corrector != "none":
        corrector = f"{corrector}(snr={facts['snr']!r}, n_steps={facts['n_steps']})"
    return {
        "seed": facts["seed"],
        "sde": f"{facts['sde']}({first}={facts[first]!r}, {last}={facts[last]!r})",
        "model": {"name": network_spec(facts), "parameterization": parameterization, "ema_rate": facts["ema_rate"]},
        "data": {
            "name": _data_name(facts),
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
            "checkpoint_freq": facts["preemption_freq"],
        },
        "optim": {
            **{key: facts[key] for key in ("lr", "beta1", "eps", "weight_decay", "warmup", "grad_clip")},
            "published_warmup": facts["warmup"] > 0,
        },
        "sampling": {
            "method": "published",
            "predictor": facts["predictor"],
            "corrector": corrector,
            "steps": n,
            "t_min": 1e-5 if ve else 1e-3,
            # Corrector-only samplers never removed their last noise, although asked to: the posterior mean does.
            "denoise": "tweedie" if facts["predictor"] == "none" else "mean",
        },
        "evaluation": {"num_samples": facts["num_samples"]},
    }


def _data_name(facts: dict[str, Any]) -> str:
    if facts["dataset"] in ("ffhq", "celebahq"):
        return f"datasets/{facts['dataset']}"  # a folder of images
    return f"lsun(category={facts['category']!r})" if facts["dataset"] == "lsun" else facts["dataset"]
