"""Laws of `DataInfo` and `Scaler`: round trips, and log-determinants against the Jacobian."""

import json
import math

import pytest
import torch

from sde_score.data import DataInfo, Scaler
from sde_score.tensors import GeneratorNoise, SampleNoise

SCALERS = {
    "centered": Scaler((1, 2, 3), levels=17),
    "unit": Scaler((1, 2, 3), levels=256, centered=False),
    "published": Scaler((1, 2, 3), levels=256, dequantize=False),
    "vector": Scaler((3,), mean=[1.0, -2.0, 0.5], std=[0.1, 2.0, 3.0]),
    "channels": Scaler((2, 5), mean=[[1.0], [2.0]], std=[[0.5], [4.0]]),
    "identity": Scaler((2, 2, 2, 2)),
}


def noise(seed=0):
    return GeneratorNoise(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SCALERS)
def test_log_det_is_that_of_the_jacobian(name):
    scaler = SCALERS[name]
    x = torch.rand(1, *scaler.shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(scaler.forward, x).reshape(x.numel(), x.numel())
    assert scaler.log_det == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet), abs=1e-12)


@pytest.mark.parametrize("name", SCALERS)
def test_inverse_undoes_forward_and_the_state_survives_json(name):
    scaler = SCALERS[name]
    x = torch.randn(4, *scaler.shape, dtype=torch.float64)
    torch.testing.assert_close(scaler.inverse(scaler.forward(x)), x, rtol=0, atol=1e-13)
    again = Scaler.from_state_dict(json.loads(json.dumps(scaler.state_dict())))
    assert torch.equal(again.forward(x), scaler.forward(x)) and again.log_det == scaler.log_det
    assert again.dequantizes == scaler.dequantizes
    assert scaler.forward(x.float()).dtype == torch.float32


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("dequantize", [True, False])
def test_every_level_survives_encoding(levels, centered, dequantize):
    scaler = Scaler((levels,), levels=levels, centered=centered, dequantize=dequantize)
    x = torch.arange(levels, dtype=torch.uint8).expand(50, -1)
    model = scaler.encode(x, noise())
    assert model.min() >= (-1 if centered else 0) and model.max() <= 1
    assert torch.equal(scaler.to_levels(model), x)
    assert torch.equal(scaler.to_levels(scaler.encode(x)), x)
    pictures = scaler.to_uint8(scaler.encode(x))
    assert pictures[0, 0] == 0 and pictures[0, -1] == 255
    if levels == 256:
        assert torch.equal(pictures, x)


def test_dequantised_levels_fill_their_cells_uniformly():
    scaler = Scaler((1000,), levels=17)
    x = torch.full((200, 1000), 5, dtype=torch.uint8)
    u = scaler.dequantize(x, noise()).double() * 17 - 5
    assert u.min() >= 0 and u.max() <= 1 + 1e-6
    # 200,000 draws: five standard errors of the mean and of the mean square.
    assert abs(u.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / 2e5)
    assert abs(u.square().mean() - 1 / 3) < 5 * math.sqrt(4 / 45 / 2e5)


def test_dequantisation_follows_the_sample_not_the_batch():
    scaler = Scaler((4,), levels=17)
    x = torch.randint(0, 17, (6, 4), dtype=torch.uint8)
    whole = scaler.encode(x, SampleNoise(3, range(6)))
    assert torch.equal(whole[4:], scaler.encode(x[4:], SampleNoise(3, [4, 5])))


def test_uniform_density_gives_log2_levels_bits_per_dim():
    scaler = Scaler((1, 8, 8), levels=17)
    log_p_model = -64 * math.log(2.0)  # uniform on [-1, 1]^64
    bits = -(log_p_model + scaler.log_det_levels) / (64 * math.log(2))
    assert bits == pytest.approx(math.log2(17), abs=1e-12)
    assert Scaler((3,), std=2.0).log_det_levels == Scaler((3,), std=2.0).log_det


def test_out_of_range_model_values_are_clamped_and_nan_is_refused():
    scaler = Scaler((3,), levels=256)
    assert scaler.to_uint8(torch.tensor([[-9.0, 0.0, 9.0]])).tolist() == [[0, 128, 255]]
    with pytest.raises(ValueError, match="NaN"):
        scaler.to_levels(torch.tensor([[0.0, math.nan, 0.0]]))


def test_wrong_use_is_explained():
    scaler = Scaler((1, 8, 8), levels=17)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\).*got \(2, 8, 8\)"):
        scaler.forward(torch.zeros(2, 8, 8))
    with pytest.raises(ValueError, match="integers 0 .. 16"):
        scaler.dequantize(torch.zeros(2, 1, 8, 8), noise())
    with pytest.raises(ValueError, match="continuous"):
        Scaler((2,)).to_levels(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="std"):
        Scaler((2,), std=[1.0, 0.0])
    with pytest.raises(ValueError, match="broadcast"):
        Scaler((2,), mean=[1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="continuous data"):
        Scaler((2,), levels=17, mean=3.0)


def test_info_survives_json_and_checks_itself():
    info = DataInfo("cats", [3, 4, 5], num_classes=2, levels=256, class_names=["a", "b"])
    assert info.kind == "image" and info.channels == 3 and info.dim == 60
    assert DataInfo.from_json(info.to_json()) == info
    assert [DataInfo("d", (2,) * n).kind for n in (1, 2, 3, 4)] == ["vector", "series", "image", "volume"]
    for wrong in (dict(levels=1), dict(num_classes=0), dict(kind="picture"), dict(shape=()), dict(shape=(0, 2))):
        with pytest.raises(ValueError):
            DataInfo(**{"name": "d", "shape": (2,), **wrong})
