"""Small configurations, runs trained once, and the command line called in this process."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

DIGITS = """
from sde_score.config import make_config


def get_config(sde="vp"):
    return make_config(
        sde=sde,
        data={"name": "digits"},
        model={
            "name": "unet(width=16, mult=(1,), attention=(), dropout=0.1)",
            "parameterization": "edm(sigma_data=0.7)",
            "ema_rate": 0.9,
        },
        training={
            "batch_size": 8, "n_iters": 20, "log_freq": 5, "eval_freq": 10, "eval_samples": 16, "snapshot_freq": 10,
            "snapshot_samples": 4, "checkpoint_freq": 5, "tensorboard": False,
        },
        optim={"lr": 1e-3, "warmup": 5},
        sampling={"steps": 4, "batch_size": 8},
        likelihood={"batch_size": 8, "solver": "rk4(steps=4)"},
        evaluation={"num_samples": 16, "features": "pixels", "metrics": ("fd",)},
    )
"""
TOY = """
from sde_score.config import make_config


def get_config(sde="vp"):
    return make_config(
        sde=sde,
        data={"name": "two_moons(n_train=500, n_test=100)"},
        model={"name": "mlp(width=16, blocks=1)", "parameterization": "edm(sigma_data=1.)", "ema_rate": 0.9},
        training={
            "batch_size": 32, "n_iters": 20, "log_freq": 5, "eval_freq": 0, "eval_samples": 32, "snapshot_freq": 0,
            "snapshot_samples": 8, "checkpoint_freq": 10, "tensorboard": False,
        },
        optim={"lr": 1e-3, "warmup": 5},
        sampling={"steps": 4, "batch_size": 8},
        likelihood={"batch_size": 16, "trace": "exact", "solver": "rk4(steps=4)"},
        evaluation={"num_samples": 16, "metrics": ("fd",)},
    )
"""


@pytest.fixture(scope="session")
def digits_config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "tiny_digits.py"
    path.write_text(DIGITS)
    return path


@pytest.fixture(scope="session")
def toy_config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "tiny_toy.py"
    path.write_text(TOY)
    return path


@dataclass
class Answer:
    """What a command did: exit status, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        """The one object on stdout; anything else there is an error."""
        assert self.code == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def cli(capsys):
    """`cli("sample", "--workdir=...")` -> Answer."""
    from sde_score.cli import main

    def call(*argv) -> Answer:
        capsys.readouterr()
        code = main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    return call


@pytest.fixture
def refused(cli):
    """The command must fail with `code` and a message on stderr, one line or a table, that holds all of `words`."""

    def call(*argv, code=1, words=(), lines=1) -> str:
        answer = cli(*argv)
        assert answer.code == code, (answer.out, answer.err)
        told = answer.err.strip().splitlines()
        begins = [number for number, line in enumerate(told) if line.startswith("sde-score")]
        assert begins and (begins[-1] < lines or lines < 0), answer.err
        assert all(line.startswith("  ") for line in told[begins[-1] + 1 :]), answer.err
        assert "Traceback" not in answer.err
        message = "\n".join(told[begins[-1] :])
        for word in words:
            assert str(word) in message, (word, message)
        return message

    return call


def _trained(config: Path, workdir: Path) -> Path:
    from sde_score.cli import main

    assert main(["train", f"--config={config}", f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture(scope="session")
def digits_run(digits_config, tmp_path_factory) -> Path:
    """A trained run, only to be read; copy it to change it."""
    return _trained(digits_config, tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="session")
def toy_run(toy_config, tmp_path_factory) -> Path:
    """A trained run, only to be read; copy it to change it."""
    return _trained(toy_config, tmp_path_factory.mktemp("runs") / "toy")


@pytest.fixture
def fresh_registries(monkeypatch):
    """What plug-ins of a test register, is forgotten afterwards, and at once with the returned function."""
    from sde_score.run.components import REGISTRIES

    before = {kind: dict(registry._components) for kind, registry in REGISTRIES.items()}

    def forget():
        for kind, registry in REGISTRIES.items():
            registry._components = dict(before[kind])
        for name in [n for n in sys.modules if n.startswith("sde_score_plugin_")]:
            del sys.modules[name]

    yield forget
    forget()
