"""Several two-layer networks computed as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StackedMLP(nn.Module):
    """N networks in_k -> hidden -> ReLU -> out_k as one, each layer a batched product; shorter sides end in zeros.

    Padding stays 0 for good: it meets inputs or gradients of 0 only.

    Args:
        inputs, outputs: features of each network.
        hidden: features between, of all.
    """

    def __init__(self, inputs: Sequence[int], hidden: int, outputs: Sequence[int]):
        super().__init__()
        count = len(inputs)
        self.weight = nn.Parameter(torch.zeros(count, hidden, max(inputs)))
        self.bias = nn.Parameter(torch.empty(count, hidden))
        self.out_weight = nn.Parameter(torch.zeros(count, max(outputs), hidden))
        self.out_bias = nn.Parameter(torch.zeros(count, max(outputs)))
        with torch.no_grad():  # as torch.nn.Linear starts
            for k, (i, o) in enumerate(zip(inputs, outputs, strict=True)):
                for part, fan_in in ((self.weight[k, :, :i], i), (self.bias[k], i)):
                    part.uniform_(-(fan_in**-0.5), fan_in**-0.5)
                for part in (self.out_weight[k, :o], self.out_bias[k, :o]):
                    part.uniform_(-(hidden**-0.5), hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, max(outputs)] of x [B, N, max(inputs)], or of one input [B, inputs] for all."""
        x = x.to(self.weight.dtype)  # a teacher may run in another precision
        inner = torch.einsum("bi,nhi->bnh" if x.ndim == 2 else "bni,nhi->bnh", x, self.weight) + self.bias
        return torch.einsum("bnh,noh->bno", F.relu(inner), self.out_weight) + self.out_bias
