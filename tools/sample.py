"""`python tools/sample.py ...` is `sde-score sample ...`."""

from sde_score.cli import entry

if __name__ == "__main__":
    entry("sample")
