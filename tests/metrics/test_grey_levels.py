"""Grey levels are whole numbers, however they are stored."""

import math

import pytest
import torch

from sde_score.metrics import CategoricalMixture


@pytest.mark.parametrize("wrong", [0.25, 0.75, 1.5, math.nan, math.inf])
def test_a_fraction_is_refused_whichever_way_it_would_be_rounded(wrong):
    x = torch.tensor([[0.0, 1.0], [2.0, wrong]])
    with pytest.raises(ValueError, match="integer grey levels"):
        CategoricalMixture(4, components=1).fit(x)


def test_whole_numbers_of_any_type_are_the_same_levels():
    x = torch.tensor([[0, 1], [2, 3], [2, 1]])
    for dtype in (torch.uint8, torch.int64, torch.float32, torch.float64):
        model = CategoricalMixture(4, components=1).fit(x.to(dtype))
        assert torch.equal(model.log_prob(x.to(dtype)), CategoricalMixture(4, components=1).fit(x).log_prob(x))
