"""Every mistake a user can make: one line that says what, where and what is allowed; exit 2, nothing done.

Each row is run through the command line and, where there is a call for it, through ``akd.search``, which must say the
same. The shorter table of what flags refuse is in ``test_cli.py``.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

import akd
from akd import cli, study
from akd.config import load
from akd.errors import ExperimentError
from akd.folder import Run
from akd.models import create_model

SPACE = """\
data: {name: digits, subset: 200}
teacher: {name: wrn_16_1, train: {epochs: 1, batch_size: 16, threads: 1}}
train: {epochs: 2, batch_size: 16, threads: 1}
search: {trials: 4, champion_seeds: 1}
space:
  train.lr: {type: float, low: 0.01, high: 0.2, log: true}
  train.momentum: {choices: [0.8, 0.9]}
"""
MOMENTUM = "train.momentum: {choices: [0.8, 0.9]}"
LR = "{type: float, low: 0.01, high: 0.2, log: true}"
Setup = Callable[[Path], None]


@dataclass(frozen=True)
class Row:
    """A mistake: the command, words its line must have, and how the folder looks.

    Attributes:
        arguments: of ``akd``.
        words: all in the line.
        setup: prepares the folder.
        library: whether ``akd.search`` can be asked the same.
    """

    arguments: tuple[str, ...]
    words: tuple[str, ...]
    setup: Setup | None = None
    library: bool = True


def flags(*arguments: str, says: list[str], setup: Setup | None = None, library: bool = True) -> Row:
    return Row(("search", "s.yaml", *arguments), tuple(says), setup, library)


def text(old: str, new: str, says: list[str]) -> Row:
    """``old`` of the experiment file replaced by ``new``."""
    assert SPACE.count(old) >= 1, old
    return content(SPACE.replace(old, new, 1), says)


def content(whole: str | bytes, says: list[str]) -> Row:
    return Row(("search", "s.yaml"), tuple(says), partial(put, name="s.yaml", what=whole))


def other(*arguments: str, says: list[str], setup: Setup | None = None) -> Row:
    return Row(arguments, tuple(says), setup, library=False)


def put(folder: Path, name: str, what: str | bytes) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(what if isinstance(what, bytes) else what.encode())


def all_of(*setups: Setup) -> Setup:
    def run(folder: Path) -> None:
        for setup in setups:
            setup(folder)

    return run


BOMB = "a: &a [1, 1]\n" + "".join(
    f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
)
MAPS = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{c}: &{c} {{{', '.join(f'k{i}: *{p}' for i in range(9))}}}\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
)

NAMES = {
    "key": text("epochs: 2,", "epoch: 2,", ["s.yaml:3", "train.epoch", "unknown key", "did you mean 'epochs'"]),
    "section": text("search:", "serach:", ["s.yaml:4", "serach", "did you mean 'search'"]),
    "key of a flag": flags("--train.lrr", "1", says=["--train.lrr", "unknown key", "did you mean 'lr'"], library=False),
    "flag": flags("--trails", "3", says=["--trails", "did you mean '--trials'"], library=False),
    "flag twice": flags("--trials", "3", "--trials", "4", says=["--trials", "given twice"], library=False),
    "flag without value": flags("--data", "", says=["--data", "needs a value"], library=False),
    "key without value": flags("--train.ema", "", says=["--train.ema", "needs a value"], library=False),
    "method": flags("--method", "kdd", says=["--method", "'kdd'", "did you mean 'kd'"]),
    "method of the file": text(
        "train: {epochs: 2", "method: kdd\ntrain: {epochs: 2", ["s.yaml:3", "did you mean 'kd'"]
    ),
    "setting of a method": flags("--method.host.tmperature", "3", says=["did you mean 'temperature'"]),
    "data": flags("--data", "digit", says=["--data", "did you mean 'digits'"]),
    "student": flags("--student", "resnet9", says=["--student", "did you mean 'resnet8'"]),
    "teacher": flags("--teacher", "wrn_16_3", says=["--teacher", "did you mean 'wrn_16_"]),
    "torchvision": flags("--student", "torchvision:resnet1", says=["--student", "did you mean 'resnet18'"]),
    "module": flags("--student", "nowhere:net", says=["--student", "'nowhere:net'", "No module named 'nowhere'"]),
    "objectives": flags("--objectives", "accuracy,size", says=["--objectives", "must be one of accuracy, flops"]),
    "objectives without accuracy": flags("--objectives", "flops", says=["--objectives", "must name accuracy"]),
    "objectives of one student": flags(
        "--objectives", "accuracy,flops", says=["--objectives", "same student, resnet8; search student.name"]
    ),
    "constraint": flags("--constraint", "size=3", says=["--constraint", "constraints.size: unknown key, allowed are"]),
    "constraint without an amount": flags(
        "--constraint", "flops", says=["--constraint", "like parameters=1M,latency_1"]
    ),
    "constraint amount": flags("--constraint", "flops=few", says=["--constraint", "'few'", "a count like 250 k"]),
    "constraint that leaves nothing": flags(
        "--constraint", "parameters=50k", says=["--constraint", "resnet8 costs 77,754 parameters, at most 50,000"]
    ),
    "constraint of time that leaves nothing": flags(
        "--constraint",
        "latency_1=0.000001",
        says=["--constraint", "resnet8 costs 0.", "ms for one image, at most 1e-06"],
        library=False,  # it is measured again, and never the same
    ),
    "constraint in a file": text(
        "search: {trials: 4,",
        "search: {constraints: {latency_1: -1}, trials: 4,",
        ["s.yaml:4: search.constraints.latency_1 = -1: must be a number > 0"],
    ),
    "taps": flags("--student.taps", "[x]", says=["student.taps", "student = 'resnet8'", "has its own maps"]),
    "verb": other("serach", says=["'serach'", "did you mean 'search'"]),
    "space file": other("search", "quikstart", says=["'quikstart'", "did you mean 'quickstart'"]),
    "no such file": Row(("search", "gone.yaml"), ("'gone.yaml'", "no such file", "quickstart")),
    "long file name": Row(("search", "x" * 300), ("(302 characters)", "File name too long")),
    "folder for a file": Row(("search", "f"), ("'f'", "is a folder"), lambda folder: (folder / "f").mkdir()),
}

#: Values that are no positive whole number, and how the line shows them.
WRONG = {"0": "0", "-3": "-3", "2.5": "2.5", "true": "True", "many": "'many'", "'8'": "'8'", "[1]": "[1]"}
WRONG |= {".nan": "nan", ".inf": "inf", "null": "None", "1e-3": "0.001", "010": "'010'", "1:30": "'1:30'"}
WRONG |= {"{a: 1}": "{'a': 1}", "2026-01-01": "'2026-01-01'"}
NUMBERS = {
    f"{flag} {value}": flags(f"{flag}={value}", says=[flag, f"{key} = {shown}", "a whole number >= 1"])
    for flag, key in (("--trials", "search.trials"), ("--epochs", "train.epochs"))
    for value, shown in WRONG.items()
}
NUMBERS |= {
    f"train.batch_size {value}": flags(f"--train.batch_size={value}", says=["train.batch_size", ">= 1"])
    for value in ("0", "-64", "1.5", "false")
}
NUMBERS |= {
    "number as text": flags("--train.weight_decay", "'1e-3'", says=["train.weight_decay = '1e-3'", "a number >= 0"]),
    "not a number": flags("--train.weight_decay", ".nan", says=["train.weight_decay = nan", "a number >= 0"]),
    "too small a bool": flags("--train.nesterov", "1", says=["train.nesterov = 1", "true or false"]),
    "confirm": flags("--confirm", "-1", says=["--confirm", "search.confirm = -1", "a whole number >= 0"]),
    "confirm seeds": flags("--confirm-seeds", "0", says=["--confirm-seeds", "a whole number >= 1"]),
    "confirm seeds of nothing": flags(
        "--confirm", "1", "--confirm-seeds", "4", says=["--confirm-seeds", "has no effect where search.confirm is 1"]
    ),
    "choice": flags(
        "--train.schedule", "cosin", says=["one of constant, cosine, restarts, step", "did you mean 'cosine'"]
    ),
    "list": flags("--train.decay_epochs", "5", says=["train.decay_epochs = 5", "a list of whole numbers"]),
    "a null among values": text("epochs: 2,", "epochs: null,", ["s.yaml:3", "train.epochs = None", ">= 1"]),
    "a list for a section": text(
        "{trials: 4, champion_seeds: 1}", "[1]", ["s.yaml:4", "search = [1]", "keys and values"]
    ),
    "a number for a name": flags("--student=5", says=["student = 5: must be a name, or hold keys and"], library=False),
    "a number for a name in the file": text(
        "train: {epochs: 2", "method: 5\ntrain: {epochs: 2", ["s.yaml:3: method = 5: must be a name, or hold keys and"]
    ),
    "without effect": flags("--search.scheduler=none", "--search.eta=4", says=["search.eta = 4", "has no effect"]),
    "time": flags("--time-budget", "soon", says=["--time-budget", "'soon'", "30m"], library=False),
    "batch above the data": flags("--train.batch_size", "181", says=["--train.batch_size", "at most 180"]),
    "teacher's batch": flags("--teacher.train.batch_size", "181", says=["teacher.train.batch_size", "at most 180"]),
    "batch of the space": text(
        MOMENTUM, "train.batch_size: {choices: [16, 256]}", ["s.yaml:7", "train.batch_size = 256", "at most 180"]
    ),
    "subset": flags("--data.subset", "2000", says=["--data.subset: data.subset = 2000", "at most 1437"]),
    "parts of a batch": flags(
        "--train.micro_batch=8", "--method=sp", says=["--train.micro_batch: train.micro_batch = 8", "with sp, which"]
    ),
    "parts of a batch, extra host": flags(
        "--train.micro_batch=8", "--method.extra=[rkd]", says=["train.micro_batch = 8", "kd + rkd, which compares"]
    ),
    "parts of a batch, normalised": flags(
        "--train.micro_batch=8", "--method.normalise=true", says=["train.micro_batch = 8", "kd, normalised, which"]
    ),
    "parts of a batch in the space": text(
        MOMENTUM,
        "train.micro_batch: {choices: [null, 8]}\nmethod: {host: sp}",
        ["s.yaml:7: space.train.micro_batch = 8: cannot be combined with sp"],
    ),
    "a method of the space and parts": text(
        MOMENTUM,
        "method.host.name: {choices: [kd, sp]}\n  train.micro_batch: {choices: [null, 8]}",
        ["s.yaml:8", "8 cannot be combined with sp", "when method.host.name is 'sp'; a 'when' can keep them apart"],
    ),
    "a stage too far": flags(
        "--method.host=fitnet", "--method.host.stages=[7]", says=["--method.host.stages", "no stage 7", "maps 0 to 3"]
    ),
    "a stage too far of an extra host": flags(
        "--method.extra.amd.stages=[-5]", says=["--method.extra.amd.stages", "no stage -5", "maps 0 to 3"]
    ),
    "a stage twice": flags("--method.host=sp", "--method.host.stages=[3, -1]", says=["method.host.stages", "twice"]),
    "no stages": flags(
        "--method.host=vid", "--method.host.stages=[]", says=["method.host.stages", "at least one stage"]
    ),
    "no temperatures": flags(
        "--method.host=mlkd", "--method.host.temperatures=[]", says=["host.temperatures", "or more"]
    ),
    "no validation": flags("--data.validation", "0.001", says=["--data.validation: data.validation", "need some"]),
}

SPACES = {
    "low above high": text("low: 0.01", "low: 0.3", ["s.yaml:6", "train.lr.low = 0.3", "at most high, which is 0.2"]),
    "log from 0": text("low: 0.01", "low: 0", ["s.yaml:6", "train.lr.low = 0", "above 0"]),
    "log from below": text("low: 0.01", "low: -1", ["s.yaml:6", "train.lr.low = -1", "above 0"]),
    "nan": text("low: 0.01", "low: .nan", ["s.yaml:6", "train.lr.low = nan", "finite"]),
    "infinite": text("high: 0.2", "high: .inf", ["s.yaml:6", "train.lr.high = inf", "finite"]),
    "text for a number": text("high: 0.2", "high: '0.2'", ["s.yaml:6", "high = '0.2'", "must be a number"]),
    "no high": text("high: 0.2, ", "", ["s.yaml:6", "train.lr.high = None", "must be a number"]),
    "step too wide": text("log: true", "step: 5", ["s.yaml:6", "train.lr.step = 5", "at most high - low"]),
    "step nan": text("log: true", "step: .nan", ["s.yaml:6", "train.lr.step = nan", "finite"]),
    "outside what the key takes": text("high: 0.2", "high: 0.2, wen: 1", ["s.yaml:6", "wen", "did you mean 'when'"]),
    "value a key refuses": text("[0.8, 0.9]", "[0.8, 1.5]", ["s.yaml:7", "train.momentum", "1.5", "< 1"]),
    "type": text("type: float", "type: flaot", ["s.yaml:6", "type = 'flaot'", "int or float"]),
    "float for whole numbers": text(
        MOMENTUM, "train.batch_size: {type: float, low: 1, high: 3}", ["s.yaml:7", "train.batch_size", "a whole number"]
    ),
    "nothing to choose": text("[0.8, 0.9]", "[]", ["s.yaml:7", "choices = []", "at least one value"]),
    "chosen twice": text("[0.8, 0.9]", "[0.8, 0.8]", ["s.yaml:7", "twice"]),
    "unknown key": text("train.momentum:", "train.momentun:", ["s.yaml:7", "did you mean 'momentum'"]),
    "no key": text(MOMENTUM, "train..lr: {choices: [1]}", ["s.yaml:7", "is no dotted key"]),
    "nested": text(MOMENTUM, "train: {lr: {type: int, low: 1, high: 2}}", ["s.yaml:7", "train.lr", "unknown key"]),
    "epochs": text(MOMENTUM, "train.epochs: {type: int, low: 1, high: 3}", ["s.yaml:7", "train.epoch_factor"]),
    "same for all": text(MOMENTUM, "search.trials: {choices: [1, 2]}", ["s.yaml:7", "cannot be searched"]),
    "condition on an unknown key": text(
        "0.9]", "0.9], when: {train.schedule: [step]}", ["s.yaml:7", "depends on train.schedule"]
    ),
    "condition on a misspelt key": text(
        "0.9]", "0.9], when: {train.rl: [1]}", ["s.yaml:7", "train.rl", "did you mean 'train.lr'"]
    ),
    "condition never met": text(
        MOMENTUM,
        MOMENTUM + "\n  train.ema: {choices: [0.9], when: {train.momentum: [0.7]}}",
        ["s.yaml:8", "train.momentum = 0.7", "one of 0.8, 0.9"],
    ),
    "a choice misspelt that a condition names": text(
        MOMENTUM,
        "method.views.name: {choices: [none, angularkd]}\n"
        "  method.views.count: {choices: [2, 3], when: {method.views.name: [angular_kd]}}",
        ["s.yaml:7: space.method.views.name = 'angularkd': there is no such", "did you mean 'angular_kd'?"],
    ),
    "a choice misspelt, in a line of its own": text(
        MOMENTUM, "train.schedule:\n    choices: [cosin]", ["s.yaml:8: space.train.schedule = 'cosin': must be one of"]
    ),
    "high too high": text(
        MOMENTUM,
        "method.host.temperature:\n    type: float\n    low: 1.0\n    high: 800.0",
        ["s.yaml:10: space.method.host.temperature.high = 800.0: must be a number > 0 and <= 100"],
    ),
    "low too low": text(
        "low: 0.01, high: 0.2, log: true", "low: -0.5, high: 0.2", ["s.yaml:6: space.train.lr.low = -0.5: must be"]
    ),
    "a range between whole numbers": text(
        MOMENTUM,
        "train.batch_size: {type: float, low: 1, high: 3}",
        ["train.batch_size.type = 'float': must be a whole"],
    ),
    "condition on a range": text("0.9]", "0.9], when: {train.lr: [0.1]}", ["s.yaml:7", "a range of numbers"]),
    "conditions in a circle": text("0.9]", "0.9], when: {train.momentum: [0.8]}", ["s.yaml:7", "circle"]),
    "views that are off": text(
        MOMENTUM,
        "method.views.margin: {type: float, low: 0.1, high: 0.3}",
        ["s.yaml:7", "views.margin", "needs a name"],
    ),
    "fixed by a flag and searched": flags(
        "--train.lr", "0.1", says=["--train.lr", "searched by", "s.yaml:6", "--space.train.lr 0.1"], library=False
    ),
    "fixed in the space and searched": text(LR, LR[:-1] + ", value: 0.1}", ["s.yaml:6", "no effect beside value"]),
    "searched twice": text(MOMENTUM, f"train.lr: {LR}", ["s.yaml:7", "space.train.lr", "twice", "line 6"]),
    "no space": content(SPACE.partition("space:")[0], ["s.yaml", "space", "nothing to search"]),
    "all fixed": content(SPACE.partition("space:")[0] + "space: {train.lr: 0.1}\n", ["s.yaml:5", "nothing to search"]),
}

#: Values that fit no method on these networks, whatever the rest of the space draws.
FORMS = {
    "a stage too far": text(
        MOMENTUM,
        "method.host.stages: {choices: [[-1], [7]]}\nmethod: at",
        ["s.yaml:7: space.method.host.stages = [7]: the student has maps 0 to 3, or -4 to -1, no stage 7"],
    ),
    "a stage too far under one host of several": text(
        MOMENTUM,
        "method.host.name: {choices: [kd, at, fitnet]}\n"
        "  method.host.stages: {choices: [[-1], [0, 4]], when: {method.host.name: [at, fitnet]}}",
        ["s.yaml:8: space.method.host.stages = [0, 4]: the student has maps 0 to 3", "no stage 4"],
    ),
    "a stage too far of an extra host": text(
        MOMENTUM,
        "method.extra.amd.name: {choices: [none, amd]}\n"
        "  method.extra.amd.stages: {choices: [[-5], [-1]], when: {method.extra.amd.name: [amd]}}",
        ["s.yaml:8: space.method.extra.amd.stages = [-5]: the student has", "no stage -5"],
    ),
    "a stage too far in a fixed value": text(
        MOMENTUM, f"method.host.stages: [9]\n  {MOMENTUM}\nmethod: sp", ["s.yaml:7", "stages = [9]", "no stage 9"]
    ),
    "a stage too far of a teacher with fewer maps": text(
        MOMENTUM,
        "method.host.stages: {choices: [[-1], [4]]}\nmethod: fitnet\nstudent: vgg8",
        ["s.yaml:7: space.method.host.stages = [4]: the teacher has maps 0 to 3", "no stage 4"],
    ),
    "a stage twice": text(
        MOMENTUM, "method.host.stages: {choices: [[-1], [3, -1]]}\nmethod: vid", ["s.yaml:7", "[3, -1]", "twice"]
    ),
    "no stages": text(
        MOMENTUM, "method.host.stages: {choices: [[-1], []]}\nmethod: sp", ["s.yaml:7", "stages = []", "at least one"]
    ),
    "no temperatures": text(
        MOMENTUM,
        "method.host.temperatures: {choices: [[4.0], []]}\nmethod: mlkd",
        ["s.yaml:7: space.method.host.temperatures = []: must be one number or more"],
    ),
    "heads narrower than their number": text(
        MOMENTUM,
        "method.views.head_width: {choices: [32, 4]}\n"
        "method: {views: {name: angular_kd, head: projected, head_init: across}}",
        ["s.yaml:7: space.method.views.head_width = 4: ", "head_init = 'across': needs as many features as views", "4"],
    ),
    "the low end of a range": text(
        MOMENTUM,
        "method.views.head_width: {type: int, low: 3, high: 32, log: true}\n"
        "method: {views: {name: angular_kd, head: projected, head_init: across}}",
        ["s.yaml:7: space.method.views.head_width = 3: ", "there are 3 and 5"],
    ),
    "more kept than there is": text(
        MOMENTUM,
        "method.augment.keep: {choices: [1, 4]}\nmethod: {host: kd, augment: cutmix_pick}",
        ["s.yaml:7: space.method.augment.keep = 4: cannot be more than the pool, which has 2"],
    ),
    "a host beside itself": text(
        MOMENTUM,
        "method.host.name: {choices: [kd, dist]}\n  method.extra.dist.name: {choices: [none, dist]}",
        ["s.yaml:8: space.method.extra.dist.name = 'dist': is the host already", "when method.host.name is 'dist'; a"],
    ),
    "views over a host of maps": text(
        MOMENTUM,
        "method.host.name: {choices: [kd, at]}\n  method.views.name: {choices: [none, tekap]}",
        ["s.yaml:8: space.method.views.name = 'tekap': have no effect over at", "when method.host.name is 'at'; a"],
    ),
    "a second view without a teacher": text(
        MOMENTUM,
        "method.host.name: {choices: [kd, none]}\n  method.augment.name: {choices: [none, cutmix]}",
        ["s.yaml:8: space.method.augment.name = 'cutmix': ", "learns from no teacher", "a 'when' can keep them apart"],
    ),
}

FILES = {
    "a bracket": text("[0.8, 0.9]", "[0.8, 0.9", ["s.yaml:7", "YAML", "column"]),
    "a tab": content("data: digits\n\ttrain: 3\n", ["s.yaml:2", "a tab", "column 1"]),
    "a key twice": text("epochs: 2,", "epochs: 2, epochs: 3,", ["s.yaml:3", "train.epochs", "twice", "line 3"]),
    "a section twice": content(SPACE + "data: digits\n", ["s.yaml:8", "data", "twice", "line 1"]),
    "code": text("trials: 4", "trials: !!python/object/apply:os.mkdir [pwned]", ["s.yaml:4", "os.mkdir", "run code"]),
    "code in a section": text("search: {", "search: !!python/object/new:os.mkdir {", ["s.yaml:4", "run code"]),
    "an own tag": text("trials: 4", "trials: !four 4", ["s.yaml:4", "'!four'", "plain values"]),
    "aliases without end": content("data: &a {name: *a}\n", ["s.yaml:1", "data.name", "holds itself"]),
    "a bomb of lists": content(BOMB, ["s.yaml:1", "more than 10,000 values"]),
    "a bomb of mappings": content(MAPS, ["s.yaml:1", "more than 10,000 values"]),
    "brackets without end": content("a: " + "[" * 5000, ["s.yaml", "nested too deeply"]),
    "megabytes": content("# nothing\n" * 500_000, ["s.yaml", "larger than 256 KB"]),
    "a list": content("- 1\n", ["s.yaml:1", "keys and values"]),
    "a word": content("hello\n", ["s.yaml:1", "keys and values"]),
    "nothing": content("", ["s.yaml", "nothing to search"]),
    "two documents": content("data: digits\n---\ndata: digits\n", ["s.yaml:2", "another document"]),
    "bytes": content(b"\xff\xfe\x00", ["s.yaml", "not UTF-8"]),
    "latin-1": content("data: dig\u00efts\n".encode("latin-1"), ["s.yaml", "not UTF-8"]),
    "control characters": content("data: \x07\n", ["s.yaml", "special characters"]),
    "a key that is none": content("data: digits\nno: 3\n", ["s.yaml:2", "'no' is read as bool"]),
    "a bomb in a flag": flags("--space.train.ema", BOMB, says=["--space.train.ema", "10,000 values"], library=False),
    "a key twice in a flag": flags("--space.train.ema", "{low: 1, low: 2}", says=["low", "twice"], library=False),
}


class _Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)


def weights(
    change: Callable[[dict[str, torch.Tensor]], Any], name: str = "w.safetensors", cut: int | None = None
) -> Setup:
    """A file of the teacher's weights, changed; ``cut`` bytes of it."""

    def write(folder: Path) -> None:
        state = change(create_model("wrn_16_1", 10, in_channels=1).state_dict())
        if name.endswith("safetensors"):
            save_file(state, folder / name)
        else:
            torch.save(state, folder / name)
        (folder / "w").write_bytes((folder / name).read_bytes()[:cut])
        (folder / name).unlink()

    return write


def network(name: str, classes: int = 10, channels: int = 1) -> Callable[[Any], dict[str, torch.Tensor]]:
    return lambda _: create_model(name, classes, in_channels=channels).state_dict()


def weighed(setup: Setup | None, *says: str) -> Row:
    return flags("--teacher-weights", "w", says=["--teacher-weights", "teacher.weights", *says], setup=setup)


WEIGHTS = {
    "missing": weighed(None, "no such file"),
    "a folder": weighed(lambda folder: (folder / "w").mkdir(), "is a folder"),
    "empty": weighed(lambda folder: put(folder, "w", b""), "damaged", "holds nothing"),
    "text": weighed(lambda folder: put(folder, "w", b"hello\n"), "damaged"),
    "safetensors cut": weighed(weights(lambda s: s, cut=5000), "damaged"),
    "safetensors cut in its head": weighed(weights(lambda s: s, cut=50), "damaged"),
    "torch file cut": weighed(weights(lambda s: s, "w.pt", cut=5000), "damaged"),
    "code": weighed(weights(lambda s: {"model": _Evil()}, "w.pt"), "could run code", "state_dict()"),
    "code in a plain pickle": weighed(lambda folder: put(folder, "w", pickle.dumps(_Evil())), "could run code"),
    "a whole module": weighed(weights(lambda s: torch.nn.Linear(1, 1), "w.pt"), "could run code"),
    "classes": weighed(weights(network("wrn_16_1", 100)), "'fc.weight'", "[100, 64]", "[10, 64]"),
    "channels": weighed(weights(network("wrn_16_1", 10, 3)), "'conv1.weight'", "[16, 3, 3, 3]", "[16, 1, 3, 3]"),
    "another network": weighed(weights(network("resnet8")), "does not fit", "is not in the file", "more differ"),
    "nearly its names": weighed(
        weights(lambda s: {k.replace("conv1", "conv_1"): v for k, v in s.items()}), "'conv1.weight'", "not in the file"
    ),
    "whole numbers": weighed(weights(lambda s: {k: v.long() for k, v in s.items()}), "is int64 in the file"),
    "not a number": weighed(
        weights(lambda s: {k: v * float("nan") if v.is_floating_point() else v for k, v in s.items()}), "NaN"
    ),
    "long name": flags("--teacher-weights", "x" * 300, says=["--teacher-weights", "File name too long"]),
    "normalisation": flags(
        "--teacher-weights=w",
        "--teacher.mean=[0, 0]",
        "--teacher.std=[1, 1]",
        says=["teacher.mean", "1 values"],
        setup=weights(lambda s: s),
    ),
}


def pictures(folder: Path, *, lacks: str = "", broken: bytes | None = None) -> None:
    from PIL import Image

    for place in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (folder / "pics" / place).mkdir(parents=True)
        for i in range(0 if place == lacks else 12):
            Image.new("RGB", (16, 16), (i, 9, 9)).save(folder / "pics" / place / f"{i}.png")
    if broken is not None:
        put(folder, "pics/train/cat/3.png", broken)


def own(*says: str, setup: Setup | None) -> Row:
    small = ["--data.image_size=16", "--train.batch_size=4", "--teacher.train.batch_size=4", "--data.subset=18"]
    return flags("--data", "imagefolder", "--data-dir", "pics", *small, says=["data.dir", *says], setup=setup)


def cifar(**files: bytes) -> Setup:
    def write(folder: Path) -> None:
        (folder / "c/cifar-100-python").mkdir(parents=True)
        for name, what in files.items():
            put(folder, f"c/cifar-100-python/{name}", what)

    return write


def code(source: str) -> Setup:
    return lambda folder: put(folder, "own_code.py", source)


RAISES = "def made(*a, **k):\n    raise RuntimeError('first\\nsecond')\n"
DATA = {
    "pictures missing": own("imagefolder is not in", "pics", "--data-dir", setup=None),
    "pictures empty": own("no folder for each class", setup=lambda folder: (folder / "pics").mkdir()),
    "no second part": own("val", "test", setup=all_of(pictures, lambda folder: shutil.rmtree(folder / "pics/val"))),
    "a class without images": own("classes cat", ".png", setup=partial(pictures, lacks="train/cat")),
    "a class in one part": own(
        "only in train (dog)", setup=all_of(pictures, lambda folder: shutil.rmtree(folder / "pics/val/dog"))
    ),
    "a corrupt picture": own("cat/3.png", "cannot be read as an image", setup=partial(pictures, broken=b"no picture")),
    "an empty picture": own("cat/3.png", "cannot be read as an image", setup=partial(pictures, broken=b"")),
    "a link to nowhere": own(
        "cat/3.png",
        "No such file",
        setup=all_of(
            pictures,
            lambda f: (f / "pics/train/cat/3.png").unlink(),
            lambda f: (f / "pics/train/cat/3.png").symlink_to("gone"),
        ),
    ),
    "cifar missing": flags(
        "--data", "cifar100", "--data-dir", "c", says=["--data-dir: data.dir", "akd data prepare cifar100"]
    ),
    "cifar half there": flags(
        "--data=cifar100", "--data-dir=c", says=["data.dir", "checksums differ"], setup=cifar(train=b"x")
    ),
    "cifar with another's bytes": flags(
        "--data=cifar100",
        "--data-dir=c",
        says=["data.dir", "checksums differ"],
        setup=cifar(train=pickle.dumps(_Evil()), test=b"y", meta=pickle.dumps(_Evil())),
    ),
    "long folder": flags("--data=cifar100", "--data-dir", "x" * 300, says=["data.dir", "File name too long"]),
    "own reader fails": flags(
        "--data", "own_code:made", says=["'own_code:made'", "RuntimeError: first"], setup=code(RAISES)
    ),
    "own reader gives something": flags(
        "--data", "own_code:made", says=["gives a int"], setup=code("def made(*a):\n    return 3\n")
    ),
    "own network fails": flags(
        "--student", "own_code:made", says=["--student", "RuntimeError: first"], setup=code(RAISES)
    ),
    "own teacher fails": flags(
        "--teacher", "own_code:made", says=["--teacher", "RuntimeError: first"], setup=code(RAISES)
    ),
    "own module ends": flags("--student", "own_code:made", says=["SystemExit"], setup=code("raise SystemExit(3)\n")),
    "own module is no Python": flags("--student", "own_code:made", says=["SyntaxError"], setup=code("x = (\n")),
}


def taken(folder: Path) -> None:
    put(folder, "runs/mine/result", b"")


PLACES = {
    **{
        f"name {name[:20]!r}": flags(f"--name={name}", says=["name = ", "letters, digits"])
        for name in (
            "a b",
            "..",
            ".",
            "../up",
            "/abs",
            "a/b",
            "x\n",
            "\x1b[31mred",
            "x" * 101,
            "x" * 300,
            ".hidden",
            "\u00e9",
        )
    },
    **{
        f"name {name}": flags("--name", name, says=[f"name = {name!r}", "reserved"])
        for name in ("teachers", "artifacts", "cache", "single", "mlflow.db")
    },
    "name that exists": flags("--name", "mine", says=["'mine'", "exists already", "--resume mine"], setup=taken),
    "name that exists, dry run": flags(
        "--name=mine", "--dry-run", says=["exists already", "--resume mine"], setup=taken, library=False
    ),
    "output is a file": flags("--output", "file", says=["output", "file"], setup=lambda f: put(f, "file", "x")),
    "output below a file": flags("--output", "file/x/y", says=["output", "file"], setup=lambda f: put(f, "file", "x")),
    "output is no place": flags("--output", "/proc/akd", says=["output", "/proc/akd", "cannot be written"]),
    "output is a link to nowhere": flags(
        "--output", "l", says=["output", "cannot be written"], setup=lambda f: (f / "l").symlink_to("/gone/far")
    ),
    "output is long": flags("--output", "x" * 300, says=["output", "File name too long"]),
    "output is empty": flags("--output", "", says=["--output", "needs a value"], library=False),
}

FREE = "http://user:secret@127.0.0.1:1"  # a port nobody may listen on but root, and nobody does
MACHINES = {
    "too many at a time": flags(
        "--concurrent", "1000", says=["--concurrent: search.concurrent = 1000", "fit at a time"]
    ),
    "too many, dry run": flags("--concurrent=1000", "--dry-run", says=["fit at a time"], library=False),
    "workers": flags(
        "--workers-per-trial=100",
        "--train.batch_size=128",
        says=["--workers-per-trial: search.workers_per_trial = 100", "must be at most 16 here"],
    ),
    "workers, before what they need of a batch": flags(
        "--workers-per-trial=100", says=["search.workers_per_trial = 100: must be at most 16 here, with 1 CPU for each"]
    ),
    "workers of a small batch": flags(
        "--workers-per-trial=3", "--train.batch_size=2", says=["train.batch_size = 2", "at least 3, one image for each"]
    ),
    "workers of a small batch of the space": flags(
        "--workers-per-trial=12",
        "--space.train.batch_size={choices: [8, 16]}",
        says=["space.train.batch_size = 8", "at least 12, one image for each worker"],
        library=False,
    ),
    "final workers": flags(
        "--final-workers", "100", says=["--final-workers: search.final_workers = 100", "must be at most"]
    ),
    "GPUs that do not divide": flags(
        "--workers-per-trial=2",
        "--gpus-per-trial=3",
        says=["--gpus-per-trial: search.gpus_per_trial = 3", "a whole number for each of 2 workers"],
    ),
    "half a GPU a worker": flags(
        "--workers-per-trial=2", "--gpus-per-trial=1", says=["search.gpus_per_trial = 1", "each of 2 workers"]
    ),
    "no workers": flags("--workers-per-trial", "0", says=["search.workers_per_trial = 0", "a whole number >= 1"]),
    "more CPUs than there are": flags("--cpus-per-trial", "1000", says=["--cpus-per-trial", "1000", "fits on no node"]),
    "more GPUs than there are": flags("--gpus-per-trial", "1000", says=["--gpus-per-trial", "1000", "fits on no node"]),
    "no Ray there": flags("--ray-address", "127.0.0.1:1", says=["ray-address", "127.0.0.1:1", "no Ray answers"]),
    "no Ray client there": flags("--ray-address", "ray://127.0.0.1:1", says=["ray-address", "no Ray answers"]),
    "no address of a storage": flags("--storage", "bucket/x", says=["storage = 'bucket/x'", "s3://BUCKET/FOLDER"]),
    "a storage of no kind": flags("--storage", "s4://bucket/x", says=["storage", "did you mean 's3'?"]),
    "no bucket": flags("--storage", "s3://", says=["storage = 's3://'", "must name a bucket"]),
    "no address of a Ray": flags("--ray-address", "hello", says=["ray-address = 'hello'", "HOST:PORT", "auto"]),
    "no tracker there": flags(
        "--tracking-uri", FREE, says=["'http://127.0.0.1:1'", "does not answer: Connection refused", "--tracking-later"]
    ),
    "no database there": flags("--tracking-uri=mysql://u:secret@127.0.0.1:1/db", says=["mysql://127.0.0.1:1/db"]),
    "an odd password": flags("--tracking-uri", "http://u:secret/a@127.0.0.1:1", says=["'http://127.0.0.1:1'"]),
    "unknown scheme": flags("--tracking-uri", "ftp://x", says=["'ftp://x'", "http://HOST:5000", "sqlite:///FILE"]),
    "near scheme": flags("--tracking-uri", "sqllite:///a.db", says=["did you mean 'sqlite'"]),
    "no scheme": flags("--tracking-uri", "localhost:5000", says=["'localhost:5000'", "http://HOST:5000"]),
    "no host": flags("--tracking-uri", "http://", says=["is no valid address", "http://HOST:PORT"]),
    "half an address": flags("--tracking-uri", "http://[::1", says=["is no valid address"]),
    "sqlite nowhere": flags("--tracking-uri", "sqlite:///gone/x.db", says=["no folder", "gone"]),
    "sqlite in no folder": flags("--tracking-uri", "sqlite:////proc/x.db", says=["cannot be written"]),
    "sqlite of another kind": flags("--tracking-uri", "sqlite:///s.yaml", says=["is no sqlite file"]),
}


def started(
    folder: Path, edit: tuple[str, str] | None = None, overrides: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """A study that was started with flags and interrupted at once; then ``edit`` in its experiment."""
    akd.search(load(Path("s.yaml"), overrides), name="one")
    if edit is not None:
        path = folder / "runs/one/experiment.yaml"
        assert edit[0] in path.read_text(encoding="utf-8")
        path.write_text(path.read_text(encoding="utf-8").replace(*edit, 1), encoding="utf-8")


def again(*arguments: str, says: list[str], setup: Setup | None = started) -> Row:
    return other("search", "--resume", "one", *arguments, says=says, setup=setup)


RESUMED = {
    "of nothing": again(says=["'one'", "no study of this name"], setup=None),
    "of another": other("search", "--resume", "onee", says=["'onee'", "did you mean 'one'"], setup=started),
    "of no name": other("search", "--resume", "", says=["--resume", "needs a value"]),
    "of a path": other("search", "--resume", "../one", says=["'../one'", "letters, digits"]),
    "with more": again("--trials", "5", says=["--trials", "nothing else can be given"]),
    "with more: what to do": again("--epochs=3", says=["--epochs: a study goes on as", "leave it out, or start a new"]),
    "with a name": again("--name", "n", says=["--name", "nothing else can be given"]),
    "space edited": again(
        says=["experiment.yaml:", "space.train.lr.high: 0.2 -> 0.4"],
        setup=partial(started, edit=("high: 0.2", "high: 0.4")),
    ),
    "choice gone": again(says=["[0.8, 0.9] -> [0.9]"], setup=partial(started, edit=("    - 0.8\n", ""))),
    "epochs edited": again(says=["train.epochs: 2 -> 3"], setup=partial(started, edit=("epochs: 2", "epochs: 3"))),
    "another space": other(
        "search",
        "s.yaml",
        "--resume",
        "one",
        says=["s.yaml:6", "space.train.lr.high: 0.2 -> 0.3"],
        setup=all_of(started, lambda f: put(f, "s.yaml", SPACE.replace("high: 0.2", "high: 0.3"))),
    ),
    "other flags": other(
        "search", "s.yaml", "--trials=9", "--resume=one", says=["--trials", "search.trials: 4 -> 9"], setup=started
    ),
    "another space: what to do": other(
        "search",
        "t.yaml",
        "--resume=one",
        says=["t.yaml:6: resume = 'one'", "put it back, or go on without the file: akd search --resume one, or start"],
        setup=all_of(started, lambda f: put(f, "t.yaml", SPACE.replace("high: 0.2", "high: 0.3"))),
    ),
    "fewer flags": other(
        "search",
        "s.yaml",
        "--resume=one",
        says=["akd: s.yaml: resume", "workers_per_trial: 2 -> 1); give --workers-per-trial 2 too, or go on without"],
        setup=partial(started, overrides={"search.workers_per_trial": 2}),
    ),
    "no seed": other(
        "search",
        "s.yaml",
        "--resume=one",
        says=["; give --seed 4 too, or"],
        setup=partial(started, overrides={"search.seed": 4, "train.seed": 4, "train.plan_seed": 4}),
    ),
    "another host": other(
        "search",
        "s.yaml",
        "--resume=one",
        "--method=none",
        says=["--method: resume = 'one'", "put it back, or go on without the file"],
        setup=started,
    ),
    "no host": other(
        "search",
        "s.yaml",
        "--resume=one",
        says=["s.yaml: resume = 'one'", "give --method.host fitnet too, or"],
        setup=partial(started, overrides={"method": "fitnet"}),
    ),
    "no experiment": again(
        says=["experiment.yaml", "No such file"],
        setup=all_of(started, lambda f: (f / "runs/one/experiment.yaml").unlink()),
    ),
    "damaged": again(says=["run.json is damaged"], setup=all_of(started, lambda f: put(f, "runs/one/run.json", "{"))),
    "unknown scheme": again("--tracking-uri", "ftp://x", says=["'ftp://x'"]),
}

GIVEN = '{"model": "resnet8", "num_classes": 10, "in_channels": 1, "image_size": [8, 8], "normalise": %s}'
CONFIG = GIVEN % '{"mean": [0.3], "std": [0.3]}'


def measured(*arguments: str, says: list[str], setup: Setup | None = None) -> Row:
    return other("evaluate", "--data", "digits", *arguments, says=says, setup=setup)


def handed(config: str, student: Setup | None = None) -> Setup:
    config_file = partial(put, name="given/config.json", what=config)
    return all_of(config_file, student) if student else config_file


def misplaced(folder: Path) -> None:
    save_file(create_model("resnet14", 10, in_channels=1).state_dict(), folder / "given/student.safetensors")


def busy(folder: Path) -> None:
    started(folder)
    put(folder, "runs/mlflow.db", b"")


def run_of(folder: Path, kind: str) -> None:
    (folder / "runs" / "one").mkdir(parents=True)
    Run(kind, "one").write(folder / "runs" / "one")


VERBS = {
    "evaluate without a model": measured(says=["--model"]),
    "evaluate no model": measured("--model", "resnet9", says=["'resnet9'", "did you mean 'resnet8'"]),
    "evaluate no data": other("evaluate", "--data", "digit", "--model", "resnet8", says=["did you mean 'digits'"]),
    "evaluate without weights": measured("--model", "resnet8", says=["random weights", "--weights"]),
    "evaluate missing weights": measured(
        "--model=resnet8", "--weights=gone", says=["--weights = 'gone'", "no such file"]
    ),
    "evaluate a folder": measured("--model", ".", says=["'.'", "config.json"]),
    "evaluate a long name": measured("--model", "x" * 300, says=["(302 characters)", "no such model"]),
    "evaluate a damaged config": measured("--model", "given", says=["config.json", "damaged"], setup=handed("{")),
    "evaluate an empty config": measured("--model", "given", says=["config.json", "lacks"], setup=handed("{}")),
    "evaluate no student": measured(
        "--model", "given", says=["student.safetensors", "no such file"], setup=handed(CONFIG)
    ),
    "evaluate a damaged student": measured(
        "--model=given",
        says=["student.safetensors", "damaged"],
        setup=handed(CONFIG, lambda f: put(f, "given/student.safetensors", b"xx")),
    ),
    "evaluate another student": measured(
        "--model", "given", says=["student.safetensors", "does not fit"], setup=handed(CONFIG, misplaced)
    ),
    "evaluate with odd numbers": measured("--model=resnet8", "--mean=a", "--std=1", says=["--mean = 'a'", "numbers"]),
    "evaluate with no std": measured("--model=resnet8", "--mean=0.5", says=["--std", "1 values"]),
    "evaluate with std 0": measured("--model=resnet8", "--mean=0.5", "--std=0", says=["--std = [0.0]", "above 0"]),
    "evaluate with nan": measured(
        "--model=resnet8", "--mean=nan", "--std=1", says=["--mean = 'nan'", "must be numbers"]
    ),
    "evaluate against two teachers": measured(
        "--model=resnet8", "--teacher", "t/1", "t/2", says=["--teacher = 't/1': takes one network, t/2 is one too many"]
    ),
    "evaluate a key": measured("--train.lr=3", says=["--train.lr: akd evaluate takes no keys of an experiment"]),
    "prepare with a teacher": other("data", "prepare", "cifar10", "--teacher=x", says=["akd data has no such flag"]),
    "data without a name": other("data", says=["are required: one of prepare, score; see 'akd data --help'"]),
    "score after a flag": other("data", "--data-dir=x", "score", "y", says=["score: comes right after 'akd data'"]),
    "list nothing": other("list", says=["required: one of models, methods, data, spaces; see 'akd list --help'"]),
    "prepare nothing known": other("data", "prepare", "cifar1000", says=["'cifar1000'", "cifar100"]),
    "prepare what needs nothing": other("data", "prepare", "digits", says=["'digits'", "needs no files"]),
    "prepare no folder": other("data", "prepare", "imagefolder", "--data-dir=gone", says=["data.dir", "gone"]),
    "prepare an odd size": other("data", "prepare", "imagefolder", "--image-size=3", says=["--image-size", ">= 8"]),
    "prepare into a file": other("data", "prepare", "cifar10", "--data-dir=s.yaml", says=["s.yaml", "File exists"]),
    "prepare what is damaged": other(
        "data", "prepare", "cifar100", "--data-dir=c", says=["checksums differ"], setup=cifar(train=b"x")
    ),
    "list nothing known": other("list", "modles", says=["'modles'", "did you mean 'models'"]),
    "list more": other("list", "models", "x", says=["x", "one argument too many"]),
    "list still more": other("list", "methods", "kd", "x", says=["x", "unknown argument"]),
    "ui before a study": other("ui", says=["holds no runs yet", "start a search first"]),
    "ui of no study": other("ui", "ine", says=["'ine'", "did you mean 'one'"], setup=busy),
    "ui of an odd port": other("ui", "--port", "99999", says=["port = 99999", "65535"]),
    "ui of no port": other("ui", "--port", "x", says=["--port", "'x'"]),
    "ui of an odd address": other("ui", "--tracking-uri", "ftp://x", says=["'ftp://x'", "http://HOST:5000"]),
    "ui of nobody": other("ui", "--tracking-uri", FREE, says=["'http://127.0.0.1:1'", "does not answer"]),
    "compare nothing": other("compare", says=["compare: needs two spaces at least"]),
    "compare one": other("compare", "s.yaml", says=["compare: needs two spaces at least"]),
    "compare no such space": other("compare", "s.yaml", "quikstart", says=["'quikstart'", "did you mean 'quickstart'"]),
    "compare unequal budgets": other(
        "compare",
        "s.yaml",
        "t.yaml",
        setup=partial(put, name="t.yaml", what=SPACE.replace("trials: 4", "trials: 5")),
        says=["t.yaml:4", "search.trials = 5", "is 4 in s", "--search.trials"],
    ),
    "compare what tunes nothing": other(
        "compare",
        "s.yaml",
        "t.yaml",
        setup=partial(put, name="t.yaml", what="data: digits\n"),
        says=["t: has no space"],
    ),
    "compare no seeds": other("compare", "s.yaml", "s.yaml", "--seeds=0", says=["--seeds", ">= 1"]),
    "compare one method": other("compare", "s.yaml", "s.yaml", "--method=kd", says=["--method", "no such flag"]),
    "compare under a taken name": other(
        "compare", "s.yaml", "s.yaml", "--name=one", setup=busy, says=["name = 'one'", "exists already"]
    ),
    "compare goes on with more": other("compare", "--resume=one", "--seeds=3", says=["--seeds", "goes on as it was"]),
    "compare goes on with nothing": other("compare", "--resume=ine", setup=busy, says=["'ine'", "did you mean 'one'"]),
    "compare goes on with a study": other("compare", "--resume=one", setup=busy, says=["is a study", "akd search"]),
    "report of nothing": other("report", says=["required: STUDY", "akd report --help"]),
    "report of no study": other("report", "ine", says=["study = 'ine'", "did you mean 'one'"], setup=busy),
    "report of a place": other("report", "../one", says=["'../one'", "no study of this name"], setup=busy),
    "report before a study": other("report", "one", says=["study = 'one'", "no study of this name"]),
    "report of a single run": other(
        "report", "one", says=["is a single run", "only studies"], setup=lambda folder: run_of(folder, "single")
    ),
    "report of a damaged study": other(
        "report", "one", says=["run.json", "is damaged"], setup=partial(put, name="runs/one/run.json", what="{")
    ),
    "report of an odd format": other("report", "one", "--format=htm", says=["'htm'", "did you mean 'html'"]),
    "report to nowhere": other("report", "one", "--out=no/x", says=["--out = 'no/x'", "no folder"], setup=busy),
    "report to a folder": other("report", "one", "--out=runs", says=["--out = 'runs'", "is a folder"], setup=busy),
    "report of two formats": other(
        "report", "one", "--format=md", "--format=json", says=["--format: is given twice"], setup=busy
    ),
    "report of a tracker": other(
        "report", "one", "--tracking-uri=x", says=["--tracking-uri = 'x'", "no effect without --verify"], setup=busy
    ),
    "report of a key": other("report", "one", "--train.lr=3", says=["--train.lr", "no keys of an experiment"]),
    "verify into a file": other("report", "one", "--verify", "--out=x", says=["no effect with --verify"], setup=busy),
    "verify an odd address": other(
        "report", "one", "--verify", "--tracking-uri=ftp://x", says=["'ftp://x'", "http://HOST:5000"], setup=busy
    ),
    "no verb": other("--x", says=["--x", "unknown argument"]),
}


def alone(folder: Path) -> None:
    """A single run that was begun and interrupted at once."""
    akd.distil("s.yaml", name="alone")


CACHE = {
    "use": flags("--teacher.cache.use", "sometimes", says=["teacher.cache.use", "'sometimes'", "one of auto, off, on"]),
    "dtype": flags("--teacher.cache.dtype", "float1", says=["teacher.cache.dtype", "did you mean 'float16'"]),
    "epochs": flags("--teacher.cache.epochs", "0", says=["teacher.cache.epochs = 0", ">= 1"]),
    "unknown": flags("--teacher.cache.bugdet", "1", says=["teacher.cache.bugdet", "did you mean 'budget'"]),
    "no section": flags("--teacher.cache", "3", says=["teacher.cache = 3", "must hold keys and values"]),
    "budget": flags("--teacher.cache.budget", "lots", says=["--teacher.cache.budget", "'lots'", "a size like 500 MB"]),
    "less than nothing": flags("--teacher.cache.budget=-5 GB", says=["'-5 GB'", "a size like"]),
    "no effect": flags(
        *("--teacher.cache.use=off", "--teacher.cache.dtype=float32"), says=["teacher.cache.dtype", "has no effect"]
    ),
    "folder": flags("--teacher.cache.dir=s.yaml/x", says=["teacher.cache.dir", "s.yaml", "is no folder"]),
    "searched": text("space:", "space:\n  teacher.cache.epochs: {type: int, low: 1, high: 3}", ["cannot be searched"]),
}


def composed(folder: Path) -> None:
    """An experiment of kd with views, with a space for the host."""
    space = "space: {method.host.temperature: {type: float, low: 1.0, high: 8.0}}\n"
    put(folder, "c.yaml", "data: {name: digits, subset: 200}\nmethod: {host: kd, views: angular_kd}\n" + space)


SINGLE = {
    "nothing to keep": other("teacher", "cache", says=["name an experiment", "--teacher"]),
    "nothing that is kept": other("teacher", "cache", "s.yaml", "--teacher.cache.use=off", says=["kd", "use is off"]),
    "nobody to learn": other("teacher", "cache", "s.yaml", "--passes=0", says=["--passes = 0", "a whole number"]),
    "a cache of a run": other("train", "s.yaml", "--teacher.cache.dir=s.yaml", says=["teacher.cache.dir", "no folder"]),
    "nothing to train": other("train", says=["name an experiment", "quickstart", "--data"]),
    "no teacher to train": other("teacher", says=["name an experiment", "quickstart", "--teacher"]),
    "unknown key": other("train", "s.yaml", "--train.lrr", "1", says=["--train.lrr", "did you mean 'lr'"]),
    "unknown key of a teacher": other("teacher", "s.yaml", "--teacher.nam", "x", says=["did you mean 'name'"]),
    "flag of a search": other("train", "s.yaml", "--trials", "3", says=["--trials: akd train has no such flag"]),
    "switch of a search": other(
        "train", "s.yaml", "--dry-run", says=["--dry-run: akd train has no such flag, akd search has it"]
    ),
    "student of a teacher": other(
        "teacher",
        "s.yaml",
        "--student=resnet8",
        says=["akd teacher has no such flag, akd search, akd compare, akd train and akd teacher cache have"],
    ),
    "epochs of a teacher": other(
        "teacher", "s.yaml", "--epochs=3", says=["--epochs: akd teacher has no such", "are --teacher.train.epochs"]
    ),
    "workers of a search": other(
        "search", "s.yaml", "--workers=2", says=["akd search has no such flag", "--workers-per-trial and --final"]
    ),
    "no dotted key": other("train", "s.yaml", "--train.3", "4", says=["--train.3", "is no dotted key"]),
    "two names": other("search", "s.yaml", "--name", "a", "b", says=["--name = 'a': takes one value, b is one too"]),
    "views of a flag over a host of the same flag": other(
        "train",
        "c.yaml",
        "--method={host: fitnet, views: tekap}",
        says=["akd: --method: method.views = 'tekap'"],
        setup=composed,
    ),
    "views of the file over a host of a flag": other(
        "train",
        "c.yaml",
        "--method.host=fitnet",
        setup=composed,
        says=["c.yaml:2: method.views = 'angular_kd': have no effect over fitnet (--method.host), which"],
    ),
    "keys of the file for a host of a flag": other(
        "search",
        "c.yaml",
        "--method=fitnet",
        setup=composed,
        says=["c.yaml:3: space.method.host.temperature: unknown key, the host is fitnet (--method), allowed are ce_w"],
    ),
    "stage": other("train", "s.yaml", "--method=at", "--method.host.stages=[9]", says=["stages = [9]", "no stage 9"]),
    "parts": other("train", "s.yaml", "--method=pkt", "--train.micro_batch=4", says=["micro_batch = 4", "with pkt"]),
    **{
        f"{verb} workers {value}": other(verb, "s.yaml", f"--workers={value}", says=["--workers = ", "a whole number"])
        for verb in ("train", "teacher")
        for value in ("0", "-1", "x", "1.5", "true")
    },
    "too many workers": other("train", "s.yaml", "--workers", "100", says=["workers = 100", "must be at most"]),
    "too many workers of a teacher": other("teacher", "s.yaml", "--workers", "100", says=["workers = 100", "at most"]),
    "more workers than images": other(
        "train", "s.yaml", "--workers=2", "--train.batch_size=1", says=["workers = 2", "at most 1", "each batch"]
    ),
    "no Ray there": other(
        "train", "s.yaml", "--ray-address", "127.0.0.1:1", says=["ray-address", "127.0.0.1:1", "no Ray answers"]
    ),
    "name that exists": other("train", "s.yaml", "--name", "mine", says=["'mine'", "exists already"], setup=taken),
    "output of a teacher": other(
        "teacher", "s.yaml", "--output=file/x", says=["output", "cannot be"], setup=lambda f: put(f, "file", "x")
    ),
    "no tracker there": other("train", "s.yaml", "--tracking-uri", FREE, says=["does not answer"]),
    "go on with nothing": other("train", "--resume", "one", says=["'one'"]),
    "go on with a study": other(
        "train", "--resume", "one", says=["resume = 'one'", "is a study", "akd search --resume one"], setup=started
    ),
    "go on with a single run as a study": other(
        "search", "--resume", "alone", says=["resume = 'alone'", "akd train --resume alone"], setup=alone
    ),
    "go on with more": other(
        "train", "--resume", "alone", "--epochs=5", says=["--epochs", "nothing else"], setup=alone
    ),
    "go on with an experiment": other("train", "s.yaml", "--resume", "alone", says=["nothing else"], setup=alone),
}


def warm(name: str, *, says: list[str], setup: Setup | None = None) -> Row:
    return flags("--warm-start", name, says=says, setup=setup)


GOING = {
    "start from nothing": warm("old", says=["warm_start = 'old'", "there is no study of this name in"]),
    "start from another": warm("onee", says=["did you mean 'one'"], setup=started),
    "start from a single run": warm("alone", says=["is a single run: only studies have configurations"], setup=alone),
    "start from no trial": warm("one", says=["has no trial that finished or was stopped"], setup=started),
    "start from none of it": warm("one:0", says=["'one:0'", "from 1 to 4 (search.trials)"], setup=started),
    "start from more than trials": warm("one:5", says=["'one:5'", "from 1 to 4 (search.trials)"], setup=started),
    "start from so many": warm("one:many", says=["'one:many'", "from 1 to 4"], setup=started),
    "start from no name": warm("", says=["warm_start = ''", "must name a study"]),
    "start and go on": again("--warm-start", "one", says=["--warm-start", "nothing else can be given"]),
    "add to nothing": flags("--add-trials", "3", says=["--add-trials = '3'", "give --resume NAME"], library=False),
    "add and show": again("--add-trials", "3", "--dry-run", says=["--dry-run", "nothing else can be given"]),
    "add trials as trials": again("--trials", "9", says=["--add-trials N gives it more trials"]),
    **{
        f"add {value}": again(f"--add-trials={value}", says=[f"--add-trials = {shown}", "a whole number of at least 1"])
        for value, shown in WRONG.items()
    },
    "add and change": other(
        *("search", "s.yaml", "--resume", "one", "--add-trials", "3", "--train.epochs", "3"),
        says=["train.epochs: 2 -> 3"],
        setup=started,
    ),
    "more in the file": other(
        *("search", "s.yaml", "--resume", "one", "--trials", "9"),
        says=["search.trials: 4 -> 9", "put it back and give --add-trials 5"],
        setup=started,
    ),
    "replay of nothing": other("replay", "one", "0", says=["study = 'one'", "there is no study of this name"]),
    "replay of no trial": other("replay", "one", "0", says=["trial = '0'", "there is no such run"], setup=started),
    "replay of what": other("replay", "one", says=["required: TRIAL"], setup=started),
    "replay with keys": other("replay", "one", "0", "--train.lr", "1", says=["takes no keys of an experiment"]),
}

TABLES = [NAMES, NUMBERS, SPACES, FORMS, FILES, WEIGHTS, DATA, PLACES, MACHINES, RESUMED, VERBS, CACHE, SINGLE]
TABLES += [GOING]
TITLES = ["names", "numbers", "space", "forms", "file", "weights", "data", "places", "machines", "resume"]
TITLES += ["verbs", "cache", "single", "going on"]
ROWS = {f"{title}: {name}": row for title, rows in zip(TITLES, TABLES, strict=True) for name, row in rows.items()}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with the experiment file; a mistake that passes must fail its test, not start a search."""
    here = tmp_path / "here"
    here.mkdir()
    put(here, "s.yaml", SPACE)
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.setenv("AKD_DATA_DIR", str(here / "no-data"))
    monkeypatch.setenv("AKD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("akd.running.RunningStudy.run", lambda self: None)
    monkeypatch.setattr("akd.single._train", lambda *a: None)
    monkeypatch.setattr("akd.single._session", lambda *a: contextlib.nullcontext())
    monkeypatch.setattr("akd.single.provide", lambda *a: None)
    # The machine of every row: two workers fit, and more than a batch has images do.
    monkeypatch.setattr("akd.cluster.machine", lambda: {"CPU": 16.0, "GPU": 0.0})
    sys.modules.pop("own_code", None)
    yield here
    sys.modules.pop("own_code", None)


def state(folder: Path) -> dict[Path, int]:
    return {p: p.lstat().st_mtime_ns for p in folder.rglob("*") if "__pycache__" not in p.parts}


def ray_runs() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def unplaced(line: str) -> str:
    """A line without the place it starts with: the library has no flags, and a mapping no lines."""
    return re.sub(r"^(\S+:\d+|\S+\.yaml|--[\w.-]+): ", "", line)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_one_line_and_nothing_else(row: Row, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if row.setup is not None:
        row.setup(folder)
    before, connected = state(folder), ray_runs()
    capfd.readouterr()
    began = time.process_time()  # others may be using the machine
    code = cli.main(list(row.arguments))
    assert time.process_time() - began < 5
    out, err = capfd.readouterr()
    assert (code, out) == (2, ""), err
    assert err.startswith("akd: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert all(word in err for word in row.words), err
    assert "secret" not in err
    assert state(folder) == before
    assert ray_runs() == connected
    if row.library:
        same_from_the_library(row, err.removeprefix("akd: ").strip(), before, folder)


def same_from_the_library(row: Row, line: str, before: dict[Path, int], folder: Path) -> None:
    places, values = called(row.arguments[2:])
    experiment: Any = row.arguments[1]
    if values:
        experiment = yaml.safe_load((folder / experiment).read_text(encoding="utf-8"))
        for key, value in values.items():
            node = experiment
            *above, last = key.split(".")
            for part in above:
                node[part] = node.get(part, {}) if not isinstance(node.get(part), str) else {"name": node[part]}
                node = node[part]
            node[last] = value
    with pytest.raises(ExperimentError) as caught:
        akd.search(experiment, **places)
    # The same text but for places; a file keeps its lines in both.
    assert unplaced(str(caught.value)) == unplaced(line)
    if not values and ".yaml:" in line.partition(" ")[0]:
        assert str(caught.value) == line
    assert state(folder) == before


def called(arguments: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Flags as keyword arguments of ``akd.search`` and as dotted keys of an experiment."""
    from akd.yamlfile import parse_value

    words = [part for a in arguments for part in (a.split("=", 1) if a.startswith("--") and "=" in a else [a])]
    places: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for flag, text in zip(words[::2], words[1::2], strict=True):
        if flag in ("--name", "--output", "--tracking-uri", "--ray-address", "--storage", "--warm-start"):
            places[flag[2:].replace("-", "_")] = text
            continue
        key = cli._FLAGS[flag][0] if flag in cli._FLAGS else flag[2:]
        values[f"{key}.name" if key in ("data", "teacher", "student") else key] = parse_value(text)
    return places, values


#: As real programs: what each of the ways into akd costs before it answers.
REAL = {
    "name": ["search", "quikstart"],
    "value": ["search", "s.yaml", "--trials", "0"],
    "file": ["search", "bad.yaml"],
    "weights": ["search", "s.yaml", "--teacher-weights", "evil.pt"],
    "data": ["search", "s.yaml", "--data", "cifar100"],
    "machine": ["search", "s.yaml", "--concurrent", "1000"],
    "tracker": ["search", "s.yaml", "--tracking-uri", FREE],
    "ray": ["search", "s.yaml", "--ray-address", "127.0.0.1:1"],
    "resume": ["search", "--resume", "nothing"],
    "ui": ["ui"],
}


@pytest.mark.parametrize("arguments", REAL.values(), ids=REAL)
def test_as_a_program(arguments: list[str], folder: Path) -> None:
    put(folder, "bad.yaml", SPACE.replace("trials: 4", "trials: !!python/object/apply:os.mkdir [pwned]"))
    torch.save({"model": _Evil()}, folder / "evil.pt")
    before = state(folder)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "akd.cli", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(akd.__file__).parents[1])},
        timeout=60,
    )
    said, imported = [], set()
    for line in done.stderr.splitlines():
        if line.startswith("import time:"):
            imported.add(line.rpartition("|")[2].strip().partition(".")[0])
        else:
            said.append(line)
    assert (done.returncode, done.stdout) == (2, ""), said
    assert len(said) == 1, said
    assert said[0].startswith("akd: ")
    assert state(folder) == before
    # What takes its seconds to import waits until all is checked (tests/benchmarks/mistake_cost.py has the times).
    assert "torch" in imported
    assert not imported & {"ray", "mlflow", "optuna", "sklearn", "pandas", "scipy"}


def test_a_port_that_is_taken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    busy(folder)
    with socket.socket() as taken_port:
        taken_port.bind(("127.0.0.1", 0))
        taken_port.listen()
        port = taken_port.getsockname()[1]
        assert cli.main(["ui", "one", "--port", str(port)]) == 2
    assert f"port = {port}: is in use" in capsys.readouterr().err


def test_a_tracker_that_accepts_and_says_nothing_is_not_waited_for(folder: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        with pytest.raises(ExperimentError, match="does not answer: nothing within 3 s"):
            akd.search("s.yaml", tracking_uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - began < 15
    assert not (folder / "runs").exists()


def test_a_server_that_is_no_ray_is_not_waited_for(folder: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ExperimentError, match="no Ray answers there"):
            akd.search("s.yaml", ray_address=f"127.0.0.1:{silent.getsockname()[1]}")
    assert not (folder / "runs").exists()


def test_the_variable_is_named_that_held_the_address(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", FREE)
    with pytest.raises(ExperimentError, match=r"^MLFLOW_TRACKING_URI: tracking-uri = 'http://127\.0\.0\.1:1'"):
        akd.search("s.yaml")
    assert not (folder / "runs").exists()


def test_a_tracker_may_come_later(folder: Path) -> None:
    assert cli.main(["search", "s.yaml", "--name", "one", "--tracking-uri", FREE, "--tracking-later"]) == 0
    assert (folder / "runs/one/run.json").is_file()
    # A study that goes on waits for it anyway.
    assert cli.main(["search", "--resume", "one", "--tracking-uri", FREE]) == 0


def test_the_same_experiment_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started(folder)
    assert cli.main(["search", "--resume", "one"]) == 0
    assert cli.main(["search", "s.yaml", "--resume", "one"]) == 0
    study.resume("one", experiment="s.yaml")
    study.resume("one", experiment=yaml.safe_load(SPACE))
    # On a machine with other folders and fewer CPUs.
    monkeypatch.setenv("AKD_DATA_DIR", str(folder / "elsewhere"))
    monkeypatch.setattr("akd.cluster.machine", lambda: {"CPU": 1.0, "GPU": 0.0})
    assert cli.main(["search", "s.yaml", "--resume", "one"]) == 0
    (folder / "runs/one/.experiment.yaml").unlink()  # of a study from before these notes
    assert cli.main(["search", "--resume", "one"]) == 0


class TestDistil:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"student": "resnet9"}, "did you mean 'resnet8'"),
            ({"train": {"epochs": 0}}, "train.epochs = 0: must be a whole number >= 1"),
            ({"train": {"batch_size": 5000}}, "train.batch_size = 5000: must be at most 1293"),
            ({"teacher": {"weights": "gone.pt"}}, "there is no such file"),
            ({"data": "cifar100"}, "cifar100 is not in"),
            ({"trian": {}}, "did you mean 'train'"),
        ],
    )
    def test_mistakes(self, change: dict[str, Any], words: str, folder: Path) -> None:
        before = state(folder)
        with pytest.raises(ExperimentError, match=re.escape(words)) as caught:
            akd.distil(change)
        assert "\n" not in str(caught.value)
        assert state(folder) == before

    def test_output_that_cannot_be_written(self, folder: Path) -> None:
        with pytest.raises(ExperimentError, match="cannot be written"):
            akd.distil({"method": "none"}, output="s.yaml")

    @pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2"])
    def test_workers_that_are_no_number_of_workers(self, workers: Any, folder: Path) -> None:
        before = state(folder)
        with pytest.raises(ExperimentError, match=r"^workers = .*: must be a whole number of at least 1$"):
            akd.distil("s.yaml", workers=workers)
        assert state(folder) == before

    @pytest.mark.parametrize("thing", [None, 3, ["s.yaml"]])
    def test_what_is_no_experiment(self, thing: Any) -> None:
        for call in (akd.distil, akd.search):
            with pytest.raises(ExperimentError, match="must be an Experiment, a mapping or a file"):
                call(thing)
