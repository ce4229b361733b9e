"""What makes a batch that is spread over several processes train as if it were in one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def own_share(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows of a batch (B, ...) that this process is to encode: shares differ by one row at most."""
    return rows.tensor_split(dist.get_world_size())[dist.get_rank()]


def gather(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """Put the vectors (b, D) of all processes together, in order (count, D), with gradients.

    Every process has to compute the same loss of them.
    """
    return _Gather.apply(vectors, [len(part) for part in torch.arange(count).tensor_split(dist.get_world_size())])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, vectors: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        padded = F.pad(vectors, (0, 0, 0, max(sizes) - len(vectors))).contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        start = sum(sizes[: dist.get_rank()])
        ctx.own, ctx.processes = slice(start, start + len(vectors)), len(sizes)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        # As the loss is the same everywhere, this is what adding up the gradients of all processes would give. Their
        # mean, see `average_gradients`, is then the gradient of one process that holds the batch.
        return gradient[ctx.own] * ctx.processes, None


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients of each process by their mean, in one message; parameters without one are left alone."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    joined = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(joined)
    joined /= dist.get_world_size()
    for gradient, mean in zip(gradients, joined.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


@contextmanager
def shared_statistics(network: nn.Module) -> Iterator[None]:
    """Let the batch norms of a network, while they train, take mean and variance over the shares of all processes.

    torch's SyncBatchNorm does so on GPUs only; this does on processors too.
    """
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for layer in layers:
        layer.forward = partial(_normalize, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _normalize(layer: _BatchNorm, rows: torch.Tensor) -> torch.Tensor:
    if not layer.training:
        return type(layer).forward(layer, rows)
    affine = layer.weight, layer.bias
    if layer.weight is None:
        affine = torch.ones(rows.shape[1], device=rows.device), torch.zeros(rows.shape[1], device=rows.device)
    normalized, mean, variance, count = _Norm.apply(rows, *affine, layer.eps)
    if layer.running_mean is not None:
        layer.num_batches_tracked.add_(1)
        share = 1 / int(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
        layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), share)
        unbiased = variance * count / (count - 1).clamp_min(1)
        layer.running_var.lerp_(unbiased.to(layer.running_var.dtype), share)
    return normalized


class _Norm(torch.autograd.Function):
    """Batch normalization of rows (b, C, ...) by mean and variance over all processes, which it returns too.

    Source: Ioffe & Szegedy, "Batch normalization", ICML 2015; Chan et al., "Updating formulae and a pairwise algorithm
        for computing sample variances", 1979 (of parts).
    """

    @staticmethod
    def forward(ctx, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> tuple:
        wide = rows.to(weight.dtype)
        variance, mean = torch.var_mean(wide, [0, *range(2, rows.dim())], correction=0)
        here = torch.cat([mean, variance, mean.new_tensor([wide.numel() / len(mean)])])
        parts = [torch.empty_like(here) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, here)
        means, variances, counts = torch.stack(parts).split([len(mean), len(mean), 1], 1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean) ** 2)).sum(0) / count
        ctx.save_for_backward(rows, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(rows, mean, variance, weight, bias, False, 0.0, eps), mean, variance, count

    @staticmethod
    def backward(ctx, gradient: torch.Tensor, *_: torch.Tensor) -> tuple:
        rows, weight, mean, variance, count = ctx.saved_tensors
        # as if mean and variance were constants; what they contribute is added below
        none = mean.new_empty(0)  # statistics of this share alone; in their place, a GPU does not take None
        to_rows, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            gradient.contiguous(memory_format=_layout(rows)), rows, weight, mean, variance, none, none, False, ctx.eps,
            [True, True, True],
        )  # fmt: skip
        sums = torch.stack([to_weight, to_bias])
        dist.all_reduce(sums)
        inverse = (variance + ctx.eps).rsqrt()
        slope = -weight * inverse**2 * sums[0] / count
        offset = -weight * inverse * sums[1] / count - slope * mean
        shape = 1, -1, *[1] * (rows.dim() - 2)
        to_rows = to_rows + (slope.view(shape) * rows + offset.view(shape)).to(to_rows.dtype)
        return to_rows, to_weight, to_bias, None


def _layout(rows: torch.Tensor) -> torch.memory_format:
    wide = rows.dim() == 4 and rows.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if wide else torch.contiguous_format
