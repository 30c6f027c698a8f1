"""DDPM: the recorded network, its options, and where it differs from NCSN++."""

import json

import numpy as np
import pytest
import torch

from sde_score.models.ddpm import DDPM
from sde_score.models.official.architecture import build_network, network_facts
from sde_score.models.official.names import load_original, to_original_state_dict, trainable_original_names

TOL = 1e-5  # the tolerance that the recorded numbers state


def tiny(**options):
    settings = dict(image_size=8, nf=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), dropout=0.0)
    settings["num_scales"] = 20
    network = DDPM(**(settings | options))
    with torch.no_grad():  # the published initial output is zero
        network.conv_out.weight.normal_(std=0.1)
    return network


def test_recorded_network(golden_dir):
    z = np.load(golden_dir / "net08_ddpm_vp.npz")
    meta, config = json.loads(str(z["meta_json"])), json.loads(str(z["config_json"]))
    network = build_network(network_facts(config)).eval()
    assert isinstance(network, DDPM)
    original = {key: torch.from_numpy(z[f"sd/{key}"]) for key in meta["order"]}
    load_original(network, original)
    back = to_original_state_dict(network)
    assert list(back) == meta["order"]
    assert all(back[key].dtype == t.dtype and torch.equal(back[key], t) for key, t in original.items())
    assert trainable_original_names(network) == [key for key, _, trainable in meta["params"] if trainable]

    x, cond, v = (torch.from_numpy(z[key]) for key in ("x", "cond", "v"))
    x.requires_grad_()
    out = network(x, cond)
    output, vjp = torch.from_numpy(z["output"]), torch.from_numpy(z["vjp_x"])
    assert float((out - output).abs().max()) <= TOL * max(1.0, float(output.abs().max()))
    (gradient,) = torch.autograd.grad((out * v).sum(), x)
    assert float((gradient - vjp).abs().max()) <= TOL * float(vjp.abs().max())
    with torch.no_grad():  # fused attention
        assert float((network(x, cond) - output).abs().max()) <= TOL * max(1.0, float(output.abs().max()))


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("resamp_with_conv", [True, False])
@pytest.mark.parametrize("scale_by_sigma", [True, False])
@pytest.mark.parametrize("num_classes", [None, 3])
def test_every_combination_runs(conditional, resamp_with_conv, scale_by_sigma, num_classes):
    network = tiny(
        channels=1,
        ch_mult=(1, 1, 2),
        conditional=conditional,
        resamp_with_conv=resamp_with_conv,
        scale_by_sigma=scale_by_sigma,
        num_classes=num_classes,
        gradient_checkpointing=conditional,
    )
    x, label = torch.randn(2, 1, 8, 12), torch.tensor([0, 19])
    y = None if num_classes is None else torch.tensor([0, 3])
    out = network(x, label, y)
    assert out.shape == x.shape and out.isfinite().all()
    out.square().sum().backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None]
    assert not unused if conditional or num_classes else all(".emb." in name for name in unused)


def test_division_by_sigma_reads_the_descending_table():
    plain, divided = tiny(), tiny(scale_by_sigma=True)
    divided.load_state_dict(plain.state_dict())
    x, label = torch.randn(2, 3, 8, 8), torch.tensor([0, 19])
    torch.testing.assert_close(divided(x, label), plain(x, label) / torch.tensor([50.0, 0.01]).view(2, 1, 1, 1))
    with pytest.raises(ValueError, match="may be 0 to 19"):
        divided(x, torch.tensor([0, 999]))
    assert plain(x, torch.tensor([0.0, 999.0])).dtype == torch.float32


def test_initial_output_is_nearly_zero():
    network = DDPM(image_size=8, nf=32, ch_mult=(1, 2), num_res_blocks=1)
    assert float(network(torch.randn(2, 3, 8, 8), torch.zeros(2)).detach().abs().max()) < 1e-3


def test_other_widths_and_errors():
    network = tiny(nf=24)  # 32 groups do not divide 24, 24 do
    assert network(torch.randn(1, 3, 8, 8), torch.ones(1)).isfinite().all()
    with pytest.raises(ValueError, match="multiples of 2, got 7 x 8"):
        network(torch.randn(1, 3, 7, 8), torch.ones(1))
    with pytest.raises(ValueError, match=r"needs images of shape \(B, 3, H, W\)"):
        network(torch.randn(1, 1, 8, 8), torch.ones(1))
    with pytest.raises(ValueError, match="without classes"):
        network(torch.randn(1, 3, 8, 8), torch.ones(1), torch.zeros(1, dtype=torch.long))


def test_compiles_and_casts():
    network = tiny().eval()
    x, label = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 999.0])
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, label), network(x, label), atol=1e-5, rtol=1e-5)
    assert network.bfloat16()(x.bfloat16(), label).dtype == torch.bfloat16
