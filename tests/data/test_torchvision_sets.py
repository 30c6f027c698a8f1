"""The data sets of torchvision: IDX files from the disk, the others through a stand-in, failures explained."""

import gzip
import shutil
import struct
import types

import numpy as np
import pytest
import torch
from PIL import Image

from sde_score import _torchvision
from sde_score.data import load_dataset
from sde_score.data.torchvision_sets import IDX_FILES, read_idx


def idx_bytes(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def small_mnist(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for n, (images, labels) in zip((5, 3), IDX_FILES.values()):
        (raw / images).write_bytes(idx_bytes(generator.integers(0, 256, (n, 28, 28), dtype=np.uint8)))
        (raw / labels).write_bytes(idx_bytes(np.arange(n, dtype=np.uint8)))
    return tmp_path


@pytest.fixture
def without_torchvision(monkeypatch):
    def load(submodule=""):
        raise AssertionError("torchvision is not needed here")

    monkeypatch.setattr(_torchvision, "load", load)


def test_idx_files_need_no_torchvision(small_mnist, without_torchvision):
    splits = load_dataset("mnist", root=small_mnist)
    assert splits.info.shape == (1, 28, 28) and splits.info.levels == 256 and splits.info.num_classes == 10
    assert (len(splits.train), len(splits.test)) == (5, 3)
    assert splits.train[:5].y.tolist() == [0, 1, 2, 3, 4]


def test_gzipped_files_and_a_bare_folder_work(small_mnist, without_torchvision):
    raw = small_mnist / "MNIST" / "raw"
    plain = load_dataset("mnist", root=small_mnist).train[:5].x
    for path in list(raw.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert torch.equal(load_dataset("mnist", root=small_mnist).train[:5].x, plain)
    assert torch.equal(load_dataset(f"fashion_mnist(root={str(raw)!r})").train[:5].x, plain)


def test_damaged_and_missing_files(small_mnist, without_torchvision):
    raw = small_mnist / "MNIST" / "raw"
    images = raw / IDX_FILES["train"][0]
    whole = images.read_bytes()
    images.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="cut short"):
        load_dataset("mnist", root=small_mnist)
    images.write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match="not an IDX file"):
        load_dataset("mnist", root=small_mnist)
    images.unlink()
    images.with_name(images.name + ".gz").write_bytes(gzip.compress(whole)[:-50])
    with pytest.raises(ValueError, match="Cannot read"):
        load_dataset("mnist", root=small_mnist)
    images.write_bytes(idx_bytes(np.zeros((4, 28, 28), np.uint8)))
    with pytest.raises(ValueError, match="do not belong together"):
        load_dataset("mnist", root=small_mnist)
    with pytest.raises(FileNotFoundError, match=r"mnist\(download=True\)"):
        load_dataset("mnist", root=small_mnist / "other", download=False)


def test_mnist_from_unpacked_files(shared_data_dir, tmp_path):
    """The real test part, unpacked into `<root>/MNIST/raw`, once here and once by torchvision's own reader."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (shared_data_dir / "mnist").glob("*.gz"):
        with gzip.open(path) as source, open(raw / path.stem, "wb") as target:
            shutil.copyfileobj(source, target)
    splits = load_dataset("mnist", root=tmp_path, download=False)
    assert (len(splits.train), len(splits.test)) == (60_000, 10_000)
    assert splits.test[:5].y.tolist() == [7, 2, 1, 0, 4]
    assert splits.train.cond["y"].bincount().tolist()[:3] == [5923, 6742, 5958]
    # Mean grey value of the training images, as everybody quotes it.
    assert float(splits.train.x[:, 0].double().mean() / 255) == pytest.approx(0.1307, abs=5e-5)


def test_mnist_from_gzipped_files_in_place(shared_data_dir):
    path = shared_data_dir / "mnist" / (IDX_FILES["test"][0] + ".gz")
    assert read_idx(path).shape == (10_000, 28, 28)


class FakeSet:
    """What torchvision's data sets have in common, with random pictures."""

    classes = [str(i) for i in range(10)]

    def __init__(self, root, download=False, train=None, split=None, classes=None):
        self.part = split or (classes and classes[0]) or ("train" if train else "test")
        n = 6 if "test" not in self.part and "val" not in self.part else 4
        self.data = np.random.default_rng(n).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        self.targets = list(range(n))
        self.labels = np.arange(n)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        big = np.zeros((218, 178, 3), np.uint8)
        big[39:179, 19:159] = 255  # the central 140 x 140
        return Image.fromarray(big), torch.zeros(40)


class FakeSVHN(FakeSet):
    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.data = self.data.transpose(0, 3, 1, 2)


class Offline:
    def __init__(self, root, download=False, **settings):
        raise RuntimeError("Dataset not found or corrupted.") if not download else OSError("network is unreachable")


@pytest.fixture
def fake(monkeypatch):
    module = types.SimpleNamespace(CIFAR10=FakeSet, SVHN=FakeSVHN, CelebA=FakeSet, LSUN=FakeSet, MNIST=Offline)
    monkeypatch.setattr(_torchvision, "load", lambda submodule="": module)
    return module


def test_cifar_and_svhn_come_channels_first(fake):
    for name, extra in (("cifar10", 0), ("svhn", 0), ("svhn(extra=True)", 6)):
        splits = load_dataset(name)
        assert splits.info.shape == (3, 32, 32) and (len(splits.train), len(splits.test)) == (6 + extra, 4)
        expected = torch.from_numpy(FakeSet("", train=False).data).permute(0, 3, 1, 2)
        assert torch.equal(splits.test[:4].x, expected) and splits.test[:4].y.tolist() == [0, 1, 2, 3]


def test_celeba_is_cropped_and_lsun_resized(fake, tmp_path):
    splits = load_dataset("celeba", image_size=16)
    x, y = splits.train[[0, 5]].x, splits.train[[0, 5]].y
    assert x.shape == (2, 3, 16, 16) and y is None and (x == 255).all(), "exactly the central 140 x 140"
    assert load_dataset("celeba(crop=0)").train[[0]].x.min() == 0
    with pytest.raises(FileNotFoundError, match="bedroom_train_lmdb and no .*bedroom_val_lmdb"):
        load_dataset("lsun(category='bedroom')", root=tmp_path)
    for part in ("train", "val"):
        (tmp_path / f"bedroom_{part}_lmdb").mkdir()
    splits = load_dataset("lsun(category='bedroom')", root=tmp_path, image_size=(20, 24))
    assert splits.info.shape == (3, 20, 24) and splits.test[[1]].x.shape == (1, 3, 20, 24)


def test_failed_downloads_say_what_to_do(fake, tmp_path):
    fake.CIFAR10 = Offline
    with pytest.raises(FileNotFoundError, match=r"not found or corrupted.*cifar10\(download=True\)"):
        load_dataset("cifar10", root=tmp_path, download=False)
    with pytest.raises(FileNotFoundError, match="network is unreachable.*Check the network"):
        load_dataset("cifar10", root=tmp_path)
    with pytest.raises(FileNotFoundError, match="Check the network"):
        load_dataset("mnist", root=tmp_path)


def test_a_torchvision_that_does_not_match_is_explained(monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(_torchvision.importlib, "import_module", broken)
    with pytest.raises(
        ImportError, match=r"torchvision \d.* does not match torch \d.*Install both from the same index"
    ):
        _torchvision.load("datasets")
    monkeypatch.setattr(_torchvision, "_version", lambda package: None if package == "torchvision" else "2.11.0")
    with pytest.raises(ImportError, match="not installed; it must match torch 2.11.0"):
        _torchvision.load()
