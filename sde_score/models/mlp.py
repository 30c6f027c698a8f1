"""A residual perceptron for vectors, or for data of any shape taken as vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from sde_score.models.conditioning import ClassConditional, Conditioning
from sde_score.models.layers import Dropout
from sde_score.models.registry import MODELS


class MLPBlock(nn.Module):
    """`h + out(dropout(silu((1 + scale) inner(norm(h)) + shift)))`; scale and shift come from the conditioning."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.inner, self.film = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.dropout, self.out = Dropout(dropout), nn.Linear(width, width)

    def forward(self, h: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.film(cond).chunk(2, 1)
        return h + self.out(self.dropout(F.silu((1 + scale) * self.inner(self.norm(h)) + shift)))


@MODELS.register("mlp")
class MLP(ClassConditional):
    """Residual perceptron with FiLM conditioning, for vectors: `network(x: (B, *), c_noise: (B,), y) -> like x`.

    Data of any other shape are flattened; for grids the model 'unet' learns faster. The output layer is zero at first.

    Args:
        shape: of one sample, `(D,)` or any other.
        width: hidden features.
        blocks: residual blocks, each two layers.
        dropout: probability in the residual blocks.
        num_classes: number of classes, `None` for none; class `num_classes` of `y` means "no class".
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 128,
        blocks: int = 3,
        dropout: float = 0.0,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.num_classes = tuple(shape), num_classes
        if not self.shape or min(self.shape) < 1 or width < 1 or blocks < 1:
            raise ValueError(
                f"mlp: shape, such as (2,), width and blocks must be at least 1; got {self.shape}, {width}, {blocks}."
            )
        dim = math.prod(self.shape)
        self.cond = Conditioning(width, num_classes)
        self.inp = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(MLPBlock(width, dropout) for _ in range(blocks))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        """Raises `ValueError` for samples of another shape, and for a wrong c_noise or class."""
        if x.shape[1:] != self.shape:
            wanted = ", ".join(map(str, ("B", *self.shape)))
            raise ValueError(f"This mlp (shape={self.shape}) takes x of shape ({wanted}); got {tuple(x.shape)}.")
        cond = self.cond(x, c_noise, y)
        h = self.inp(x.flatten(1))
        for block in self.blocks:
            h = block(h, cond)
        return self.out(F.silu(self.norm(h))).reshape(x.shape)
