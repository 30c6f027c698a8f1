"""Training objectives."""

from sde_score.objectives.base import OBJECTIVES, Objective
from sde_score.objectives.denoising import DenoisingScoreMatching, DiscreteDenoisingScoreMatching
from sde_score.objectives.times import TIME_SAMPLERS

__all__ = ["OBJECTIVES", "Objective", "TIME_SAMPLERS", "DenoisingScoreMatching", "DiscreteDenoisingScoreMatching"]
