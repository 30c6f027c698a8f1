"""Shared fixtures: where the recorded numbers and the real images lie, when they are there."""

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"the folder shared/{name} beside the checkout is missing")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Recorded vectors of the published systems."""
    return _folder("golden")


@pytest.fixture(scope="session")
def shared_data_dir() -> Path:
    """Real images (MNIST, a subset of CIFAR-10)."""
    return _folder("data")


@pytest.fixture(autouse=True, scope="session")
def _trusted_plugins_of_the_tests(tmp_path_factory):
    """What the tests train with is not trusted afterwards by whoever ran them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDE_SCORE_TRUSTED", str(tmp_path_factory.mktemp("trusted")))
        yield


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)
