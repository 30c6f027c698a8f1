"""The defaults of every section, and what the configurations share."""

from sde_score.config import default_config, make_config

__all__ = ["default_config", "get_config", "make_config", "spec_of"]


def get_config():
    """The defaults: all keys there are."""
    return default_config()


def spec_of(sde: str, **known: str) -> str:
    """The SDE spec that belongs to a configuration's argument; one it does not know (`cosine`) stands for itself."""
    return known.get(sde, sde)
