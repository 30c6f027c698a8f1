"""Weights in the layout of EDM: `SongUNet` (DDPM++ and NCSN++) inside a preconditioner.

    network = load_edm(state_dict)                       # the state dict of EDMPrecond(model=SongUNet) or of SongUNet
    model = ScoreModel(network, sde, edm_parameterization(network))
    state_dict = to_edm(network, image_size=32)          # and back

EDM publishes pickles of whole Python objects, which cannot be read without executing them. Save the state dict once,
with EDM's own code and in a place where that is safe: `torch.save(net.state_dict(), "weights.pt")`.

What differs from ours: blocks are named by resolution ("enc.16x16_block0"); attention is part of its block, with
query, key and value interleaved in one 1x1 convolution (row 3c + k: channel c of q, k, v for k = 0, 1, 2); the FIR
filters are stored; c_noise is ln(sigma)/4 for EDM's own preconditioning. A class enters the network before
its first linear map, so a chosen class (or none) is exactly a change of that map's bias: that is how conditional
weights are loaded. The map of augmentation labels has no part in sampling and is dropped.

The layout and the arithmetic were compared with the SongUNet of nvidia-modulus 0.9 (see the tests).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_score.models.blocks import ResidualBlock
from sde_score.models.ncsnpp import NCSNpp
from sde_score.models.noise_level import FourierEmbedding
from sde_score.models.official.checkpoint import OfficialCheckpointError, WrongArchitecture, read_safely
from sde_score.models.official.names import differences, shapes_of

_PRECONDITIONER = "model."
_BLOCK = (("norm1", "norm0"), ("conv1", "conv0"), ("emb", "affine"), ("norm2", "norm1"), ("conv2", "conv1"),
          ("shortcut", "skip"))  # fmt: skip


def edm_parameterization(network: NCSNpp, sigma_data: float = 0.5) -> str:
    """The parameterisation spec that makes an imported network EDM's denoiser, with c_noise = ln(sigma)/4."""
    c_noise = "fourth_root_sigma" if network.embedding_type == "fourier" else "quarter_log_sigma"
    return f"edm(c_noise={c_noise!r}, sigma_data={sigma_data!r})"


def edm_arguments(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments of the NCSNpp that a SongUNet's tensors (without the prefix `model.`) describe.

    Not visible in them: `dropout`. Raises `OfficialCheckpointError` for other networks, ADM's for instance.
    """
    sizes = sorted({int(m[1]) for name in state_dict if (m := re.match(r"enc\.(\d+)x\d+_", name))}, reverse=True)
    if not sizes or f"enc.{sizes[0]}x{sizes[0]}_conv.weight" not in state_dict:
        known = ", ".join(list(state_dict)[:4])
        raise OfficialCheckpointError(
            f"These are not the tensors of a SongUNet (enc.32x32_conv.weight, ...); the first are {known}."
        )
    if any(name.endswith("map_layer2.weight") or ".affine2." in name for name in state_dict):
        raise OfficialCheckpointError("This is a variant of SongUNet that has no counterpart here.")
    nf, channels = state_dict[f"enc.{sizes[0]}x{sizes[0]}_conv.weight"].shape[:2]
    widths, attention = [], []
    for size in sizes:
        blocks = [name for name in state_dict if re.fullmatch(rf"enc\.{size}x{size}_block\d+\.conv0\.weight", name)]
        block = state_dict[blocks[0]]
        if state_dict[blocks[0].replace("conv0", "affine")].shape[0] != block.shape[0]:
            raise OfficialCheckpointError("Adaptive scales (ADM's blocks) have no counterpart here.")
        widths.append(block.shape[0])
        if f"enc.{size}x{size}_block0.qkv.weight" in state_dict:
            attention.append(size)
    skip = any("_aux_skip." in name for name in state_dict)
    residual = any("_aux_residual." in name for name in state_dict)
    filters = [tensor for name, tensor in state_dict.items() if name.endswith("resample_filter")]
    taps = _taps(filters[0]) if filters else (1, 1)
    return {
        "channels": channels,
        "image_size": sizes[0],
        "nf": nf,
        "ch_mult": tuple(width // nf for width in widths),
        "num_res_blocks": len(blocks),
        "attn_resolutions": tuple(attention),
        "dropout": 0.0,
        "embedding_type": "fourier" if "map_noise.freqs" in state_dict else "positional",
        "fir": taps != (1, 1),
        "fir_kernel": (1, 3, 3, 1) if taps == (1, 1) else taps,
        "skip_rescale": True,
        "resblock_type": "biggan",
        "progressive": "output_skip" if f"dec.{sizes[-1]}x{sizes[-1]}_aux_norm.weight" in state_dict and len(sizes) > 1
        else "none",
        "progressive_input": "residual" if residual else "input_skip" if skip else "none",
        "scale_by_sigma": False,
        "centered": True,
        "num_classes": None,
    }  # fmt: skip


def _taps(kernel: Tensor) -> tuple[int, ...]:
    """The 1-D taps behind a stored filter, as whole numbers."""
    if kernel.is_meta:
        return {2: (1, 1), 4: (1, 3, 3, 1)}[kernel.shape[-1]]
    row = kernel[0, 0].sum(0)
    return tuple(round(v) for v in (row / row[0]).tolist())


def _filter(taps: tuple[int, ...]) -> Tensor:
    kernel = torch.tensor(taps, dtype=torch.float32)
    return (torch.outer(kernel, kernel) / kernel.sum() ** 2)[None, None]


def _places(network: NCSNpp, image_size: int) -> Iterator[tuple[str, str, Any]]:
    """(our module name, EDM's module name, name of the attention that EDM keeps in the same block or None)."""
    last = len(network.down) - 1

    def at(part: str, level: int) -> str:
        return f"{part}.{image_size >> level}x{image_size >> level}"

    yield "conv_in", at("enc", 0) + "_conv", None
    for level, stage in enumerate(network.down):
        for j in range(len(stage.blocks)):
            attention = f"down.{level}.attentions.{j}" if len(stage.attentions) else None
            yield f"down.{level}.blocks.{j}", f"{at('enc', level)}_block{j}", attention
        if level < last:
            yield f"down.{level}.reduce", f"{at('enc', level + 1)}_down", None
            if stage.combine is not None:
                yield f"down.{level}.combine.conv", f"{at('enc', level + 1)}_aux_skip", None
            elif stage.reduce_image is not None:
                yield f"down.{level}.reduce_image", f"{at('enc', level + 1)}_aux_residual", None
    yield "middle.block1", f"{at('dec', last)}_in0", "middle.attention"
    yield "middle.block2", f"{at('dec', last)}_in1", None
    for k, stage in enumerate(network.up):
        level = last - k
        for j in range(len(stage.blocks)):
            has_attention = stage.attention is not None and j == len(stage.blocks) - 1
            yield f"up.{k}.blocks.{j}", f"{at('dec', level)}_block{j}", f"up.{k}.attention" if has_attention else None
        if stage.conv is not None:
            yield f"up.{k}.norm", f"{at('dec', level)}_aux_norm", None
            yield f"up.{k}.conv", f"{at('dec', level)}_aux_conv", None
        if level:
            yield f"up.{k}.enlarge", f"{at('dec', level - 1)}_up", None
    if network.conv_out is not None:
        yield "norm_out", f"{at('dec', 0)}_aux_norm", None
        yield "conv_out", f"{at('dec', 0)}_aux_conv", None


def _renames(network: NCSNpp, image_size: int) -> Iterator[tuple[str, str]]:
    """(our name, EDM's name) of the tensors that are the same in both: all but those of attention."""
    own, modules = network.state_dict(), dict(network.named_modules())
    if isinstance(network.conditioning.embedding, FourierEmbedding):
        yield "conditioning.embedding.frequencies", "map_noise.freqs"
    for i in (1, 2):
        for leaf in ("weight", "bias"):
            yield f"conditioning.linear{i}.{leaf}", f"map_layer{i - 1}.{leaf}"
    for ours, theirs, _ in _places(network, image_size):
        for a, b in _BLOCK if isinstance(modules[ours], ResidualBlock) else (("", ""),):
            for leaf in ("weight", "bias"):
                name = ".".join(part for part in (ours, a, leaf) if part)
                if name in own:
                    yield name, ".".join(part for part in (theirs, b, leaf) if part)


def to_edm(network: NCSNpp, *, image_size: int | None = None) -> dict[str, Tensor]:
    """The network's tensors under the names of a SongUNet for `image_size` (default: the network's). Exact.

    Raises `OfficialCheckpointError` for networks that SongUNet cannot be.
    """
    _check_supported(network)
    own = network.state_dict()
    state = {theirs: own[ours] for ours, theirs in _renames(network, image_size or network.image_size)}
    for _, theirs, attention in _places(network, image_size or network.image_size):
        if attention:
            for leaf in ("weight", "bias"):
                state[f"{theirs}.norm2.{leaf}"] = own[f"{attention}.norm.{leaf}"]
                qkv = torch.stack([own[f"{attention}.{part}.{leaf}"] for part in ("query", "key", "value")], 1).flatten(
                    0, 1
                )
                proj = own[f"{attention}.out.{leaf}"]
                state[f"{theirs}.qkv.{leaf}"] = qkv[:, :, None, None] if leaf == "weight" else qkv
                state[f"{theirs}.proj.{leaf}"] = proj[:, :, None, None] if leaf == "weight" else proj
    kernel = _filter(_network_taps(network)).to(own["conv_in.weight"].device)
    for name in _filter_names(network, image_size or network.image_size):
        state[name] = kernel
    return state


def _filter_names(network: NCSNpp, image_size: int) -> list[str]:
    names = []
    for ours, theirs, _ in _places(network, image_size):
        if ours.endswith((".reduce", ".enlarge")):
            names += [f"{theirs}.conv0.resample_filter", f"{theirs}.skip.resample_filter"]
        elif ours.endswith(".reduce_image"):
            names.append(f"{theirs}.resample_filter")
        elif ours.endswith(".combine.conv"):
            names.append(f"{theirs.replace('_aux_skip', '_aux_down')}.resample_filter")
        if ours.endswith(".enlarge") and network.progressive == "output_skip":
            names.append(f"{theirs.replace('_up', '_aux_up')}.resample_filter")
    return names


def _network_taps(network: NCSNpp) -> tuple[int, ...]:
    for stage in network.down:
        if stage.reduce is not None:
            return stage.reduce.resample.taps or (1, 1)
    return (1, 1)


def _check_supported(network: NCSNpp) -> None:
    wrong = []
    if not isinstance(network, NCSNpp):
        raise OfficialCheckpointError(f"SongUNet is an NCSNpp, not a {type(network).__name__}.")
    if network.num_classes is not None:
        wrong.append("num_classes")
    if network.conditioning.linear1 is None:
        wrong.append("conditional=False")
    if network.resblock_type != "biggan":
        wrong.append("resblock_type='ddpm'")
    if network.progressive == "residual":
        wrong.append("progressive='residual'")
    if network.scale_by_sigma:
        wrong.append("scale_by_sigma=True")
    if not network.centered:
        wrong.append("centered=False")
    if network.middle.attention.factor == 1.0:
        wrong.append("skip_rescale=False")
    if wrong:
        raise OfficialCheckpointError(f"SongUNet cannot hold an NCSNpp with {', '.join(wrong)}.")


def load_edm(source: str | Path | Mapping[str, Tensor], *, class_label: int | None = None) -> NCSNpp:
    """The network F of an EDM denoiser, in evaluation mode. See the head of this file, and `edm_parameterization`.

    Args:
        source: a file with the state dict of `EDMPrecond` (or of its SongUNet), or the state dict.
        class_label: for class-conditional weights, the class to be generated; None: the network as it runs without
            labels.
    """
    name = "the given state dict" if isinstance(source, Mapping) else str(source)
    content = source if isinstance(source, Mapping) else read_safely(source)
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise OfficialCheckpointError(f"{name} is not a state dict; save it with torch.save(net.state_dict(), path).")
    state = {key.removeprefix(_PRECONDITIONER): tensor for key, tensor in content.items()}
    arguments = edm_arguments(state)
    network = NCSNpp(**arguments)

    state.pop("map_augment.weight", None)
    state.pop("device_buffer", None)  # an empty tensor of nvidia-modulus
    if "map_label.weight" in state:
        state["map_layer0.bias"] = _fold_class(state, class_label)
    elif class_label is not None:
        raise OfficialCheckpointError(f"{name} holds an unconditional network; leave class_label out.")
    state = {key: tensor for key, tensor in state.items() if not key.startswith("map_label.")}

    expected = to_edm(network)
    lines = differences(shapes_of(expected), shapes_of(state))
    if lines:
        raise WrongArchitecture(f"{name} does not fit a SongUNet ({len(lines)} tensors):\n  " + "\n  ".join(lines[:8]))
    network.load_state_dict({**network.state_dict(), **_from_edm(network, state)})
    return network.eval()


def _fold_class(state: Mapping[str, Tensor], class_label: int | None) -> Tensor:
    """W (noise + M onehot sqrt(n) + m) + b = W noise + b', so the class is a bias b' of the first linear map."""
    weight = state["map_label.weight"]
    classes = weight.shape[1]
    shift = state.get("map_label.bias", weight.new_zeros(weight.shape[0]))
    if class_label is not None:
        if not 0 <= class_label < classes:
            raise OfficialCheckpointError(f"class_label must be 0 to {classes - 1}; got {class_label}.")
        shift = shift + weight[:, class_label] * math.sqrt(classes)
    return state["map_layer0.bias"] + state["map_layer0.weight"] @ shift


def _from_edm(network: NCSNpp, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    own = {ours: state[theirs] for ours, theirs in _renames(network, network.image_size)}
    for _, theirs, attention in _places(network, network.image_size):
        if attention:
            for leaf in ("weight", "bias"):
                own[f"{attention}.norm.{leaf}"] = state[f"{theirs}.norm2.{leaf}"]
                for k, part in enumerate(("query", "key", "value")):
                    tensor = state[f"{theirs}.qkv.{leaf}"][k::3]
                    own[f"{attention}.{part}.{leaf}"] = tensor.flatten(1) if leaf == "weight" else tensor
                proj = state[f"{theirs}.proj.{leaf}"]
                own[f"{attention}.out.{leaf}"] = proj.flatten(1) if leaf == "weight" else proj
    return own
