"""Muon: AdamW, except that the kernels of convolutions move by orthogonal matrices."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

MOMENTUM = 0.95
ROUNDS, COEFFICIENTS = 5, (3.4445, -4.775, 2.0315)  # of a quintic that is steep at zero, and bounded by 1.2 up to one
AS_ADAMW = 0.2  # root mean square of AdamW's moves, as a share of the learning rate
FARTHER = 20 / 3  # than AdamW


class Muon(torch.optim.AdamW):
    """AdamW, except that the kernels of convolutions move by orthogonal matrices.

    The momentum of a kernel, as a matrix (out, in * height * width), gives way to the nearest matrix of orthonormal
    rows or columns: a step then goes as far in rare directions as in frequent ones. That bears a rate seven times
    AdamW's. Everything else (norms, biases, linear maps, class vectors) moves as in AdamW.

    `torch.optim.Muon` takes matrices alone, and nothing beside them.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the scale of the moves: Liu
        et al., "Muon is scalable for LLM training", 2025, arXiv 2502.16982.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """Move every parameter that has a gradient."""
        with torch.enable_grad():
            loss = closure() if closure else None
        gradients = {}
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.ndim == 4 and kernel.grad is not None:
                    self._move(kernel, FARTHER * group["lr"], group["weight_decay"])
                    gradients[kernel], kernel.grad = kernel.grad, None  # AdamW passes over it
        super().step()
        for kernel, gradient in gradients.items():
            kernel.grad = gradient
        return loss

    def _move(self, kernel: torch.Tensor, rate: float, decay: float) -> None:
        if not (state := self.state[kernel]):
            state |= {"momentum": torch.zeros_like(kernel), "step": torch.tensor(0.0)}  # AdamW wants a step to load
        momentum = state["momentum"].lerp_(kernel.grad, 1 - MOMENTUM)
        move = orthogonal(kernel.grad.lerp(momentum, MOMENTUM).flatten(1))
        kernel.mul_(1 - rate * decay)
        kernel.add_(move.view_as(kernel), alpha=-rate * AS_ADAMW * math.sqrt(max(move.shape)))


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Bring the singular values of a matrix (M, N) near one, to about 0.7 to 1.2, without decomposing it."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    matrix = matrix / matrix.norm().clamp_min(1e-7)
    a, b, c = COEFFICIENTS
    one = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    gram, change = matrix @ matrix.T, one  # the rounds need nothing wider
    for _ in range(ROUNDS):
        factor = a * one + b * gram + c * gram @ gram
        gram, change = factor @ gram @ factor, factor @ change
    return change @ matrix
