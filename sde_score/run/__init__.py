"""The only room that reads a configuration: it builds the objects, and does what the commands say."""

from sde_score.run.build import build_data, build_model, build_objective, build_sampler, build_sde
from sde_score.run.evaluate import evaluate, likelihood
from sde_score.run.points import LogProb
from sde_score.run.run import Run, load
from sde_score.run.sample import Samples, sample
from sde_score.run.train import train

__all__ = [
    "LogProb",
    "Run",
    "Samples",
    "load",
    "train",
    "sample",
    "likelihood",
    "evaluate",
    "build_sde",
    "build_model",
    "build_data",
    "build_objective",
    "build_sampler",
]
