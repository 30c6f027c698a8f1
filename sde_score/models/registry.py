"""The registry of score networks, e.g. `MODELS.build("ncsnpp(nf=64)", channels=3)`."""

from torch import nn

from sde_score.registry import Registry

MODELS: Registry[nn.Module] = Registry("model", group="sde_score.models")
