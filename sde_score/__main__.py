"""`python -m sde_score`: the same tool as `sde-score`, so that torchrun can start it."""

from sde_score.cli import entry

entry()
