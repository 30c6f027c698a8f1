"""Our networks under the original tensor names, and back. Exact in both directions.

Most tensors are the same under another name. The 1x1 layers called NIN hold their matrix as (in, out), ours as (out,
in[, 1, 1]); the table `sigmas` of the U-Nets is float64, ours holds its bits as integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch

import torch
from torch import Tensor, nn

from sde_score.models.image_unet import ImageUNet
from sde_score.models.official import refinenet_names, unet_names
from sde_score.models.refinenet import RefineNet


@singledispatch
def original_names(network: nn.Module) -> dict[str, str]:
    """Our tensor name -> the original one, in the order of the original state dict.

    Raises `ValueError` for a network, or for settings of one, that the original releases do not have.
    """
    raise ValueError(f"{type(network).__name__} has no original counterpart; NCSNpp, DDPM, NCSN and NCSNv2 have.")


original_names.register(ImageUNet, unet_names.original_names)
original_names.register(RefineNet, refinenet_names.original_names)


def to_original_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """The network's tensors under the original names (without `module.`), in the original order and layout."""
    own = network.state_dict()
    return {original: _to_layout(name, original, own[name]) for name, original in original_names(network).items()}


def load_original(network: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Copy a state dict under the original names, complete and of the right shapes, into the network."""
    own = network.state_dict()
    tensors = {
        name: _from_layout(name, original, state_dict[original], own[name])
        for name, original in original_names(network).items()
    }
    network.load_state_dict(tensors)


def trainable_original_names(network: nn.Module) -> list[str]:
    """The original names of the trainable parameters in their order, which is that of the original EMA list.

    Neither the table of noise levels nor the Fourier frequencies are among them.
    """
    parameters = dict(network.named_parameters())
    return [original for name, original in original_names(network).items() if name in parameters]


def differences(expected: Mapping[str, tuple], found: Mapping[str, tuple]) -> list[str]:
    """One line per tensor that is missing, has another shape, or is left over."""
    lines = []
    for name, shape in expected.items():
        if name not in found:
            lines.append(f"{name}: missing, expected {list(shape)}")
        elif tuple(found[name]) != tuple(shape):
            lines.append(f"{name}: {list(found[name])} in the file, expected {list(shape)}")
    lines += [
        f"{name}: {list(shape)} in the file, not in the network"
        for name, shape in found.items()
        if name not in expected
    ]
    return lines


def shapes_of(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def _is_nin(original: str) -> bool:
    return original.endswith(".W") and ".NIN_" in original


def _to_layout(name: str, original: str, tensor: Tensor) -> Tensor:
    if name == unet_names.TABLE:
        return (tensor if tensor.is_meta else tensor.cpu()).view(torch.float64)
    return tensor.flatten(1).t().contiguous() if _is_nin(original) else tensor


def _from_layout(name: str, original: str, tensor: Tensor, own: Tensor) -> Tensor:
    if name == unet_names.TABLE:
        return tensor.cpu().double().contiguous().view(torch.int64)
    return tensor.t().reshape(own.shape) if _is_nin(original) else tensor
