"""How a U-Net is told the noise level and the class: embeddings, the conditioning vector, the table of noise levels.

Shapes: c_noise (B,) the noise level as the network is told it; emb (B, E) the conditioning vector.
Source: Song et al., arXiv:2011.13456, app. H; Ho et al., arXiv:2006.11239, app. B.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_score.models.input_checks import check_range
from sde_score.models.layers import linear
from sde_score.registry import suggest


def _moved_only(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`fn` of `Module._apply` without its change of type, for tables that must keep their precision."""

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return move


class FourierEmbedding(nn.Module):
    """Random Fourier features of a noise level sigma > 0: [sin a, cos a], a = 2 pi W ln(sigma); (B,) -> (B, 2 size).

    The frequencies W ~ N(0, scale^2) are drawn once and saved; they are a buffer and stay float32 when the model is
    cast: in bfloat16 the angle would be noise. Tancik et al., NeurIPS 2020.
    """

    def __init__(self, size: int, scale: float = 16.0) -> None:
        super().__init__()
        self.size = 2 * size
        self.register_buffer("frequencies", torch.randn(size) * scale)

    def forward(self, sigma: Tensor) -> Tensor:
        log_sigma = torch.log(_at_least_float32(sigma))
        angle = (log_sigma[:, None] * self.frequencies) * 2 * math.pi
        return torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)

    def _apply(self, fn: Callable, recurse: bool = True) -> nn.Module:
        return super()._apply(_moved_only(fn), recurse)


class PositionalEmbedding(nn.Module):
    """[sin(t w), cos(t w)], w_i = 10000^(-i / (half - 1)), half = size // 2; (B,) -> (B, size).

    An odd size has a zero appended. Vaswani et al., NeurIPS 2017, as in Ho et al., arXiv:2006.11239.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, c_noise: Tensor) -> Tensor:
        c_noise = _at_least_float32(c_noise)
        half = self.size // 2
        rate = -math.log(10000) / max(half - 1, 1)
        # The frequencies are float32 in the published system; in a float64 model too.
        frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=c_noise.device) * rate)
        angle = c_noise[:, None] * frequencies
        return F.pad(torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1), (0, self.size % 2))


def _at_least_float32(c_noise: Tensor) -> Tensor:
    return c_noise if c_noise.dtype == torch.float64 else c_noise.float()


class NoiseConditioning(nn.Module):
    """What tells every residual block the noise level and the class: act(MLP(embedding(c_noise)) + table[y]).

    (B,), (B,) -> (B, size); None if there is neither. The MLP is linear, act, linear. The class table starts at zero;
    its last row, index `num_classes`, stands for "no class".
    """

    def __init__(
        self,
        embedding: nn.Module,
        size: int,
        act: Callable[[Tensor], Tensor],
        *,
        conditional: bool = True,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.act = act
        self.embedding = embedding
        self.linear1 = linear(embedding.size, size) if conditional else None
        self.linear2 = linear(size, size) if conditional else None
        self.classes = None
        if num_classes is not None:
            self.classes = nn.Embedding(num_classes + 1, size)
            nn.init.zeros_(self.classes.weight)

    def forward(self, c_noise: Tensor, y: Tensor | None = None) -> Tensor | None:
        emb = None
        if self.linear1 is not None:
            features = self.embedding(c_noise).to(self.linear1.weight.dtype)
            emb = self.linear2(self.act(self.linear1(features)))
        if self.classes is not None:
            emb = self.classes(y) if emb is None else emb + self.classes(y)
        return None if emb is None else self.act(emb)


def descending_sigmas(sigma_max: float, sigma_min: float, num_scales: int, spacing: str = "geometric") -> Tensor:
    """Noise levels sigma_max = sigma_0 > ... > sigma_{L-1} = sigma_min, L = num_scales, in float64: (L,).

    Raises `ValueError` for a range that is empty and for an unknown `spacing`; known are geometric and uniform.
    """
    if not 0 < sigma_min <= sigma_max or num_scales < 1:
        raise ValueError(
            "The table of noise levels needs 0 < sigma_min <= sigma_max and num_scales >= 1, got "
            f"sigma_min={sigma_min}, sigma_max={sigma_max}, num_scales={num_scales}."
        )
    on_cpu = dict(dtype=torch.float64, device="cpu")
    if spacing == "geometric":
        return torch.linspace(math.log(sigma_max), math.log(sigma_min), num_scales, **on_cpu).exp()
    if spacing == "uniform":
        return torch.linspace(sigma_max, sigma_min, num_scales, **on_cpu)
    raise ValueError(f"Unknown spacing {spacing!r}.{suggest(spacing, ('geometric', 'uniform'))}")


class SigmaTable(nn.Module):
    """The noise levels sigma_max ... sigma_min, descending and geometric, looked up by index: (B,) -> (B,) float32.

    c_noise is truncated to its index. Published files hold the table in float64. Here its bits are saved as integers,
    so that they survive casts, and devices without float64; the values in use are float32, so that no output becomes
    float64.
    """

    def __init__(self, sigma_min: float, sigma_max: float, num_scales: int) -> None:
        super().__init__()
        table = descending_sigmas(sigma_max, sigma_min, num_scales)
        device = torch.get_default_device()
        self.register_buffer("bits", table.view(torch.int64).to(device))
        self.register_buffer("sigmas", table.float().to(device), persistent=False)

    @property
    def num_scales(self) -> int:
        return len(self.bits)

    def forward(self, c_noise: Tensor) -> Tensor:
        index = c_noise.long()
        check_range("c_noise", index, self.num_scales, "The table of noise levels (`num_scales`)")
        return self.sigmas[index]

    def _apply(self, fn: Callable, recurse: bool = True) -> nn.Module:
        return super()._apply(_moved_only(fn), recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.bits.device.type != "meta":
            self.sigmas = self.bits.cpu().view(torch.float64).float().to(self.bits.device)
