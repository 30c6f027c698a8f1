"""Noise that belongs to samples, and broadcasting."""

import math
import subprocess
import sys

import pytest
import torch

from sde_score.tensors import (
    GeneratorNoise,
    SampleNoise,
    draw_uniform,
    expand_like,
    mix_seed,
    require_finite,
    with_derivative,
)


def test_noise_of_a_sample_is_a_function_of_seed_and_number():
    x = torch.empty(6, 2, 3)
    whole = SampleNoise(7, range(6))
    first, second = whole(x), whole(x)
    part = SampleNoise(7, [4, 1])
    assert torch.equal(part(x[:2]), first[[4, 1]])
    assert torch.equal(part(x[:2]), second[[4, 1]])
    assert not torch.equal(SampleNoise(8, range(6))(x), first)
    assert torch.equal(SampleNoise(7, range(6))(x.double()).float(), first)


def test_noise_is_standard_normal_and_uniform():
    # 40 000 numbers: standard errors 0.005 (mean), 0.0035 (std), 0.0014 (uniform mean); bounds at five of them, seed
    # fixed
    noise = SampleNoise(0, range(400))
    z, u = noise(torch.empty(400, 100)), noise.uniform(torch.empty(400, 100))
    assert abs(float(z.mean())) < 0.025 and abs(float(z.std()) - 1) < 0.018
    assert abs(float(u.mean()) - 0.5) < 0.0075 and 0 <= float(u.min()) and float(u.max()) < 1
    assert abs(float(torch.corrcoef(z)[0, 1:].mean())) < 0.03  # neighbours are unrelated


def test_seeds_do_not_collide():
    assert len({mix_seed(a, b) for a in range(100) for b in range(100)}) == 10_000
    assert mix_seed(1, 2) != mix_seed(2, 1) and 0 <= mix_seed(-5) < 2**63


def test_generator_noise_and_plain_functions():
    noise = GeneratorNoise(torch.Generator().manual_seed(1))
    assert noise(torch.empty(3, 2)).shape == (3, 2) and noise.uniform(torch.empty(3)).max() < 1
    assert draw_uniform(torch.randn_like, torch.empty(4)).min() >= 0


def test_wrong_batch_and_not_finite():
    with pytest.raises(ValueError, match="made for 2 samples"):
        SampleNoise(0, range(2))(torch.empty(3, 1))
    x = torch.zeros(3, 2)
    x[2, 1] = math.nan
    with pytest.raises(FloatingPointError, match="first in sample 2"):
        require_finite(x, "The score")
    assert expand_like(torch.ones(3), x).shape == (3, 1)


def test_a_derivative_is_exact_and_silent():
    t = torch.linspace(0.1, 1, 7, dtype=torch.float64)
    value, slope = with_derivative(lambda s: s.sin() * s, t)
    assert torch.equal(value, t.sin() * t)
    torch.testing.assert_close(slope, t.cos() * t + t.sin(), rtol=1e-14, atol=0)
    # in a process of its own: torch warns once, when it first loads what it needs for this
    code = "import torch; from sde_score.tensors import with_derivative as d; d(torch.sin, torch.ones(2))"
    ended = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0 and "Warning" not in ended.stderr, ended.stderr
