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
from sde_score.models.official.names import to_original_state_dict
from sde_score.models.registry import MODELS
from sde_score.published import DDPM_KEYS, NCSNPP_KEYS, PUBLISHED, UNET_KEYS, network_arguments
from sde_score.registry import suggest

# What may change the outputs of a network without changing a tensor, and all that one may say of it.
_UNSEEN = {
    "ncsnpp": ("nonlinearity", "centered", "scale_by_sigma", "skip_rescale", "fir"),
    "ddpm": ("nonlinearity", "centered", "scale_by_sigma"),
    "refinenet": ("nonlinearity", "centered"),
}
_TABLE = ("num_scales", "sigma_max", "sigma_min", "spacing")  # seen where the file holds the table of noise levels
_OPTIONS = {
    "ncsnpp": ("model", *UNET_KEYS, *NCSNPP_KEYS),
    "ddpm": ("model", *UNET_KEYS, *DDPM_KEYS, "embedding_type"),
    "refinenet": ("model", "channels", "image_size", "nf", "nonlinearity", "centered", "scale_by_sigma", *_TABLE),
}
_NETWORKS = ("ncsnpp", "ddpm", "ncsn", "ncsnv2_64", "ncsnv2_128", "ncsnv2_256")
# The likely answers where an option is asked for, the published ones first.
_LIKELY = {
    "model": "'ddpm' or 'ncsnpp' (both may have these tensors)",
    "nonlinearity": "{activation!r} (all published networks of this kind) or {other!r}",
    "centered": "False (the network maps images in [0, 1] to [-1, 1] itself) or True (the data are in [-1, 1])",
    "scale_by_sigma": "True (usual for VE) or False (usual for VP)",
    "skip_rescale": "True (all published NCSN++ and DDPM++) or False",
    "fir": "True or False",
    "fir_kernel": "(1, 3, 3, 1) (all published) or other taps",
    "num_scales": "the number of noise levels",
    "sigma_max": "the largest noise level",
    "sigma_min": "the smallest noise level",
    "spacing": "'geometric' (all published) or 'uniform'",
}


def _family(model: str) -> str:
    return model if model in ("ncsnpp", "ddpm") else "refinenet"


def build_network(facts: Mapping[str, Any]) -> nn.Module:
    """The network that the facts describe, without weights of its own worth keeping."""
    name, arguments = network_arguments(facts)
    importlib.import_module(f"sde_score.models.{name.partition('_')[0]}")  # it registers itself
    return MODELS.get(name)(**arguments)


def _plain(config: Any) -> Any:
    """A configuration as dicts and tuples: mappings, and namespaces as made from YAML, all the way down."""
    if hasattr(config, "items"):
        return {key: _plain(value) for key, value in config.items()}
    if hasattr(config, "__dict__"):
        return {key: _plain(value) for key, value in vars(config).items()}
    return tuple(config) if hasattr(config, "append") else config


def network_facts(config: Any) -> dict[str, Any]:
    """What an original configuration says of its network, in one vocabulary.

    Args:
        config: mapping or namespace with the sections model and data, of score_sde or of NCSN and NCSNv2. The latter
            name no network (their code chooses it by the data set), so that `model` is then absent.

    Raises `ValueError` for a section or name that is missing, and for settings that none of our networks has.
    """
    config = _plain(config)
    sections = config if hasattr(config, "items") else {}
    for section in ("model", "data"):
        if not hasattr(sections.get(section), "items"):
            given = ", ".join(sections) or repr(config)
            raise ValueError(f"An original configuration has the sections model and data; this one: {given}.")
    model, data = config["model"], config["data"]
    if model.get("normalization", "InstanceNorm++") not in ("InstanceNorm++", "GroupNorm"):
        raise ValueError(f"model.normalization is {model['normalization']!r}; our RefineNets have 'InstanceNorm++'.")
    if "ngf" in model:
        return _refinenet_facts(model, data)
    name = model.get("name")
    if name not in _NETWORKS:
        if name is not None:
            raise ValueError(f"model.name is {name!r}, no original network.{suggest(str(name), _NETWORKS)}")
        raise ValueError(f"model.name is missing ({', '.join(_NETWORKS)}), and so is model.ngf of NCSNv2's files.")
    facts = {key: model[key] for key in _OPTIONS[_family(name)] if key in model} | {"model": name}
    facts |= _data_facts(data)
    if name == "ddpm":
        facts["embedding_type"] = "positional"  # the files say fourier, which this network never reads
    for key in ("embedding_type", "resblock_type", "progressive", "progressive_input", "progressive_combine"):
        if key in facts:
            facts[key] = facts[key].lower()
    continuous = (config.get("training") or {}).get("continuous", True)
    if facts.get("embedding_type") == "fourier" and not continuous:
        raise ValueError("`embedding_type='fourier'` needs `training.continuous`; discrete training: 'positional'.")
    return facts


def _data_facts(data: Mapping[str, Any]) -> dict[str, Any]:
    facts = {key: data[key] for key in ("image_size", "centered") if key in data}
    channels = data.get("num_channels", data.get("channels"))
    return facts if channels is None else facts | {"channels": channels}


def _refinenet_facts(model: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The words of NCSN's and NCSNv2's own configurations."""
    if model.get("spec_norm"):
        raise ValueError("model.spec_norm is True; our RefineNets have no spectral normalisation.")
    words = dict(nf="ngf", num_scales="num_classes", sigma_max="sigma_begin", sigma_min="sigma_end",
                 spacing="sigma_dist", nonlinearity="nonlinearity")  # fmt: skip
    facts = {ours: model[theirs] for ours, theirs in words.items() if theirs in model} | _data_facts(data)
    scalings = [data[key] for key in ("logit_transform", "rescaled") if key in data]
    if scalings:  # else the network itself maps [0, 1] to [-1, 1]
        facts["centered"] = any(scalings)
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
        elif key == "spacing":
            expected = "geometric"
        else:
            expected = published.get(key, value)
        if expected != value:
            return False
    return True


def candidates(seen: Mapping[str, Any]) -> list[str]:
    """The published configurations whose values agree with everything seen."""
    return [name for name in PUBLISHED if _agrees(name, seen)]


def check_options(model: str, options: Mapping[str, Any]) -> None:
    """Raise `ValueError` for an option that the network `model` does not have, with the nearest that it has."""
    told = options.get("model", model)
    if told not in _NETWORKS:
        raise ValueError(f"{told!r} is no original network.{suggest(str(told), _NETWORKS)}")
    if told != model and (model, told) != ("ddpm", "ncsnpp"):
        raise ValueError(f"model={told!r} was given, but the tensors are those of a network with {model!r}.")
    known = _OPTIONS[_family(told)]
    for key in options:
        if key not in known:
            raise ValueError(f"An original {told} has no option {key!r}.{suggest(key, known)}")


def complete(seen: Mapping[str, Any], told: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Put together what the tensors show and what was told of them; `told` may hold more than the network needs.

    Returns the facts, the published configurations that fit, and the names of the options that remain open: they change
    the outputs, and are neither seen, nor told, nor the same in all published configurations that fit (of which there
    must be one). Options that only training sees (dropout, initial scales) are the constructor's where not told.

    Raises `ValueError` where the two contradict each other.
    """
    seen = _as_family(seen, told.get("model", seen["model"]))
    family = _family(seen["model"])
    told = {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}
    for key, value in told.items():
        if key in seen and not _same(seen[key], value):
            raise ValueError(f"{key}={value!r} was given, but the tensors are those of a network with {seen[key]!r}.")
    known = candidates({**seen, **told})
    facts = {**(PUBLISHED[known[0]] if known else {}), **told, **seen}

    unseen = list(_UNSEEN[family])
    if family == "ddpm" and "model" not in told and not known:
        unseen.insert(0, "model")
    if family == "ncsnpp" and facts.get("fir"):
        unseen.append("fir_kernel")
    if facts.get("scale_by_sigma") and facts.get("embedding_type") != "fourier":
        unseen += _TABLE if family == "refinenet" else _TABLE[:3]
    said = {**seen, **told}
    if "model" in unseen:
        said.pop("model")
    open_options = [key for key in unseen if key not in said and len({repr(PUBLISHED[n].get(key)) for n in known}) != 1]

    if "attention_levels" in seen and not ("attn_resolutions" in told and "image_size" in told):
        levels = seen["attention_levels"]
        # The network runs at any size: with the size unknown, the level counts.
        facts["image_size"] = told.get("image_size") or facts.get("image_size") or 16 << max(levels, default=4)
        facts["attn_resolutions"] = tuple(facts["image_size"] >> level for level in levels)
    return facts, known, open_options


def ask_for(model: str, open_options: Sequence[str]) -> str:
    """What to write for options that remain open: a line for each, with the likely answers."""
    activation, other = ("elu", "relu") if _family(model) == "refinenet" else ("swish", "elu")
    answers = [f"{key}={_LIKELY[key].format(activation=activation, other=other)}" for key in open_options]
    return "".join(f"\n  {answer}" for answer in answers)


def _same(seen: Any, told: Any) -> bool:
    """Tables of noise levels are stored in float32."""
    return abs(seen - told) <= 1e-4 * abs(seen) if isinstance(seen, float) else seen == told


def _as_family(seen: Mapping[str, Any], model: str) -> dict[str, Any]:
    """What is seen, for one of the two networks that the same tensors may belong to; and what a family fixes."""
    seen = dict(seen)
    if (seen["model"], model) == ("ddpm", "ncsnpp"):
        seen |= dict(model="ncsnpp", resblock_type="ddpm", progressive="none", progressive_input="none")
        if seen.get("resamp_with_conv"):
            seen["fir"] = False
    if _family(seen["model"]) == "refinenet":
        seen["scale_by_sigma"] = seen["model"] != "ncsn"
    return seen


@cache
def published_layouts() -> dict[str, dict[str, tuple[int, ...]]]:
    """Original tensor names and shapes of every published configuration."""
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
