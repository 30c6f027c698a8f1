"""A codec of the user's own: trained, sampled from, and asked for likelihoods in model space and in data units."""

import json
import math
from pathlib import Path

import pytest
import torch

import sde_score
from sde_score.config import load_config
from sde_score.data import CODECS, Scaler, load_codec, load_dataset
from sde_score.likelihood import log_likelihood
from sde_score.tensors import SampleNoise
from sde_score.training import load_checkpoint

TOY = Path(__file__).resolve().parents[1] / "outside" / "toy_codec.py"


@pytest.fixture
def trained(digits_config, tmp_path, fresh_registries):
    def train(codec, **sections):
        config = load_config(str(digits_config))
        config.data.codec = codec
        return sde_score.train(
            config,
            workdir=tmp_path / "run",
            plugins=(str(TOY),),
            model={"name": "mlp(width=16, blocks=1)"},
            training={"n_iters": 5, "snapshot_freq": 5, "eval_freq": 5},
            **sections,
        )

    return train


def test_it_is_short():
    assert len(TOY.read_text().splitlines()) <= 40


def test_a_projection_trains_samples_in_data_units_and_has_a_density_in_model_space_only(trained, tmp_path):
    run = trained("principal(size=16)", likelihood={"trace": "exact", "solver": "rk4(steps=6)"})
    assert run.codec.shape == (16,) and run.info.shape == (1, 8, 8)
    samples = run.sample(5)
    assert samples.levels.shape == (5, 1, 8, 8) and samples.levels.dtype == torch.uint8 and samples.levels.max() <= 16
    assert (tmp_path / "run" / "samples" / "step_00000005.png").is_file()
    with pytest.raises(ValueError, match=r"'principal\(size=16\)' is no bijection.*--config.likelihood.space=model"):
        run.likelihood(num=4)
    found = run.likelihood(num=4, space="model")
    assert math.isfinite(found["nats"]["mean"]) and "bits_per_dim" not in found
    assert json.loads(Path(found["file"]).read_text())["space"] == "model" and "_model_" in found["file"]
    # the checkpoint alone carries the weights of the codec
    again = load_codec("principal", load_checkpoint(tmp_path / "run").codec)
    assert torch.equal(again.axes, run.codec.axes)


def test_an_invertible_one_has_the_density_that_the_change_of_variables_gives(trained):
    """log p(u) = log p(z) + log |det dz/du|, the determinant by autodiff; and bits/dim from it by hand."""
    run = trained("principal(size=64)", likelihood={"trace": "exact", "solver": "rk4(steps=6)"})
    num, seed = 4, 3
    found = run.likelihood(num=num, seed=seed)
    noise = SampleNoise((seed, 0), range(num))
    z = run.codec.encode(run.data.test[range(num)].x, noise)
    logp = log_likelihood(run.sde, run.score_fn(), z, trace="exact", solver="rk4(steps=6)").logp.double()
    # levels go in as they are, (k + U)/17: so the derivative of `decode`, inverted
    jacobian = torch.autograd.functional.jacobian(lambda z: run.codec.decode(z), z[:1].double()).reshape(64, 64)
    nats = logp - torch.linalg.slogdet(jacobian).logabsdet
    assert found["nats"]["mean"] == pytest.approx(float(nats.mean()), abs=1e-3)  # float32
    bits = -(nats - 64 * math.log(17)) / (64 * math.log(2))
    assert found["bits_per_dim"]["mean"] == pytest.approx(float(bits.mean()), abs=1e-4)
    in_model_space = run.likelihood(num=num, seed=seed, space="model")["nats"]["mean"]
    assert in_model_space == pytest.approx(float(logp.mean()), abs=1e-4)


def test_decoding_undoes_encoding(fresh_registries):
    import importlib.util

    spec = importlib.util.spec_from_file_location("toy_codec", TOY)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    digits = load_dataset("digits")
    x = digits.test[:9].x
    whole = CODECS.build("principal(size=64)", digits, centered=True)
    assert torch.equal(whole.to_levels(whole.encode(x)), x)
    assert torch.equal(whole.to_levels(whole.encode(x, SampleNoise(0, range(9)))), x)
    with pytest.raises(ValueError, match="no argument 'sise'.*'size'"):
        CODECS.build("principal(sise=3)", digits)
    assert "size=16" in CODECS.signature("principal") and "data" not in CODECS.signature("principal")


def test_the_codec_is_named_in_a_configuration(digits_config, tmp_path):
    config = load_config(str(digits_config))
    config.data.codec = "scaler(centered=False)"
    run = sde_score.train(config, workdir=tmp_path / "run", training={"n_iters": 1})
    assert isinstance(run.codec, Scaler) and not run.codec.centered
    with pytest.raises(ValueError, match="config.data.codec: Unknown codec 'scalar'.*'scaler'"):
        config.data.codec = "scalar"
        sde_score.train(config, workdir=tmp_path / "other")
