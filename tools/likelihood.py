"""`python tools/likelihood.py ...` is `sde-score likelihood ...`."""

from sde_score.cli import entry

if __name__ == "__main__":
    entry("likelihood")
