"""FIR resampling: the recorded numbers, a second derivation from the definition, derivatives, types and devices."""

import copy
import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sde_score.models.resample import (
    Downsample,
    DownsampleConv,
    Upsample,
    UpsampleConv,
    downsample2d,
    downsample_conv2d,
    fir_kernel,
    upfirdn2d,
    upsample2d,
    upsample_conv2d,
)

ATOL = 1e-5  # the tolerance that the recorded numbers state


def naive_upfirdn2d(x, kernel, up, down, pad):
    """The definition, step by step."""
    b, c, h, w = x.shape
    filled = x.new_zeros(b, c, h, up, w, up)
    filled[:, :, :, 0, :, 0] = x
    filled = filled.reshape(b, c, h * up, w * up)
    padded = F.pad(filled, (pad[0], pad[1], pad[0], pad[1]))
    weight = kernel.to(x).flip(0, 1).expand(c, 1, *kernel.shape)
    return F.conv2d(padded, weight, groups=c)[:, :, ::down, ::down]


def load(path):
    z = np.load(path)
    arrays = {k: torch.from_numpy(z[k]) for k in z.files if not k.endswith("_json")}
    return arrays, json.loads(str(z["meta_json"]))


def close(a, b, atol=ATOL):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


# --- recorded numbers -------------------------------------------------------------------------------------------------


def test_general_upfirdn(golden_dir):
    z, meta = load(golden_dir / "resample.npz")
    for i, case in enumerate(meta["upfirdn2d"]):
        out = upfirdn2d(z[f"u{i}_x"], z[f"u{i}_kernel"], up=case["up"], down=case["down"], pad=tuple(case["pad"]))
        close(out, z[f"u{i}_out"])


def test_up_down_and_conv_down(golden_dir):
    z, meta = load(golden_dir / "resample.npz")
    for i, case in enumerate(meta["up_down_conv"]):
        x, settings = z[f"r{i}_x"], dict(factor=case["factor"], gain=case["gain"])
        close(upsample2d(x, case["kernel"], **settings), z[f"r{i}_up"])
        close(downsample2d(x, case["kernel"], **settings), z[f"r{i}_down"])
        close(downsample_conv2d(x, z[f"r{i}_w"], case["kernel"], **settings), z[f"r{i}_convdown"])
    close(Upsample()(z["naive_x"]), z["naive_up"])
    close(Downsample()(z["naive_x"]), z["naive_down"])


def test_fused_convolutions(golden_dir):
    """Also the up-convolution, which the published PyTorch code cannot run."""
    z, meta = load(golden_dir / "jax_fir_conv.npz")
    for i, case in enumerate(meta["cases"]):
        x, w, taps, gain = z[f"c{i}_x"], z[f"c{i}_w"], case["kernel"], case["gain"]
        close(upsample_conv2d(x, w, taps, gain=gain), z[f"c{i}_up"])
        close(downsample_conv2d(x, w, taps, gain=gain), z[f"c{i}_down"])
        if taps is not None and gain == 1:
            for module, expected in ((UpsampleConv, "up"), (DownsampleConv, "down")):
                layer = module(x.shape[1], w.shape[0], taps)
                layer.weight.data.copy_(w)
                close(layer(x), z[f"c{i}_{expected}"])


# --- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("up, down", itertools.product((1, 2, 3), (1, 2, 3)))
@pytest.mark.parametrize("pad", [(0, 0), (2, 1), (0, 5), (-1, 2), (3, -2), (-1, -1), (7, 7)])
def test_upfirdn_is_its_definition(up, down, pad):
    x, kernel = torch.randn(2, 3, 6, 9), torch.randn(4, 4)
    # float32 rounding of sums of 16 products
    close(upfirdn2d(x, kernel, up=up, down=down, pad=pad), naive_upfirdn2d(x, kernel, up, down, pad))


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 2, 1), (1, 1), (1, 4, 6, 4, 1), (1, 2, 3, 4), (1,)])
def test_constants_stay_constant_and_down_is_the_transpose_of_up(taps):
    up, down = Upsample(taps), Downsample(taps)
    x = torch.ones(1, 2, 16, 12)
    if sum(taps[::2]) == sum(taps[1::2]):  # else even and odd pixels weigh differently
        close(up(x)[..., 8:-8, 8:-8], torch.ones(1, 2, 16, 8))
    close(down(x)[..., 3:-3, 2:-2], torch.ones(1, 2, 2, 2))
    if len(taps) % 2 == 0 and taps == taps[::-1]:
        a, b = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 12, 8)
        torch.testing.assert_close((up(a) * b).sum(), 4 * (a * down(b)).sum(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 2, 3, 4), None])
def test_modules_agree_with_functions_and_double_the_size(taps):
    x = torch.randn(2, 3, 6, 10)
    assert Upsample(taps)(x).shape == UpsampleConv(3, 3, taps)(x).shape == (2, 3, 12, 20)
    assert Downsample(taps)(x).shape == DownsampleConv(3, 3, taps)(x).shape == (2, 3, 3, 5)
    if taps is not None:
        close(Upsample(taps)(x), upsample2d(x, taps))
        close(Downsample(taps)(x), downsample2d(x, taps))
        for make, function in ((UpsampleConv, upsample_conv2d), (DownsampleConv, downsample_conv2d)):
            layer = make(3, 4, taps)
            torch.nn.init.normal_(layer.bias)
            close(layer(x), function(x, layer.weight, taps) + layer.bias[:, None, None])


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), None])
@pytest.mark.parametrize("make", [Upsample, Downsample, UpsampleConv, DownsampleConv])
def test_derivatives(make, taps):
    layer = (make(2, 3, taps) if "Conv" in make.__name__ else make(taps)).double()
    x = torch.randn(1, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    if hasattr(layer, "bias"):  # the operation is linear: make the second derivative non-trivial
        assert torch.autograd.gradcheck(
            lambda x, w: torch.func.functional_call(layer, {"weight": w}, (x,)), (x, layer.weight)
        )
        assert torch.autograd.gradgradcheck(
            lambda x, w: torch.func.functional_call(layer, {"weight": w}, (x,)), (x, layer.weight)
        )
    assert torch.autograd.gradcheck(lambda x: layer(x).square(), x)
    assert torch.autograd.gradgradcheck(lambda x: layer(x).square(), x)
    _, jvp = torch.func.jvp(layer, (x.detach(),), (torch.ones_like(x),))
    assert jvp.isfinite().all()


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), None])
@pytest.mark.parametrize("make", [Upsample, Downsample, UpsampleConv, DownsampleConv])
def test_types_formats_and_devices(make, taps):
    layer = make(4, 4, taps) if "Conv" in make.__name__ else make(taps)
    x = torch.randn(2, 4, 8, 8)
    expected = layer(x)
    close(layer(x.to(memory_format=torch.channels_last)), expected)
    half = copy.deepcopy(layer).bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=5e-2, rtol=5e-2)  # bfloat16 has 8 bits
    with torch.device("meta"):
        on_meta = make(4, 4, taps) if "Conv" in make.__name__ else make(taps)
        assert on_meta(torch.empty(2, 4, 8, 8)).shape == expected.shape
    assert "kernel" not in layer.state_dict()


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 2, 3, 4), (1, 2, 1)])
@pytest.mark.parametrize("make", [Upsample, Downsample, UpsampleConv, DownsampleConv])
def test_small_images_by_matrix(make, taps):
    """A module told the size answers as one that was not told, for that size and for others; so do its derivatives."""
    torch.manual_seed(0)
    arguments = (3, 2, taps) if "Conv" in make.__name__ else (taps,)
    plain, told = make(*arguments), make(*arguments, size=4)
    told.load_state_dict(plain.state_dict())  # the matrix is not saved
    assert plain.matrix is None and told.matrix.numel() <= 2**14
    for size in ((4, 4), (8, 8), (4, 6), (2, 8)):
        close(told(torch.ones(2, 3, *size)), plain(torch.ones(2, 3, *size)))
        close(told(x := torch.randn(2, 3, *size)), plain(x))
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert told.double().matrix.dtype == torch.float64
    assert torch.autograd.gradgradcheck(lambda x: told(x).square(), x)
    y = torch.randn(1, 1, told.size, told.size, dtype=torch.float64)
    told.to_empty(device="cpu")
    close(told.filter(y), plain.double().convolve(y))


def test_large_images_have_no_matrix():
    assert Downsample((1, 3, 3, 1), size=16).matrix.shape == (256, 64)
    assert Upsample((1, 3, 3, 1), size=16).matrix is None and Downsample((1, 3, 3, 1), size=1024).matrix is None
    assert Downsample(size=8).matrix is None


def test_compiles_in_one_graph():
    layer = torch.nn.Sequential(
        DownsampleConv(3, 4, (1, 3, 3, 1)), Upsample((1, 3, 3, 1)), UpsampleConv(4, 3), Downsample()
    )
    x = torch.randn(2, 3, 8, 8)
    close(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))


def test_the_kernel_survives_meta_construction():
    """`to_empty` leaves arbitrary numbers in buffers that no checkpoint fills; the constants are written again."""
    with torch.device("meta"):
        layer = Upsample((1, 3, 3, 1))
    layer.to_empty(device="cpu")
    close(layer.kernel, 4 * fir_kernel((1, 3, 3, 1)))


def test_errors():
    with pytest.raises(ValueError, match="sum to 0"):
        fir_kernel((1, -1))
    with pytest.raises(ValueError, match=r"\(1, 3, 3, 1\)"):
        fir_kernel(())
    with pytest.raises(ValueError, match="`up` must be a positive integer"):
        upfirdn2d(torch.zeros(1, 1, 4, 4), torch.ones(2, 2), up=0)
