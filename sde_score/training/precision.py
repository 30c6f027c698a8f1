"""bfloat16 inside the network only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def autocast_network(model: nn.Module, precision: str) -> Iterator[None]:
    """Run the inside of the network in bfloat16 while it trains, and hand its output out in float32.

    Only the network: what score model and objective compute from times, noise levels and losses stays float32. In
    evaluation mode nothing changes, so that the weights being trained and their average are measured alike.
    """
    if precision == "float32":
        yield
        return
    network = getattr(model, "network", model)
    device = next(model.parameters()).device.type
    open_contexts: list[Any] = []

    def enter(module: nn.Module, args: Any) -> None:
        context = torch.autocast(device, dtype=torch.bfloat16, enabled=module.training)
        context.__enter__()
        open_contexts.append(context)

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        open_contexts.pop().__exit__(None, None, None)
        return output.float() if isinstance(output, Tensor) else output

    handles = [network.register_forward_pre_hook(enter), network.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
