"""Active selection among augmented images (Wang et al. 2022, arXiv:2012.02909, "CutMixPick").

Every image has ``pool`` candidates; of all candidates of the global batch those with the highest scores are kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd.data.batch import Batch

CRITERIA = ("teacher_entropy", "student_entropy", "kl")


def entropy(logits: Tensor) -> Tensor:
    """[B] of softmax(logits [B, C]), in at least float32."""
    log_p = F.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)
    return -(log_p.exp() * log_p).sum(-1)


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """[B] KL(softmax(teacher / tau) || softmax(student / tau)) of logits [B, C], in at least float32."""
    wide = torch.promote_types(torch.promote_types(teacher.dtype, student.dtype), torch.float32)
    log_q, log_p = (F.log_softmax(z.to(wide) / temperature, dim=-1) for z in (teacher, student))
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def best(scores: Tensor, count: int) -> Tensor:
    """[count] places of the highest of ``scores`` [m], ascending; of equal ones the first count."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


class Scorer:
    """Scores candidates by the networks as they stand.

    The student is scored in eval mode, with its running statistics: a pass in training mode, as in the released code,
    would write the candidates that are thrown away into these statistics, and a score would depend on which other
    images a worker happens to hold. Nothing is drawn.

    Args:
        criterion: one of :data:`CRITERIA`.
        temperature: of the divergence; entropies are taken at 1.
        student: the network in training; its mode is left as it was.
        teacher: images and their batch -> Output, without gradient; may be ``None`` for ``student_entropy``.
        amp: score in bfloat16.
    """

    def __init__(
        self,
        criterion: str,
        temperature: float,
        student: nn.Module,
        teacher: Callable[[Tensor, Batch], object] | None,
        amp: bool = False,
    ):
        if teacher is None and criterion != "student_entropy":
            raise ValueError(f"picking by {criterion} needs a teacher")
        self.criterion, self.temperature, self.amp = criterion, temperature, amp
        self.student, self.teacher = student, teacher

    @torch.no_grad()
    def __call__(self, images: Tensor, batch: Batch) -> Tensor:
        """[B] scores of candidates [B, C, H, W], normalised as the networks see them; higher is kept."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.amp):
            if self.criterion == "teacher_entropy":
                return entropy(self._teacher(images, batch))
            if self.criterion == "student_entropy":
                return entropy(self._student(images))
            return divergence(self._teacher(images, batch), self._student(images), self.temperature)

    def _teacher(self, images: Tensor, batch: Batch) -> Tensor:
        assert self.teacher is not None
        return self.teacher(images, batch).logits  # type: ignore[attr-defined]

    def _student(self, images: Tensor) -> Tensor:
        training = self.student.training
        logits = self.student.eval()(images).logits
        self.student.train(training)
        return logits
