"""Classes: what a network is told, what it refuses, and "no class"."""

import pytest
import torch

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
