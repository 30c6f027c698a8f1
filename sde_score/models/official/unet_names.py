"""The original tensor names of NCSN++ and DDPM, and ours.

The originals keep every layer in one flat list, `all_modules.0`, `all_modules.1`, ..., in order of creation, where
modules without parameters use up a number too. The 1x1 layers called NIN hold their matrix as (in, out), ours as (out,
in[, 1, 1]); the table `sigmas` is float64, ours holds its bits as integers. Everything else is the same tensor under
another name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sde_score.models.ddpm import DDPM
from sde_score.models.layers import AttentionBlock, ResidualBlock
from sde_score.models.ncsnpp import Combine, NCSNpp
from sde_score.models.noise_level import FourierEmbedding, NoiseConditioning
from sde_score.models.resample import Downsample, DownsampleConv, Upsample, UpsampleConv

__all__ = [
    "ddpm_names",
    "from_original",
    "load_original",
    "ncsnpp_names",
    "original_names",
    "shadow_names",
    "to_original",
    "unet_arguments",
]

_TABLE = "sigma_table.bits"  # ours; the original: sigmas
_FREQUENCIES = "conditioning.embedding.frequencies"

Pairs = Iterator[tuple[str, str]]  # (part of our name, part of the original name)


# --- names ------------------------------------------------------------------------------------------------------------


def original_names(network: nn.Module) -> dict[str, str]:
    """Our tensor name -> the original one, in the order of the original state dict.

    Class labels have no original counterpart: a network with `num_classes` is a `ValueError`, as is any other network.
    """
    if isinstance(network, NCSNpp):
        return ncsnpp_names(network)
    if isinstance(network, DDPM):
        return ddpm_names(network)
    raise ValueError(f"{type(network).__name__} has no original counterpart here; NCSNpp and DDPM do.")


def ncsnpp_names(network: NCSNpp) -> dict[str, str]:
    """`original_names` of an NCSN++ network."""
    return _number(network, _layers_in_order(network))


def ddpm_names(network: DDPM) -> dict[str, str]:
    """`original_names` of a DDPM network."""
    return _number(network, _layers_in_order(network))


def shadow_names(network: nn.Module) -> list[str]:
    """Our names of the parameters in the order of the original EMA list: no buffers, no Fourier frequencies."""
    return [name for name in original_names(network) if name not in (_TABLE, _FREQUENCIES)]


def _number(network: NCSNpp | DDPM, layers: Iterable[nn.Module]) -> dict[str, str]:
    if network.num_classes is not None:
        raise ValueError("The original U-Nets have no classes: a network with `num_classes` has no original names.")
    if getattr(network, "up_attention", "last") == "each":
        raise ValueError(
            "The original DDPM attends once per level on the way up: up_attention='each' has no names there."
        )
    ours = {id(module): name for name, module in network.named_modules()}
    nin_shortcuts = isinstance(network, DDPM) or network.resblock_type == "ddpm"
    names = {_TABLE: "sigmas"}
    for number, layer in enumerate(layers):
        for own, original in layer_names(layer, nin_shortcuts=nin_shortcuts):
            names[f"{ours[id(layer)]}.{own}"] = f"all_modules.{number}.{original}"
    return names


def _layers_in_order(network: NCSNpp | DDPM) -> Iterator[nn.Module]:
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


# --- tensors ----------------------------------------------------------------------------------------------------------


def to_original(network: nn.Module, tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The network's state dict, or `tensors` under our names, with the original names, order and layout. Exact.

    `tensors` may lack some names (an EMA lacks the buffers); unknown names are a `ValueError`.
    """
    names = original_names(network)
    tensors = network.state_dict() if tensors is None else tensors
    unknown = [name for name in tensors if name not in names]
    if unknown:
        raise ValueError(f"{type(network).__name__} has no tensor called {', '.join(unknown[:5])}.")
    return {original: _to_layout(original, tensors[name]) for name, original in names.items() if name in tensors}


def from_original(network: nn.Module, state_dict: Mapping[str, Tensor], *, partial: bool = False) -> dict[str, Tensor]:
    """A state dict under the original names, under ours and in our layout, ready for `network.load_state_dict`.

    A prefix `module.` is ignored. The table `sigmas` may be absent (the network then keeps its own); with `partial`
    anything may be. Raises `ValueError` that lists the tensors which are missing, left over, or of another shape.
    """
    given = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    own = network.state_dict()
    expected = {
        original: (name, tuple(_to_layout(original, own[name]).shape))
        for name, original in original_names(network).items()
    }
    problems = [f"{name}: left over, shape {tuple(given[name].shape)}" for name in given if name not in expected]
    for original, (_, shape) in expected.items():
        if original not in given:
            if not partial and original != "sigmas":
                problems.append(f"{original}: missing, expected shape {shape}")
        elif tuple(given[original].shape) != shape:
            problems.append(f"{original}: shape {tuple(given[original].shape)}, expected {shape}")
    if problems:
        shown = "\n  ".join(problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(
            f"The tensors do not fit this {type(network).__name__}: {len(problems)} difference(s).\n"
            f"  {shown}{more}\n"
            "Build the network with the options of the file."
        )
    return {
        name: _from_layout(original, given[original], own[name])
        for original, (name, _) in expected.items()
        if original in given
    }


def load_original(network: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Copy an original state dict into the network; strict, see `from_original`."""
    tensors = from_original(network, state_dict)
    tensors.setdefault(_TABLE, network.state_dict()[_TABLE])
    network.load_state_dict(tensors)


def _is_nin(original: str) -> bool:
    return original.endswith(".W") and ".NIN_" in original


def _to_layout(original: str, tensor: Tensor) -> Tensor:
    if original == "sigmas":
        return (tensor if tensor.device.type == "meta" else tensor.cpu()).view(torch.float64)
    if _is_nin(original):
        return tensor.flatten(1).t().contiguous()
    return tensor


def _from_layout(original: str, tensor: Tensor, own: Tensor) -> Tensor:
    if original == "sigmas":
        return tensor.cpu().double().contiguous().view(torch.int64)
    if _is_nin(original):
        return tensor.t().reshape(own.shape)
    return tensor


# --- configurations ---------------------------------------------------------------------------------------------------

_SAME_NAME = ("nf", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout", "nonlinearity", "resamp_with_conv",
              "conditional", "scale_by_sigma", "sigma_min", "sigma_max", "num_scales")  # fmt: skip
_SAME_NAME_NCSNPP = ("fir", "fir_kernel", "skip_rescale", "resblock_type", "progressive", "progressive_input",
                     "progressive_combine", "init_scale", "embedding_type", "fourier_scale")  # fmt: skip


def unet_arguments(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Registered name and constructor arguments for an original configuration (sections model, data, training).

    Keys that the network ignores are left out; keys that are absent take the constructor's default. Raises `ValueError`
    for another model, and for Fourier features without continuous training (their c_noise must be sigma).
    """
    model, data = config["model"], config["data"]
    name = model["name"]
    if name not in ("ncsnpp", "ddpm"):
        raise ValueError(f"`model.name` is {name!r}; the U-Nets are 'ncsnpp' and 'ddpm'.")
    keys = _SAME_NAME + (_SAME_NAME_NCSNPP if name == "ncsnpp" else ())
    arguments = {key: tuple(model[key]) if isinstance(model[key], list) else model[key] for key in keys if key in model}
    if name == "ncsnpp":
        continuous = config.get("training", {}).get("continuous", True)
        if arguments.get("embedding_type", "fourier").lower() == "fourier" and not continuous:
            raise ValueError("`embedding_type='fourier'` needs `training.continuous`; discrete training: 'positional'.")
        for key in ("embedding_type", "resblock_type", "progressive", "progressive_input", "progressive_combine"):
            if key in arguments:
                arguments[key] = arguments[key].lower()
        arguments["embedding_type"] = arguments.get("embedding_type", "fourier")
    arguments["channels"] = data.get("num_channels", 3)
    arguments["image_size"] = data["image_size"]
    arguments["centered"] = data.get("centered", False)
    return name, arguments
