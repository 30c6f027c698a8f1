"""Plug-ins: the user's own code, which registers components when it is imported. None is run that the user has not
named.

A run's `config.json` names the plug-ins it was trained with. Somebody else's run may name anything, so a plug-in runs
only if it was named by whoever gives the command (`--plugin=FILE`, a configuration named on the command line, or
`plugins=` in Python) or is trusted: training with a plug-in that one has named stores its SHA-256 under
`trusted_folder()`. A plug-in that has changed since is not trusted any more.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from types import ModuleType

from sde_score.files import write_bytes


class UntrustedPlugin(PermissionError):
    """A configuration wants to run code that this user has neither named nor trained with."""


def import_plugins(plugins: Iterable[str], *, named: Collection[str] | None = None) -> None:
    """Import modules or `.py` files that register the user's own components.

    Args:
        plugins: paths of `.py` files, or names of installed modules.
        named: those of them that the user has named; the others must be trusted. None: all.

    Raises:
        ImportError: naming the plug-in and what to do.
        UntrustedPlugin: before the first one is run.
    """
    plugins = [plugin for plugin in plugins if _module_name(plugin) not in sys.modules]
    contents = {}
    for plugin in plugins:
        with _explained(plugin):
            contents[plugin] = _content(plugin)
        if named is not None and plugin not in named and not is_trusted(contents[plugin]):
            raise UntrustedPlugin(
                f"The configuration of this run wants to run {plugin}, which you have not named, and have not trained "
                "with as it is now. Nothing of it was run. Read it, and if you trust it, allow it with "
                f"--plugin={plugin} (in Python: plugins=[{plugin!r}])."
            )
    for plugin in plugins:
        with _explained(plugin):
            if plugin.endswith(".py"):
                _run(Path(plugin), contents[plugin])
            else:
                importlib.import_module(plugin)


def trust(plugins: Iterable[str]) -> None:
    """Remember plug-ins as they are now: configurations of runs may name them from now on.

    Raises:
        OSError: where the folder of the trusted cannot be written.
    """
    for plugin in plugins:
        path = trusted_folder() / _digest(_content(plugin))
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, f"{plugin}\n".encode())


def is_trusted(content: bytes) -> bool:
    """Has this user trained with a plug-in of this content?"""
    try:
        return bool(content) and (trusted_folder() / _digest(content)).is_file()
    except OSError:
        return False


def code_of(plugins: Iterable[str]) -> dict[str, str]:
    """What the code of plug-ins is, by their name without folder: a digest that comments and layout do not change."""
    return {Path(plugin).name: _digest(_code(_content(plugin))) for plugin in plugins}


def _code(content: bytes) -> bytes:
    try:
        return ast.dump(ast.parse(content)).encode()
    except (SyntaxError, ValueError, RecursionError):  # a package's files, which are compared as they are
        return content


def trusted_folder() -> Path:
    """Where trusted plug-ins are remembered, one file each, named by its SHA-256: `$SDE_SCORE_TRUSTED`, or
    `sde_score/trusted` in the user's configuration folder (`$XDG_CONFIG_HOME`, `~/.config`). Delete a file, and its
    plug-in is not trusted any more.
    """
    if folder := os.environ.get("SDE_SCORE_TRUSTED"):
        return Path(folder)
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path(os.path.expanduser("~")) / ".config") / "sde_score" / "trusted"


class _explained:
    """Say in an error which plug-in is to blame."""

    def __init__(self, plugin: str) -> None:
        self.plugin = plugin

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, (ImportError, FileNotFoundError)):
            raise ImportError(
                f"The plug-in {self.plugin!r} cannot be imported: {error}. Give the path of a .py file or the name of "
                "an installed module; a run made with a plug-in that has moved takes its new place with --plugin=FILE."
            ) from error
        if isinstance(error, Exception):
            raise ImportError(
                f"The plug-in {self.plugin!r} cannot be imported: {type(error).__name__}: {error}"
            ) from error


def _module_name(plugin: str) -> str:
    """Under what name a plug-in is found among the imported modules."""
    if not plugin.endswith(".py"):
        return plugin
    path = Path(plugin)
    return f"sde_score_plugin_{path.stem}_{_digest(str(path.resolve()).encode())[:8]}"


def _run(path: Path, source: bytes) -> None:
    """Run the bytes that were looked at: not the file once more, nor what a `__pycache__` beside it holds."""
    name = _module_name(str(path))
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise


def _content(plugin: str) -> bytes:
    """What decides on trust: the bytes of a file; of a module, those of all files of its package, found without
    importing it. Empty where there are none (modules built into Python).
    """
    if plugin.endswith(".py"):
        path = Path(plugin)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        return path.read_bytes()
    spec = importlib.util.find_spec(plugin.partition(".")[0])
    if spec is None:
        raise ModuleNotFoundError(f"No module named {plugin!r}")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.suffix in (".py", ".so", ".pyd")]
    if not folders and spec.has_location:
        files = [Path(spec.origin)]
    return b"".join(file.name.encode() + b"\0" + _digest(file.read_bytes()).encode() + b"\n" for file in files)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
