"""The embedded digits: equal to scikit-learn's, and loadable with torch alone."""

import subprocess
import sys

import pytest
import torch

from sde_score.data import Scaler, load_dataset


def test_digits_are_scikit_learns():
    source = pytest.importorskip("sklearn.datasets").load_digits()
    splits = load_dataset("digits")
    x = torch.cat([splits.train[:1500].x, splits.test[:297].x])
    y = torch.cat([splits.train[:1500].y, splits.test[:297].y])
    assert torch.equal(x[:, 0].double(), torch.from_numpy(source.images))
    assert torch.equal(y, torch.from_numpy(source.target).long())


def test_facts_about_the_digits():
    splits = load_dataset("digits")
    assert (len(splits.train), len(splits.test)) == (1500, 297)
    info = splits.info
    assert (info.shape, info.levels, info.num_classes, info.kind) == ((1, 8, 8), 17, 10, "image")
    x, cond, _ = splits.train[[0, 3]]
    y = cond["y"]
    assert x.dtype == torch.uint8 and y.dtype == torch.int64 and y.tolist() == [0, 3]
    assert Scaler.fit(splits).levels == 17


def test_digits_need_neither_torchvision_nor_other_heavy_packages():
    program = """
import sys
for name in ("torchvision", "PIL", "sklearn", "scipy", "torchsde", "matplotlib", "tensorboard"):
    sys.modules[name] = None
from sde_score.data import BatchLoader, load_dataset
splits = load_dataset("digits")
batch = BatchLoader(splits.train, 8, seed=1).batch(0)
assert batch.x.shape == (8, 1, 8, 8)
load_dataset("two_moons(n_train=10, n_test=10)")
try:
    load_dataset("cifar10(root='nowhere')")
except ImportError as error:
    assert "torchvision" in str(error) and "torch " in str(error), error
else:
    raise AssertionError("cifar10 should need torchvision")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_settings_are_chosen_without_the_test_images():
    whole, part = load_dataset("digits"), load_dataset("digits(validation=True)")
    assert (len(part.train), len(part.test)) == (1350, 150)
    assert torch.equal(torch.cat([part.train[:].x, part.test[:].x]), whole.train[:].x)
    assert torch.equal(torch.cat([part.train[:].y, part.test[:].y]), whole.train[:].y)
