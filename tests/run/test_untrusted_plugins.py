"""The configuration of somebody else's run names code: none is run that the user has not named or trained with."""

import json
import py_compile
import shutil
import sys

import pytest

from sde_score import load
from sde_score.run.plugins import UntrustedPlugin

MINE = """
from pathlib import Path
Path(__file__).with_suffix(".ran").touch()
"""


@pytest.fixture(autouse=True)
def trusted(tmp_path, monkeypatch, fresh_registries):
    """Nothing is trusted at the beginning of a test."""
    monkeypatch.setenv("SDE_SCORE_TRUSTED", str(tmp_path / "user" / "trusted"))
    return tmp_path / "user" / "trusted"


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "code" / "mine.py"
    path.parent.mkdir()
    path.write_text(MINE)
    return path


@pytest.fixture
def received(toy_run, tmp_path, plugin):
    """A run from elsewhere, whose configuration names the plug-in."""
    run = shutil.copytree(toy_run, tmp_path / "received")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"plugins": [str(plugin)]}))
    return run


def ran(plugin) -> bool:
    mark = plugin.with_suffix(".ran")
    found = mark.exists()
    mark.unlink(missing_ok=True)
    return found


COMMANDS = ["train", "sample", "likelihood", "evaluate", "report", "export"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_it_and_says_how_to_allow_it(refused, received, plugin, command, tmp_path):
    more = [f"--to={tmp_path}/out.pth"] if command == "export" else []
    refused(command, f"--workdir={received}", *more, words=[f"run {plugin}", f"--plugin={plugin}"])
    assert not ran(plugin)


def test_python_refuses_it_too(received, plugin):
    with pytest.raises(UntrustedPlugin, match="plugins="):
        load(received)
    assert not ran(plugin)
    load(received, plugins=[str(plugin)])
    assert ran(plugin)


@pytest.mark.parametrize("flag", ["--plugin={}", "--config.plugins=('{}',)"])
def test_named_on_the_command_line_it_runs_this_time(cli, refused, received, plugin, flag, fresh_registries):
    assert cli("sample", f"--workdir={received}", "--num=2", flag.format(plugin)).code == 0
    assert ran(plugin)
    fresh_registries()
    refused("sample", f"--workdir={received}", words=[plugin])


def test_trained_with_it_is_trusted_until_it_changes(cli, refused, received, plugin, trusted, fresh_registries):
    flags = (f"--workdir={received}", "--config.training.n_iters=21")
    assert cli("train", *flags, f"--plugin={plugin}").code == 0
    assert ran(plugin) and [p.read_text().strip() for p in trusted.iterdir()] == [str(plugin)]
    fresh_registries()
    assert cli("sample", f"--workdir={received}", "--num=2").code == 0
    assert ran(plugin)
    fresh_registries()
    assert cli("train", *flags).code == 0 and ran(plugin)
    fresh_registries()
    plugin.write_text(MINE + "\n")
    refused("sample", f"--workdir={received}", words=[plugin])
    refused("train", *flags, words=[plugin])
    assert not ran(plugin)


def test_a_configuration_of_ones_own_names_its_plugins(cli, toy_config, plugin, tmp_path, fresh_registries):
    mine = tmp_path / "mine_too.py"
    mine.write_text(toy_config.read_text().replace("sde=sde,", f"sde=sde, plugins=({str(plugin)!r},),"))
    flags = (f"--config={mine}", f"--workdir={tmp_path}/run")
    assert cli("train", *flags).code == 0 and ran(plugin)


def test_a_trusted_file_brings_no_compiled_stranger(cli, received, plugin, trusted):
    """Python would take the `__pycache__` beside a file for the file."""
    assert cli("train", f"--workdir={received}", f"--plugin={plugin}").code == 0 and ran(plugin)
    for name in [n for n in sys.modules if n.startswith("sde_score_plugin_")]:
        del sys.modules[name]
    evil = plugin.with_name("evil.py")
    evil.write_text("raise SystemExit('a stranger ran')")
    py_compile.compile(
        str(evil), cfile=f"{plugin.parent}/__pycache__/mine.{sys.implementation.cache_tag}.pyc",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )  # fmt: skip
    assert cli("sample", f"--workdir={received}", "--num=2").code == 0 and ran(plugin)


@pytest.mark.parametrize("name", ["strange_module", "strange_package.part"])
def test_installed_modules_alike(cli, refused, received, tmp_path, monkeypatch, name):
    top, _, part = name.partition(".")
    site = tmp_path / "site"
    file = site / (f"{top}/__init__.py" if part else f"{top}.py")
    file.parent.mkdir(parents=True)
    file.write_text(MINE)
    if part:
        (site / top / f"{part}.py").write_text("")
    monkeypatch.syspath_prepend(str(site))

    def forget():
        for module in (name, top):
            sys.modules.pop(module, None)

    config = json.loads((received / "config.json").read_text())
    (received / "config.json").write_text(json.dumps(config | {"plugins": [name]}))
    refused("sample", f"--workdir={received}", words=[name, f"--plugin={name}"])
    assert not ran(file)
    assert cli("train", f"--workdir={received}", f"--plugin={name}").code == 0 and ran(file)
    forget()
    assert cli("sample", f"--workdir={received}", "--num=2").code == 0 and ran(file)
    forget()
    (site / top / f"{part}.py" if part else file).write_text(MINE + "x = 1\n")
    refused("sample", f"--workdir={received}", words=[name])
    assert not ran(file)
    forget()


def test_a_home_that_cannot_be_written(cli, received, plugin, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SDE_SCORE_TRUSTED", str(tmp_path / "file" / "trusted"))
    answer = cli("train", f"--workdir={received}", f"--plugin={plugin}")
    assert answer.code == 0 and ran(plugin) and "not remembered" in answer.err
