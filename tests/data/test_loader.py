"""Laws of the reading order: permutations, partitions, purity."""

import numpy as np
import pytest
import torch

from sde_score.data import BatchLoader, LazySplit, TensorSplit, batch_indices, batch_positions, from_arrays, iterate
from sde_score.data.base import Subset, hold_out, split_off
from sde_score.data.loader import flip_mask
from sde_score.data.statistics import statistics


def numbered(n, labels=True):
    return TensorSplit(torch.arange(n, dtype=torch.float32).view(n, 1), {"y": torch.arange(n)} if labels else None)


@pytest.mark.parametrize("n, batch_size", [(10, 3), (10, 10), (7, 20), (1, 4), (64, 64)])
def test_every_epoch_is_a_permutation(n, batch_size):
    stream = torch.cat([batch_indices(step, batch_size, n, seed=5) for step in range(4 * n)])
    epochs = stream[: len(stream) // n * n].view(-1, n)
    assert torch.equal(epochs.sort(1).values, torch.arange(n).expand_as(epochs))
    if n >= 10:
        assert len({tuple(e) for e in epochs.tolist()}) == len(epochs), "epochs should differ"


def test_order_depends_on_the_seed_and_not_on_the_batch_size():
    first = torch.cat([batch_indices(s, 6, 20, seed=1) for s in range(10)])
    assert torch.equal(first, torch.cat([batch_indices(s, 15, 20, seed=1) for s in range(4)]))
    assert not torch.equal(first, torch.cat([batch_indices(s, 6, 20, seed=2) for s in range(10)]))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_partition_the_positions_of_a_step(world_size):
    parts = [batch_positions(3, 13, rank=r, world_size=world_size) for r in range(world_size)]
    assert torch.equal(torch.cat(parts), torch.arange(39, 52))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_ranks_read_the_same_samples():
    split = numbered(23)
    whole = BatchLoader(split, 12, seed=3).batch(7)
    parts = [BatchLoader(split, 12, seed=3, rank=rank, world_size=3).batch(7) for rank in range(3)]
    assert [len(p.x) for p in parts] == [4] * 3
    for of in (lambda b: b.x, lambda b: b.y, lambda b: b.positions):
        assert torch.equal(torch.cat([of(p) for p in parts]), of(whole))
    assert torch.equal(whole.y, whole.x[:, 0].long())
    x, cond, positions = whole
    assert x is whole.x and cond["y"] is whole.y and positions.tolist() == list(range(84, 96))


def test_positions_go_on_without_gap_or_repeat_wherever_one_jumps_in():
    """A step asked for out of turn is that of the run in turn; no two samples of a run share a position."""
    loader = BatchLoader(numbered(7), 6, seed=3)
    in_turn = [loader.batch(step) for step in range(5)]
    assert torch.equal(torch.cat([b.positions for b in in_turn]), torch.arange(30))
    for step in (4, 0, 3):
        again = BatchLoader(numbered(7), 6, seed=3).batch(step)
        assert torch.equal(again.x, in_turn[step].x) and torch.equal(again.positions, in_turn[step].positions)


def test_batch_is_a_pure_function_of_the_step_also_with_workers():
    images = torch.randint(0, 256, (9, 1, 2, 4), dtype=torch.uint8)
    lazy = LazySplit(lambda i: images[i], 9)
    plain = BatchLoader(lazy, 4, seed=2, flip=True)
    ahead = BatchLoader(lazy, 4, seed=2, flip=True, workers=2)
    for step in (0, 1, 2, 9, 3, 3, 100):
        expected, got = plain.batch(step), ahead.batch(step)
        assert torch.equal(expected.x, got.x) and expected.y is None and got.y is None
    ahead.close()
    assert torch.equal(ahead.batch(5).x, plain.batch(5).x)


def test_errors_of_worker_threads_reach_the_caller():
    def read(i):
        raise OSError(f"sample {i} is gone")

    loader = BatchLoader(LazySplit(read, 5), 2, workers=1)
    with pytest.raises(OSError, match="is gone"):
        loader.batch(0)
    loader.close()


def test_flips_are_fair_pure_and_true_mirrors():
    images = torch.arange(6, dtype=torch.uint8).view(1, 1, 2, 3)
    split = TensorSplit(images)
    loader = BatchLoader(split, 40, seed=1, flip=True)
    batch = loader.batch(4)
    x, positions = batch.x, batch.positions
    mask = flip_mask(1, positions)
    assert torch.equal(x[mask], images.flip(-1).expand_as(x[mask])) and torch.equal(
        x[~mask], images.expand_as(x[~mask])
    )
    slices = [BatchLoader(split, 40, seed=1, flip=True, rank=r, world_size=2).batch(4).x for r in range(2)]
    assert torch.equal(torch.cat(slices), x)
    # Binomial(4000, 1/2): five standard deviations.
    assert abs(int(flip_mask(7, torch.arange(4000)).sum()) - 2000) < 5 * 4000**0.5 / 2
    with pytest.raises(ValueError, match="mirrors images"):
        BatchLoader(numbered(4), 2, flip=True).batch(0)


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_reads_everything_once_in_order(world_size):
    split = numbered(11)
    batches = [b for r in range(world_size) for b in iterate(split, 4, rank=r, world_size=world_size)]
    seen = torch.cat([b.positions for b in batches])
    assert sorted(seen.tolist()) == list(range(11))
    assert all(torch.equal(b.x[:, 0].long(), b.positions) for b in batches)
    if world_size == 1:
        assert [len(b.x) for b in batches] == [4, 4, 3]
    assert sum(len(b.x) for b in iterate(split, 4, limit=6)) == 6


def test_uneven_and_empty_batches_are_refused():
    with pytest.raises(ValueError, match="multiple of world_size"):
        BatchLoader(numbered(5), 5, world_size=2)
    with pytest.raises(ValueError, match="multiple"):
        BatchLoader(numbered(5), 0)
    with pytest.raises(ValueError, match="empty"):
        BatchLoader(TensorSplit(torch.zeros(0, 2)), 2)
    with pytest.raises(ValueError, match="rank"):
        BatchLoader(numbered(5), 2, rank=2, world_size=2)
    with pytest.raises(ValueError, match="count from 0"):
        BatchLoader(numbered(5), 2).batch(-1)


def test_hold_out_partitions_and_never_changes():
    keys = [str(k).encode() for k in range(1000)]
    train, test = hold_out(keys[:100], 0.1)
    assert sorted(torch.cat([train, test]).tolist()) == list(range(100))
    # Recorded: the held-out samples of everybody's own data must stay the same from release to release.
    assert test.tolist() == [3, 9, 16, 21, 38, 46, 66, 67, 68, 79, 92]
    assert abs(len(hold_out(keys, 0.3)[1]) - 300) < 60  # 4 standard deviations of a fair draw
    assert len(hold_out(keys[:2], 0.01)[1]) == 1 and len(hold_out(keys[:2], 0.99)[0]) == 1
    assert [len(part) for part in hold_out([b"same"] * 5, 0.5)] == [4, 1]
    with pytest.raises(ValueError, match="at least two"):
        hold_out(keys[:1], 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        hold_out(keys, 1.0)


def rows_of(part):
    return {row.numpy().tobytes() for row in part[range(len(part))].x}


def test_an_item_stays_on_its_side_when_others_come_and_go():
    """400 rows; then an outlier comes, some go, all come twice: nobody who was held out is trained on."""
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    sides = [rows_of(part) for part in split_off(TensorSplit(x), 0.2, name="x")]
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))[:300]
    for changed in (torch.cat([x, torch.full((1, 3), 50.0)]), x[order], torch.cat([x, x])):
        parts = split_off(TensorSplit(changed), 0.2, name="x")
        for part, own, other in zip(parts, sides, reversed(sides)):
            assert not rows_of(part) & other and len(rows_of(part) - own) <= 1


def test_a_row_is_held_out_whatever_its_memory_looks_like():
    x = np.random.default_rng(0).normal(size=(200, 3))
    expected = rows_of(from_arrays(x).test)
    for same in (x.astype(">f8"), np.asfortranarray(x), x[::-1], torch.tensor(x), x.tolist()):
        assert rows_of(from_arrays(same).test) == expected
    labelled = from_arrays(x, np.arange(200) % 2)
    assert rows_of(labelled.test) == expected, "conditions are no part of an item"


def test_a_fingerprint_tells_data_apart():
    x, y = torch.arange(200.0).reshape(50, 4) / 7, torch.arange(50) % 3
    first = from_arrays(x, y).fingerprint()
    assert first == from_arrays(x.clone(), y).fingerprint()
    # Recorded: the same on every machine.
    assert first == {"train": 47, "test": 3, "digest": "bef540e6841e7db5228a3986ce7934f8"}
    changed = x.clone()
    changed[20, 2] += 1e-3
    others = [(changed, y, 0.1), (x, (y + 1) % 3, 0.1), (x, y, 0.3), (x[1:], y[1:], 0.1), (x.view(50, 2, 2), y, 0.1)]
    digests = {from_arrays(*other[:2], holdout=other[2], layout="NCL" if other[0].ndim > 2 else None).fingerprint()
               ["digest"] for other in others}  # fmt: skip
    assert len(digests | {first["digest"]}) == 6
    large = from_arrays(torch.arange(60_000.0).view(60, 1000))
    assert large.fingerprint(numbers=10) == large.fingerprint(numbers=16_000) != large.fingerprint(), "16 samples"


def test_splits_refuse_wrong_numbers_and_types():
    split = numbered(5)
    assert split[1:4].x.flatten().tolist() == [1, 2, 3]
    assert Subset(split, torch.tensor([4, 2]))[[1, 0]].y.tolist() == [2, 4]
    for wrong in ([5], [-1]):
        with pytest.raises(IndexError, match="0 to 4"):
            split[wrong]
    with pytest.raises(TypeError, match=r"split\[\[3\]\]"):
        split[3]
    with pytest.raises(TypeError, match="uint8"):
        TensorSplit(torch.zeros(3, 2, dtype=torch.float16))
    with pytest.raises(ValueError, match="one entry per sample"):
        TensorSplit(torch.zeros(3, 2), {"y": torch.zeros(2, dtype=torch.int64)})


def test_statistics_match_a_direct_computation_despite_an_offset():
    x = torch.randn(500, 2, 7) * torch.tensor([[0.5], [3.0]]) + 1000
    mean, std = statistics(TensorSplit(x), numbers=900)
    assert mean.shape == (2, 1)
    torch.testing.assert_close(mean[:, 0], x.double().mean((0, 2)))
    torch.testing.assert_close(std[:, 0], x.double().std((0, 2), correction=0))
    with pytest.raises(ValueError, match=r"column 1 \(always 0.1\) is constant"):
        statistics(TensorSplit(torch.cat([torch.randn(9, 1), torch.full((9, 1), 0.1)], 1)))
