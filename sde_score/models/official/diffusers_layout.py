"""Weights in the layout of diffusers' `UNet2DModel`: the repositories google/ncsnpp-* and google/ddpm-*.

    network = load_diffusers("path/to/ncsnpp-celebahq-256")        # a folder with config.json and the weights
    state, config = to_diffusers(network)                          # and back

Two families are known:

    Skip blocks     SkipDownBlock2D, AttnSkipDownBlock2D, SkipUpBlock2D, AttnSkipUpBlock2D: NCSN++ with BigGAN blocks,
                    FIR resampling, input_skip and output_skip, Fourier embedding, output divided by sigma
    plain blocks    DownBlock2D, AttnDownBlock2D, UpBlock2D, AttnUpBlock2D with `downsample_padding` 0: DDPM. On the
                    way up, attention follows every block (as in Ho et al.'s own code) and not only the last of a level

Those repositories publish averaged (EMA) weights only. All tensors are renames of ours; the names are facts of the
format, and the arithmetic was compared with diffusers 0.31 (see the tests).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sde_score.models.ddpm import DDPM
from sde_score.models.ncsnpp import NCSNpp
from sde_score.models.official.architecture import build_network
from sde_score.models.official.checkpoint import OfficialCheckpointError, WrongArchitecture, read_safely
from sde_score.models.official.names import differences, shapes_of

_SKIP_DOWN = {"SkipDownBlock2D": False, "AttnSkipDownBlock2D": True}  # block type -> has attention
_SKIP_UP = {"SkipUpBlock2D": False, "AttnSkipUpBlock2D": True}
_PLAIN_DOWN = {"DownBlock2D": False, "AttnDownBlock2D": True}
_PLAIN_UP = {"UpBlock2D": False, "AttnUpBlock2D": True}
_WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")

# our name -> theirs, applied in turn as regular expressions. Both count the way up from the smallest size.
_RENAMES = (
    (r"^conditioning\.embedding\.frequencies$", "time_proj.weight"),
    (r"^conditioning\.linear", "time_embedding.linear_"),
    (r"^norm_out\.", "conv_norm_out."),
    (r"^middle\.block1\.", "mid_block.resnets.0."),
    (r"^middle\.block2\.", "mid_block.resnets.1."),
    (r"^middle\.attention\.", "mid_block.attentions.0."),
    (r"^(down|up)\.(\d+)\.", r"\1_blocks.\2."),
    (r"\.blocks\.(\d+)\.", r".resnets.\1."),
    (r"\.reduce\.(weight|bias)$", r".downsamplers.0.conv.\1"),
    (r"\.enlarge\.(weight|bias)$", r".upsamplers.0.conv.\1"),
    (r"\.reduce\.", ".resnet_down."),
    (r"\.enlarge\.", ".resnet_up."),
    (r"\.combine\.conv\.", ".skip_conv."),
    (r"^(up_blocks\.\d+)\.conv\.", r"\1.skip_conv."),
    (r"^(up_blocks\.\d+)\.norm\.", r"\1.skip_norm."),
    (r"\.emb\.", ".time_emb_proj."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.query\.", r"\1.to_q."),
    (r"(attentions\.\d+)\.key\.", r"\1.to_k."),
    (r"(attentions\.\d+)\.value\.", r"\1.to_v."),
    (r"(attentions\.\d+)\.out\.", r"\1.to_out.0."),
)
# Names of older diffusers releases, still found in the published files.
_OLD_NAMES = ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0."))


def _get(config: Mapping[str, Any], *names: str, default: Any = None) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), default)


def diffusers_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture that a `config.json` describes, in the words of the original release.

    Raises `OfficialCheckpointError` naming the first setting that none of our networks has.
    """
    down, up = _get(config, "down_block_types", "down_blocks"), _get(config, "up_block_types", "up_blocks")
    widths = _get(config, "block_out_channels")
    if not (down and up and widths):
        raise OfficialCheckpointError("config.json lacks down_block_types, up_block_types or block_out_channels.")
    skip = all(block in _SKIP_DOWN for block in down) and all(block in _SKIP_UP for block in up)
    plain = all(block in _PLAIN_DOWN for block in down) and all(block in _PLAIN_UP for block in up)
    if not (skip or plain):
        raise OfficialCheckpointError(
            f"The block types {sorted({*down, *up})} are not those of NCSN++ ({', '.join([*_SKIP_DOWN, *_SKIP_UP])}) "
            f"or DDPM ({', '.join([*_PLAIN_DOWN, *_PLAIN_UP])})."
        )
    down_types, up_types = (_SKIP_DOWN, _SKIP_UP) if skip else (_PLAIN_DOWN, _PLAIN_UP)
    attention = tuple(level for level, block in enumerate(down) if down_types[block])
    if attention != tuple(level for level, block in enumerate(reversed(up)) if up_types[block]):
        raise OfficialCheckpointError("config.json has attention at other levels on the way up than on the way down.")
    _check_settings(config, skip=skip)
    nf = widths[0]
    if any(width % nf for width in widths):
        raise OfficialCheckpointError(f"block_out_channels {list(widths)} are not multiples of the first.")
    narrow = [widths[level] for level in attention if skip and widths[level] < 128]
    if narrow:
        raise OfficialCheckpointError(
            f"config.json: attention at width {narrow[0]} has 32 groups in its norm; our NCSN++ has {narrow[0] // 4} "
            "there (the two agree from width 128 on)."
        )
    size = _get(config, "sample_size", "image_size", default=2 ** (len(widths) + 1))
    facts: dict[str, Any] = {
        "model": "ncsnpp" if skip else "ddpm",
        "channels": config.get("in_channels", 3),
        "image_size": size,
        "nf": nf,
        "ch_mult": tuple(width // nf for width in widths),
        "num_res_blocks": config.get("layers_per_block", 2),
        "attention_levels": attention,
        "attn_resolutions": tuple(size >> level for level in attention),
        "embedding_type": "fourier" if skip else "positional",
        "conditional": True,
        "nonlinearity": "swish",
        "dropout": config.get("dropout") or 0.0,
        "centered": not config.get("center_input_sample", False),
        "scale_by_sigma": skip,
        "resamp_with_conv": True,
    }
    if plain:
        facts["up_attention"] = "each"
    if skip:
        facts |= dict(fir=True, fir_kernel=(1, 3, 3, 1), skip_rescale=True, resblock_type="biggan", init_scale=0.0,
                      progressive="output_skip", progressive_input="input_skip", progressive_combine="sum",
                      fourier_scale=16)  # fmt: skip
    return facts


def _check_settings(config: Mapping[str, Any], *, skip: bool) -> None:
    """Raise `OfficialCheckpointError` for the first setting that our network of these blocks does not have."""
    embedding = config.get("time_embedding_type", "fourier" if skip else "positional")
    required: dict[str, tuple[Any, Any]] = {
        "act_fn": (config.get("act_fn", "silu"), "silu"),
        "norm_eps": (config.get("norm_eps", 1e-5), 1e-6),
        "time_embedding_type": (embedding, "fourier" if skip else "positional"),
        "attention_head_dim": (config.get("attention_head_dim"), None),
        "resnet_time_scale_shift": (config.get("resnet_time_scale_shift", "default"), "default"),
        "class_embed_type": (config.get("class_embed_type"), None),
        "num_class_embeds": (config.get("num_class_embeds"), None),
        "add_attention": (config.get("add_attention", True), True),
        "norm_num_groups": (config.get("norm_num_groups", 32), None if skip else 32),
        "out_channels": (config.get("out_channels", 3), config.get("in_channels", 3)),
    }
    if not skip:
        required |= {
            "downsample_padding": (config.get("downsample_padding", 1), 0),
            "flip_sin_to_cos": (config.get("flip_sin_to_cos", True), False),
            "freq_shift": (_get(config, "freq_shift", "downscale_freq_shift", default=0), 1),
        }
    scale = config.get("mid_block_scale_factor", 1)
    if abs(scale - (math.sqrt(2) if skip else 1)) > 1e-6:
        required["mid_block_scale_factor"] = (scale, math.sqrt(2) if skip else 1)
    for key, (value, expected) in required.items():
        if value != expected:
            raise OfficialCheckpointError(
                f"config.json: {key} is {value!r}; our network of these blocks has {expected!r}."
            )


def diffusers_names(network: NCSNpp | DDPM) -> dict[str, str]:
    """Our tensor name -> theirs, for every tensor that their file holds."""
    names = {}
    last = len(network.up) - 1
    for own in network.state_dict():
        if own.startswith("sigma_table."):
            continue
        name = own
        if name.startswith(f"up.{last}.") and isinstance(network, NCSNpp):
            # The finest level of their output pyramid is the network's last layer.
            name = name.replace(f"up.{last}.norm.", "norm_out.").replace(f"up.{last}.conv.", "conv_out.")
        match = re.fullmatch(r"(up\.(\d+))\.attention\.(.+)", name)
        if match:
            name = f"{match[1]}.attentions.{len(network.up[int(match[2])].attentions)}.{match[3]}"
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        names[own] = name
    return names


def load_diffusers(
    source: str | Path | Mapping[str, Tensor], config: Mapping[str, Any] | str | Path | None = None
) -> NCSNpp | DDPM:
    """The network of a `UNet2DModel`, in evaluation mode.

    Args:
        source: a folder with config.json and the weights (.safetensors or .bin), a weights file, or a state dict.
        config: the content of config.json or its path; for a folder it may be left out.

    Labels: an NCSN++ takes the noise level sigma and returns the score; a DDPM takes the step number 0 to 999 and
    returns the noise, with data in [-1, 1]. Raises `WrongArchitecture` if tensors are missing, left over or of another
    shape.
    """
    name = "the given state dict" if isinstance(source, Mapping) else str(source)
    if not isinstance(source, Mapping):
        path = Path(source)
        if path.is_dir():
            config = config if config is not None else path / "config.json"
            path = next((path / file for file in _WEIGHT_FILES if (path / file).is_file()), path / _WEIGHT_FILES[0])
        source = _read_weights(path)
    if config is None:
        raise OfficialCheckpointError(f"{name}: these weights need their config.json; pass config=...")
    if not isinstance(config, Mapping):
        try:
            config = json.loads(Path(config).read_text())
        except (OSError, ValueError) as error:
            raise OfficialCheckpointError(f"{config} cannot be read as a config.json: {error}.") from error
    network = build_network(diffusers_facts(config))
    state = {}
    for key, tensor in source.items():
        for old, new in _OLD_NAMES:
            key = key.replace(old, new)
        state[key] = tensor
    state.pop("time_proj.W", None)  # a second name of time_proj.weight in old files
    own, names = network.state_dict(), diffusers_names(network)
    # The oldest files store the attention's maps as 1x1 convolutions.
    for key, theirs in names.items():
        if theirs in state and own[key].ndim == 2 and state[theirs].ndim == 4:
            state[theirs] = state[theirs].flatten(1)
    lines = differences({theirs: tuple(own[key].shape) for key, theirs in names.items()}, shapes_of(state))
    if lines:
        raise WrongArchitecture(
            f"{name} does not fit its config.json ({len(lines)} tensors):\n  " + "\n  ".join(lines[:8])
        )
    network.load_state_dict({**own, **{key: state[theirs] for key, theirs in names.items()}})
    return network.eval()


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    if path.suffix != ".safetensors":
        return read_safely(path)
    if not path.is_file():
        raise FileNotFoundError(f"There are no weights at {path}.")
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ImportError(f"Reading {path} needs safetensors: pip install safetensors.") from None
    return load_file(path)


def to_diffusers(network: NCSNpp | DDPM) -> dict[str, Tensor]:
    """The network's tensors under the names of `UNet2DModel`. Exact.

    Raises `OfficialCheckpointError` for networks that `UNet2DModel` has no blocks for.
    """
    if isinstance(network, NCSNpp):
        fits = (network.progressive, network.progressive_input) == ("output_skip", "input_skip")
        fits = fits and network.embedding_type == "fourier"
        wanted = "NCSN++ with Fourier embedding, progressive='output_skip', progressive_input='input_skip'"
    else:
        fits = isinstance(network, DDPM) and network.up_attention == "each"
        wanted = "DDPM with up_attention='each'"
    if not fits or network.num_classes is not None or network.conditioning.linear1 is None:
        raise OfficialCheckpointError(
            f"UNet2DModel cannot hold this {type(network).__name__}; it can hold an unconditional {wanted}."
        )
    own = network.state_dict()
    return {theirs: own[key] for key, theirs in diffusers_names(network).items()}
