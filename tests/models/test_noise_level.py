"""Embeddings of the noise level, and the table of noise levels."""

import math

import pytest
import torch

from sde_score.models.noise_level import (
    FourierEmbedding,
    NoiseConditioning,
    PositionalEmbedding,
    SigmaTable,
    descending_sigmas,
)


def test_the_fourier_frequencies_have_the_spread_asked_for():
    """The relative error of a standard deviation from n normal numbers is 1/sqrt(2n): five of them are 0.8 % here."""
    n = 200_000
    for scale, embedding in ((16.0, FourierEmbedding(n)), (3.0, FourierEmbedding(n, 3.0))):
        assert float(embedding.frequencies.std()) == pytest.approx(scale, rel=5 / math.sqrt(2 * n))


def test_fourier_features_turn_with_the_logarithm():
    """Frequency 1 makes a whole turn when sigma grows by e; at sigma = 1 the sines are 0 and the cosines 1."""
    embedding = FourierEmbedding(1)
    embedding.frequencies.fill_(1.0)
    sigma = torch.tensor([1.0, math.e, math.exp(0.25), math.exp(0.5)], dtype=torch.float64)
    expected = torch.tensor([[0, 1], [0, 1], [1, 0], [0, -1]], dtype=torch.float64)
    torch.testing.assert_close(embedding(sigma), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("embedding", [PositionalEmbedding(6), PositionalEmbedding(7), FourierEmbedding(3)])
def test_embeddings_compute_in_float32_or_float64(embedding):
    for dtype in (torch.int64, torch.bfloat16, torch.float32):
        assert embedding(torch.tensor([992], dtype=dtype)).dtype == torch.float32
        torch.testing.assert_close(embedding(torch.tensor([992], dtype=dtype)), embedding(torch.tensor([992.0])))
    assert embedding(torch.tensor([992.0], dtype=torch.float64)).dtype == torch.float64


def test_casts_leave_frequencies_and_table_alone():
    """In bfloat16 they would have three digits; on another device they move."""
    embedding, table = FourierEmbedding(5), SigmaTable(0.5, 8.0, 5)
    frequencies, sigmas = embedding.frequencies.clone(), table.sigmas.clone()
    for cast in (torch.nn.Module.bfloat16, torch.nn.Module.double):
        assert torch.equal(cast(embedding).frequencies, frequencies) and embedding.frequencies.dtype == torch.float32
        assert torch.equal(cast(table).sigmas, sigmas) and table.bits.dtype == torch.int64
    moved = embedding.to("meta", torch.bfloat16).frequencies
    assert moved.is_meta and moved.dtype == torch.float32


def test_an_odd_size_ends_with_a_zero():
    level = torch.tensor([3.0, 500.0])
    odd = PositionalEmbedding(7)(level)
    assert torch.equal(odd[:, :6], PositionalEmbedding(6)(level)) and not odd[:, 6].any()


def test_the_conditioning_vector_is_its_equation():
    """act(linear2(act(linear1(embedding))) + table[y]), without the first summand where the level is not told."""
    act, level, y = torch.tanh, torch.tensor([0.5, 900.0]), torch.tensor([2, 0])
    told, untold = (NoiseConditioning(PositionalEmbedding(4), 6, act, conditional=c, num_classes=2) for c in (1, 0))
    rows = torch.randn(3, 6)
    for conditioning in (told, untold):
        assert not conditioning.classes.weight.any()
        conditioning.classes.weight.data.copy_(rows)
    hidden = act(PositionalEmbedding(4)(level) @ told.linear1.weight.T + told.linear1.bias)
    torch.testing.assert_close(told(level, y), act(hidden @ told.linear2.weight.T + told.linear2.bias + rows[y]))
    torch.testing.assert_close(untold(level, y), act(rows[y]))
    assert NoiseConditioning(PositionalEmbedding(4), 6, act, conditional=False)(level) is None


def test_the_table_descends_from_end_to_end():
    table = SigmaTable(0.5, 8.0, 5)
    torch.testing.assert_close(table(torch.arange(5)), torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5]))
    assert SigmaTable(2.0, 2.0, 1)(torch.zeros(1)).item() == 2.0
    for arguments in ((0.0, 1.0, 3), (2.0, 1.0, 3), (1.0, 2.0, 0)):
        with pytest.raises(ValueError, match="0 < sigma_min <= sigma_max and num_scales >= 1"):
            SigmaTable(*arguments)
    with pytest.raises(ValueError, match="Did you mean 'uniform'"):
        descending_sigmas(2.0, 1.0, 3, "unifrom")


@pytest.mark.parametrize("c_noise, message", [(-1, "got values from -1 to"), (5, "may be 0 to 4")])
def test_levels_outside_the_table_are_refused(c_noise, message):
    with pytest.raises(ValueError, match=message):
        SigmaTable(0.5, 8.0, 5)(torch.tensor([c_noise, 0]))
