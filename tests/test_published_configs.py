"""The table of published configurations against the originals' values."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from configs.published import get_config, sections
from sde_score.config import from_json, make_config, to_json
from sde_score.data import Condition, DataInfo
from sde_score.likelihood import log_likelihood
from sde_score.models import MODELS, PARAMETERIZATIONS
from sde_score.objectives import OBJECTIVES
from sde_score.published import PUBLISHED, network_arguments
from sde_score.run.build import build_model, build_objective, build_sampler
from sde_score.sampling import SAMPLERS
from sde_score.sdes import SDES
from sde_score.tensors import GeneratorNoise

ROOT = Path(__file__).resolve().parents[1]

# our key -> the original one
ORIGINAL_KEYS = {
    "num_scales": "model.num_scales", "continuous": "training.continuous", "image_size": "data.image_size",
    "channels": "data.num_channels", "centered": "data.centered", "random_flip": "data.random_flip",
    "category": "data.category", "uniform_dequantization": "data.uniform_dequantization",
    "batch_size": "training.batch_size", "n_iters": "training.n_iters", "reduce_mean": "training.reduce_mean",
    "likelihood_weighting": "training.likelihood_weighting", "ema_rate": "model.ema_rate",
    "log_freq": "training.log_freq", "eval_freq": "training.eval_freq", "snapshot_freq": "training.snapshot_freq",
    "preemption_freq": "training.snapshot_freq_for_preemption", "lr": "optim.lr", "beta1": "optim.beta1",
    "eps": "optim.eps", "weight_decay": "optim.weight_decay", "warmup": "optim.warmup",
    "grad_clip": "optim.grad_clip", "predictor": "sampling.predictor", "corrector": "sampling.corrector",
    "snr": "sampling.snr", "n_steps": "sampling.n_steps_each", "noise_removal": "sampling.noise_removal",
    "eval_batch_size": "eval.batch_size", "begin_ckpt": "eval.begin_ckpt", "end_ckpt": "eval.end_ckpt",
    "num_samples": "eval.num_samples", "model": "model.name", "nf": "model.nf", "ch_mult": "model.ch_mult",
    "num_res_blocks": "model.num_res_blocks", "attn_resolutions": "model.attn_resolutions",
    "dropout": "model.dropout", "nonlinearity": "model.nonlinearity", "resamp_with_conv": "model.resamp_with_conv",
    "conditional": "model.conditional", "scale_by_sigma": "model.scale_by_sigma",
    "embedding_type": "model.embedding_type", "fir": "model.fir", "fir_kernel": "model.fir_kernel",
    "skip_rescale": "model.skip_rescale", "resblock_type": "model.resblock_type", "progressive": "model.progressive",
    "progressive_input": "model.progressive_input", "progressive_combine": "model.progressive_combine",
    "init_scale": "model.init_scale",
}  # fmt: skip

# (configuration, our key) pairs where we differ on purpose; see the head of sde_score/published.py
CORRECTED = {("ve/ncsnv2/bedroom", "continuous")}


@pytest.fixture(scope="module")
def originals(golden_dir):
    with gzip.open(golden_dir / "layouts.json.gz") as file:
        return {name: entry["config"] for name, entry in json.load(file)["configs"].items()}


def look_up(config, dotted, default=None):
    section, key = dotted.split(".")
    value = config[section].get(key, default)
    return tuple(value) if isinstance(value, list) else value


def test_the_names_are_the_39_published_ones(originals):
    assert set(PUBLISHED) == set(originals) and len(PUBLISHED) == 39


@pytest.mark.parametrize("name", PUBLISHED)
def test_facts_equal_the_original_values(originals, name):
    facts, original = PUBLISHED[name], originals[name]
    for key, dotted in ORIGINAL_KEYS.items():
        if (name, key) in CORRECTED or key not in facts:
            continue
        if key == "embedding_type" and facts["model"] == "ddpm":
            continue  # written there, never read
        expected = look_up(original, dotted)
        assert facts[key] == expected, (key, facts[key], expected)
    assert facts["seed"] == int(original["seed"])
    assert facts["dataset"] == original["data"]["dataset"].lower()
    sde = original["training"].get("sde", "vesde")  # ve/ncsn/celeba sets none
    assert facts["sde"] == sde.removesuffix("sde")
    process = ("sigma_min", "sigma_max") if facts["sde"] == "ve" else ("beta_min", "beta_max")
    for key in process:
        assert facts[key] == original["model"][key]
    if facts["embedding_type" if "embedding_type" in facts else "model"] == "fourier":
        assert facts["fourier_scale"] == original["model"]["fourier_scale"]


def test_every_network_key_of_an_original_is_in_the_table(originals):
    ignored = {"normalization", "attention_type", "conv_size", "sigma_begin", "interpolation", "num_classes"}
    ours = {dotted.split(".")[1] for dotted in ORIGINAL_KEYS.values()} | {"fourier_scale"}
    ours |= {"sigma_min", "sigma_max", "beta_min", "beta_max"}
    for name, original in originals.items():
        for key in set(original["model"]) - ignored - ours:
            raise AssertionError(f"{name}: model.{key} is missing from the table")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_configuration_names_components_that_exist(name):
    config = get_config(name)
    sde = SDES.build(config.sde)
    objective = OBJECTIVES.build(config.training.objective, sde)
    parameterization = PARAMETERIZATIONS.build(config.model.parameterization, sde)
    assert getattr(objective, "n", None) == getattr(parameterization, "n", None)
    sampler = SAMPLERS.build(
        config.sampling.method,
        sde,
        predictor=config.sampling.predictor,
        corrector=config.sampling.corrector,
        steps=config.sampling.steps,
        times=config.sampling.times,
        t_min=config.sampling.t_min,
        denoise=config.sampling.denoise,
    )
    assert len(sampler.grid) == PUBLISHED[name]["num_scales"]
    assert from_json(to_json(config)).to_dict() == config.to_dict()  # a checkpoint stores it


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_network_builds_as_the_run_would_build_it(name):
    """By the spec and by the facts, on the device without memory."""
    facts, config = PUBLISHED[name], get_config(name)
    shape = (3, facts["image_size"], facts["image_size"])
    info = DataInfo("images", shape, levels=256, conditions={"y": Condition(num=10)})
    with torch.device("meta"):
        network = build_model(config, info, SDES.build(config.sde)).network
        name, arguments = network_arguments(facts)
        again = MODELS.get(name)(**arguments)
    shapes = [{key: tensor.shape for key, tensor in net.state_dict().items()} for net in (network, again)]
    assert shapes[0] == shapes[1] and network.num_classes is None
    assert network.centered == facts["centered"]


def test_corrections_of_the_originals():
    assert PUBLISHED["ve/ncsn/celeba"]["sde"] == "ve"
    assert not PUBLISHED["ve/ncsnv2/bedroom"]["continuous"]
    assert get_config("ve/ncsnv2/bedroom").training.objective.startswith("discrete_dsm")
    assert get_config("vp/ddpm/celebahq").data.image_size == 256
    assert PUBLISHED["ve/ffhq_ncsnpp_continuous"]["bpd_dataset"] == "test"
    assert get_config("ve/ncsn/cifar10").sampling.denoise == "tweedie"


def test_unknown_name():
    with pytest.raises(ValueError, match="Did you mean 've/cifar10_ncsnpp'"):
        get_config("ve/cifar10_ncsnp")


def test_published_results_are_those_of_the_release():
    assert len([facts for facts in PUBLISHED.values() if facts["results"]]) == 11
    assert PUBLISHED["ve/cifar10_ncsnpp_deep_continuous"]["results"] == {"fid": 2.20, "inception_score": 9.89}
    assert PUBLISHED["subvp/cifar10_ddpmpp_deep_continuous"]["results"]["bpd"] == 2.99


def test_configs_do_not_import_torch():
    code = "import sys, configs.published as c; c.get_config(); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "False"


def scaled_down(facts):
    """The same options with few channels, blocks, noise levels and pixels."""
    small = {**facts, "num_scales": 25, "nf": 4, "channels": 2, "dropout": 0.0}  # a DDPM chain needs n > beta_max
    small["n_steps"] = min(facts["n_steps"], 3)
    if "ch_mult" in facts:
        levels = len(facts["ch_mult"])
        attended = [i for i in range(levels) if facts["image_size"] >> i in facts["attn_resolutions"]]
        size = 2 ** max(3, levels - 1)
        small |= {"ch_mult": tuple(min(m, 2) for m in facts["ch_mult"]), "num_res_blocks": 1, "image_size": size}
        small["attn_resolutions"] = tuple(size >> i for i in attended)
    else:
        small["image_size"] = 8
    return small


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_scaled_down_version_trains_samples_and_has_a_likelihood(name):
    facts = scaled_down(PUBLISHED[name])
    config = make_config(**sections(facts))
    shape = (2, facts["image_size"], facts["image_size"])
    model = build_model(config, DataInfo("images", shape, levels=256))
    x0 = torch.rand(2, *shape)
    objective = build_objective(config, model.sde)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    before = [p.detach().clone() for p in model.parameters()]
    loss = objective(model, x0, noise=GeneratorNoise(torch.Generator().manual_seed(0))).mean()
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters()))

    config.sampling.steps = facts["num_scales"]  # the published steps need the published grid
    sampler = build_sampler(config, model.sde)
    x_T = model.sde.prior_sampling(x0.shape, noise=torch.randn_like)
    with torch.no_grad():
        result = sampler(model, x_T)
    assert result.x.shape == x0.shape and torch.isfinite(result.x).all()

    if facts["continuous"]:
        found = log_likelihood(model.sde, model.score_fn(), x0, solver="euler(steps=2)", trace="hutchinson(probes=1)")
        assert found.logp.shape == (2,) and torch.isfinite(found.logp).all()
