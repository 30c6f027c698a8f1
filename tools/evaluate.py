"""`python tools/evaluate.py ...` is `sde-score evaluate ...`."""

from sde_score.cli import entry

if __name__ == "__main__":
    entry("evaluate")
