"""Batches straight from the device: uint8 images stay there, the plan says what happens to them.

Images that are too many for that stay where they are, usually in a memory-mapped file, and go to the device batch by
batch, the next one read while a step runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from akd.data.ahead import Ahead
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


def read(images: Tensor, rows: Tensor, pinned: bool) -> Tensor:
    """Some images in memory of their own; from a memory-mapped file only these are read.

    Args:
        images: [n, C, H, W] on the CPU.
        rows: [b] positions on the CPU.
        pinned: from pinned memory a copy to the GPU does not wait for the steps the GPU still has to do.
    """
    batch = torch.empty(len(rows), *images.shape[1:], dtype=images.dtype, pin_memory=pinned)
    torch.index_select(images, 0, rows, out=batch)
    return batch


def gather(images: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """Some images, :func:`read` and moved to the device."""
    return read(images, rows, device.type == "cuda").to(device, non_blocking=True)


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
    """The columns of a :class:`Batch`, all [B]."""

    index: Tensor  # type: ignore[assignment]  # as in Batch
    target: Tensor
    target2: Tensor
    lam: Tensor
    view: Tensor
    candidate: Tensor | None


class StrongRows:
    """What a policy draws in one pass, for every image of the training file and every candidate; on the CPU."""

    def __init__(self, policy: Policy, plan: EpochPlan, train: Tensor):
        self.policy = policy
        plans = [plan.other(k) for k in range(policy.pool)]
        self.table = [torch.stack(each, 1) for each in zip(*(policy.table(p) for p in plans), strict=True)]
        self.partner = torch.stack([p.partner(train) for p in plans], 1) if policy.mixes else None

    def of(self, rows: Tensor, candidate: int | None = None) -> tuple[list[Tensor], Tensor | None]:
        """The policy's arguments and the partners for rows [b]: [pool * b, ...], candidate by candidate.

        Args:
            candidate: give this one's alone, [b, ...].
        """

        def taken(values: Tensor) -> Tensor:
            some = values[rows]
            return some.transpose(0, 1).flatten(0, 1) if candidate is None else some[:, candidate]

        return [taken(t) for t in self.table], None if self.partner is None else taken(self.partner)


class Pass:
    """One pass over the training rows: what every image of it looks like, whoever asks and in whatever order.

    Attributes:
        loader: whose images these are.
        number: of the augmentation table.
        columns: of the standard view, on the device.
        drawn: of the strong views; ``None`` without a policy.
    """

    def __init__(self, loader: DeviceLoader, number: int):
        self.loader, self.number = loader, number
        plan = EpochPlan(loader.plan_seed, number, len(loader.labels))
        self.columns = [column.to(loader.device) for column in loader.data.augment.columns(plan)]
        self.drawn = None if loader.policy is None else StrongRows(loader.policy, plan, loader.data.train)

    def standard(self, rows: Rows) -> Tensor:
        """Standard views [b, C, H, W], 0..255."""
        images = self.loader._gather(rows.there, rows.here)
        return self.loader.data.augment(images, *(column[rows.there] for column in self.columns))

    def strong(self, standard: Tensor, table: list[Tensor], partner: Tensor | None) -> Tensor:
        """Strong views, normalised, from standard ones and their rows of what was drawn."""
        loader = self.loader
        assert loader.policy is not None
        others = None
        if partner is not None:
            others = self.standard(Rows(partner, ship(partner, loader.device)))
        return loader._normalised(loader.policy(standard, others, loader.dtype, *table))

    def images(self, rows: Tensor, candidate: int = -1) -> Tensor:
        """One view of each of ``rows`` [b] of the training file, as the networks see it; -1 is the standard view."""
        standard = self.standard(Rows(rows, rows.to(self.loader.device)))
        if candidate < 0:
            return self.loader._normalised(standard)
        assert self.drawn is not None
        return self.strong(standard, *self.drawn.of(rows, candidate))


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
        repeat: use the first so many augmentation tables again and again; ``None`` has a new one for every pass. The
            training order never repeats.

    Attributes:
        steps: in an epoch.
        score: (images [b, C, H, W] normalised, their batch) -> [b]; a policy that picks needs it.
        before: called with each pass before its first step.
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
        repeat: int | None = None,
    ):
        self.data, self.batch_size, self.seed, self.plan_seed = data, batch_size, seed, plan_seed
        self.device, self.dtype, self.world = device, dtype, world
        self.policy, self.passes, self.repeat = policy, passes, repeat
        self.score: Callable[[Tensor, Batch], Tensor] | None = None
        self.before: Callable[[Pass], None] = lambda view: None
        self.steps = len(data.train) // batch_size * passes
        self.resident = resident(data.dataset.images, device)
        self.images = data.dataset.images.to(device) if self.resident else data.dataset.images
        self.ahead: Ahead | None = None  # while an epoch runs whose images are not on the device
        self.labels = data.dataset.labels.to(device)
        self.mean = torch.tensor(data.dataset.mean, device=device, dtype=torch.float64)
        self.std = torch.tensor(data.dataset.std, device=device, dtype=torch.float64)

    def table(self, number: int) -> int:
        """The augmentation table of the pass ``number``, counted from 1 over all epochs."""
        return number if self.repeat is None else (number - 1) % self.repeat + 1

    def epoch(self, epoch: int, stage: str = "step") -> Iterator[tuple[Tensor, Batch]]:
        """The epoch's steps: images [b, C, H, W] normalised, and their :class:`Batch`, b this worker's share.

        With a policy there may be several views of each image, one after the other along b.

        Args:
            epoch: counted from 1; names images and order.
            stage: names the random numbers of the batches' generator.
        """
        draws = generator(stage, self.seed, epoch, device=self.device)
        ahead = self.ahead = None if self.resident else Ahead(self._read)
        try:
            for k in range(self.passes):
                number = (epoch - 1) * self.passes + k + 1
                order = training_order(self.seed, number, self.data.train)
                rows, view = Rows(order, order.to(self.device)), Pass(self, self.table(number))
                self.before(view)
                yield from self._pass(view, rows, epoch, k, draws)
        finally:
            self.ahead = None
            if ahead is not None:
                ahead.close()

    def _pass(
        self, view: Pass, order: Rows, epoch: int, k: int, draws: torch.Generator
    ) -> Iterator[tuple[Tensor, Batch]]:
        """The steps of an epoch's pass ``k``, counted from 0."""
        each = self.steps // self.passes
        batches = [order.part(n * self.batch_size, (n + 1) * self.batch_size) for n in range(each)]
        for n, rows in enumerate(batches):
            made = self._step(view, rows, epoch, k * each + n, draws)
            if self.ahead is not None and n + 1 < each:
                self._expect(view, batches[n + 1])
            yield made

    def _expect(self, view: Pass, rows: Rows) -> None:
        """Have the images read that the step of ``rows`` will ask for, in the order it does."""
        assert self.ahead is not None
        mine = rows.part(*self.world.share(self.batch_size)).here
        self.ahead.expect(mine)
        partner = None if view.drawn is None else view.drawn.of(mine)[1]
        if partner is not None:
            self.ahead.expect(partner)

    def _step(self, view: Pass, rows: Rows, epoch: int, step: int, draws: torch.Generator) -> tuple[Tensor, Batch]:
        """One step; ``rows`` are those of the global batch."""
        low, high = self.world.share(self.batch_size)
        mine = rows.part(low, high)
        standard = view.standard(mine)

        def batch(found: Labels, views: int) -> Batch:
            index, target, second, lam, kind, candidate = found
            columns = (index, target, second, lam, kind)
            return Batch(*columns, epoch, step, draws, low, self.batch_size, views, view.number, candidate)

        if self.policy is None:
            return self._normalised(standard), batch(self._labelled(mine.there, mine.there, None, 0, None), 1)
        images, found = self._strong(view, rows, low, high, standard, batch)
        views = len(images) // len(standard)
        if self.policy.config.form == "second":
            images = torch.cat([self._normalised(standard), images])
            plain = self._labelled(mine.there, mine.there, None, 0, torch.full_like(mine.there, -1))
            found = Labels(*(torch.cat(pair) for pair in zip(plain, found, strict=True)))  # type: ignore[arg-type]
            views += 1
        return images, batch(found, views)

    def _normalised(self, images: Tensor) -> Tensor:
        return normalise(images, self.mean, self.std, self.dtype)

    def _labelled(
        self, index: Tensor, other: Tensor, lam: Tensor | None, view: int, candidate: Tensor | None
    ) -> Labels:
        """What a batch says of the images ``index``, mixed with the rows ``other``, or of one piece without ``lam``."""
        target = self.labels[index]
        if lam is None:
            lam = torch.ones(len(index), device=self.device, dtype=self.dtype)
            second = target
        else:
            second = self.labels[other]
        return Labels(index, target, second, lam, torch.full_like(index, view), candidate)

    def _strong(
        self, view: Pass, rows: Rows, low: int, high: int, standard: Tensor, batch: Callable[[Labels, int], Batch]
    ) -> tuple[Tensor, Labels]:
        """This worker's strong views, normalised, and what a :class:`Batch` says of them."""
        policy, drawn = self.policy, view.drawn
        assert policy is not None
        assert drawn is not None
        mine, second = rows.part(low, high), int(policy.config.form == "second")
        table, partner = drawn.of(mine.here)
        images = view.strong(standard.repeat(policy.pool, 1, 1, 1) if policy.pool > 1 else standard, table, partner)
        index = mine.there.repeat(policy.pool)
        candidate = torch.arange(policy.pool, device=self.device).repeat_interleave(len(mine.there))
        if partner is None:
            found = self._labelled(index, index, None, second, candidate)
        else:
            lam = ship(policy.lam(*table).to(self.dtype), self.device)
            found = self._labelled(index, ship(partner, self.device), lam, second, candidate)
        if not policy.criterion:
            return images, found
        if self.score is None:
            raise ValueError(f"{policy.config.name} picks by {policy.criterion}, and nothing scores: set loader.score")
        scores = self.score(images, batch(found, policy.pool))
        return self._picked(drawn, rows, low, high, images, scores)

    @torch.no_grad()
    def _picked(
        self, drawn: StrongRows, rows: Rows, low: int, high: int, images: Tensor, scores: Tensor
    ) -> tuple[Tensor, Labels]:
        """This worker's share of the best candidates of the global batch, and what a :class:`Batch` says of them.

        The scores of all workers decide, so the choice does not hang on how many there are; the candidates travel with
        them, because those that are kept are seldom spread evenly.
        """
        policy = drawn.policy
        pool = (policy.pool, high - low)
        scores = self.world.gather(scores.unflatten(0, pool).transpose(0, 1).contiguous(), self.batch_size)
        images = self.world.gather(images.unflatten(0, pool).transpose(0, 1).contiguous(), self.batch_size)
        kept = best(scores.flatten(), policy.keep * self.batch_size).view(policy.keep, -1)[:, low:high].flatten()
        table, partner = drawn.of(rows.here)  # of the global batch, candidate by candidate
        assert partner is not None
        candidate = kept % policy.pool
        by_image = candidate * self.batch_size + kept // policy.pool
        lam = ship(policy.lam(*table).to(self.dtype), self.device)[by_image]
        other = ship(partner, self.device)[by_image]
        second = int(policy.config.form == "second")
        return images.flatten(0, 1)[kept], self._labelled(
            rows.there[kept // policy.pool], other, lam, second, candidate
        )

    def plain(self, rows: Tensor, batch_size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images as they are (no augmentation) and labels of ``rows`` of the training file, batch by batch."""
        for part in rows.split(batch_size or evaluation_batch(self.data.dataset, self.device)):
            there = part.to(self.device)
            images = self.data.dataset.plain(self._gather(there, part))
            yield self._normalised(images), self.labels[there]

    def _gather(self, there: Tensor, here: Tensor) -> Tensor:
        """Images on the device; ``there`` and ``here`` are the same rows, on the device and on the CPU."""
        if self.resident:
            return self.images.index_select(0, there)
        found = self._read(here) if self.ahead is None else self.ahead.take(here)
        return found.to(self.device, non_blocking=True)

    def _read(self, rows: Tensor) -> Tensor:
        return read(self.images, rows, self.device.type == "cuda")
