"""A latent model's codec, outside the library: the data's K principal components, and a rotation that loses nothing."""

import torch

from sde_score.data import CODECS, Codec


@CODECS.register("principal")
class Principal(Codec):
    """z = W (u - mean), W the K leading principal axes divided by their deviations; u = mean + W⁺ z."""

    def __init__(self, mean, axes, scale, data_shape, levels):
        self.mean, self.axes, self.scale, self.data_shape, self.levels = mean, axes, scale, tuple(data_shape), levels
        self.shape = (len(axes),)

    @classmethod
    def fit(cls, data, size=16):
        x, levels = data.train[: len(data.train)].x.flatten(1).double(), data.info.levels
        x = x if levels is None else (x + 0.5) / levels
        mean, (_, s, axes) = x.mean(0), torch.linalg.svd(x - x.mean(0), full_matrices=False)
        scale = (s / len(x) ** 0.5).clamp_min(0.05)  # constant pixels have no deviation
        return cls(mean.float(), axes[:size].float(), scale[:size].float(), data.info.shape, levels)

    def encode(self, x, noise=None):
        u = x if self.levels is None else (x + (0.5 if noise is None else noise.uniform(x.float()))) / self.levels
        return (u.flatten(1) - self.mean.to(u)) @ self.axes.T.to(u) / self.scale.to(u)

    def decode(self, z):
        return (self.mean.to(z) + (z * self.scale.to(z)) @ self.axes.to(z)).reshape(len(z), *self.data_shape)

    def log_det(self, z):
        return -self.scale.log().sum().expand(len(z)).to(z) if self.axes.shape[0] == self.axes.shape[1] else None

    def state_dict(self):
        return vars(self) | {"shape": None}

    @classmethod
    def from_state_dict(cls, state):
        return cls(**{name: value for name, value in state.items() if name != "shape"})
