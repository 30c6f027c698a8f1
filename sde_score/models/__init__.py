"""Networks, the score model around them, and its moving average. Importing this registers every network in `MODELS`."""

from sde_score.models.ddpm import DDPM
from sde_score.models.ema import EMA
from sde_score.models.mlp import MLP
from sde_score.models.ncsn import NCSN
from sde_score.models.ncsnpp import NCSNpp
from sde_score.models.ncsnv2 import NCSNv2_64, NCSNv2_128, NCSNv2_256
from sde_score.models.parameterization import C_NOISE, PARAMETERIZATIONS, Parameterization
from sde_score.models.registry import MODELS
from sde_score.models.score_model import ScoreModel
from sde_score.models.unet import UNet

__all__ = [
    "DDPM",
    "EMA",
    "C_NOISE",
    "MLP",
    "MODELS",
    "NCSN",
    "NCSNpp",
    "NCSNv2_128",
    "NCSNv2_256",
    "NCSNv2_64",
    "PARAMETERIZATIONS",
    "Parameterization",
    "ScoreModel",
    "UNet",
]
