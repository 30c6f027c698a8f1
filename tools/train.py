"""`python tools/train.py ...` is `sde-score train ...`."""

from sde_score.cli import entry

if __name__ == "__main__":
    entry("train")
