"""Augmentation policies for distillation: strong views beside the standard one, or in its place. See README.md.

A policy says what an epoch draws for every image of the training file (:meth:`Policy.table`, on the CPU, from columns
of the :class:`EpochPlan`) and turns standard views into strong ones (:meth:`Policy.__call__`, where the images are).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from akd.data import mixing
from akd.data.dataset import TrainData
from akd.data.operations import OPERATIONS, SIGNED, apply_each, magnitudes, ship
from akd.data.pick import CRITERIA
from akd.data.plan import EpochPlan
from akd.errors import ExperimentError
from akd.registry import Registry
from akd.settings import setting

augments = Registry("augmentation policy", "akd.augments")

#: What a table holds: one tensor [n, ...] for each of a policy's arguments.
Table = tuple[Tensor, ...]


def _form() -> Any:
    return setting(
        "second",
        choices=["second", "only"],
        help="second: beside the standard view, with the teacher's labels alone; only: instead of it, labels mixed",
    )


class Policy:
    """Strong views of images.

    Attributes:
        mixes: the call takes each image's mix partner.
        pool: candidates for each image.
        keep: strong views of each image that are left of these (on average, where candidates are picked).
        criterion: what candidates are picked by; empty if all are kept.
        unseen: settings that do not change what a candidate looks like.
    """

    mixes = False
    pool = 1
    keep = 1
    criterion = ""
    unseen: frozenset[str] = frozenset({"form"})

    def __init__(self, config: Any, size: tuple[int, int], mean: tuple[float, ...]):
        self.config, self.size = config, size
        self.fill = torch.tensor([255 * m for m in mean], dtype=torch.float64)

    @property
    def views(self) -> int:
        """Views of each image in a batch."""
        return self.keep + (self.config.form == "second")

    @classmethod
    def pixels(cls, config: Any) -> dict[str, Any]:
        """Of a configuration, what decides how a candidate looks: where it is equal, so are the images of a plan."""
        return {k: v for k, v in asdict(config).items() if k not in cls.unseen}

    def table(self, plan: EpochPlan) -> Table:
        """An epoch's arguments of :meth:`__call__`, a row for every image of the training file, on the CPU."""
        raise NotImplementedError

    def lam(self, *rows: Tensor) -> Tensor:
        """[B] float64 on the CPU: each image's own share of its strong view, from its rows of the table."""
        return torch.ones(len(rows[0]), dtype=torch.float64)

    def __call__(self, images: Tensor, others: Tensor | None, dtype: torch.dtype, *rows: Tensor) -> Tensor:
        """Strong views.

        Args:
            images: [B, C, H, W] standard views, 0..255, any dtype.
            others: the partners' standard views, for a policy that mixes.
            dtype: of arithmetic that leaves whole numbers.
            rows: the images' rows of the table, on the CPU.

        Returns:
            [B, C, H, W], 0..255.
        """
        raise NotImplementedError

    def check_channels(self, channels: int) -> None:
        """Refuse images the policy has no meaning for."""


def _applied(plan: EpochPlan, probability: float) -> Tensor:
    """[n] True where an image is mixed at all."""
    return plan.uniform("apply")[:, 0] < probability


@dataclass(frozen=True, kw_only=True)
class MixupConfig:
    """Settings of mixup."""

    name: str = setting("mixup", choices=["mixup"])
    form: str = _form()
    alpha: float = setting(1.0, above=0, high=100, help="lam ~ Beta(alpha, alpha); searched in 0.2 to 2")
    probability: float = setting(1.0, above=0, high=1, help="share of images that are mixed; searched in 0.3 to 1")


@augments.register("mixup", config=MixupConfig, paper="arXiv:1710.09412", summary="blend with another image")
class Mixup(Policy):
    """lam * x + (1 - lam) * partner, lam ~ Beta(alpha, alpha) (Zhang et al. 2018, equation 1)."""

    mixes = True

    def table(self, plan: EpochPlan) -> Table:
        lam = mixing.beta_quantile(plan.mix, self.config.alpha)
        return (torch.where(_applied(plan, self.config.probability), lam, 1),)

    def lam(self, *rows: Tensor) -> Tensor:
        return rows[0]

    def __call__(self, images: Tensor, others: Tensor | None, dtype: torch.dtype, *rows: Tensor) -> Tensor:
        assert others is not None
        return mixing.mixup(images, others, ship(rows[0].to(dtype), images.device))


@dataclass(frozen=True, kw_only=True)
class CutMixConfig:
    """Settings of CutMix."""

    name: str = setting("cutmix", choices=["cutmix"])
    form: str = _form()
    alpha: float = setting(
        1.0, above=0, high=100, help="the box's share is 1 - Beta(alpha, alpha); searched in 0.2 to 2"
    )
    probability: float = setting(1.0, above=0, high=1, help="share of images that are mixed; searched in 0.3 to 1")


@augments.register("cutmix", config=CutMixConfig, paper="arXiv:1905.04899", summary="a box of another image pasted in")
class CutMix(Policy):
    """A box with sides sqrt(1 - lam) of the image comes from the partner (Yun et al. 2019, equation 2).

    The box is cut off at the image's edge and lam is the share that is really left. Sides are as long as the equation
    says; the released code halves and doubles them, which takes a pixel off odd ones.
    """

    mixes = True

    def table(self, plan: EpochPlan) -> Table:
        share = (1 - mixing.beta_quantile(plan.mix, self.config.alpha)).sqrt()
        sides = (share[:, None] * torch.tensor(self.size)).long()
        box = mixing.boxes(plan.box, sides, *self.size)
        return (torch.where(_applied(plan, self.config.probability)[:, None], box, 0),)

    def lam(self, *rows: Tensor) -> Tensor:
        return 1 - mixing.area(rows[0]).double() / (self.size[0] * self.size[1])

    def __call__(self, images: Tensor, others: Tensor | None, dtype: torch.dtype, *rows: Tensor) -> Tensor:
        assert others is not None
        return mixing.cutmix(images, others, rows[0])


@dataclass(frozen=True, kw_only=True)
class CutMixPickConfig:
    """Settings of CutMixPick."""

    name: str = setting("cutmix_pick", choices=["cutmix_pick"])
    form: str = _form()
    alpha: float = setting(
        1.0, above=0, high=100, help="the box's share is 1 - Beta(alpha, alpha); searched in 0.2 to 2"
    )
    probability: float = setting(1.0, above=0, high=1, help="share of candidates that are mixed")
    criterion: str = setting("kl", choices=CRITERIA, help="what the kept candidates have most of")
    pool: int = setting(2, low=1, high=16, help="candidates per image; searched in 2 to 4")
    keep: int = setting(
        1, low=1, high=16, help="of the pool, how many per image are kept; the published ratio is 1 of 2"
    )
    temperature: float = setting(4.0, above=0, high=100, when=("criterion", "kl"), help="of the divergence")


@augments.register(
    "cutmix_pick", config=CutMixPickConfig, paper="arXiv:2012.02909", summary="CutMix, the most telling candidates kept"
)
class CutMixPick(CutMix):
    """Of ``pool`` CutMix images for each image the ``keep`` * B with the highest scores."""

    unseen = frozenset({"form", "criterion", "pool", "keep", "temperature"})

    def __init__(self, config: CutMixPickConfig, size: tuple[int, int], mean: tuple[float, ...]):
        super().__init__(config, size, mean)
        self.pool, self.keep = config.pool, config.keep
        self.criterion = config.criterion if config.keep < config.pool else ""  # where all are kept nothing is scored

    @classmethod
    def pixels(cls, config: Any) -> dict[str, Any]:
        return {**super().pixels(config), "name": "cutmix"}  # one of several, each as if it were the only one

    @classmethod
    def needs_of(cls, config: CutMixPickConfig) -> frozenset[str]:
        """What the teacher has to give under a configuration."""
        return frozenset() if config.criterion == "student_entropy" else frozenset({"logits"})


@dataclass(frozen=True, kw_only=True)
class CutoutConfig:
    """Settings of cutout."""

    name: str = setting("cutout", choices=["cutout"])
    form: str = _form()
    size: float = setting(
        0.5, above=0, high=1, help="side of the square over the image's; published 0.25, 0.5; 0.2 to 0.6"
    )


def cutout_table(plan: EpochPlan, share: float, size: tuple[int, int]) -> Tensor:
    """Boxes [n, 4] of cutout, of at least one pixel before they are cut off at the edge."""
    side = torch.tensor([max(1, round(share * length)) for length in size])
    return mixing.boxes(plan.box, side.expand(plan.size, 2), *size)


@augments.register("cutout", config=CutoutConfig, paper="arXiv:1708.04552", summary="a square of each image blanked")
class Cutout(Policy):
    """A square around a random pixel, cut off at the edge, gets the mean colour (DeVries and Taylor 2017)."""

    def table(self, plan: EpochPlan) -> Table:
        return (cutout_table(plan, self.config.size, self.size),)

    def __call__(self, images: Tensor, others: Tensor | None, dtype: torch.dtype, *rows: Tensor) -> Tensor:
        return mixing.cutout(images, rows[0], ship(self.fill.to(dtype), images.device))


class Operations(Policy):
    """Operations one after the other, and cutout after them where it is asked for.

    Rows: operation [B, k], magnitude [B, k], box [B, 4].
    """

    def __call__(self, images: Tensor, others: Tensor | None, dtype: torch.dtype, *rows: Tensor) -> Tensor:
        operation, magnitude, box = rows
        if images.dtype != torch.uint8:
            images = images.round().clamp(0, 255).to(torch.uint8)
        for code, amount in zip(operation.unbind(1), magnitude.unbind(1), strict=True):
            images = apply_each(images, code, amount)
        if not self.config.cutout:
            return images
        return mixing.cutout(images, box, ship(self.fill.to(dtype), images.device))

    def _box(self, plan: EpochPlan) -> Tensor:
        return cutout_table(plan, self.config.cutout, self.size) if self.config.cutout else torch.empty(plan.size, 0)

    def check_channels(self, channels: int) -> None:
        if channels not in (1, 3):
            problem = f"takes images of 1 or 3 channels, these have {channels}"
            raise ExperimentError(problem, key="method.augment", value=self.config.name)


def _cutout() -> Any:
    return setting(0.0, low=0, high=1, help="side of a square blanked afterwards, over the image's; 0 is none")


@dataclass(frozen=True, kw_only=True)
class RandAugmentConfig:
    """Settings of RandAugment."""

    name: str = setting("randaugment", choices=["randaugment"])
    form: str = _form()
    count: int = setting(2, low=1, high=4, help="operations of each image (n); searched in 1 to 3")
    magnitude: int = setting(9, low=0, high=30, help="strength of each (m), 30 is the strongest; searched in 3 to 15")
    cutout: float = _cutout()


@augments.register(
    "randaugment", config=RandAugmentConfig, paper="arXiv:1909.13719", summary="a few random operations of one strength"
)
class RandAugment(Operations):
    """``count`` operations of fourteen, each of strength ``magnitude`` of 30 (Cubuk et al. 2020, figure 2)."""

    def table(self, plan: EpochPlan) -> Table:
        draws = plan.strong.double()[:, : 2 * self.config.count]
        operation = (draws[:, 0::2] * OPERATIONS.index("invert")).long()  # inversion, the last, is AutoAugment's alone
        amount = magnitudes(31, *self.size)[:, self.config.magnitude][operation]
        amount = torch.where(SIGNED[operation] & (draws[:, 1::2] < 0.5), -amount, amount)
        return operation, amount, self._box(plan)


@dataclass(frozen=True, kw_only=True)
class AutoAugmentConfig:
    """Settings of AutoAugment."""

    name: str = setting("autoaugment", choices=["autoaugment"])
    form: str = _form()
    policy: str = setting("cifar10", choices=["cifar10", "imagenet", "svhn"], help="data set the policy was found on")
    cutout: float = _cutout()


def sub_policies(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """The published sub-policies, as torchvision lists them: operation, probability and strength of ten, [25, 2]."""
    from torchvision.transforms import AutoAugment as Published
    from torchvision.transforms import AutoAugmentPolicy

    listed = Published(AutoAugmentPolicy(name)).policies
    spelled = {code.replace("_", ""): number for number, code in enumerate(OPERATIONS)}
    operation = torch.tensor([[spelled[op.lower()] for op, _, _ in pair] for pair in listed])
    probability = torch.tensor([[p for _, p, _ in pair] for pair in listed], dtype=torch.float64)
    strength = torch.tensor([[m or 0 for _, _, m in pair] for pair in listed])
    return operation, probability, strength


@augments.register(
    "autoaugment", config=AutoAugmentConfig, paper="arXiv:1805.09501", summary="one of 25 learned pairs of operations"
)
class AutoAugment(Operations):
    """A sub-policy per image: two operations, each with its probability and strength (Cubuk et al. 2019)."""

    def table(self, plan: EpochPlan) -> Table:
        draws = plan.strong.double()
        listed = sub_policies(self.config.policy)
        operation, probability, strength = (t[(draws[:, 0] * len(listed[0])).long()] for t in listed)
        amount = magnitudes(10, *self.size)[operation, strength]
        amount = torch.where(SIGNED[operation] & (draws[:, 3:5] < 0.5), -amount, amount)
        operation = torch.where(draws[:, 1:3] < probability, operation, 0)
        return operation, amount, self._box(plan)


def create_policy(config: Any, data: TrainData) -> Policy | None:
    """The policy a configuration describes, for images of a data set; ``None`` for no configuration.

    Raises:
        ExperimentError: the policy and the images do not go together.
    """
    if config is None:
        return None
    policy: Policy = augments.get(config.name)(config, data.dataset.size, data.dataset.mean)
    policy.check_channels(data.dataset.channels)
    if policy.mixes and len(data.train) < 2:
        problem = f"mixes training images, and there is {len(data.train)}; it needs at least two"
        raise ExperimentError(problem, key="method.augment", value=config.name)
    return policy


def check(config: Any, host: str, taught: bool, where: Callable[[str], str | None] = lambda key: None) -> None:
    """Refuse settings of a policy that cannot go together, or with a method.

    Args:
        config: of the policy.
        host: name of the method's host.
        taught: the host learns from a teacher.
        where: dotted key -> where it was written.

    Raises:
        ExperimentError: says why.
    """

    def refuse(name: str, problem: str) -> NoReturn:
        key = f"method.augment.{name}"
        raise ExperimentError(problem, key=key, value=getattr(config, name), where=where(key))

    if config.form == "second" and not taught:
        problem = f"a second view has no label but the teacher's, and {host} learns from no teacher; form: only can"
        refuse("form", problem)
    criterion = getattr(config, "criterion", "")
    if criterion and criterion != "student_entropy" and not taught:
        problem = f"scores images by the teacher, and {host} learns from none; student_entropy can"
        refuse("criterion", problem)
    if criterion and config.keep > config.pool:
        refuse("keep", f"cannot be more than the pool, which has {config.pool} for each image")
