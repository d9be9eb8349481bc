"""What students cost, against numbers counted by hand; a latency is a median, measured once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from akd import costs
from akd.config import Experiment, resolve
from akd.costs import Input
from akd.errors import ExperimentError
from akd.models import create_model

DIGITS = Input(10, 1, (8, 8))


class Tiny(nn.Module):
    """A convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


class TestCount:
    def test_two_layers_by_hand(self) -> None:
        found = costs.count(Tiny(), torch.zeros(1, 1, 4, 4))
        assert found["parameters"] == (2 * 9 + 2) + (2 * 3 + 3)
        assert found["flops"] == 2 * (16 * 2 * 9) + 2 * (2 * 3)  # a multiply-add is two; ReLU and mean are none

    def test_resnet8_by_hand(self) -> None:
        """Stages of 16, 32 and 64 channels with one block each; the last two begin with a stride and a 1x1 shortcut."""
        convolutions = [  # output pixels of an 8x8 image, weights
            (64, 1 * 16 * 9),
            (64, 16 * 16 * 9),
            (64, 16 * 16 * 9),
            (16, 16 * 32 * 9),
            (16, 32 * 32 * 9),
            (16, 16 * 32),
            (4, 32 * 64 * 9),
            (4, 64 * 64 * 9),
            (4, 32 * 64),
        ]
        normalised = 16 * 3 + 32 * 3 + 64 * 3
        found = costs.count(create_model("resnet8", 10, in_channels=1).eval(), DIGITS.images(1))
        assert found["parameters"] == sum(w for _, w in convolutions) + 2 * normalised + 64 * 10 + 10 == 77754
        assert found["flops"] == 2 * (sum(n * w for n, w in convolutions) + 64 * 10) == 1527040

    def test_flops_grow_with_the_image_and_parameters_do_not(self) -> None:
        net = create_model("resnet8", 10, in_channels=1).eval()
        small, large = (costs.count(net, torch.zeros(1, 1, side, side)) for side in (8, 16))
        assert large["parameters"] == small["parameters"]
        assert large["flops"] - 1280 == 4 * (small["flops"] - 1280)

    def test_the_same_for_any_seed_and_batch_of_threads(self) -> None:
        found = costs.counted({n: student("resnet14", n) for n in ("0", "7")}, DIGITS)
        assert found["0"] == found["7"]

    def test_a_network_that_cannot_be_looked_into_has_parameters(self) -> None:
        class Closed(Tiny):
            def forward(self, x: Tensor) -> Tensor:
                raise RuntimeError("compiled")

        assert costs.count(Closed(), torch.zeros(1, 1, 4, 4)) == {"parameters": 29.0}


def student(name: str, seed: str = "0", threads: int = 1) -> Experiment:
    return resolve({"student": name, "train": {"seed": int(seed), "threads": threads}})


class Paced(nn.Module):
    """A network whose passes take so many seconds by a clock of its own."""

    def __init__(self, seconds: Callable[[int], float]):
        super().__init__()
        self.seconds, self.now, self.passes = seconds, 0.0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.now += self.seconds(self.passes)
        self.passes += 1
        return x


class TestLatency:
    def test_the_first_passes_do_not_count(self) -> None:
        net = Paced(lambda n: 5.0 if n < 2 else 0.002)
        assert costs.passes(net, torch.zeros(1), lambda: net.now) == pytest.approx([0.002] * 31)

    def test_few_passes_of_a_slow_network(self) -> None:
        net = Paced(lambda n: 2.0)
        assert costs.passes(net, torch.zeros(1), lambda: net.now) == [2.0] * 3
        assert net.passes == 2 + 3

    def test_students_take_turns_and_the_median_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With the threads of a trial, and then those from before; two of five turns were held up."""
        seen: list[tuple[int, int]] = []

        def turn(network: nn.Module, images: Tensor) -> list[float]:
            seen.append((torch.get_num_threads(), len(images)))
            assert not network.training
            return [len(images) * (100.0 if len(seen) in (1, 2, 3, 4) else 0.001)] * 3

        monkeypatch.setattr(costs, "passes", turn)
        before = torch.get_num_threads()
        students = {"resnet8": student("resnet8", threads=3), "resnet14": student("resnet14", threads=2)}
        found = costs.clocked(students, DIGITS, ["latency_64", "latency_1"], "cpu")
        assert found == {name: {"latency_1": 1.0, "latency_64": 64.0} for name in students}
        assert seen == [(3, 1), (2, 1)] * 5 + [(3, 64), (2, 64)] * 5
        assert torch.get_num_threads() == before

    def test_a_real_one(self) -> None:
        found = costs.clocked({n: student(n) for n in ("resnet8", "wrn_40_2")}, DIGITS, ["latency_1"], "cpu")
        assert 0 < found["resnet8"]["latency_1"] < found["wrn_40_2"]["latency_1"]


class TestFolder:
    def test_what_is_kept_never_changes(self, tmp_path: Path) -> None:
        assert costs.kept(tmp_path) == {}
        costs.keep(tmp_path, {"a": {"parameters": 3.0, "latency_1": 0.5}})
        costs.keep(tmp_path, {"a": {"latency_1": 0.7, "flops": 9.0}, "b": {"parameters": 4.0}})
        wanted = {"a": {"parameters": 3.0, "latency_1": 0.5, "flops": 9.0}, "b": {"parameters": 4.0}}
        assert costs.kept(tmp_path) == wanted
        written = (tmp_path / "costs.json").stat().st_mtime_ns
        costs.keep(tmp_path, {"b": {"parameters": 5.0}})
        assert (tmp_path / "costs.json").stat().st_mtime_ns == written

    @pytest.mark.parametrize("text", ["{", "[]", '{"a": 3}', '{"a": {"flops": "many"}}'])
    def test_a_damaged_file_is_told_in_one_line(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "costs.json").write_text(text)
        with pytest.raises(ExperimentError, match=r"costs\.json: is damaged"):
            costs.kept(tmp_path)

    def test_what_is_lacking(self) -> None:
        table = {"a": {"latency_1": 1.0}, "b": {"flops": 1.0}}
        assert costs.lacking(table, ["a", "b", "c"], ["latency_1"]) == ["b", "c"]
        assert costs.lacking(table, ["a", "b", "c"], []) == []
        assert costs.lacking(table, ["a"], itertools.repeat("latency_1", 2)) == []
