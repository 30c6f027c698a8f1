"""What samples take of memory while they are drawn: measured in a process of its own."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")

BODY = """
import torch
from sde_score.run.sample import draw
from sde_score.sampling import SampleResult
from sde_score.sdes import SDES

torch.set_num_threads(1)
sde = SDES.build("vp")

def sampler(score_fn, x_T, *, noise, constraint, callback):
    return SampleResult(x_T, 0)

def peak():
    with open("/proc/self/status") as file:  # unlike ru_maxrss it does not begin with the parent's
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024

settings = dict(seed=0, batch_size=64, device=torch.device("cpu"), decode={decode})
draw(sampler, sde, lambda indices: None, 64, (3, 32, 32), **settings)
before = peak()
x, _ = draw(sampler, sde, lambda indices: None, 8192, (3, 32, 32), **settings)
print(peak() - before)
"""


@pytest.mark.parametrize("decode, held", [("lambda z: z", 96), ("lambda z: z.to(torch.uint8)", 24)])
def test_samples_are_held_once_and_as_they_are_stored(decode, held):
    """8192 samples of 3x32x32 are 96 MiB in float32, 24 in uint8; a second copy would double it."""
    done = subprocess.run([sys.executable, "-c", BODY.format(decode=decode)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < held + 20
