"""Device, precision and memory of a computation."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

import torch


def best_device() -> str:
    """Return "cuda", "mps" or "cpu", the first that this machine has."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def best_precision(device: str) -> str:
    """Return "bf16" where the processor computes in bfloat16, "fp16" on older GPUs, else "no" (float32 throughout)."""
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16") else "no"


def autocast(device: str) -> torch.autocast:
    """Compute in `best_precision` inside the context."""
    precision = best_precision(device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device, dtype, enabled=dtype is not None)


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep the memory of freed tensors below 256 MB; return whether it does: only Linux has the setting.

    By default each training step fetches it again, page by page: a step of chapter 2 took a third longer on two cores,
    and encoding was a third slower. The price: a process keeps its peak memory.

    Source: the manual page mallopt(3).
    """
    trim_threshold, mmap_threshold = -1, -3  # names of the options in malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return bool(mallopt and mallopt(mmap_threshold, 1 << 28) and mallopt(trim_threshold, -1))
