"""The benchmark's baseline is the published arithmetic (recorded numbers), and both sides compute the same things."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_score.models.ema import EMA
from sde_score.models.official.architecture import build_network, network_facts
from sde_score.models.official.names import load_original
from sde_score.models.resample import DownsampleConv, UpsampleConv
from sde_score.sampling.published import ChainReverseDiffusion
from sde_score.sdes import SDES

ROOT = Path(__file__).resolve().parent.parent
TOL = 1e-5  # the tolerance that the recorded numbers state


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


baseline = load_tool("benchmark_baseline")


@pytest.fixture(scope="module")
def benchmark():
    path = list(sys.path)
    yield load_tool("benchmark")
    sys.path[:] = path


def load_golden(path):
    z = np.load(path)
    arrays = {k: torch.from_numpy(z[k]) for k in z.files if not k.endswith("_json")}
    return arrays, json.loads(str(z["meta_json"])), json.loads(str(z["config_json"])) if "config_json" in z else None


def close(a, b):
    torch.testing.assert_close(a, b.to(a), atol=TOL * max(1.0, float(b.abs().max())), rtol=0)


# --- the baseline against recorded numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "net01_ncsnpp_ve_fourier_fir_residualin",
        "net04_ddpmpp_vp_positional_nofir",
        "net05_ncsnpp_ddpmblock_nofir_convresample_1ch_patched",
        "net09_ncsnpp_residualout_fir_upconv_patched",
    ],
)
def test_recorded_networks(golden_dir, name):
    z, meta, config = load_golden(golden_dir / f"{name}.npz")
    network = build_network(network_facts(config)).eval()
    load_original(network, {key: z[f"sd/{key}"] for key in meta["order"]})
    x = z["x"].requires_grad_()
    out = baseline.plain_network(network)(x, z["cond"])
    close(out.detach(), z["output"])
    (gradient,) = torch.autograd.grad((out * z["v"].to(out.dtype)).sum(), x)
    assert float((gradient - z["vjp_x"]).abs().max()) <= TOL * float(z["vjp_x"].abs().max())


def test_recorded_resampling(golden_dir):
    z, meta, _ = load_golden(golden_dir / "resample.npz")
    for i, case in enumerate(meta["upfirdn2d"]):
        out = baseline.upfirdn2d(
            z[f"u{i}_x"], z[f"u{i}_kernel"].numpy(), up=case["up"], down=case["down"], pad=tuple(case["pad"])
        )
        close(out, z[f"u{i}_out"])
    for i, case in enumerate(meta["up_down_conv"]):
        x, taps, factor = z[f"r{i}_x"], case["kernel"], case["factor"]
        gain = case.get("gain", 1.0)
        close(baseline.upsample2d(x, taps, factor) * gain, z[f"r{i}_up"])
        close(baseline.downsample2d(x, taps, factor) * gain, z[f"r{i}_down"])
        close(baseline.downsample_conv2d(x, z[f"r{i}_w"], taps, factor) * gain, z[f"r{i}_convdown"])


@pytest.mark.parametrize("taps", [None, (1, 3, 3, 1)])
@pytest.mark.parametrize("kind", [DownsampleConv, UpsampleConv])
def test_resampling_with_convolution(kind, taps):
    ours = kind(3, 5, taps)
    torch.nn.init.normal_(ours.bias)
    x = torch.randn(2, 3, 8, 6)
    close(baseline.plain_network(ours)(x).detach(), ours(x).detach())


def test_recorded_ema(golden_dir):
    z, meta, _ = load_golden(golden_dir / "ema.npz")
    for i, case in enumerate(meta["cases"]):
        if not case.get("use_num_updates", True):
            continue
        weight = torch.nn.Parameter(z[f"c{i}_params"][0].clone())
        ema = baseline.PlainEMA([weight], case["decay"])
        for row, shadow in zip(z[f"c{i}_params"][1:], z[f"c{i}_shadow"]):
            weight.data.copy_(row)
            ema.update([weight])
            close(ema.shadows[0], shadow)


@pytest.mark.parametrize("kind", ["ve", "vp"])
def test_recorded_likelihood(golden_dir, kind):
    z, meta, _ = load_golden(golden_dir / f"likelihood_{kind}.npz")
    process = {"ve": baseline.PlainVE, "vp": baseline.PlainVP}[kind](**meta["params"])
    mu, variance = z["mu"], meta["data_var"]

    class Exact(torch.nn.Module):
        """The network of Gaussian data."""

        def forward(self, x, label):
            if kind == "ve":
                return -(x - mu) / (variance + baseline.each(label) ** 2)
            mean, std = process.marginal(torch.ones_like(x), label / 999)
            std = baseline.each(std)
            return std * (x - mean * mu) / (mean**2 * variance + std**2)

    x = z["x"]
    logp, latent, evaluations = baseline.log_likelihood(Exact(), process, x, z["epsilon"])
    dim = x[0].numel()
    bpd = -logp / (dim * np.log(2)) + meta["offset"]
    torch.testing.assert_close(bpd, z["bpd"].to(bpd), atol=1e-4, rtol=0)  # the golden's own tolerance for this file
    assert evaluations == pytest.approx(meta["reported_nfe"], abs=12)  # two steps: SciPy's version may differ


# --- both sides compute the same --------------------------------------------------------------------------------------


@pytest.fixture
def pair(benchmark):
    return benchmark.Pair("tiny", benchmark.arguments(["--batch=2"]))


def test_same_score(benchmark, pair):
    x, t = pair.images(), pair.times()
    pair.model.eval()
    pair.plain.eval()
    with torch.no_grad():
        close(pair.model(x, t), pair.process.score(pair.plain, x, t))


@pytest.mark.parametrize("name, sde, shape", [("tiny", "ve", (2, 1, 4, 4)), ("vp8", "vp", (2, 1, 8, 8))])
def test_same_sampling_step(benchmark, name, sde, shape):
    pair = benchmark.Pair(name, benchmark.arguments(["--batch=2"]))
    predictor = ChainReverseDiffusion(SDES.build(sde), 1000)  # the published tables
    x, t = torch.randn(shape), torch.full((2,), 0.3)
    with torch.no_grad():
        pair.model.eval()
        torch.manual_seed(5)
        ours, _ = predictor.step(pair.model.score_fn(), x, t, t, torch.randn_like)
    torch.manual_seed(5)
    close(baseline.reverse_diffusion(pair.plain, pair.process, x, [0.3]), ours)


def test_same_clipping_adam_and_ema(pair):
    plain = [p for p in pair.plain.parameters()]
    ours = [p for p in pair.network.parameters()]
    torch.manual_seed(1)
    for a, b in zip(plain, ours):
        assert torch.equal(a, b)
        a.grad = torch.randn_like(a)
        b.grad = a.grad.clone()
    norm = baseline.clip_gradients(plain, 1.0)
    close(norm, torch.nn.utils.clip_grad_norm_(ours, 1.0))
    ema, plain_ema = EMA(pair.network, 0.999), baseline.PlainEMA(plain, 0.999)
    torch.optim.Adam(plain, foreach=False).step()
    torch.optim.Adam(ours, fused=True).step()
    plain_ema.update(plain)
    ema.update(pair.network)
    for a, b, shadow, average in zip(plain, ours, plain_ema.shadows, ema.model.parameters()):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(shadow, average)


def test_training_steps_move_the_weights(benchmark, pair):
    calls = benchmark.train_calls(pair)
    before = [[p.clone() for p in net.parameters()] for net in (pair.plain, pair.network)]
    for call in calls.values():
        assert np.isfinite(call()) and np.isfinite(call())  # the first published step has learning rate 0
    for old, net in zip(before, (pair.plain, pair.network)):
        assert any(not torch.equal(a, b) for a, b in zip(old, net.parameters()))


# --- the tool ---------------------------------------------------------------------------------------------------------


def test_the_table(benchmark, tmp_path, capsys):
    settings = ["--networks=tiny", "--repeats=1", "--batch=2", "--peak-tflops=0.1"]
    rows = benchmark.main([*settings, f"--json={tmp_path / 'b.json'}"])
    assert [row.measure for row in rows] == ["forward", "train", "sample", "overhead"]
    out = capsys.readouterr().out
    assert "torch" in out and out.count("| tiny |") == 4
    record = json.loads((tmp_path / "b.json").read_text())
    assert len(record["rows"]) == 4 and record["rows"][0]["ratio"]["median"] > 0
    assert all(row.ours_mib > 0 and row.plain_mib > 0 for row in rows[:3])


def test_bf16(benchmark):
    settings = ["--networks=tiny", "--measures=forward,train", "--repeats=1", "--batch=2", "--peak-tflops=0.1"]
    assert len(benchmark.main([*settings, "--precision=bf16"])) == 2


def test_flops_by_hand(benchmark):
    layer = torch.nn.Conv2d(3, 5, 3, padding=1)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, label):
            return self.layer(x)

    per_sample = 2 * 5 * 3 * 9 * 8 * 8
    assert benchmark.model_flops(Network(), (4, 3, 8, 8), backward=False) == 4 * per_sample
    assert benchmark.model_flops(Network(), (4, 3, 8, 8), backward=True) == 3 * 4 * per_sample


def test_memory_by_hand(benchmark):
    def call():
        a = torch.zeros(1000)
        b = a + 1
        del a
        return b * 2

    assert benchmark.peak_bytes(call, torch.device("cpu")) == pytest.approx(8000, abs=500)


def test_unknown_names_are_told(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.arguments(["--networks=ve33"])
    assert "ve32" in capsys.readouterr().err
