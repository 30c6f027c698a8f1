"""Classes: what a network is told, what it refuses, and "no class"."""

import pytest
import torch

from sde_score.models.conditioning import Conditioning
from sde_score.models.registry import MODELS

UNET = "image_size=8, nf=8, ch_mult=(1, 2), num_res_blocks=1"
NETWORKS = [
    "mlp(shape=(2, 8, 8), width=8, blocks=1)",
    "unet(shape=(2, 8, 8), width=8, mult=(1, 2), attention=())",
    f"ncsnpp(channels=2, {UNET})",
    "ddpm(channels=2, image_size=8, nf=64, ch_mult=(1,), num_res_blocks=1)",
    "ncsn(channels=2, nf=4, num_scales=3)",
    "ncsnv2_64(channels=2, nf=4, num_scales=3)",
]
networks = pytest.mark.parametrize("spec", NETWORKS, ids=lambda spec: spec.partition("(")[0])


def awake(network):
    """Every weight that starts at zero redrawn, so that the class matters."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.normal_(0, 0.3)
    return network.eval()


def test_the_embedding_of_the_noise_level():
    """With an identity in the place of the perceptron: silu([cos ω_i l, sin ω_i l]), ω geometric from 1e-3 to 4.

    silu'(0) = 1/2, so that the derivative of the sines at l = 0 is ω / 2.
    """
    cond = Conditioning(64).double()
    cond.mlp[0].weight.data.copy_(torch.eye(64))
    cond.mlp[0].bias.data.zero_()
    cond.mlp[1], cond.mlp[2] = torch.nn.Identity(), torch.nn.Identity()
    zero, x = torch.zeros(1, dtype=torch.float64), torch.zeros(1, 2)
    out, rate = torch.func.jvp(lambda level: cond(x, level), (zero,), (torch.ones_like(zero),))
    cosines, sines = out.squeeze(0).split(32)
    torch.testing.assert_close(cosines, torch.nn.functional.silu(torch.ones_like(cosines)))
    assert not sines.any() and not rate[0, :32].any()
    omega = 2 * rate[0, 32:]
    steps = omega.log().diff()
    torch.testing.assert_close(omega[[0, -1]], torch.tensor([1e-3, 4.0], dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(steps, steps.mean().expand(31), rtol=1e-4, atol=0)  # the frequencies are float32


def test_half_precision_keeps_the_noise_level():
    """999 t has no room in bfloat16: level and frequencies stay float32, and only the perceptron is rounded."""
    exact, cond = Conditioning(16), Conditioning(16)
    cond.load_state_dict(exact.state_dict())
    cond.bfloat16()
    assert cond.frequencies.dtype == torch.float32 and torch.equal(cond.frequencies, exact.frequencies)
    x, level = torch.zeros(3, 2), torch.tensor([1.0, 998.0, 999.0])
    out = cond(x, level)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact(x, level), rtol=0.05, atol=0.02)  # 8 bits through two layers
    level = torch.tensor([1.0, 3.0, 996.0], dtype=torch.bfloat16)
    torch.testing.assert_close(cond(x, level), cond(x, level.float()), rtol=0, atol=0)


def test_the_class_adds_its_row():
    """Without a noise level (a perceptron of zeros) what is left is silu(table[y]); with it, they are added."""
    cond, plain = Conditioning(5, num_classes=2), Conditioning(5)
    plain.load_state_dict({name: tensor for name, tensor in cond.state_dict().items() if name != "table.weight"})
    cond.table.weight.data[0] = 0.0
    level = torch.tensor([0.3, 2.0])
    torch.testing.assert_close(cond(torch.zeros(2, 1), level, torch.tensor([0, 0])), plain(torch.zeros(2, 1), level))
    for parameter in cond.mlp.parameters():
        torch.nn.init.zeros_(parameter)
    y = torch.tensor([2, 0, 1])
    rows = torch.nn.functional.silu(cond.table.weight[y])
    torch.testing.assert_close(cond(torch.zeros(3, 1), torch.ones(3), y), rows)
    for c_noise in (torch.ones(2), torch.ones(3, 1), torch.ones(())):
        with pytest.raises(ValueError, match=r"one number per sample, shape \(3,\)"):
            cond(torch.zeros(3, 1), c_noise, y)


@networks
def test_no_condition_is_the_last_row_of_the_class_table(spec):
    """The output under it follows that row, and no other; it is like `y` in shape, type and device."""
    network = awake(MODELS.build(spec, num_classes=3))
    x, c_noise = torch.randn(2, 2, 8, 8), torch.tensor([1, 2])
    y = torch.tensor([0, 2])
    none = network.no_condition({"y": y})
    assert none.keys() == {"y"} and torch.equal(none["y"], torch.tensor([3, 3]))
    assert torch.equal(y, torch.tensor([0, 2]))
    assert network.no_condition({"y": y.int()})["y"].dtype == torch.int32
    assert network.no_condition({"y": torch.empty(5, dtype=torch.long, device="meta")})["y"].device.type == "meta"
    tables = [m for m in network.modules() if isinstance(m, torch.nn.Embedding) and m.num_embeddings == 4]
    with torch.no_grad():
        before = [network(x, c_noise, y), network(x, c_noise, **none)]
        for table in tables:
            table.weight[3] += 1.0
        after = [network(x, c_noise, y), network(x, c_noise, **none)]
    torch.testing.assert_close(before[0], after[0], rtol=0, atol=0)
    assert ((before[1] - after[1]).flatten(1).abs().amax(1) > 1e-4).all()


@networks
def test_no_condition_of_a_network_without_classes_and_of_other_conditions(spec):
    y = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="was built without classes"):
        MODELS.build(spec).no_condition({"y": y})
    network = MODELS.build(spec, num_classes=3)
    with pytest.raises(ValueError, match="the conditions given are nothing"):
        network.no_condition({})
    with pytest.raises(ValueError, match="`y`, and nothing else; the conditions given are 'y', 'mask'"):
        network.no_condition({"y": y, "mask": y})


def test_a_compiled_network_has_it_too():
    network = MODELS.build(NETWORKS[0], num_classes=3)
    assert torch.equal(torch.compile(network).no_condition({"y": torch.tensor([0])})["y"], torch.tensor([3]))


@networks
def test_wrong_classes_are_refused(spec):
    x, c_noise = torch.randn(2, 2, 8, 8), torch.tensor([1, 2])
    with pytest.raises(ValueError, match="built without classes"):
        MODELS.build(spec)(x, c_noise, torch.tensor([0, 1]))
    network = MODELS.build(spec, num_classes=3)
    with pytest.raises(ValueError, match="built for 3 classes and needs `y`.*3 means no class"):
        network(x, c_noise)
    for y in (torch.tensor([0.0, 1.0]), torch.tensor([0]), torch.tensor([[0], [1]]), torch.tensor([True, False])):
        with pytest.raises(ValueError, match=r"one integer per sample, shape \(2,\)"):
            network(x, c_noise, y)
    for y in (torch.tensor([0, 4]), torch.tensor([-1, 0])):
        with pytest.raises(ValueError, match="may be 0 to 3; got values from"):
            network(x, c_noise, y)
    with pytest.raises(ValueError, match="num_classes"):
        MODELS.build(spec, num_classes=0)
