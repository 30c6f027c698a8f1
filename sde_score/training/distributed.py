"""Several processes under `torchrun`, in a few visible lines that also work for one process.

    torchrun --nproc_per_node=2 -m sde_score train ...

Each process works on its share of the global batch; `DistributedDataParallel` adds up the gradients. With one process
nothing here does anything.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sde_score.registry import SettingError
from sde_score.training.signals import StopSignal


def rank() -> int:
    """Number of this process, 0 to `world_size() - 1`."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and messages."""
    return rank() == 0


def launched_as_main() -> bool:
    """Whether this is the only process or the first that torchrun started, known also before joining the others."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def processes(device: str = "auto") -> Iterator[torch.device]:
    """Join the other processes of a `torchrun` (found by its environment variables) and yield the device of this one.

    Under `torchrun` on CUDA the backend is nccl and each process takes the GPU of its LOCAL_RANK; on the CPU it is
    gloo. Without `torchrun`, `device` is simply resolved ("auto": cuda, then mps, then cpu).

    Raises:
        LostProcess: in the first of those that are left, when another one was killed or failed; the others end quietly.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield pick_device(device)
        return
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    on = pick_device(device, local_rank)
    if on.type == "cuda":
        torch.cuda.set_device(on)
    started_here = not dist.is_initialized()
    if started_here:
        dist.init_process_group("nccl" if on.type == "cuda" else "gloo")
    everyone = gather((platform.node(), os.getpid()))
    try:
        yield on
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL")):
            _tell_the_loss(everyone, error)
        raise
    finally:
        if started_here:
            dist.destroy_process_group()


class LostProcess(RuntimeError):
    """Another process of the run was killed or failed; the message says which, and how to go on."""


def _tell_the_loss(everyone: list[tuple[str, int]], error: Exception, patience: float = 5.0) -> NoReturn:
    """Find out whom the failed exchange was waiting for: `everyone` holds host and process id of each rank.

    Its connections close a moment before a process is gone. torchrun asks those that are left to end (SIGTERM), which
    is put off until the loss has been told.
    """
    with StopSignal():
        deadline = time.monotonic() + patience
        lost: list[int] = []
        while not lost and time.monotonic() < deadline:
            time.sleep(0.01)
            lost = [r for r, (host, pid) in enumerate(everyone) if host == platform.node() and not _is_alive(pid)]
        if lost and rank() != min(set(range(len(everyone))) - set(lost)):
            time.sleep(patience)  # not to be taken for lost by the one that tells
            raise SystemExit(1) from error
        who = [f"rank {r} (process {everyone[r][1]} on {everyone[r][0]})" for r in lost]
        told = f"{' and '.join(who) or 'One on another machine'} was lost"
        raise LostProcess(
            f"Of {len(everyone)} processes, {told}: killed (by the system, for want of memory?), or ended by an error "
            "that it has told itself. The others cannot go on without it. Run the same command again: a training goes "
            "on from its newest checkpoint."
        ) from error


def _is_alive(pid: int) -> bool:
    """Does a process of this machine run? One that has ended and waits to be noticed by its parent does not."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's, or there is no /proc
        return True


def pick_device(device: str = "auto", local_rank: int | None = None) -> torch.device:
    """ "auto" becomes cuda, mps or cpu, whichever is there first; "cuda" becomes the GPU of `local_rank`.

    Raises:
        SettingError: if torch knows no such device.
        ValueError: if the device asked for is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        on = torch.device(device)
    except RuntimeError:
        raise SettingError(
            f"There is no device {device!r}. Write 'cuda', 'cuda:1', 'mps' or 'cpu', or 'auto' for whichever is there "
            "first."
        ) from None
    if on.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(
                f"Device {device!r} was asked for, but torch sees no GPU. Use device='cpu' or device='auto'."
            )
        if on.index is None and local_rank is not None:
            on = torch.device("cuda", local_rank)
        if on.index is not None and on.index >= torch.cuda.device_count():
            raise ValueError(
                f"Device {on} was asked for, but there are {torch.cuda.device_count()} GPUs. Start fewer processes."
            )
    return on


def wrap(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` itself for one process, otherwise a `DistributedDataParallel` of it, whose gradients are means over
    the processes.
    """
    if world_size() == 1:
        return module
    return nn.parallel.DistributedDataParallel(module, device_ids=[device.index] if device.type == "cuda" else None)


def no_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Inside, backward passes only accumulate: gradients are exchanged by the first backward pass outside."""
    return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else nullcontext()


def all_sum(values: Tensor) -> Tensor:
    """The sum of `values` over the processes, on all of them."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def copy_from_main(module: nn.Module) -> None:
    """Give every process the main process's weights and buffers of `module`."""
    if world_size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.detach(), src=0)


def share(value: object) -> object:
    """The main process's `value`, on all processes."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: object) -> list[object]:
    """The values of all processes, in the order of their ranks, on all of them."""
    if world_size() == 1:
        return [value]
    values: list[object] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        dist.barrier()
