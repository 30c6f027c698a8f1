"""Parts of the RefineNet score networks NCSN and NCSNv2.

A dilated residual encoder is followed by a cascade of *refine blocks*, each of which merges an encoder stage with the
refined coarser features. Two families share the parts: NCSN normalises with a norm whose affine map depends on the
noise index; NCSNv2 does not know the noise level at all and divides its output by sigma.

Sources: Lin et al., "RefineNet", CVPR 2017 (refine blocks); Song & Ermon, "Generative modeling by estimating gradients
of the data distribution", NeurIPS 2019, app. A (NCSN, InstanceNorm++); Song & Ermon, "Improved techniques for training
score-based generative models", NeurIPS 2020, app. B (NCSNv2).

Shapes: x (B, C, H, W); c_noise (B,) int64, index of the noise scale, 0 = largest; y (B,) int64 class labels or None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_score.models import layers
from sde_score.models.blocks import run_block
from sde_score.models.conditioning import ClassConditional
from sde_score.models.input_checks import check_image_inputs, check_range, check_sizes

# --- norms -----------------------------------------------------------------------------------------------------------


def _instance_norm_plus(x: Tensor, gamma: Tensor, alpha: Tensor, beta: Tensor | None, eps: float = 1e-5) -> Tensor:
    """gamma * (instance_norm(x) + alpha * m) + beta; gamma, alpha, beta of shape (C,) or (B, C)."""
    channel_mean = x.mean(dim=(2, 3))  # (B, C)
    # Unbiased variance over the channels, as the published code computes it (the JAX version uses the biased one).
    variance, mean = torch.var_mean(channel_mean, dim=1, keepdim=True)
    m = (channel_mean - mean) * torch.rsqrt(variance + eps)
    # One pixel has no spatial variance: its instance norm is 0, and the built-in operation would refuse it.
    h = F.instance_norm(x, eps=eps) if x.shape[2] * x.shape[3] > 1 else torch.zeros_like(x)
    offset = gamma * alpha * m if beta is None else torch.addcmul(beta, gamma * alpha, m)  # (B, C)
    scale = gamma.expand_as(m)
    return torch.addcmul(offset[:, :, None, None], scale[:, :, None, None], h)


class InstanceNormPlus(nn.Module):
    """InstanceNorm++: an instance norm that keeps the relative size of the channel means.

    out = gamma (instance_norm(x) + alpha m) + beta,  m_c = (mu_c - mean_c mu) / sqrt(var_c mu + 1e-5),
    mu_c the spatial mean of channel c. x: (B, C, H, W) with C >= 2. Song & Ermon 2019, app. A, eq. 10.
    """

    def __init__(self, channels: int, *, bias: bool = True) -> None:
        super().__init__()
        _check_norm_channels(channels)
        self.alpha = nn.Parameter(torch.empty(channels).normal_(1.0, 0.02))
        self.gamma = nn.Parameter(torch.empty(channels).normal_(1.0, 0.02))
        self.beta = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor, c_noise: Tensor | None = None) -> Tensor:
        return _instance_norm_plus(x, self.gamma, self.alpha, self.beta)


class ConditionalInstanceNormPlus(nn.Module):
    """InstanceNorm++ whose gamma, alpha and beta are looked up by the noise index.

    One embedding row holds gamma | alpha | beta (3C numbers). c_noise: (B,) int64. Song & Ermon 2019, app. A.
    """

    def __init__(self, channels: int, num_scales: int, *, bias: bool = True) -> None:
        super().__init__()
        _check_norm_channels(channels)
        self.bias = bias
        self.embed = nn.Embedding(num_scales, (3 if bias else 2) * channels)
        with torch.no_grad():
            self.embed.weight[:, : 2 * channels].normal_(1.0, 0.02)
            self.embed.weight[:, 2 * channels :].zero_()

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        gamma, alpha, *beta = self.embed(c_noise).chunk(3 if self.bias else 2, dim=1)
        return _instance_norm_plus(x, gamma, alpha, beta[0] if beta else None)


class VarianceNorm(nn.Module):
    """Divide every channel by its spatial standard deviation: alpha x / sqrt(var + 1e-5), unbiased variance."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(channels).normal_(1.0, 0.02))

    def forward(self, x: Tensor, c_noise: Tensor | None = None) -> Tensor:
        variance = x.var(dim=(2, 3), keepdim=True)
        return self.alpha[:, None, None] * x * torch.rsqrt(variance + 1e-5)


def _check_norm_channels(channels: int) -> None:
    if channels < 2:
        raise ValueError(
            f"InstanceNorm++ compares channels with each other and needs at least 2, got {channels}: use a larger nf."
        )


# --- encoder ---------------------------------------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    """x -> shortcut(x) + conv2(act(norm2(conv1(act(norm1(x)))))).

    pool: the block halves the image, by a 2x2 mean after conv2 and after the (1x1) shortcut.
    dilation: all convolutions, the shortcut included, are 3x3 with this dilation; the size does not change.
    The shortcut is the identity when neither the width nor the size changes and the block does not open a dilated
    stage.
    """

    def __init__(
        self,
        in_width: int,
        width: int,
        *,
        norm: Callable[[int], nn.Module],
        act: Callable[[Tensor], Tensor],
        pool: bool = False,
        dilation: int = 1,
        shortcut: bool | None = None,
    ) -> None:
        super().__init__()
        self.act = act
        self.pool = pool
        # A block that pools or opens a dilated stage widens in its second convolution, a plain one in its first.
        mid_width = in_width if (pool or dilation > 1) else width
        self.conv1 = _conv3x3(in_width, mid_width, dilation)
        self.norm2 = norm(mid_width)
        self.conv2 = _conv3x3(mid_width, width, dilation)
        self.shortcut: nn.Module | None = None
        if pool:
            self.shortcut = nn.Conv2d(in_width, width, 1)
        elif shortcut or in_width != width:
            self.shortcut = _conv3x3(in_width, width, dilation) if dilation > 1 else nn.Conv2d(in_width, width, 1)
        self.norm1 = norm(in_width)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        h = self.conv1(self.act(self.norm1(x, c_noise)))
        h = self.conv2(self.act(self.norm2(h, c_noise)))
        h = h + (x if self.shortcut is None else self.shortcut(x))
        return F.avg_pool2d(h, 2) if self.pool else h  # the mean is linear: pool the sum once instead of both terms


# --- decoder ---------------------------------------------------------------------------------------------------------


class ResidualConvUnit(nn.Module):
    """`blocks` times: two stages of {[norm], act, 3x3 conv without bias}, added to the block's input."""

    def __init__(self, width: int, blocks: int, *, norm: Callable[[int], nn.Module] | None, act: Callable) -> None:
        super().__init__()
        self.act = act
        self.blocks = nn.ModuleList(_ConvPair(width, norm) for _ in range(blocks))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        for block in self.blocks:
            h = x
            for stage, conv in enumerate(block.convs):
                h = h if block.norms is None else block.norms[stage](h, c_noise)
                h = conv(self.act(h))
            x = x + h
        return x


class _ConvPair(nn.Module):
    def __init__(self, width: int, norm: Callable[[int], nn.Module] | None) -> None:
        super().__init__()
        self.norms = None if norm is None else nn.ModuleList(norm(width) for _ in range(2))
        self.convs = nn.ModuleList(_conv3x3(width, width, bias=False) for _ in range(2))


class MultiScaleFusion(nn.Module):
    """Sum of 3x3 convolutions of features of several sizes, resized bilinearly (aligned corners) to the first one's."""

    def __init__(self, in_widths: Sequence[int], width: int, *, norm: Callable[[int], nn.Module] | None) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv3x3(w, width) for w in in_widths)
        self.norms = None if norm is None else nn.ModuleList(norm(w) for w in in_widths)

    def forward(self, xs: Sequence[Tensor], c_noise: Tensor) -> Tensor:
        size = xs[0].shape[2:]
        total = None
        for i, (x, conv) in enumerate(zip(xs, self.convs)):
            h = conv(x if self.norms is None else self.norms[i](x, c_noise))
            if h.shape[2:] != size:
                h = F.interpolate(h, size=size, mode="bilinear", align_corners=True)
            total = h if total is None else total + h
        return total


class ChainedPooling(nn.Module):
    """Residual chain of 5x5 poolings: x = act(x), path = x; twice: path = conv(pool(path)), x = x + path.

    Unconditional: max pooling. Conditional: path = conv(mean_pool(norm(path))), padding counted in the mean.
    """

    def __init__(self, width: int, stages: int, *, norm: Callable[[int], nn.Module] | None, act: Callable) -> None:
        super().__init__()
        self.act = act
        self.convs = nn.ModuleList(_conv3x3(width, width, bias=False) for _ in range(stages))
        self.norms = None if norm is None else nn.ModuleList(norm(width) for _ in range(stages))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        x = path = self.act(x)
        for i, conv in enumerate(self.convs):
            if self.norms is None:
                path = F.max_pool2d(path, 5, stride=1, padding=2)
            else:
                path = F.avg_pool2d(self.norms[i](path, c_noise), 5, stride=1, padding=2)
            path = conv(path)
            x = x + path
        return x


class RefineBlock(nn.Module):
    """Adapt every input, fuse them at the size of the first, pool in a chain, refine. Lin et al. 2017, fig. 3."""

    def __init__(
        self,
        in_widths: Sequence[int],
        width: int,
        *,
        norm: Callable[[int], nn.Module] | None,
        act: Callable,
        last: bool = False,
    ) -> None:
        super().__init__()
        self.adapt = nn.ModuleList(ResidualConvUnit(w, 2, norm=norm, act=act) for w in in_widths)
        self.refine = ResidualConvUnit(width, 3 if last else 1, norm=norm, act=act)
        self.fuse = MultiScaleFusion(in_widths, width, norm=norm) if len(in_widths) > 1 else None
        self.pool = ChainedPooling(width, 2, norm=norm, act=act)

    def forward(self, xs: Sequence[Tensor], c_noise: Tensor) -> Tensor:
        xs = [adapt(x, c_noise) for adapt, x in zip(self.adapt, xs)]
        h = xs[0] if self.fuse is None else self.fuse(xs, c_noise)
        return self.refine(self.pool(h, c_noise), c_noise)


def _conv3x3(in_width: int, width: int, dilation: int = 1, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_width, width, 3, padding=dilation, dilation=dilation, bias=bias)


# --- the whole network -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """Two residual blocks of width `mult * nf`; the first halves the image (pool) or opens a dilated stage."""

    mult: int
    pool: bool = False
    dilation: int = 1


class RefineNet(ClassConditional):
    """Encoder of residual stages and refine cascade; subclasses give the tables and say how the noise level enters.

    `stages[i]` describes encoder stage i; `refine_mults[j]` is the width (in units of nf) of the j-th refine block,
    which merges encoder stage -1-j with the result of refine block j-1. `norm(channels, num_scales)` makes a norm;
    `conditional_norms`: the norms depend on the noise level, and the cascade has them too.

    Args: channels: image channels. nf: base width. num_scales: number of noise scales L. activation: elu, relu, lrelu
    or swish. centered: the data are in [-1, 1]; otherwise the network maps [0, 1] to [-1, 1] itself.
    num_classes: classes of the data; `forward` then needs `y`, which adds a learned vector (initially 0) before each
    stage; class `num_classes` means "no class". gradient_checkpointing: recompute stages and refine blocks in the
    backward pass: less memory, more time.

    Raises ValueError for images that cannot be halved as often as the network pools, TypeError for a float c_noise.
    """

    stages: tuple[Stage, ...]
    refine_mults: tuple[int, ...]
    norm: Callable[[int, int], nn.Module]
    conditional_norms: bool

    def __init__(
        self,
        channels: int = 3,
        *,
        nf: int = 128,
        num_scales: int = 10,
        activation: str = "elu",
        centered: bool = False,
        num_classes: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(type(self).__name__, channels=channels, nf=nf, num_scales=num_scales, num_classes=num_classes)
        self.channels = channels
        self.num_scales = num_scales
        self.num_classes = num_classes
        self.centered = centered
        self.gradient_checkpointing = gradient_checkpointing
        self.act = layers.activation(activation)
        norm = partial(self.norm, num_scales=num_scales)

        self.conv_in = _conv3x3(channels, nf)
        self.norm_out = norm(nf)
        self.conv_out = layers.ImageConv(nf, channels)
        self.encoder = nn.ModuleList()
        in_width = nf
        for stage in self.stages:
            self.encoder.append(self._make_stage(stage, in_width, nf * stage.mult, norm))
            in_width = nf * stage.mult
        self.decoder = nn.ModuleList()
        previous: list[int] = []
        for j, mult in enumerate(self.refine_mults):
            skip = nf * self.stages[-1 - j].mult
            self.decoder.append(
                RefineBlock(
                    [skip, *previous],
                    nf * mult,
                    norm=norm if self.conditional_norms else None,
                    act=self.act,
                    last=j == len(self.refine_mults) - 1,
                )
            )
            previous = [nf * mult]
        if num_classes is not None:
            widths = [nf] + [nf * stage.mult for stage in self.stages[:-1]]
            self.class_embed = nn.ModuleList(nn.Embedding(num_classes + 1, w) for w in widths)
            for embed in self.class_embed:
                nn.init.zeros_(embed.weight)

    def _make_stage(self, stage: Stage, in_width: int, width: int, norm: Callable[[int], nn.Module]) -> nn.ModuleList:
        first = ResidualBlock(
            in_width,
            width,
            norm=norm,
            act=self.act,
            pool=stage.pool,
            dilation=stage.dilation,
            shortcut=stage.dilation > 1,
        )
        second = ResidualBlock(width, width, norm=norm, act=self.act, dilation=stage.dilation)
        return nn.ModuleList([first, second])

    @property
    def halvings(self) -> int:
        """How often the image size is halved; height and width must be multiples of 2**halvings."""
        return sum(stage.pool for stage in self.stages)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        self._check_inputs(x, c_noise, y)
        run = partial(run_block, recompute=self.gradient_checkpointing)
        h = self.conv_in(x if self.centered else 2.0 * x - 1.0)
        skips = []
        for i, stage in enumerate(self.encoder):
            if self.num_classes is not None:
                h = h + self.class_embed[i](y)[:, :, None, None]
            h = run(_apply_blocks, stage, h, c_noise)
            skips.append(h)
        h = run(self.decoder[0], [skips.pop()], c_noise)
        for block in self.decoder[1:]:
            h = run(block, [skips.pop(), h], c_noise)
        return self.conv_out(self.act(self.norm_out(h, c_noise)))

    def _check_inputs(self, x: Tensor, c_noise: Tensor, y: Tensor | None) -> None:
        name = type(self).__name__
        check_image_inputs(
            name, x, c_noise, y, channels=self.channels, halvings=self.halvings, num_classes=self.num_classes
        )
        if c_noise.is_floating_point():
            raise TypeError(
                f"{name} takes the integer index of the noise scale (0 = largest) as c_noise, got {c_noise.dtype}: use "
                "the parameterisation 'smld'."
            )
        check_range("c_noise", c_noise, self.num_scales, f"The table of noise scales of {name}")


def _apply_blocks(blocks: nn.ModuleList, h: Tensor, c_noise: Tensor) -> Tensor:
    for block in blocks:
        h = block(h, c_noise)
    return h
