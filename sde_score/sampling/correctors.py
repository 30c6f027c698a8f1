"""Correctors: Langevin steps at a fixed time, `x_mean = x + e s(x, t)`, `x = x_mean + √(2e) z`, which differ in the
step size e.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sde_score.protocols import NoiseFn, ScoreFn
from sde_score.sampling.base import CORRECTORS, Corrector
from sde_score.sdes.base import SDE
from sde_score.tensors import norm_except_batch

StepSize = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def langevin_steps(
    step_size: StepSize, score_fn: ScoreFn, x: Tensor, t: Tensor, noise: NoiseFn, n_steps: int
) -> tuple[Tensor, Tensor]:
    """`n_steps` Langevin steps of size `step_size(score, z, x, t)`; the state and its mean before the last noise."""
    for _ in range(n_steps):
        score = score_fn(x, t)
        z = noise(x)
        size = step_size(score, z, x, t)
        x_mean = x + size * score
        x = x_mean + torch.sqrt(2 * size) * z
    return x, x_mean


def signal_to_noise_step(score: Tensor, z: Tensor, snr: float) -> Tensor:
    """The published step size `2 (snr ‖z‖/‖s‖)²`, norms as means over the batch (Song et al. 2021, algorithms 4, 5).

    Raises `FloatingPointError` when the batch's score is exactly zero: the rule then asks for an infinite step.
    """
    score_norm = norm_except_batch(score).mean()
    if score_norm == 0:
        raise FloatingPointError(
            "langevin: the score is exactly zero for the whole batch (an untrained network?), so its step size is "
            "infinite. Train first, or use \"langevin(norms='expected')\"."
        )
    return 2 * (snr * norm_except_batch(z).mean() / score_norm) ** 2


def check_langevin(snr: float, n_steps: int) -> tuple[float, int]:
    """The settings of a Langevin corrector, checked."""
    if not snr > 0:
        raise ValueError(f"snr is the target signal-to-noise ratio of a Langevin step and must be positive; got {snr}.")
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1; for no correction choose the corrector 'none'. Got {n_steps}.")
    if n_steps != int(n_steps):
        raise ValueError(f"n_steps is a whole number; got {n_steps}.")
    return float(snr), int(n_steps)


@CORRECTORS.register("langevin")
class Langevin(Corrector):
    """Langevin steps sized by a signal-to-noise ratio: `e = 2 (snr ‖z‖/‖s‖)²` (Song et al. 2021, algorithms 4 and 5).

    Args:
        snr: target ratio of the step's signal to its noise. Published: 0.16 for 32x32 images, 0.075 for 256x256.
        n_steps: steps at each time.
        norms: `"batch"`, the published rule, takes both norms as means over the batch, so that the samples of a batch
            influence one another. `"expected"` puts in what they are for a single data point, `‖z‖² -> D` and
            `‖s‖² -> D/std²` (for a spread-out law the latter is an upper bound, so the step errs on the short side),
            which leaves `e = 2 (snr std)²`: the corrector `ald`. No coupling: a sample depends on its own seed only.
            (Norms per sample diverge in low dimension.)

    The published sampler's extra factor 1 − β_i for VP belongs to the sampler `published`.
    """

    def __init__(self, sde: SDE, snr: float = 0.16, n_steps: int = 1, norms: str = "batch") -> None:
        super().__init__(sde)
        self.snr, self.n_steps = check_langevin(snr, n_steps)
        if norms not in ("batch", "expected"):
            raise ValueError(
                f"langevin: norms must be 'batch' (published, couples the samples) or 'expected'; got {norms!r}."
            )
        self.batch_coupled = norms == "batch"

    def step_size(self, score: Tensor, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The step size e, broadcastable to `x`."""
        if self.batch_coupled:
            return signal_to_noise_step(score, z, self.snr)
        return 2 * (self.snr * self.sde.marginal_prob(x, t)[1]) ** 2

    def step(self, score_fn: ScoreFn, x: Tensor, t: Tensor, noise: NoiseFn) -> tuple[Tensor, Tensor]:
        return langevin_steps(self.step_size, score_fn, x, t, noise, self.n_steps)


@CORRECTORS.register("ald")
class AnnealedLangevin(Langevin):
    """Annealed Langevin dynamics: `e = 2 (snr std(t))²`, NCSN's step tied to the noise level (Song & Ermon 2019)."""

    def __init__(self, sde: SDE, snr: float = 0.16, n_steps: int = 1) -> None:
        super().__init__(sde, snr, n_steps, norms="expected")


@CORRECTORS.register("none")
class NoneCorrector(Corrector):
    """No correction."""

    moves = False

    def step(self, score_fn: ScoreFn, x: Tensor, t: Tensor, noise: NoiseFn) -> tuple[Tensor, Tensor]:
        return x, x
