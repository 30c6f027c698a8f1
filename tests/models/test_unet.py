"""The U-Net: any grid, any size, every conditioning, and clear refusals."""

import pytest
import torch
from torch.nn import functional as F

from sde_score.models.registry import MODELS
from sde_score.models.unet import Attention, ResBlock, UNet

SMALL = dict(width=8, mult=(1, 2), attention=(1,))
SHAPES = [(1, 28, 28), (5, 33, 65), (3, 48, 80), (5, 1024), (2, 7), (1, 16, 24, 20), (2, 5, 1, 3), (1, 1, 1)]


def awake(net):
    """The network with its zero-initialised layers redrawn, so that every part of it matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return net


def small(shape=(2, 8, 6), **settings):
    return awake(MODELS.build("unet", shape=shape, **{**SMALL, **settings}))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_grid_keeps_its_shape_and_every_parameter_learns(shape):
    net = small(shape, attention=() if max(shape) > 100 else (1,), fourier=(1.0,), num_classes=3)
    x = torch.randn(2, *shape)
    out = net(x, torch.tensor([-1.0, 2.0]), y=torch.tensor([0, 3]))
    assert out.shape == x.shape and torch.isfinite(out).all()
    out.square().sum().backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    # on a single place a norm sees one value per channel group at the coarse level and hides what came before it
    assert not dead or shape == (1, 1, 1), dead


def test_untrained_output_is_zero():
    net = UNet((1, 8, 8))
    assert not net(torch.randn(2, 1, 8, 8), torch.zeros(2)).any()


def test_every_residual_branch_starts_as_nothing():
    x, cond = torch.randn(2, 8, 4, 6), torch.randn(2, 16)
    for block in (ResBlock(2, 8, 8, 16, 0.0), Attention(8)):
        assert torch.equal(block(x, cond, False), x)


def test_a_residual_block_is_its_equation():
    """skip(x) + conv(silu((1 + a) norm(h) + b)), h = conv(silu(norm(x))), with torch's own functions."""
    for c_in in (16, 8):
        block = awake(ResBlock(2, c_in, 16, 5, 0.0)).double()
        norms = [(norm.weight, norm.bias) for norm in (block.norm1, block.norm2)]
        x, cond = torch.randn(2, c_in, 4, 6).double(), torch.randn(2, 5).double()
        h = F.conv2d(F.silu(F.group_norm(x, 8, *norms[0])), block.conv1.weight, block.conv1.bias, padding=1)
        film = F.linear(cond, block.film.weight, block.film.bias)[:, :, None, None]
        h = (1 + film[:, :16]) * F.group_norm(h, 8, *norms[1]) + film[:, 16:]
        h = F.conv2d(F.silu(h), block.conv2.weight, block.conv2.bias, padding=1)
        torch.testing.assert_close(block(x, cond, False), (x if c_in == 16 else block.skip(x)) + h)


def test_dropout_acts_before_the_second_convolution():
    """With an identity there and a bias of 5, a dropped entry gives x + 5 exactly."""
    block = ResBlock(2, 4, 4, 5, 0.4).double()
    torch.nn.init.dirac_(block.conv2.weight)
    torch.nn.init.constant_(block.conv2.bias, 5.0)
    x, cond = torch.randn(2, 4, 6, 6).double(), torch.randn(2, 5).double()
    kept = block.eval()(x, cond, False) - x - 5
    branch = block.train()(x, cond, False) - x - 5
    dropped = branch.abs() < 1e-12
    assert 0.2 < dropped.double().mean() < 0.6  # 288 entries: 5 standard deviations are 0.14
    torch.testing.assert_close(branch[~dropped], kept[~dropped] / 0.6)


@pytest.mark.parametrize("channels, heads", [(8, 1), (32, 1), (64, 2), (80, 2), (96, 3)])
def test_attention_is_torchs(channels, heads):
    """x + attention of heads of about 32 channels, between all places of the grid."""
    block = awake(Attention(channels)).double()
    assert block.heads == heads
    reference = torch.nn.MultiheadAttention(channels, heads, batch_first=True, dtype=torch.float64)
    reference.in_proj_weight.data, reference.in_proj_bias.data = block.qkv.weight.data, block.qkv.bias.data
    reference.out_proj.load_state_dict(block.out.state_dict())
    x = torch.randn(2, channels, 3, 4, dtype=torch.float64)
    tokens = F.group_norm(x, 8, block.norm.weight, block.norm.bias).flatten(2).mT
    expected = x + reference(tokens, tokens, tokens)[0].mT.reshape(x.shape)
    for plain in (False, True):
        torch.testing.assert_close(block(x, None, plain), expected)


def test_the_way_up_meets_the_skip_connections_and_the_head_is_its_equation():
    """On an odd size: each place takes its parent's features, the last skip is the first; out = conv(silu(norm(h)))."""
    net = small((1, 7, 5)).double().eval()
    seen = {}
    for name in ("conv_in", "middle", "up.0", "up.1", "up.2", "norm_out"):
        net.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: (inputs[0], output)})
        )
    out = net(torch.randn(2, 1, 7, 5).double(), torch.zeros(2).double())
    coarse, entering = seen["up.1"][1], seen["up.2"][0]
    assert coarse.shape[2:] == (4, 3) and entering.shape[2:] == (7, 5)
    rows, columns = torch.arange(7) // 2, torch.arange(5) // 2
    torch.testing.assert_close(entering[:, : coarse.shape[1]], coarse[:, :, rows][:, :, :, columns])
    last = net.up[-1]
    assert len(net.up) == 4 and len(net.down) == 3
    hooked = []
    last.register_forward_pre_hook(lambda module, inputs: hooked.append(inputs[0]))
    net(torch.randn(2, 1, 7, 5).double(), torch.zeros(2).double())
    torch.testing.assert_close(hooked[0][:, -8:], seen["conv_in"][1])
    out = net(x := torch.randn(2, 1, 7, 5).double(), torch.zeros(2).double())
    torch.testing.assert_close(out, net.conv_out(F.silu(seen["norm_out"][1])))
    assert x.shape == out.shape


def test_attention_sits_at_the_levels_named_and_the_middle_is_the_last():
    for levels, middle in (((1,), 2), ((0,), 1), ((), 1)):
        net = UNet((1, 8, 8), width=8, mult=(1, 1.5), attention=levels)
        assert len(net.middle) == middle
        assert [len(stage) for stage in net.down] == [1 + (0 in levels), 1, 1 + (1 in levels)]
        assert net.norm_out.num_channels == 8 and net.middle[0].norm1.num_channels == 12


def test_default_settings_are_small():
    assert sum(p.numel() for p in UNet((1, 8, 8)).parameters()) < 1_000_000


def test_a_network_runs_on_other_sizes_than_it_was_made_for():
    net = small((2, 8, 6))
    assert net(torch.randn(1, 2, 13, 4), torch.zeros(1)).shape == (1, 2, 13, 4)


def test_shape_is_not_baked_in():
    """The same weights for another declared size give the same function, whether or not the levels divide it."""
    x, label = torch.randn(2, 2, 7, 9), torch.zeros(2)
    a, b = small((2, 8, 8)), small((2, 7, 9))
    b.load_state_dict(a.state_dict())
    torch.testing.assert_close(a(x, label), b(x, label), rtol=0, atol=0)


def test_upsampling_of_odd_sizes_pairs_each_place_with_its_parent():
    """Places 2i and 2i + 1 descend from place i, whatever the size: what the halving that rounds up assumes."""
    for n in (2, 3, 5, 33, 65, 1023, 1025):
        parent = torch.nn.functional.interpolate(torch.arange(float((n + 1) // 2))[None, None], size=n, mode="nearest")
        assert torch.equal(parent[0, 0], (torch.arange(n) // 2).float())


def test_time_and_class_change_the_output():
    net = small(num_classes=3).eval()
    x, zero = torch.randn(1, 2, 8, 6), torch.zeros(1)
    base = net(x, zero, y=torch.tensor([0]))
    assert (net(x, zero + 0.5, y=torch.tensor([0])) - base).abs().max() > 1e-3
    assert (net(x, zero, y=torch.tensor([1])) - base).abs().max() > 1e-3
    assert (net(x, zero, y=torch.tensor([3])) - base).abs().max() > 1e-3  # the row for "no class"


def test_samples_do_not_influence_each_other():
    net = small().eval()
    x, label = torch.randn(3, 2, 8, 6), torch.tensor([-2.0, 0.0, 3.0])
    together = net(x, label)
    alone = torch.cat([net(x[i : i + 1], label[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)  # float32 sums in another order


def test_dropout_works_in_training_only():
    net = small(dropout=0.5)
    x, label = torch.randn(2, 2, 8, 6), torch.zeros(2)
    assert not torch.equal(net(x, label), net(x, label))
    net.eval()
    assert torch.equal(net(x, label), net(x, label))


def test_fourier_features_are_periodic():
    """With the raw value's weights at zero, adding a whole period changes nothing; half a period does."""
    net = small((1, 8, 8), fourier=(2.0,)).double().eval()
    with torch.no_grad():
        net.conv_in.weight[:, 0] = 0
    x, label = torch.randn(1, 1, 8, 8, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    torch.testing.assert_close(net(x + 0.5, label), net(x, label), rtol=1e-9, atol=1e-9)
    assert (net(x + 0.25, label) - net(x, label)).abs().max() > 1e-3
    # sines alone would not tell x from its mirror image at a quarter of a period, cosines alone not x from -x
    assert (net(0.25 - x, label) - net(x, label)).abs().max() > 1e-3
    assert (net(-x, label) - net(x, label)).abs().max() > 1e-3


def test_gradient_checkpointing_changes_nothing():
    x, label = torch.randn(2, 2, 8, 6), torch.zeros(2)
    gradients = []
    for flag in (False, True):
        torch.manual_seed(3)
        net = small(gradient_checkpointing=flag, dropout=0.3)
        torch.manual_seed(4)
        net(x, label).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_forward_mode_derivative_equals_backward_mode():
    """Likelihoods take the score and its Jacobian-vector product from one pass; attention and norms must allow it."""
    net = small().double().eval()
    x, v = torch.randn(2, 2, 8, 6, dtype=torch.float64), torch.randn(2, 2, 8, 6, dtype=torch.float64)
    label = torch.zeros(2, dtype=torch.float64)
    _, forward = torch.func.jvp(lambda x: net(x, label), (x,), (v,))
    x.requires_grad_(True)
    (backward,) = torch.autograd.grad(net(x, label), x, v)
    torch.testing.assert_close((forward * v).sum(), (backward * v).sum(), rtol=1e-9, atol=1e-9)


def test_bfloat16_autocast_is_close_to_float32():
    net = small(num_classes=2).eval()
    x, label, y = torch.randn(2, 2, 8, 6), torch.tensor([-3.0, 999.0]), torch.tensor([0, 1])
    exact = net(x, label, y=y)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(x, label, y=y)
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()  # bfloat16 keeps 8 bits: 0.4 % a layer


def test_channels_last_changes_nothing():
    net, x, label = small().eval(), torch.randn(2, 2, 8, 6), torch.zeros(2)
    expected = net(x, label)
    net = net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(net(x.to(memory_format=torch.channels_last), label), expected, rtol=1e-4, atol=1e-5)


def test_meta_device():
    """No constant is pinned to the CPU."""
    with torch.device("meta"):
        net = UNet((3, 33, 20), num_classes=4, fourier=(1.0,))
        out = net(torch.empty(2, 3, 33, 20), torch.empty(2), y=torch.empty(2, dtype=torch.long))
    assert out.device.type == "meta" and out.shape == (2, 3, 33, 20)
    real = net.to_empty(device="cpu")
    real.load_state_dict(UNet((3, 33, 20), num_classes=4, fourier=(1.0,)).state_dict())
    assert torch.isfinite(real(torch.randn(1, 3, 33, 20), torch.zeros(1), y=torch.tensor([0]))).all()


def test_state_dict_is_reproducible_from_the_seed():
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(UNet((1, 8, 8), num_classes=2).state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values()))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ((2, 2, 8), r"takes x of shape \(B, 2, H, W\); got \(2, 2, 8\)"),
        ((2, 3, 8, 8), r"takes x of shape \(B, 2, H, W\); got \(2, 3, 8, 8\)"),
        ((2, 2, 4, 8, 8), r"takes x of shape \(B, 2, H, W\); got \(2, 2, 4, 8, 8\)"),
    ],
)
def test_wrong_axes_or_channels_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(x), torch.zeros(2))


def test_wrong_conditioning_is_refused():
    x, label = torch.zeros(2, 2, 8, 6), torch.zeros(2)
    with pytest.raises(ValueError, match="one number per sample"):
        small()(x, label[:, None])
    with pytest.raises(ValueError, match="one number per sample"):
        small()(x, torch.zeros(3))
    with pytest.raises(ValueError, match="built without classes"):
        small()(x, label, y=torch.tensor([0, 1]))
    net = small(num_classes=3)
    with pytest.raises(ValueError, match="needs `y`"):
        net(x, label)
    with pytest.raises(ValueError, match="`y` may be 0 to 3; got values from 0 to 4"):
        net(x, label, y=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="one integer per sample"):
        net(x, label, y=torch.tensor([0]))
    with pytest.raises(ValueError, match="one integer per sample"):
        net(x, label, y=torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(shape=(4,)), "mlp"),
        (dict(shape=(1, 2, 3, 4, 5)), "works on"),
        (dict(shape=(1, 8, 8), mult=()), "at least 1"),
        (dict(shape=(1, 8, 8), blocks=0), "at least 1"),
        (dict(shape=(1, 8, 8), attention=(3,)), r"levels 0 \.\. 2"),
        (dict(shape=(1, 8, 8), num_classes=0), "num_classes"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build("unet", **settings)
