"""View heads: N small networks on one teacher's pooled feature, computed as one (arXiv:2510.22480, view augmentation).

    F_i = BN_i(W_i (m_i * f) + b_i),    Z_i = V_i F_i + c_i,    i = 1..N

with f [B, D] the teacher's embedding, m_i a dropout mask with a rate of its own, BN_i over the batch. A full head has
D^2 + D + 2D + D C + C values. Two forms cost less where D is large: ``low_rank``, W_i = I + U_i P_i with U_i [D, r] and
P_i [r, D] (the identity, because a view has to be able to stay near its teacher), and ``projected``, full heads behind
one fixed orthonormal projection of f to r features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd.data.batch import Batch, rand
from akd.errors import ExperimentError

MOMENTUM, EPSILON = 0.1, 1e-5


class ViewHeads(nn.Module):
    """N heads as stacked tensors: one einsum each, never a loop over heads.

    Args:
        features: D of the teacher's embedding.
        num_classes: C.
        count: N.
        head: ``full``, ``low_rank`` or ``projected``.
        width: r of the latter two; more than D counts as D.
        init: of the square W_i, see :func:`initial_weights`.
        dropout: lowest and highest rate; the views' rates are spread evenly between them, one view has their mean.
    """

    running_mean: Tensor
    running_var: Tensor
    rates: Tensor
    projection: Tensor

    def __init__(
        self,
        features: int,
        num_classes: int,
        count: int,
        *,
        head: str = "full",
        width: int = 64,
        init: str = "each",
        dropout: tuple[float, float] = (0.2, 0.4),
    ):
        super().__init__()
        self.count, self.head, self.dropout = count, head, dropout
        width = min(width, features)
        inner = width if head == "projected" else features
        if head == "low_rank":
            self.down = nn.Parameter(orthonormal(count, width, features))
            self.up = nn.Parameter(orthonormal(count, features, width))
        else:
            self.weight = nn.Parameter(initial_weights(count, inner, init))
        if head == "projected":
            # A buffer and not a parameter: angles measured behind it must not be trained away.
            self.register_buffer("projection", orthonormal(1, width, features)[0])
        self.bias = nn.Parameter(torch.zeros(count, inner))
        self.scale = nn.Parameter(torch.ones(count, inner))
        self.shift = nn.Parameter(torch.zeros(count, inner))
        self.classifier = nn.Parameter(torch.empty(count, num_classes, inner))
        for weight in self.classifier:
            nn.init.xavier_uniform_(weight)
        self.classifier_bias = nn.Parameter(torch.zeros(count, num_classes))
        self.register_buffer("running_mean", torch.zeros(count, inner))
        self.register_buffer("running_var", torch.ones(count, inner))
        low, high = dropout if count > 1 else [sum(dropout) / 2] * 2
        rates = torch.linspace(low, high, count, dtype=torch.float64)[:, None]
        self.register_buffer("rates", rates, persistent=False)

    def forward(self, embedding: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Views of a batch.

        Args:
            embedding: [B, D] the teacher's.
            batch: its generator gives the dropout masks.

        Returns:
            Features [B, N, K] of the views, the anchor [B, K] their angles are measured to (K is D, or r behind a
            projection), and logits [B, N, C]; all in float32 or wider.
        """
        embedding = embedding.to(self.bias.dtype)  # a teacher may run in another precision
        anchor = F.linear(embedding, self.projection) if self.head == "projected" else embedding
        x = self._drop(anchor, batch)
        if self.head == "low_rank":
            x = x + torch.einsum("bnr,ndr->bnd", torch.einsum("bnd,nrd->bnr", x, self.down), self.up)
        else:
            x = torch.einsum("bnd,ned->bne", x, self.weight)
        views = self._normalise(x + self.bias)
        logits = torch.einsum("bnd,ncd->bnc", views.to(x.dtype), self.classifier) + self.classifier_bias
        wide = torch.promote_types(views.dtype, torch.float32)
        return views, anchor.to(wide), logits.to(wide)

    def lift(self, views: Tensor, embedding: Tensor) -> Tensor:
        """Views [B, N, K] as embeddings [B, N, D]: behind a projection, what it drops of the teacher's [B, D] stays."""
        if self.head != "projected":
            return views
        embedding = embedding.to(self.projection.dtype)
        rest = embedding - F.linear(embedding, self.projection) @ self.projection
        return views.to(rest.dtype) @ self.projection + rest[:, None]

    def _drop(self, x: Tensor, batch: Batch) -> Tensor:
        """m_i * x, [B, N, K]; masks of the global batch, so that the share of a worker does not matter."""
        x = x[:, None].expand(-1, self.count, -1)
        if not self.training or not any(self.dropout):
            return x
        kept = rand(batch, self.count, x.shape[-1]) >= self.rates
        return x * (kept / (1 - self.rates)).to(x.dtype)

    def _normalise(self, x: Tensor) -> Tensor:
        """Batch normalisation of [B, N, K] over the batch, each view and feature by itself, in float32 or wider."""
        wide = torch.promote_types(x.dtype, torch.float32)
        mean, var = self.running_mean.to(wide), self.running_var.to(wide)
        y = F.batch_norm(
            x.to(wide).flatten(1),
            mean.view(-1),
            var.view(-1),
            self.scale.to(wide).view(-1),
            self.shift.to(wide).view(-1),
            self.training,
            MOMENTUM,
            EPSILON,
        )
        if mean is not self.running_mean:  # narrow statistics were updated in a wide copy
            self.running_mean.copy_(mean)
            self.running_var.copy_(var)
        return y.view_as(x)


def orthonormal(count: int, rows: int, columns: int) -> Tensor:
    """[count, rows, columns] random matrices, uniform among those with orthonormal rows (columns, if there are fewer).

    Drawn from the global generator, which belongs to whoever builds a module.
    """
    drawn = torch.randn(count, max(rows, columns), min(rows, columns))
    if drawn.is_meta:  # heads built for their shapes alone; arithmetic there would import half of torch
        return drawn.new_empty(count, rows, columns)
    q, r = torch.linalg.qr(drawn)
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # without the signs QR prefers some matrices
    return q if rows >= columns else q.mT


def initial_weights(count: int, features: int, init: str) -> Tensor:
    """W [N, D, D] of the heads.

    The paper calls for orthogonal weights without saying across what, and the released code does something else:

    * ``each``: every W_i is orthogonal;
    * ``across``: for each output unit, its N rows in W_1..W_N are orthonormal (the released code); needs D >= N;
    * ``stacked``: the columns of all W_i on top of each other, [N D, D], are orthonormal.
    """
    if init == "across":
        if features < count:
            raise ExperimentError(
                f"needs as many features as views, and there are {features} and {count}",
                key="method.views.head_init",
                value=init,
            )
        return orthonormal(features, count, features).transpose(0, 1).contiguous()
    if init == "stacked":
        return orthonormal(1, count * features, features).view(count, features, features)
    return orthonormal(count, features, features)
