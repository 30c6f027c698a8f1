"""Feature maps: what they compute, by hand; Inception with weights that need no download."""

import math

import pytest
import torch

from sde_score.metrics import FEATURES, FeatureSet, RandomConv, SmallClassifier, compare, extract
from sde_score.metrics import classifier as classifier_module
from sde_score.metrics.classifier import _shifted


def test_pixels_are_the_values_and_levels_their_unit():
    images = torch.arange(24).view(2, 3, 2, 2) % 5
    assert torch.equal(extract("pixels", images, levels=5).x, images.flatten(1).double() / 4)
    floats = torch.rand(4, 6, dtype=torch.float64)
    assert torch.equal(extract("pixels", floats).x, floats)
    assert torch.equal(extract("pixels", floats.half()).x, floats.half().double())
    assert torch.equal(
        extract("pixels", torch.tensor([[0, 255]], dtype=torch.uint8)).x, torch.tensor([[0.0, 1.0]]).double()
    )


def test_features_say_where_they_come_from():
    images = torch.rand(7, 1, 4, 4)
    a, b = extract("pixels", images, source="test split", batch_size=3), extract("pixels", images.clone())
    assert a.source == "test split" and a.feature == "pixels" and a.fingerprint == "" and torch.equal(a.x, b.x)
    assert a.data_hash == b.data_hash != extract("pixels", images.double()).data_hash
    assert a.data_hash != extract("pixels", images.view(7, 1, 2, 8)).data_hash
    part = a.take(torch.tensor([3, 1]))
    assert torch.equal(part.x, a.x[[3, 1]]) and part.data_hash == "" and part.source == "test split"
    assert extract(torch.nn.Flatten(), images).feature == "Flatten"


def test_a_network_is_left_in_the_mode_it_came_in():
    for training in (True, False):
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5)).train(training)
        images = torch.rand(5, 3)
        assert torch.equal(extract(network, images).x, images.double()), "dropout is off"
        assert network.training is training


@pytest.mark.parametrize("shape", [(2, 9), (3, 7, 5), (1, 4, 5, 6)])
def test_random_features_are_means_and_deviations_of_averaged_layers(shape):
    """The same layers applied by hand, with torch's pooling; odd edges fall away as there."""
    net = RandomConv(channels=shape[0], rank=len(shape) - 1, width=4, depth=2)
    x = torch.rand(3, *shape)
    pool = (torch.nn.AvgPool1d, torch.nn.AvgPool2d, torch.nn.AvgPool3d)[len(shape) - 2](2)
    first = net.layers[0](2 * x - 1).relu()
    second = net.layers[1](pool(first)).relu()
    axes = tuple(range(2, len(shape) + 1))
    expected = [f(h) for h in (first, second) for f in (lambda h: h.mean(axes), lambda h: h.std(axes, unbiased=False))]
    torch.testing.assert_close(net(x), torch.cat(expected, 1), rtol=1e-5, atol=1e-6)


def test_random_features_of_a_constant_image_have_no_deviation_at_the_edge():
    """Edges are replicated, so a constant stays one through the first layer."""
    features = RandomConv(width=4)(torch.full((1, 1, 6, 6), 0.9))
    assert features[0, :4].abs().max() > 0 and features[0, 4:8].abs().max() < 1e-6


def test_random_weights_keep_the_scale_and_depend_on_the_seed_only():
    """Variance 2 / fan_in keeps the second moment through a ReLU (He et al. 2015); 64 x 576 weights know it to 1 %."""
    net, same, other = (RandomConv(channels=3, width=64, depth=2, seed=s) for s in (0, 0, 1))
    for layer in net.layers:
        fan_in = layer.weight[0].numel()
        assert float(layer.weight.square().mean()) * fan_in == pytest.approx(2, rel=0.1)
        assert layer.bias.abs().max() == 0 and not layer.weight.requires_grad
    assert [layer.out_channels for layer in net.layers] == [64, 128]
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(net(x), same(x)) and not torch.allclose(net(x), other(x))
    assert torch.equal(RandomConv(seed=3).layers[0].weight, RandomConv(seed=3).layers[0].weight)
    with pytest.raises(ValueError, match="rank=4"):
        RandomConv(rank=4)


def test_classifier_features_are_standardised_over_the_training_data():
    labels = torch.arange(120) % 3
    x = 0.2 * torch.rand(120, 5, generator=torch.Generator().manual_seed(0)) + 0.3 * labels[:, None]
    classifier = SmallClassifier(hidden=16, max_steps=60).fit(x, labels)
    features = extract(classifier, x).x
    assert features.mean(0).abs().max() < 1e-4
    deviations = features.std(0, unbiased=False)
    assert (
        torch.allclose(deviations[deviations > 0.5], torch.ones(1).double(), atol=1e-4) and (deviations > 0.5).sum() > 8
    )
    assert extract(classifier, x).probabilities.shape == (120, 3) and not classifier.training


def test_classifier_does_not_see_unit_or_offset_of_the_images():
    """Inputs are centred and scaled, so a x + b gives the same network; up to the rounding of a few hundred steps."""
    labels = torch.arange(60) % 2
    x = torch.rand(60, 4, generator=torch.Generator().manual_seed(1)) + labels[:, None] * 0.5
    first, second = (SmallClassifier(hidden=8, max_steps=20).fit(f, labels) for f in (x, 4 * x + 8))
    torch.testing.assert_close(first(x)[1], second(4 * x + 8)[1], rtol=1e-3, atol=1e-4)
    assert float(first.centre) == pytest.approx(float(x.mean()), rel=1e-6)
    assert float(first.spread) == pytest.approx(float(x.std(unbiased=False)), rel=1e-6)


@pytest.mark.parametrize(
    "n, settings, steps",
    [
        (640, dict(epochs=25), 250),
        (50, dict(epochs=25), 200),
        (640, dict(epochs=25, max_steps=100), 100),
        (65, dict(epochs=110), 220),
    ],
)
def test_number_of_optimiser_steps(n, settings, steps, monkeypatch):
    """Epochs times batches, at least 200 and at most `max_steps`."""
    rates, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *a: rates.append(self.param_groups[0]["lr"]) or step(self, *a)
    )
    SmallClassifier(hidden=2, width=1, lr=0.02, **settings).fit(torch.rand(n, 1), torch.arange(n) % 2)
    assert len(rates) == steps
    assert max(rates) == pytest.approx(0.02, rel=1e-3) and rates[0] < 0.002 and rates[-1] < 1e-4, "one cycle"


def test_every_image_comes_once_in_an_epoch_and_in_another_order_in_the_next(monkeypatch):
    batches = []
    monkeypatch.setattr(classifier_module, "_shifted", lambda x, generator: batches.append(x[:, 0].tolist()) or x)
    images = torch.linspace(0, 1, 150)[:, None]
    SmallClassifier(hidden=2, batch_size=64, max_steps=6).fit(images, torch.arange(150) % 2)
    assert [len(b) for b in batches] == [64, 64, 22] * 2
    first, second = (sum(batches[i : i + 3], []) for i in (0, 3))
    assert sorted(first) == sorted(second) == images[:, 0].tolist() and first != second


def test_augmentation_moves_by_one_pixel_and_fills_with_zeros():
    x = torch.arange(1.0, 257).view(1, 1, 16, 16)
    seen = set()
    for seed in range(60):
        moved = _shifted(x.clone(), torch.Generator().manual_seed(seed))
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
                if torch.equal(moved, padded[..., 1 - dy : 17 - dy, 1 - dx : 17 - dx]):
                    seen.add((dy, dx))
    assert len(seen) == 9
    coarse = torch.arange(225.0).view(1, 1, 15, 15)
    assert all(torch.equal(_shifted(coarse.clone(), torch.Generator().manual_seed(s)), coarse) for s in range(9))


# Inception


@pytest.fixture
def inception(monkeypatch):
    """The network of torch-fidelity with random weights: the map is tested, not what it has learned."""
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as module
    except Exception as error:
        pytest.skip(f"torch-fidelity cannot be imported ({type(error).__name__}: {error})")
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *a, **k: {})
    network = module.FeatureExtractorInceptionV3
    monkeypatch.setattr(network, "load_state_dict", lambda self, state: None)
    torch.manual_seed(0)
    return FEATURES.build("inception")


def test_inception_hands_over_bytes_and_takes_features_and_probabilities(inception):
    levels = torch.randint(0, 256, (1, 1, 9, 9), generator=torch.Generator().manual_seed(0))
    found = extract(inception, levels)
    features, logits = inception.network(levels.expand(-1, 3, -1, -1).to(torch.uint8))
    assert torch.equal(found.x, features.double()) and found.x.shape == (1, 2048)
    torch.testing.assert_close(found.probabilities, logits.double().softmax(1))
    with torch.no_grad():
        inception.network.fc.bias.copy_(torch.arange(1008.0))
    torch.testing.assert_close(inception(levels / 255)[1], found.probabilities)  # the published score leaves it out
    assert found.fingerprint and found.feature.startswith("inception")
    few = FeatureSet(found.x[:, :9].repeat(4, 1), found.feature, probabilities=found.probabilities.repeat(4, 1))
    names = [r.name for r in compare(few, few, metrics=("fd", "kid", "inception_score"))]
    assert names == ["fid", "kid", "inception_score"]


def test_inception_rounds_and_clips_but_refuses_another_range(inception, monkeypatch):
    seen = []
    monkeypatch.setattr(inception.network, "forward", lambda x: seen.append(x) or (x.flatten(1), x.flatten(1).float()))
    inception(torch.tensor([-0.001, 0.0, 0.996, 1.0, 1.001, 0.4]).view(1, 3, 1, 2))
    assert seen[0].flatten().tolist() == [0, 0, 254, 255, 255, 102] and seen[0].dtype == torch.uint8
    slight = torch.rand(2, 3, 4, 4) * 1.2 - 0.1
    for bad in (255 * slight, 2 * torch.rand(2, 3, 4, 4) - 1, torch.full((1, 3, 2, 2), math.nan), slight):
        with pytest.raises(ValueError, match=r"in \[0, 1\], got values from"):
            inception(bad)
    with pytest.raises(ValueError, match="B, C, H, W"):
        inception(torch.rand(2, 3, 4))
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        inception(torch.rand(2, 4, 4, 4))


def test_floats_of_another_range_become_0_to_1_by_their_declared_range():
    """Fluxes 0 to 3000 in Inception would all be the byte 255."""
    seen = []

    def look(x):
        seen.append(x)
        return x.flatten(1)

    fluxes = torch.tensor([0.0, 1500.0, 3000.0, 750.0]).view(1, 1, 2, 2)
    extract(look, fluxes, range=(0, 3000))
    assert seen[-1].flatten().tolist() == [0.0, 0.5, 1.0, 0.25]
    extract(look, torch.tensor([[0, 16]], dtype=torch.uint8), levels=17, range=(0, 3000))  # levels have their own
    assert seen[-1].flatten().tolist() == [0.0, 1.0]
    for bad in ((0, 0), (1, 0), (0, math.inf), (math.nan, 1)):
        with pytest.raises(ValueError, match="smaller one first"):
            extract(look, fluxes, range=bad)
    with pytest.raises(ValueError, match=r"from 0 to 16; with levels=10"):
        extract(look, torch.tensor([[0, 16]], dtype=torch.uint8), levels=10)


def test_inception_weights_are_read_without_running_code(tmp_path, inception):
    import pickle

    with pytest.raises(ValueError, match="no such file"):
        FEATURES.build(f"inception(weights={str(tmp_path / 'none.pth')!r})")
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (open, (str(ran), "w"))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"weight": Evil()}, protocol=2))
    with pytest.raises(pickle.UnpicklingError):
        FEATURES.build(f"inception(weights={str(tmp_path / 'evil.pth')!r})")
    assert not ran.exists()
    torch.save({"weight": torch.zeros(2)}, tmp_path / "good.pth")
    FEATURES.build(f"inception(weights={str(tmp_path / 'good.pth')!r})")
