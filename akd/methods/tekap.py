"""TeKAP: noisy views of one teacher, for any host.

Hossain et al. 2025, "Single teacher, multiple perspectives: teacher knowledge augmentation for enhanced knowledge
distillation", ICLR 2025 (OpenReview DmEHmZ89iB).

    x_i = (1 - a) x + a s e_i,   e_i ~ N(0, I) afresh in each step,   i = 1..N,   x the teacher's logits or embedding

with s = 1 for logits and ``embedding_noise`` for embeddings. Views have ``view_weight`` each, the teacher 1. A host
that matches probabilities learns from sum_k w_k KL(q_k || p), which is mass * KL(q || p) and a number the student
cannot change, q the weighted mean of the q_k and mass the sum of the weights.

That mass is most of what the released weights do: noise of 0.1 on logits hardly moves softmax(z / 4), so the default,
1 + 0.8 * 3 = 3.4, is close to plain KD of 3.4 times the weight. ``normalise`` divides the weights by their sum, which
leaves the noise alone; compare with KD at the same effective weight, which is logged as ``views/soft_weight``.

Mended, of the released code and of its re-implementation for Angular-KD: every embedding view counts (released: one of
N is used), once (released: the student's side of CRD is counted twice and its memory updated twice a step), the
student's tensors stay free of noise (MLKD, ReviewKD there), and views are not looped over views (ReviewKD there).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from akd.data.batch import Batch, rand
from akd.methods.base import Shapes, TeacherViews, views
from akd.models.output import Output
from akd.settings import setting


@dataclass(frozen=True, kw_only=True)
class TeKAPConfig:
    """Settings of the noisy views."""

    name: str = setting("tekap", choices=["tekap"])
    count: int = setting(3, low=1, high=64, help="views N; searched in 1 to 8")
    noise: float = setting(0.1, low=0, high=1, help="share a of the noise in a view; searched in 0.02 to 0.5, log")
    noisy: str = setting(
        "logits", choices=["logits", "embedding", "both"], help="what has views; hosts on embeddings need theirs"
    )
    embedding_noise: float = setting(
        0.1, low=0, when=("noisy", ("embedding", "both")), help="embeddings' noise over the logits'; released: 0.1"
    )
    view_weight: float = setting(0.8, low=0, help="of each view, the teacher having 1; searched in 0 to 1")
    normalise: bool = setting(False, help="weights divided by their sum; else they multiply a soft-target loss")


def perturb(x: Tensor, noise: Tensor, share: float, scale: float = 1.0) -> Tensor:
    """Views (1 - share) x + share * scale * noise.

    Args:
        x: [B, K].
        noise: [B, N, K] standard normal.

    Returns:
        [B, N, K] in float32 or wider.
    """
    wide = torch.promote_types(x.dtype, noise.dtype)
    return (1 - share) * x.to(wide)[:, None] + share * scale * noise.to(wide)


def weights_of(config: TeKAPConfig) -> list[float]:
    """Weights of the teacher and of each view, [N + 1]."""
    weights = [1.0] + [config.view_weight] * config.count
    return [w / math.fsum(weights) for w in weights] if config.normalise else weights


@views.register(
    "tekap",
    config=TeKAPConfig,
    paper="OpenReview DmEHmZ89iB",
    summary="the teacher with fresh noise on its logits or embedding",
)
class TeKAP(TeacherViews):
    """N noisy views; nothing to train."""

    def __init__(self, config: TeKAPConfig, *, shapes: Shapes):
        super().__init__()
        self.config = config
        self.shares: Tensor
        self.register_buffer("shares", torch.tensor(weights_of(config), dtype=torch.float64), persistent=False)
        self._measured: dict[str, Tensor] = {}

    @torch.no_grad()
    def forward(self, teacher: Output, batch: Batch) -> tuple[Output, dict[str, Tensor]]:
        config, seen = self.config, teacher._replace(view_weights=self.shares)
        if config.noisy != "embedding":
            seen = seen._replace(view_logits=perturb(teacher.logits, self._noise(teacher.logits, batch), config.noise))
            same = seen.view_logits.argmax(2) == teacher.logits.argmax(1, keepdim=True)  # type: ignore[union-attr]
            self._measured = {"agreement": same.float().mean()}
        if config.noisy != "logits":
            noise = self._noise(teacher.embedding, batch)
            embeddings = perturb(teacher.embedding, noise, config.noise, config.embedding_noise)
            seen = seen._replace(view_embeddings=embeddings)
        return seen, {}

    def weights(self) -> dict[str, float]:
        return {}

    def measures(self) -> dict[str, Tensor]:
        """Share of views whose first class is the teacher's."""
        return self._measured

    @staticmethod
    def mass(config: TeKAPConfig) -> float:
        """1 where only embeddings have views: soft targets are then the teacher's own."""
        return math.fsum(weights_of(config)) if config.noisy != "embedding" else 1.0

    def _noise(self, x: Tensor, batch: Batch) -> Tensor:
        """[B, N, K] for ``x`` [B, K]; in eval mode its mean, 0."""
        shape = (self.config.count, x.shape[1])
        if not self.training:
            return x.new_zeros(len(x), *shape, dtype=torch.promote_types(x.dtype, torch.float32))
        return rand(batch, *shape, normal=True)
