"""MGD: a teacher that says what it knows at several granularities, for any host.

Shao and Chen 2021, "Multi-granularity for knowledge distillation", Image and Vision Computing, arXiv:2108.06681.

Branch k of N reads the frozen teacher's pooled feature f [B, D] through an encoder and a decoder,

    u_k = E_k(f), E_k: D -> D -> ReLU -> width_k,    g_k = G_k(u_k), G_k: width_k -> D -> ReLU -> C,

narrow ones at a low temperature, wide ones at a high one (published: 64 at 2 and 256 at 8).

Stage one, the head epochs: sum_k [ tau_k^2 KL(softmax(z_t / tau_k) || softmax(g_k / tau_k)) + CE(g_k, y) ]. Branches
share nothing, so their sum trains each by itself.

Stage two, with the student: its own encoders E'_k on its embedding (trained with it, dropped afterwards) learn

    sum_k weight_k tau_k^2 KL(softmax(u_k / tau_k) || softmax(u'_k / tau_k))            (over units)

and the host learns from (z_t + b sum_k g_k) / (1 + b N) in place of the teacher's logits (stable excitation), b the
``branch_weight``. That is a mean of logits, where a host's ensemble is one of probabilities: the host gets it as the
teacher's own logits, and no views are filled in, so that softmax(. / tau) is taken of the mean at each host's
temperature, also where a host reads logits directly. There is one target, so the mass is 1.

Branches rest in stage two: computed without gradient, so that the optimizer passes them by, weight decay and momentum
included. Without head epochs there is no stage one to rest from: they are then trained beside the student, on the terms
of stage one alone, and what the student learns from them does not train them.

Over hosts of maps (FitNet, AT, SP, VID) the paper keeps the plain divergence at temperature 4 and weight 1 beside the
host's own term: ``{host: at, extra: {kd: {weight: 1.0}}, views: mgd}`` is CE + host + tau^2 KL + granularity, in which
the stable target goes to the divergence and the host of maps compares maps as ever. Such a host alone is refused:
nothing would read the target, and granularity by itself is in no form of the paper.

Mended: stage one of the released code keeps the epoch that is best on the test images; here it is the last. Decoders of
the student, which nothing uses, are not built. Its rate falls along the cosine of all head epochs here (published:
0.01, a tenth of it after epochs 30 and 45 of 60).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd.data.batch import Batch
from akd.methods.base import Shapes, TeacherViews, views
from akd.methods.stacked import StackedMLP
from akd.methods.target import views_hard_target_loss
from akd.models.output import Output
from akd.settings import setting


@dataclass(frozen=True, kw_only=True)
class MGDConfig:
    """Settings of the branches. Ends of ranges and not lists, so that a search can vary number and ends apart."""

    name: str = setting("mgd", choices=["mgd"])
    count: int = setting(2, low=1, high=8, help="branches N, spread between the ends; searched in 1 to 4")
    width_low: int = setting(64, low=2, high=8192, help="units of the first branch; searched in 16 to 128, log")
    width_high: int = setting(256, low=2, high=8192, help="units of the last; 128 to 1024, log")
    temperature_low: float = setting(2.0, above=0, high=100, help="of the first branch; searched in 1 to 4, log")
    temperature_high: float = setting(8.0, above=0, high=100, help="of the last; searched in 4 to 16, log")
    weight_low: float = setting(1.0, low=0, help="of the first branch's KL over units; searched in 0.1 to 4, log")
    weight_high: float = setting(1.0, low=0, help="of the last branch's; searched in 0.1 to 4, log")
    target: str = setting(
        "stable", choices=["stable", "native"], help="what the host sees: mean of native and branch logits, or native"
    )
    branch_weight: float = setting(
        1.0,
        low=0,
        when=("target", "stable"),
        help="of each branch's logits in that mean, native having 1; 0.1 to 2, log",
    )
    supervision: float = setting(1.0, low=0, help="weight of the branches' own cross-entropy")
    head_warmup_epochs: int = setting(
        10, low=0, help="stage one, then branches rest (published: 60); 0 trains them beside the student"
    )
    head_lr: float = setting(0.2, above=0, help="the branches' learning rate over the student's (published: 0.01)")


def spread(low: float, high: float, count: int) -> list[float]:
    """``count`` numbers from low to high with equal ratios; a single one is their geometric mean."""
    steps = [k / (count - 1) for k in range(count)] if count > 1 else [0.5]
    return [low ** (1 - s) * high**s for s in steps]


def granularity_loss(student: Tensor, target: Tensor, temperatures: Tensor, padding: Tensor | None = None) -> Tensor:
    """tau_k^2 * mean_b KL(softmax(target / tau_k) || softmax(student / tau_k)) of each branch, [N].

    Args:
        student, target: [B, N, W].
        temperatures: [N].
        padding: [N, W], true where a branch has no unit.
    """
    wide = torch.promote_types(torch.promote_types(student.dtype, target.dtype), torch.float32)
    tau = temperatures.to(wide)
    log_p, log_q = (_log_softmax(x.to(wide) / tau[:, None], padding) for x in (student, target))
    return (log_q.exp() * (log_q - log_p)).sum(2).mean(0) * tau**2


def _log_softmax(x: Tensor, padding: Tensor | None) -> Tensor:
    if padding is None:
        return F.log_softmax(x, dim=-1)
    # Afterwards any number that is finite and equal on both sides: the terms there are 0 and so are their gradients.
    return F.log_softmax(x.masked_fill(padding, -torch.inf), dim=-1).masked_fill(padding, 0)


@views.register(
    "mgd",
    config=MGDConfig,
    paper="arXiv:2108.06681",
    summary="branches that say the teacher's feature in fewer and in more units",
)
class MGD(TeacherViews):
    """N self-analysing branches of one frozen teacher, and the student's encoders."""

    temperatures: Tensor
    padding: Tensor

    def __init__(self, config: MGDConfig, *, shapes: Shapes):
        super().__init__()
        self.config, self.warmup_epochs, self.lr_factor = config, config.head_warmup_epochs, config.head_lr
        n, features, classes = config.count, shapes.teacher_embedding, shapes.num_classes
        self.widths = [max(1, round(w)) for w in spread(config.width_low, config.width_high, n)]
        self.encoder = StackedMLP([features] * n, features, self.widths)
        self.decoder = StackedMLP(self.widths, features, [classes] * n)
        steps = [k / (n - 1) for k in range(n)] if n > 1 else [0.5]
        self._weights = {"branch_kd": 1.0, "branch_ce": config.supervision} | {
            f"granularity_{k + 1}": (1 - s) * config.weight_low + s * config.weight_high for k, s in enumerate(steps)
        }
        self._weights = {name: weight for name, weight in self._weights.items() if weight}
        self.student_encoder: StackedMLP | None = None
        if any(name.startswith("granularity") for name in self._weights):
            own = shapes.student_embedding
            self.student_encoder = StackedMLP([own] * n, own, self.widths)
        taus = torch.tensor(spread(config.temperature_low, config.temperature_high, n), dtype=torch.float64)
        self.register_buffer("temperatures", taus, persistent=False)
        padding = [[unit >= width for unit in range(max(self.widths))] for width in self.widths]
        self.register_buffer("padding", torch.tensor(padding), persistent=False)
        self._measured: dict[str, Tensor] = {}

    def forward(self, teacher: Output, batch: Batch) -> tuple[Output, dict[str, Tensor]]:
        seen, terms, _ = self._see(teacher, batch)
        return seen, terms

    def beside(self, student: Output, teacher: Output, batch: Batch) -> tuple[Output, dict[str, Tensor]]:
        seen, terms, units = self._see(teacher, batch)
        if self.student_encoder is not None:
            each = granularity_loss(
                self.student_encoder(student.embedding), units, self.temperatures, self.padding
            ).unbind()
            named = {f"granularity_{k + 1}": term for k, term in enumerate(each)}
            terms |= {name: term for name, term in named.items() if name in self._weights}
        return seen, terms

    def warmup(self, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        return self._analyse(teacher, self.decoder(self.encoder(teacher.embedding)), batch)

    def weights(self) -> dict[str, float]:
        return self._weights

    def measures(self) -> dict[str, Tensor]:
        """Accuracies of the branches (their mean) and of the target, on standard rows of the training batches."""
        return self._measured

    def groups(self) -> list[tuple[list[nn.Parameter], float]]:
        own = [] if self.student_encoder is None else list(self.student_encoder.parameters())
        return [([*self.encoder.parameters(), *self.decoder.parameters()], self.lr_factor), (own, 1.0)]

    @staticmethod
    def mass(config: MGDConfig) -> float:
        return 1.0

    def _see(self, teacher: Output, batch: Batch) -> tuple[Output, dict[str, Tensor], Tensor]:
        """What the host sees, the branches' terms if they are trained now, and their units [B, N, W]."""
        config, rest = self.config, self.warmup_epochs > 0
        with torch.set_grad_enabled(not rest and torch.is_grad_enabled()):
            units = self.encoder(teacher.embedding)
            if rest and config.target == "native":
                return teacher, {}, units
            logits = self.decoder(units)
            terms = {} if rest else self._analyse(teacher, logits, batch)
        seen = teacher
        if config.target == "stable":
            logits = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
            total = teacher.logits.to(logits.dtype) + config.branch_weight * logits.sum(1)
            seen = teacher._replace(logits=total / (1 + config.branch_weight * config.count))
        self._measure(logits.detach(), seen.logits, batch)
        return seen, terms, units.detach()

    def _analyse(self, teacher: Output, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Terms of stage one, of the branches' logits [B, N, C]; sums over branches."""
        native = teacher.logits[:, None].expand_as(logits)
        terms = {"branch_kd": granularity_loss(logits, native, self.temperatures).sum()}
        if "branch_ce" in self._weights:
            terms["branch_ce"] = self.config.count * views_hard_target_loss(logits, batch)
        self._measure(logits.detach(), teacher.logits, batch)
        return terms

    @torch.no_grad()
    def _measure(self, logits: Tensor, target: Tensor, batch: Batch) -> None:
        standard = (batch.view == 0).double()  # so that workers' parts add up to the whole in any precision
        standard = standard / standard.sum().clamp(min=1)
        correct = (logits.argmax(2) == batch.target[:, None]).float().mean(1)
        self._measured = {
            "accuracy": (standard * correct).sum(),
            "target_accuracy": (standard * (target.argmax(1) == batch.target)).sum(),
        }
