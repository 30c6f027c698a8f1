"""Blocks of the U-Nets: their equations, where dropout acts, their initial weights, recomputation."""

import math

import pytest
import torch
from torch.nn import functional as F

from sde_score.models.blocks import AttentionBlock, ResidualBlock, run_block
from sde_score.models.layers import conv, image_conv, linear, variance_scaling_
from sde_score.models.resample import DownsampleConv


def spread(weight):
    """Standard deviation in units of the published one of scale 1, sqrt(1 / fan_avg); the weights are uniform."""
    fan = (weight.shape[0] + weight.shape[1]) / 2 * math.prod(weight.shape[2:])
    return float(weight.detach().square().mean().sqrt() * math.sqrt(fan))


def test_initial_weights_of_the_layers():
    """Variance scale / fan_avg. The square of a uniform number has relative deviation 0.9: 4.5/sqrt(n) is 10 sigma."""
    for layer in (conv(64, 48), conv(64, 48, 1), linear(64, 48), image_conv(192, 3), DownsampleConv(32, 48)):
        assert spread(layer.weight) == pytest.approx(1, abs=4.5 / math.sqrt(layer.weight.numel()))
        assert not layer.bias.any()
    for layer in (conv(64, 48, scale=0.25), linear(64, 48, scale=0.25), image_conv(192, 3, scale=0.25)):
        assert spread(layer.weight) == pytest.approx(0.5, abs=4.5 / math.sqrt(layer.weight.numel()))


def test_a_scale_of_zero_still_receives_gradients():
    assert spread(variance_scaling_(torch.empty(64, 48), 0.0)) == pytest.approx(1e-5, rel=0.1)


def test_initial_weights_of_the_blocks():
    """The published 0.1 for query, key and value, 1 for convolutions, nearly 0 for what ends a residual branch."""
    block = AttentionBlock(64, max_groups=16, rescale=True)
    for part in (block.query, block.key, block.value):
        assert spread(part.weight) == pytest.approx(math.sqrt(0.1), rel=0.07)
    assert spread(block.out.weight) < 1e-4
    assert spread(AttentionBlock(64, max_groups=16, rescale=True, init_scale=1.0).out.weight) > 0.9
    settings = dict(act=F.silu, max_groups=lambda width: 8, emb_size=64)
    block = ResidualBlock(32, 64, **settings)
    for part in (block.conv1, block.emb, block.shortcut):
        assert spread(part.weight) == pytest.approx(1, rel=0.07)
    assert spread(block.conv2.weight) < 1e-4
    block = ResidualBlock(32, 64, shortcut_scale=0.25, init_scale=1.0, **settings)
    assert spread(block.shortcut.weight) == pytest.approx(0.5, rel=0.07)
    assert spread(block.conv2.weight) == pytest.approx(1, rel=0.07)


@pytest.mark.parametrize("plain", [False, True])
def test_attention_is_torchs(plain):
    """Of one head, between the norm and the residual sum, on pixels as tokens; H != W."""
    block = AttentionBlock(8, max_groups=4, rescale=True, init_scale=1.0).double()
    h = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    reference = torch.nn.MultiheadAttention(8, 1, batch_first=True, dtype=torch.float64)
    parts = (block.query, block.key, block.value)
    for part in (*parts, block.out):
        torch.nn.init.normal_(part.weight)
        torch.nn.init.normal_(part.bias)
    reference.in_proj_weight.data = torch.cat([part.weight.data for part in parts])
    reference.in_proj_bias.data = torch.cat([part.bias.data for part in parts])
    reference.out_proj.load_state_dict(block.out.state_dict())
    tokens = F.group_norm(h, 4, eps=1e-6).flatten(2).mT
    mixed = reference(tokens, tokens, tokens)[0].mT.reshape(h.shape)
    torch.testing.assert_close(block(h, plain=plain), (h + mixed) / math.sqrt(2))


def test_dropout_acts_before_the_second_convolution():
    """With an identity there and a bias of 5, a dropped entry gives h + 5, another h + 5 + a / (1 - p)."""
    p = 0.4
    block = ResidualBlock(4, 4, act=F.silu, max_groups=lambda width: 2, emb_size=None, dropout=p).double()
    torch.nn.init.dirac_(block.conv2.weight)
    torch.nn.init.constant_(block.conv2.bias, 5.0)
    h = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    kept = block.eval()(h) - h - 5
    branch = block.train()(h) - h - 5
    dropped = branch.abs() < 1e-12
    assert 0.2 < dropped.double().mean() < 0.6  # 288 entries: 5 standard deviations are 0.14
    torch.testing.assert_close(branch[~dropped], kept[~dropped] / (1 - p))


def test_recomputation_keeps_less():
    """The same gradients from fewer stored tensors."""
    block = ResidualBlock(4, 4, act=F.silu, max_groups=lambda width: 2, emb_size=None, init_scale=1.0)
    h = torch.randn(2, 4, 6, 6)
    stored, gradients = {}, {}
    for recompute in (False, True):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            out = run_block(block, h, recompute=recompute)
        stored[recompute] = sum(kept)
        gradients[recompute] = torch.autograd.grad(out.square().sum(), list(block.parameters()))
    assert stored[True] < stored[False] / 2
    torch.testing.assert_close(gradients[True], gradients[False])
