"""Batches in an order that is a pure function of (seed, step): to resume a run, ask for the next step.

There is no loader state. Training reads an endless sequence of samples: a permutation of the data set for each epoch,
one after the other, with no gap and no leftover at the borders. A sample's place in that sequence is its *position*;
step s of batch size B covers positions s B .. s B + B - 1, and rank r of w processes the r-th of w equal parts of them.
So the number of processes and of micro-batches does not change what is learnt from.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

from sde_score.data.base import Batch, Split
from sde_score.tensors import mix_seed

# Words that keep the streams derived from one seed apart; no number of a step or of a sample gets so far.
_ORDER, _FLIP = 0x0DE5 << 40, 0xF11B << 40


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(mix_seed(seed, _ORDER, epoch)))


def indices_at(positions: Tensor, n: int, seed: int) -> Tensor:
    """The sample numbers `(B,)` at `positions: (B,)`: place p mod n of the permutation of epoch p // n."""
    if n < 1:
        raise ValueError("The split is empty: there is nothing to draw batches from.")
    epochs, places = positions // n, positions % n
    indices = torch.empty_like(positions)
    for epoch in epochs.unique().tolist():
        here = epochs == epoch
        indices[here] = _permutation(n, seed, epoch)[places[here]]
    return indices


def batch_positions(step: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> Tensor:
    """The positions that `rank` reads at `step`: its part of step * batch_size .. (step + 1) * batch_size - 1."""
    if step < 0:
        raise ValueError(f"Steps count from 0; got {step}.")
    low, high = batch_size * rank // world_size, batch_size * (rank + 1) // world_size
    return torch.arange(step * batch_size + low, step * batch_size + high)


def batch_indices(step: int, batch_size: int, n: int, seed: int) -> Tensor:
    """The sample numbers `(batch_size,)` of a whole step, over all ranks; it may span several epochs."""
    return indices_at(batch_positions(step, batch_size), n, seed)


def flip_mask(seed: int, positions: Tensor) -> Tensor:
    """Whether the sample at each position is mirrored, `(B,)` bool: a fair coin, a function of (seed, position)."""
    return torch.tensor([mix_seed(seed, _FLIP, p) & 1 == 1 for p in positions.tolist()], dtype=torch.bool)


class BatchLoader:
    """Training batches by step number.

    Args:
        split: the data.
        batch_size: samples of one optimiser step, over all ranks and micro-batches.
        seed: of the order and of the flips.
        rank, world_size: this process, and how many there are.
        flip: mirror half of the images left to right, at random, and conditions that are images with them.
        workers: threads that read ahead of the step asked for; 0 reads when asked. Worth it where samples are decoded
            from files.

    Raises `ValueError` when the batch does not divide evenly: unequal parts would weigh samples unequally in the mean
    gradient.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int = 0,
        *,
        rank: int = 0,
        world_size: int = 1,
        flip: bool = False,
        workers: int = 0,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(
                f"`BatchLoader(rank=..., world_size=...)` needs 0 <= rank < world_size; got {rank} and {world_size}."
            )
        if len(split) < 1:
            raise ValueError(f"{split.name} is empty: there is nothing to draw batches from.")
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"`BatchLoader(batch_size={batch_size})` must be a positive multiple of world_size = {world_size}. "
                f"Write batch_size={max(1, round(batch_size / world_size)) * world_size}."
            )
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.rank, self.world_size, self.flip = rank, world_size, flip
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="batch") if workers else None
        self._ahead: dict[int, Future[Batch]] = {}

    def _fetch(self, step: int) -> Batch:
        positions = batch_positions(step, self.batch_size, rank=self.rank, world_size=self.world_size)
        read = self.split[indices_at(positions, len(self.split), self.seed)]
        if not self.flip:
            return Batch(read.x, read.cond, positions)
        if read.x.ndim != 4:
            raise ValueError(
                f"`BatchLoader(flip=True)` mirrors images, (B, C, H, W); {self.split.name} has batches of shape "
                f"{tuple(read.x.shape)}."
            )
        mask = flip_mask(self.seed, positions).view(-1, 1, 1, 1)

        def mirrored(values: Tensor) -> Tensor:
            return torch.where(mask, values.flip(-1), values) if values.ndim == 4 else values

        return Batch(mirrored(read.x), {name: mirrored(values) for name, values in read.cond.items()}, positions)

    def batch(self, step: int) -> Batch:
        """This rank's samples of `step`. A pure function of the constructor's arguments and
        `step`."""
        if self._pool is None:
            return self._fetch(step)
        wanted = range(step, step + self.workers + 1)
        for old in [s for s in self._ahead if s not in wanted]:
            self._ahead.pop(old).cancel()
        for new in wanted:
            if new not in self._ahead:
                self._ahead[new] = self._pool.submit(self._fetch, new)
        return self._ahead.pop(step).result()

    def close(self) -> None:
        """Stop reading ahead."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool, self._ahead = None, {}


def iterate(
    split: Split, batch_size: int, *, rank: int = 0, world_size: int = 1, limit: int | None = None
) -> Iterator[Batch]:
    """A split once, in order, for evaluation: the last batch may be smaller, nothing is dropped.

    Positions are sample numbers. `limit` stops after so many samples. With several ranks each reads its part of every
    batch; a part may be empty and is then left out.
    """
    if batch_size < 1:
        raise ValueError(f"`iterate(batch_size=...)` must be positive; got {batch_size}.")
    n = len(split) if limit is None else min(limit, len(split))
    for start in range(0, n, batch_size):
        size = min(batch_size, n - start)
        indices = start + batch_positions(0, size, rank=rank, world_size=world_size)
        if len(indices):
            yield split[indices]
