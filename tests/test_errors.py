from __future__ import annotations

import pickle

import pytest

from akd.errors import AkdError, CheckpointError, DivergedError, ExperimentError, Interrupted, near, one_of


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ExperimentError("is wrong"), "is wrong"),
        (ExperimentError("is wrong", key="train.lr"), "train.lr: is wrong"),
        (ExperimentError("is wrong", key="train.lr", value=-1), "train.lr = -1: is wrong"),
        (ExperimentError("is wrong", key="train.ema", value=None), "train.ema = None: is wrong"),
        (ExperimentError("is wrong", key="a", value="x", where="f.yaml:3"), "f.yaml:3: a = 'x': is wrong"),
        (ExperimentError("is wrong", where="f.yaml:3"), "f.yaml:3: is wrong"),
    ],
)
def test_one_line_that_says_where_what_and_why(error: ExperimentError, message: str) -> None:
    assert str(error) == message


@pytest.mark.parametrize("kind", [ExperimentError, DivergedError, CheckpointError, Interrupted])
def test_every_error_is_an_akd_error(kind: type[AkdError]) -> None:
    assert issubclass(kind, AkdError)


def test_errors_cross_a_process_boundary_with_their_message() -> None:
    error = ExperimentError("is wrong", key="train.lr", value=3, where="f.yaml:3")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_near() -> None:
    assert near("resnet9", ["resnet8", "wrn_16_1"]) == ", did you mean 'resnet8'?"
    assert near("xyz", ["resnet8"]) == ""
    assert near(8, []) == ""
    assert near(None, ["resnet8"]) == ""


def test_one_of_is_sorted() -> None:
    assert one_of(["b", "a"]) == "one of a, b"
