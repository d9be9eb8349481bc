"""PKT: probabilistic knowledge transfer (Passalis and Tefas 2018, ECCV; arXiv:1803.10837).

    L = mean_ij q_ij log(q_ij / p_ij),      p_ij = k_ij / sum_j k_ij,  k_ij = (1 + cos(x_i, x_j)) / 2

over the embeddings x of a batch, q the teacher's (section 3). As in the released code an image counts among its
own neighbours and the mean is over all B^2 pairs: the published weight of 30000 goes with that. In log space, with k at
least 1e-7, where the released code adds that to both sides of the quotient.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from akd.data.batch import Batch
from akd.methods.base import hosts
from akd.methods.feature import FeatureHost, unit_rows
from akd.methods.precision import wide
from akd.methods.target import embedding_target
from akd.models.output import Output
from akd.settings import setting

#: Least similarity.
LEAST = 1e-7


def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over pairs of q log(q / p) of embeddings [B, D_s], [B, D_t]; 0 when all cosines agree, or for one image."""
    with wide(student, teacher) as (student, teacher):
        log_p, log_q = log_neighbours(student), log_neighbours(teacher)
        return (log_q.exp() * (log_q - log_p)).mean()


def log_neighbours(x: Tensor) -> Tensor:
    """[B, B] log-probabilities of j as a neighbour of i, of embeddings [B, D]."""
    x = unit_rows(x)
    near = ((1 + x @ x.mT) / 2).clamp(min=LEAST)
    return near.log() - near.sum(1, keepdim=True).log()


@dataclass(frozen=True, kw_only=True)
class PKTConfig:
    """Settings of probabilistic knowledge transfer."""

    name: str = setting("pkt", choices=["pkt"])
    weight: float = setting(30000.0, low=0, help="weight of the divergence; searched in 3000 to 300000, log")
    ce_weight: float = setting(1.0, low=0, help="weight of the hard-label term")


@hosts.register("pkt", config=PKTConfig, paper="arXiv:1803.10837", summary="match which images are neighbours")
class PKT(FeatureHost):
    """Hard labels plus neighbourhoods of embeddings."""

    needs = frozenset({"embedding"})
    relational = True

    def compare(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        return {"pkt": pkt_loss(student.embedding, embedding_target(teacher))}
