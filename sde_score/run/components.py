"""All registries, by the word a user types."""

from __future__ import annotations

from sde_score.data import CODECS, DATASETS
from sde_score.likelihood import TRACES
from sde_score.metrics import FEATURES, METRICS
from sde_score.models import MODELS, PARAMETERIZATIONS
from sde_score.objectives import OBJECTIVES, TIME_SAMPLERS
from sde_score.registry import Registry
from sde_score.sampling import CORRECTORS, PREDICTORS, SAMPLERS, TIMES
from sde_score.sdes import SDES
from sde_score.solvers import SOLVERS

REGISTRIES: dict[str, Registry] = {
    "sdes": SDES,
    "predictors": PREDICTORS,
    "correctors": CORRECTORS,
    "samplers": SAMPLERS,
    "solvers": SOLVERS,
    "times": TIMES,
    "traces": TRACES,
    "objectives": OBJECTIVES,
    "time_samplers": TIME_SAMPLERS,
    "parameterizations": PARAMETERIZATIONS,
    "models": MODELS,
    "datasets": DATASETS,
    "codecs": CODECS,
    "features": FEATURES,
    "metrics": METRICS,
}


def components() -> dict[str, list[dict[str, str]]]:
    """One row per component of each registry; see `Registry.describe`."""
    return {kind: registry.describe() for kind, registry in REGISTRIES.items()}
