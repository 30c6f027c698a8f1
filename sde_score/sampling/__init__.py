"""Samplers and their parts."""

from sde_score.sampling.base import (
    CORRECTORS,
    PREDICTORS,
    SAMPLERS,
    Callback,
    Context,
    Corrector,
    End,
    Moment,
    Predictor,
    Progress,
    ProgressBar,
    Sampler,
    SampleResult,
    Trajectory,
    callbacks,
)
from sde_score.sampling.correctors import AnnealedLangevin, Langevin, NoneCorrector
from sde_score.sampling.predictors import AncestralSampling, EulerMaruyama, NonePredictor, ReverseDiffusion
from sde_score.sampling.published import PublishedODESampler, PublishedSampler
from sde_score.sampling.samplers import ODESampler, PCSampler, make_sampler
from sde_score.sampling.sde_sampler import SDESampler
from sde_score.sampling.times import TIMES, make_times

__all__ = [
    "PREDICTORS",
    "CORRECTORS",
    "SAMPLERS",
    "TIMES",
    "Callback",
    "Predictor",
    "Corrector",
    "Sampler",
    "SampleResult",
    "Moment",
    "Context",
    "End",
    "Progress",
    "ProgressBar",
    "Trajectory",
    "callbacks",
    "EulerMaruyama",
    "ReverseDiffusion",
    "AncestralSampling",
    "NonePredictor",
    "Langevin",
    "AnnealedLangevin",
    "NoneCorrector",
    "PCSampler",
    "ODESampler",
    "SDESampler",
    "PublishedSampler",
    "PublishedODESampler",
    "make_sampler",
    "make_times",
]
