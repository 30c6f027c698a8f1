"""The perceptron: any shape, conditioning, refusals, and a law it can learn in seconds."""

import pytest
import torch

from sde_score.models.mlp import MLP, MLPBlock
from sde_score.models.registry import MODELS
from sde_score.models.score_model import ScoreModel
from sde_score.objectives import OBJECTIVES
from sde_score.sdes import SDES
from sde_score.tensors import GeneratorNoise


def awake(net):
    with torch.no_grad():
        net.out.weight.normal_()
    return net


@pytest.mark.parametrize("shape", [(2,), (1,), (64,), (3, 4, 5)], ids=str)
def test_any_shape_and_every_parameter_learns(shape):
    net = awake(MODELS.build("mlp(width=16)", shape=shape, num_classes=2))
    x = torch.randn(3, *shape)
    out = net(x, torch.tensor([-5.0, 0.0, 5.0]), y=torch.tensor([0, 1, 2]))
    assert out.shape == x.shape
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("label", [torch.tensor([-6.0, 6.0]), torch.tensor([0.0, 999.0]), torch.tensor([1e-5, 1.0])])
def test_every_kind_of_label_is_told_apart(label):
    net = awake(MLP((2,)))
    out = net(torch.ones(2, 2), label)
    assert torch.isfinite(out).all() and (out[0] - out[1]).abs().max() > 1e-3


def test_an_untrained_network_gives_zero():
    assert not MLP((2,))(torch.randn(3, 2), torch.randn(3)).any()


def test_a_block_is_its_equation():
    """h + out(silu((1 + scale) inner(norm(h)) + shift)), and dropout acts before `out`."""
    block, h, cond = MLPBlock(6, 0.5).double(), torch.randn(4, 6).double(), torch.randn(4, 6).double()
    for linear in (block.inner, block.film, block.out):
        torch.nn.init.normal_(linear.weight)
    normed = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    scale, shift = (cond @ block.film.weight.T + block.film.bias).split(6, 1)
    inner = (1 + scale) * (normed @ block.inner.weight.T + block.inner.bias) + shift
    active = inner * torch.sigmoid(inner)
    torch.testing.assert_close(block.eval()(h, cond), h + active @ block.out.weight.T + block.out.bias)
    torch.nn.init.eye_(block.out.weight)
    torch.nn.init.constant_(block.out.bias, 5.0)
    branch = block.train()(h, cond) - h - 5
    dropped = branch.abs() < 1e-12
    assert dropped.any() and not dropped.all()
    torch.testing.assert_close(branch[~dropped], 2 * active[~dropped])


def test_the_head_is_its_equation_and_blocks_count():
    net = awake(MLP((3,), width=6, blocks=2)).double()
    assert len(net.blocks) == 2
    seen = []
    net.norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    out = net(torch.randn(4, 3).double(), torch.zeros(4).double())
    normed = net.norm(seen[0])
    torch.testing.assert_close(out, (normed * torch.sigmoid(normed)) @ net.out.weight.T + net.out.bias)


def test_class_changes_the_output():
    net = awake(MLP((2,), num_classes=2))
    out = net(torch.ones(3, 2), torch.zeros(3), y=torch.tensor([0, 1, 2]))
    assert torch.pdist(out).min() > 1e-3


def test_meta_device_and_bfloat16():
    with torch.device("meta"):
        assert MLP((3, 2))(torch.empty(4, 3, 2), torch.empty(4)).shape == (4, 3, 2)
    net, x, label = awake(MLP((2,))).eval(), torch.randn(64, 2), torch.linspace(-6, 6, 64)
    exact = net(x, label)
    with torch.autocast("cpu", torch.bfloat16):
        assert (net(x, label).float() - exact).norm() < 0.05 * exact.norm()  # bfloat16 keeps 8 bits: 0.4 % a layer


def test_wrong_inputs_are_refused():
    net = MLP((2,))
    with pytest.raises(ValueError, match=r"takes x of shape \(B, 2\); got \(4, 3\)"):
        net(torch.zeros(4, 3), torch.zeros(4))
    with pytest.raises(ValueError, match="built without classes"):
        net(torch.zeros(4, 2), torch.zeros(4), y=torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="at least 1"):
        MLP((0,))


def test_learns_the_score_of_a_correlated_gaussian():
    """x0 ~ N(mu, A A'), so that the score at t is -(m² A A' + std² I)⁻¹ (x - m mu)."""
    sde = SDES.build("vp")
    mu, A = torch.tensor([0.5, -1.0]), torch.tensor([[1.0, 0.0], [0.6, 0.4]])
    model = ScoreModel(MLP((2,), width=64, blocks=2), sde, "edm(sigma_data=1.0)")
    objective = OBJECTIVES.build("dsm(times='mixed')", sde)
    noise = GeneratorNoise(torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    steps = 500
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / steps)
        x0 = mu + noise(torch.empty(256, 2)) @ A.T
        loss = objective(model, x0, noise=noise).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # relative errors over five seeds: at most 0.12, 0.04 and 0.012 at these times
    for time, tolerance in ((0.05, 0.2), (0.3, 0.08), (0.8, 0.03)):
        t = torch.full((2000,), time)
        m, std = (float(c[0]) for c in sde.marginal_coeffs(t))
        covariance = m**2 * A @ A.T + std**2 * torch.eye(2)
        x = m * mu + noise(torch.empty(2000, 2)) @ torch.linalg.cholesky(covariance).T
        exact = -torch.linalg.solve(covariance, (x - m * mu).T).T
        with torch.no_grad():
            error = (model(x, t) - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        assert error < tolerance, (time, float(error))
