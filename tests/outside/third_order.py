"""A third-order multistep predictor of one's own.

In y = x/m and the noise level σ = std/m the probability-flow ODE of every linear SDE reads dy/dσ = ε̂(x, t). Adams and
Bashforth's rule integrates the parabola through the last three ε̂ exactly over the next step, whatever the grid.
"""

import torch

from sde_score.sampling import PREDICTORS, Predictor


def weights(nodes, start, end):
    """∫ of the Lagrange polynomials through `nodes` from start to end."""
    out = []
    for j, node in enumerate(nodes):
        others = [n for k, n in enumerate(nodes) if k != j]
        p = torch.ones(1, dtype=torch.float64)  # ascending coefficients of Π (s − n)/(node − n)
        for n in others:
            p = (torch.cat([torch.zeros(1), p]) - n * torch.cat([p, torch.zeros(1)])) / (node - n)
        power = torch.arange(1, len(p) + 1)
        out.append(float((p / power * (end**power - start**power)).sum()))
    return out


@PREDICTORS.register("ab3")
class AdamsBashforth3(Predictor):
    """Adams-Bashforth of order 3 in the noise level; it starts with orders 1 and 2."""

    def start(self, score, grid, noise):
        m, std = self.sde.marginal_coeffs(torch.cat([grid[:, 0], grid[-1:, 1]]).double())
        m, sigma, history = m.tolist(), (std / m).tolist(), []  # what belongs to a run lives here

        def advance(x, k):
            history.insert(0, score.eps(x, grid[k, 0].expand(len(x))))
            del history[3:]
            steps = weights([sigma[k - j] for j in range(len(history))], sigma[k], sigma[k + 1])
            y = x / m[k] + sum(w * eps for w, eps in zip(steps, history))
            return m[k + 1] * y, m[k + 1] * y

        return advance
