"""The baseline of `tools/benchmark.py`: the published arithmetic, written down plainly, on the weights of our networks.

What is plain about it: FIR filters insert zeros, pad and convolve one channel at a time with a kernel that is built at
every call; shortcuts are convolutions, sums and factors one after the other; every block applies the activation to the
conditioning vector; the linear maps of attention are einsums between transposed layouts, and its weights are written
out; gradient norm, Adam and EMA go tensor by tensor with temporaries; the module is put into training or evaluation
mode at every call; the likelihood takes score and divergence in two passes through SciPy's RK45 on the joint batch.

Nothing in it is made slow on purpose, and nothing outside these points differs: convolutions, norms and linear layers
are the same PyTorch calls. `tests/test_benchmark.py` holds it against recorded outputs of the published system.

Source: Song et al., arXiv:2011.13456, apps. C, D, G and H. Shapes: x (B, C, H, W); t (B,).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_score.models.blocks import AttentionBlock, ResidualBlock
from sde_score.models.layers import Dropout, GroupNorm, ImageConv
from sde_score.models.noise_level import NoiseConditioning
from sde_score.models.resample import Downsample, DownsampleConv, Upsample, UpsampleConv

# --- resampling -------------------------------------------------------------------------------------------------------


def kernel_of(taps: Sequence[float] | None, factor: int, gain: float) -> np.ndarray:
    """The outer product of the taps, of sum `gain`; a box of length `factor` for None; (K, K)."""
    kernel = np.asarray([1.0] * factor if taps is None else taps, dtype=np.float32)
    if kernel.ndim == 1:
        kernel = np.outer(kernel, kernel)
    return kernel / kernel.sum() * gain


def upfirdn2d(x: Tensor, kernel: np.ndarray, *, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """Zeros after every pixel, padding (or cropping), a true convolution, every `down`-th pixel."""
    batch, channels, height, width = x.shape
    images = x.reshape(batch * channels, 1, height, 1, width, 1)
    filled = F.pad(images, (0, up - 1, 0, 0, 0, up - 1)).reshape(batch * channels, 1, height * up, width * up)
    padded = F.pad(filled, (pad[0], pad[1], pad[0], pad[1]))
    weight = torch.tensor(kernel, dtype=x.dtype, device=x.device).flip(0, 1)[None, None]
    out = F.conv2d(padded, weight)[:, :, ::down, ::down]
    return out.reshape(batch, channels, *out.shape[2:])


def upsample2d(x: Tensor, taps: Sequence[float] | None, factor: int = 2) -> Tensor:
    """(B, C, H, W) -> (B, C, factor H, factor W)."""
    kernel = kernel_of(taps, factor, factor**2)
    p = len(kernel) - factor
    return upfirdn2d(x, kernel, up=factor, pad=((p + 1) // 2 + factor - 1, p // 2))


def naive_upsample2d(x: Tensor) -> Tensor:
    """Every pixel four times: (B, C, H, W) -> (B, C, 2H, 2W)."""
    batch, channels, height, width = x.shape
    copies = x.reshape(batch, channels, height, 1, width, 1).repeat(1, 1, 1, 2, 1, 2)
    return copies.reshape(batch, channels, 2 * height, 2 * width)


def downsample2d(x: Tensor, taps: Sequence[float] | None, factor: int = 2) -> Tensor:
    """(B, C, H, W) -> (B, C, H / factor, W / factor)."""
    kernel = kernel_of(taps, factor, 1.0)
    p = len(kernel) - factor
    return upfirdn2d(x, kernel, down=factor, pad=((p + 1) // 2, p // 2))


def downsample_conv2d(x: Tensor, weight: Tensor, taps: Sequence[float] | None, factor: int = 2) -> Tensor:
    """Filter, then convolve with stride `factor`: (B, out, H / factor, W / factor)."""
    kernel = kernel_of(taps, factor, 1.0)
    p = len(kernel) - factor + weight.shape[-1] - 1
    return F.conv2d(upfirdn2d(x, kernel, pad=((p + 1) // 2, p // 2)), weight, stride=factor)


def upsample_conv2d(x: Tensor, weight: Tensor, taps: Sequence[float] | None, factor: int = 2) -> Tensor:
    """Transposed convolution with stride `factor`, then filter: (B, out, factor H, factor W)."""
    kernel = kernel_of(taps, factor, factor**2)
    p = len(kernel) - factor - (weight.shape[-1] - 1)
    x = F.conv_transpose2d(x, weight.flip(2, 3).transpose(0, 1), stride=factor)
    return upfirdn2d(x, kernel, pad=((p + 1) // 2 + factor - 1, p // 2 + 1))


class PlainUpsample(Upsample):
    def forward(self, x: Tensor) -> Tensor:
        return naive_upsample2d(x) if self.taps is None else upsample2d(x, self.taps)


class PlainDownsample(Downsample):
    def forward(self, x: Tensor) -> Tensor:
        if self.taps is None:
            return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).mean((3, 5))
        return downsample2d(x, self.taps)


class PlainUpsampleConv(UpsampleConv):
    def forward(self, x: Tensor) -> Tensor:
        if self.taps is None:
            return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), self.weight, self.bias, padding=1)
        return upsample_conv2d(x, self.weight, self.taps) + self.bias.reshape(1, -1, 1, 1)


class PlainDownsampleConv(DownsampleConv):
    def forward(self, x: Tensor) -> Tensor:
        if self.taps is None:
            return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, stride=2)
        return downsample_conv2d(x, self.weight, self.taps) + self.bias.reshape(1, -1, 1, 1)


# --- attention --------------------------------------------------------------------------------------------------------


def pixelwise(x: Tensor, layer: nn.Linear) -> Tensor:
    """A linear map of the channels of every pixel: to channels last, the product, and back."""
    out = torch.einsum("bhwi,io->bhwo", x.permute(0, 2, 3, 1), layer.weight.t()) + layer.bias
    return out.permute(0, 3, 1, 2)


class PlainAttention(AttentionBlock):
    def forward(self, h: Tensor, *, plain: bool = False) -> Tensor:
        batch, channels, height, width = h.shape
        normed = self.norm(h)
        q, k, v = (pixelwise(normed, layer) for layer in (self.query, self.key, self.value))
        weights = torch.einsum("bchw,bcij->bhwij", q, k) * channels**-0.5
        weights = torch.softmax(weights.reshape(batch, height, width, height * width), dim=-1)
        mixed = torch.einsum("bhwij,bcij->bchw", weights.reshape(batch, height, width, height, width), v)
        out = h + pixelwise(mixed, self.out)
        return out * self.factor if self.factor != 1.0 else out


# --- residual blocks --------------------------------------------------------------------------------------------------


class PlainConditioning(NoiseConditioning):
    """Leaves the last activation to every block."""

    def forward(self, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        return self.linear2(self.act(self.linear1(self.embedding(c_noise))))


class PlainResidualBlock(ResidualBlock):
    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        g = self.act(self.norm1(h))
        if self.resample is not None:
            g, h = self.resample(g), self.resample(h)
        g = self.conv1(g)
        g = g + self.emb(self.act(emb))[:, :, None, None]
        g = self.conv2(self.dropout(self.act(self.norm2(g))))
        if self.shortcut is not None:
            h = self.shortcut(h)
        out = h + g
        return out * self.factor if self.factor != 1.0 else out


PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    Upsample: PlainUpsample,
    Downsample: PlainDownsample,
    UpsampleConv: PlainUpsampleConv,
    DownsampleConv: PlainDownsampleConv,
    AttentionBlock: PlainAttention,
    NoiseConditioning: PlainConditioning,
    ResidualBlock: PlainResidualBlock,
    Dropout: nn.Dropout,
    GroupNorm: nn.GroupNorm,
    ImageConv: nn.Conv2d,
}
"""For each module of ours one that has the same parameters and computes the published way."""


def plain_network(network: nn.Module) -> nn.Module:
    """A copy of an NCSN++ or DDPM++ network, told the noise level but no classes, that computes the published way."""
    network = copy.deepcopy(network)
    for module in network.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return network


# --- processes and scores ---------------------------------------------------------------------------------------------


def each(value: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return value[:, None, None, None]


class PlainVE:
    """Noise levels sigma(t) = sigma_min (sigma_max / sigma_min)^t; the network is told sigma and gives the score."""

    T, t_train, t_sample = 1.0, 1e-5, 1e-5

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0, n: int = 1000) -> None:
        self.sigma_min, self.sigma_max, self.n = sigma_min, sigma_max, n
        self.sigmas = torch.exp(torch.linspace(math.log(sigma_min), math.log(sigma_max), n))

    def marginal(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def drift_diffusion(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self.marginal(x, t)[1]
        return torch.zeros_like(x), sigma * math.sqrt(2 * (math.log(self.sigma_max) - math.log(self.sigma_min)))

    def discrete_step(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        index = (t * (self.n - 1) / self.T).long()
        sigmas = self.sigmas.to(x.device)
        below = torch.where(index == 0, torch.zeros_like(t), sigmas[index - 1])
        return torch.zeros_like(x), torch.sqrt(sigmas[index] ** 2 - below**2)

    def score(self, network: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        return network(x, self.marginal(torch.zeros_like(x), t)[1])

    def prior_logp(self, z: Tensor) -> Tensor:
        dim, variance = z[0].numel(), self.sigma_max**2
        return -dim / 2 * math.log(2 * math.pi * variance) - torch.sum(z**2, dim=(1, 2, 3)) / (2 * variance)


class PlainVP:
    """beta(t) = beta_min + t (beta_max - beta_min); the network is told 999 t and gives the noise."""

    T, t_train, t_sample = 1.0, 1e-5, 1e-3

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, n: int = 1000) -> None:
        self.beta_min, self.beta_max, self.n = beta_min, beta_max, n
        self.betas = torch.linspace(beta_min / n, beta_max / n, n)

    def marginal(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        log_mean = -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min
        return each(torch.exp(log_mean)) * x, torch.sqrt(1.0 - torch.exp(2.0 * log_mean))

    def drift_diffusion(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        beta = self.beta_min + t * (self.beta_max - self.beta_min)
        return -0.5 * each(beta) * x, torch.sqrt(beta)

    def discrete_step(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        index = (t * (self.n - 1) / self.T).long()
        beta = self.betas.to(x.device)[index]
        return each(torch.sqrt(1.0 - beta)) * x - x, torch.sqrt(beta)

    def score(self, network: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        return -network(x, t * 999) / each(self.marginal(torch.zeros_like(x), t)[1])

    def prior_logp(self, z: Tensor) -> Tensor:
        return -z[0].numel() / 2 * math.log(2 * math.pi) - torch.sum(z**2, dim=(1, 2, 3)) / 2


Process = PlainVE | PlainVP


# --- training ---------------------------------------------------------------------------------------------------------


class PlainEMA:
    """Shadow copies of the parameters, moved one after the other: s <- s - (1 - d_n) (s - theta)."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float = 0.999) -> None:
        self.decay, self.updates = decay, 0
        self.shadows = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, parameters: Sequence[nn.Parameter]) -> None:
        self.updates += 1
        rest = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        for shadow, parameter in zip(self.shadows, parameters):
            shadow.sub_(rest * (shadow - parameter))


def clip_gradients(parameters: Sequence[nn.Parameter], largest: float) -> Tensor:
    """Multiply the gradients by min(1, largest / (norm + 1e-6)), tensor by tensor; returns the norm."""
    norm = torch.norm(torch.stack([torch.norm(p.grad) for p in parameters if p.grad is not None]))
    factor = largest / (norm + 1e-6)
    if factor < 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
    return norm


class PlainTraining:
    """The published training step: zero gradients, loss, backward, learning rate, clip, Adam, EMA."""

    def __init__(
        self, network: nn.Module, process: Process, *, lr: float = 2e-4, warmup: int = 5000, clip: float = 1.0
    ) -> None:
        self.network, self.process, self.lr, self.warmup, self.clip = network, process, lr, warmup, clip
        self.parameters = list(network.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr, foreach=False, fused=False)
        self.ema = PlainEMA(self.parameters)
        self.done = 0

    def loss(self, x: Tensor) -> Tensor:
        """Mean over batch and pixels of (s std + z)^2 at random times."""
        self.network.train()
        t = torch.rand(x.shape[0], device=x.device) * (self.process.T - self.process.t_train) + self.process.t_train
        z = torch.randn_like(x)
        mean, std = self.process.marginal(x, t)
        score = self.process.score(self.network, mean + each(std) * z, t)
        losses = torch.square(score * each(std) + z)
        return torch.mean(torch.mean(losses.reshape(losses.shape[0], -1), dim=-1))

    def step(self, x: Tensor) -> float:
        self.optimizer.zero_grad()
        loss = self.loss(x)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * min(self.done / self.warmup, 1.0)
        clip_gradients(self.parameters, self.clip)
        self.optimizer.step()
        self.done += 1
        self.ema.update(self.parameters)
        return float(loss.detach())


# --- sampling ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def reverse_diffusion(network: nn.Module, process: Process, x: Tensor, times: Sequence[float]) -> Tensor:
    """Predictor steps x_mean = x - F + G^2 s, x' = x_mean + G z of the discretised reverse process, at each time."""
    for time in torch.tensor(times, device=x.device):
        t = torch.ones(x.shape[0], device=x.device) * time
        network.eval()
        shift, scale = process.discrete_step(x, t)
        score = process.score(network, x, t)
        z = torch.randn_like(x)
        x_mean = x - (shift - each(scale) ** 2 * score)
        x = x_mean + each(scale) * z
    return x


# --- likelihood -------------------------------------------------------------------------------------------------------


def log_likelihood(
    network: nn.Module, process: Process, x: Tensor, probe: Tensor, *, rtol: float = 1e-5, atol: float = 1e-5
) -> tuple[Tensor, Tensor, int]:
    """log p (B,) in nats, the latent code and the solver's evaluations; the ODE runs from 1e-5 to T."""
    from scipy import integrate

    batch = x.shape[0]
    network.eval()

    def drift(x: Tensor, t: Tensor) -> Tensor:
        f, g = process.drift_diffusion(x, t)
        return f - 0.5 * each(g) ** 2 * process.score(network, x, t)

    def divergence(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            product = torch.sum(drift(x, t) * probe)
            gradient = torch.autograd.grad(product, x)[0]
        return torch.sum(gradient * probe, dim=(1, 2, 3))

    def right_hand_side(t: float, state: np.ndarray) -> np.ndarray:
        sample = torch.from_numpy(state[:-batch].reshape(x.shape)).to(x.device).type(torch.float32)
        times = torch.ones(batch, device=x.device) * t
        with torch.no_grad():
            velocity = drift(sample, times)
        change = divergence(sample, times)
        return np.concatenate([velocity.cpu().numpy().reshape(-1), change.cpu().numpy().reshape(-1)])

    start = np.concatenate([x.detach().cpu().numpy().reshape(-1), np.zeros(batch)])
    solution = integrate.solve_ivp(right_hand_side, (1e-5, process.T), start, rtol=rtol, atol=atol, method="RK45")
    end = solution.y[:, -1]
    z = torch.from_numpy(end[:-batch].reshape(x.shape)).to(x.device).type(torch.float32)
    return process.prior_logp(z) + torch.from_numpy(end[-batch:]).to(z), z, solution.nfev
