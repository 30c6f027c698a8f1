"""The scaler of continuous data: precision, constant columns, logarithms and their Jacobians."""

import json
import math

import numpy as np
import pytest
import torch

from sde_score.data import CODECS, DataInfo, DataSplits, Scaler, TensorSplit, from_arrays, load_codec
from sde_score.data.statistics import statistics

JULIAN = 2.46e6 + np.arange(450) / 450  # within one day: float32 tells five of these apart


def dates():
    return np.stack([JULIAN, np.random.default_rng(0).normal(size=450)], 1)


def test_an_offset_keeps_its_values_both_ways():
    splits = from_arrays(dates())
    codec = Scaler.fit(splits)
    x = torch.cat([part[range(len(part))].x for part in (splits.train, splits.test)])
    z = codec.encode(x)
    assert z.dtype == torch.float32 and len(z[:, 0].unique()) == 450
    exact = (x - x[: len(splits.train)].mean(0)) / x[: len(splits.train)].std(0, correction=0)
    torch.testing.assert_close(z.double(), exact, rtol=0, atol=2e-7)  # half a last digit of float32 at 2
    back = codec.decode(z)
    assert back.dtype == torch.float64 and float((back - x)[:, 0].abs().max()) < 1e-7  # days: a last digit of z
    again = Scaler.from_state_dict(json.loads(json.dumps(codec.state_dict())))
    assert torch.equal(again.encode(x), z) and torch.equal(again.decode(z), back)


def test_data_in_float32_stay_so():
    codec = Scaler.fit(from_arrays(dates().astype(np.float32)[:, 1:] + 3))
    z = codec.encode(torch.randn(5, 1))
    assert z.dtype == torch.float32 and codec.decode(z).dtype == torch.float32
    assert codec.forward(torch.zeros(2, 1, dtype=torch.float64)).dtype == torch.float64


def test_constant_columns_are_named_with_the_flag_that_leaves_them_out():
    x = np.random.default_rng(0).normal(size=(40, 4))
    x[:, 1], x[:, 3] = 7.5, 0.1
    words = r"columns 'b' \(always 7.5\), 'd' \(always 0.1\) are constant.*--config.data.columns=\"\('a', 'c'\)\""
    with pytest.raises(ValueError, match=words):
        Scaler.fit(from_arrays(x, columns=("a", "b", "c", "d")))
    with pytest.raises(ValueError, match=r"column 1 \(always 7.5\) is constant.*columns=\"\(0, 2\)\""):
        Scaler.fit(from_arrays(x[:, :3]))
    with pytest.raises(ValueError, match="channel 1 .* is constant"):
        Scaler.fit(from_arrays(np.stack([x, 0 * x + 3], 1), layout="NCL"))
    small = x[:, :1] * 1e-9 + 1.0  # the deviation is a 1e-9th of the mean: small, and there
    assert float(Scaler.fit(from_arrays(small)).std) == pytest.approx(1e-9, rel=0.5)


def test_two_vectors_are_too_few_for_their_own_reason():
    with pytest.raises(ValueError, match="train has one sample, and one sample has no spread") as caught:
        Scaler.fit(from_arrays(np.array([[1.0, 2.0], [3.0, 5.0]])))
    assert "constant" not in str(caught.value)


def mixed(log=("price",), logit=("share",), n=400, dtype=np.float64):
    rng = np.random.default_rng(0)
    x = np.stack([rng.lognormal(8, 1.5, n), rng.beta(2, 5, n), rng.normal(3, 2, n)], 1).astype(dtype)
    splits = from_arrays(x, columns=("price", "share", "z"))
    spec = f"scaler(log={log!r}, logit={logit!r})"
    return splits, CODECS.build(spec, splits), spec, torch.tensor(x)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_logarithms_go_both_ways(dtype):
    splits, codec, spec, x = mixed(dtype=dtype)
    v, train = x.double(), splits.train[range(len(splits.train))].x.double()

    def bent(v):
        return torch.stack([v[:, 0].log(), torch.logit(v[:, 1]), v[:, 2]], 1)

    exact = (bent(v) - bent(train).mean(0)) / bent(train).std(0, correction=0)
    torch.testing.assert_close(codec.encode(x).double(), exact, rtol=1e-5, atol=1e-5)
    assert codec.encode(x).dtype == torch.float32
    torch.testing.assert_close(codec.decode(codec.encode(x)).double(), v, rtol=1e-5, atol=1e-5)
    assert (codec.decode(10 * torch.randn(1000, 3)).double()[:, :2] > 0).all()
    again = load_codec(spec, json.loads(json.dumps(codec.state_dict())))
    assert torch.equal(again.encode(x), codec.encode(x)) and repr(again) == repr(codec)


def test_log_determinants_against_automatic_differentiation():
    _, codec, _, x = mixed()
    z = codec.forward(x[:20])
    jacobians = [torch.autograd.functional.jacobian(lambda v: codec.forward(v[None])[0], row) for row in x[:20]]
    expected = torch.stack([torch.linalg.slogdet(j).logabsdet for j in jacobians])
    torch.testing.assert_close(codec.log_det(z), expected)
    step = 1e-6 * x[:20, 1]  # and one column of it by finite differences
    moved = torch.stack([torch.zeros_like(step), step, torch.zeros_like(step)], 1)
    slope = (codec.forward(x[:20] + moved) - codec.forward(x[:20] - moved))[:, 1] / (2 * step)
    share = x[:20, 1]
    torch.testing.assert_close(slope, 1 / (codec.std[1] * share * (1 - share)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind, ends", [("log", (1e-6, 400.0)), ("logit", (1e-9, 1 - 1e-9))])
def test_a_density_in_the_users_units_integrates_to_one(kind, ends):
    """p(v) = N(z(v)) |dz/dv| over a fine grid of v: only the right log-determinant gives 1."""
    v = torch.tensor(np.random.default_rng(0).uniform(0.2, 0.8, (50, 1)))
    codec = Scaler.fit(from_arrays(v), **{kind: True})
    grid = torch.linspace(0, 1, 400_001, dtype=torch.float64)
    grid = ends[0] + (ends[1] - ends[0]) * (grid**4 if kind == "log" else grid**3 * (10 - 15 * grid + 6 * grid**2))
    z = codec.forward(grid[:, None])
    logp = -0.5 * z[:, 0].square() - 0.5 * math.log(2 * math.pi) + codec.log_det(z)
    assert float(torch.trapezoid(logp.exp(), grid)) == pytest.approx(1, abs=2e-3)


def test_gradients_pass_where_no_logarithm_is_taken():
    _, codec, _, _ = mixed()
    z = torch.zeros(2, 3, requires_grad=True)
    codec.decode(z).sum().backward()
    assert torch.isfinite(z.grad).all() and (z.grad != 0).all()
    v = torch.tensor([[1.0, 0.5, -4.0]], dtype=torch.float64, requires_grad=True)  # log of -4 is nobody's business
    codec.forward(v).sum().backward()
    assert torch.isfinite(v.grad).all()


def test_values_without_a_logarithm_are_named():
    x = np.abs(np.random.default_rng(0).normal(size=(50, 2))) + 0.1
    x[7, 1] = -3.25
    splits = from_arrays(x, columns=("a", "b"), x_test=x[:5])
    with pytest.raises(ValueError, match="log takes positive numbers; the column 'b' holds -3.25"):
        CODECS.build("scaler(log=('b',))", splits)
    codec = CODECS.build("scaler(log=('a',))", splits)
    with pytest.raises(ValueError, match="the column 'a' holds 0. Take it out of --config.data.codec"):
        codec.encode(torch.tensor([[0.0, 1.0]]))
    for spec, words in (
        ("scaler(logit=('a',))", "logit takes numbers between 0 and 1; the column 'a' holds"),
        ("scaler(log=('c',))", "no column 'c'. "),
        ("scaler(log=(5,))", "columns 0 .. 1"),
        ("scaler(log='a')", r"write log=\('a',\)"),
        ("scaler(log=(0,), logit=('a',))", "not both"),
    ):
        with pytest.raises(ValueError, match=words):
            CODECS.build(spec, splits)
    levels = from_arrays(np.zeros((5, 4, 4), np.uint8) + np.arange(5, dtype=np.uint8)[:, None, None])
    with pytest.raises(ValueError, match="these have 256 grey levels"):
        CODECS.build("scaler(log=True)", levels)


def test_images_take_logarithms_of_all_or_of_some_channels():
    x = torch.rand(20, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 3000 + 1
    for log in (True, (1,)):
        codec = Scaler.fit(from_arrays(x, layout="NCHW"), log=log)
        z = codec.encode(x)
        torch.testing.assert_close(codec.decode(z), x, rtol=1e-5, atol=0)
        jacobian = torch.autograd.functional.jacobian(codec.forward, x[:1].double()).reshape(32, 32)
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(codec.log_det(z[:1])[0].double(), expected, rtol=1e-5, atol=1e-4)


def test_known_laws_keep_their_units():
    x = torch.randn(30, 2)
    part = TensorSplit(x)
    codec = Scaler.fit(DataSplits(part, part, DataInfo("d", (2,)), law=object()))
    assert torch.equal(codec.encode(x), x)


def test_statistics_of_what_is_transformed():
    x = torch.rand(500, 2, 7, dtype=torch.float64) + 0.5
    mean, std = statistics(TensorSplit(x), transform=torch.log, numbers=900)
    torch.testing.assert_close(mean[:, 0], x.log().mean((0, 2)))
    torch.testing.assert_close(std[:, 0], x.log().std((0, 2), correction=0))


def test_the_range_of_pictures_is_that_of_the_data():
    x = np.random.default_rng(0).normal(1000, 10, (200, 6, 8))
    x[0, 0, 0] = 1e6  # one hot pixel
    low, high = from_arrays(x, layout="NHW").info.range
    assert low == pytest.approx(1000 - 25.8, abs=3) and high == pytest.approx(1000 + 25.8, abs=3)  # 2.576 deviations
    assert from_arrays(x > 1000, layout="NHW").info.range is None
    mostly_zero = np.zeros((50, 1, 8, 8))
    mostly_zero[:, 0, 0, 0] = np.arange(50)
    low, high = from_arrays(mostly_zero).info.range
    assert low == 0 and 20 < high <= 49
    assert from_arrays(np.zeros((5, 3))).info.range is None
    for wrong in (dict(range=(1, 0)), dict(range=(0, math.nan)), dict(range=(0, 1), levels=256), dict(columns=("a",))):
        with pytest.raises(ValueError, match="DataInfo"):
            DataInfo("d", (2,), **wrong)
