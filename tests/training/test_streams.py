"""Randomness of a run: what depends on what, what does not, and that no two uses share a stream."""

import torch
from torch import nn

from sde_score.data import BatchLoader, TensorSplit
from sde_score.data.loader import flip_mask
from sde_score.models import ScoreModel
from sde_score.objectives import OBJECTIVES, TIME_SAMPLERS
from sde_score.sdes import SDES
from sde_score.tensors import SampleNoise, draw_uniform
from sde_score.training import Record, Schedule, StepSettings, Trainer, ValidationLoss, distributed
from sde_score.training.batch import Share

SDE = SDES.build("vp(t_min=0.)")


class Net(nn.Module):
    """Linear in float64; it notes the times it is asked for."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.3], dtype=torch.float64))
        self.times = []

    def forward(self, x, t):
        self.times.append(t.detach().clone())
        return x * self.weight * (1 + t[:, None])


def make_model():
    return ScoreModel(Net(), SDE, "eps(c_noise='t')")


def batch(step, size=24):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(size, 2, dtype=torch.float64, generator=generator)
    return x, None, range(step * size, (step + 1) * size)


def train(micro_batches=1, times="stratified", data=batch, steps=5):
    model = make_model()
    trainer = Trainer(
        model,
        None,
        OBJECTIVES.build(f"dsm(times='{times}')", SDE),
        torch.optim.SGD(model.parameters(), lr=0.1),  # hides no factor in the gradient, as Adam would
        data,
        Schedule(steps),
        step=StepSettings(micro_batches=micro_batches, grad_clip=-1.0),
        record=Record(say=lambda message: None, progress=False),
    )
    trainer.run()
    return model.network


def test_stratified_times_belong_to_the_whole_batch():
    """Weights equal for any number of micro-batches, up to the order of sums (losses are handed over in float32)."""
    whole = train()
    for micro_batches in (2, 4, 5):
        torch.testing.assert_close(train(micro_batches).weight, whole.weight, rtol=1e-6, atol=1e-6)
    strata = [torch.cat(train(micro_batches).times).view(5, 24) for micro_batches in (1, 4)]
    assert torch.equal(*strata)
    assert torch.equal((strata[0] * 24).long(), torch.arange(24).expand(5, -1)), "one time in each stratum"
    inside = strata[0] * 24 % 1  # uniform in its stratum: mean 1/2, five standard errors of 120 draws
    assert abs(inside.mean() - 0.5) < 5 * (1 / 12 / 120) ** 0.5


def test_the_processes_shares_follow_one_another(monkeypatch):
    """Strata of two processes with unequal shares are those of one process with all samples."""
    found = []
    for rank, part in enumerate((slice(0, 10), slice(10, 24))):
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "all_sum", lambda counts: torch.tensor([10, 14]))
        x, _, positions = batch(3)
        share = Share.of(x[part], None, positions[part], torch.device("cpu"))
        assert share.size == 24
        times = TIME_SAMPLERS.build("stratified", SDE)
        found.append(times.draw(share.noise(0, 3), share.x[:, 0])[0])
    assert torch.equal((torch.cat(found) * 24).long(), torch.arange(24))


def test_times_without_places_are_stratified_in_the_batch_they_are_asked_for():
    times = TIME_SAMPLERS.build("stratified", SDE)
    for noise in (torch.randn_like, SampleNoise(0, range(8))):
        assert torch.equal((times.draw(noise, torch.empty(8))[0] * 8).long(), torch.arange(8))


def test_the_step_of_plain_gradient_descent_is_that_of_the_mean_loss():
    """One step, no clipping reached: weights - lr * gradient of the mean over the batch."""
    found, start = train(times="uniform", steps=1).weight, make_model()
    x, _, positions = batch(0)
    OBJECTIVES.build("dsm", SDE)(start, x, noise=SampleNoise((0, 0), positions)).mean().backward()
    weight = start.network.weight
    torch.testing.assert_close(found, weight - 0.1 * weight.grad, rtol=1e-6, atol=1e-7)


def test_dropout_and_noise_do_not_share_a_stream():
    """Where a position equals the rank, one seed would give both: the first numbers that each draws differ."""
    trainer = Trainer(
        Net(), None, None, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), batch, Schedule(1), seed=5
    )
    for step in (0, 1, 7):
        trainer.state.step = step
        fork = torch.random.get_rng_state()
        trainer.seed_dropout()
        dropout = torch.randn(8)
        torch.random.set_rng_state(fork)
        for position in range(4):
            noise = SampleNoise((5, step), [position])(torch.empty(1, 8))[0]
            assert not torch.equal(noise, dropout)


def recorded(drawn):
    def loss(model, x0, *, noise, **cond):
        t = draw_uniform(noise, x0[:, 0])
        z = noise(x0)
        drawn.append(torch.cat([t[:, None], z], 1))
        return (model(z, t) ** 2).sum(1)

    return loss


def test_noise_of_validation_is_a_function_of_seed_repeat_and_sample_in_a_stream_of_its_own():
    x = batch(0)[0]

    def drawn(*parts, seed=1, repeats=1):
        found = []
        ValidationLoss(recorded(found), [(part, None) for part in parts], seed=seed, repeats=repeats).evaluate(Net())
        return torch.cat(found)

    whole = drawn(x)
    assert torch.equal(drawn(x[:7], x[7:]), whole), "whatever the batches"
    assert torch.equal(drawn(x), whole), "at every evaluation"
    assert not torch.isclose(drawn(x, seed=2), whole).any()
    twice = drawn(x, repeats=2)
    assert torch.equal(twice[:24], whole) and not torch.isclose(twice[24:], whole).any()
    for step in range(3):  # nor is it that of a step of training
        noise = SampleNoise((1, step), range(24))
        assert not torch.isclose(draw_uniform(noise, x[:, 0]), whole[:, 0]).any()


def test_flips_depend_on_seed_and_position_and_go_with_nothing_else():
    """Agreement of two fair coins: Binomial(4000, 1/2), five standard deviations."""
    positions = torch.arange(4000)
    first = flip_mask(7, positions)
    assert torch.equal(flip_mask(7, positions[1000:2000]), first[1000:2000])
    far = 5 * 4000**0.5 / 2
    shifted = flip_mask(7, positions + 4000)  # another epoch of 4000 samples
    neighbour = flip_mask(7, positions + 1)
    parity = positions % 2 == 1
    uniform = torch.stack([SampleNoise((7, 0), [i]).uniform(torch.empty(1)) for i in range(4000)])[:, 0] < 0.5
    for other in (flip_mask(8, positions), shifted, neighbour, parity, uniform):
        assert abs(int((first == other).sum()) - 2000) < far


def test_conditions_that_are_images_are_mirrored_with_their_image():
    images = torch.randint(0, 256, (6, 1, 2, 5), dtype=torch.uint8)
    split = TensorSplit(images, {"mask": images.float(), "y": torch.arange(6)})
    drawn = BatchLoader(split, 6, seed=3, flip=True).batch(0)
    assert torch.equal(drawn.cond["mask"], drawn.x.float()) and not torch.equal(drawn.x, images[drawn.y])


def test_both_kinds_of_weights_are_measured_in_one_precision():
    """With an average of memory 0 they are the same weights, so their validation losses are the same numbers."""
    from sde_score.models.ema import EMA


    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 2))

        def forward(self, x, t):
            return self.network(x)

    def loss(model, x0, *, noise, **cond):
        return ((model(x0 + noise(x0), x0[:, 0]) - x0) ** 2).sum(1)

    net = Plain()

    data = lambda step: (batch(step)[0].float(), None, range(24))  # noqa: E731
    found, inside = {}, []
    net.network[2].register_forward_hook(lambda module, args, out: inside.append((module.training, out.dtype)))
    validation = ValidationLoss(loss, [(batch(99)[0].float(), None)])
    trainer = Trainer(
        net,
        EMA(net, 0.0),
        loss,
        torch.optim.SGD(net.parameters(), lr=0.1),
        data,
        Schedule(3),
        step=StepSettings(precision="bf16"),
        record=Record(say=lambda message: None, progress=False),
    )
    trainer.actions = ((3, lambda state: found.update(validation(state))),)
    trainer.run()
    assert found["val/loss"] == found["val_raw/loss"]
    assert {dtype for training, dtype in inside if training} == {torch.bfloat16}
    assert {dtype for training, dtype in inside if not training} == {torch.float32}
