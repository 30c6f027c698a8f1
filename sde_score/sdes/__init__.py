"""Stochastic differential equations: the abstract classes, the derived linear ones, and the library."""

from sde_score.sdes.base import SDE, SDES, Chain, ReverseSDE
from sde_score.sdes.chains import DDPMChain, SMLDChain
from sde_score.sdes.library import EDMSDE, VESDE, VPSDE, CosineSDE, SubVPSDE
from sde_score.sdes.linear import GaussianPathSDE, LinearSDE

__all__ = [
    "SDE",
    "SDES",
    "Chain",
    "ReverseSDE",
    "LinearSDE",
    "GaussianPathSDE",
    "SMLDChain",
    "DDPMChain",
    "VESDE",
    "VPSDE",
    "SubVPSDE",
    "CosineSDE",
    "EDMSDE",
]
