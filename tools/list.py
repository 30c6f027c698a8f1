"""`python tools/list.py ...` is `sde-score list ...`."""

from sde_score.cli import entry

if __name__ == "__main__":
    entry("list")
