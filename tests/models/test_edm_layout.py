"""The SongUNet layout of EDM. The reference outputs were computed once with nvidia-modulus 0.9 from the weights below.

(In training mode without dropout: its inference mode takes the unbiased variance in its norms, which EDM does not.)
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_score.models.ncsnpp import NCSNpp
from sde_score.models.official.checkpoint import OfficialCheckpointError, UnsafeFile, WrongArchitecture
from sde_score.models.official.edm_layout import edm_parameterization, load_edm, to_edm
from sde_score.models.score_model import ScoreModel
from sde_score.sdes import SDES

FAMILIES = ("ddpmpp", "ncsnpp", "skip", "classes")


@pytest.fixture(scope="module")
def recorded():
    return np.load(Path(__file__).with_name("edm_reference.npz"))


def reference_state(recorded, family):
    """The weights behind the reference outputs, drawn in the order of the names, and the FIR filters."""
    random, state = np.random.RandomState(0), {}
    shapes = json.loads(str(recorded[f"{family}_shapes"]))
    for name in sorted(shapes):
        if name.endswith("resample_filter"):
            taps = torch.tensor([1.0, 1.0] if shapes[name][-1] == 2 else [1.0, 3.0, 3.0, 1.0])
            state[name] = (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]
            continue
        values = random.standard_normal(shapes[name]).astype(np.float32)
        if name == "map_noise.freqs":
            values *= 16
        elif len(shapes[name]) > 1:
            values /= np.sqrt(np.prod(shapes[name][1:]))
        else:
            values = 0.2 * values + ("norm" in name and name.endswith("weight"))
        state[name] = torch.from_numpy(np.asarray(values, dtype=np.float32))
    return state


@pytest.mark.parametrize("family", FAMILIES)
def test_denoiser_equals_the_reference(recorded, family, tmp_path):
    state = {f"model.{name}": tensor for name, tensor in reference_state(recorded, family).items()}
    torch.save(state, tmp_path / "edm.pt")
    network = load_edm(tmp_path / "edm.pt", class_label=3 if family == "classes" else None)
    y, sigma = torch.from_numpy(recorded["x"]), torch.from_numpy(recorded["sigma"])  # y: the network's own input
    model = ScoreModel(network, SDES.build("edm"), edm_parameterization(network))
    total = torch.sqrt(sigma**2 + 0.25)[:, None, None, None]
    x = y * total
    with torch.no_grad():
        denoised = model.denoise(x, sigma)
    # D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), Karras et al. 2022, table 1
    reference = 0.25 / total**2 * x + sigma[:, None, None, None] * 0.5 / total * torch.from_numpy(
        recorded[f"{family}_out"]
    )
    assert (denoised - reference).abs().max() < 1e-5 * max(1, float(reference.abs().max()))


@pytest.mark.parametrize("family", FAMILIES[:3])
def test_round_trip_is_exact(recorded, family):
    state = reference_state(recorded, family)
    again = to_edm(load_edm(state))
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)


def test_another_image_size_changes_names_only(recorded):
    network = load_edm(reference_state(recorded, "ncsnpp"))
    large = load_edm(to_edm(network, image_size=32))
    assert large.image_size == 32
    x, label = torch.rand(1, 2, 8, 8), torch.tensor([0.7])
    torch.testing.assert_close(network(x, label), large(x, label), rtol=0, atol=1e-5)


def test_classes(recorded):
    state = reference_state(recorded, "classes")
    x, label = torch.rand(1, 2, 8, 8), torch.tensor([0.1])
    outputs = [load_edm(state, class_label=y)(x, label) for y in (None, 0, 4)]
    assert not torch.allclose(outputs[0], outputs[1]) and not torch.allclose(outputs[1], outputs[2])
    with pytest.raises(OfficialCheckpointError, match="0 to 4"):
        load_edm(state, class_label=5)
    with pytest.raises(OfficialCheckpointError, match="unconditional"):
        load_edm(reference_state(recorded, "ddpmpp"), class_label=0)


class Anything:
    pass


def test_errors(recorded, tmp_path):
    state = reference_state(recorded, "ddpmpp")
    state.pop("dec.4x4_in0.qkv.bias")
    with pytest.raises(WrongArchitecture, match="dec.4x4_in0.qkv.bias: missing"):
        load_edm(state)
    with pytest.raises(OfficialCheckpointError, match="not the tensors of a SongUNet"):
        load_edm({"conv.weight": torch.zeros(1)})
    torch.save({"ema": Anything()}, tmp_path / "network.pkl")
    with pytest.raises(UnsafeFile, match="network.pkl was refused"):
        load_edm(tmp_path / "network.pkl")
    with pytest.raises(OfficialCheckpointError, match="scale_by_sigma=True, centered=False"):
        to_edm(NCSNpp(nf=8))
