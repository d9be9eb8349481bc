"""Running stages of blocks that leave their last ReLU to the caller, so that both sides of it can be tapped."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional as F


def run_stages(stem: Tensor, stages: Iterable[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of stem and stages, before and after the ReLU.

    Args:
        stem: [B, C, H, W] before its ReLU.
        stages: each an iterable of blocks.
    """
    before, after = [stem], [F.relu(stem)]
    for stage in stages:
        y = after[-1]
        for block in stage.children():
            pre = block(y)
            y = F.relu(pre)
        before.append(pre)
        after.append(y)
    return before, after
