"""Batch normalisation on the CPU, in either memory layout, alone or over the rows of several workers.

torch's own adds up a batch's statistics one after the other where channels lie last: a step in float32 is then off by
up to 1e-4 where it is off by 1e-6 in the default layout. Here every sum is torch's ``sum``, which adds in a tree, and
the derivative is written out, so that a map is gone over a few times and no more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

#: [K] of this worker -> [workers, K].
Exchange = Callable[[Tensor], Tensor]


class _Layout:
    """Maps [B, C, ...] as matrices whose memory is in order, and vectors [C] spread so that they fit them."""

    def __init__(self, x: Tensor):
        self.shape = x.shape
        self.last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        self.rows = x.numel() // x.shape[1]

    def flat(self, x: Tensor) -> Tensor:
        """[rows, C] if channels lie last, else [B, C, pixels]; a copy only where ``x`` lies otherwise."""
        if self.last:
            return x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).reshape(self.rows, -1)
        return x.reshape(*self.shape[:2], -1)

    def full(self, flat: Tensor) -> Tensor:
        """The map of :meth:`flat`."""
        if self.last:
            batch, channels, height, width = self.shape
            return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return flat.view(self.shape)

    def sum(self, flat: Tensor) -> Tensor:
        """[C]."""
        return flat.sum(0) if self.last else flat.sum((0, 2))

    def spread(self, vector: Tensor) -> Tensor:
        """[C] that broadcasts over :meth:`flat`."""
        return vector if self.last else vector[:, None]


class _Normalise(torch.autograd.Function):
    """The normalised map; mean, biased variance and count of what it was normalised with."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, exchange: Exchange | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide, layout = x if x.dtype == torch.float64 else x.float(), _Layout(x)
        rows = layout.flat(wide)
        mean = layout.sum(rows) / layout.rows
        rows = rows - layout.spread(mean)
        # Of deviations, not of squares: no cancellation where the mean is large.
        var = layout.sum(rows * rows) / layout.rows
        total = mean.new_tensor(layout.rows)
        if exchange is not None:
            means, variances, counts = exchange(torch.cat([mean, var, total[None]])).split(
                [len(mean), len(var), 1], dim=1
            )
            total, own = counts.sum(), mean
            shares = counts / total
            mean = (shares * means).sum(0)
            var = (shares * (variances + (means - mean) ** 2)).sum(0)
            rows += layout.spread(own - mean)
        inverse = torch.rsqrt(var + eps)
        scale = layout.spread(inverse if weight is None else inverse * weight)
        y = rows * scale if bias is None else torch.addcmul(layout.spread(bias), rows, scale)
        ctx.save_for_backward(rows, inverse, weight, total)
        ctx.layout, ctx.exchange = layout, exchange
        ctx.mark_non_differentiable(mean, var, total)
        return layout.full(y).to(x.dtype), mean, var, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        rows, inverse, weight, total = ctx.saved_tensors
        layout: _Layout = ctx.layout
        g = layout.flat(grad.to(rows.dtype))
        of_bias, of_weight = layout.sum(g), layout.sum(g * rows) * inverse
        sums = torch.cat([of_bias, of_weight])
        if ctx.exchange is not None:
            sums = ctx.exchange(sums).sum(0)
        shift, slope = (sums / total).chunk(2)
        scale = inverse if weight is None else inverse * weight
        # scale * (g - shift - normalised * slope)
        found = torch.addcmul(layout.spread(-scale * shift), g, layout.spread(scale))
        found.addcmul_(rows, layout.spread(-scale * slope * inverse))
        affine = (None, None) if weight is None else (of_weight, of_bias)
        return layout.full(found).to(grad.dtype), *affine, None, None


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """torch's batch normalisation with sums that are exact to rounding in both memory layouts; on the CPU.

    Attributes:
        exchange: where several workers share a batch, gives every worker's statistics; called once forward and once
            backward.
    """

    exchange: Exchange | None = None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least two dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self._left_to_torch(input):
            return super().forward(input)
        y, mean, var, total = _Normalise.apply(input, self.weight, self.bias, self.eps, self.exchange)
        self._remember(mean, var, total)
        out: Tensor = y
        return out

    def _left_to_torch(self, input: Tensor) -> bool:
        """One value per channel, which torch refuses; tracing, as torch.compile makes code of its own for what it
        knows."""
        return self.exchange is None and (input.numel() == input.shape[1] or torch.compiler.is_compiling())

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor, total: Tensor) -> None:
        if not self.track_running_stats:
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean), factor)
        self.running_var.lerp_((var * total / (total - 1)).to(self.running_var), factor)


def exact(net: nn.Module) -> nn.Module:
    """The network with its two-dimensional batch normalisation replaced by :class:`BatchNorm`; same tensors and names.

    Subclasses of torch's stay: what they change is theirs.
    """
    return replaced(net, lambda m: type(m) is nn.BatchNorm2d)


def untraced(net: nn.Module) -> None:
    """Keep torch.compile out of batch normalisation over workers: collectives cannot be traced, and torch 2.11 then
    gives gradients of 0 without a word."""
    for module in net.modules():
        if isinstance(module, BatchNorm) and module.exchange is not None:
            module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]


def replaced(module: nn.Module, which: Callable[[nn.Module], bool], exchange: Exchange | None = None) -> nn.Module:
    """The module with every batch normalisation that ``which`` is true of replaced by :class:`BatchNorm`."""
    if which(module):
        assert isinstance(module, nn.modules.batchnorm._BatchNorm)
        new = BatchNorm(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
        # The very tensors: optimizer and average must not lose sight of them.
        new._parameters, new._buffers = module._parameters, module._buffers
        new.exchange = exchange
        return new.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, replaced(child, which, exchange))
    return module
