"""What the state of a training run is: everything that the next step depends on, and nothing else.

Noise, times and batches are functions of (seed, step, position in the batch), so no generator and no loader has to be
remembered: the step number is the position in the data. The state of torch's generator is stored all the same, for
the record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sde_score.models.ema import EMA
from sde_score.training.checkpoint import Checkpoint, CheckpointError


@dataclass
class Window:
    """Sums since the last line of the metrics; part of the state, so that a resumed run writes the same lines."""

    loss: float = 0.0
    grad_norm: float = 0.0
    steps: int = 0

    def add(self, loss: float, grad_norm: float) -> None:
        self.loss += loss
        self.grad_norm += grad_norm
        self.steps += 1

    def means(self) -> dict[str, float | None]:
        """Mean loss and gradient norm, None if every step was skipped; empties the window."""
        n = self.steps
        means = {"loss": self.loss / n if n else None, "grad_norm": self.grad_norm / n if n else None}
        self.loss, self.grad_norm, self.steps = 0.0, 0.0, 0
        return means


@dataclass
class TrainState:
    """Model, EMA, optimiser and counters. `step` counts finished steps, skipped ones included; `samples` those of all
    processes. `closed`: what is due after the step, its line of the metrics and its actions, has been done.
    """

    model: nn.Module
    ema: EMA | None
    optimizer: torch.optim.Optimizer
    step: int = 0
    samples: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    window: Window = field(default_factory=Window)
    closed: bool = True
    codec: dict[str, Any] | None = None  # tensors and plain values, saved along

    _COUNTERS = ("samples", "skipped", "skipped_in_a_row", "seconds")

    def state_dict(self, *, config: Mapping[str, Any] | str | None = None) -> dict[str, Any]:
        """Tensors, plain values and JSON strings."""
        progress: dict[str, Any] = {name: getattr(self, name) for name in self._COUNTERS}
        progress["window"] = dict(vars(self.window))
        progress["closed"] = self.closed
        rng: dict[str, Any] = {"torch": torch.get_rng_state()}
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            rng["cuda"] = list(torch.cuda.get_rng_state_all())
        return {
            "step": self.step,
            "model": dict(self.model.state_dict()),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": progress,
            "rng": rng,
            "codec": self.codec,
            "config": config if config is None or isinstance(config, str) else json.dumps(config),
        }

    def load(self, checkpoint: Checkpoint) -> None:
        """Take up the state of `checkpoint`. Settings of the optimiser (learning rate, betas ...) stay as constructed.

        Raises:
            CheckpointError: when the model or the optimiser differs from the saved one; the message lists the
                differing keys.
        """
        check_same_keys(self.model, checkpoint.model, f"checkpoint {checkpoint.path}")
        self.model.load_state_dict(checkpoint.model)
        if self.ema is not None:
            if checkpoint.ema is None:
                raise CheckpointError(
                    f"Checkpoint {checkpoint.path} has no EMA, and this run keeps one. Start anew, or train without "
                    "EMA."
                )
            self.ema.load_state_dict(checkpoint.ema)
        self._load_optimizer(checkpoint)
        self.step = checkpoint.step
        try:
            for name in self._COUNTERS:
                setattr(self, name, checkpoint.progress[name])
            self.window = Window(**checkpoint.progress["window"])
            self.closed = checkpoint.progress.get("closed", True)  # format 1: the checkpoint was written last
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{checkpoint.path} cannot be used: its entry 'progress' lacks {error}.") from error
        if "torch" in checkpoint.rng:
            torch.set_rng_state(checkpoint.rng["torch"])

    def _load_optimizer(self, checkpoint: Checkpoint) -> None:
        saved, present = checkpoint.optimizer, self.optimizer.state_dict()
        sizes = [len(group["params"]) for group in present["param_groups"]]
        saved_sizes = [len(group["params"]) for group in saved["param_groups"]] if saved else None
        if saved is None or sizes != saved_sizes:
            raise CheckpointError(
                f"The optimiser of checkpoint {checkpoint.path} has groups of {saved_sizes} parameters, that of this "
                f"run of {sizes}."
            )
        self.optimizer.load_state_dict({"state": saved["state"], "param_groups": present["param_groups"]})


def check_same_keys(model: nn.Module, saved: Mapping[str, torch.Tensor], origin: str) -> None:
    """Raise `CheckpointError` naming what differs between a model and a saved state dict: missing, unknown and
    misshapen entries.
    """
    own = model.state_dict()
    problems = {
        "only in the model": [key for key in own if key not in saved],
        "only in the checkpoint": [key for key in saved if key not in own],
        "of another shape": [
            f"{key} (model {tuple(own[key].shape)}, checkpoint {tuple(saved[key].shape)})"
            for key in own
            if key in saved and own[key].shape != saved[key].shape
        ],
    }
    told = [f"{what}: {_shortened(keys)}" for what, keys in problems.items() if keys]
    if told:
        raise CheckpointError(
            f"The model differs from the one in {origin}. "
            + "; ".join(told)
            + ". Use the model settings the run was started with (they are in its config), or start a new run in "
            "another directory."
        )


def _shortened(keys: list[str], most: int = 8) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
