"""The one door to torchvision: opened only when needed, with one readable error when it does not open.

Importing torchvision takes seconds, and a build that does not match torch fails in the middle of its own import.
Nothing between tensor data and a sample needs it.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from types import ModuleType


def load(submodule: str = "") -> ModuleType:
    """`torchvision`, or one of its modules: `load("datasets")`, `load("models")`.

    Raises `ImportError` that says what to install.
    """
    name = f"torchvision.{submodule}" if submodule else "torchvision"
    try:
        return importlib.import_module(name)
    except Exception as error:  # a mismatched build raises RuntimeError or AttributeError from inside
        raise ImportError(_explain(error)) from error


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _explain(error: Exception) -> str:
    torchvision, torch = _version("torchvision"), _version("torch")
    if torchvision is None:
        return (
            f"torchvision is not installed; it must match torch {torch}: `pip install torchvision`, from the same "
            "index as torch."
        )
    return (
        f"torchvision {torchvision} does not match torch {torch} ({type(error).__name__}: {error}). Install both from "
        "the same index: see pytorch.org/get-started."
    )
