"""The reverse SDE through torchsde, driven by Brownian paths that belong to the samples and not to the steps."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_score.protocols import Constraint, NoiseFn, ScoreFn
from sde_score.sampling.base import SAMPLERS, Callback, CountedScore, Progress, Sampler, SampleResult, check_start
from sde_score.sdes.base import SDE
from sde_score.tensors import draw_uniform, mix_seed, require_finite

DIGITS = 6  # the paths are resolved to this many decimals of their interval


def brownian_paths(seeds: list[int], like: Tensor, end: float):
    """A Brownian path on `[0, end]` for each row of `like`, each with its own seed, as one Brownian motion for
    torchsde.

    Each is a `torchsde.BrownianInterval` on [0, 1], scaled, whose tree is halved at fixed places: split at the times
    asked for, as by default, the path would change with the steps. Times are rounded as the tree's are; otherwise its
    search does not end.
    """
    import torchsde

    class Paths(torchsde.BaseBrownian):
        dtype, device, shape = like.dtype, like.device, like.shape
        levy_area_approximation = "space-time"  # srk needs it

        def __init__(self) -> None:
            super().__init__()
            settings = {
                "size": (1, like.shape[1]), "dtype": like.dtype, "device": like.device,
                "halfway_tree": True, "tol": 10.0**-DIGITS, "levy_area_approximation": self.levy_area_approximation,
            }  # fmt: skip
            self.paths = [torchsde.BrownianInterval(0.0, 1.0, entropy=seed % 2**31, **settings) for seed in seeds]

        def __call__(self, ta, tb=None, return_U: bool = False, return_A: bool = False):
            if return_A:
                raise NotImplementedError("Methods that need a Lévy area are not offered: the noise here is diagonal.")
            begin, stop = (round(min(max(float(t) / end, 0.0), 1.0), DIGITS) for t in (ta, tb))
            if begin == stop:
                zero = torch.zeros_like(like)
                return (zero, zero) if return_U else zero
            pieces = [path(begin, stop, return_U=return_U) for path in self.paths]
            if not return_U:
                return torch.cat(pieces) * end**0.5
            increments, areas = (torch.cat(column) for column in zip(*pieces))
            return increments * end**0.5, areas * end**1.5

        def __repr__(self) -> str:
            return f"{len(self.paths)} Brownian paths on [0, {end:g}]"

    return Paths()


class _ReverseInTime:
    """The reverse process with increasing time `s = T − t`, on flat states, as torchsde wants it."""

    noise_type = "diagonal"

    def __init__(self, sde: SDE, score: ScoreFn, eta: float, shape: torch.Size, sde_type: str) -> None:
        self.sde, self.reverse, self.shape, self.sde_type = sde, sde.reverse(score, eta=eta), shape, sde_type

    def _state(self, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = y.reshape(len(y), *self.shape[1:])
        return x, (self.sde.T - s).clamp(min=0).to(x).expand(len(x))

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        x, t = self._state(s, y)
        drift = self.reverse.drift(x, t)
        require_finite(drift, f"The reverse drift at t = {float(t[0]):.4g}")
        return -drift.reshape(y.shape)

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        x, t = self._state(s, y)
        return self.reverse.diffusion(x, t).expand_as(x).reshape(y.shape)


@SAMPLERS.register("sde")
class SDESampler(Sampler):
    """The reverse SDE through torchsde, driven by Brownian paths that are fixed by the seed and do not change with the
    step.

    Halving `dt` refines the same path, so results converge sample by sample. Every sample has a Brownian interval of
    its own, seeded from its own noise.

    Args:
        solver: torchsde's method: Itô `"euler"`, `"milstein"`, `"srk"`; Stratonovich `"heun"`, `"midpoint"`,
            `"euler_heun"` (the same process, since the diffusion does not depend on x).
        steps: number of steps of a fixed-step run, and the first step of an adaptive one.
        adaptive: control the step by `rtol` and `atol`. Samples are then solved one at a time, so that none depends on
            its neighbours.
        eta: as in `SDE.reverse`.
    """

    STRATONOVICH = ("heun", "midpoint", "euler_heun", "log_ode")

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
        if self.denoise == "mean":
            raise ValueError(
                "torchsde returns no mean before noise; for the sampler 'sde' choose denoise 'tweedie' or 'none'."
            )
        known = ("euler", "milstein", "srk", *self.STRATONOVICH[:3])
        if solver not in known:
            raise ValueError(f"torchsde has no method {solver!r} for diagonal noise here. Known: {', '.join(known)}.")
        sde.require_diagonal_noise("The sampler 'sde'")
        if solver in self.STRATONOVICH and not sde.additive_noise:
            raise ValueError(
                f"The solver {solver!r} reads an SDE in the sense of Stratonovich, another process when the noise "
                "depends on x. Choose an Itô solver: 'srk', 'milstein' or 'euler'."
            )
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie between 0 (probability-flow ODE) and 1 (reverse SDE); got {eta}.")
        if steps < 1:
            raise ValueError(f"A sampler needs at least one step; got steps={steps}.")
        self.method, self.steps, self.adaptive, self.rtol, self.atol, self.eta = (
            solver,
            int(steps),
            adaptive,
            rtol,
            atol,
            eta,
        )

    def __call__(
        self,
        score_fn: ScoreFn,
        x_T: Tensor,
        *,
        noise: NoiseFn = torch.randn_like,
        constraint: Constraint | None = None,
        callback: Callback | None = None,
    ) -> SampleResult:
        check_start(x_T)
        if constraint is not None:
            raise ValueError("The sampler 'sde' cannot apply a constraint between its stages; use method 'pc'.")
        words = (draw_uniform(noise, x_T.new_empty(len(x_T), 3, dtype=torch.float32)) * 2**24).long().tolist()
        seeds = [mix_seed(*row) for row in words]
        score = CountedScore(score_fn)
        groups = [[i] for i in range(len(x_T))] if self.adaptive else [list(range(len(x_T)))]
        parts = []
        for done, group in enumerate(groups):
            parts.append(self._solve(score, x_T[group], [seeds[i] for i in group], group))
            if callback is not None:
                callback(Progress(done + 1, len(groups), self.t_min, parts[-1], parts[-1], score.calls))
        x = torch.cat(parts)
        solving = score.calls
        x = self.finish(score, x, x, noise)
        self.check_finite(x, self.steps, self.t_min)
        # each sample of an adaptive run made calls of its own: the mean of them
        nfe = round(solving / len(groups)) + score.calls - solving
        return SampleResult(x, nfe, {"score_calls": score.calls})

    def _solve(self, score: ScoreFn, x: Tensor, seeds: list[int], members: list[int]) -> Tensor:
        import torchsde

        flat = x.reshape(len(x), -1)
        end = self.sde.T - self.t_min
        # float64 times: torchsde compares its bounds exactly, and float32 ones miss each other
        ts = torch.tensor([0.0, end], dtype=torch.float64, device=x.device)
        path = brownian_paths(seeds, flat, end)
        sde_type = "stratonovich" if self.method in self.STRATONOVICH else "ito"
        system = _ReverseInTime(
            self.sde, score if not self.adaptive else _one_of(score, members), self.eta, x.shape, sde_type
        )
        with torch.no_grad():
            ys = torchsde.sdeint(
                system,
                flat,
                ts,
                bm=path,
                method=self.method,
                dt=end / self.steps,
                adaptive=self.adaptive,
                rtol=self.rtol,
                atol=self.atol,
                dt_min=end * 1e-4,
            )
        return ys[-1].reshape(x.shape)


def _one_of(score: ScoreFn, members: list[int]) -> ScoreFn:
    """A score for some members of the batch. A score bound to per-sample conditions may offer `select(indices)`."""
    select = getattr(getattr(score, "score_fn", score), "select", None)
    if select is None:
        return score
    chosen = select(members)

    def call(x: Tensor, t: Tensor) -> Tensor:
        score.calls += 1
        return chosen(x, t)

    return call
