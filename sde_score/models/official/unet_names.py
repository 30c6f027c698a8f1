"""The original tensor names of NCSN++ and DDPM, and ours.

The originals keep every layer in one flat list, `all_modules.0`, `all_modules.1`, ..., in order of creation, where
modules without parameters use up a number too.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from sde_score.models.blocks import AttentionBlock, ResidualBlock
from sde_score.models.image_unet import ImageUNet
from sde_score.models.levels import Combine
from sde_score.models.noise_level import FourierEmbedding, NoiseConditioning
from sde_score.models.resample import Downsample, DownsampleConv, Upsample, UpsampleConv

TABLE = "sigma_table.bits"  # ours; the original: sigmas

Pairs = Iterator[tuple[str, str]]  # (part of our name, part of the original name)


def original_names(network: ImageUNet) -> dict[str, str]:
    """Our tensor name -> the original one, in the order of the original state dict.

    Raises `ValueError` for classes and for attention after every block on the way up, which have no original names.
    """
    if network.num_classes is not None:
        raise ValueError("The original U-Nets have no classes: a network with `num_classes` has no original names.")
    if network.up_attention == "each":
        raise ValueError(
            "The original DDPM attends once per level on the way up: up_attention='each' has no names there."
        )
    ours = {id(module): name for name, module in network.named_modules()}
    names = {TABLE: "sigmas"}
    for number, layer in enumerate(_layers_in_order(network)):
        for own, original in layer_names(layer, nin_shortcuts=network.resblock_type == "ddpm"):
            names[f"{ours[id(layer)]}.{own}"] = f"all_modules.{number}.{original}"
    return names


def _layers_in_order(network: ImageUNet) -> Iterator[nn.Module]:
    """Our modules that correspond to `all_modules.0`, `all_modules.1`, ...; DDPM is numbered like NCSN++."""
    conditioning: NoiseConditioning = network.conditioning
    if isinstance(conditioning.embedding, FourierEmbedding):
        yield conditioning.embedding
    if conditioning.linear1 is not None:
        yield conditioning.linear1
        yield conditioning.linear2
    yield network.conv_in
    for level in network.down:
        for i, block in enumerate(level.blocks):
            yield block
            if level.attentions:
                yield level.attentions[i]
        if level.reduce is not None:
            yield level.reduce
        if level.combine is not None:  # the reduction of the images before it has no number
            yield level.combine
        elif level.reduce_image is not None:
            yield level.reduce_image
    yield network.middle.block1
    yield network.middle.attention
    yield network.middle.block2
    for level in network.up:
        yield from level.blocks
        if level.attention is not None:
            yield level.attention
        if level.conv is not None:
            yield level.norm
            yield level.conv
        elif level.enlarge_pyramid is not None:
            yield level.enlarge_pyramid
        if level.enlarge is not None:
            yield level.enlarge
    if network.conv_out is not None:
        yield network.norm_out
        yield network.conv_out


def layer_names(layer: nn.Module, *, nin_shortcuts: bool = False) -> Pairs:
    """Our names and the original ones inside one numbered layer; DDPM-type blocks have `nin_shortcuts`."""
    if isinstance(layer, FourierEmbedding):
        yield "frequencies", "W"
    elif isinstance(layer, ResidualBlock):
        yield from _residual_block(layer, nin_shortcuts)
    elif isinstance(layer, AttentionBlock):
        yield from _weight_and_bias("norm", "GroupNorm_0")
        for i, part in enumerate(("query", "key", "value", "out")):
            yield from _nin(part, f"NIN_{i}")
    elif isinstance(layer, Combine):
        yield from _weight_and_bias("conv", "Conv_0")
    elif isinstance(layer, (UpsampleConv, DownsampleConv)):
        inner = "Conv_0" if layer.taps is None else "Conv2d_0"
        yield "weight", f"{inner}.weight"
        yield "bias", f"{inner}.bias"
    elif isinstance(layer, (Upsample, Downsample)):
        return
    else:
        yield "weight", "weight"
        yield "bias", "bias"


def _residual_block(block: ResidualBlock, nin_shortcuts: bool) -> Pairs:
    yield from _weight_and_bias("norm1", "GroupNorm_0")
    yield from _weight_and_bias("conv1", "Conv_0")
    if block.emb is not None:
        yield from _weight_and_bias("emb", "Dense_0")
    yield from _weight_and_bias("norm2", "GroupNorm_1")
    yield from _weight_and_bias("conv2", "Conv_1")
    if block.shortcut is not None:
        is_nin = nin_shortcuts and block.shortcut.kernel_size == (1, 1)
        yield from _nin("shortcut", "NIN_0") if is_nin else _weight_and_bias("shortcut", "Conv_2")


def _weight_and_bias(own: str, original: str) -> Pairs:
    yield f"{own}.weight", f"{original}.weight"
    yield f"{own}.bias", f"{original}.bias"


def _nin(own: str, original: str) -> Pairs:
    yield f"{own}.weight", f"{original}.W"
    yield f"{own}.bias", f"{original}.b"
