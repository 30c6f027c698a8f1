"""NCSN and NCSNv2 against recorded numbers, and laws they must obey."""

import gzip
import json

import numpy as np
import pytest
import torch

from sde_score.models.ncsn import NCSN
from sde_score.models.ncsnv2 import NCSNv2_64, NCSNv2_128, NCSNv2_256
from sde_score.models.noise_level import descending_sigmas
from sde_score.models.official.names import original_names
from sde_score.models.official.refinenet_names import refinenet_arguments
from sde_score.models.refinenet import ConditionalInstanceNormPlus, InstanceNormPlus, VarianceNorm
from sde_score.models.registry import MODELS

SMALL = {
    NCSN: dict(nf=4, num_scales=3),
    NCSNv2_64: dict(nf=4, num_scales=3),
    NCSNv2_128: dict(nf=4, num_scales=3),
    NCSNv2_256: dict(nf=4, num_scales=3),
}


def relative_error(a, b):
    return float((a - b).detach().abs().max() / max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("name", ["net10_ncsn_v1_28px_1ch", "net11_ncsnv2_64", "net12_ncsnv2_128"])
def test_outputs_and_input_gradients_equal_the_recorded_ones(golden_dir, name):
    recorded = np.load(golden_dir / f"{name}.npz")
    order = json.loads(str(recorded["meta_json"]))["order"]
    state = {key: torch.from_numpy(recorded[f"sd/{key}"]) for key in order}
    family, arguments = refinenet_arguments(state)
    network = MODELS.get(family)(**arguments)
    names = original_names(network)
    assert list(names.values()) == order
    network.load_state_dict({ours: state[original] for ours, original in names.items()})
    x = torch.from_numpy(recorded["x"]).requires_grad_()
    out = network(x, torch.from_numpy(recorded["cond"]))
    # 1e-5 is the golden tolerance; the recorded float32 noise floor is 1e-6.
    assert relative_error(out, torch.from_numpy(recorded["output"])) < 1e-5
    (grad,) = torch.autograd.grad((out * torch.from_numpy(recorded["v"])).sum(), x)
    assert relative_error(grad, torch.from_numpy(recorded["vjp_x"])) < 1e-5


@pytest.mark.parametrize("block", ["inorm_plus", "inorm_plus_nobias", "variance_norm", "cond_inorm_plus"])
def test_norms_equal_the_recorded_ones(golden_dir, block):
    recorded = np.load(golden_dir / "blocks.npz")
    small_factor = json.loads(str(recorded["meta_json"]))["small_factor"]
    norm = {
        "inorm_plus": lambda: InstanceNormPlus(16),
        "inorm_plus_nobias": lambda: InstanceNormPlus(16, bias=False),
        "variance_norm": lambda: VarianceNorm(16),
        "cond_inorm_plus": lambda: ConditionalInstanceNormPlus(16, 5),
    }[block]()
    prefix = f"{block}/sd/"
    keys = [k for k in recorded.files if k.startswith(prefix)]
    norm.load_state_dict({k.removeprefix(prefix): torch.from_numpy(recorded[k]) for k in keys})
    x = torch.from_numpy(recorded[f"{block}/x"])
    label = torch.from_numpy(recorded[f"{block}/y"]) if f"{block}/y" in recorded.files else None
    assert relative_error(norm(x, label), torch.from_numpy(recorded[f"{block}/out"])) < 1e-5
    # A small input makes the epsilon in the denominator visible.
    assert relative_error(norm(small_factor * x, label), torch.from_numpy(recorded[f"{block}/out_small"])) < 1e-5


def test_layouts_of_the_published_refinenets(golden_dir):
    with gzip.open(golden_dir / "layouts.json.gz") as file:
        published = json.load(file)
    seen = set()
    for entry in published["configs"].values():
        model = entry["config"]["model"]
        if not model["name"].startswith("ncsn") or model["name"] == "ncsnpp" or entry["layout"] in seen:
            continue
        seen.add(entry["layout"])
        with torch.device("meta"):
            network = MODELS.get(model["name"])(nf=model["nf"], num_scales=model["num_scales"])
        own = network.state_dict()
        ours = [[o, list(own[n].shape), str(own[n].dtype)[6:]] for n, o in original_names(network).items()]
        assert ours == [row[:3] for row in published["layouts"][entry["layout"]]]
    assert len(seen) == 6


@pytest.mark.parametrize("cls", SMALL, ids=lambda c: c.__name__)
def test_any_size_that_the_halvings_allow(cls):
    network = cls(2, **SMALL[cls])
    step = 2**network.halvings
    for height, width in [(step, step), (3 * step, step), (2 * step, 5 * step)]:
        x = torch.rand(2, 2, height, width)
        assert network(x, torch.tensor([0, 2])).shape == x.shape
    with pytest.raises(ValueError, match=f"multiples of {step}"):
        network(torch.rand(2, 2, step + 1, step), torch.tensor([0, 2]))


@pytest.mark.parametrize("cls", SMALL, ids=lambda c: c.__name__)
def test_samples_of_a_batch_do_not_influence_each_other(cls):
    network = cls(1, **SMALL[cls]).double()
    x, label = torch.rand(3, 1, 16, 16, dtype=torch.float64), torch.tensor([2, 0, 1])
    together = network(x, label)
    alone = torch.cat([network(x[i : i + 1], label[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("cls", [NCSNv2_64, NCSNv2_128, NCSNv2_256], ids=lambda c: c.__name__)
def test_ncsnv2_output_times_sigma_does_not_depend_on_the_label(cls):
    network = cls(1, **SMALL[cls]).double()
    x = torch.rand(1, 1, 16, 16, dtype=torch.float64)
    products = [network(x, torch.tensor([k])) * network.sigmas[k] for k in range(3)]
    torch.testing.assert_close(products[0], products[1])
    torch.testing.assert_close(products[0], products[2])


def test_centered_networks_see_the_same_image():
    shifted = NCSN(1, nf=4, num_scales=3)
    centered = NCSN(1, nf=4, num_scales=3, centered=True)
    centered.load_state_dict(shifted.state_dict())
    x, label = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    torch.testing.assert_close(shifted(x, label), centered(2 * x - 1, label))


def test_class_labels_matter_once_trained_and_are_checked():
    network = NCSNv2_64(1, nf=4, num_scales=3, num_classes=2)
    x, label = torch.rand(1, 1, 8, 8), torch.tensor([1])
    out = [network(x, label, torch.tensor([k])) for k in (0, 1)]
    torch.testing.assert_close(out[0], out[1])  # the embeddings start at zero
    for embed in network.class_embed:
        torch.nn.init.normal_(embed.weight)
    assert not torch.allclose(network(x, label, torch.tensor([0])), network(x, label, torch.tensor([1])))
    with pytest.raises(ValueError, match="needs `y`"):
        network(x, label)
    with pytest.raises(ValueError, match="may be 0 to 2"):
        network(x, label, torch.tensor([3]))
    with pytest.raises(ValueError, match="without classes"):
        NCSNv2_64(1, nf=4, num_scales=3)(x, label, torch.tensor([0]))


def test_gradient_checkpointing_changes_nothing():
    plain = NCSNv2_64(1, nf=4, num_scales=3)
    saving = NCSNv2_64(1, nf=4, num_scales=3, gradient_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    x, label = torch.rand(1, 1, 8, 8), torch.tensor([1])
    gradients = []
    for network in (plain, saving):
        network(x, label).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_double_backward():
    network = NCSN(1, nf=4, num_scales=3).double()
    x = torch.rand(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: network(x, torch.tensor([1])).sum(), x, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("cls", SMALL, ids=lambda c: c.__name__)
def test_runs_on_the_meta_device(cls):
    with torch.device("meta"):
        network = cls(1, **SMALL[cls])
    out = network(torch.empty(2, 1, 16, 16, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta"))
    assert out.shape == (2, 1, 16, 16)


def test_bf16_and_channels_last():
    network = NCSNv2_64(2, nf=4, num_scales=3)
    x, label = torch.rand(2, 2, 8, 8), torch.tensor([0, 1])
    expected = network(x, label)
    torch.testing.assert_close(network(x.to(memory_format=torch.channels_last), label), expected)
    sigmas = network.sigmas.clone()
    out = network.bfloat16()(x.bfloat16(), label)
    assert out.dtype == torch.bfloat16 and torch.isfinite(out).all()
    assert torch.equal(network.sigmas, sigmas)  # three digits would not do for a noise level


@pytest.mark.parametrize("cls", SMALL, ids=lambda c: c.__name__)
def test_compiles_as_one_graph(cls):
    network = cls(1, **SMALL[cls])
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    x, label = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    torch.testing.assert_close(compiled(x, label), network(x, label))


def test_errors_say_what_to_write():
    network = NCSN(1, nf=4, num_scales=3)
    x = torch.rand(2, 1, 8, 8)
    with pytest.raises(TypeError, match="'smld'"):
        network(x, torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="table of noise scales of NCSN has 3 entries"):
        network(x, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="one c_noise per sample"):
        network(x, torch.tensor([0]))
    with pytest.raises(ValueError, match="images"):
        network(torch.rand(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="activation"):
        NCSN(1, nf=4, activation="gelu")
    with pytest.raises(ValueError, match="larger nf"):
        NCSN(1, nf=1)
    with pytest.raises(ValueError, match="sigma_min"):
        NCSNv2_64(1, nf=4, sigma_min=2.0, sigma_max=1.0)


def test_uniform_and_geometric_scales():
    expected = torch.tensor([11, 5.505, 0.01], dtype=torch.float64)
    torch.testing.assert_close(descending_sigmas(11, 0.01, 3, "uniform"), expected)
    ratios = descending_sigmas(50, 0.01, 5)[1:] / descending_sigmas(50, 0.01, 5)[:-1]
    assert torch.allclose(ratios, ratios[0])
