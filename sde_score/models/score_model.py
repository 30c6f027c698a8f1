"""The time-conditioned score model: a network, the SDE it was trained for, and the parameterisation between them."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sde_score.models.parameterization import PARAMETERIZATIONS, Parameterization
from sde_score.score import Prediction, Score
from sde_score.sdes.base import SDE, require_sde


class ScoreModel(nn.Module, Score):
    """`model(x, t) ≈ ∇ log p_t(x)`: the one object that training, samplers and likelihoods share.

    The inner currency is ε̂, the predicted noise in `x_t = m x_0 + std ε`; the outer one is `score = −ε̂/std`. As a
    module the model is live: in the mode it is in, with gradients for its weights. `score_fn` gives it at rest.

    Args:
        network: called as `network(x, c_noise, **cond)`; returns what the parameterisation expects, most often a tensor
            of the shape of `x`.
        sde: the forward process.
        parameterization: a spec, e.g. `"eps"`, `"edm(sigma_data=0.5)"`, `"eps(c_noise='999t', scale_input=False)"`.
    """

    def __init__(self, network: nn.Module, sde: SDE, parameterization: str | Parameterization = "eps") -> None:
        super().__init__()
        self.network = network
        self.sde = require_sde(sde)
        self.parameterization: Parameterization = PARAMETERIZATIONS.build(parameterization, sde)

    def _check(self, x: Tensor, t: Tensor) -> None:
        if t.shape != x.shape[:1]:
            raise ValueError(
                f"t must hold one time per sample: shape {tuple(x.shape[:1])} for x of shape {tuple(x.shape)}, got "
                f"{tuple(t.shape)}."
            )
        if torch.compiler.is_compiling():
            return
        if not x.is_floating_point():
            raise TypeError(
                f"x holds {x.dtype}; a score model takes scaled data, floating-point numbers: encode them with the "
                "run's scaler, or write x.float()."
            )
        if t.device.type == "cpu" and t.is_floating_point():
            self.sde.check_time(t)

    def _network(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        try:
            out = self.network(x, c_noise, **cond)
        except RuntimeError as error:
            self._explain_dtype(x, error)
            raise
        self.parameterization.check_output(out, x)
        # an autocast network answers in bfloat16; the arithmetic around it stays in x's precision
        return out.to(x.dtype)

    def _explain_dtype(self, x: Tensor, error: RuntimeError) -> None:
        """Say it in words when the data are of another precision than the weights."""
        weights = {p.dtype for p in self.parameters() if p.is_floating_point()}
        if weights and x.dtype not in weights and not torch.is_autocast_enabled(x.device.type):
            (dtype, *_) = sorted(weights, key=str)
            raise TypeError(
                f"x is {x.dtype} and the weights of this model are {dtype}: write x.to({dtype}) or model.to({x.dtype})."
            ) from error

    def predict(self, x: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        """Score, ε̂ and posterior mean from one call of the network."""
        self._check(x, t)
        return self.parameterization.predict(self._network, x, t, **cond)

    def eps(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """ε̂(x, t): `(B, *)`."""
        self._check(x, t)
        return self.parameterization.eps(self._network, x, t, **cond)

    def eps_at_index(self, x: Tensor, index: Tensor, **cond: Tensor) -> Tensor:
        """ε̂ at state `index` of the discrete chain the parameterisation was made for."""
        self._check(x, index)
        return self.parameterization.eps_at_index(self._network, x, index, **cond)

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """The score at `x` of shape `(B, *)` and `t` of shape `(B,)`."""
        self._check(x, t)
        return self.parameterization.score(self._network, x, t, **cond)

    def no_condition(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The network's values for "no condition". Raises `ValueError` for a network that has none."""
        known = getattr(self.network, "no_condition", None)
        if known is None:
            raise ValueError(
                f"The network {type(self.network).__name__} has no value that means 'no condition' (a method "
                "no_condition(cond)), so it cannot be evaluated without one."
            )
        return known(cond)

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

    def at_rest(self) -> ScoreModel:
        """The same weights in evaluation mode and without gradients: a second module over the same memory.

        It follows updates of the weights in place, as by an optimiser or `load_state_dict`; move the model to its
        device first. Gradients still reach `x`.
        """
        shared: dict[int, object] = {id(self.sde): self.sde}
        shared |= {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in self.parameters()}
        shared |= {id(b): b for b in self.buffers()}
        return copy.deepcopy(self, shared).eval()

    def score_fn(self, *, compile: bool = False, **cond: Tensor) -> Score:
        """This model at rest, as a score with its conditions bound: in evaluation mode, without gradients for the
        weights, whatever the mode of the model itself. `compile=True` runs its network under `torch.compile`.
        """
        model = self.at_rest()
        return (model.compiled() if compile else model).bind(**cond)
