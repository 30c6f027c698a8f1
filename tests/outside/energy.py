"""An energy model of one's own: a network that gives one number, and a parameterisation that reads it as an energy."""

import torch

from sde_score.models import MODELS, PARAMETERIZATIONS, Parameterization
from sde_score.tensors import expand_like


@PARAMETERIZATIONS.register("energy")
class EnergyParameterization(Parameterization):
    """`s = −∇_x E(x, t)`, with `E = F(x, t)`, one number per sample."""

    def check_output(self, out, x):
        if out.shape != x.shape[:1]:
            raise ValueError(f"An energy is one number per sample, ({len(x)},); got {tuple(out.shape)}.")

    def eps(self, network, x, t, **cond):
        return -self.std(x, t) * self.score(network, x, t, **cond)

    def score(self, network, x, t, **cond):
        keep = torch.is_grad_enabled()  # a sampler keeps no graph, training and likelihoods do
        with torch.enable_grad():
            x = x if keep and x.requires_grad else x.detach().requires_grad_(True)
            energy = network(x, self.c_noise(t), **cond)
            return -torch.autograd.grad(energy.sum(), x, create_graph=keep)[0]


@MODELS.register("quadratic")
class Quadratic(torch.nn.Module):
    """`E = ½ Σ x²/(a² + σ²)` for c_noise = ln σ: the exact energy of N(0, a²) under a VE process."""

    def __init__(self, a=0.5):
        super().__init__()
        self.log_a = torch.nn.Parameter(torch.tensor(float(a)).log())

    def forward(self, x, c_noise):
        variance = torch.exp(2 * self.log_a) + torch.exp(2 * c_noise)
        return (0.5 * x**2 / expand_like(variance, x)).flatten(1).sum(1)
