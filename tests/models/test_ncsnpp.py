"""NCSN++: the recorded networks and blocks, the original names, every combination of options, every way to call it."""

import copy
import gzip
import itertools
import json
import math

import numpy as np
import pytest
import torch

from sde_score.models.blocks import AttentionBlock, ResidualBlock, attention
from sde_score.models.layers import activation, add_pointwise, variance_scaling_
from sde_score.models.levels import Combine
from sde_score.models.ncsnpp import NCSNpp
from sde_score.models.noise_level import FourierEmbedding, PositionalEmbedding, SigmaTable
from sde_score.models.official.architecture import build_network, network_facts
from sde_score.models.official.checkpoint import load_strictly
from sde_score.models.official.names import (
    load_original,
    original_names,
    to_original_state_dict,
    trainable_original_names,
)
from sde_score.models.official.unet_names import layer_names
from sde_score.models.registry import MODELS
from sde_score.models.resample import Downsample, DownsampleConv, Upsample, UpsampleConv

TOL = 1e-5  # the tolerance that the recorded numbers state
FIR = (1, 3, 3, 1)
NETS = [
    "net01_ncsnpp_ve_fourier_fir_residualin",
    "net02_ncsnpp_ve_fourier_fir_skip_skip_sum",
    "net03_ncsnpp_nofir_residualout_inputskip_cat_patched",
    "net04_ddpmpp_vp_positional_nofir",
    "net05_ncsnpp_ddpmblock_nofir_convresample_1ch_patched",
    "net06_ncsnpp_ddpmblock_fir_noconv",
    "net07_ncsnpp_ve_discrete_positional",
    "net09_ncsnpp_residualout_fir_upconv_patched",
]


def load_golden(path):
    z = np.load(path)
    arrays = {k: torch.from_numpy(z[k]) for k in z.files if not k.endswith("_json")}
    meta = json.loads(str(z["meta_json"]))
    config = json.loads(str(z["config_json"])) if "config_json" in z.files else None
    return arrays, meta, config


def build(config):
    return build_network(network_facts(config)).eval()


def assert_close(a, b, tol=TOL):
    """|a - b| <= tol max(1, max |b|), as the recorded numbers are to be compared."""
    worst = float((a.detach().double() - b.double()).abs().max())
    assert worst <= tol * max(1.0, float(b.abs().max())), worst


def tiny(**options):
    """A network of 8 x 8 images with two levels, with weights drawn so that every part matters."""
    settings = dict(image_size=8, nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), dropout=0.0)
    settings |= dict(num_scales=20, init_scale=1.0)
    return NCSNpp(**(settings | options))


def label_for(network, batch):
    return torch.linspace(0.5, 10.0, batch)


# --- recorded numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_recorded_network(golden_dir, name):
    z, meta, config = load_golden(golden_dir / f"{name}.npz")
    network = build(config)
    original = {key: z[f"sd/{key}"] for key in meta["order"]}
    load_original(network, original)

    back = to_original_state_dict(network)
    assert list(back) == meta["order"]
    for key, tensor in original.items():
        assert back[key].dtype == tensor.dtype and torch.equal(back[key], tensor), key
    assert trainable_original_names(network) == [
        theirs for theirs in meta["order"] if [theirs, list(original[theirs].shape), True] in meta["params"]
    ]

    with torch.no_grad():  # fused attention
        out = network(z["x"], z["cond"])
    assert out.dtype == z["x"].dtype  # net07 is float64 in the original
    assert_close(out, z["output"])
    x = z["x"].requires_grad_()
    out = network(x, z["cond"])  # plain attention
    assert_close(out, z["output"])
    (gradient,) = torch.autograd.grad((out * z["v"].to(out.dtype)).sum(), x)
    assert float((gradient - z["vjp_x"]).abs().max()) <= TOL * float(z["vjp_x"].abs().max())


def blocks():
    act = activation("swish")
    common = dict(act=act, emb_size=20, init_scale=1.0)
    plusplus = dict(max_groups=lambda c: min(c // 4, 32), rescale=True, **common)
    unscaled = plusplus | dict(rescale=False)
    wide = dict(common, max_groups=lambda c: 32, shortcut_scale=0.1)
    return {
        "biggan_same": lambda: ResidualBlock(16, 16, **plusplus),
        "biggan_up_fir": lambda: ResidualBlock(16, 24, resample=Upsample(FIR), **plusplus),
        "biggan_down_fir": lambda: ResidualBlock(16, 16, resample=Downsample(FIR), **plusplus),
        "biggan_up_nofir": lambda: ResidualBlock(16, 16, resample=Upsample(), **unscaled),
        "biggan_down_nofir": lambda: ResidualBlock(16, 8, resample=Downsample(), **plusplus),
        "biggan_notemb": lambda: ResidualBlock(16, 12, **plusplus),
        "biggan_wide_32groups": lambda: ResidualBlock(160, 8, **plusplus),
        "ddpmpp": lambda: ResidualBlock(16, 24, **plusplus),
        "ddpmpp_convshortcut": lambda: ResidualBlock(16, 24, shortcut=3, **unscaled),
        "ddpm_block": lambda: ResidualBlock(32, 64, **wide),
        "attnpp": lambda: AttentionBlock(16, max_groups=4, rescale=True),
        "attn_ddpm": lambda: AttentionBlock(32, max_groups=32, rescale=False),
        "down_conv": lambda: DownsampleConv(16, 16),
        "up_conv": lambda: UpsampleConv(16, 16),
        "down_pool": lambda: Downsample(),
        "fir_down_conv": lambda: DownsampleConv(16, 12, FIR),
        "combine_sum": lambda: Combine(3, 8, "sum"),
        "combine_cat": lambda: Combine(3, 8, "cat"),
    }


@pytest.mark.parametrize("name", list(blocks()))
def test_recorded_block(golden_dir, name):
    z, meta, _ = load_golden(golden_dir / "blocks.npz")
    block = blocks()[name]()
    state = block.state_dict()
    for ours, original in layer_names(block, nin_shortcuts=name in ("ddpmpp", "ddpm_block")):
        tensor = z[f"{name}/sd/{original}"]
        state[ours].copy_(tensor.t().reshape(state[ours].shape) if original.endswith(".W") else tensor)
    extra = ()
    if f"{name}/y" in z:
        extra = (z[f"{name}/y"],)
    elif f"{name}/temb" in z and name != "biggan_notemb":
        extra = (block.act(z[f"{name}/temb"]),)
    with torch.no_grad():
        assert_close(block(z[f"{name}/x"], *extra), z[f"{name}/out"])
        if f"{name}/out_small" in z:  # small inputs show the epsilon of the norms
            assert_close(block(z[f"{name}/x"] * meta["small_factor"], *extra), z[f"{name}/out_small"])


def test_recorded_embeddings(golden_dir):
    z, meta, _ = load_golden(golden_dir / "blocks.npz")
    for i, case in enumerate(meta["positional"]):
        assert_close(PositionalEmbedding(case["dim"])(z[f"pos{i}_t"]), z[f"pos{i}_out"])
    for i in range(2):
        embedding = FourierEmbedding(len(z[f"four{i}_W"]))
        embedding.frequencies.copy_(z[f"four{i}_W"])
        # Machines differ in the last bit of float32 logarithms and products, which large angles multiply.
        log_sigma = z[f"four{i}_sigma"].double().log()
        angle = 2 * math.pi * log_sigma[:, None] * z[f"four{i}_W"].double()
        rounding = 2.0**-22 * torch.cat([angle, angle], dim=-1).abs() + 1e-6
        assert ((embedding(z[f"four{i}_sigma"]) - z[f"four{i}_out"]).abs() <= rounding).all()


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_add_pointwise_is_convolution_sum_and_factor(axes):
    """On the CPU one matrix product: values, second derivatives, forward mode, bfloat16, other memory formats."""
    layer = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[axes](3, 5, 1).double()
    shape = (2, 3, 2)[:axes]
    x = torch.randn(2, 3, *shape, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2, 5, *shape, dtype=torch.float64)

    def both(x):
        return add_pointwise(h.clone(), layer, x, factor=0.3), 0.3 * (h + layer(x))

    torch.testing.assert_close(*both(x))
    torch.testing.assert_close(*both(x[:, :, :1].expand_as(x)))  # not contiguous
    assert torch.autograd.gradgradcheck(lambda x: both(x)[0].square(), x)
    for pair in (torch.func.jvp(both, (x.detach(),), (torch.ones_like(x),))[1], torch.vmap(both)(x.detach()[None])):
        torch.testing.assert_close(*pair)
    expected = both(x)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = add_pointwise(h.bfloat16(), layer.float(), x.float(), factor=0.3)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), expected.double(), atol=5e-2, rtol=5e-2)  # bfloat16 has 8 bits


def layouts(golden_dir):
    with gzip.open(golden_dir / "layouts.json.gz") as file:
        return json.load(file)


def test_layout_of_every_published_unet(golden_dir):
    """Names, shapes, types and order of all tensors, for every published NCSN++ and DDPM configuration."""
    recorded = layouts(golden_dir)
    built = 0
    for name, entry in recorded["configs"].items():
        if entry["config"]["model"]["name"] not in ("ncsnpp", "ddpm"):
            continue
        with torch.device("meta"):
            network = build(entry["config"])
        built += 1
        if "layout" not in entry:  # vp/ddpm/cifar10_unconditional: the original cannot build it, we can
            assert network.conditioning.linear1 is None
            continue
        state = to_original_state_dict(network)
        ours = [(key, list(t.shape), str(t.dtype).removeprefix("torch.")) for key, t in state.items()]
        expected = [(key, shape, dtype) for key, shape, dtype, _ in recorded["layouts"][entry["layout"]]]
        assert ours == expected, name
        trainable = [key for key, _, _, requires_grad in recorded["layouts"][entry["layout"]] if requires_grad]
        assert trainable_original_names(network) == trainable, name
    assert built == 28


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_wrong_architecture_is_refused_with_a_list():
    state = to_original_state_dict(tiny())
    with pytest.raises(ValueError, match=r"all_modules.*: .* in the file, expected"):
        load_strictly(tiny(nf=12), state, "a file")
    with pytest.raises(ValueError, match=r"\(1 differences.*\n.*head.weight: \[3\] in the file, not in the network"):
        load_strictly(tiny(), state | {"head.weight": torch.zeros(3)}, "a file")
    del state["all_modules.3.bias"]
    with pytest.raises(ValueError, match="1 differences.*\n.*all_modules.3.bias: missing"):
        load_strictly(tiny(), state, "a file")
    with pytest.raises(ValueError, match="no original names"):
        to_original_state_dict(tiny(num_classes=3))


def test_a_missing_table_is_tolerated():
    source, target = tiny(), tiny()
    state = {key: tensor for key, tensor in to_original_state_dict(source).items() if key != "sigmas"}
    load_strictly(target, state, "a file")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(source(x, label_for(source, 2)), target(x, label_for(target, 2)))


def test_a_foreign_table_keeps_every_bit_also_through_our_own_state_dict():
    table = torch.rand(20, dtype=torch.float64).sort(descending=True).values + 0.01
    network = tiny(embedding_type="positional")
    load_original(network, to_original_state_dict(network) | {"sigmas": table})
    again = tiny(embedding_type="positional")
    again.load_state_dict(network.bfloat16().float().state_dict())
    assert torch.equal(to_original_state_dict(again)["sigmas"], table)
    assert torch.equal(again.sigma_table(torch.arange(20)), table.float())


def test_an_original_configuration_is_refused_where_no_network_has_it():
    config = {"model": {"name": "ncsnpp", "embedding_type": "fourier"}, "data": {"image_size": 8}}
    with pytest.raises(ValueError, match="continuous"):
        network_facts({**config, "training": {"continuous": False}})
    with pytest.raises(ValueError, match="Did you mean 'ncsnv2_64'"):
        network_facts({**config, "model": {"name": "ncsnv2"}})


# --- all options ------------------------------------------------------------------------------------------------------

PROGRESSIVE = ("none", "output_skip", "residual")
PROGRESSIVE_INPUT = ("none", "input_skip", "residual")
SHAPES = list(itertools.product(("biggan", "ddpm"), (True, False), PROGRESSIVE, PROGRESSIVE_INPUT, ("sum", "cat")))


@pytest.mark.parametrize("block, fir, progressive, progressive_input, combine", SHAPES)
def test_every_combination_runs(block, fir, progressive, progressive_input, combine):
    """Forward, backward to every parameter, export; images neither square nor RGB nor of the nominal size."""
    shared = dict(resblock_type=block, fir=fir, progressive=progressive, progressive_input=progressive_input,
                  progressive_combine=combine)  # fmt: skip
    others = [
        dict(embedding_type="fourier", channels=1, scale_by_sigma=True, resamp_with_conv=True, num_classes=4),
        dict(embedding_type="positional", channels=2, scale_by_sigma=False, resamp_with_conv=False, skip_rescale=False),
        dict(
            embedding_type="positional",
            conditional=False,
            ch_mult=(1, 2, 3),
            centered=True,
            gradient_checkpointing=True,
        ),
    ]
    for options in others:
        network = tiny(**shared, **options)
        x = torch.randn(2, network.channels, 8, 12)
        y = torch.tensor([0, 4]) if network.num_classes else None
        out = network(x, label_for(network, 2), y)
        assert out.shape == x.shape and out.dtype == x.dtype and out.isfinite().all()
        out.square().sum().backward()
        unused = [name for name, p in network.named_parameters() if p.grad is None]
        assert all(".emb." in name for name in unused) if options.get("conditional") is False else not unused
        if not network.num_classes:
            names = original_names(network)
            assert names.keys() == network.state_dict().keys() and len(set(names.values())) == len(names)


@pytest.mark.parametrize("nonlinearity", ["elu", "relu", "lrelu", "swish"])
@pytest.mark.parametrize("taps", [(1, 1), (1, 2, 1), (1, 4, 6, 4, 1)])
def test_other_activations_and_filters(nonlinearity, taps):
    network = tiny(nonlinearity=nonlinearity, fir_kernel=taps, progressive="residual")
    assert network(torch.randn(1, 3, 8, 8), torch.ones(1)).isfinite().all()


def test_widths_that_four_does_not_divide():
    network = tiny(nf=5, ch_mult=(1, 3))
    assert network(torch.randn(1, 3, 8, 8), torch.ones(1)).isfinite().all()


def test_attention_sits_at_levels_not_at_sizes():
    network = tiny(image_size=8, attn_resolutions=(8,), ch_mult=(1, 2))
    assert [len(level.attentions) for level in network.down] == [1, 0]
    network(torch.randn(1, 3, 16, 4), torch.ones(1))


# --- behaviour --------------------------------------------------------------------------------------------------------


def test_initial_output_is_nearly_zero_and_initial_weights_have_the_published_spread():
    network = tiny(init_scale=0.0)
    assert float(network(torch.randn(2, 3, 8, 8), torch.ones(2)).detach().abs().max()) < 1e-3
    weight = variance_scaling_(torch.empty(64, 32, 3, 3), scale=2.0)
    bound = (3 * 2.0 / (48 * 9)) ** 0.5
    assert float(weight.abs().max()) <= bound and float(weight.abs().max()) > 0.99 * bound
    torch.testing.assert_close(float(weight.var()), bound**2 / 3, rtol=0.05, atol=0)  # 18432 draws


def test_samples_do_not_influence_each_other():
    network = tiny(progressive="output_skip", progressive_input="input_skip").eval()
    x, label = torch.randn(3, 3, 8, 8), torch.tensor([0.1, 1.0, 10.0])
    torch.testing.assert_close(network(x, label)[1:2], network(x[1:2], label[1:2]), atol=1e-5, rtol=1e-5)


def test_centred_data():
    raw, centred = tiny(centered=False), tiny(centered=True)
    centred.load_state_dict(raw.state_dict())
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(raw(x, torch.ones(2)), centred(2 * x - 1, torch.ones(2)))


def test_classes_start_without_effect_and_then_matter():
    network = tiny(num_classes=3).eval()
    x, label = torch.randn(2, 3, 8, 8), torch.ones(2)
    first = network(x, label, torch.tensor([0, 1]))
    assert torch.equal(first, network(x, label, torch.tensor([3, 3])))
    torch.nn.init.normal_(network.conditioning.classes.weight)
    second = network(x, label, torch.tensor([0, 3]))
    assert not torch.allclose(second[1], network(x, label, torch.tensor([0, 1]))[1])
    assert tiny(num_classes=3, conditional=False)(x, label, torch.tensor([0, 1])).isfinite().all()


def test_division_by_the_table_truncates_labels_and_checks_them_only_when_used():
    plain = tiny(embedding_type="positional", scale_by_sigma=False)
    divided = tiny(embedding_type="positional", scale_by_sigma=True)
    divided.load_state_dict(plain.state_dict())
    x, label = torch.randn(2, 3, 8, 8), torch.tensor([0.9, 19.0])
    sigma = torch.tensor([50.0, 0.01]).view(2, 1, 1, 1)
    torch.testing.assert_close(divided(x, label), plain(x, label) / sigma)
    assert plain(x, torch.tensor([500.0, 999.0])).isfinite().all()
    with pytest.raises(ValueError, match="may be 0 to 19; got values from 0 to 20"):
        divided(x, torch.tensor([0, 20]))


def test_errors_say_what_is_wrong():
    network = tiny(ch_mult=(1, 2, 2))
    x, label = torch.randn(2, 3, 8, 8), torch.ones(2)
    for arguments, message in [
        ((x[:, :1], label), r"needs images of shape \(B, 3, H, W\), got \(2, 1, 8, 8\)"),
        ((x[..., :6], label), "multiples of 4, got 8 x 6"),
        ((x, label[:1]), "one c_noise per sample"),
        ((x, label * 0), "needs `c_noise` > 0"),
        ((x, torch.tensor([1.0, 0.0])), "needs `c_noise` > 0"),
        ((x, label, torch.zeros(2, dtype=torch.long)), "without classes"),
    ]:
        with pytest.raises(ValueError, match=message):
            network(*arguments)
    classy = tiny(num_classes=3)
    with pytest.raises(ValueError, match="needs `y`"):
        classy(x, label)
    with pytest.raises(ValueError, match="one integer per sample"):
        classy(x, label, label)
    with pytest.raises(ValueError, match="may be 0 to 3"):
        classy(x, label, torch.tensor([0, 4]))
    for options, message in [
        (dict(progressive="skip"), "no such `progressive`. Did you mean 'output_skip'"),
        (dict(ch_mult=()), "ch_mult"),
        (dict(nonlinearity="gelu"), "Known: elu, lrelu, relu, swish"),
        (dict(num_classes=0), "num_classes"),
        (dict(sigma_min=2.0, sigma_max=1.0), "sigma_min <= sigma_max"),
    ]:
        with pytest.raises(ValueError, match=message):
            tiny(**options)


def test_recomputing_changes_nothing_but_memory():
    kept, recomputed = tiny(), tiny(gradient_checkpointing=True)
    recomputed.load_state_dict(kept.state_dict())
    x, label = torch.randn(2, 3, 8, 8), torch.ones(2)
    for network in (kept, recomputed):
        network(x, label).square().sum().backward()
    for p, q in zip(kept.parameters(), recomputed.parameters()):
        torch.testing.assert_close(p.grad, q.grad)


def test_dropout_acts_in_training_only():
    network = tiny(dropout=0.5)
    x, label = torch.randn(2, 3, 8, 8), torch.ones(2)
    assert not torch.equal(network(x, label), network(x, label))
    network.eval()
    assert torch.equal(network(x, label), network(x, label))


@pytest.mark.parametrize("options", [{}, dict(progressive="residual", embedding_type="positional")])
def test_derivatives_of_second_order_and_forward_mode(options):
    """What sliced score matching and likelihoods need; the fused attention kernels have neither."""
    network = tiny(attn_resolutions=(8, 4), **options).double().eval()
    x, v = torch.randn(1, 3, 8, 8).double(), torch.randn(1, 3, 8, 8).double()
    label = torch.ones(1).double()

    def scalar(x):
        return (network(x, label) * v).sum()

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(scalar(x), x, create_graph=True)
    (hessian_v,) = torch.autograd.grad((gradient * v).sum(), x)
    step = 1e-5
    ahead, behind = (torch.autograd.grad(scalar(x + s * v), x)[0] for s in (step, -step))
    # central differences: error of order step^2, and rounding 1e-16 / step
    torch.testing.assert_close(hessian_v, (ahead - behind) / (2 * step), rtol=1e-4, atol=1e-6)
    _, jvp = torch.func.jvp(lambda x: network(x, label), (x.detach(),), (v,))
    with torch.no_grad():
        difference = (network(x + step * v, label) - network(x - step * v, label)) / (2 * step)
    torch.testing.assert_close(jvp, difference, rtol=1e-4, atol=1e-6)


def test_both_attentions_agree():
    q, k, v = torch.randn(3, 2, 1, 16, 8).unbind()
    torch.testing.assert_close(attention(q, k, v), attention(q, k, v, plain=True), atol=1e-6, rtol=1e-5)


def test_types_formats_and_devices():
    network = tiny(progressive="residual", attn_resolutions=(8,)).eval()
    x, label = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 20.0])
    expected = network(x, label)
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), label)
    torch.testing.assert_close(last, expected, atol=1e-5, rtol=1e-5)

    cast = copy.deepcopy(network).bfloat16()
    assert cast.conditioning.embedding.frequencies.dtype == torch.float32  # else the Fourier features are noise
    out = cast(x.bfloat16(), label)
    assert out.dtype == torch.bfloat16
    scale = float(expected.abs().max())
    assert float((out.float() - expected).abs().max()) < 0.1 * scale  # 8 bits through some twenty layers
    with torch.autocast("cpu", torch.bfloat16):
        out = network(x, label)
    assert out.dtype == torch.float32
    assert float((out - expected).abs().max()) < 0.1 * scale
    assert network.double()(x.double(), label).dtype == torch.float64

    with torch.device("meta"):
        on_meta = tiny(progressive="residual", attn_resolutions=(8,))
        assert on_meta(torch.empty(2, 3, 8, 8), torch.empty(2)).shape == x.shape
    on_meta.to_empty(device="cpu").load_state_dict(network.float().state_dict())
    assert torch.equal(on_meta.eval()(x, label), network(x, label))


@pytest.mark.parametrize("options", [{}, dict(embedding_type="positional", num_classes=2)])
def test_compiles_in_one_graph(options):
    network = tiny(**options).eval()
    x, label = torch.randn(2, 3, 8, 8), torch.ones(2)
    y = torch.tensor([0, 1]) if network.num_classes else None
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, label, y), network(x, label, y), atol=1e-5, rtol=1e-5)


def test_registered_and_filled_from_the_data():
    network = MODELS.build("ncsnpp(nf=8, ch_mult=(1, 2), num_res_blocks=1)", channels=1, image_size=8, num_classes=None)
    assert isinstance(network, NCSNpp) and network.channels == 1 and network.image_size == 8


def test_the_table_of_noise_levels(golden_dir):
    z, meta, _ = load_golden(golden_dir / "grids.npz")
    for i, (sigma_min, sigma_max, num_scales) in enumerate(meta["sigmas"]):
        recorded = z[f"s{i}_buffer_descending_float64"]
        table = SigmaTable(sigma_min, sigma_max, num_scales)
        # exp of float64 numbers: libraries differ in the last bits
        torch.testing.assert_close(table.bits.view(torch.float64), recorded, rtol=1e-14, atol=0)
