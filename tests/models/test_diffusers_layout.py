"""The UNet2DModel layout of diffusers. The reference outputs were computed once with diffusers 0.31, from the weights
below."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_score.models.ddpm import DDPM
from sde_score.models.ncsnpp import NCSNpp
from sde_score.models.official.checkpoint import OfficialCheckpointError, WrongArchitecture
from sde_score.models.official.diffusers_layout import diffusers_facts, load_diffusers, to_diffusers
from sde_score.published import PUBLISHED, network_arguments

REFERENCE = Path(__file__).with_name("diffusers_reference.npz")

CHURCH = {  # config.json of google/ncsnpp-church-256
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 128, 256, 256, 256, 256, 256],
    "center_input_sample": True,
    "down_block_types": ["SkipDownBlock2D"] * 4 + ["AttnSkipDownBlock2D"] + ["SkipDownBlock2D"] * 2,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1.41421356237,
    "norm_eps": 1e-06,
    "norm_num_groups": None,
    "out_channels": 3,
    "sample_size": 256,
    "time_embedding_type": "fourier",
    "up_block_types": ["SkipUpBlock2D"] * 2 + ["AttnSkipUpBlock2D"] + ["SkipUpBlock2D"] * 4,
}
CIFAR10 = {  # config.json of google/ddpm-cifar10-32
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}


def reference_weights(shapes):
    """The weights behind the reference outputs, drawn in the order of the names."""
    random, weights = np.random.RandomState(0), {}
    for name in sorted(shapes):
        values = random.standard_normal(shapes[name]).astype(np.float32)
        if name == "time_proj.weight":
            values *= 16
        elif len(shapes[name]) > 1:
            values /= np.sqrt(np.prod(shapes[name][1:]))
        else:
            values = 0.2 * values + ("norm" in name and name.endswith("weight"))
        weights[name] = torch.from_numpy(np.asarray(values, dtype=np.float32))
    return weights


def small_network(family, config):
    name, arguments = network_arguments(diffusers_facts(config))
    assert name == family
    return (NCSNpp if name == "ncsnpp" else DDPM)(**arguments)


@pytest.mark.parametrize("family", ["ncsnpp", "ddpm"])
def test_outputs_equal_those_of_diffusers(family):
    recorded = np.load(REFERENCE)
    config = json.loads(str(recorded[f"{family}_config"]))
    shapes = {name: tuple(t.shape) for name, t in to_diffusers(small_network(family, config)).items()}
    network = load_diffusers(reference_weights(shapes), config)
    with torch.no_grad():
        out = network(torch.from_numpy(recorded[f"{family}_x"]), torch.from_numpy(recorded[f"{family}_label"]))
    reference = torch.from_numpy(recorded[f"{family}_out"])
    # Two float32 evaluations of the same network in another order: 4e-6 seen.
    assert (out - reference).abs().max() < 1e-5 * max(1, float(reference.abs().max()))


@pytest.mark.parametrize("family", ["ncsnpp", "ddpm"])
@pytest.mark.parametrize("old_names", [False, True])
def test_round_trip_is_exact(family, old_names, tmp_path):
    config = json.loads(str(np.load(REFERENCE)[f"{family}_config"]))
    network = small_network(family, config)
    state = to_diffusers(network)
    if old_names:
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            state = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_diffusers(tmp_path)
    own, again = network.state_dict(), loaded.state_dict()
    assert all(torch.equal(own[name], again[name]) for name in own)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    config = json.loads(str(np.load(REFERENCE)["ddpm_config"]))
    network = small_network("ddpm", config)
    safetensors.save_file(to_diffusers(network), tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(load_diffusers(tmp_path).conv_in.weight, network.conv_in.weight)


def test_published_ncsnpp_has_the_architecture_of_its_configuration():
    published = network_arguments(PUBLISHED["ve/church_ncsnpp_continuous"])[1]
    imported = network_arguments(diffusers_facts(CHURCH))[1]
    different = {key for key in published if key in imported and published[key] != imported[key]}
    # diffusers counts center_input_sample = "map [0, 1] to [-1, 1]", as `centered = False` does
    assert different == set() and imported["centered"] is False
    with torch.device("meta"):
        names = to_diffusers(NCSNpp(**imported))
    assert len(names) == 645  # the 646 published tensors but for the table of sigmas
    assert names["up_blocks.0.skip_conv.weight"].shape == (3, 256, 3, 3)
    assert names["down_blocks.4.attentions.1.to_q.weight"].shape == (256, 256)


def test_published_ddpm_attends_after_each_block_on_the_way_up():
    with torch.device("meta"):
        names = to_diffusers(DDPM(**network_arguments(diffusers_facts(CIFAR10))[1]))
    assert sum(tensor.numel() for tensor in names.values()) == 35_746_307  # 35.7 million, as Ho et al. say
    assert "up_blocks.2.attentions.2.to_v.bias" in names and "down_blocks.0.downsamplers.0.conv.weight" in names


def test_errors():
    with pytest.raises(OfficialCheckpointError, match="attention_head_dim is 8"):
        diffusers_facts({**CIFAR10, "attention_head_dim": 8})
    with pytest.raises(OfficialCheckpointError, match="CrossAttnDownBlock2D"):
        diffusers_facts({**CIFAR10, "down_block_types": ["CrossAttnDownBlock2D"] * 4})
    with pytest.raises(OfficialCheckpointError, match="need their config.json"):
        load_diffusers({"conv_in.weight": torch.zeros(1)})
    small = {**CIFAR10, "block_out_channels": [32, 32, 32, 32]}
    with pytest.raises(WrongArchitecture, match="conv_in.bias: missing"):
        load_diffusers({"conv_in.weight": torch.zeros(32, 3, 3, 3)}, small)
    with pytest.raises(OfficialCheckpointError, match="up_attention='each'"):
        to_diffusers(DDPM(nf=32))
    with pytest.raises(OfficialCheckpointError, match="output_skip"):
        to_diffusers(NCSNpp(nf=8))
    with pytest.raises(OfficialCheckpointError, match="32 groups"):
        diffusers_facts({**CHURCH, "block_out_channels": [16] * 7})
