"""SDEs with diagonal coefficients, and SDEs that are not linear, by flags alone."""

import json

import pytest

OTHERS = '''
import torch
from sde_score.sdes import SDE, SDES, LinearSDE
from sde_score.tensors import expand_like


@SDES.register("two_rates")
class TwoRates(LinearSDE):
    """A rate for each of two coordinates."""

    def drift_coeff(self, t):
        return -torch.stack([1 + 4 * t, 2 + 8 * t], 1)

    def diffusion_coeff(self, t):
        return torch.sqrt(torch.stack([2 + 8 * t, 4 + 16 * t], 1))


@SDES.register("general")
class General(SDE):
    """dx = 3 dw, written without the library's linear classes."""

    def drift(self, x, t):
        return torch.zeros_like(x)

    def diffusion(self, x, t):
        return torch.full_like(expand_like(t, x), 3.0)

    def marginal_prob(self, x0, t):
        return x0, 3 * torch.sqrt(expand_like(t, x0))

    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        return 3 * noise(torch.empty(shape, device=device, dtype=dtype))

    def prior_logp(self, x):
        return torch.distributions.Normal(0.0, 3.0).log_prob(x).sum(1)
'''


@pytest.fixture
def plugin(tmp_path, fresh_registries):
    path = tmp_path / "others.py"
    path.write_text(OTHERS)
    return path


def test_diagonal_sde(cli, plugin, toy_config, tmp_path):
    base = [f"--config={toy_config}", f"--plugin={plugin}", "--config.sde=two_rates"]
    for number, times in enumerate(("mixed", "importance", "uniform")):
        workdir = tmp_path / str(number)
        answer = cli("train", *base, f"--workdir={workdir}", f"--config.training.objective=dsm(times='{times}')")
        assert answer.code == 0, answer.err
    flags = [f"--workdir={workdir}"]
    for times in ("karras", "log_snr", "uniform"):
        answer = cli("sample", *flags, "--num=4", f"--config.sampling.times={times}")
        assert answer.code == 0, answer.err
    answer = cli("likelihood", *flags, "--num=8", "--json")
    assert answer.code == 0 and json.loads(answer.out)["num"] == 8


def test_general_sde(cli, plugin, toy_config, tmp_path):
    workdir = tmp_path / "run"
    base = [f"--config={toy_config}", f"--plugin={plugin}", "--config.sde=general", f"--workdir={workdir}"]
    answer = cli("train", *base)
    assert answer.code != 0 and "euler_maruyama" in answer.err or "denoise='mean'" in answer.err
    fitting = [
        "--config.model.parameterization=eps(c_noise='t', scale_input=False)",
        "--config.sampling.predictor=euler_maruyama",
        "--config.sampling.denoise=mean",
    ]
    answer = cli("train", *base, *fitting)
    assert answer.code == 0, answer.err
    assert cli("sample", f"--workdir={workdir}", "--num=4").code == 0
    answer = cli("likelihood", f"--workdir={workdir}", "--num=8")
    assert answer.code == 0, answer.err
