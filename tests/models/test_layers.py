"""The layers that differ from torch's own of the same name."""

import math

import pytest
import torch

from sde_score.models.blocks import ResidualBlock
from sde_score.models.layers import ACTIVATIONS, Dropout, GroupNorm, ImageConv, activation, group_norm


def test_activations():
    x = torch.tensor([-2.0, 3.0], dtype=torch.float64)
    negative = {"elu": math.exp(-2) - 1, "relu": 0.0, "lrelu": -0.4, "swish": -2 / (1 + math.exp(2))}
    positive = {"swish": 3 / (1 + math.exp(-3))}
    for name in ACTIVATIONS:
        assert activation(name)(x).tolist() == pytest.approx([negative[name], positive.get(name, 3.0)], rel=1e-12)
    with pytest.raises(ValueError, match="Unknown activation 'relo'. Did you mean 'relu'"):
        activation("relo")


@pytest.mark.parametrize("channels, most, groups", [(64, 32, 32), (24, 32, 24), (48, 32, 24), (5, 1, 1), (7, 0, 1)])
def test_the_groups_of_a_norm_divide_its_channels(channels, most, groups):
    norm = group_norm(channels, most)
    assert (norm.num_groups, norm.eps) == (groups, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("p", [0.01, 0.1, 0.7])
def test_dropout_zeroes_a_fraction_p_and_keeps_the_mean(p, dtype):
    """The zeros lie within 5 standard deviations of np: a false alarm in 2 million runs, and the seed is fixed.

    Uniform numbers drawn in bfloat16 would give 0.0119 for p = 0.01, 19 standard deviations off.
    """
    n = 2**20
    torch.manual_seed(0)
    x = torch.ones(n, dtype=dtype)
    out = Dropout(p).train()(x)
    dropped = (out == 0).sum().item()
    assert abs(dropped - n * p) < 5 * math.sqrt(n * p * (1 - p))
    assert out.dtype == dtype
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 1 / (1 - p)), rtol=1e-15, atol=0)


def test_dropout_is_its_mask_in_every_derivative():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    out = Dropout(0.3)(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(out, x * gradient)
    torch.testing.assert_close(gradient.unique(), torch.tensor([0.0, 1 / 0.7]))


def test_dropout_at_its_ends():
    x = torch.randn(100)
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros(100))
    assert Dropout(0.5)(torch.empty(2, 3, device="meta")).shape == (2, 3)
    with pytest.raises(ValueError, match="1.5"):
        Dropout(1.5)


def test_dropout_draws_where_its_input_is():
    with torch.device("meta"):  # the default device, which is another one
        assert Dropout(0.5)(torch.ones(3, device="cpu")).device.type == "cpu"


def test_group_norm_is_torchs():
    torch.manual_seed(0)
    norm = GroupNorm(2, 6, eps=1e-2)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    for shape in ((3, 6, 4, 5), (3, 6, 7), (2, 6)):
        x = torch.randn(shape)
        assert torch.equal(norm(x), torch.nn.functional.group_norm(x, 2, norm.weight, norm.bias, 1e-2))


@pytest.mark.parametrize("shape", [(2, 7, 5, 6), (1, 3, 1, 1), (3, 4, 8, 2)], ids=str)
@pytest.mark.parametrize("out_channels", [1, 3, 4, 5])
def test_image_conv_is_a_convolution(shape, out_channels):
    """Value, all gradients, and a derivative in forward mode; H != W tells the axes of the kernel apart."""
    torch.manual_seed(0)
    layer = ImageConv(shape[1], out_channels).double()
    x, v = torch.randn(2, *shape, dtype=torch.float64)
    g = torch.randn(shape[0], out_channels, *shape[2:], dtype=torch.float64)

    def convolved(x):
        return torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)

    for one, other in zip(torch.func.jvp(layer, (x,), (v,)), torch.func.jvp(convolved, (x,), (v,))):
        torch.testing.assert_close(one, other)
    x.requires_grad_()
    wanted = torch.autograd.grad(convolved(x), [x, *layer.parameters()], g)
    for one, other in zip(torch.autograd.grad(layer(x), [x, *layer.parameters()], g), wanted):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)), convolved(x))


def test_image_conv_in_half_precision_is_torchs():
    """The sum of nine parts in bfloat16 would have 2.6 times the error."""
    layer, x = ImageConv(8, 3), torch.randn(2, 8, 4, 4)
    plain = torch.nn.Conv2d(8, 3, 3, padding=1)
    plain.load_state_dict(layer.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), plain(x))
    assert torch.equal(layer.bfloat16()(x.bfloat16()), plain.bfloat16()(x.bfloat16()))
    for dtype in (torch.float32, torch.bfloat16):
        assert layer.to("meta", dtype)(x.to("meta", dtype)).shape == (2, 3, 4, 4)


def test_a_residual_block_can_be_mapped_over_conditions():
    """Many noise levels for one image, by vmap: what depends on the image alone must not be written to."""
    torch.manual_seed(0)
    block = ResidualBlock(4, 4, act=torch.sin, max_groups=lambda width: 2, emb_size=3)
    h, emb = torch.randn(2, 4, 3, 3), torch.randn(5, 2, 3)
    torch.testing.assert_close(torch.vmap(block, in_dims=(None, 0))(h, emb), torch.stack([block(h, e) for e in emb]))
