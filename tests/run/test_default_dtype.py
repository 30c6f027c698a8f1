"""`torch.set_default_dtype` is the user's: whatever it says, a run computes the same numbers."""

import pytest
import torch

import sde_score
from sde_score.config import make_config
from sde_score.metrics import FEATURES
from sde_score.sdes import SDES
from sde_score.tensors import default_dtype

TINY = {
    "digits": dict(
        data={"name": "digits"},
        model={"name": "unet(width=8, mult=(1,), attention=())", "parameterization": "edm(sigma_data=0.7)",
               "class_conditional": True},
    ),
    "two_moons": dict(
        data={"name": "two_moons(n_train=64, n_test=32)"}, model={"name": "mlp(width=8, blocks=1)"}
    ),
    "ncsnpp": dict(
        data={"name": "digits"}, sde="ve(sigma_max=5.)",
        model={"name": "ncsnpp(nf=8, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(4,), fir=True)",
               "parameterization": "score(c_noise='sigma')"},
    ),
}  # fmt: skip


def numbers(name, workdir):
    """Weights, samples by three methods, likelihoods: all that a run computes."""
    settings = TINY[name]
    config = make_config(
        **{"sde": "vp", **settings},
        training={"batch_size": 8, "n_iters": 2, "eval_freq": 2, "eval_samples": 8, "snapshot_freq": 0,
                  "snapshot_samples": 2, "checkpoint_freq": 2, "tensorboard": False},
        sampling={"steps": 3, "batch_size": 4, "corrector": "langevin(snr=0.1)"},
        likelihood={"batch_size": 4, "solver": "rk4(steps=2)"},
    )  # fmt: skip
    sde_score.train(config, workdir=workdir, device="cpu")
    run = sde_score.load(workdir)
    found = dict(run.model.state_dict())
    for method in ("pc", "ode", "sde"):
        sampling = {"solver": "heun(steps=2)"} if method == "ode" else {}
        found[method] = run.sample(4, seed=1, sampler=method, **sampling).x
    x = run.data.test[range(4)]
    found["log_prob"] = run.log_prob(x.x, labels=x.y.tolist() if name == "digits" else None).values
    return found


@pytest.mark.parametrize("name", TINY)
def test_a_run_is_the_same_under_any_default(name, tmp_path):
    single = numbers(name, tmp_path / "single")
    with default_dtype(torch.float64):
        double = numbers(name, tmp_path / "double")
    assert single.keys() == double.keys()
    for key, value in single.items():
        assert double[key].dtype == value.dtype and torch.equal(double[key], value), key


def test_parts_without_a_run_are_the_same_under_any_default():
    def numbers():
        x = torch.linspace(0, 1, 2 * 64, dtype=torch.float32).view(2, 1, 8, 8)
        conv = FEATURES.build("random_conv(width=4)")
        chains = [SDES.build(name).chain(30) for name in ("vp", "ve")]
        tables = [chain.marginal(torch.arange(3)) for chain in chains]
        return [conv(x), *(value for table in tables for value in table)]

    single = numbers()
    with default_dtype(torch.float64):
        double = numbers()
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(single, double))
