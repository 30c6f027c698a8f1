"""NCSN: the first noise-conditional score network.

A dilated RefineNet in which every norm looks its affine map up by the index of the noise scale. The output is the score
itself; nothing is divided by sigma. Song & Ermon, "Generative modeling by estimating gradients of the data
distribution", NeurIPS 2019.
"""

from __future__ import annotations

from sde_score.models.refinenet import ConditionalInstanceNormPlus, RefineNet, Stage
from sde_score.models.registry import MODELS


@MODELS.register("ncsn")
class NCSN(RefineNet):
    """score = network(x, c_noise), c_noise = index of the noise scale, 0 = largest sigma. One halving.

    Args: see `RefineNet`. Published: nf 128, num_scales 10 (CIFAR-10, CelebA), nf 64 (MNIST), ELU.
    """

    stages = (Stage(1), Stage(2, pool=True), Stage(2, dilation=2), Stage(2, dilation=4))
    refine_mults = (2, 2, 1, 1)
    norm = ConditionalInstanceNormPlus
    conditional_norms = True
