"""NCSNv2: unconditional RefineNets divided by the noise level, in three depths.

score(x, sigma) = network(x) / sigma: the norms do not know sigma (technique 3 of the paper), so the number of noise
scales costs no parameters. Song & Ermon, "Improved techniques for training score-based generative models", NeurIPS
2020, app. B.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sde_score.models.noise_level import descending_sigmas
from sde_score.models.refinenet import InstanceNormPlus, RefineNet, Stage
from sde_score.models.registry import MODELS


class _NCSNv2(RefineNet):
    conditional_norms = False

    @staticmethod
    def norm(channels: int, num_scales: int) -> nn.Module:
        return InstanceNormPlus(channels)

    def __init__(
        self,
        channels: int = 3,
        *,
        nf: int = 128,
        num_scales: int = 232,
        sigma_max: float = 50.0,
        sigma_min: float = 0.01,
        spacing: str = "geometric",
        activation: str = "elu",
        centered: bool = False,
        num_classes: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(channels, nf=nf, num_scales=num_scales, activation=activation, centered=centered,
                         num_classes=num_classes, gradient_checkpointing=gradient_checkpointing)  # fmt: skip
        sigmas = descending_sigmas(sigma_max, sigma_min, num_scales, spacing)
        # float32 as in the published code: a float64 table would promote the output.
        self.register_buffer("sigmas", sigmas.float().to(torch.get_default_device()))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Casts of the module leave the table in float32: sigma needs more than the three digits of bfloat16."""
        sigmas = self.sigmas
        super()._apply(fn, recurse)
        if self.sigmas.dtype != sigmas.dtype:
            self.sigmas = sigmas.to(self.sigmas.device)
        return self

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        h = super().forward(x, c_noise, y)
        return h / self.sigmas[c_noise].to(h.dtype)[:, None, None, None]


@MODELS.register("ncsnv2_64")
class NCSNv2_64(_NCSNv2):
    """NCSNv2 for images of about 32 to 64 pixels: score = network(x) / sigma[c_noise]. One halving.

    Args: see `RefineNet`; sigma_max, sigma_min, spacing ("geometric" or "uniform"): the table of noise scales,
    descending.
    """

    stages = (Stage(1), Stage(2, pool=True), Stage(2, dilation=2), Stage(2, dilation=4))
    refine_mults = (2, 2, 1, 1)


@MODELS.register("ncsnv2_128")
class NCSNv2_128(_NCSNv2):
    """NCSNv2 for images of about 96 to 128 pixels: score = network(x) / sigma[c_noise]. Two halvings.

    Args: as for `NCSNv2_64`.
    """

    stages = (Stage(1), Stage(2, pool=True), Stage(2, pool=True), Stage(4, dilation=2), Stage(4, dilation=4))
    refine_mults = (4, 2, 2, 1, 1)


@MODELS.register("ncsnv2_256")
class NCSNv2_256(_NCSNv2):
    """NCSNv2 for images of about 256 pixels: score = network(x) / sigma[c_noise]. Three halvings.

    Args: as for `NCSNv2_64`.
    """

    stages = (
        Stage(1),
        Stage(2, pool=True),
        Stage(2, pool=True),
        Stage(2, pool=True),
        Stage(4, dilation=2),
        Stage(4, dilation=4),
    )
    refine_mults = (4, 2, 2, 2, 1, 1)
