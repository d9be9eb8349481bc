"""What a space can draw is built before a search; the lines are in ``test_mistakes.py``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from akd import forms, spaces
from akd.config import Experiment, load, resolve
from akd.data import Batch, TrainData, split
from akd.data import load as load_data
from akd.errors import ExperimentError
from akd.fit import build_student
from akd.forms import Builder, check
from akd.methods import Method, hosts
from akd.models import Output
from akd.settings import setting
from akd.space import parse
from akd.teacher.keep import build as build_teacher

PROJECTED = {"views": {"name": "angular_kd", "head": "projected"}}


def experiment(method: Any, space: dict[str, Any], **more: Any) -> Experiment:
    return resolve({"data": {"name": "digits", "subset": 100}, "method": method, "space": space, **more})


def builder(of: Experiment) -> Builder:
    data: TrainData = split(of.data, load_data(of.data))
    return Builder(of, data, build_student(of, data), build_teacher(of, data))


def checked(of: Experiment) -> Builder:
    made = builder(of)
    check(parse(of), of, made)
    return made


class TestWhatIsLetGo:
    """What works beside some values of the others is no mistake of the space."""

    def test_a_value_that_some_others_cannot_bear(self) -> None:
        with_init = {
            "method.views.head_width": {"choices": [32, 4]},
            "method.views.head_init": {"choices": ["across", "each"]},
        }
        checked(experiment(PROJECTED, with_init))
        del with_init["method.views.head_init"]
        across = {"views": PROJECTED["views"] | {"head_init": "across"}}
        with pytest.raises(ExperimentError, match=r"^space\.method\.views\.head_width = 4: .*'across'"):
            checked(experiment(across, with_init))

    def test_ends_of_two_ranges_that_do_not_meet(self) -> None:
        """Four features bear up to four views: neither end of either range is always refused."""
        across = {"views": PROJECTED["views"] | {"head_init": "across"}}
        ranges = {
            "method.views.head_width": {"type": "int", "low": 4, "high": 32},
            "method.views.count": {"type": "int", "low": 3, "high": 30},
        }
        checked(experiment(across, ranges))

    def test_first_values_that_fit_nothing_blame_nobody_else(self) -> None:
        """The first choice of ``count`` leaves no width but the widest; widths are right all the same."""
        across = {"views": PROJECTED["views"] | {"head_init": "across"}}
        mixed = {
            "method.views.count": {"choices": [30, 2]},
            "method.views.head_width": {"choices": [4, 8, 32]},
        }
        checked(experiment(across, mixed))

    def test_a_pair_of_names_kept_apart(self) -> None:
        apart = {
            "method.host.name": {"choices": ["kd", "dist"]},
            "method.extra.dist.name": {"choices": ["none", "dist"], "when": {"method.host.name": ["kd"]}},
        }
        checked(experiment("kd", apart))
        del apart["method.extra.dist.name"]["when"]
        with pytest.raises(ExperimentError, match="a 'when' can keep them apart"):
            checked(experiment("kd", apart))


class TestBuilder:
    def test_networks_are_made_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[str] = []

        def counted(of: Experiment, data: TrainData) -> torch.nn.Module:
            made.append(of.student.name)
            return build_student(of, data)

        monkeypatch.setattr(forms, "build_student", counted)
        space = {
            "student.name": {"choices": ["resnet8", "vgg8", "resnet14"]},
            "method.host.stages": {"choices": [[-1], [-2, -1]]},
            "method.host.weight": {"type": "float", "low": 1, "high": 10},
        }
        checked(experiment("fitnet", space))
        assert sorted(made) == ["resnet14", "vgg8"]  # the first is the one that is there

    def test_a_student_of_the_space_that_does_not_fit(self) -> None:
        """resnet8 has four maps, vgg8 five: stage 4 is right for one of them alone, and the teacher has none."""
        space = {"student.name": {"choices": ["resnet8", "vgg8"]}, "method.host.stages": {"choices": [[3], [4]]}}
        with pytest.raises(ExperimentError, match=r"^space\.method\.host\.stages = \[4\]: the (student|teacher) has"):
            checked(experiment("fitnet", space, teacher="wrn_16_1"))
        checked(experiment("fitnet", space, teacher="vgg8"))

    def test_a_student_that_cannot_be_made(self) -> None:
        space = {"student.name": {"choices": ["resnet8", "torchvision:resnet18"]}}
        line = r"^space\.student\.name = 'torchvision:resnet18': takes images of 3 channels, these have 1$"
        with pytest.raises(ExperimentError, match=line):
            checked(experiment("kd", space))

    def test_a_form_is_built_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        built: list[str] = []
        create = forms.create_method
        monkeypatch.setattr(forms, "create_method", lambda *a, **k: (built.append(repr(a[0])), create(*a, **k))[1])
        space = {"train.lr": {"type": "float", "low": 0.01, "high": 0.1}}
        space |= {f"method.host.{k}": {"type": "float", "low": 1, "high": 2} for k in ("weight", "temperature")}
        made = checked(experiment("kd", space))
        assert len(built) == len(set(built)) == len(made._seen) == 5  # the first of all, and two more of each range

    def test_a_teacher_without_maps_before_its_relus(self) -> None:
        space = {"method.host.name": {"choices": ["kd", "reviewkd"]}}
        with pytest.raises(ExperimentError, match=r"^space\.method\.host\.name = 'reviewkd': teacher = .* before the"):
            checked(experiment("kd", space, teacher="tests.foreign.tiny:network"))

    def test_no_weights_are_made(self) -> None:
        """Branches of a billion weights are no reason to refuse a space, nor to fill the memory with them."""
        space = {f"method.views.width_{end}": {"choices": [64, 8192]} for end in ("low", "high")}
        space["method.views.count"] = {"type": "int", "low": 2, "high": 8}
        checked(experiment({"host": "kd", "views": {"name": "mgd"}}, space))

    def test_the_number_of_configurations_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(forms, "MOST", 7)
        space = {"method.host.stages": {"choices": [[s] for s in range(-4, 4)]}}
        assert len(checked(experiment("at", space))._seen) == 7


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str = setting("looks_at_weights", choices=["looks_at_weights"])
    size: int = setting(1)


class LooksAtWeights(Method):
    """A host of another package that cannot be built without weights."""

    def __init__(self, config: Config, *, shapes: Any, label_smoothing: float = 0.0):
        super().__init__()
        if torch.ones(config.size).sum().item() > 2:
            raise ValueError("is too much for me")

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        return {"ce": student.logits.sum()}

    def weights(self) -> dict[str, float]:
        return {"ce": 1.0}


@pytest.fixture
def foreign() -> Iterator[None]:
    hosts.register("looks_at_weights", config=Config)(LooksAtWeights)
    yield
    del hosts._factories["looks_at_weights"], hosts._info["looks_at_weights"]


@pytest.mark.usefixtures("foreign")
def test_a_host_that_looks_at_its_weights_is_built_with_them() -> None:
    checked(experiment("looks_at_weights", {"method.host.size": {"choices": [1, 2]}}))
    with pytest.raises(ExperimentError, match=r"^space\.method\.host\.size = 3: .*cannot be built: is too much for me"):
        checked(experiment("looks_at_weights", {"method.host.size": {"choices": [1, 2, 3]}}))


@pytest.mark.parametrize("name", spaces.names())
def test_shipped_spaces_pass(name: str) -> None:
    made = checked(load(spaces.find(name), {"data": "digits"}))
    assert len(made._seen) > 2
    assert all(error is None for error in made._seen.values())
