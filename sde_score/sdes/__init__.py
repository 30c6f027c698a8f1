"""Stochastic differential equations: the abstract classes, the derived linear ones, and the library."""

from sde_score.sdes.base import SDE, SDES, Chain, ReverseSDE, require_sde
from sde_score.sdes.chains import DDPMChain, SMLDChain
from sde_score.sdes.library import EDMSDE, VESDE, VPSDE, CosineSDE, SubVPSDE
from sde_score.sdes.linear import GaussianPathSDE, LinearSDE, SemiLinearReverse
from sde_score.sdes.prior import PriorGap, prior_gap

__all__ = [
    "SDE",
    "SDES",
    "Chain",
    "ReverseSDE",
    "SemiLinearReverse",
    "PriorGap",
    "prior_gap",
    "require_sde",
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
