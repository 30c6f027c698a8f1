"""The reverse SDE through torchsde, driven by Brownian paths that belong to the samples and not to the steps."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_score.protocols import ScoreFn
from sde_score.sampling.base import SAMPLERS, Context, End, Sampler
from sde_score.sampling.brownian import BrownianPaths
from sde_score.sampling.predictors import check_eta
from sde_score.sdes.base import SDE
from sde_score.tensors import draw_uniform, mix_seed, require_finite, rows

ITO = ("euler", "milstein", "srk")
STRATONOVICH = ("heun", "midpoint", "euler_heun")


class _ReverseInTime:
    """The reverse process with increasing time `s = T − t`, on flat states, as torchsde wants it.

    torchsde asks for the drift of one state several times within a step: the last answers are kept, so that the
    network is asked only for distinct states. Noise that does not depend on x is declared additive, for which
    torchsde's srk takes two stages instead of four.
    """

    def __init__(self, sde: SDE, score: ScoreFn, eta: float, shape: torch.Size, sde_type: str) -> None:
        self.sde, self.reverse, self.shape, self.sde_type = sde, sde.reverse(score, eta=eta), shape, sde_type
        if sde.additive_noise:
            self.noise_type = "additive"
            self.g_prod = lambda s, y, v: self._diffusion(s, y) * v
        else:
            self.noise_type = "diagonal"
            self.g = self._diffusion
        self._known: list[tuple[float, Tensor, Tensor]] = []

    def _state(self, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = y.reshape(len(y), *self.shape[1:])
        return x, (self.sde.T - s).clamp(min=0).to(x).expand(len(x))

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        for time, state, answer in self._known:
            if time == float(s) and (state is y or torch.equal(state, y)):
                return answer
        x, t = self._state(s, y)
        drift = self.reverse.drift(x, t)
        require_finite(drift.detach(), f"The reverse drift at t = {float(t[0]):.4g}")
        answer = -rows(drift)
        self._known = [(float(s), y, answer), *self._known[:2]]
        return answer

    def _diffusion(self, s: Tensor, y: Tensor) -> Tensor:
        x, t = self._state(s, y)
        return rows(self.reverse.diffusion(x, t).expand_as(x))


@SAMPLERS.register("sde")
class SDESampler(Sampler):
    """The reverse SDE through torchsde, driven by Brownian paths that are fixed by the seed and do not change with the
    step.

    Halving the step refines the same path, so results converge sample by sample. Every sample has a path of its own,
    seeded from its own noise; those of a batch are drawn together.

    Args:
        solver: torchsde's method: Itô `"euler"`, `"milstein"` (one evaluation a step), `"srk"` (two, three where the
            noise depends on x); Stratonovich `"heun"`, `"midpoint"`, `"euler_heun"` (the same process where the
            diffusion does not depend on x).
        steps: number of steps of a fixed-step run, and the first step of an adaptive one.
        adaptive: control the step by `rtol` and `atol`. Samples are then solved one at a time, so that none depends on
            its neighbours.
        eta: as in `SDE.reverse`.
    """

    has_mean = False

    def __init__(
        self,
        sde: SDE,
        solver: str = "srk",
        *,
        steps: int = 200,
        adaptive: bool = False,
        rtol: float = 1e-3,
        atol: float = 1e-3,
        eta: float = 1.0,
        t_min: float | None = None,
        denoise: str = "tweedie",
    ) -> None:
        super().__init__(sde, t_min=t_min, denoise=denoise)
        if solver not in ITO + STRATONOVICH:
            raise ValueError(
                f"torchsde has no method {solver!r} for diagonal noise here. Known: {', '.join(ITO + STRATONOVICH)}."
            )
        sde.require_diagonal_noise("The sampler 'sde'")
        if solver in STRATONOVICH and not sde.additive_noise:
            raise ValueError(
                f"The solver {solver!r} reads an SDE in the sense of Stratonovich, another process when the noise "
                "depends on x. Choose an Itô solver: 'srk', 'milstein' or 'euler'."
            )
        if steps < 1:
            raise ValueError(f"A sampler needs at least one step; got steps={steps}.")
        self.method, self.steps, self.adaptive = solver, int(steps), adaptive
        self.rtol, self.atol, self.eta = rtol, atol, check_eta(eta)

    def check_constraint(self) -> None:
        if self.adaptive:
            raise ValueError("With adaptive=True each sample takes steps of its own, between which no constraint fits.")

    def run(self, x: Tensor, context: Context) -> End:
        words = (draw_uniform(context.noise, x.new_empty(len(x), 3, dtype=torch.float32)) * 2**24).long().tolist()
        seeds = [mix_seed(*row) for row in words]
        if not self.adaptive:
            return self._fixed(x, context, seeds)
        # a step that fitted all samples would tie each to its neighbours
        parts = []
        for i in range(len(x)):
            system, path = self._system(x[i : i + 1], context.score.select([i]), seeds[i : i + 1])
            parts.append(self._solve(system, path, x[i : i + 1], 0.0, self.sde.T - self.t_min))
            context.tell(i + 1, self.t_min, parts[-1], parts[-1])
        return End(torch.cat(parts), step=self.steps)

    def _fixed(self, x: Tensor, context: Context, seeds: list[int]) -> End:
        system, path = self._system(x, context.score, seeds)
        span = self.sde.T - self.t_min
        context.steps = self.steps
        for k in range(self.steps):
            begin, stop = span * k / self.steps, span * (k + 1) / self.steps
            x = self._solve(system, path, x, begin, stop)
            t = self.t_min if k + 1 == self.steps else self.sde.T - stop
            self.check_finite(x, k, t)
            x = context.constrained(x, t, k + 1)
            context.tell(k + 1, t, x, x)
        return End(x, step=self.steps)

    def _system(self, x: Tensor, score: ScoreFn, seeds: list[int]) -> tuple[_ReverseInTime, BrownianPaths]:
        sde_type = "stratonovich" if self.method in STRATONOVICH else "ito"
        system = _ReverseInTime(self.sde, score, self.eta, x.shape, sde_type)
        return system, BrownianPaths(seeds, rows(x), self.sde.T - self.t_min)

    def _solve(self, system: _ReverseInTime, path: BrownianPaths, x: Tensor, begin: float, stop: float) -> Tensor:
        """One fixed step, or the whole way in adaptive ones."""
        import torchsde

        # float64 times: torchsde compares its bounds exactly, and float32 ones miss each other
        ts = torch.tensor([begin, stop], dtype=torch.float64, device=x.device)
        span = stop - begin
        with torch.random.fork_rng([x.device] if x.is_cuda else []):  # torchsde's checks draw a number
            ys = torchsde.sdeint(
                system,
                rows(x),
                ts,
                bm=_for_torchsde(path),
                method=self.method,
                dt=span / self.steps if self.adaptive else span,
                adaptive=self.adaptive,
                rtol=self.rtol,
                atol=self.atol,
                dt_min=span * 1e-4,
            )
        return ys[-1].reshape(x.shape)


def _for_torchsde(path: BrownianPaths):
    """The paths as torchsde's `BaseBrownian`."""
    import torchsde

    class Paths(torchsde.BaseBrownian):
        dtype, device, shape = path.like.dtype, path.like.device, path.like.shape
        levy_area_approximation = "space-time"  # srk needs it

        def __call__(self, ta, tb=None, return_U: bool = False, return_A: bool = False):
            if return_A:
                raise NotImplementedError("Methods that need a Lévy area are not offered: the noise here is diagonal.")
            increment, area = path.increment(float(ta), float(tb))
            return (increment, area) if return_U else increment

        def __repr__(self) -> str:
            return f"{len(path.like)} Brownian paths on [0, {path.end:g}]"

    return Paths()
