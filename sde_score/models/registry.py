"""The registry of score networks, e.g. `MODELS.build("ncsnpp(nf=64)", channels=3)`."""

from sde_score.registry import Registry

MODELS = Registry("model", group="sde_score.models")
