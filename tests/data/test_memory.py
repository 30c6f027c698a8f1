"""How much memory data take: measured in processes of their own, by the peak of what they hold for themselves.

Bounds leave room for allocators and pages, and still lie well below one copy too many.
"""

import subprocess
import sys

import numpy as np
import pytest

from sde_score.data import load_dataset

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")

MEASURE = """
import threading, time
import numpy as np
import torch
from sde_score.data import Scaler, BatchLoader, from_arrays, load_dataset, iterate

torch.set_num_threads(1)

def held():
    with open("/proc/self/status") as file:  # without pages of mapped files, which are the system's
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024

class Watch(threading.Thread):
    top = 0.0

    def run(self):
        while True:
            Watch.top = max(Watch.top, held())
            time.sleep(0.001)

Scaler.fit(from_arrays(np.random.rand(4000, 3)))  # what is set up once does not count
before = held()
Watch(daemon=True).start()
{body}
time.sleep(0.02)
print(Watch.top - before)
"""


def rise(body):
    """MiB by which `body` raises the peak."""
    done = subprocess.run([sys.executable, "-c", MEASURE.format(body=body)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """120 MiB each."""
    folder = tmp_path_factory.mktemp("arrays")
    levels = np.random.default_rng(0).integers(0, 256, (40_960, 32, 32, 3), dtype=np.uint8)
    np.save(folder / "levels.npy", levels)
    np.savez(folder / "levels.npz", x=levels)
    np.save(folder / "real.npy", np.random.default_rng(0).random((15_360, 1, 32, 32)))  # float64
    np.save(folder / "fortran.npy", np.asfortranarray(np.random.default_rng(0).random((1_000_000, 15))))
    return folder


READ = """
data = load_dataset(path)
codec = Scaler.fit(data)
loader = BatchLoader(data.train, 128)
for step in range(20):
    codec.encode(loader.batch(step).x)
for batch in iterate(data.test, 256):
    codec.encode(batch.x)
"""


@pytest.mark.parametrize("name, bound", [("levels.npy", 40), ("real.npy", 110), ("fortran.npy", 110)])
def test_a_npy_is_never_whole_in_memory(files, name, bound):
    """Statistics and checks go through chunks of a million numbers: 8 MiB of float64, and some of their like."""
    assert rise(f"path = {str(files / name)!r}\n{READ}") < bound


def test_a_npz_is_unpacked_once(files):
    assert rise(f"path = {str(files / 'levels.npz')!r}\n{READ}") < 120 + 50


def test_arrays_at_hand_are_not_copied():
    made = "x = np.random.default_rng(0).integers(0, 256, (40_960, 32, 32, 3), dtype=np.uint8)\n"
    made += "before, Watch.top = held(), 0.0\n"
    assert rise(made + "data = from_arrays(x); Scaler.fit(data); data.train[range(256)], data.test[range(256)]") < 40


def test_a_folder_is_decoded_into_place(tmp_path):
    """600 images of 192 KiB: 112 MiB, and one copy of them."""
    from PIL import Image

    for k in range(600):
        Image.new("RGB", (256, 256), (k % 256, k // 256, 0)).save(tmp_path / f"{k}.png", compress_level=1)
    body = f"from PIL import Image\nload_dataset({str(tmp_path)!r}, holdout=0.5).train[range(10)]"
    assert rise(body) < 112 + 60


def test_mapped_files_read_as_arrays_do(files):
    """Rows in any order, repeated, Fortran order, another byte order: the same numbers."""
    whole = np.load(files / "fortran.npy")
    splits = load_dataset(str(files / "fortran.npy"))
    rows = splits.test.indices[[5, 0, 5, 77]]
    assert np.array_equal(splits.test[[5, 0, 5, 77]].x.numpy(), whole[rows.numpy()])
