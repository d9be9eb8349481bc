"""Folders of pictures: found, decoded once into a store that is whole or absent, and trained on from there."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from akd.cli import main
from akd.config import resolve
from akd.data import DataConfig, Dataset, TrainData, load, split, store
from akd.data import imagefolder as folders
from akd.data.augment import Augment, ResizedCrop, normalise
from akd.data.loader import RESIDENT_SHARE, DeviceLoader, gather, held_out_batches, resident
from akd.errors import ExperimentError
from akd.fit import fit
from akd.folder import export
from akd.world import ALONE, World

CLASSES = ("ant", "bee", "cat")


def picture(path: Path, colour: int, width: int = 20, height: int = 16, seed: int = 0) -> None:
    """A noisy picture whose channel ``colour`` is bright: easy to learn, different everywhere."""
    pixels = np.random.default_rng(seed).integers(0, 90, (height, width, 3), dtype=np.uint8)
    pixels[:, :, colour] += 150
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


def make(folder: Path, train: int = 6, test: int = 3, second: str = "val", **kw: Any) -> Path:
    for part, count in (("train", train), (second, test)):
        for c, name in enumerate(CLASSES):
            for i in range(count):
                picture(folder / part / name / f"{i:03d}.jpg", c, seed=1000 * c + i + 500 * (part == second), **kw)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AKD_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache/store"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return make(tmp_path / "pictures")


def config(folder: Path, **kw: Any) -> DataConfig:
    return DataConfig(**{"name": "imagefolder", "dir": str(folder), "image_size": 8, "validation": 0.34} | kw)


def stores(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.iterdir() if not p.name.endswith(".lock"))


class TestReader:
    def test_counts_classes_and_labels(self, pictures: Path) -> None:
        dataset = load(config(pictures))
        assert dataset.classes == CLASSES
        assert (dataset.images.shape, dataset.test_images.shape) == ((18, 3, 8, 8), (9, 3, 8, 8))
        assert dataset.images.dtype == dataset.test_images.dtype == torch.uint8
        assert dataset.labels.tolist() == [c for c in range(3) for _ in range(6)]
        assert dataset.test_labels.tolist() == [c for c in range(3) for _ in range(3)]
        assert dataset.labels.dtype == torch.int64
        assert dataset.mean == (0.485, 0.456, 0.406)
        assert torch.equal(dataset.images.float().mean((2, 3)).argmax(1), dataset.labels)

    @pytest.mark.parametrize(("width", "height"), [(20, 16), (11, 31), (32, 32), (5, 6)])
    def test_pixels_are_those_of_torchvision(self, tmp_path: Path, width: int, height: int) -> None:
        folder = make(tmp_path / "p", 2, 1, width=width, height=height)
        transform = v2.Compose([v2.Resize(12), v2.CenterCrop(12), v2.PILToTensor()])
        dataset = load(config(folder, image_size=12))
        for images, part in ((dataset.images, "train"), (dataset.test_images, "val")):
            want = torch.stack([image for image, _ in ImageFolder(folder / part, transform)])
            assert torch.equal(images, want)

    def test_grey_palette_and_transparent_pictures(self, tmp_path: Path) -> None:
        folder = make(tmp_path / "p", 2, 1)
        for mode in ("L", "P", "RGBA", "1", "CMYK"):
            suffix = "tiff" if mode == "CMYK" else "png"
            Image.new("RGB", (9, 9), (255, 255, 255)).convert(mode).save(folder / f"train/ant/{mode}.{suffix}")
        dataset = load(config(folder))
        assert len(dataset.labels) == 11
        assert (dataset.images[2:7] > 240).all()

    def test_images_are_mapped_not_read(self, pictures: Path, cache: Path) -> None:
        """Bytes changed in the file show in the tensor: nothing was copied."""
        dataset = load(config(pictures))
        (file,) = cache.glob("*/train.u8")
        with open(file, "r+b") as out:
            out.write(bytes([7, 8, 9]))
        assert dataset.images[0, 0, 0, :3].tolist() == [7, 8, 9]
        assert (
            DeviceLoader(
                split(config(pictures), dataset),
                batch_size=2,
                seed=0,
                plan_seed=0,
                device=torch.device("cpu"),
                dtype=torch.float32,
                world=ALONE,
            ).images.data_ptr()
            == dataset.images.data_ptr()
        )

    def test_second_folder_may_be_called_test(self, tmp_path: Path) -> None:
        assert len(load(config(make(tmp_path / "p", second="test"))).test_labels) == 9

    def test_test_without_classes_beside_val(self, tmp_path: Path) -> None:
        """As the public Tiny-ImageNet comes."""
        folder = make(tmp_path / "p")
        picture(folder / "test/images/1.jpg", 0)
        assert len(load(config(folder)).test_labels) == 9

    def test_test_with_classes_wins(self, tmp_path: Path) -> None:
        folder = make(make(tmp_path / "p", test=2), test=5, second="test")
        assert len(load(config(folder)).test_labels) == 15

    def test_sizes(self, pictures: Path) -> None:
        assert folders.sizes(None, None) == (64, 64)
        assert folders.sizes(224, None) == (224, 256)
        assert folders.sizes(48, None) == (48, 48)
        assert folders.sizes(48, 60) == (48, 60)
        dataset = load(config(pictures, stored_size=10))
        assert dataset.images.shape[2:] == (10, 10)
        assert dataset.size == (8, 8)
        with pytest.raises(ExperimentError, match=r"data\.stored_size = 7: must be at least data\.image_size, 8"):
            load(config(pictures, stored_size=7))

    def test_views(self, tmp_path: Path) -> None:
        folder = make(tmp_path / "p", 2, 1)
        small, large = config(folder, image_size=64), config(folder, image_size=72)
        assert load(small).augment == Augment(padding=8, flip=True, size=64)
        assert load(large).augment == ResizedCrop(stored=82, size=72)
        assert split(replace(small, augment="crop_flip"), load(small)).augment == load(small).augment
        assert split(replace(small, crop_padding=3), load(small)).augment == Augment(padding=3, flip=True, size=64)
        assert split(replace(small, augment="none"), load(small)).augment == Augment(size=64)
        assert split(replace(small, augment="resized_crop"), load(small)).augment == ResizedCrop(64, 64)
        with pytest.raises(ExperimentError, match=r"data\.crop_padding = 2: has no effect: .* resized_crop"):
            split(replace(large, crop_padding=2), load(large))


class TestMistakes:
    def test_no_folder(self, tmp_path: Path, cache: Path) -> None:
        with pytest.raises(ExperimentError, match=r"data\.dir: imagefolder is not in .*gone: .*gone/train holds no"):
            load(config(tmp_path / "gone"))
        make(tmp_path / "p", second="other")
        with pytest.raises(ExperimentError, match=r"p/val or .*p/test holds no folder for each class"):
            load(config(tmp_path / "p"))
        assert not cache.exists()

    def test_other_classes(self, pictures: Path, cache: Path) -> None:
        (pictures / "val/cat").rename(pictures / "val/cow")
        with pytest.raises(ExperimentError, match=r"not the same classes .*: 1 only in train \(cat\), 1 only in val"):
            load(config(pictures))
        assert not cache.exists()

    def test_a_class_without_pictures(self, pictures: Path) -> None:
        for file in (pictures / "train/bee").iterdir():
            file.unlink()
        with pytest.raises(ExperimentError, match=r"train: Found no valid file for the classes bee"):
            load(config(pictures))

    @pytest.mark.parametrize("damage", ["cut", "text", "empty"])
    def test_a_broken_picture(self, pictures: Path, cache: Path, damage: str) -> None:
        broken = pictures / "val/bee/001.jpg"
        whole = broken.read_bytes()
        broken.write_bytes({"cut": whole[:-120], "text": b"no picture", "empty": b""}[damage])
        with pytest.raises(ExperimentError, match=r"val/bee/001\.jpg cannot be read as an image: ") as caught:
            load(config(pictures))
        assert "\n" not in str(caught.value)
        assert stores(cache) == []
        broken.write_bytes(whole)
        assert len(load(config(pictures)).labels) == 18

    def test_pictures_that_change_meanwhile(self, pictures: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def decode(path: Path, size: int) -> Any:
            picture(pictures / "train/ant/000.jpg", 1, seed=77)
            return honest(path, size)

        honest = store.decode
        monkeypatch.setattr(store, "decode", decode)
        with pytest.raises(ExperimentError, match="changed while it was read"):
            load(config(pictures))
        assert stores(cache) == []

    def test_no_room(self, pictures: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = store.shutil.disk_usage(pictures)
        monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage._replace(free=27 * 192 - 1))
        with pytest.raises(ExperimentError, match=r"GB left; name a larger folder with AKD_CACHE_DIR"):
            load(config(pictures))
        monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage._replace(free=27 * 192))
        load(config(pictures))

    def test_cache_that_cannot_be_made(self, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("AKD_CACHE_DIR", str(tmp_path / "file"))
        with pytest.raises(ExperimentError, match=r"cannot be stored in .*(exists|Not a directory).*AKD_CACHE_DIR"):
            load(config(pictures))

    def test_keys_without_effect(self) -> None:
        with pytest.raises(ExperimentError, match=r"data\.image_size = 32: has no effect while name is 'digits'"):
            resolve({"data": {"name": "digits", "image_size": 32}})


class TestStore:
    def test_reused(self, pictures: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = load(config(pictures))
        monkeypatch.setattr(store, "decode", lambda *a: pytest.fail("decoded again"))
        again = load(config(pictures))
        assert torch.equal(again.images, first.images)
        assert again.hash == first.hash
        assert len(stores(cache)) == 1

    def test_two_image_sizes_share_what_is_stored(self, pictures: Path, cache: Path) -> None:
        one, two = (load(config(pictures, image_size=size, stored_size=12)) for size in (8, 10))
        assert len(stores(cache)) == 1
        assert one.hash != two.hash  # networks learn from other pixels

    def test_made_again_when_pictures_change(self, pictures: Path, cache: Path) -> None:
        seen = {load(config(pictures)).hash}
        picture(pictures / "train/cat/001.jpg", 2, seed=99)
        seen.add(load(config(pictures)).hash)
        picture(pictures / "train/cat/100.jpg", 2, seed=98)
        seen.add(load(config(pictures)).hash)
        load(config(pictures, stored_size=9))
        assert len(seen) == 3
        assert len(stores(cache)) == 4

    def test_hash_is_of_the_content(self, pictures: Path, cache: Path) -> None:
        """A copy, or a touched file, is stored again but teachers made for it are found again."""
        before = load(config(pictures)).hash
        os.utime(pictures / "train/ant/000.jpg", (1, 1))
        assert load(config(pictures)).hash == before
        assert len(stores(cache)) == 2
        (pictures / "train/ant/000.jpg").rename(pictures / "train/bee/9.jpg")
        assert load(config(pictures)).hash != before

    def test_hash_reads_no_image(self, pictures: Path) -> None:
        dataset = load(config(pictures))
        before = dataset.hash
        assert replace(dataset, images=torch.empty(0, 3, 8, 8)).hash == before

    def test_a_store_cut_short_is_made_again(self, pictures: Path, cache: Path) -> None:
        want = load(config(pictures)).images.clone()
        for damage in ("train.u8", "store.json"):
            (file,) = cache.glob(f"*/{damage}")
            file.write_bytes(file.read_bytes()[:-2])
            assert torch.equal(load(config(pictures)).images, want)

    def test_a_shared_store_need_not_be_writable(
        self, pictures: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load(config(pictures))
        monkeypatch.setattr(Path, "mkdir", lambda *a, **k: pytest.fail("wrote"))
        load(config(pictures))

    def test_made_once_by_many_processes(
        self, pictures: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = tmp_path / "decoded"

        def decode(path: Path, size: int) -> Any:
            with open(log, "a") as file:  # one short line is written at once
                file.write(f"{path.name} {os.getpid()}\n")
            time.sleep(0.01)
            return honest(path, size)

        def child(queue: Any) -> None:
            torch.set_num_threads(1)
            dataset = load(config(pictures))
            queue.put((dataset.hash, int(dataset.images.sum()), int(dataset.test_images.sum())))

        honest = store.decode
        monkeypatch.setattr(store, "decode", decode)
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        children = [context.Process(target=child, args=(queue,)) for _ in range(4)]
        for process in children:
            process.start()
        answers = {queue.get(timeout=60) for _ in children}
        for process in children:
            process.join(60)
        assert [process.exitcode for process in children] == [0] * 4
        lines = log.read_text().split("\n")[:-1]
        assert len(lines) == 27
        assert len({line.split()[1] for line in lines}) == 1
        assert len(stores(cache)) == 1
        dataset = load(config(pictures))
        assert answers == {(dataset.hash, int(dataset.images.sum()), int(dataset.test_images.sum()))}

    @pytest.mark.parametrize("when", ["decoding", "renaming"])
    def test_killed_builder(self, pictures: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
        """Killed with pictures half decoded, and with everything written but the name."""

        def stuck(*args: Any) -> Any:
            time.sleep(600)

        def decode(path: Path, size: int) -> Any:
            return stuck() if path.parent.parent.name == "val" else honest(path, size)

        honest = store.decode
        with monkeypatch.context() as patch:
            patch.setattr(*((store, "decode", decode) if when == "decoding" else (store.os, "replace", stuck)))
            process = multiprocessing.get_context("fork").Process(target=load, args=(config(pictures),))
            process.start()
            wanted = "train.u8" if when == "decoding" else "store.json"
            _until(lambda: any(p.stat().st_size for p in cache.glob(f".*.building/{wanted}")))
            if when == "decoding":
                _until(lambda: any(np.fromfile(p, np.uint8).any() for p in cache.glob(".*.building/train.u8")))
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join(30)
        assert [name.startswith(".") for name in stores(cache)] == [True]
        # Other pictures by now: the half store of the old ones must go as well.
        if when == "renaming":
            picture(pictures / "train/ant/000.jpg", 0, seed=5)
        dataset = load(config(pictures))
        assert torch.equal(dataset.images.float().mean((2, 3)).argmax(1), dataset.labels)
        assert (dataset.test_images.float().mean((2, 3)).argmax(1) == dataset.test_labels).all()
        assert [name.startswith(".") for name in stores(cache)] == [False]

    def test_prepare(self, pictures: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
        command = ["data", "prepare", "imagefolder", "--data-dir", str(pictures), "--image-size", "8"]
        assert main(command) == 0
        captured = capsys.readouterr()
        (name,) = stores(cache)
        assert captured.out.strip() == str(cache / name)
        assert "27/27" in captured.err
        assert main(command) == 0
        assert "27" not in capsys.readouterr().err
        load(config(pictures))
        assert len(stores(cache)) == 1
        assert main([*command[:-1], "4"]) == 2
        assert "--image-size: data.image_size = 4: must be" in capsys.readouterr().err
        assert main(["data", "prepare", "cifar10", "--stored-size", "40"]) == 2
        assert "has no effect while name is 'cifar10'" in capsys.readouterr().err


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def cut(tmp_path: Path) -> TrainData:
    """Images stored larger than networks see them."""
    settings = config(make(tmp_path / "p", 10, 4), image_size=8, stored_size=12)
    return split(settings, load(settings))


def loader(data: TrainData, world: World = ALONE) -> DeviceLoader:
    kw: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32, "world": world}
    return DeviceLoader(data, batch_size=6, seed=1, plan_seed=2, **kw)


class TestTraining:
    def test_networks_see_the_image_size(self, cut: TrainData, tmp_path: Path) -> None:
        dataset = cut.dataset
        for augment in ("auto", "none", "crop", "resized_crop"):
            data = split(config(tmp_path / "p", augment=augment), dataset)
            images, batch = next(loader(data).epoch(1))
            assert images.shape == (6, 3, 8, 8)
            assert torch.equal(batch.target, dataset.labels[batch.index])
        plain = torch.cat([images for images, _ in loader(cut).plain(cut.val)])
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (dataset.mean, dataset.std))
        assert torch.allclose(plain, normalise(dataset.plain(dataset.images[cut.val]), mean, std), atol=1e-6)
        experiment = resolve({"data": {"name": "imagefolder"}, "student": "resnet8"})
        export(tmp_path / "out", torch.nn.Linear(1, 1), experiment, cut, {})
        assert json.loads((tmp_path / "out/config.json").read_text())["image_size"] == [8, 8]

    def test_test_images_come_batch_by_batch(self, cut: TrainData, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("akd.data.loader.evaluation_batch", lambda dataset, device: 5)
        dataset = cut.dataset
        batches = held_out_batches(dataset, "cpu")
        assert isinstance(batches, Iterator)
        got = list(batches)
        assert [len(labels) for _, labels in got] == [5, 5, 2]
        assert torch.equal(torch.cat([labels for _, labels in got]), dataset.test_labels)
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (dataset.mean, dataset.std))
        want = normalise(dataset.plain(dataset.test_images), mean, std)
        assert torch.allclose(torch.cat([images for images, _ in got]), want, atol=1e-5)

    def test_a_sample_meets_one_box_however_batches_are_shared(self, cut: TrainData) -> None:
        data = replace(cut, augment=ResizedCrop(12, 8))
        whole = list(loader(data).epoch(3))
        shares = [list(loader(data, World(rank, 2)).epoch(3)) for rank in range(2)]
        for step, (images, _) in enumerate(whole):
            assert torch.equal(torch.cat([share[step][0] for share in shares]), images)

    def test_images_that_stay_in_the_file_give_the_same_batches(self, cut: TrainData) -> None:
        here, there = loader(cut), loader(cut)
        there.resident = False
        for (a, _), (b, _) in zip(here.epoch(1), there.epoch(1), strict=True):
            assert torch.equal(a, b)
        for (a, _), (b, _) in zip(here.plain(cut.val, 4), there.plain(cut.val, 4), strict=True):
            assert torch.equal(a, b)

    def test_what_stays_in_the_file(self, cut: TrainData, monkeypatch: pytest.MonkeyPatch) -> None:
        images, need = cut.dataset.images, cut.dataset.images.nbytes
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(need / RESIDENT_SHARE), 10**12))
        assert resident(images, torch.device("cuda"))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(need / RESIDENT_SHARE) - 1, 10**12))
        assert not resident(images, torch.device("cuda"))
        assert resident(images, torch.device("cpu"))

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_gathered_for_a_gpu(self, cut: TrainData) -> None:
        rows = torch.tensor([5, 0, 5, 7])
        got = gather(cut.dataset.images, rows, torch.device("cuda"))
        assert torch.equal(got.cpu(), cut.dataset.images[rows])

    @pytest.mark.parametrize("augment", ["auto", "resized_crop"])
    def test_learns(self, tmp_path: Path, augment: str) -> None:
        folder = make(tmp_path / "p", 40, 1)
        experiment = resolve(
            {
                "data": {"name": "imagefolder", "dir": str(folder), "image_size": 8, "augment": augment},
                "student": "resnet8",
                "method": "none",
                "train": {"epochs": 3, "batch_size": 12, "lr": 0.1, "precision": "float32", "threads": 1},
            }
        )
        result = fit(experiment, split(experiment.data, load(experiment.data)), None)
        assert result.accuracy > 0.9  # a third by chance


TINY = Path(os.environ.get("AKD_DATA", "")) / "tiny-imagenet-20"


@pytest.fixture(scope="module")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("tiny"))


@pytest.mark.skipif(not TINY.is_dir(), reason="AKD_DATA names no folder that holds tiny-imagenet-20")
class TestTinyImageNet:
    @pytest.fixture(autouse=True)
    def dataset(self, cache: Path, tiny_cache: str, monkeypatch: pytest.MonkeyPatch) -> Dataset:
        monkeypatch.setenv("AKD_CACHE_DIR", tiny_cache)
        return load(self.config)

    config = DataConfig(name="imagefolder", dir=str(TINY))

    def test_as_it_lies_there(self, dataset: Dataset) -> None:
        assert dataset.images.shape == (5000, 3, 64, 64)
        assert dataset.test_images.shape == (1000, 3, 64, 64)
        assert dataset.labels.bincount().tolist() == [250] * 20
        assert dataset.test_labels.bincount().tolist() == [50] * 20
        assert list(dataset.classes) == sorted(p.name for p in (TINY / "train").iterdir())
        source = ImageFolder(TINY / "train", v2.PILToTensor())
        for i in range(0, 5000, 307):
            image, label = source[i]
            assert torch.equal(dataset.images[i], image)
            assert int(dataset.labels[i]) == label
        data = split(self.config, dataset)
        assert (len(data.train), len(data.val)) == (4500, 500)

    def test_learns(self) -> None:
        tree = {
            "data": {"name": "imagefolder", "dir": self.config.dir, "subset": 3000, "image_size": 32},
            "student": "wrn_16_1",
            "method": "none",
            "train": {"epochs": 1, "batch_size": 16, "lr": 0.05, "precision": "float32", "threads": 1},
        }
        experiment = resolve(tree)
        result = fit(experiment, split(experiment.data, load(experiment.data)), None)
        assert result.history[-1]["val/loss"] < math.log(20) - 0.05
        assert result.accuracy > 0.1  # a twentieth by chance
