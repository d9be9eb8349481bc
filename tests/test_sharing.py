"""What the runs of a search share of the teacher, and who is served how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from akd.config import Experiment, resolve
from akd.prepare import prepare
from akd.sharing import MOST, Sharing, cache_folder, images_of, sharing
from akd.teacher.served import live_because

BASE = {"data": {"name": "digits", "subset": 200}, "teacher": {"name": "wrn_16_1"}, "train": {"batch_size": 16}}
LR = {"train.lr": {"type": "float", "low": 0.01, "high": 0.2}}


def experiment(method: Any, space: Any = None, **teacher: Any) -> Experiment:
    tree = BASE | {"method": method, "space": space or LR}
    return resolve(tree | {"teacher": BASE["teacher"] | teacher})  # type: ignore[operator]


def shared(method: Any, space: Any = None, **teacher: Any) -> Sharing:
    return sharing(prepare(experiment(method, space, **teacher)))


def test_what_any_run_of_the_space_needs_is_kept_together() -> None:
    found = shared("kd", {"method.host.name": {"choices": ["kd", "dist", "crd", "amd", "fitnet", "none"]}})
    assert found.keep == {"logits", "embedding", "attention:-1", "attention:-2", "attention:-3"}
    assert set(found.live) == {"fitnet"}
    assert found.keys == 1
    assert [e.method.title for e in found.views] == ["kd"]
    assert found.words() == [
        "the teacher runs once per image and view; kept are attention:-1, attention:-2, attention:-3, embedding, "
        "logits (1 key)",
        "the teacher runs in every step of fitnet: it reads whole feature maps",
    ]


def test_settings_that_decide_what_is_needed_count() -> None:
    space = {"method.host.stages": {"choices": [[-1], [1, 2]]}}
    assert shared({"host": "at"}, space).keep == {"logits", "attention:-1", "attention:1", "attention:2"}
    space = {"method.views.name": {"choices": ["tekap", "none"]}}
    assert shared("kd", space).keep == {"logits", "embedding"}
    space = {"method.host.preact": {"choices": [True, False]}}
    assert set(shared("reviewkd", space).live) == {"reviewkd"}


POOL = {"method.augment.pool": {"type": "int", "low": 1, "high": 4}}
MAGNITUDE = {"method.augment.magnitude": {"type": "int", "low": 3, "high": 9}}
SERVED: list[tuple[Any, Any, str | None]] = [
    ("kd", {}, None),
    ({"host": "kd", "views": "angular_kd"}, {}, None),
    ({"host": "kd", "views": "mgd"}, {}, None),
    ("amd", {}, None),
    ("crd", {}, None),
    ("fitnet", {}, "it reads whole feature maps"),
    ("reviewkd", {}, "it reads whole feature maps"),
    ({"host": "kd", "extra": ["fitnet"]}, {}, "it reads whole feature maps"),
    ({"host": "kd", "augment": "mixup"}, {}, None),
    ({"host": "kd", "augment": "randaugment"}, {}, None),
    ({"host": "kd", "augment": "cutmix_pick"}, {}, None),
    (
        {"host": "kd", "augment": {"name": "cutmix_pick", "criterion": "student_entropy"}},
        {},
        "the student alone picks its images",
    ),
    ({"host": "kd", "augment": {"name": "cutmix_pick", "criterion": "student_entropy", "pool": 1}}, {}, None),
    (
        {"host": "kd", "augment": "cutmix"},
        {"method.augment.alpha": {"type": "float", "low": 0.2, "high": 2.0}},
        "method.augment.alpha may be any number of a range, so that no two trials share images",
    ),
    (
        {"host": "kd", "augment": "cutmix"},
        {"method.augment.alpha": {"type": "float", "low": 0.2, "high": 2.0, "step": 0.2}},
        None,
    ),
    ({"host": "kd", "augment": "cutmix"}, {"method.augment.alpha": {"choices": [0.2, 1.0]}}, None),
    ({"host": "kd", "augment": "cutmix_pick"}, {"method.augment.temperature": LR["train.lr"]}, None),  # no pixel
    ({"host": "kd", "augment": "randaugment"}, MAGNITUDE, None),
]


@pytest.mark.parametrize(("method", "space", "why"), SERVED)
def test_who_is_served(method: Any, space: Any, why: str | None) -> None:
    assert live_because(experiment(method, space)) == why


def test_switched_off() -> None:
    found = shared("kd", cache="off")
    assert (found.keep, found.keys) == (frozenset(), 0)
    assert found.words() == ["the teacher runs in every step of kd: teacher.cache.use is off"]


def test_a_space_without_a_teacher_shares_what_plain_kd_needs() -> None:
    found = shared("none")
    assert (found.keep, found.live) == ({"logits"}, {})


KEYS: list[tuple[Any, Any, int]] = [
    ("kd", {}, 1),
    ({"host": "kd", "augment": "cutmix"}, {}, 2),  # and the standard view
    ({"host": "kd", "augment": {"name": "cutmix_pick", "pool": 3}}, {}, 4),
    ({"host": "kd", "augment": {"name": "cutmix_pick"}}, POOL, 5),
    ("kd", {"method.augment.name": {"choices": ["none", "mixup", "cutmix", "cutout"]}}, 4),
    ({"host": "kd", "augment": "mixup"}, {"method.augment.alpha": {"choices": [0.2, 0.5, 1.0]}}, 4),
    (
        {"host": "kd", "augment": "randaugment"},
        {
            "method.augment.magnitude": {"type": "int", "low": 3, "high": 15, "step": 3},
            "method.augment.count": {"type": "int", "low": 1, "high": 3},
        },
        1 + 5 * 3,
    ),
    (
        "kd",
        {
            "method.augment.name": {"choices": ["none", "cutmix", "randaugment"]},
            "method.augment.magnitude": {
                "type": "int",
                "low": 3,
                "high": 5,
                "when": {"method.augment.name": ["randaugment"]},
            },
        },
        1 + 1 + 3,
    ),
    (
        {"host": "kd", "augment": "cutmix"},
        {"method.augment.probability": {"type": "float", "low": 0.2, "high": 1.0, "step": 0.4}},
        1 + 3,
    ),
    ({"host": "kd", "augment": "cutmix"}, {"method.augment.form": {"choices": ["only", "second"]}}, 2),
]


@pytest.mark.parametrize(("method", "space", "count"), KEYS)
def test_keys_are_counted(method: Any, space: Any, count: int) -> None:
    found = shared(method, space or LR)
    assert found.keys == count
    names = [name for e in found.views for name in images_of(e)]
    assert len(set(names)) == count  # each is filled by one of the experiments at least


def test_counting_ends() -> None:
    space = {
        f"method.augment.{name}": {"type": "float", "low": 0.1, "high": 1.0, "step": 0.01}
        for name in ("alpha", "probability")
    }
    found = shared({"host": "kd", "augment": "cutmix"}, space)
    assert found.keys > MOST
    assert "at least" in found.words()[0]


def test_where_it_is_kept(tmp_path: Path) -> None:
    assert cache_folder(experiment("kd"), tmp_path) == tmp_path / "cache"
    assert cache_folder(experiment("kd", cache={"dir": "/data/kept"}), tmp_path) == Path("/data/kept")
