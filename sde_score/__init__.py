"""Score-based generative modelling through stochastic differential equations, with pluggable components.

    run = sde_score.train("digits", workdir="runs/digits", minutes=2)      # or sde_score.load("runs/digits")
    run.sample(64, method="ode").save("grid.png")
    run.bits_per_dim("test")
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sde_score.run.api import load, train

# libgomp reads it when torch is loaded: waiting threads then sleep instead of spinning, which on a crowded machine is
# ten times faster
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__all__ = ["load", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # only now: the command line shows its help without torch
        from sde_score.run import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
