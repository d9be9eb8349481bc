"""CIFAR: official files where there are some ($AKD_DATA), a tiny stand-in behind a real local server otherwise."""

from __future__ import annotations

import hashlib
import http.server
import io
import multiprocessing
import os
import pickle
import shutil
import socketserver
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets

from akd.data import DataConfig, load, split
from akd.data.augment import Augment
from akd.data.cifar import prepare
from akd.errors import ExperimentError

BASE = "cifar-10-batches-py"
DOWNLOAD = 2  # requests of one download: torchvision asks for redirections first, then for the body


def real() -> Path:
    """The folder with CIFAR-100 that the environment names."""
    folder = os.environ.get("AKD_DATA")
    if not folder or not (Path(folder) / "cifar100" / "cifar-100-python").is_dir():
        pytest.skip("AKD_DATA names no folder that holds cifar100/cifar-100-python")
    return Path(folder)


class TestRealFiles:
    def test_cifar100(self) -> None:
        config = DataConfig(name="cifar100", dir=str(real()))
        dataset = load(config)
        assert dataset.images.shape == (50_000, 3, 32, 32)
        assert dataset.test_images.shape == (10_000, 3, 32, 32)
        assert dataset.images.dtype == torch.uint8
        assert dataset.images.is_contiguous()
        assert dataset.labels.bincount().tolist() == [500] * 100
        assert dataset.test_labels.bincount().tolist() == [100] * 100
        assert dataset.classes[0] == "apple"
        assert len(dataset.classes) == 100
        assert dataset.augment == Augment(padding=4, flip=True)
        part = dataset.images[::5].double() / 255
        assert dataset.mean == pytest.approx(part.mean((0, 2, 3)).tolist(), abs=3e-3)
        assert dataset.std == pytest.approx(part.std((0, 2, 3)).tolist(), abs=3e-3)
        got = split(config, dataset)
        assert (len(got.train), len(got.val)) == (45_000, 5_000)
        assert dataset.labels[got.val].bincount().tolist() == [50] * 100

    def test_the_folder_itself_may_be_named(self) -> None:
        inner = real() / "cifar100"
        assert prepare("cifar100", inner) == inner / "cifar-100-python"  # also where nothing can be written
        assert len(load(DataConfig(name="cifar100", dir=str(inner))).labels) == 50_000

    def test_one_flipped_byte_is_noticed(self, tmp_path: Path) -> None:
        shutil.copytree(real() / "cifar100" / "cifar-100-python", folder := tmp_path / "cifar-100-python")
        folder.chmod(0o755)
        file = folder / "test"
        file.chmod(0o644)
        with open(file, "r+b") as handle:
            handle.seek(20_000_000)
            byte = handle.read(1)[0]
            handle.seek(20_000_000)
            handle.write(bytes([byte ^ 1]))
        with pytest.raises(ExperimentError, match=r"incomplete or damaged \(checksums differ\); remove it and run"):
            load(DataConfig(name="cifar100", dir=str(tmp_path)))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError) as caught:
        load(DataConfig(name="cifar10", dir=str(tmp_path / "no")))
    assert str(caught.value) == (
        f"data.dir: cifar10 is not in {tmp_path / 'no'} (looked for {tmp_path / 'no' / 'cifar10' / BASE}); "
        "fetch it with 'akd data prepare cifar10' or name its folder with --data-dir"
    )
    assert not (tmp_path / "no").exists()


class _Bomb:
    """Unpickling this leaves a trace."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def small_archive() -> tuple[bytes, dict[str, bytes]]:
    """CIFAR-10's layout with two training files of three images and a test file of two."""
    draw = np.random.default_rng(0)

    def part(n: int, first: int) -> bytes:
        pixels = draw.integers(0, 256, (n, 3072), dtype=np.uint8)
        return pickle.dumps({"data": pixels, "labels": [(first + i) % 10 for i in range(n)]}, protocol=2)

    files = {
        "data_batch_1": part(3, 0),
        "data_batch_2": part(3, 3),
        "test_batch": part(2, 7),
        "batches.meta": pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}, protocol=2),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{BASE}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue(), files


class Server:
    """Serves one body over HTTP on loopback and counts requests; ``fail`` is how it misbehaves."""

    def __init__(self, body: bytes):
        self.body, self.requests, self.fail = body, 0, ""
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                if outer.fail == "status":
                    self.send_error(503)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body[: len(outer.body) // 2] if outer.fail == "cut" else outer.body)

            def log_message(self, *args: object) -> None: ...

        class Threads(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True

        self.http = Threads(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/cifar-10-python.tar.gz"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    def md5(content: bytes) -> str:
        return hashlib.md5(content).hexdigest()

    body, files = small_archive()
    served = Server(body)
    kind = datasets.CIFAR10
    monkeypatch.setattr(kind, "url", served.url)
    monkeypatch.setattr(kind, "filename", "cifar-10-python.tar.gz")
    monkeypatch.setattr(kind, "tgz_md5", md5(body))
    monkeypatch.setattr(kind, "train_list", [[n, md5(files[n])] for n in ("data_batch_1", "data_batch_2")])
    monkeypatch.setattr(kind, "test_list", [["test_batch", md5(files["test_batch"])]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(files["batches.meta"])}
    monkeypatch.setattr(kind, "meta", meta)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield served
    served.http.shutdown()
    served.http.server_close()


def visible(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != ".cifar10.lock")


class TestPrepare:
    def test_downloads_once_and_reads(self, server: Server, tmp_path: Path) -> None:
        folder = tmp_path / "data"
        assert prepare("cifar10", folder) == folder / "cifar10" / BASE
        assert prepare("cifar10", folder) == folder / "cifar10" / BASE
        assert server.requests == DOWNLOAD
        assert visible(folder) == ["cifar10"]
        assert [p.name for p in (folder / "cifar10").iterdir()] == [BASE]
        dataset = load(DataConfig(name="cifar10", dir=str(folder)))
        assert dataset.labels.tolist() == [0, 1, 2, 3, 4, 5]
        assert dataset.test_labels.tolist() == [7, 8]
        assert dataset.classes[3] == "class 3"
        pixels = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
        assert dataset.images[0].flatten().tolist() == pixels[0].tolist()  # red, green, blue planes in file order

    def test_a_complete_folder_is_not_written_to(self, server: Server, tmp_path: Path) -> None:
        prepare("cifar10", tmp_path)
        (tmp_path / ".cifar10.lock").unlink(missing_ok=True)
        prepare("cifar10", tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["cifar10"]

    def test_once_for_many_threads(self, server: Server, tmp_path: Path) -> None:
        with ThreadPoolExecutor(6) as pool:
            paths = list(pool.map(lambda _: prepare("cifar10", tmp_path), range(6)))
        assert set(paths) == {tmp_path / "cifar10" / BASE}
        assert server.requests == DOWNLOAD
        assert visible(tmp_path) == ["cifar10"]

    def test_once_for_many_processes(self, server: Server, tmp_path: Path) -> None:
        context = multiprocessing.get_context("fork")  # so that the children see the stand-in's checksums
        children = [context.Process(target=prepare, args=("cifar10", tmp_path)) for _ in range(4)]
        for child in children:
            child.start()
        for child in children:
            child.join(60)
        assert [child.exitcode for child in children] == [0] * 4
        assert server.requests == DOWNLOAD
        assert visible(tmp_path) == ["cifar10"]

    @pytest.mark.parametrize(("fail", "reason"), [("status", "503"), ("cut", "not found or corrupted")])
    def test_failing_download_leaves_nothing_and_can_be_tried_again(
        self, server: Server, tmp_path: Path, fail: str, reason: str
    ) -> None:
        server.fail = fail
        with pytest.raises(ExperimentError, match=rf"cifar10 could not be fetched into .*: .*{reason}") as caught:
            prepare("cifar10", tmp_path)
        assert "\n" not in str(caught.value)
        assert visible(tmp_path) == []
        server.fail = ""
        prepare("cifar10", tmp_path)
        assert visible(tmp_path) == ["cifar10"]

    def test_no_server(self, server: Server, tmp_path: Path) -> None:
        server.http.shutdown()
        server.http.server_close()
        with pytest.raises(ExperimentError, match="could not be fetched"):
            prepare("cifar10", tmp_path)
        assert visible(tmp_path) == []

    def test_an_archive_with_another_checksum(self, server: Server, tmp_path: Path) -> None:
        server.body = server.body[:-1] + bytes([server.body[-1] ^ 1])
        with pytest.raises(ExperimentError, match="corrupted"):
            prepare("cifar10", tmp_path)
        assert visible(tmp_path) == []

    def test_a_folder_that_cannot_be_made(self, server: Server, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(ExperimentError, match=r"could not be fetched into .*: .*(exists|Not a directory)"):
            prepare("cifar10", tmp_path / "file")
        assert server.requests == 0

    @pytest.mark.parametrize("name", ["data_batch_2", "test_batch", "batches.meta"])
    def test_damage_is_noticed_and_nothing_is_unpickled(self, server: Server, tmp_path: Path, name: str) -> None:
        file = prepare("cifar10", tmp_path) / name
        trace = tmp_path / "ran"
        file.write_bytes(pickle.dumps(_Bomb(trace)))
        want = r"incomplete or damaged \(checksums differ\); remove it and run 'akd data prepare cifar10'"
        with pytest.raises(ExperimentError, match=want):
            load(DataConfig(name="cifar10", dir=str(tmp_path)))
        with pytest.raises(ExperimentError, match=want):
            prepare("cifar10", tmp_path)
        assert not trace.exists()
        file.unlink()
        with pytest.raises(ExperimentError, match=want):
            load(DataConfig(name="cifar10", dir=str(tmp_path)))
        assert server.requests == DOWNLOAD
