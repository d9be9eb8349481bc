"""Files of weights: every form that is met in the field, and nothing that runs code."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from akd.errors import ExperimentError
from akd.models import load_weights, read_weights, seeded_model


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return dict(seeded_model("resnet8", 5, 1).state_dict())


def fresh() -> nn.Module:
    return seeded_model("resnet8", 5, 2)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{k}": v for k, v in state.items()}


WRAPS = {
    "bare": lambda s: s,
    "model": lambda s: {"model": s, "epoch": 240, "accuracy": torch.tensor(0.7), "opt": argparse.Namespace(lr=0.1)},
    "state_dict": lambda s: {"state_dict": s, "best": 71.2, "arch": "resnet8"},
    "model_state_dict": lambda s: {"model_state_dict": prefixed(s, "module."), "optimizer": {"state": {}}},
    "nested": lambda s: {"model": {"state_dict": s, "epoch": 3}},
    "compiled": lambda s: prefixed(s, "_orig_mod.module."),
    "old torch": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    "half precision": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
}


@pytest.mark.parametrize("kind", WRAPS)
def test_forms(kind: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(WRAPS[kind](state), tmp_path / "w.pth")
    net = fresh()
    load_weights(net, tmp_path / "w.pth")
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key].half().float() if "half" in kind and value.ndim else state[key]), key


def test_safetensors_by_content(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.bin")
    assert all(torch.equal(v, state[k]) for k, v in read_weights(tmp_path / "w.bin").items())


class Evil:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_code_is_not_run(state: dict[str, Tensor], tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"model": state, "x": Evil(mark)}, tmp_path / "new.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"model": Evil(mark)}, protocol=2))
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    for name in ("new.pth", "old.pth", "module.pth"):
        with pytest.raises(ExperimentError, match="holds Python objects besides tensors") as caught:
            read_weights(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_damaged_files(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pth")
    save_file(state, tmp_path / "w.safetensors")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("epoch,accuracy\n1,0.5\n" * 20)
    for name in ("w.pth", "w.safetensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / f"cut.{name}").write_bytes(whole[: len(whole) // 2])
    for name in ("empty", "text", "cut.w.pth", "cut.w.safetensors"):
        with pytest.raises(ExperimentError, match="damaged") as caught:
            read_weights(tmp_path / name)
        assert "\n" not in str(caught.value), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("fc.bias"), r"does not fit the network: 'fc.bias' \[5\] is not in the file$"),
        (
            lambda s: s.update({"fc2.bias": torch.zeros(3)}),
            r"the file has 'fc2.bias' \[3\], the network has not$",
        ),
        (
            lambda s: s.update({"fc.weight": torch.zeros(100, 64), "fc.bias": torch.zeros(100)}),
            r"'fc.weight' is \[100, 64\] in the file and \[5, 64\] in the network \(1 more differ\)",
        ),
    ],
)
def test_other_networks(change: Any, message: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    changed = dict(state)
    change(changed)
    torch.save(changed, tmp_path / "w.pth")
    net = fresh()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ExperimentError, match=message):
        load_weights(net, tmp_path / "w.pth")
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())  # nothing was loaded


@pytest.mark.parametrize(
    ("content", "held"),
    [({"epoch": 3, "lr": 0.1}, "epoch, lr"), ([1, 2], "list"), ({}, "nothing"), (torch.zeros(2), "Tensor")],
)
def test_no_state_dict(content: Any, held: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ExperimentError, match=f"holds no state dict, but {held}"):
        read_weights(tmp_path / "w.pth")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="there is no such file"):
        read_weights(tmp_path / "w.pth")
    with pytest.raises(ExperimentError, match="is a folder, not a file"):
        read_weights(tmp_path)
