"""The settings of a training run, in groups: what one step does, when a run ends, what happens between the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sde_score.training.checkpoint import CheckpointStore
from sde_score.training.state import TrainState
from sde_score.training.writers import MetricsWriter

Action = Callable[[TrainState], "Mapping[str, float | None] | None"]
PRECISIONS = ("float32", "bf16")


def _at_least(low: int, owner: Any, *names: str) -> None:
    for name in names:
        if not getattr(owner, name) >= low:
            raise ValueError(
                f"`{type(owner).__name__}({name}=...)` must be at least {low}, got {getattr(owner, name)}."
            )


@dataclass(frozen=True)
class StepSettings:
    """How a step of training is worked out.

    Args:
        grad_clip: largest norm of the gradient, c: it is multiplied by min(1, c / (norm + 1e-6)). 0 or
            less: no clipping.
        micro_batches: a batch is worked off in so many parts, to need less memory.
        precision: "float32", or "bf16" for the inside of the network (`model.network` where there is one) while it
            trains; loss and times stay float32, and so does every evaluation.
        compile: train through `model.compiled()`, the network under `torch.compile`.
        condition_dropout: share of the samples whose conditions are replaced by `network.no_condition(cond)`, so that
            one network learns the score with and without them (Ho and Salimans 2021, algorithm 1); 0.1 is usual.
    """

    grad_clip: float = 1.0
    micro_batches: int = 1
    precision: str = "float32"
    compile: bool = False
    condition_dropout: float = 0.0

    def __post_init__(self) -> None:
        _at_least(1, self, "micro_batches")
        if math.isnan(self.grad_clip):
            raise ValueError("`StepSettings(grad_clip=...)` is a number, 0 for no clipping; got nan.")
        if self.precision not in PRECISIONS:
            raise ValueError(f"`StepSettings(precision=...)` is 'float32' or 'bf16', not {self.precision!r}.")
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(
                "`StepSettings(condition_dropout=...)` is a share of the samples, 0 <= p < 1; got "
                f"{self.condition_dropout}."
            )

    def check_model(self, model: Any) -> None:
        """Raise `ValueError` where the model lacks what these settings ask of it."""
        if self.compile and not hasattr(model, "compiled"):
            raise ValueError(f"`compile=True` needs `model.compiled()`; {type(model).__name__} has none.")
        network = getattr(model, "network", model)
        if self.condition_dropout and not hasattr(network, "no_condition"):
            raise ValueError(
                f"condition_dropout={self.condition_dropout:g} needs a network that can be told no condition: "
                f"{type(network).__name__} has no method `no_condition(cond)`, which gives the values that mean none. "
                "Leave condition_dropout at 0, or choose another network."
            )


@dataclass(frozen=True)
class Limits:
    """When a run ends before its last step.

    Args:
        max_seconds: a cap on the time the run may take, earlier parts of a resumed run included.
        max_skips: so many steps in a row whose loss or gradient is not finite stop the run.
    """

    max_seconds: float | None = None
    max_skips: int = 20

    def __post_init__(self) -> None:
        _at_least(1, self, "max_skips")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"`Limits(max_seconds=...)` must be above 0, or None for no cap; got {self.max_seconds}.")


@dataclass(frozen=True)
class Cadence:
    """What happens every so many steps.

    Args:
        log: a line of metrics.
        checkpoint: a checkpoint; 0: after the last step only.
        actions: pairs `(every, action)`. `action(state)` is called every so many steps and after the last one (every 0:
            never), on the main process, after the checkpoint of the step; the numbers it returns go to the metrics.
            Sample grids and validation come in here. It must be a function of the state: a run killed in it does it
            again.
    """

    log: int = 100
    checkpoint: int = 1000
    actions: Iterable[tuple[int, Action]] = ()

    def __post_init__(self) -> None:
        _at_least(1, self, "log")
        _at_least(0, self, "checkpoint")


@dataclass(frozen=True)
class Record:
    """Where a run leaves its traces.

    Args:
        checkpoints: where to save, and where to go on from; None: nowhere.
        writers: take the metrics. See `sde_score.training.writers`.
        say: takes messages for people; None: standard error.
        progress: a bar on a terminal, one line every 10 seconds elsewhere; False: neither.
        config: saved with each checkpoint, a mapping or its JSON.
        codec: saved with each checkpoint, tensors and plain values: what maps data to model space and back.
    """

    checkpoints: CheckpointStore | None = None
    writers: Iterable[MetricsWriter] = ()
    say: Callable[[str], None] | None = None
    progress: bool = True
    config: Mapping[str, Any] | str | None = None
    codec: dict[str, Any] | None = None
