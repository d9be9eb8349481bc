"""Losses that need digits: Gram matrices, cosines, logarithms of small numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def wide(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """The tensors in float32 or wider, and no autocast that would narrow their products again."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield [tensor.to(dtype) for tensor in tensors]
