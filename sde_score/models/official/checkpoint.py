"""Read and write the checkpoint files of the original releases.

    model = load_official("checkpoint_24.pth", config="ve/cifar10_ncsnpp_continuous")
    model.network, model.ema_network, model.step

Layouts (all of them `torch.save` files):

    score_sde   {"optimizer", "model", "ema", "step"}; names in "model" start with "module."; "ema" holds decay,
                num_updates and shadow_params, a nameless list of the trainable parameters in their order
    ncsn        [model, optimizer]
    ncsnv2      [model, optimizer, epoch, step, ema], ema a dict by name
    weights     a bare state dict

Files are read with `weights_only=True`: nothing in them is executed. The originals store one numpy number (the learning
rate); only the numpy types that this needs are allowed besides tensors and plain values.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_score.files import check_archive, first_line, write_atomically
from sde_score.models.official import infer, refinenet_names
from sde_score.models.official.architecture import (
    ask_for,
    build_network,
    check_options,
    complete,
    nearest_published,
    network_facts,
)
from sde_score.models.official.names import (
    differences,
    load_original,
    shapes_of,
    to_original_state_dict,
    trainable_original_names,
)
from sde_score.published import PUBLISHED
from sde_score.registry import suggest


class OfficialCheckpointError(ValueError):
    """An original checkpoint cannot be used; the message names the file, the reason and what to do."""


class UnsafeFile(OfficialCheckpointError):
    """The file holds something other than tensors and plain values; nothing of it was executed."""


class DamagedFile(OfficialCheckpointError):
    """The file is incomplete or is no `torch.save` file."""


class WrongArchitecture(OfficialCheckpointError):
    """The tensors in the file are not those of the network; the message lists the first that differ."""


@dataclass
class OfficialFile:
    """What an original file holds, under its own names without the prefix `module.`."""

    source: str
    layout: str  # score_sde, ncsn, ncsnv2 or weights
    model: dict[str, Tensor]
    ema: list[Tensor] | dict[str, Tensor] | None = None
    ema_decay: float | None = None
    ema_updates: int | None = None
    step: int | None = None
    optimizer: dict[str, Any] | None = None
    prefix: str = ""


@dataclass
class OfficialModel:
    """An imported checkpoint: `network` with the raw weights, `ema_network` with the averaged ones (None if there are
    none).

    `config`: the published configuration that it was matched with, or None. `facts`: the architecture in the words of
    the original configuration files. `file`: step, EMA decay, optimiser state as stored.
    """

    network: nn.Module
    ema_network: nn.Module | None
    step: int | None
    config: str | None
    facts: dict[str, Any] = field(default_factory=dict)
    file: OfficialFile | None = None

    @property
    def ema(self) -> dict[str, Tensor] | None:
        """The averaged trainable parameters, under the network's own names."""
        if self.ema_network is None:
            return None
        return {name: p.detach() for name, p in self.ema_network.named_parameters() if p.requires_grad}

    @property
    def best_network(self) -> nn.Module:
        """The averaged network where there is one: what the published results were made with."""
        return self.ema_network or self.network


# --- reading ---------------------------------------------------------------------------------------------------------


def _allowed_numpy_types() -> list[Any]:
    """The types behind one pickled numpy number, under the names that numpy 1 and numpy 2 write."""
    import numpy as np

    try:
        from numpy._core.multiarray import scalar
    except ImportError:  # numpy 1
        from numpy.core.multiarray import scalar
    dtypes = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32")]
    return [(scalar, "numpy._core.multiarray.scalar"), (scalar, "numpy.core.multiarray.scalar"), np.dtype, *dtypes]


def read_safely(path: str | Path, map_location: str | torch.device = "cpu") -> Any:
    """`torch.load` without executing anything, of an archive that agrees with its own checksums (torch compares none).

    The format of torch before 1.6 has no checksums; a warning says so. Errors name the file and say what to do.

    Raises:
        FileNotFoundError, DamagedFile, UnsafeFile.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    damaged = (
        f"{path} ({path.stat().st_size} bytes) is damaged, truncated or not a PyTorch file; download or copy it again."
    )
    try:
        with open(path, "rb") as file, torch.serialization.safe_globals(_allowed_numpy_types()):
            if archive := file.peek(2)[:2] == b"PK":
                check_archive(file)
            content = torch.load(file, map_location=map_location, weights_only=True)
    except PermissionError:
        raise
    except pickle.UnpicklingError as error:
        text = str(error)
        with open(path, "rb") as file:
            start = file.read(2)
        # An unknown instruction in something that does not even start like a pickle is noise, not an attack.
        if "nsupported" in text and ("nsupported operand" not in text or start in (b"\x80\x02", b"PK")):
            offender = next((line.strip() for line in text.splitlines() if "nsupported" in line), "")
            raise UnsafeFile(
                f"{path} was refused, and nothing in it was executed: it holds more than tensors and plain values "
                f"({offender[:200]}). If you trust its origin, load it where it was made and save its state dict alone."
            ) from None
        raise DamagedFile(f"{damaged} ({text.splitlines()[0][:200]})") from error
    except Exception as error:  # whatever torch makes of arbitrary bytes
        raise DamagedFile(f"{damaged} ({first_line(error)})") from error
    if not archive:
        warnings.warn(
            f"{path} is in the format of torch before 1.6, which has no checksums: damage to it would not be seen.",
            stacklevel=3,
        )
    return content


def read_official(source: str | Path | Mapping | Sequence, map_location: str | torch.device = "cpu") -> OfficialFile:
    """Take an original file (or its content) apart. Raises `UnsafeFile`, `DamagedFile` or `OfficialCheckpointError`."""
    if isinstance(source, (str, Path)):
        name, content = str(source), read_safely(source, map_location)
    else:
        name, content = "the given state dict", source
    if isinstance(content, Mapping) and "model" in content and isinstance(content["model"], Mapping):
        ema = content.get("ema") or {}
        file = OfficialFile(
            name,
            "score_sde",
            dict(content["model"]),
            ema=None if ema.get("shadow_params") is None else list(ema["shadow_params"]),
            ema_decay=ema.get("decay"),
            ema_updates=ema.get("num_updates"),
            step=None if content.get("step") is None else int(content["step"]),
            optimizer=content.get("optimizer"),
        )
    elif isinstance(content, (list, tuple)) and content and isinstance(content[0], Mapping):
        file = OfficialFile(name, "ncsn", dict(content[0]), optimizer=content[1] if len(content) > 1 else None)
        if len(content) >= 4:
            file.layout, file.step = "ncsnv2", int(content[3])
            file.ema = dict(content[4]) if len(content) > 4 and content[4] is not None else None
    elif isinstance(content, Mapping) and content and all(isinstance(v, Tensor) for v in content.values()):
        file = OfficialFile(name, "weights", dict(content))
    else:
        raise OfficialCheckpointError(
            f"{name} is a PyTorch file, but not a checkpoint of the original releases: expected a dict with the keys "
            "model, ema, step, a list [model, optimizer, ...] or a state dict."
        )
    if file.model and all(key.startswith("module.") for key in file.model):
        file.prefix = "module."
    file.model = {key.removeprefix(file.prefix): value for key, value in file.model.items()}
    if isinstance(file.ema, dict):
        file.ema = {key.removeprefix("module."): value for key, value in file.ema.items()}
    if not file.model:
        raise OfficialCheckpointError(f"{name} holds no tensors of a model.")
    return file


def load_official(
    source: str | Path | Mapping | Sequence,
    config: str | Mapping | Any | None = None,
    *,
    network: nn.Module | None = None,
    map_location: str | torch.device = "cpu",
    **options: Any,
) -> OfficialModel:
    """Load a checkpoint of the original releases: model, EMA and step.

    Args:
        source: a file, or what `torch.load` made of it, or a state dict under the original names.
        config: name of a published configuration ("ve/cifar10_ncsnpp_continuous"), or an original configuration of
            score_sde, NCSN or NCSNv2: a mapping or namespace with the sections model and data (and training). Without
            it, and where it is silent, the architecture is read from the tensors.
        network: a module of your own whose parameter names are those of the file; `config` and options have then no
            place.
        options: what the tensors cannot tell, in the original words: nonlinearity, centered, scale_by_sigma, fir,
            skip_rescale, ... They may be left out where the tensors are those of published configurations that agree;
            else they are asked for. They win over `config`.

    Raises:
        UnsafeFile, DamagedFile: see `read_official`.
        WrongArchitecture: tensors are missing, left over or of another shape; nothing is ever skipped. (Only the table
            `sigmas` may be absent: it follows from the configuration.)
        OfficialCheckpointError: an option that the tensors do not show was not given, is unknown, or contradicts them;
            `config` is unknown or incomplete.
    """
    file = read_official(source, map_location)
    if network is not None:
        if config is not None or options:
            given = ", ".join([*(["config"] if config is not None else []), *options])
            raise OfficialCheckpointError(f"{file.source}: with network=... nothing is to be built; leave out {given}.")
        return _load_into_own_module(file, network)

    facts, name = _settle_facts(file, config, options)
    built = build_network(facts)
    load_strictly(built, file.model, file.source)
    _compare_noise_levels(file, facts, name)
    built.eval()
    ema_network = None
    if file.ema is not None:
        ema_network = copy.deepcopy(built)
        averaged = _name_ema(file, trainable_original_names(built), to_original_state_dict(built))
        load_strictly(ema_network, {**file.model, **averaged}, file.source)
    return OfficialModel(built, ema_network, file.step, name, facts, file)


def _settle_facts(file: OfficialFile, config: Any, options: dict[str, Any]) -> tuple[dict, str | None]:
    """The architecture of a file, and the published configuration it belongs to if that is known."""
    try:
        if isinstance(config, str):
            if config not in PUBLISHED:
                raise ValueError(f"Unknown published configuration {config!r}.{suggest(config, PUBLISHED)}")
            check_options(PUBLISHED[config]["model"], options)
            return {**PUBLISHED[config], **options}, config
        seen = _infer(file)
        told = {} if config is None else network_facts(config)
        check_options(seen["model"], options)
        facts, known, open_options = complete(seen, told | options)
    except WrongArchitecture:
        raise
    except ValueError as error:
        raise OfficialCheckpointError(f"{file.source}: {error}") from None
    if open_options:
        named = f"\nOr write config= one of {', '.join(known)}." if known else ""
        raise OfficialCheckpointError(
            f"{file.source}: the tensors do not show {', '.join(open_options)}, on which the outputs depend. Write, as "
            f"arguments of load_official:{ask_for(facts['model'], open_options)}{named}"
        )
    return facts, known[0] if len(known) == 1 and config is None else None


def _compare_noise_levels(file: OfficialFile, facts: Mapping[str, Any], name: str | None) -> None:
    """Several VE configurations differ in their noise levels only, which the table shows: warn where it disagrees."""
    if facts.get("sde") != "ve" or "sigmas" not in file.model:
        return
    ends = float(file.model["sigmas"][0]), float(file.model["sigmas"][-1])
    expected = facts["sigma_max"], facts["sigma_min"]
    if any(abs(a - b) > 1e-4 * b for a, b in zip(ends, expected)):
        warnings.warn(
            f"{file.source}: its noise levels run from {ends[0]:.6g} to {ends[1]:.6g}, those of {name} from "
            f"{expected[0]:.6g} to {expected[1]:.6g}. Is it another configuration's file?",
            stacklevel=3,
        )


def _infer(file: OfficialFile) -> dict[str, Any]:
    """What the tensors show. Raises `WrongArchitecture` where they are those of no original network."""
    try:
        if refinenet_names.is_refinenet(file.model):
            model, arguments = refinenet_names.refinenet_arguments(file.model)
            return {"model": model, **arguments}
        return infer.infer_unet(file.model)
    except infer.NotReadable as error:
        raise WrongArchitecture(
            f"{file.source}: the tensors are not those of a known original network ({error}). First tensors: "
            f"{', '.join(list(file.model)[:5])}. Nearest published configuration: "
            f"{nearest_published(shapes_of(file.model))}. For a network of your own pass network=...; for other "
            "formats see load_diffusers and load_edm."
        ) from None


def load_strictly(network: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Copy a state dict under the original names into the network; only the table `sigmas` may be absent.

    Raises `WrongArchitecture` that lists the tensors which are missing, left over or of another shape.
    """
    own = to_original_state_dict(network)
    expected, found = shapes_of(own), shapes_of(state_dict)
    if "sigmas" not in found:
        expected.pop("sigmas", None)  # released files may lack the table
    lines = differences(expected, found)
    if lines:
        shown = "\n  ".join(lines[:8])
        more = f"\n  ... and {len(lines) - 8} more" if len(lines) > 8 else ""
        raise WrongArchitecture(
            f"{source} does not fit the network ({len(lines)} differences in {len(expected)} tensors):\n"
            f"  {shown}{more}\n"
            f"Nearest published configuration: {nearest_published(found)}."
        )
    load_original(network, {**own, **state_dict})


def _name_ema(file: OfficialFile, names: Sequence[str], layout: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of the nameless EMA list their names, after checking number and shapes."""
    if isinstance(file.ema, dict):
        lines = differences({name: tuple(layout[name].shape) for name in names}, shapes_of(file.ema))
        averaged = file.ema
    else:
        if len(file.ema) != len(names):
            raise WrongArchitecture(
                f"{file.source}: the EMA list has {len(file.ema)} tensors, the network {len(names)} trainable "
                "parameters."
            )
        averaged = dict(zip(names, file.ema))
        lines = differences({name: tuple(layout[name].shape) for name in names}, shapes_of(averaged))
    if lines:
        raise WrongArchitecture(f"{file.source}: the EMA weights do not fit the network:\n  " + "\n  ".join(lines[:8]))
    return averaged


def _load_into_own_module(file: OfficialFile, network: nn.Module) -> OfficialModel:
    own = network.state_dict()
    lines = differences(shapes_of(own), shapes_of(file.model))
    if lines:
        raise WrongArchitecture(f"{file.source} does not fit {type(network).__name__}:\n  " + "\n  ".join(lines[:8]))
    network.load_state_dict(file.model)
    ema_network = None
    if file.ema is not None:
        ema_network = copy.deepcopy(network)
        names = [name for name, p in network.named_parameters() if p.requires_grad]
        ema_network.load_state_dict({**file.model, **_name_ema(file, names, own)})
    return OfficialModel(network, ema_network, file.step, None, {}, file)


# --- writing ---------------------------------------------------------------------------------------------------------


def save_official(
    path: str | Path,
    network: nn.Module,
    *,
    ema_network: nn.Module | None = None,
    step: int = 0,
    ema_decay: float = 0.9999,
    ema_updates: int | None = None,
    optimizer: Mapping[str, Any] | None = None,
    layout: str = "score_sde",
) -> None:
    """Write a file that the original code (and `load_official`) reads.

    Args:
        ema_network: the network with averaged weights; `network` itself when not given.
        optimizer: an Adam state dict in the original parameter order; a fresh one is written when not given.
        layout: "score_sde", "ncsn" or "ncsnv2", see the head of this file.
    """
    model = to_original_state_dict(network)
    names = trainable_original_names(network)
    averaged = to_original_state_dict(ema_network if ema_network is not None else network)
    if optimizer is None:
        parameters = [nn.Parameter(tensor.detach()) for name, tensor in model.items() if name != "sigmas"]
        optimizer = torch.optim.Adam(parameters, lr=2e-4).state_dict()
    prefixed = {f"module.{name}": tensor.detach() for name, tensor in model.items()}
    if layout == "score_sde":
        ema = {
            "decay": ema_decay,
            "num_updates": step if ema_updates is None else ema_updates,
            "shadow_params": [averaged[name].detach() for name in names],
        }
        content: Any = {"optimizer": dict(optimizer), "model": prefixed, "ema": ema, "step": step}
    elif layout == "ncsn":
        content = [prefixed, dict(optimizer)]
    elif layout == "ncsnv2":
        content = [prefixed, dict(optimizer), 0, step, {name: averaged[name].detach() for name in names}]
    else:
        raise ValueError(f"Unknown layout {layout!r}.{suggest(layout, ('score_sde', 'ncsn', 'ncsnv2'))}")
    write_atomically(path, lambda file: torch.save(content, file))
