"""The original tensor names of NCSN and NCSNv2, and ours.

The originals call the encoder stages res1, res2, ... and the refine blocks refine1, refine2, ... after the stage they
merge; the 256-pixel network inserts res31 and refine31. Order below = order of the original state dict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sde_score.models.refinenet import RefineNet, ResidualBlock, ResidualConvUnit

# number of encoder stages -> (their names, the names of the refine blocks in order of use)
_STAGES = {
    4: (("res1", "res2", "res3", "res4"), ("refine1", "refine2", "refine3", "refine4")),
    5: (("res1", "res2", "res3", "res4", "res5"), ("refine1", "refine2", "refine3", "refine4", "refine5")),
    6: (
        ("res1", "res2", "res3", "res31", "res4", "res5"),
        ("refine1", "refine2", "refine31", "refine3", "refine4", "refine5"),
    ),
}


def original_names(network: RefineNet) -> dict[str, str]:
    """Our tensor name -> the original one, in the order of the original state dict.

    Raises `ValueError` for classes, which have no original names.
    """
    if network.num_classes is not None:
        raise ValueError("The original RefineNets have no classes: a network with `num_classes` has no original names.")
    if len(network.stages) not in _STAGES:
        raise ValueError(f"No original RefineNet has {len(network.stages)} stages; they have 4, 5 or 6.")
    stages, refines = _STAGES[len(network.stages)]
    own = network.state_dict()
    pairs = [("sigmas", "sigmas")] if "sigmas" in own else []
    pairs += _layer("conv_in", "begin_conv", own)
    pairs += _layer("norm_out", "normalizer", own)
    pairs += _layer("conv_out", "end_conv", own)
    for i, (stage, name) in enumerate(zip(network.encoder, stages)):
        for j, block in enumerate(stage):
            pairs += _residual_block(block, f"encoder.{i}.{j}", f"{name}.{j}", own)
    for i, (block, name) in enumerate(zip(network.decoder, refines)):
        pairs += _refine_block(block, f"decoder.{i}", name, own)
    return dict(pairs)


def _layer(ours: str, original: str, own: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """All tensors of one layer (conv, norm or embedding): the leaf names are the same on both sides."""
    leaves = ("weight", "bias", "alpha", "gamma", "beta", "embed.weight")
    return ((f"{ours}.{leaf}", f"{original}.{leaf}") for leaf in leaves if f"{ours}.{leaf}" in own)


def _residual_block(block: ResidualBlock, ours: str, original: str, own: Mapping[str, Tensor]) -> Iterator:
    inner = ".conv" if block.pool else ""  # a pooled convolution is a module around its conv
    yield from _layer(f"{ours}.conv1", f"{original}.conv1", own)
    yield from _layer(f"{ours}.norm2", f"{original}.normalize2", own)
    yield from _layer(f"{ours}.conv2", f"{original}.conv2{inner}", own)
    yield from _layer(f"{ours}.shortcut", f"{original}.shortcut{inner}", own)
    yield from _layer(f"{ours}.norm1", f"{original}.normalize1", own)


def _refine_block(block, ours: str, original: str, own: Mapping[str, Tensor]) -> Iterator:
    for i, unit in enumerate(block.adapt):
        yield from _conv_unit(unit, f"{ours}.adapt.{i}", f"{original}.adapt_convs.{i}", own)
    yield from _conv_unit(block.refine, f"{ours}.refine", f"{original}.output_convs", own)
    for ours_part, original_part, part in (("fuse", "msf", block.fuse), ("pool", "crp", block.pool)):
        if part is None:
            continue
        for kind in ("convs", "norms"):
            for i in range(len(getattr(part, kind) or ())):
                yield from _layer(f"{ours}.{ours_part}.{kind}.{i}", f"{original}.{original_part}.{kind}.{i}", own)


def _conv_unit(unit: ResidualConvUnit, ours: str, original: str, own: Mapping[str, Tensor]) -> Iterator:
    for b, pair in enumerate(unit.blocks):
        for s in range(len(pair.convs)):
            yield from _layer(f"{ours}.blocks.{b}.norms.{s}", f"{original}.{b + 1}_{s + 1}_norm", own)
            yield from _layer(f"{ours}.blocks.{b}.convs.{s}", f"{original}.{b + 1}_{s + 1}_conv", own)


def refinenet_arguments(state_dict: Mapping[str, Tensor]) -> tuple[str, dict[str, object]]:
    """Registered name and constructor arguments of the network that an original state dict describes.

    Read from the tensors: family and depth, `channels`, `nf`, `num_scales`, and for NCSNv2 the table of sigmas: its
    ends, and whether its spacing is uniform.
    Not visible in them: `activation` (published: elu) and `centered` (published: no).
    """
    nf, channels = state_dict["begin_conv.weight"].shape[:2]
    arguments: dict[str, object] = {"channels": channels, "nf": nf}
    if "normalizer.embed.weight" in state_dict:
        return "ncsn", {**arguments, "num_scales": state_dict["normalizer.embed.weight"].shape[0]}
    if "res31.0.conv1.weight" in state_dict:
        name = "ncsnv2_256"
    elif "res5.0.conv1.weight" in state_dict:
        name = "ncsnv2_128"
    else:
        name = "ncsnv2_64"
    if "sigmas" in state_dict:
        sigmas = state_dict["sigmas"]
        arguments["num_scales"] = len(sigmas)
        if not sigmas.is_meta:
            ends = float(sigmas[0]), float(sigmas[-1])
            even = torch.linspace(*ends, len(sigmas), dtype=torch.float64)
            uniform = len(sigmas) > 2 and torch.allclose(sigmas.cpu().double(), even, rtol=1e-4, atol=0)
            arguments.update(sigma_max=ends[0], sigma_min=ends[1], spacing="uniform" if uniform else "geometric")
    return name, arguments


def is_refinenet(state_dict: Mapping[str, Tensor]) -> bool:
    return "begin_conv.weight" in state_dict and "refine1.crp.convs.0.weight" in state_dict
