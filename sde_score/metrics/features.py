"""Maps from images in [0, 1], ``(B, *)``, to feature vectors ``(B, d)``. Any ``nn.Module`` or callable will do as
well."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor, nn

from sde_score.metrics.base import FEATURES

ROUNDING = 0.5 / 255
"""How far outside [0, 1] a value may lie and still be the nearest byte."""


@FEATURES.register("pixels")
class Pixels:
    """The values themselves, flattened."""

    name = "pixels"

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1)


@FEATURES.register("random_conv")
class RandomConv(nn.Module):
    """Channel means and deviations of a fixed random convolutional network: no training, no download.

    Args:
        channels: of the images.
        rank: number of spatial axes: 1 series, 2 images, 3 volumes.
        width: channels of the first layer; each further layer has twice as many.
        depth: number of layers.
        seed: of the weights; the global generator stays as it is.
    """

    def __init__(self, channels: int = 1, rank: int = 2, width: int = 16, depth: int = 2, seed: int = 0) -> None:
        super().__init__()
        if rank not in (1, 2, 3):
            raise ValueError(f"RandomConv(rank={rank}) must be 1 (series), 2 (images) or 3 (volumes).")
        self.name = f"random_conv(width={width}, depth={depth}, seed={seed})"
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        generator = torch.Generator().manual_seed(seed)
        layers, n_in = [], channels
        for i in range(depth):
            layer = conv(n_in, width * 2**i, 3, padding=1, padding_mode="replicate", dtype=torch.float32)
            fan_in = layer.weight[0].numel()
            with torch.no_grad():
                drawn = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float32)
                layer.weight.copy_(drawn * math.sqrt(2 / fan_in))
                layer.bias.zero_()
            layers.append(layer.requires_grad_(False))
            n_in = width * 2**i
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * x.float() - 1
        features = []
        for layer in self.layers:
            if features:  # average over pairs along each axis that is long enough
                for axis in range(2, x.ndim):
                    even = x.shape[axis] // 2 * 2
                    if even:
                        first, second = x.narrow(axis, 0, even).unflatten(axis, (-1, 2)).unbind(axis + 1)
                        x = (first + second) / 2
            x = torch.relu(layer(x))
            flat = x.flatten(2)
            features += [flat.mean(2), flat.std(2, unbiased=False)]
        return torch.cat(features, dim=1)


@FEATURES.register("inception")
class Inception(nn.Module):
    """Inception-v3 features of torch-fidelity, 2048 wide, and class probabilities: the published FID, KID and IS.

    Szegedy et al. 2016, "Rethinking the Inception architecture", with the weights of Heusel et al. 2017. Needs
    ``torch_fidelity`` (``pip install "sde_score[metrics]"``) and its weights, which it downloads on first use, or reads
    from ``weights``. Grey images are repeated to three channels; the network itself resizes to 299 x 299 as
    TensorFlow 1 did. It sees bytes: 0 to 1 become 0 to 255, and a value outside by more than rounding is an error.

    Args:
        weights: path of the weight file, for machines without a network.

    Raises:
        ImportError: torch-fidelity is missing.
        ValueError: no such file, or images without four axes, 1 or 3 channels, or with values outside [0, 1].
    """

    clips = True

    def __init__(self, weights: str | os.PathLike | None = None) -> None:
        super().__init__()
        self.name = "inception-v3-compat"
        if weights is not None and not os.path.isfile(weights):
            raise ValueError(f"inception(weights={os.fspath(weights)!r}): there is no such file.")
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except Exception as error:  # torchvision of another build raises RuntimeError here
            raise ImportError(
                f"Inception features need torch-fidelity and a torchvision that matches torch ({type(error).__name__}: "
                f"{error}). Run: pip install \"sde_score[metrics]\". Without it use 'pixels', 'random_conv' or a "
                "fitted 'classifier'; such numbers are not FIDs."
            ) from error
        path = None if weights is None else os.fspath(weights)
        if path is not None:
            torch.load(path, map_location="meta", weights_only=True)  # torch-fidelity would run pickled code
        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=path
        )
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim != 4:
            raise ValueError(f"Inception features are for images (B, C, H, W), got {tuple(x.shape)}.")
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        if x.shape[1] != 3:
            raise ValueError(f"Inception features need 1 or 3 channels, got {x.shape[1]}.")
        low, high = float(x.min()), float(x.max())
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # another range would be a wrong FID in silence
            raise ValueError(
                f"Inception features need images in [0, 1], got values from {low:.3g} to {high:.3g}. Write "
                "extract(..., range=(low, high)) with the values that are black and white, clamp what overshoots "
                "(x.clamp(low, high)), or pass integers with their levels."
            )
        pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8)
        features, logits = self.network.to(x.device)(pixels)
        return features, logits.double().softmax(1)
