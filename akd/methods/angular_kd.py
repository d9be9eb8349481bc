"""Angular-KD: trained views of one teacher, spread in angle, for any host.

Yu, Nam, Katabi and Son 2025, "Single-teacher view augmentation: boosting knowledge distillation via angular
diversity", arXiv:2510.22480.

    L = L_host(student, ensemble) + sum_x [ inter_x (constraint * L_con + diversity * L_div) + intra_x * L_intra ]
        + supervision * mean_i CE(Z_i, y),        x in {embedding, logit}

Heads (:mod:`akd.methods.heads`) make N views of the teacher's pooled feature. :mod:`akd.methods.angular` spreads them
in angle and holds them near the teacher, once between embeddings, once between probabilities softmax(z / tau_angle).
The host's soft target is the mean of all N + 1 probabilities. Defaults are the weights the published runs had in
effect at N = 5: head supervision 5 * 0.8, and a constraint that was divided by N once more. methods/README.md says
where the released code differs, and what ``as_released`` brings back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from akd.data.batch import Batch
from akd.methods import angular
from akd.methods.base import Shapes, TeacherViews, views
from akd.methods.heads import ViewHeads
from akd.methods.target import views_hard_target_loss
from akd.models.output import Output
from akd.settings import setting


@dataclass(frozen=True, kw_only=True)
class AngularKDConfig:
    """Settings of the views."""

    name: str = setting("angular_kd", choices=["angular_kd"])
    count: int = setting(5, low=1, high=64, help="views N; searched in 1 to 8")
    margin: float = setting(0.2, low=0, high=2, help="a view is inside at a cosine of 1 - margin; searched 0.05 to 0.5")
    logit_margin: float | None = setting(
        None, low=0, high=2, help="of probabilities, which lie closer; default margin; searched 0.02 to 0.3"
    )
    contrast_temperature: float = setting(0.07, above=0, help="of the constraint; searched in 0.05 to 0.5")
    tau_angle: float = setting(
        1.0, above=0, high=100, help="softens logits whose angles are measured; released: 4, searched in 1 to 4"
    )
    embedding_inter: float = setting(
        1.0, low=0, help="weight of constraint and diversity of embeddings; 0.1 to 3, log (released 0.1, other scale)"
    )
    embedding_intra: float = setting(1.0, low=0, help="weight of the offsets' angles of embeddings; 0.1 to 3, log")
    logit_inter: float = setting(1.0, low=0, help="weight of constraint and diversity of probabilities; 0.1 to 3, log")
    logit_intra: float = setting(1.0, low=0, help="weight of the offsets' angles of probabilities; 0.1 to 3, log")
    constraint: float = setting(0.2, low=0, help="the constraint's share of both inter weights")
    diversity: float = setting(1.0, low=0, help="the diversity's share of both inter weights")
    supervision: float = setting(4.0, low=0, help="weight of the views' own cross-entropy; searched in 0.5 to 10, log")
    view_weight: float = setting(0.8, low=0, help="of each view in the ensemble, the teacher having 1; 0.2 to 1")
    ensemble_norm: int = setting(
        1, low=1, high=2, when=("as_released", False), help="p-norm of the weights; 2 multiplies the host's soft loss"
    )
    detach: bool = setting(True, help="the host's loss does not train the heads (released: it does)")
    head: str = setting("full", choices=["full", "low_rank", "projected"], help="form of the heads")
    head_rank: int = setting(
        64, low=1, when=("head", "low_rank"), help="at most the teacher's features count; searched in 16 to 128, log"
    )
    head_width: int = setting(
        128, low=1, when=("head", "projected"), help="features after the projection; searched in 16 to 128, log"
    )
    head_init: str = setting(
        "each",
        choices=["each", "across", "stacked"],
        when=("head", ("full", "projected")),
        help="what is orthogonal at the start: each W_i, the views' rows of a unit (released), all W_i stacked",
    )
    dropout_low: float = setting(0.2, low=0, below=1, help="rate of the first view; 0 to 0.2")
    dropout_high: float = setting(
        0.4, low=0, below=1, help="rate of the last view, those between are spread evenly; 0.2 to 0.6"
    )
    head_warmup_epochs: int = setting(
        1, low=0, help="epochs of the heads alone, before the student's (published: 30); searched in 0 to 20"
    )
    head_lr: float = setting(
        1.0, above=0, help="the heads' learning rate over the student's; searched in 0.1 to 2, log"
    )
    as_released: bool = setting(False, help="the released arithmetic: view-axis norms, dot products, ensemble norm 2")


@views.register(
    "angular_kd",
    config=AngularKDConfig,
    paper="arXiv:2510.22480",
    summary="trained views of one teacher, spread in angle",
)
class AngularKD(TeacherViews):
    """N trained views of one frozen teacher."""

    relational = True  # the constraint contrasts samples, and heads normalise over the batch

    def __init__(self, config: AngularKDConfig, *, shapes: Shapes):
        super().__init__()
        self.config, self.lr_factor = config, config.head_lr
        self.heads = ViewHeads(
            shapes.teacher_embedding,
            shapes.num_classes,
            config.count,
            head=config.head,
            width=config.head_width if config.head == "projected" else config.head_rank,
            init=config.head_init,
            dropout=(config.dropout_low, config.dropout_high),
        )
        self.shares: Tensor
        weights = angular.ensemble_weights(config.count, config.view_weight, _norm(config))
        self.register_buffer("shares", torch.tensor(weights, dtype=torch.float64), persistent=False)
        self._weights = _weights(config)
        self.warmup_epochs = config.head_warmup_epochs if self._weights else 0  # nothing to learn from otherwise
        self._measured: dict[str, Tensor] = {}

    def forward(self, teacher: Output, batch: Batch) -> tuple[Output, dict[str, Tensor]]:
        config = self.config
        features, anchor, logits = self.heads(teacher.embedding, batch)
        teacher_logits = teacher.logits.to(logits.dtype)
        near = angular.cosines(features, anchor)
        soft, soft_anchor = (F.softmax(z / config.tau_angle, dim=-1) for z in (logits, teacher_logits))
        terms = self._angles("embedding", features, anchor, near) | self._angles("logit", soft, soft_anchor)
        if config.supervision:
            terms["supervision"] = views_hard_target_loss(logits, batch)
        embeddings = self.heads.lift(features, teacher.embedding)
        self._measure(near, logits, teacher_logits, batch)
        if config.detach:
            logits, embeddings = logits.detach(), embeddings.detach()
        return teacher._replace(view_logits=logits, view_embeddings=embeddings, view_weights=self.shares), terms

    def weights(self) -> dict[str, float]:
        return self._weights

    def measures(self) -> dict[str, Tensor]:
        return self._measured

    @staticmethod
    def mass(config: AngularKDConfig) -> float:
        return math.fsum(angular.ensemble_weights(config.count, config.view_weight, _norm(config)))

    def _angles(
        self, kind: str, of_views: Tensor, anchor: Tensor, found: angular.Similarities | None = None
    ) -> dict[str, Tensor]:
        """Constraint, diversity and intra-angle of one kind of vectors, [B, N, K] and [B, K]; those with a weight.

        Args:
            found: their cosines, if they are known.
        """
        config, terms, margin = self.config, {}, self.config.margin
        if kind == "logit" and config.logit_margin is not None:
            margin = config.logit_margin
        released = {"embedding": angular.released_feature_similarities, "logit": angular.released_logit_similarities}
        if {f"{kind}_constraint", f"{kind}_diversity"} & self._weights.keys():
            if config.as_released:
                found = released[kind](of_views, anchor)
            found = found or angular.cosines(of_views, anchor)
            if f"{kind}_constraint" in self._weights:
                terms[f"{kind}_constraint"] = angular.constraint(found, margin, config.contrast_temperature)
            if f"{kind}_diversity" in self._weights:
                terms[f"{kind}_diversity"] = angular.diversity(found, margin)
        if f"{kind}_intra" in self._weights:
            intra = angular.released_intra_angle_loss if config.as_released else angular.intra_angle_loss
            terms[f"{kind}_intra"] = intra(of_views, anchor)
        return terms

    @torch.no_grad()
    def _measure(self, found: angular.Similarities, logits: Tensor, teacher: Tensor, batch: Batch) -> None:
        """What to watch: angles in degrees, shares, accuracies, and the ensemble's loss with its bound."""
        count = self.config.count
        standard = (batch.view == 0).to(logits.dtype)
        standard = standard / standard.sum().clamp(min=1)
        members = torch.cat([teacher[:, None], logits], 1).log_softmax(-1)
        right = members.gather(2, batch.target[:, None, None].expand(-1, count + 1, 1)).squeeze(2)
        shares = self.shares.to(right.dtype)
        loss, mean, spread = angular.ambiguity(right, shares)
        whole = torch.einsum("k,bkc->bc", shares, members.exp())
        correct = (members[:, 1:].argmax(2) == batch.target[:, None]).to(right.dtype).mean(1)
        self._measured = {
            "angle_to_teacher": _degrees(found.gate).mean(),
            "inside": (found.gate >= 1 - self.config.margin).to(right.dtype).mean(),
            "accuracy": (standard * correct).sum(),
            "ensemble_accuracy": (standard * (whole.argmax(1) == batch.target)).sum(),
            "ensemble_loss": (standard * loss).sum(),
            "diversity": (standard * spread).sum(),
            "bound": (standard * (mean - spread)).sum(),
        }
        if count > 1:
            self._measured["angle_between"] = angular.pair_mean(_degrees(found.pairs)).mean()


def _norm(config: AngularKDConfig) -> int:
    return 2 if config.as_released else config.ensemble_norm


def _weights(config: AngularKDConfig) -> dict[str, float]:
    """Weight of each term, in the order of the terms; those of weight 0 are not computed."""
    found: dict[str, float] = {}
    kinds = {
        "embedding": (config.embedding_inter, config.embedding_intra),
        "logit": (config.logit_inter, config.logit_intra),
    }
    for kind, (inter, intra) in kinds.items():
        found[f"{kind}_constraint"] = inter * config.constraint
        if config.count > 1:
            found |= {f"{kind}_diversity": inter * config.diversity, f"{kind}_intra": intra}
    found["supervision"] = config.supervision
    return {name: weight for name, weight in found.items() if weight}


def _degrees(cosine: Tensor) -> Tensor:
    return cosine.clamp(-1, 1).acos().rad2deg()
