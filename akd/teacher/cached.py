"""CachedTeacher: the network runs once per image, view and pass, for every run that shares them.

What is kept is made in chunks of fixed rows in the order of the data file, whoever makes it, so the values of a pass
are the same bits for every run and every number of workers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from akd.data.batch import Batch
from akd.data.loader import RESIDENT_SHARE, DeviceLoader, Pass, batch_of
from akd.errors import AkdWarning, is_full
from akd.models.output import Output
from akd.teacher import identity
from akd.teacher.cache import Column, Damaged, PassFolder, Store, decode, digest, encode
from akd.teacher.source import LiveTeacher

#: Bytes of a pass that are copied into memory on the CPU; more are read from the mapped files step by step.
RESIDENT = 256 << 20
#: Rows of a part: fewer for small data (sixteen parts are enough to share out), never more or less than these.
PART = (1024, 8192)
#: How often a pass is made again before the network itself is asked: only somebody who keeps removing files needs more.
_TRIES = 5


def attention(feature_map: Tensor) -> Tensor:
    """sqrt(sum_c F_c^2) of [B, C, H, W]: [B, 1, H, W], in float32 or wider; of the same energy as the map."""
    wide = feature_map.to(torch.promote_types(feature_map.dtype, torch.float32))
    return wide.square().sum(1, keepdim=True).sqrt()


def cacheable(needs: Iterable[str]) -> bool:
    """True if all of what a method asks for is kept."""
    return all(need in ("logits", "embedding") or need.startswith("attention:") for need in needs)


def outputs(needs: Iterable[str], maps: int) -> list[str]:
    """The outputs that are kept for ``needs``: ``attention:-1`` of a network of four maps is ``attention3``."""
    found = set()
    for need in needs:
        kind, _, stage = need.partition(":")
        found.add(f"attention{int(stage) % maps}" if kind == "attention" else kind)
    return sorted(found)


class Kept(NamedTuple):
    """One output of all rows of a pass, view after view.

    Attributes:
        parts: [rows, width] each; one piece where the pass fits into memory.
        starts: the first row of each part.
        shape: of one row.
        dtype: what the teacher gives.
    """

    parts: list[Tensor]
    starts: list[int]
    shape: tuple[int, ...]
    dtype: torch.dtype

    def rows(self, rows: Tensor) -> Tensor:
        """[b, ...] of rows [b], on their device."""
        if len(self.parts) == 1:
            found = self.parts[0].index_select(0, rows)
        else:
            found = self._scattered(rows.cpu()).to(rows.device)
        return found.to(self.dtype).unflatten(1, self.shape)

    def _scattered(self, rows: Tensor) -> Tensor:
        of = torch.bucketize(rows, torch.tensor(self.starts), right=True) - 1
        widest = max((p.dtype for p in self.parts), key=lambda dtype: dtype.itemsize)
        found = torch.empty(len(rows), self.parts[0].shape[1], dtype=widest)
        for part in of.unique().tolist():
            here = (of == part).nonzero()[:, 0]
            found[here] = self.parts[part].index_select(0, rows[here] - self.starts[part]).to(widest)
        return found


class Table(NamedTuple):
    """The kept outputs of a pass.

    Attributes:
        number: of the pass's augmentation table.
        place: [n] where each image of the training file is among the rows of a view; -1 where it is not.
        views: candidate -> its place among the views.
        rows: of a view.
        kept: output -> its values.
    """

    number: int
    place: Tensor
    views: Mapping[int, int]
    rows: int
    kept: Mapping[str, Kept]

    def find(self, batch: Batch) -> Tensor:
        """[b] rows of a batch's images in :class:`Kept`."""
        place = self.place[batch.index]
        if batch.candidate is None:
            return place
        first = min(self.views)  # -1 where the standard view is kept too; candidates follow in order
        return place + (batch.candidate - first) * self.rows


class CachedTeacher(LiveTeacher):
    """A teacher whose outputs are kept on disk; what is not there is computed at the start of a pass and kept.

    Args:
        model: as of a :class:`LiveTeacher`.
        needs: logits, embedding and ``attention:<stage>`` only.
        store: where outputs are kept.
        keep: further needs to keep when the network runs anyway: those of other runs that will share its passes.
        half: keep half precision.
        chunk, part: images of a forward pass and rows of a part, for tests; the default suits images and device.

    Attributes:
        keys: of all passes so far.
    """

    def __init__(
        self,
        model: nn.Module,
        needs: frozenset[str],
        store: Store,
        *,
        keep: frozenset[str] = frozenset(),
        half: bool = True,
        chunk: int | None = None,
        part: int | None = None,
    ):
        if not cacheable(needs | keep):
            raise ValueError(f"kept are logits, embedding and attention, not {sorted(needs | keep)}")
        super().__init__(model, needs)
        self.needs, self.keep, self.store, self.half = needs, needs | keep | {"logits"}, store, half
        self.chunk, self.part = chunk, part
        self.keys: set[str] = set()
        self.table: Table | None = None
        self._used: list[PassFolder] = []  # those of the table: what is mapped must not be removed
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self._maps = 0
        self._told = False

    def probe(self, image: Tensor) -> Output:
        out = super().probe(image)
        self._maps = len(out.maps)
        named = {"logits": out.logits, "embedding": out.embedding}
        named |= {f"attention{k}": m[:, :1] for k, m in enumerate(out.maps)}
        self._shapes = {name: tuple(value.shape[1:]) for name, value in named.items()}
        return out

    def before(self, view: Pass, amp: bool) -> None:
        """Have every output of the pass at hand: found, or made together with whoever else needs it.

        On a full disk they are made for this run alone, in memory: the same values, so that a result does not tell of
        the disk. Where nothing can be kept at all (no permission, too much for memory) the network itself is asked.
        """
        for _ in range(_TRIES):
            self.table = None
            self._let_go()
            try:
                self.table = self._table(view, amp)
                return
            except (Damaged, FileNotFoundError):
                continue
            except OSError as error:
                self._let_go()
                if is_full(error):
                    self.table = self._table(view, amp, kept=False)
                self._tell(f"{error.strerror or error}")
                return
        self._tell("files keep vanishing")

    def _let_go(self) -> None:
        for folder in self._used:
            folder.close()
        self._used = []

    def fill(self, view: Pass, amp: bool) -> None:
        """As :meth:`before`, for somebody who does not train on the pass."""
        self.before(view, amp)
        if not self._used:
            raise OSError(f"the teacher's outputs cannot be kept in {self.store.root}")

    def _tell(self, why: str) -> None:
        if not self._told:
            warnings.warn(
                f"the teacher's outputs cannot be kept in {self.store.root}: {why}; it is run", AkdWarning, stacklevel=3
            )
        self._told = True

    def _table(self, view: Pass, amp: bool, kept: bool = True) -> Table | None:
        """The outputs of a pass.

        Args:
            kept: on disk; else in memory, where ``None`` says that they are too much for it.
        """
        loader = view.loader
        work = _Work(self, view, amp)
        if self._shapes is None:
            self.probe(next(loader.plain(loader.data.train[:1]))[0])
        assert self._shapes is not None
        needed = outputs(self.needs, self._maps)
        each = sum(_width(self._shapes[name]) for name in outputs(self.keep, self._maps)) * (2 if self.half else 4)
        candidates = [] if loader.policy is not None and loader.policy.config.form == "only" else [-1]
        candidates += range(loader.policy.pool) if loader.policy is not None else []
        found: dict[str, list[Column]] = {name: [] for name in needed}
        if not kept and each * len(work.rows) * len(candidates) > RESIDENT:
            return None
        for candidate in candidates:
            if not kept:
                for part in range(work.parts):
                    made_now = work.compute(candidate, part)
                    for name in needed:  # by way of the bytes that would be kept, so that they are rounded alike
                        found[name].append(decode(encode(name, made_now[name], self.half)))
                self.made += len(work.rows)
                continue
            facts = self.facts(loader, candidate, amp, work)
            self.keys.add(digest(facts))
            folder = self.store.use(facts, view.number)
            self._used.append(folder)
            compute, need = partial(work.compute, candidate), each * len(work.rows)
            made = folder.fill(needed, work.parts, compute, half=self.half, need=need)
            self.made += sum(len(work.of(part)) for part in made)
            for name in needed:
                found[name] += folder.read(name, work.parts)
        place = torch.full((len(loader.labels),), -1)
        place[work.rows] = torch.arange(len(work.rows))
        views = {candidate: k for k, candidate in enumerate(candidates)}
        return Table(view.number, place.to(loader.device), views, len(work.rows), self._kept(found, loader.device))

    def _kept(self, found: Mapping[str, Sequence[Column]], device: torch.device) -> dict[str, Kept]:
        total = sum(c.values.nbytes for columns in found.values() for c in columns)
        most = RESIDENT
        if device.type == "cuda":
            most = int(RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0])
        kept = {}
        for name, columns in found.items():
            parts = [c.values for c in columns]
            starts = [0, *torch.tensor([len(p) for p in parts]).cumsum(0).tolist()][:-1]
            if total <= most:
                parts, starts = [torch.cat(parts).to(device)], [0]
            kept[name] = Kept(parts, starts, columns[0].shape, columns[0].dtype)
        return kept

    def facts(self, loader: DeviceLoader, candidate: int, amp: bool, work: _Work) -> dict[str, Any]:
        """What the values of a view depend on."""
        return {
            "teacher": identity.fingerprint(self.model),
            **identity.pictures(loader, candidate),
            **identity.arithmetic(loader.device),
            "amp": amp,
            "kept": "float16" if self.half else "float32",
            "chunk": [work.chunk, work.part],
        }

    def __call__(self, images: Tensor, batch: Batch) -> Output:
        table = self.table
        if table is None:
            return super().__call__(images, batch)
        if batch.number != table.number:
            raise ValueError(f"the batch is of pass {batch.number}, at hand is {table.number}")
        self.asked += len(batch.index)
        rows = table.find(batch)
        found = {name: kept.rows(rows) for name, kept in table.kept.items()}
        some = next(iter(found.values()))
        none = some.new_empty(len(rows), 0)
        maps = tuple(found.get(f"attention{k}", none[:, :, None, None]) for k in range(self._maps))
        return Output(found.get("logits", none), found.get("embedding", none), maps)


def _width(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def chunk_of(height: int, width: int, device: torch.device) -> int:
    """Images of a forward pass. On a CPU few, whose maps stay in its caches: of 32x32 pixels, 32 at a time take the
    least time for each image, and 128 up to a tenth more (WRN-16-2, WRN-40-2, ResNet-32x4)."""
    if device.type == "cuda":
        return batch_of(height, width)
    return max(8, min(256, (1 << 15) // (height * width)))


class _Work:
    """How the rows of a pass are cut into parts and chunks, and what the network makes of them."""

    def __init__(self, source: CachedTeacher, view: Pass, amp: bool):
        self.source, self.view, self.amp = source, view, amp
        loader = view.loader
        self.rows = loader.data.train.sort().values
        self.chunk = source.chunk or chunk_of(*loader.data.dataset.size, loader.device)
        low, high = (max(1, rows // self.chunk) for rows in PART)
        chunks = -(-len(self.rows) // self.chunk)
        self.part = source.part or self.chunk * min(high, max(low, -(-chunks // 16)))
        self.parts = -(-len(self.rows) // self.part)

    def of(self, part: int) -> Tensor:
        """The rows of a part."""
        return self.rows[part * self.part : (part + 1) * self.part]

    @torch.no_grad()
    def compute(self, candidate: int, part: int) -> dict[str, Tensor]:
        """Everything that is kept of a part."""
        names = outputs(self.source.keep, self.source._maps)
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        for rows in self.of(part).split(self.chunk):
            images = self.view.images(rows, candidate).to(self.source.dtype)
            with torch.autocast(images.device.type, torch.bfloat16, enabled=self.amp):
                out = self.source.model(images)
            for name in names:
                stage = name.removeprefix("attention")
                found[name].append(attention(out.maps[int(stage)]) if stage != name else getattr(out, name))
        return {name: torch.cat(values).cpu() for name, values in found.items()}
