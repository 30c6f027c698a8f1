"""Correctors: Langevin steps at a fixed time, `x_mean = x + e s(x, t)`, `x = x_mean + √(2e) z`; they differ in the step
size e.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from sde_score.protocols import NoiseFn, ScoreFn
from sde_score.sampling.base import CORRECTORS, Corrector
from sde_score.sdes.base import SDE
from sde_score.tensors import expand_like, norm_except_batch


class LangevinCorrector(Corrector):
    """`n_steps` Langevin steps of size `e`, which a subclass chooses."""

    def __init__(self, sde: SDE, snr: float, n_steps: int, chain: int | None) -> None:
        super().__init__(sde)
        if not snr > 0:
            raise ValueError(
                f"snr is the target signal-to-noise ratio of a Langevin step and must be positive; got {snr}."
            )
        if n_steps < 1:
            raise ValueError(
                f"n_steps must be at least 1; for no correction choose the corrector 'none'. Got {n_steps}."
            )
        if n_steps != int(n_steps):
            raise ValueError(f"n_steps is a whole number; got {n_steps}.")
        self.snr, self.n_steps = float(snr), int(n_steps)
        self.chain = None if chain is None else sde.chain(chain)

    def factor(self, t: Tensor) -> Tensor:
        """The published factor α: α_i of the DDPM chain, 1 without a chain."""
        return torch.ones_like(t) if self.chain is None else self.chain.langevin_factor(t)

    @abstractmethod
    def step_size(self, score: Tensor, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The step size e, broadcastable to `x`."""

    def step(self, score_fn: ScoreFn, x: Tensor, t: Tensor, noise: NoiseFn) -> tuple[Tensor, Tensor]:
        for _ in range(self.n_steps):
            score = score_fn(x, t)
            z = noise(x)
            size = self.step_size(score, z, x, t)
            x_mean = x + size * score
            x = x_mean + torch.sqrt(2 * size) * z
        return x, x_mean


@CORRECTORS.register("langevin")
class Langevin(LangevinCorrector):
    """Langevin steps sized by a signal-to-noise ratio: `e = 2α (snr ‖z‖/‖s‖)²` (Song et al. 2021, algorithms 4 and 5).

    Args:
        snr: target ratio of the step's signal to its noise. Published: 0.16 for 32x32 images, 0.075 for 256x256.
        n_steps: steps at each time.
        norms: `"batch"`, the published rule, takes both norms as means over the batch, so that the samples of a batch
            influence one another. `"expected"` puts in what they are for a single
            data point, `‖z‖² -> D` and `‖s‖² -> D/std²` (for a spread-out law the latter is an upper bound, so the step
            errs on the short side), which leaves `e = 2α (snr std)²`: the step of `ald`. No coupling: a sample depends
            on its own seed only. (Norms per sample diverge in low dimension.)
        chain: take the factor α from the published N-step chain (DDPM: 1 − β_i); 1 otherwise.

    Raises `FloatingPointError` when the batch's score is exactly zero under `norms="batch"`: the rule then asks for an
    infinite step.
    """

    def __init__(
        self, sde: SDE, snr: float = 0.16, n_steps: int = 1, norms: str = "batch", chain: int | None = None
    ) -> None:
        super().__init__(sde, snr, n_steps, chain)
        if norms not in ("batch", "expected"):
            raise ValueError(
                f"langevin: norms must be 'batch' (published, couples the samples) or 'expected'; got {norms!r}."
            )
        self.norms = norms
        self.batch_coupled = norms == "batch"

    def step_size(self, score: Tensor, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        alpha = expand_like(self.factor(t), x)
        if self.norms == "expected":
            return 2 * alpha * (self.snr * self.sde.marginal_prob(x, t)[1]) ** 2
        score_norm = norm_except_batch(score).mean()
        if score_norm == 0:
            raise FloatingPointError(
                "langevin: the score is exactly zero for the whole batch (an untrained network?), so its step size is "
                "infinite. Train first, or use \"langevin(norms='expected')\"."
            )
        return 2 * alpha * (self.snr * norm_except_batch(z).mean() / score_norm) ** 2


@CORRECTORS.register("ald")
class AnnealedLangevin(LangevinCorrector):
    """Annealed Langevin dynamics: `e = 2α (snr std(t))²`, NCSN's step tied to the noise level (Song & Ermon 2019)."""

    def __init__(self, sde: SDE, snr: float = 0.16, n_steps: int = 1, chain: int | None = None) -> None:
        super().__init__(sde, snr, n_steps, chain)

    def step_size(self, score: Tensor, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return 2 * expand_like(self.factor(t), x) * (self.snr * self.sde.marginal_prob(x, t)[1]) ** 2


@CORRECTORS.register("none")
class NoneCorrector(Corrector):
    """No correction."""

    def step(self, score_fn: ScoreFn, x: Tensor, t: Tensor, noise: NoiseFn) -> tuple[Tensor, Tensor]:
        return x, x
