"""Laws of `DataInfo` and `Scaler`: round trips, and log-determinants against the Jacobian."""

import json
import math

import pytest
import torch

from sde_score.data import Condition, DataInfo, Scaler
from sde_score.likelihood import bits_per_dim
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
    expected = float(torch.linalg.slogdet(jacobian).logabsdet)
    assert scaler.log_det(scaler.forward(x)).tolist() == pytest.approx([expected], abs=1e-12)


@pytest.mark.parametrize("name", SCALERS)
def test_inverse_undoes_forward_and_the_state_survives_json(name):
    scaler = SCALERS[name]
    x = torch.randn(4, *scaler.shape, dtype=torch.float64)
    torch.testing.assert_close(scaler.decode(scaler.forward(x)), x, rtol=0, atol=1e-13)
    again = Scaler.from_state_dict(json.loads(json.dumps(scaler.state_dict())))
    assert torch.equal(again.forward(x), scaler.forward(x)) and torch.equal(again.log_det(x), scaler.log_det(x))
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
    logp = torch.full((2,), -64 * math.log(2.0), dtype=torch.float64)  # uniform on [-1, 1]^64
    log_det = scaler.log_det(torch.zeros(2, 1, 8, 8, dtype=torch.float64))
    bits = bits_per_dim(logp, dim=64, levels=17, log_det=log_det, dequantisation="uniform")
    assert bits.tolist() == pytest.approx([math.log2(17)] * 2, abs=1e-12)


def test_densities_need_dequantisation_and_the_codec_gives_it():
    published = Scaler((4,), levels=17, dequantize=False)
    x = torch.randint(0, 17, (6, 4), dtype=torch.uint8)
    assert torch.equal(published.for_density().encode(x, noise()), Scaler((4,), levels=17).encode(x, noise()))
    assert published.for_density().for_density().dequantizes
    assert not Scaler((4,), levels=17, centered=False, dequantize=False).for_density().centered
    assert Scaler((4,), std=2.0).for_density().std == 2.0


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
    conditions = {
        "y": Condition(num=2, names=["a", "b"]),
        "tags": Condition("labels", num=40),
        "angle": Condition("vector", (1,)),
        "text": Condition("sequence", (77,), 5000),
        "states": Condition("sequence", (77, 512)),
        "photo": Condition("image", (3, 4, 5)),
    }
    info = DataInfo("cats", [3, 4, 5], levels=256, conditions=conditions)
    assert info.kind == "image" and info.channels == 3 and info.dim == 60
    assert info.num_classes == 2 and info.class_names == ("a", "b") and info.conditions["tags"].shape == (40,)
    assert DataInfo.from_json(info.to_json()) == info
    assert [DataInfo("d", (2,) * n).kind for n in (1, 2, 3, 4)] == ["vector", "series", "image", "volume"]
    assert DataInfo("d", (2,), conditions={"y": Condition("vector", (2,))}).num_classes is None
    for wrong in (dict(levels=1), dict(kind="picture"), dict(shape=()), dict(shape=(0, 2)), dict(conditions={"x": y})):
        with pytest.raises(ValueError):
            DataInfo(**{"name": "d", "shape": (2,), **wrong})
    with pytest.raises(ValueError, match="num_classes: another version"):
        DataInfo.from_dict({"name": "d", "shape": [2], "num_classes": 3})


y = Condition(num=3)


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(kind="clas", num=3), "'class'"),
        (dict(), "must be positive"),
        (dict(num=0), "got 0"),
        (dict(num=3, shape=(3,)), r"got shape \(3,\)"),
        (dict(kind="vector", shape=(3,), num=3), "must be None"),
        (dict(kind="vector"), r"real numbers \(N, K\)"),
        (dict(kind="labels", num=3, shape=(4,)), r"shape \(3,\)"),
        (dict(kind="image", shape=(3, 4)), r"\(N, C, H, W\)"),
        (dict(num=3, names=("a",)), "name all of 3"),
    ],
)
def test_a_condition_checks_itself(wrong, words):
    with pytest.raises(ValueError, match=words):
        Condition(**wrong)


@pytest.mark.parametrize(
    "values, expected, dtype",
    [
        (torch.tensor([2, 0, 1], dtype=torch.uint8), Condition(num=3), torch.int64),
        (torch.tensor([[2], [0], [1]]), Condition(num=3), torch.int64),
        (torch.rand(3, dtype=torch.float64), Condition("vector", (1,)), torch.float32),
        (torch.rand(3, 5), Condition("vector", (5,)), torch.float32),
        (torch.rand(3, 5) > 0.5, Condition("labels", num=5), torch.float32),
        (torch.tensor([[0, 7], [1, 2], [3, 3]]), Condition("sequence", (2,), 8), torch.int64),
        (torch.rand(3, 4, 5), Condition("sequence", (4, 5)), torch.float32),
        (torch.rand(3, 1, 4, 5), Condition("image", (1, 4, 5)), torch.float32),
        (torch.zeros(3, 1, 4, 5, dtype=torch.uint8), Condition("image", (1, 4, 5)), torch.uint8),
    ],
    ids=lambda v: v.kind if isinstance(v, Condition) else None,
)
def test_values_tell_what_they_are(values, expected, dtype):
    assert Condition.of(values) == expected
    kept = expected.convert(values, 3)
    assert kept.dtype == dtype and kept.shape == (3, *expected.shape)
    assert torch.equal(kept.flatten().double(), values.flatten().double().to(dtype).double())


def test_values_that_are_no_condition_or_another_are_refused():
    for values in (torch.zeros(3, 2, dtype=torch.complex64), torch.zeros(3, 2, 2, dtype=torch.int64), torch.zeros(0)):
        with pytest.raises(ValueError, match="no kind of condition"):
            Condition.of(values)
    for described, values, words in (
        (y, torch.tensor([0, 3]), "from 0 to 3; they run from 0 to 2"),
        (y, torch.tensor([0, -1]), "from -1"),
        (y, torch.tensor([0.0, 1.0]), "torch.float32"),
        (y, torch.tensor([0, 1, 2]), r"\(3,\)"),
        (Condition("labels", num=2), torch.tensor([[0, 2], [1, 1]]), "run from 0 to 1"),
        (Condition("vector", (2,)), torch.tensor([[0.0, 1.0], [math.nan, 0.0]]), r"index \(1, 0\): nan"),
        (Condition("image", (1, 2, 2)), torch.zeros(2, 2, 2), r"\(2, 1, 2, 2\)"),
    ):
        with pytest.raises(ValueError, match=words):
            described.convert(values, 2)
