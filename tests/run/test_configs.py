"""Every configuration builds with each SDE; every key can be overridden by a flag; none needs torch to be read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict, FieldReference

from sde_score.config import default_config, differences, from_json, load_config, to_json
from sde_score.data import Condition, DataInfo
from sde_score.keys import KEYS
from sde_score.run import build_model, build_objective, build_sampler, build_sde
from sde_score.run.build import check_likelihood

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAMES = sorted(p.stem for p in CONFIGS.glob("[!_]*.py") if p.stem not in ("common", "published"))
TEN = {"y": Condition(num=10)}
INFO = {
    "toy2d": DataInfo("two_moons", (2,)),
    "digits": DataInfo("digits", (1, 8, 8), levels=17, conditions=TEN),
    "mnist": DataInfo("mnist", (1, 28, 28), levels=256, conditions=TEN),
    "cifar10": DataInfo("cifar10", (3, 32, 32), levels=256, conditions=TEN),
    "images": DataInfo("photos", (3, 32, 48), levels=256),
}


def leaves(config, path="config"):
    for key in config:
        reference = config.get_ref(key) if config.get_type(key) is not ConfigDict else None
        value = config[key]
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{path}.{key}")
        else:
            yield f"{path}.{key}", value, reference


def test_the_list_of_configurations():
    assert set(NAMES) == set(INFO), "a configuration without a test"


@pytest.mark.parametrize("sde", ["ve", "vp", "subvp"])
@pytest.mark.parametrize("name", NAMES)
def test_builds(name, sde):
    config = load_config(f"{name}:{sde}")
    assert config.sde.partition("(")[0] == sde
    process = build_sde(config)
    with torch.device("meta"):  # shapes only: the published networks are large
        model = build_model(config, INFO[name], process)
        assert model.network is not None and sum(p.numel() for p in model.parameters()) > 1000
    build_objective(config, process)
    for method, solver in (("pc", None), ("ode", "dopri5"), ("sde", "srk")):
        config.sampling.method = method
        if solver is not None:
            config.sampling.solver = solver
        build_sampler(config, process)
    check_likelihood(config, process)
    assert config.data.name or name == "images"  # the user's own folder has no name of ours


@pytest.mark.parametrize("name", NAMES)
def test_takes_an_sde_it_does_not_know(name):
    assert load_config(f"{name}:cosine").sde == "cosine"
    assert load_config(name).sde.startswith("vp")


@pytest.mark.parametrize("name", [*NAMES, "common", "published"])
def test_every_key_can_be_overridden(name):
    """No plain None and no list: ml_collections can set neither by a flag. No key that the defaults do not have."""
    config = load_config(name)
    for path, value, reference in leaves(config):
        if path.startswith("config.published."):
            continue  # results, not settings
        assert not isinstance(value, (list, dict)), f"{path} is a {type(value).__name__}; use a tuple or a section"
        if value is None:
            assert isinstance(reference, FieldReference) and reference.get_type() is not type(None), (
                f"{path} is a plain None; use placeholder(type)"
            )
    known = {path for path, _, _ in leaves(default_config())}
    own = {path for path, _, _ in leaves(config) if not path.startswith("config.published")}
    assert own == known


FLAGS = {str: "word", float: "0.25", int: "3", bool: "True", tuple: "('a', 'b')", object: "(20, 28)"}


def test_every_key_really_can_be_overridden(cli, refused, tmp_path, monkeypatch):
    """By flags, all at once, through the parser of the command line."""
    from sde_score.cli.arguments import parse

    seen = {}
    config = default_config()
    flags, wanted = [], {}
    for path, value, reference in leaves(config):
        kind = reference.get_type() if value is None else type(value)
        limits = KEYS[path.removeprefix("config.")].limits
        word = FLAGS[kind] if kind is not str or limits is None else limits[0].split("'")[1]
        flags.append(f"--{path}={word}")
        wanted[path] = word if kind is str else ast.literal_eval(word)
    values = parse("train", ["--config=common", *flags], lambda values: None)
    seen = {path: value for path, value, _ in leaves(values.config)}
    assert seen == wanted


@pytest.mark.parametrize("name", [*NAMES, "published"])
def test_survives_json(name):
    config = load_config(name)
    assert differences(config, from_json(to_json(config))) == {}


def test_reading_them_imports_no_torch():
    code = (
        "import sys\n"
        "from sde_score.config import load_config\n"
        f"for name in {[*NAMES, 'common', 'published']!r}: load_config(name)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=CONFIGS.parent).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_header_says_the_command(name):
    head = (CONFIGS / f"{name}.py").read_text().partition('"""')[2].partition('"""')[0]
    assert f"sde-score train --config={name}" in head and "--workdir=" in head
