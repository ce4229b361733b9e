"""What several processes run together in tests; found by import in each of them."""

import multiprocessing
import os
import signal

import torch
from torch import nn

from rectrio_lib.core.device import best_device
from rectrio_lib.encoders.convnet import ConvNet
from rectrio_lib.training.distributed.sharing import average_gradients, gather, own_share, shared_statistics


def layer(dims):
    return (nn.BatchNorm2d if dims == 4 else nn.BatchNorm1d)(5, momentum=0.3).double()


def rows(shape):
    torch.manual_seed(1)
    return 3 * torch.randn(shape, dtype=torch.float64) + 2, torch.randn(shape, dtype=torch.float64)


def result_of(norm, out, given):
    found = {"out": out.detach(), "rows": given.grad, "mean": norm.running_mean, "var": norm.running_var}
    found |= {name: parameter.grad for name, parameter in norm.named_parameters()}
    return {name: tensor.cpu() for name, tensor in found.items()}


def normalize_alone(shape):
    norm, (given, factors) = layer(len(shape)), rows(shape)
    out = norm(given.requires_grad_())
    (out * factors).pow(2).sum().backward()
    return result_of(norm, out, given)


def normalize_shared(shape, path):
    norm, (whole, factors) = layer(len(shape)).to(best_device()), (part.to(best_device()) for part in rows(shape))
    given = own_share(whole).clone().requires_grad_()
    with shared_statistics(norm):
        out = gather(norm(given).flatten(1), len(whole)).view(shape)
    (out * factors).pow(2).sum().backward()
    average_gradients(norm.parameters())
    given.grad /= torch.distributed.get_world_size()  # parameters are averaged, inputs were not
    torch.save(result_of(norm, out, given), path / f"{torch.distributed.get_rank()}.pt")


class Failing(nn.Module):
    """An augmentation that changes nothing, and fails at one call in another process than the main one."""

    def __init__(self, call, how):
        super().__init__()
        self.calls, self.call, self.how = 0, call, how

    def __repr__(self):
        return "Failing"

    def forward(self, images):
        self.calls += 1
        if self.calls == self.call and multiprocessing.parent_process() is not None:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("broken here")
        return images


class Dropping(ConvNet):
    """A network with dropout and a weight that is never used."""

    kind = "dropping"

    def __init__(self):
        super().__init__(1, 12, (8, "M", 8), 6, 0.2, 0.2)
        self.unused = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return super().forward(nn.functional.dropout(images, 0.2, self.training))
