"""The folder of kept outputs: whole or not at all, with many writers, killed writers and little room."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from akd.teacher import cache
from akd.teacher.cache import Damaged, PassFolder, Store, decode, digest, encode

FACTS = {"teacher": "abc", "rows": 40}
PARTS, ROWS = 6, 40
GB = 10**9
SPAWN = multiprocessing.get_context("spawn")


def values(part: int, output: str = "logits") -> Tensor:
    """What a part holds, from its number alone."""
    draw = torch.Generator().manual_seed(100 * part + len(output))
    shape = (ROWS, 7) if output == "logits" else (ROWS, 1, 4, 4)
    return torch.randn(*shape, generator=draw)


def compute(part: int) -> dict[str, Tensor]:
    return {output: values(part, output) for output in ("logits", "attention2")}


def fill(root: Path, compute: Callable[[int], dict[str, Tensor]] = compute, **kw: Any) -> list[int]:
    with Store(root, GB).use(FACTS, 1) as folder:
        return folder.fill(["logits", "attention2"], PARTS, compute, half=False, **kw)


def whole(root: Path) -> None:
    """Every part of every output is there and holds what it should."""
    with Store(root, GB).use(FACTS, 1) as folder:
        for output in ("logits", "attention2"):
            for part, column in enumerate(folder.read(output, PARTS)):
                want = values(part, output)
                assert column.shape == want.shape[1:]
                assert torch.equal(column.values.view_as(want), want)


def half_read(root: Path) -> None:
    """Whatever can be read by now is right."""
    for path in root.rglob("*.arrow"):
        part, output, _ = path.stem.split("-")
        assert cache._compare(path) is None, path
        want = values(int(part), output)
        assert torch.equal(decode(path).values.view_as(want), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("half", [True, False])
def test_values_come_back(dtype: torch.dtype, half: bool, tmp_path: Path) -> None:
    given = (3 * torch.randn(5, 1, 2, 3, generator=torch.Generator().manual_seed(0))).to(dtype)
    (tmp_path / "x.arrow").write_bytes(encode("attention0", given, half))
    column = decode(tmp_path / "x.arrow")
    assert (column.shape, column.dtype) == ((1, 2, 3), dtype)
    assert column.values.dtype == (torch.float16 if half else torch.float32)
    back = column.values.to(dtype).view_as(given)
    if dtype == torch.bfloat16:
        assert torch.equal(back, given)  # eight bits are in eleven
    assert torch.allclose(back, given, rtol=2**-11 if half else 1e-7, atol=1e-7)
    assert encode("attention0", given, half) == encode("attention0", given.clone(), half)


@pytest.mark.parametrize("large", [65520.0, 7e4, -1e20])
def test_what_overflows_half_precision_is_kept_in_single(large: float, tmp_path: Path) -> None:
    given = torch.tensor([[1.0, large], [2.0, 3.0]])
    (tmp_path / "x.arrow").write_bytes(encode("logits", given, True))
    assert torch.equal(decode(tmp_path / "x.arrow").values, given)
    (tmp_path / "y.arrow").write_bytes(encode("logits", given.clamp(-65504, 65504), True))
    column = decode(tmp_path / "y.arrow")
    assert column.values.dtype == torch.float16
    assert column.values.isfinite().all()


def test_infinities_are_what_the_teacher_gave(tmp_path: Path) -> None:
    (tmp_path / "x.arrow").write_bytes(encode("logits", torch.tensor([[1.0, -torch.inf, torch.nan]]), True))
    kept = decode(tmp_path / "x.arrow").values
    assert kept.dtype == torch.float16
    assert torch.equal(kept[0, :2], torch.tensor([1.0, -torch.inf]).half())
    assert kept[0, 2].isnan()


def test_only_what_is_missing_is_computed(tmp_path: Path) -> None:
    assert fill(tmp_path) == list(range(PARTS))
    assert fill(tmp_path) == []
    whole(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.arrow")}
    for path in tmp_path.rglob("0002-attention2-*"):
        path.unlink()
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("0002-logits-*")}
    assert fill(tmp_path) == [2]
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.arrow")} == before
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())  # what was there is not written again
    assert not [p for p in tmp_path.rglob(".*") if p.suffix in (".lock", ".tmp") and p.name != ".lock"]


def test_another_fact_is_another_key() -> None:
    names = {digest({**FACTS, **change}) for change in ({}, {"rows": 41}, {"teacher": "abd"}, {"more": None})}
    assert len(names) == 4
    assert digest({"rows": 40, "teacher": "abc"}) == digest(FACTS)


# -- several writers -----------------------------------------------------------------------------------


def _slow(part: int) -> dict[str, Tensor]:
    time.sleep(0.05)
    return compute(part)


def _writer(root: Path, out: Any) -> None:
    out.put(fill(root, _slow))


def test_writers_share_the_parts(tmp_path: Path) -> None:
    out = SPAWN.Queue()
    writers = [SPAWN.Process(target=_writer, args=(tmp_path / "many", out)) for _ in range(3)]
    for writer in writers:
        writer.start()
    made = [out.get(timeout=120) for _ in writers]
    for writer in writers:
        writer.join()
    assert sorted(part for parts in made for part in parts) == list(range(PARTS))  # each was computed once
    whole(tmp_path / "many")
    fill(tmp_path / "one")
    many, one = (
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*.arrow")}
        for root in (tmp_path / "many", tmp_path / "one")
    )
    assert many == one


def _dies(root: Path, moment: str, part: int) -> None:
    """Fill, and be killed at a moment of the making of a part."""

    def die(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def at(number: int) -> dict[str, Tensor]:
        if number == part:
            if moment == "computing":
                die()
            if moment == "cut":
                cache._flushed = lambda path, content: (path.write_bytes(content[: len(content) // 2]), die())
            if moment == "empty":
                cache._flushed = lambda path, content: (path.write_bytes(b""), die())
            if moment == "written":
                cache.os = type("os", (), {**vars(os), "replace": die})
            if moment == "renamed":
                real, count = os.replace, [0]

                def replace(*paths: Any) -> None:
                    real(*paths)
                    count[0] += 1
                    if count[0] == 1:
                        die()

                cache.os = type("os", (), {**vars(os), "replace": staticmethod(replace)})
        return compute(number)

    fill(root, at)


@pytest.mark.parametrize("moment", ["computing", "empty", "cut", "written", "renamed"])
def test_a_writer_killed_at_any_moment_leaves_nothing_half(moment: str, tmp_path: Path) -> None:
    writer = SPAWN.Process(target=_dies, args=(tmp_path, moment, 3))
    writer.start()
    writer.join(120)
    assert writer.exitcode == -signal.SIGKILL
    left = {p.name for p in tmp_path.rglob(".0003*")}
    assert ".0003.lock" in left
    assert any(name.endswith(".tmp") for name in left) == (moment in ("empty", "cut", "written"))
    half_read(tmp_path)
    assert len(list(tmp_path.rglob("*.arrow"))) == 6 + (moment == "renamed")
    assert fill(tmp_path) == [3, 4, 5]
    whole(tmp_path)
    assert not list(tmp_path.rglob(".0003*"))


def test_writers_killed_at_random_moments(tmp_path: Path) -> None:
    """Writer after writer is killed, two at a time; whatever has a name by then is right."""
    draw, out = random.Random(0), SPAWN.Queue()
    for _ in range(4):
        writers = [SPAWN.Process(target=_writer, args=(tmp_path, out)) for _ in range(2)]
        for writer in writers:
            writer.start()
        began = time.monotonic()
        while not list(tmp_path.rglob("*.lock")) and time.monotonic() - began < 60 and writers[0].is_alive():
            time.sleep(0.01)  # interpreters take a while to start
        for writer in writers:
            time.sleep(draw.uniform(0, 0.12))
            os.kill(writer.pid, signal.SIGKILL)
            half_read(tmp_path)
        for writer in writers:
            writer.join()
    fill(tmp_path)
    whole(tmp_path)


def _holds(root: Path, ready: Any) -> None:
    def compute_for_ever(part: int) -> dict[str, Tensor]:
        ready.set()
        time.sleep(600)
        return {}

    fill(root, compute_for_ever)


def test_a_part_that_is_held_is_waited_for_until_its_holder_dies(tmp_path: Path) -> None:
    ready = SPAWN.Event()
    holder = SPAWN.Process(target=_holds, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(120)
    with Store(tmp_path, GB).use(FACTS, 1) as folder:
        assert set(folder.missing(["logits"], PARTS)) == set(range(PARTS))
        made = []

        def killing(part: int) -> dict[str, Tensor]:
            made.append(part)
            if len(made) == PARTS - 1:  # all but the one that is held
                os.kill(holder.pid, signal.SIGKILL)
            return compute(part)

        assert folder.fill(["logits", "attention2"], PARTS, killing, half=False) == [1, 2, 3, 4, 5, 0]
    holder.join()
    whole(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbled", "another's", "header"])
def test_a_damaged_file_is_told_of_removed_and_made_again(damage: str, tmp_path: Path) -> None:
    fill(tmp_path)
    whole(tmp_path)  # compared once already: a change is seen all the same
    (path,) = tmp_path.rglob("0001-logits-*")
    content = path.read_bytes()
    changed = {
        "truncated": content[:-9],
        "empty": b"",
        "garbled": content[:700] + bytes([content[700] ^ 1]) + content[701:],
        "another's": next(iter(tmp_path.rglob("0002-logits-*"))).read_bytes(),
        "header": b"\xff" * 64 + content[64:],
    }[damage]
    path.write_bytes(changed)
    with Store(tmp_path, GB).use(FACTS, 1) as folder:
        with pytest.warns(UserWarning, match="is damaged"), pytest.raises(Damaged):
            folder.read("logits", PARTS)
        assert not path.exists()
        assert folder.fill(["logits", "attention2"], PARTS, compute, half=False) == [1]
    assert path.read_bytes() == content
    whole(tmp_path)


def test_a_garbled_temporary_file_is_nobodys(tmp_path: Path) -> None:
    with Store(tmp_path, GB).use(FACTS, 1) as folder:
        for name in (".0000-logits.tmp", ".0000.lock", ".0004-attention2.tmp"):
            (folder.folder / name).write_bytes(b"nonsense")
        (folder.folder / "notes.txt").write_text("not ours")
    assert fill(tmp_path) == list(range(PARTS))
    whole(tmp_path)


# -- room ----------------------------------------------------------------------------------------------


def passes(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.glob("*/[0-9]*"))


def stocked(root: Path, budget: int, keys: tuple[str, ...], numbers: int) -> tuple[Store, int]:
    """A store of some passes under each key, used in this order, and the bytes of one of them."""
    store = Store(root, GB)
    for age, key in enumerate(keys):
        for number in range(1, numbers + 1):
            with store.use({"key": key}, number) as folder:
                folder.fill(["logits"], 2, lambda part: {"logits": values(part)}, half=False)
            os.utime(folder.folder, (1000 + age, 1000 + age))
    store.budget = budget
    return store, cache.size_of(folder.folder)


def test_the_key_unused_for_longest_gives_first_and_its_last_pass_before_its_first(tmp_path: Path) -> None:
    store, each = stocked(tmp_path, 0, ("old", "new"), 3)
    old, new = digest({"key": "old"}), digest({"key": "new"})
    store.budget = 4 * each
    store.make_room(0)
    assert passes(tmp_path) == sorted([f"{old}/000001", *(f"{new}/{n:06d}" for n in (1, 2, 3))])
    store.use({"key": "old"}, 1).close()  # now it is the newer one
    store.make_room(each)
    assert passes(tmp_path) == sorted([f"{old}/000001", *(f"{new}/{n:06d}" for n in (1, 2))])
    store.make_room(3 * each)
    assert passes(tmp_path) == [f"{old}/000001"]
    assert not (tmp_path / new).exists()
    store.make_room(10 * each)
    assert passes(tmp_path) == []


def test_the_working_folder_of_a_process_is_no_key(tmp_path: Path) -> None:
    """``akd teacher cache`` has its runs there, 0, 1, ..., while it makes room for what they write."""
    store, _ = stocked(tmp_path, 0, ("key",), 2)
    work = tmp_path / ".fill-abc" / "0"
    work.mkdir(parents=True)
    store.make_room(0)
    assert passes(tmp_path) == [".fill-abc/0"]


def test_a_pass_in_use_stays(tmp_path: Path) -> None:
    store, _ = stocked(tmp_path, 1, ("key",), 3)
    with store.use({"key": "key"}, 2) as used:
        store.make_room(0)
        assert passes(tmp_path) == [f"{digest({'key': 'key'})}/000002"]
        assert torch.equal(used.read("logits", 2)[1].values, values(1))
    store.make_room(0)
    assert passes(tmp_path) == []


def test_what_was_read_outlives_its_removal(tmp_path: Path) -> None:
    store, _ = stocked(tmp_path, 0, ("key",), 1)
    with store.use({"key": "key"}, 1) as used:
        columns = used.read("logits", 2)
    store.make_room(0)
    assert passes(tmp_path) == []
    assert torch.equal(columns[0].values, values(0))
    with store.use({"key": "key"}, 1) as used, pytest.raises(FileNotFoundError):
        used.read("logits", 2)


def test_filling_keeps_to_the_budget(tmp_path: Path) -> None:
    store, each = stocked(tmp_path / "measure", 0, ("key",), 1)
    store = Store(tmp_path / "cache", int(3.5 * each))
    made = []
    for _ in range(2):  # two runs of five passes with room for three
        for number in range(1, 6):
            with store.use(FACTS, number) as folder:
                made += [number] * len(
                    folder.fill(["logits"], 2, lambda part: {"logits": values(part)}, half=False, need=each)
                )
            assert cache.size_of(tmp_path / "cache") <= store.budget + 2000  # the key's own description
    assert made == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, *(n for n in (3, 4, 5) for _ in range(2))]


def test_what_a_killed_remover_left_is_removed(tmp_path: Path) -> None:
    store, _ = stocked(tmp_path, GB, ("key",), 2)
    key = tmp_path / digest({"key": "key"})
    (key / "000002").rename(key / ".gone-000002-77")
    store.make_room(0)
    assert sorted(p.name for p in key.iterdir()) == ["000001", "key.json"]


def test_a_full_disk_makes_room_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = stocked(tmp_path, GB, ("other",), 3)
    real, refused = cache._flushed, [0]

    def flushed(path: Path, content: bytes) -> None:
        if len(passes(tmp_path)) > 3:  # until something is removed
            refused[0] += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    monkeypatch.setattr(cache, "_flushed", flushed)
    with store.use(FACTS, 1) as folder:
        assert folder.fill(["logits"], 2, lambda part: {"logits": values(part)}, half=False) == [0, 1]
    assert refused == [1]
    monkeypatch.setattr(cache, "_flushed", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with store.use(FACTS, 2) as folder, pytest.raises(OSError, match="full"):
        folder.fill(["logits"], 2, lambda part: {"logits": values(part)}, half=False)


def test_a_folder_removed_between_two_steps_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, real, times = Store(tmp_path, GB), os.open, [0]

    def opening(path: Any, *rest: Any) -> int:
        times[0] += 1
        if times[0] == 1:  # before it is opened
            os.rmdir(path)
        handle = real(path, *rest)
        if times[0] == 2:  # before it is locked
            os.rmdir(path)
        return handle

    monkeypatch.setattr(os, "open", opening)
    folder: PassFolder = store.use(FACTS, 1)
    monkeypatch.undo()
    assert times == [3]
    assert folder.folder.is_dir()
    assert os.fstat(folder._handle).st_ino == folder.folder.stat().st_ino
    folder.close()
