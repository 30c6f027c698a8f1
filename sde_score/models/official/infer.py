"""Read the architecture of an original U-Net checkpoint from its tensor names and shapes.

The original networks number their modules: `all_modules.{i}.{...}` in the order of the forward pass. Which kind of
module stands at i shows in the names of its tensors, a module without tensors (resampling without a convolution) as a
gap in the numbering. Read in order, the list tells:

    model, channels, nf, ch_mult, num_res_blocks, the levels with attention, embedding_type, conditional, resblock_type,
    resamp_with_conv, progressive, progressive_input, progressive_combine, num_scales, and fir where a FIR convolution
    occurs

It does not tell, because these change no tensor: `centered`, `scale_by_sigma`, `skip_rescale`, `fir` without FIR
convolutions, the taps of the FIR kernel, `nonlinearity`, `dropout`, `init_scale`; nor the image size, so that
attention is given by level (0 = full size). A `ddpm` network and an `ncsnpp` one of DDPM blocks with positional
embedding may have the same tensors (where all widths are multiples of 32); the former is assumed. Words and values are
those of the original configurations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


class NotReadable(ValueError):
    """The tensors are not those of a U-Net of the original release."""


@dataclass
class _Module:
    """One numbered module: its kind, the widths it maps between, and its tensors' shapes."""

    kind: str  # fourier, linear, conv, norm, block, attention, combine, resample, fir_resample, gap
    in_width: int = 0
    width: int = 0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def has_shortcut(self) -> bool:
        return any(name.startswith(("Conv_2", "NIN_0")) for name in self.shapes)


def _describe(shapes: dict[str, tuple[int, ...]]) -> _Module:
    weight = shapes.get("weight")
    if not shapes:
        return _Module("gap")
    if set(shapes) == {"W"}:
        return _Module("fourier", width=shapes["W"][0], shapes=shapes)
    if weight is not None:
        kind = {1: "norm", 2: "linear", 4: "conv"}.get(len(weight))
        if kind is None:
            raise NotReadable(f"a tensor of shape {weight}")
        return _Module(kind, weight[-1] if kind == "linear" else weight[min(1, len(weight) - 1)], weight[0], shapes)
    if "Conv2d_0.weight" in shapes:
        out, in_width = shapes["Conv2d_0.weight"][:2]
        return _Module("fir_resample", in_width, out, shapes)
    if "GroupNorm_0.weight" in shapes and "Conv_0.weight" in shapes:
        out, in_width = shapes["Conv_0.weight"][:2]
        return _Module("block", in_width, out, shapes)
    if "GroupNorm_0.weight" in shapes and "NIN_3.W" in shapes:
        width = shapes["GroupNorm_0.weight"][0]
        return _Module("attention", width, width, shapes)
    if set(shapes) == {"Conv_0.weight", "Conv_0.bias"}:
        out, in_width, kernel, _ = shapes["Conv_0.weight"]
        return _Module("combine" if kernel == 1 else "resample", in_width, out, shapes)
    raise NotReadable(f"a module with the tensors {', '.join(sorted(shapes))}")


def _modules(state_dict: Mapping[str, Tensor]) -> list[_Module]:
    found: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, tensor in state_dict.items():
        match = re.fullmatch(r"all_modules\.(\d+)\.(.+)", name)
        if match:
            found.setdefault(int(match[1]), {})[match[2]] = tuple(tensor.shape)
    if not found:
        raise NotReadable("no tensor named all_modules.*")
    return [_describe(found.get(i, {})) for i in range(max(found) + 1)]


class _Reader:
    def __init__(self, modules: list[_Module]) -> None:
        self.modules, self.position = modules, 0

    def peek(self, ahead: int = 0) -> _Module:
        i = self.position + ahead
        return self.modules[i] if i < len(self.modules) else _Module("end")

    def take(self, kind: str) -> _Module:
        module = self.peek()
        if module.kind != kind:
            raise NotReadable(f"module {self.position} is of kind {module.kind}, expected {kind}")
        self.position += 1
        return module

    def optional(self, kind: str) -> _Module | None:
        return self.take(kind) if self.peek().kind == kind else None


def infer_unet(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors tell of an original U-Net, in the words of its configuration; see the head of this file.

    `attention_levels` stands for `attn_resolutions`. Options that do not show are absent. Raises `NotReadable`.
    """
    read = _Reader(_modules(state_dict))
    ddpm_blocks = any("NIN_0.W" in module.shapes and module.kind == "block" for module in read.modules)
    facts: dict[str, Any] = {"resblock_type": "ddpm" if ddpm_blocks else "biggan"}
    if "sigmas" in state_dict:
        sigmas = state_dict["sigmas"]
        facts["num_scales"] = sigmas.shape[0]
        if isinstance(sigmas, Tensor) and not sigmas.is_meta:
            facts["sigma_max"], facts["sigma_min"] = float(sigmas[0]), float(sigmas[-1])

    fourier = read.optional("fourier")
    facts["embedding_type"] = "fourier" if fourier else "positional"
    facts["conditional"] = read.peek().kind == "linear"
    if facts["conditional"]:
        read.take("linear"), read.take("linear")
    conv_in = read.take("conv")
    facts["channels"], facts["nf"] = conv_in.in_width, conv_in.width

    widths, attention = _read_down_path(read, facts)
    facts["ch_mult"] = tuple(w // conv_in.width for w in widths)
    facts["attention_levels"] = tuple(level for level, has in enumerate(attention) if has)
    read.take("block"), read.take("attention"), read.take("block")
    _read_up_path(read, facts, levels=len(widths))
    facts["model"] = _family(read.modules, facts)
    if facts["model"] == "ddpm":
        for key in ("progressive", "progressive_input", "progressive_combine", "resblock_type", "fir"):
            facts.pop(key, None)
    return facts


def _read_down_path(read: _Reader, facts: dict[str, Any]) -> tuple[list[int], list[bool]]:
    """Levels of `num_res_blocks` blocks with a resampling between them."""
    widths: list[int] = []
    attention: list[bool] = []
    blocks = _blocks_of_first_level(read)
    facts["num_res_blocks"] = blocks
    facts["progressive_input"] = "none"
    while True:
        has_attention = False
        for _ in range(blocks):
            width = read.take("block").width
            has_attention = read.optional("attention") is not None
        widths.append(width)
        attention.append(has_attention)
        if not _is_downsampling(read.peek()):
            break
        _read_downsampling(read, facts)
    return widths, attention


def _is_downsampling(module: _Module) -> bool:
    # A BigGAN block that keeps its width has a shortcut convolution only where it resamples.
    return module.kind in ("resample", "fir_resample", "gap") or (
        module.kind == "block" and module.in_width == module.width and module.has_shortcut
    )


def _blocks_of_first_level(read: _Reader) -> int:
    ahead = count = 0
    while read.peek(ahead).kind in ("block", "attention") and not _is_downsampling(read.peek(ahead)):
        count += read.peek(ahead).kind == "block"
        ahead += 1
    if _is_downsampling(read.peek(ahead)) and count < sum(m.kind == "block" for m in read.modules) - 2:
        return count
    # One level only: R blocks, two in the middle, R + 1 on the way up.
    total = sum(m.kind == "block" for m in read.modules)
    return (total - 3) // 2


def _read_downsampling(read: _Reader, facts: dict[str, Any]) -> None:
    first = read.peek()
    read.position += 1
    if first.kind != "block":
        facts["resblock_type"] = "ddpm"
        facts["resamp_with_conv"] = first.kind != "gap"
        if first.kind != "gap":
            facts["fir"] = first.kind == "fir_resample"
    nxt = read.peek()
    if nxt.kind == "combine":
        read.position += 1
        facts["progressive_input"] = "input_skip"
        # "cat" doubles the width, which shows in the next block.
        following = read.peek()
        width = first.width or nxt.width
        facts["progressive_combine"] = "sum" if following.in_width == width else "cat"
    elif nxt.kind in ("resample", "fir_resample"):
        read.position += 1
        facts["progressive_input"] = "residual"
        facts["fir"] = nxt.kind == "fir_resample"


def _read_up_path(read: _Reader, facts: dict[str, Any], *, levels: int) -> None:
    facts["progressive"] = "none"
    for level in reversed(range(levels)):
        for _ in range(facts["num_res_blocks"] + 1):
            width = read.take("block").width
        read.optional("attention")
        lowest = level == levels - 1
        if lowest and levels > 1 and read.peek().kind == "norm":
            image = read.peek(1).kind == "conv" and read.peek(1).width == facts["channels"]
            facts["progressive"] = "output_skip" if image else "residual"
        if facts["progressive"] == "output_skip" or (facts["progressive"] == "residual" and lowest):
            read.take("norm"), read.take("conv")
        elif facts["progressive"] == "residual":
            facts["fir"] = read.peek().kind == "fir_resample"
            read.position += 1
        if level:
            module = read.peek()
            if module.kind not in ("block", "resample", "fir_resample", "gap"):
                raise NotReadable(f"module {read.position} after level {level} ({width} wide) is of kind {module.kind}")
            read.position += 1
    if facts["progressive"] != "output_skip":
        read.take("norm"), read.take("conv")
    if read.peek().kind != "end":
        raise NotReadable(f"{len(read.modules) - read.position} module(s) left over at the end")


def _family(modules: list[_Module], facts: dict[str, Any]) -> str:
    """DDPM networks have DDPM blocks, positional labels, 32 groups in every norm and no progressive parts."""
    only_ncsnpp = (
        facts["embedding_type"] == "fourier"
        or facts["progressive"] != "none"
        or facts["progressive_input"] != "none"
        or facts.get("fir")
        or facts["resblock_type"] == "biggan"
        or any(module.kind == "block" and module.width % 32 for module in modules)
    )
    return "ncsnpp" if only_ncsnpp else "ddpm"
