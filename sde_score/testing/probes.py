"""What the checks put to an object under test: noise of their own, states, other devices, single samples; and what they
say when the answer is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sde_score.sdes.base import SDE
from sde_score.sdes.linear import LinearSDE
from sde_score.tensors import with_derivative
from sde_score.testing.checks import CheckFailed, _require

SHAPES = ((3,), (2, 5), (3, 4, 4), (2, 3, 2, 2))
Shape = tuple[int, ...]
Function = Callable[..., Tensor | tuple[Tensor, ...]]


class Noise:
    """A NoiseFn of its own, so that checks repeat and the global generator is left alone."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, dtype=x.dtype, generator=self.generator)

    def uniform(self, x: Tensor) -> Tensor:
        return torch.rand(x.shape, dtype=x.dtype, generator=self.generator)


def diagonal_shape(sde: SDE) -> Shape:
    """Shape of the coefficients of one time: () for a scalar SDE, (C, ...) for a diagonal one."""
    if not isinstance(sde, LinearSDE):
        return ()
    return tuple(sde.marginal_coeffs(torch.full((2,), sde.T, dtype=torch.float64))[1].shape[1:])


def shapes_of(sde: SDE, shape: Shape | None = None) -> list[Shape]:
    """Sample shapes to try: the one given, or several; for a diagonal SDE those its coefficients fit, with axes of
    length one widened."""
    if shape is not None:
        return [tuple(shape)]
    diagonal = diagonal_shape(sde)
    if not diagonal:
        return list(SHAPES)
    widened = tuple(4 if n == 1 and k else n for k, n in enumerate(diagonal))
    return [widened, (*widened, 3)]


def states_of(sde: SDE, shape: Shape, n: int, seed: int = 0) -> Tensor:
    """States where the process may be found, float64: draws of the prior, since not every SDE lives on all numbers."""
    return sde.prior_sampling((n, *shape), noise=Noise(seed), dtype=torch.float64).double()


def times_like(sde: SDE, n: int, low: float = 0.3, high: float = 0.9) -> Tensor:
    """`n` different times between two parts of T, float64."""
    return torch.linspace(low, high, n, dtype=torch.float64) * sde.T


def knows_marginals(sde: SDE, shape: Shape) -> bool:
    """Does the SDE know the law of x_t given x_0?"""
    try:
        sde.marginal_prob(torch.zeros(2, *shape, dtype=torch.float64), times_like(sde, 2))
    except NotImplementedError:
        return False
    return True


def parts(value: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors of an answer."""
    return (value,) if isinstance(value, Tensor) else tuple(value)


def require_device(name: str, function: Function, *shapes: Shape, waits: bool = False) -> None:
    """On the `meta` device the answer stays there: no constant is pinned to the CPU, as would crash on an accelerator.

    `waits`: may it look at the values of a tensor? Then it cannot be judged here beyond that place.
    """
    try:
        answers = parts(function(*(torch.empty(s, device="meta") for s in shapes)))
    except (RuntimeError, NotImplementedError) as error:
        if waits and "item()" in str(error):
            return
        raise CheckFailed(
            f"{name} fails on another device than the CPU ({str(error).splitlines()[0]}). Make constants from t or x: "
            "torch.as_tensor(c, device=t.device, dtype=t.dtype); and use no .item(), float(t) or numpy."
        ) from None
    for answer in answers:
        _require(
            answer.device.type == "meta",
            f"{name} returned a tensor on {answer.device} for data on another device: it builds its result from a "
            "constant.",
        )


def require_dtype(name: str, function: Function, *arguments: Tensor) -> None:
    """float32 in, float32 out; float64 in, float64 out."""
    for dtype in (torch.float32, torch.float64):
        for answer in parts(function(*(a.to(dtype) for a in arguments))):
            _require(
                answer.dtype == dtype,
                f"{name} turns {dtype} into {answer.dtype}: make constants of the dtype of its arguments.",
            )


def require_untouched(name: str, function: Function, *arguments: Tensor) -> None:
    """The arguments are the caller's."""
    given = [a.clone() for a in arguments]
    function(*given)
    for number, (now, before) in enumerate(zip(given, arguments), 1):
        _require(
            torch.equal(now, before),
            f"{name} changes its argument number {number} in place: the caller goes on with it. Write x = x + ..., not "
            "x += ..., and no method whose name ends in _.",
        )


def require_alone(name: str, function: Function, *arguments: Tensor, tolerance: float = 1e-9) -> None:
    """The answer for a sample is the same in a batch and alone."""
    whole = parts(function(*(a.clone() for a in arguments)))
    for i in range(len(arguments[0])):
        for together, alone in zip(whole, parts(function(*(a[i : i + 1].clone() for a in arguments)))):
            together = together[i : i + 1] if len(together) == len(arguments[0]) else together
            gap = float((together - alone).abs().max())
            _require(
                gap <= tolerance * (1e-3 + float(alone.abs().max())),
                f"{name} of one sample depends on the other samples or times in the batch (by {gap:.2g}).",
            )


def basis(x: Tensor) -> Tensor:
    """The unit vectors of the samples' space, `(D, *)`."""
    dim = x[0].numel()
    return torch.eye(dim, dtype=x.dtype).reshape(dim, *x.shape[1:])


def noise_matrix(sde: SDE, x: Tensor, t: Tensor) -> Tensor:
    """G(x, t) as matrices over the flattened samples, `(B, D, D)`: its columns are `apply_diffusion` of unit
    vectors."""
    columns = [sde.apply_diffusion(x, t, e.expand_as(x)).reshape(len(x), -1) for e in basis(x)]
    return torch.stack(columns, dim=2)


def worst(error: Tensor, t: Tensor) -> tuple[float, float]:
    """The largest entry of `error` (B, P), and its time; NaN counts as largest."""
    row = error.max(1).values
    index = int(torch.where(torch.isnan(row), torch.inf, row).argmax())
    return float(row[index]), float(t[index])


def time_slopes(curves: Callable[[Tensor], tuple[Tensor, ...]], t: Tensor, T: float) -> list[list[Tensor]]:
    """Derivatives in time of elementwise functions, by automatic differentiation where the code allows it, and by
    differences: a closed form that leaves autograd is right all the same, and so is one with a kink."""
    found = []
    try:
        found.append(list(with_derivative(curves, t)[1]))
    except (RuntimeError, NotImplementedError, TypeError):
        pass
    h = 1e-4 * torch.minimum(t, T - t).clamp(min=1e-9 * T)
    values = [curves(t + k * h) for k in (-2, -1, 1, 2)]
    slopes = []
    for far_down, down, up, far_up in zip(*values):
        step = h.reshape(-1, *(1,) * (up.ndim - 1))
        slopes.append((8 * (up - down) - (far_up - far_down)) / (12 * step))
    return [*found, slopes]
