"""The time-conditioned score model: a network, the SDE it was trained for, and the parameterisation between them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sde_score.models.parameterization import PARAMETERIZATIONS, Parameterization
from sde_score.protocols import ScoreFn
from sde_score.sdes.base import SDE


class ScoreModel(nn.Module):
    """`model(x, t) ≈ ∇ log p_t(x)`: the one object that training, samplers and likelihoods share.

    The inner currency is ε̂, the predicted noise in `x_t = m x_0 + std ε`; the outer one is `score = −ε̂/std`.

    Args:
        network: called as `network(x, c_noise, **cond)`; returns a tensor of the shape of `x`.
        sde: the forward process.
        parameterization: a spec, e.g. `"eps"`, `"edm(sigma_data=0.5)"`, `"eps(c_noise='999t', scale_input=False)"`.
    """

    def __init__(self, network: nn.Module, sde: SDE, parameterization: str | Parameterization = "eps") -> None:
        super().__init__()
        self.network = network
        self.sde = sde
        self.parameterization: Parameterization = PARAMETERIZATIONS.build(parameterization, sde)

    def _check(self, x: Tensor, t: Tensor) -> None:
        if t.shape != x.shape[:1]:
            raise ValueError(
                f"t must hold one time per sample: shape {tuple(x.shape[:1])} for x of shape {tuple(x.shape)}, got "
                f"{tuple(t.shape)}."
            )
        if t.device.type == "cpu" and t.is_floating_point() and not torch.compiler.is_compiling():
            self.sde.check_time(t)

    def _network(self, x: Tensor, c_noise: Tensor, **cond) -> Tensor:
        out = self.network(x, c_noise, **cond)
        if out.shape != x.shape:
            raise ValueError(
                f"The network returned shape {tuple(out.shape)} for x of shape {tuple(x.shape)}; they must be equal."
            )
        # an autocast network answers in bfloat16; the arithmetic around it stays in x's precision
        return out.to(x.dtype)

    def eps(self, x: Tensor, t: Tensor, **cond) -> Tensor:
        """ε̂(x, t): `(B, *)`."""
        self._check(x, t)
        return self.parameterization.eps(self._network, x, t, **cond)

    def eps_at_index(self, x: Tensor, index: Tensor, **cond) -> Tensor:
        """ε̂ at state `index` of the discrete chain the parameterisation was made for."""
        self._check(x, index)
        return self.parameterization.eps_at_index(self._network, x, index, **cond)

    def forward(self, x: Tensor, t: Tensor, **cond) -> Tensor:
        """The score at `x` of shape `(B, *)` and `t` of shape `(B,)`."""
        self._check(x, t)
        return self.parameterization.score(self._network, x, t, **cond)

    def denoise(self, x: Tensor, t: Tensor, **cond) -> Tensor:
        """The posterior mean of the data, `(x − std ε̂)/m`."""
        m, std = self.parameterization.coeffs(x, t)
        return (x - std * self.eps(x, t, **cond)) / m

    def compiled(self) -> ScoreModel:
        """This model with its network through `torch.compile`; weights, buffers and mode are shared.

        For training and sampling: derivatives of the score in forward mode need the model as it is, and so does its
        `state_dict`. The first call compiles, and so may one with another batch size. On a CPU dropout draws the same
        numbers as without compilation, and calls go through C++.
        """
        on_cpu = all(p.device.type == "cpu" for p in self.parameters())
        # Not torch's own choice of channels_last on the CPU: it copies weights and dropout masks at every call.
        options = {"fallback_random": True, "cpp_wrapper": True, "layout_optimization": False} if on_cpu else {}
        return ScoreModel(torch.compile(self.network, options=options), self.sde, self.parameterization)

    def score_fn(self, **cond) -> ScoreFn:
        """This model as a score function with its conditions bound, in evaluation mode, without gradients for the
        weights.
        """
        return BoundScore(self, cond)


class BoundScore:
    """A score model with its conditions (such as class labels `y`) bound."""

    def __init__(self, model: ScoreModel, cond: dict[str, Tensor]) -> None:
        self.model, self.cond = model, cond

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model(x, t, **self.cond)

    def select(self, members: list[int]) -> BoundScore:
        """The same score for some members of the batch."""
        index = torch.as_tensor(members)
        return BoundScore(self.model, {k: v[index.to(v.device)] for k, v in self.cond.items()})
