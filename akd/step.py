"""One step of training: forward passes, terms, loss and gradient, alone or with other workers.

The gradient is that of the global batch however many workers share it. Terms of a relational method are made of
gathered rows and are the same on every worker; others are means over a worker's share and are weighed by its size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from akd.data.batch import Batch
from akd.methods import Method
from akd.models import Output, norm
from akd.teacher.source import TeacherSource
from akd.world import World


class Part(NamedTuple):
    """What a step computed of some rows, detached.

    Attributes:
        batch: the rows.
        loss: weighted sum of the terms.
        terms: unweighted.
        logits: the student's, [rows, C]; ``None`` in a head epoch.
    """

    batch: Batch
    loss: Tensor
    terms: dict[str, Tensor]
    logits: Tensor | None


class _Pair(nn.Module):
    """Student and method as one module, so that one wrapper averages the gradients of both."""

    def __init__(self, student: nn.Module, method: Method, world: World):
        super().__init__()
        self.student, self.method, self.world = student, method, world
        self.maps = any(n.partition(":")[0] in ("maps", "maps_preact", "attention") for n in method.needs)

    def forward(
        self, images: Tensor | None, teacher: Output | None, batch: Batch
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Terms and the student's logits; without images the terms of a head epoch."""
        output = self.student(images) if images is not None else None
        logits = output.logits if output is not None else None
        if self.method.relational and self.world.size > 1:
            output, teacher, batch = (
                self._joined(output, batch),
                self._joined(teacher, batch),
                self._joined_batch(batch),
            )
        if output is None:
            assert teacher is not None
            return self.method.warmup(teacher, batch), None
        return self.method(output, teacher, batch), logits

    def _join(self, tensors: Sequence[Tensor], batch: Batch) -> list[Tensor]:
        """[rows, ...] of this worker -> [rows of all, ...] each; those of one type travel together."""
        found: dict[int, Tensor] = {}
        for dtype in {t.dtype: None for t in tensors}:
            group = [i for i, t in enumerate(tensors) if t.dtype == dtype]
            flat = torch.cat([tensors[i].flatten(1) for i in group], 1)
            # View by view, so that the global batch has its views one after the other as a share has.
            whole = torch.cat([self.world.gather(rows, batch.total) for rows in flat.chunk(batch.views)])
            widths = [tensors[i][0].numel() for i in group]
            for i, part in zip(group, whole.split(widths, 1), strict=True):
                found[i] = part.unflatten(1, tensors[i].shape[1:])
        return [found[i] for i in range(len(tensors))]

    def _joined(self, output: Output | None, batch: Batch) -> Output | None:
        if output is None:
            return None
        maps = list(output.maps) if self.maps else []
        before = list(output.maps_preact or ()) if self.maps else []
        logits, embedding, *rest = self._join([output.logits, output.embedding, *maps, *before], batch)
        return output._replace(
            logits=logits,
            embedding=embedding,
            maps=tuple(rest[: len(maps)]),
            maps_preact=tuple(rest[len(maps) :]) if before else None,
        )

    def _joined_batch(self, batch: Batch) -> Batch:
        # Positions and classes are exact in float64: all columns travel as one.
        names = ("index", "target", "target2", "lam", "view")
        columns = [getattr(batch, name).double()[:, None] for name in names]
        index, target, target2, lam, view = (c[:, 0] for c in self._join(columns, batch))
        return batch._replace(
            index=index.to(batch.index.dtype),
            target=target.to(batch.target.dtype),
            target2=target2.to(batch.target2.dtype),
            lam=lam.to(batch.lam.dtype),
            view=view.to(batch.view.dtype),
            offset=0,
            candidate=None,  # the teacher, who alone reads it, has been asked
        )


class Stepper:
    """Gradients of one run.

    Args:
        student, method: on the device; their parameters get the gradients.
        source: the teacher.
        world: who shares the run.
        amp: run the networks in bfloat16.
        micro_batch: most images of one forward pass; ``None`` takes a worker's share as a whole.
        compiled: run the student through torch.compile; its parameters stay where they are.
    """

    def __init__(
        self,
        student: nn.Module,
        method: Method,
        source: TeacherSource | None,
        *,
        world: World,
        amp: bool,
        micro_batch: int | None = None,
        compiled: bool = False,
    ):
        if compiled:  # shapes are the same in every step; CUDA graphs spare the launches
            graphs = next(student.parameters()).is_cuda
            norm.untraced(student)
            student = torch.compile(student, dynamic=False, mode="reduce-overhead" if graphs else None)  # type: ignore[assignment]
        self.compiled = compiled
        self.method, self.source, self.world, self.amp, self.micro_batch = method, source, world, amp, micro_batch
        self.pair = _Pair(student, method, world)
        self._wrapped: dict[bool, nn.Module] = {}
        self.weights = method.weights()

    def gradients(self, images: Tensor, batch: Batch, heads: bool = False) -> Iterator[Part]:
        """Add a step's gradients to the parameters, part by part; exhausting the iterator completes them.

        Args:
            images: this worker's share of a global batch, [rows, C, H, W].
            heads: a step of a head epoch: the method's parameters alone, no student.
        """
        if heads not in self._wrapped:  # each stage uses other parameters, and the same ones in all its steps
            self._wrapped = {heads: self.world.wrap(self.pair, in_parts=self.micro_batch is not None)}
        pair = self._wrapped[heads]
        parts = list(self._parts(images, batch))
        state = batch.generator.get_state() if len(parts) > 1 else None
        for i, (some, rows) in enumerate(parts):
            if state is not None:  # every part draws the whole batch's random numbers and takes its own
                batch.generator.set_state(state)
            if i + 1 < len(parts):
                with self.world.local(pair):
                    yield self._backward(pair, some, rows, heads)
            else:
                yield self._backward(pair, some, rows, heads)

    def _backward(self, pair: nn.Module, images: Tensor, batch: Batch, heads: bool) -> Part:
        if self.compiled:
            torch.compiler.cudagraph_mark_step_begin()  # what the graph gave in the last step may be overwritten
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.amp):
            teacher = self.source(images, batch) if self.source is not None else None
            terms, logits = pair(None if heads else images, teacher, batch)
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        scale = 1.0
        if not self.method.relational:
            scale = self.world.size * (len(batch.index) // batch.views) / batch.total
        (loss * scale if scale != 1 else loss).backward()
        detached = {name: term.detach() for name, term in terms.items()}
        return Part(batch, loss.detach(), detached, logits.detach() if logits is not None else None)

    def _parts(self, images: Tensor, batch: Batch) -> Iterator[tuple[Tensor, Batch]]:
        share, parts = len(batch.index) // batch.views, self._count(batch)
        if parts == 1:
            yield images, batch
            return
        for low, high in ((share * i // parts, share * (i + 1) // parts) for i in range(parts)):

            def rows(tensor: Tensor, low: int = low, high: int = high) -> Tensor:
                return torch.cat([view[low:high] for view in tensor.chunk(batch.views)])

            yield rows(images), batch.each_column(rows)._replace(offset=batch.offset + low)

    def _count(self, batch: Batch) -> int:
        """Of how many parts a share is made: as many on every worker, which meet in batch normalisation.

        Parts differ by one image at most. Where each image is a part and shares differ, larger ones have a part of two.
        """
        if self.micro_batch is None:
            return 1
        total = batch.total or len(batch.index) // batch.views
        smallest, largest = total // self.world.size, -(-total // self.world.size)
        return min(-(-largest // self.micro_batch), smallest)
