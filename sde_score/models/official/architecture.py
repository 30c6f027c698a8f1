"""From the facts of an original network to one of ours, and from its tensors to the published configurations they fit.

`facts` are flat dicts in the words of the original configuration files, as in `sde_score.published`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from sde_score.models.official import infer
from sde_score.models.registry import MODELS
from sde_score.published import PUBLISHED, network_arguments

# Options that change no tensor. Those of the first line differ between published configurations of the same tensors and
# are never guessed; the others have one published value per family, which is assumed.
_NEVER_GUESSED = ("centered", "scale_by_sigma", "fir")
_ASSUMED = ("skip_rescale", "nonlinearity", "fir_kernel", "init_scale", "fourier_scale", "dropout", "resamp_with_conv")
_TYPICAL = {"ncsnpp": "ve/cifar10_ncsnpp_continuous", "ddpm": "vp/ddpm/cifar10", "ncsn": "ve/ncsn/cifar10"}


def build_network(facts: Mapping[str, Any]) -> nn.Module:
    """The network that the facts describe, without weights of its own worth keeping."""
    name, arguments = network_arguments(facts)
    importlib.import_module(f"sde_score.models.{name.partition('_')[0]}")  # it registers itself
    return MODELS.get(name)(**arguments)


def network_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten an original configuration (sections model, data, training) into facts about its network."""
    try:
        model, data = dict(config["model"]), dict(config["data"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"an original configuration has the sections model and data; got {sorted(config)}.") from error
    facts = {key: tuple(value) if isinstance(value, list) else value for key, value in model.items()}
    facts["model"] = facts.pop("name")
    facts["channels"] = data.get("num_channels", data.get("channels", 3))
    facts["centered"] = data.get("centered", False)
    facts["image_size"] = data["image_size"]
    if facts["model"] == "ddpm":
        facts["embedding_type"] = "positional"  # the files say fourier, which this network never reads
    return facts


def _attention_levels(facts: Mapping[str, Any]) -> tuple[int, ...] | None:
    if "attn_resolutions" not in facts or "ch_mult" not in facts:
        return None
    return tuple(l for l in range(len(facts["ch_mult"])) if facts["image_size"] >> l in facts["attn_resolutions"])


def _agrees(name: str, seen: Mapping[str, Any]) -> bool:
    published = PUBLISHED[name]
    for key, value in seen.items():
        if key == "attention_levels":
            expected: Any = _attention_levels(published)
        elif key in ("sigma_min", "sigma_max"):
            if published["sde"] == "ve" and abs(published[key] - value) > 1e-4 * published[key]:
                return False
            continue
        else:
            expected = published.get(key, value)
        if expected != value:
            return False
    return True


def candidates(seen: Mapping[str, Any]) -> list[str]:
    """The published configurations whose values agree with everything seen."""
    return [name for name in PUBLISHED if _agrees(name, seen)]


def complete(seen: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Fill in what the tensors do not show.

    Returns the facts, the published configurations that fit, and the names of the options that remain open: neither
    given nor the same in all fitting configurations.
    """
    known = candidates({**seen, **options})
    facts = dict(PUBLISHED[known[0]]) if known else {}
    if not known and seen["model"] in _TYPICAL:
        typical = PUBLISHED[_TYPICAL[seen["model"]]]
        facts = {key: typical[key] for key in _ASSUMED if key in typical}
    elif not known:
        facts = {"nonlinearity": "elu", "centered": False, "scale_by_sigma": True}
    if seen["model"] == "ncsn":
        facts.setdefault("centered", False)  # the only published value
    facts.update(seen)
    facts.update(options)
    if seen["model"].startswith("ncsn") and seen["model"] != "ncsnpp":
        return facts, known, []
    open_options = []
    for key in _NEVER_GUESSED:
        if key in seen or key in options or (key == "fir" and seen["model"] == "ddpm"):
            continue
        if len({PUBLISHED[name].get(key) for name in known}) != 1:
            open_options.append(key)
    if "attn_resolutions" not in options and "attention_levels" in seen:
        levels = seen["attention_levels"]
        # The network runs at any size: with the size unknown, the level counts.
        facts["image_size"] = options.get("image_size") or facts.get("image_size") or 16 << max(levels, default=4)
        facts["attn_resolutions"] = tuple(facts["image_size"] >> level for level in levels)
    return facts, known, open_options


@cache
def published_layouts() -> dict[str, dict[str, tuple[int, ...]]]:
    """Original tensor names and shapes of every published configuration."""
    from sde_score.models.official.checkpoint import to_original_state_dict

    layouts: dict[str, dict[str, tuple[int, ...]]] = {}
    by_network: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, facts in PUBLISHED.items():
        key = repr(network_arguments(facts))
        if key not in by_network:
            with torch.device("meta"):
                network = build_network(facts)
            by_network[key] = {n: tuple(t.shape) for n, t in to_original_state_dict(network).items()}
        layouts[name] = by_network[key]
    return layouts


def nearest_published(shapes: Mapping[str, Sequence[int]]) -> str:
    """The published configuration most like the given tensors, and in what: a phrase for messages.

    Most tensors of the same name and shape; where the widths are so different that few agree, most options in common.
    """
    found = {(name, tuple(shape)) for name, shape in shapes.items()}
    layouts = {name: set(layout.items()) for name, layout in published_layouts().items()}
    best = max(layouts, key=lambda name: len(layouts[name] & found) / len(layouts[name] | found))
    common = len(layouts[best] & found)
    if common >= 0.1 * len(layouts[best]):
        return f"{best} ({common} of its {len(layouts[best])} tensors agree in name and shape)"
    try:
        seen = infer.infer_unet({name: torch.empty(shape, device="meta") for name, shape in found})
    except infer.NotReadable:
        return f"{best} ({common} of its {len(layouts[best])} tensors agree in name and shape)"
    agreeing = {name: [key for key in seen if _agrees(name, {key: seen[key]})] for name in PUBLISHED}
    best = max(agreeing, key=lambda name: len(agreeing[name]))
    other = [key for key in seen if key not in agreeing[best]]
    return f"{best} (the same kind of network, but for {', '.join(other)})"
