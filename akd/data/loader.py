"""Batches straight from the device: uint8 images stay there, the plan says what happens to them.

Images that are too many for that stay where they are, usually in a memory-mapped file, and go to the device batch by
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from akd.data.augment import normalise
from akd.data.batch import Batch
from akd.data.dataset import Dataset, TrainData
from akd.data.operations import ship
from akd.data.pick import best
from akd.data.plan import EpochPlan, training_order
from akd.data.policies import Policy
from akd.seeds import generator

if TYPE_CHECKING:
    from akd.world import World


#: Images are kept on a GPU if they take at most this share of the memory that is free there when a run starts.
RESIDENT_SHARE = 0.25


def resident(images: Tensor, device: torch.device) -> bool:
    """True if ``images`` may lie on the device as a whole. On the CPU they always lie where they are: no copy."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes <= RESIDENT_SHARE * free


def gather(images: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """Some images, read on the CPU (from a memory-mapped file: only these) and moved to the device.

    Args:
        images: [n, C, H, W] on the CPU.
        rows: [b] positions on the CPU.
    """
    # From pinned memory the copy does not wait for the steps the GPU still has to do.
    batch = torch.empty(len(rows), *images.shape[1:], dtype=images.dtype, pin_memory=device.type == "cuda")
    torch.index_select(images, 0, rows, out=batch)
    return batch.to(device, non_blocking=True)


def batch_of(height: int, width: int, device: torch.device | str | None = None) -> int:
    """Images of a batch that nothing is trained on: 512, fewer where they are large.

    Args:
        device: a CPU is given 64 of 32x32, whose feature maps its caches and its allocator serve from what they hold:
            an image costs half of what it costs in batches of 512 (ResNet-8x4, WRN-16-2). Others are given memory's
            worth.
    """
    cpu = device is not None and torch.device(device).type == "cpu"
    pixels, least = (64 * 32 * 32, 8) if cpu else (512 * 128 * 128, 1)
    return max(least, min(512, pixels // (height * width)))


def evaluation_batch(dataset: Dataset, device: torch.device | str | None = None) -> int:
    """:func:`batch_of` a data set's images."""
    return batch_of(*dataset.size, device)


def held_out_images(dataset: Dataset, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
    """The test images as they are, 0..255, with labels; one batch after the other, never all at once."""
    device = torch.device(device)
    for rows in torch.arange(len(dataset.test_labels)).split(evaluation_batch(dataset, device)):
        yield dataset.plain(gather(dataset.test_images, rows, device)), dataset.test_labels[rows].to(device)


def held_out_batches(dataset: Dataset, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
    """As :func:`held_out_images`, normalised."""
    mean, std = (torch.tensor(v, dtype=torch.float64, device=device) for v in (dataset.mean, dataset.std))
    for images, labels in held_out_images(dataset, device):
        yield normalise(images, mean, std), labels


class Rows(NamedTuple):
    """Rows of the training file, on the CPU and on the device."""

    here: Tensor
    there: Tensor

    def part(self, low: int, high: int) -> Rows:
        return Rows(self.here[low:high], self.there[low:high])


class Labels(NamedTuple):
    """The first fields of a :class:`Batch`, all [B]."""

    index: Tensor  # type: ignore[assignment]  # as in Batch
    target: Tensor
    target2: Tensor
    lam: Tensor
    view: Tensor


class StrongRows:
    """What a policy draws in one pass, for every image of the training file and every candidate; on the CPU."""

    def __init__(self, policy: Policy, plan: EpochPlan, train: Tensor):
        self.policy = policy
        plans = [plan.other(k) for k in range(policy.pool)]
        self.table = [torch.stack(each, 1) for each in zip(*(policy.table(p) for p in plans), strict=True)]
        self.partner = torch.stack([p.partner(train) for p in plans], 1) if policy.mixes else None

    def of(self, rows: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """The policy's arguments and the partners for rows [b]: [pool * b, ...], candidate by candidate."""

        def taken(values: Tensor) -> Tensor:
            return values[rows].transpose(0, 1).flatten(0, 1)

        return [taken(t) for t in self.table], None if self.partner is None else taken(self.partner)


class DeviceLoader:
    """Training batches of one worker.

    Args:
        data: files, rows and standard view.
        batch_size: size of the *global* batch; the last partial batch of a pass is dropped.
        seed: training order and the step generator.
        plan_seed: augmentation.
        device, dtype: of the images handed out.
        world: which share of each global batch is this worker's.
        policy: makes strong views; ``None`` leaves the standard one.
        passes: over the training rows in an epoch, each with images and order of its own.

    Attributes:
        steps: in an epoch.
        score: images [b, C, H, W], normalised -> [b]; a policy that picks needs it.
    """

    def __init__(
        self,
        data: TrainData,
        *,
        batch_size: int,
        seed: int,
        plan_seed: int,
        device: torch.device,
        dtype: torch.dtype,
        world: World,
        policy: Policy | None = None,
        passes: int = 1,
    ):
        self.data, self.batch_size, self.seed, self.plan_seed = data, batch_size, seed, plan_seed
        self.device, self.dtype, self.world = device, dtype, world
        self.policy, self.passes = policy, passes
        self.score: Callable[[Tensor], Tensor] | None = None
        self.steps = len(data.train) // batch_size * passes
        self.resident = resident(data.dataset.images, device)
        self.images = data.dataset.images.to(device) if self.resident else data.dataset.images
        self.labels = data.dataset.labels.to(device)
        self.mean = torch.tensor(data.dataset.mean, device=device, dtype=torch.float64)
        self.std = torch.tensor(data.dataset.std, device=device, dtype=torch.float64)

    def epoch(self, epoch: int, stage: str = "step") -> Iterator[tuple[Tensor, Batch]]:
        """The epoch's steps: images [b, C, H, W] normalised, and their :class:`Batch`, b this worker's share.

        With a policy there may be several views of each image, one after the other along b.

        Args:
            epoch: counted from 1; names images and order.
            stage: names the random numbers of the batches' generator.
        """
        draws = generator(stage, self.seed, epoch, device=self.device)
        each = self.steps // self.passes
        for k in range(self.passes):
            number = (epoch - 1) * self.passes + k + 1
            plan = EpochPlan(self.plan_seed, number, len(self.labels))
            order = training_order(self.seed, number, self.data.train)
            on_device = order.to(self.device)
            columns = [column.to(self.device) for column in self.data.augment.columns(plan)]
            strong = None if self.policy is None else StrongRows(self.policy, plan, self.data.train)
            for step in range(each):
                rows = slice(step * self.batch_size, (step + 1) * self.batch_size)
                both = Rows(order[rows], on_device[rows])
                yield self._step(both, columns, strong, epoch, k * each + step, draws)

    def _step(
        self,
        rows: Rows,
        columns: list[Tensor],
        strong: StrongRows | None,
        epoch: int,
        step: int,
        draws: torch.Generator,
    ) -> tuple[Tensor, Batch]:
        """One step; ``rows`` are those of the global batch."""
        low, high = self.world.share(self.batch_size)
        mine = rows.part(low, high)
        standard = self._standard(mine, columns)
        if strong is None:
            images, found = self._normalised(standard), self._labelled(mine.there, mine.there, None, 0)
        else:
            images, found = self._strong(strong, rows, low, high, standard, columns)
        views = len(images) // len(standard)
        if strong is not None and strong.policy.config.form == "second":
            images = torch.cat([self._normalised(standard), images])
            plain = self._labelled(mine.there, mine.there, None, 0)
            found = Labels(*(torch.cat(pair) for pair in zip(plain, found, strict=True)))
            views += 1
        return images, Batch(*found, epoch, step, draws, low, self.batch_size, views)

    def _standard(self, rows: Rows, columns: list[Tensor]) -> Tensor:
        there = rows.there
        return self.data.augment(self._gather(there, rows.here), *(column[there] for column in columns))

    def _normalised(self, images: Tensor) -> Tensor:
        return normalise(images, self.mean, self.std, self.dtype)

    def _labelled(self, index: Tensor, other: Tensor, lam: Tensor | None, view: int) -> Labels:
        """What a batch says of the images ``index``, mixed with the rows ``other``, or of one piece without ``lam``."""
        target = self.labels[index]
        if lam is None:
            lam = torch.ones(len(index), device=self.device, dtype=self.dtype)
            second = target
        else:
            second = self.labels[other]
        return Labels(index, target, second, lam, torch.full_like(index, view))

    def _strong(
        self, strong: StrongRows, rows: Rows, low: int, high: int, standard: Tensor, columns: list[Tensor]
    ) -> tuple[Tensor, Labels]:
        """This worker's strong views, normalised, and what a :class:`Batch` says of them."""
        policy, view = strong.policy, int(strong.policy.config.form == "second")
        mine = rows.part(low, high)
        table, partner = strong.of(mine.here)
        images = standard.repeat(policy.pool, 1, 1, 1) if policy.pool > 1 else standard
        others = None
        if partner is not None:
            others = self._standard(Rows(partner, ship(partner, self.device)), columns)
        images = self._normalised(policy(images, others, self.dtype, *table))
        if policy.criterion:
            images, index, partner, lam = self._picked(strong, rows, low, high, images)
            return images, self._labelled(index, partner, lam, view)
        index = mine.there.repeat(policy.pool)
        if partner is None:
            return images, self._labelled(index, index, None, view)
        lam = ship(policy.lam(*table).to(self.dtype), self.device)
        return images, self._labelled(index, ship(partner, self.device), lam, view)

    @torch.no_grad()
    def _picked(
        self, strong: StrongRows, rows: Rows, low: int, high: int, images: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """This worker's share of the best candidates of the global batch: images, rows, partners and lam.

        The scores of all workers decide, so the choice does not hang on how many there are; the candidates travel with
        them, because those that are kept are seldom spread evenly.
        """
        policy = strong.policy
        if self.score is None:
            raise ValueError(f"{policy.config.name} picks by {policy.criterion}, and nothing scores: set loader.score")
        pool = (policy.pool, high - low)
        scores = self.world.gather(self.score(images).unflatten(0, pool).transpose(0, 1).contiguous(), self.batch_size)
        images = self.world.gather(images.unflatten(0, pool).transpose(0, 1).contiguous(), self.batch_size)
        kept = best(scores.flatten(), policy.keep * self.batch_size).view(policy.keep, -1)[:, low:high].flatten()
        table, partner = strong.of(rows.here)  # of the global batch, candidate by candidate
        assert partner is not None
        by_image = (kept % policy.pool) * self.batch_size + kept // policy.pool
        lam = ship(policy.lam(*table).to(self.dtype), self.device)[by_image]
        index = rows.there[kept // policy.pool]
        return images.flatten(0, 1)[kept], index, ship(partner, self.device)[by_image], lam

    def plain(self, rows: Tensor, batch_size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images as they are (no augmentation) and labels of ``rows`` of the training file, batch by batch."""
        for part in rows.split(batch_size or evaluation_batch(self.data.dataset, self.device)):
            there = part.to(self.device)
            images = self.data.dataset.plain(self._gather(there, part))
            yield self._normalised(images), self.labels[there]

    def _gather(self, there: Tensor, here: Tensor) -> Tensor:
        """Images on the device; ``there`` and ``here`` are the same rows, on the device and on the CPU."""
        return self.images.index_select(0, there) if self.resident else gather(self.images, here, self.device)
