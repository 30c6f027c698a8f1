"""The verbs of a run on samples at hand, held against laws that are known, in the units of the data."""

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import sde_score
from sde_score.config import make_config
from sde_score.data import DataInfo, Scaler, from_arrays
from sde_score.models import ScoreModel
from sde_score.run.points import great_circle
from sde_score.run.run import Run
from sde_score.sampling import PCSampler
from sde_score.sdes import SDES

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
MEAN, STD = torch.tensor([50.0, -3.0], dtype=torch.float64), torch.tensor([20.0, 0.1], dtype=torch.float64)


class Exact(torch.nn.Module):
    """The network of N(0, I) in model space: eps = std x / (m² + std²), for the parameterisation eps."""

    def __init__(self, sde):
        super().__init__()
        self.sde, self.nothing = sde, torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, c_noise):
        t = c_noise / 999
        m, std = self.sde.marginal_prob(torch.ones_like(x), t)
        return std * x / (m**2 + std**2) + 0 * self.nothing


def exact_run(spec: str, folder) -> Run:
    """A run whose model is exact for data N(MEAN, STD²), which the scaler brings to N(0, I)."""
    sde = SDES.build(spec)
    config = make_config(
        sde=spec,
        likelihood={"solver": "dopri5(rtol=1e-6, atol=1e-6)", "trace": "exact", "batch_size": 3},
        sampling={"steps": 30},
    )
    info = DataInfo("gaussian", (2,))
    codec = Scaler((2,), mean=MEAN, std=STD)
    model = ScoreModel(Exact(sde), sde, "eps(c_noise='999t', scale_input=False)")
    return Run(config, info, codec, sde, model, folder, 7, torch.device("cpu"))


@pytest.fixture
def gaussian(tmp_path) -> Run:
    return exact_run("vp(t_min=1e-5)", tmp_path)


def truth() -> torch.distributions.Normal:
    return torch.distributions.Normal(MEAN, STD)


@pytest.fixture
def x() -> torch.Tensor:
    return (MEAN + STD * torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).float()


def test_log_prob_is_that_of_the_data_in_their_units(gaussian, x):
    found = gaussian.log_prob(x)
    torch.testing.assert_close(found.values, truth().log_prob(x.double()).sum(1), rtol=0, atol=1e-3)
    assert found.bits_per_dim is None and found.std_error.tolist() == [0] * 7 and (found.nfe > 5).all()
    again = gaussian.log_prob(np.asarray(x))  # arrays are taken as well
    assert torch.equal(found.values, again.values)
    one = gaussian.log_prob(x[3:4])
    torch.testing.assert_close(one.values, found.values[3:4], rtol=0, atol=1e-4)


def test_the_standard_error_of_log_prob_is_honest(x, tmp_path):
    """Hutchinson's probes: for a Jacobian c·I Rademacher ones are exact, Gaussian ones scatter by as much as said."""
    run = exact_run("ve(sigma_max=10.)", tmp_path)  # under vp the flow of N(0, I) has no divergence
    trace, exact = "hutchinson(probes=6, kind='gaussian')", run.log_prob(x).values
    values = [run.log_prob(x, trace=trace, seed=s) for s in range(12)]
    z = torch.stack([(v.values - exact) / v.std_error for v in values])
    # Student's t with 5 degrees of freedom: variance 5/3, its mean over 84 values of independent probes; 4 sigma
    assert 0.7 < float(z.square().mean()) < 4.0
    assert run.log_prob(x, trace="hutchinson(probes=1)").std_error is None


def test_score_and_denoise_in_the_units_of_the_data(gaussian, x):
    t = 0.3
    m, std = (float(v) for v in gaussian.sde.marginal_coeffs(torch.tensor([t]))[:2])
    variance = (m**2 + std**2) * STD**2
    torch.testing.assert_close(gaussian.score(x, t).double(), -(x.double() - MEAN) / variance, rtol=1e-4, atol=1e-4)
    # E[z0 | z_t] = m z_t / (m² + std²)
    expected = MEAN + m / (m**2 + std**2) * (x.double() - MEAN)
    torch.testing.assert_close(gaussian.denoise(x, t).double(), expected, rtol=1e-5, atol=1e-4)
    times = torch.linspace(0.1, 0.9, 7)
    each = torch.cat([gaussian.score(x[i : i + 1], float(times[i])) for i in range(7)])
    torch.testing.assert_close(gaussian.score(x, times), each)
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        gaussian.score(x, 2.0)


def test_codes_go_there_and_back(gaussian, x):
    code = gaussian.encode(x)
    still = (x.double() - MEAN) / STD  # the flow of N(0, I) moves nothing
    torch.testing.assert_close(code.double(), still, rtol=0, atol=1e-4)
    back = gaussian.decode(code)
    torch.testing.assert_close(back.x.double(), x.double(), rtol=1e-5, atol=1e-3)
    assert back.facts["num"] == 7 and back.facts["step"] == 7


def test_an_interpolation_keeps_its_ends_and_the_norm(gaussian, x):
    way = gaussian.interpolate(x[0], x[1], 5).x.double()
    torch.testing.assert_close(way[[0, -1]], x[:2].double(), rtol=1e-5, atol=1e-3)
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    angles = torch.linspace(0, math.pi / 2, 5)
    torch.testing.assert_close(great_circle(a, b, 5), 3 * torch.stack([angles.cos(), angles.sin()], 1))
    torch.testing.assert_close(great_circle(a, 2 * a, 3)[:, 0], torch.tensor([3.0, 4.5, 6.0]))


def test_sample_takes_objects(gaussian):
    seen = []
    sampler = PCSampler(gaussian.sde, "reverse_diffusion", "none", steps=4)

    def first_is_the_mean(z, moment):
        return torch.cat([torch.zeros_like(z[:, :1]), z[:, 1:]], 1)

    found = gaussian.sample(6, sampler=sampler, constraint=first_is_the_mean, callback=seen.append, trajectory=True)
    assert len(seen) == 4 and found.facts["sampling"] == {"method": "PCSampler"}
    assert (found.x[:, 0] == 50).all() and found.x[:, 1].std() > 0
    assert found.trajectory.shape[1:] == (6, 2) and len(found.times) == len(found.trajectory)
    assert gaussian.sample(2, sampler="pc", steps=3).facts["sampling"]["steps"] == 3


def test_refusals_say_what_to_write(gaussian, x):
    with pytest.raises(ValueError, match=r"x\[None\]"):
        gaussian.log_prob(x[0])
    with pytest.raises(ValueError, match=r"first at index \(2, 1\): nan"):
        gaussian.log_prob(x.clone().index_put((torch.tensor(2), torch.tensor(1)), torch.tensor(float("nan"))))
    with pytest.raises(TypeError, match="run.log_prob"):
        gaussian.likelihood(x)
    with pytest.raises(ValueError, match="two ends"):
        gaussian.interpolate(x[0], x[1], 1)
    with pytest.raises(ValueError, match="not class-conditional"):
        gaussian.log_prob(x, labels=[0] * 7)
    assert repr(gaussian).startswith("Run(") and "step 7" in repr(gaussian) and len(repr(gaussian)) < 300


def test_grey_levels_have_probabilities(digits_run):
    run = sde_score.load(digits_run)
    k = run.data.test[range(5)].x
    found = run.log_prob(k, seed=3)
    assert found.std_error is None  # one pass does not know what the dequantisation does
    torch.testing.assert_close(found.bits_per_dim, -found.values / (64 * math.log(2)))
    same = run.likelihood("test", num=5, seed=3)
    assert found.bits_per_dim.mean().item() == pytest.approx(same["bits_per_dim"]["mean"], abs=1e-6)
    assert torch.equal(run.log_prob(k.float() / 16, seed=3).values, found.values)  # as `Samples.x` has them
    assert torch.equal(run.log_prob(k[:, 0].long(), seed=3).values, found.values)
    several = run.log_prob(k, repeats=3)
    assert (several.std_error > 0).all()
    with pytest.raises(ValueError, match="0 .. 16"):
        run.log_prob(k.float())
    with pytest.raises(ValueError, match="0 to 16"):
        run.log_prob(k.long() + 5)
    back = run.decode(run.encode(k, solver="dopri5"), solver="dopri5")
    assert (back.levels.int() - k.int()).abs().max() <= 1  # the solver's tolerance may cross the edge of a cell


def test_a_run_chosen_from_the_data(tmp_path, capsys):
    """train(data=x) alone: a configuration is chosen and said; the same call goes on with it."""
    x = 5 + 2 * torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    few = {"n_iters": 6}
    run = sde_score.train(data=x, workdir=tmp_path / "run", training=few)
    said = capsys.readouterr().err
    for word in ("300 rows of 3 numbers", "mlp", "vp(t_min=1e-4)", "steps", "mean 0 and deviation 1"):
        assert word in said
    assert run.step == 6 and run.config.likelihood.trace == "exact"
    assert sde_score.train(data=x, workdir=tmp_path / "run").step == 6
    with pytest.raises(ValueError, match="nothing to train on"):
        sde_score.train(workdir=tmp_path / "other")
    with pytest.raises(ValueError, match="minuts.*'minutes'"):
        sde_score.train(data=x, minuts=3)


def test_data_may_be_a_section_or_a_path(toy_config, tmp_path):
    few = {"n_iters": 2}
    run = sde_score.train(str(toy_config), workdir=tmp_path / "a", data={"name": "checkerboard"}, training=few)
    assert run.info.name == "checkerboard"
    path = tmp_path / "numbers.npy"
    np.save(path, np.random.default_rng(0).normal(size=(80, 4)).astype("float32"))
    run = sde_score.train(data=path, workdir=tmp_path / "b", training=few, sde="ve(sigma_max=10.)")
    assert run.config.data.name == str(path) and run.info.shape == (4,) and run.config.sde == "ve(sigma_max=10.)"


def test_classes_that_suffice_are_told(tmp_path):
    x, y = torch.randn(200, 2), torch.arange(200) % 4
    run = sde_score.train(data=(x, y), workdir=tmp_path / "run", training={"n_iters": 2})
    assert run.config.model.class_conditional and run.config.training.condition_dropout == 0.1
    alone, told = run.log_prob(x[:4]), run.log_prob(x[:4], labels=y[:4].tolist())
    assert torch.isfinite(alone.values).all() and torch.isfinite(told.values).all()
    assert from_arrays(x, y).info.num_classes == 4


def test_the_verbs_of_the_readme(digits_run, tmp_path, monkeypatch):
    (block,) = (b for b in re.findall(r"```py\n(.*?)```", README, flags=re.S) if "run.interpolate" in b)
    block, replaced = re.subn(r"run = sde_score.train\(.*\n", f"run = sde_score.load({str(digits_run)!r})\n", block)
    assert replaced == 1
    shutil.copytree(digits_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    exec(compile(block.replace(str(digits_run), "run").replace("steps=200", "steps=3"), "README", "exec"), {})
    assert (tmp_path / "grid.png").is_file() and (tmp_path / "between.png").is_file()
