"""Parameterisations: whatever the network predicts, the noise, the score and the posterior mean come out the same."""

import pytest
import torch

from sde_score.models.parameterization import PARAMETERIZATIONS
from sde_score.models.score_model import ScoreModel
from sde_score.sdes import SDES
from sde_score.tensors import expand_like

KINDS = ["ve", "vp", "subvp", "cosine", "edm"]
DATA = 0.5


def setup(kind, dtype=torch.float64, shape=(64, 3)):
    sde = SDES.build(kind)
    generator = torch.Generator().manual_seed(0)
    x0, z = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    t = torch.linspace(sde.t_min * 2, sde.T, shape[0], dtype=dtype)
    m, std = (expand_like(c, x0) for c in sde.marginal_coeffs(t))
    return sde, x0, z, t, m, std, m * x0 + std * z


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["eps", "x0", "v", "score", "edm"])
def test_the_target_of_each_gives_back_the_noise(kind, name):
    sde, x0, z, t, m, std, x = setup(kind)
    radius, sigma = torch.sqrt(m**2 + std**2), std / m
    target = {
        "eps": z,
        "x0": x0,
        "v": (m * z - std * x0) / radius,
        "score": -z / std,
        # D = c_skip y + c_out F must equal x0 (Karras et al. 2022, eq. 7)
        "edm": (x0 - DATA**2 / (sigma**2 + DATA**2) * x / m) * torch.sqrt(sigma**2 + DATA**2) / (sigma * DATA),
    }[name]
    seen = []

    class Network(torch.nn.Module):
        def forward(self, x, label):
            seen.append((x, label))
            return target

    model = ScoreModel(Network(), sde, name)
    assert torch.allclose(model.eps(x, t), z, atol=1e-8)
    assert torch.allclose(model(x, t), -z / std, rtol=1e-7)
    assert torch.allclose(model.denoise(x, t), x0, atol=1e-6 * float((std / m).max()))
    assert torch.allclose(
        seen[0][1], torch.log(std / m).flatten(0)[:: 1 if std.shape[1] == 1 else 3][: len(t)], atol=1e-9
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["eps", "x0", "v", "edm"])
def test_network_input_has_unit_variance(kind, name):
    # data of variance sigma_data²: 20 000 numbers per time, standard error of the variance 1 %, bound at five of it
    sde = SDES.build(kind)
    sizes = []

    class Network(torch.nn.Module):
        def forward(self, x, label):
            sizes.append(x.var())
            return x

    model = ScoreModel(Network(), sde, f"{name}(sigma_data={DATA})")
    generator = torch.Generator().manual_seed(1)
    for share in (0.02, 0.4, 1.0):
        t = torch.full((4000,), share * sde.T)
        mean, std = sde.marginal_prob(DATA * torch.randn(4000, 5, generator=generator), t)
        model.eps(mean + std * torch.randn(4000, 5, generator=generator), t)
    assert all(abs(float(size) - 1) < 0.05 for size in sizes)


def test_float32_keeps_its_precision_down_to_t_min():
    # eps, v and edm divide no nearly equal numbers: float32 and float64 agree to rounding, also at the smallest time
    for kind in ("vp", "ve", "edm"):
        sde = SDES.build(kind)
        x = torch.randn(8, 4)
        t = torch.full((8,), sde.t_min)
        for name in ("eps", "v", "edm"):
            model = ScoreModel(_Tanh(), sde, name)
            exact = model.eps(x.double(), t.double())
            assert float((model.eps(x, t) - exact).abs().max()) < 1e-5, (kind, name)


class _Tanh(torch.nn.Module):
    def forward(self, x, label, y=None):
        out = torch.tanh(x)
        return out if y is None else out + expand_like(y.to(x), x)


@pytest.mark.parametrize("name", ["score(c_noise='sigma')", "smld"])
def test_a_network_that_gives_the_score_is_taken_at_its_word(name):
    """To the last bit: not by way of ε̂, whose product and quotient with std would round twice."""
    sde, _, _, t, _, _, x = setup("ve", dtype=torch.float32)
    model = ScoreModel(network := torch.nn.Module(), sde, name)
    network.forward = lambda x, label: torch.sin(3 * x) + label[:, None]
    assert torch.equal(model(x, t), network(x, model.parameterization.c_noise(t)))


def test_conditions_reach_the_network_and_can_be_bound():
    model = ScoreModel(_Tanh(), SDES.build("vp"), "eps")
    x, t, y = torch.randn(4, 2), torch.rand(4) + 0.1, torch.arange(4)
    assert torch.equal(model.score_fn(y=y)(x, t), model(x, t, y=y))
    assert not torch.equal(model(x, t, y=y), model(x, t))
    assert torch.equal(model.score_fn(y=y).select([2, 0])(x[[2, 0]], t[[2, 0]]), model(x, t, y=y)[[2, 0]])


def test_wrong_shapes_are_named():
    model = ScoreModel(_Tanh(), SDES.build("vp"), "eps")
    with pytest.raises(ValueError, match="one time per sample"):
        model(torch.randn(4, 2), torch.tensor(0.5))

    class Cut(torch.nn.Module):
        def forward(self, x, label):
            return x[:, :1]

    with pytest.raises(ValueError, match="network returned shape"):
        ScoreModel(Cut(), SDES.build("vp"))(torch.randn(4, 2), torch.rand(4))
    with pytest.raises(ValueError, match="Did you mean 'log_sigma'"):
        PARAMETERIZATIONS.build("eps(c_noise='logsigma')", SDES.build("vp"))
    with pytest.raises(ValueError, match="sigma_data"):
        PARAMETERIZATIONS.build("edm(sigma_data=0.)", SDES.build("vp"))
