"""What every network gives: the contract between models, methods and teachers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """One forward pass.

    Attributes:
        logits: [B, C].
        embedding: [B, D] the pooled feature the classifier reads.
        maps: stage outputs after their ReLU, [B, C_k, H_k, W_k], shallow to deep.
        maps_preact: the same before the ReLU, only when asked for.
        view_logits: [B, N, C] logits of N views of a teacher.
        view_embeddings: [B, N, D] embeddings of the views.
        view_weights: [N + 1] weights of the teacher itself and of each view in the ensemble.
    """

    logits: Tensor
    embedding: Tensor
    maps: tuple[Tensor, ...] = ()
    maps_preact: tuple[Tensor, ...] | None = None
    view_logits: Tensor | None = None
    view_embeddings: Tensor | None = None
    view_weights: Tensor | None = None
