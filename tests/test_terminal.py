"""What a search shows on a terminal of 100 columns and in a log file."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from akd.folder import COMPLETE, FAILED, PRUNED, RUNNING, Run
from akd.terminal import Display, percent, short_names, show_value

EIGHT = {
    "method.host.temperature": 3.456789,
    "method.host.weight": 12.3456,
    "method.host.ce_weight": 0.123456,
    "train.lr": 0.0123456,
    "train.nesterov": True,
    "train.momentum": 0.912345,
    "train.weight_decay": 0.000512345,
    "train.label_smoothing": 0.0512345,
}


def display(keys: list[str], terminal: bool = True, trials: int = 10, height: int = 40) -> Display:
    console = Console(width=100, height=height, force_terminal=terminal, file=io.StringIO(), highlight=False)
    return Display(9, trials, keys, console)


def trial(number: int, state: str = RUNNING, reason: str | None = None, values: dict | None = None) -> Run:
    return Run("trial", f"trial {number}", number=number, state=state, reason=reason, parameters=values or EIGHT)


def drawn(shown: Display, every: bool = False) -> list[str]:
    """The table as lines, without colours."""
    with shown.console.capture() as capture:
        shown.console.print(shown._draw(every=every))
    return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in capture.get().splitlines()]


def written(shown: Display) -> list[str]:
    file = shown.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


class TestNames:
    @pytest.mark.parametrize(
        ("keys", "names"),
        [
            (["method.host.weight", "train.lr"], ["weight", "lr"]),
            (["method.host.weight", "method.views.weight"], ["host.weight", "views.weight"]),
            (["method.host.weight", "method.host.ce_weight"], ["weight", "ce_weight"]),
            (["a.x.w", "b.x.w", "c.w"], ["a.x.w", "b.x.w", "c.w"]),
            (["student"], ["student"]),
            (["method.views.name", "train.lr"], ["views", "lr"]),
            (["method.views.name", "method.host.name", "student.name"], ["views", "host", "student"]),
            (["method.extra.amd.name", "method.extra.amd.weight"], ["amd", "weight"]),
            (["method.views.name", "method.views"], ["name", "views"]),
            (["teacher.views.name", "method.views.name"], ["teacher.views", "method.views"]),
            (["name"], ["name"]),
            (["lr", "train.lr"], ["lr", "train.lr"]),
            ([], []),
        ],
    )
    def test_short(self, keys: list[str], names: list[str]) -> None:
        assert list(short_names(keys).values()) == names

    def test_never_two_alike(self) -> None:
        keys = ["a.b.c", "b.c", "x.c", "c", "a.x.c", "c.name", "a.c.name"]
        assert len(set(short_names(keys).values())) == len(keys)


@pytest.mark.parametrize(
    ("value", "text"), [(0.98765, "98.77"), (1.0, "100.00"), (0.0, "0.00"), (None, ""), (float("nan"), "")]
)
def test_percent(value: float | None, text: str) -> None:
    assert percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123456, "0.0123"), (12.3456, "12.3"), (1e-7, "1e-07"), (True, "True"), (3, "3"), ("a", "a")]
)
def test_show_value(value: object, text: str) -> None:
    assert show_value(value) == text


class TestTable:
    def test_a_row_of_each_kind(self) -> None:
        shown = display(["train.lr"])
        shown.update(Run("control", "control none"), 3, 0.5)
        shown.update(trial(0, COMPLETE), 9, 0.975)
        shown.update(trial(1, PRUNED), 3, 0.25)
        shown.update(trial(2, FAILED, "diverged in epoch 1: train/loss not finite"), 0, None)
        shown.update(trial(3), 2, float("nan"))
        lines = drawn(shown)
        assert lines[0].startswith("3 of 10 trials done")
        rows = {line.split("  ")[0].strip(): line.split() for line in lines[2:]}
        assert rows["control none"][2:5] == ["running", "3/9", "50.00"]
        assert rows["trial 0"][2:5] == ["done", "9/9", "97.50"]
        assert rows["trial 0"][-1] == "lr=0.0123"
        assert rows["trial 1"][2:5] == ["stopped", "3/9", "25.00"]
        assert rows["trial 2"][2:4] == ["failed", "0/9"]
        assert " ".join(rows["trial 2"]).endswith("diverged in epoch 1: train/loss not finite")
        assert rows["trial 3"][2:4] == ["running", "2/9"]

    def test_fits_the_width_with_eight_parameters(self) -> None:
        shown = display(list(EIGHT))
        for number in range(5):
            shown.update(trial(number, COMPLETE), 9, 0.9)
        live, final = drawn(shown), drawn(shown, every=True)
        assert max(map(len, live + final)) <= 100
        assert len(live) == 2 + 5  # one line a row while it is drawn again and again
        assert [line.split()[:5] for line in live[2:]] == [["trial", str(n), "done", "9/9", "90.00"] for n in range(5)]
        text = " ".join(" ".join(final).split())
        for name, value in {"weight_decay": "0.000512", "label_smoothing": "0.0512", "temperature": "3.46"}.items():
            assert f"{name}={value}" in text.replace(" ", "") or f"{name}={value}" in text

    @pytest.mark.parametrize("height", [40, 24])
    @pytest.mark.parametrize("running", [2, 60])
    def test_many_trials_fit_the_height(self, height: int, running: int) -> None:
        shown = display(list(EIGHT), trials=80, height=height)
        for number in range(60):
            state = RUNNING if number >= 60 - running else COMPLETE
            shown.update(trial(number, state), 5, number / 100)
        lines = drawn(shown)
        assert len(lines) < height
        hidden = int(re.search(r"(\d+) rows not shown", lines[0])[1])  # type: ignore[index]
        assert hidden + len(lines) - 2 == 60
        if running == 2:  # running ones and the best of those that ended
            assert lines[0].startswith("58 of 80 trials done")
            names = [" ".join(line.split()[:2]) for line in lines[2:]]
            assert names == [f"trial {n}" for n in range(60 - len(names), 60)]
        assert len(drawn(shown, every=True)) >= 62

    def test_the_best_finished_trial_is_marked_not_a_better_one_that_was_stopped(self) -> None:
        shown = display(["train.lr"])
        shown.update(trial(0, PRUNED), 1, 0.99)
        shown.update(trial(1, COMPLETE), 9, 0.8)
        shown.update(trial(2, COMPLETE), 9, 0.7)
        shown.update(Run("control", "control kd", state=COMPLETE), 9, 0.9)
        with shown.console.capture() as capture:
            shown.console.print(shown._draw())
        marked = [line for line in capture.get().splitlines() if "\x1b[1;32m" in line]
        assert len(marked) == 1
        assert "80.00" in marked[0]

    def test_brackets_in_a_reason_are_text(self) -> None:
        shown = display(["train.lr"])
        shown.update(trial(0, FAILED, "mat1 [/64] and mat2 [bold] on [cuda:0]"), 0, None)
        assert drawn(shown)[-1].endswith("mat1 [/64] and mat2 [bold] on [cuda:0]")

    def test_live_and_at_the_end(self) -> None:
        shown = display(["train.lr"])
        with shown.table():
            shown.update(trial(0), 1, 0.5)
            shown.say("a line above the table")
            shown.update(trial(0, COMPLETE), 9, 0.9)
        text = "\n".join(written(shown))
        assert "a line above the table" in text
        assert "90.00" in text

    def test_empty(self) -> None:
        assert drawn(display([]))[0] == "0 of 10 trials done"


class TestLogFile:
    def test_no_line_is_wider_than_100_columns(self) -> None:
        shown = display(list(EIGHT), terminal=False)
        with shown.table():
            shown.update(trial(12))
            shown.update(trial(12, COMPLETE), 9, 0.98765)
            shown.update(trial(13))
            reason = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79 GiB of which"
            shown.update(trial(13, FAILED, reason + " " + "x" * 150), 3, 0.5)
            shown.update(Run("control", "control none"))
        lines = written(shown)
        assert max(map(len, lines)) <= 100
        assert "\x1b" not in "".join(lines)
        text = " ".join(" ".join(lines).split())
        for name, value in (("temperature", "3.46"), ("nesterov", "True"), ("label_smoothing", "0.0512")):
            assert f"{name}={value}" in text
        assert "trial 12 done epoch 9/9 validation 98.77 %" in text
        assert "trial 13 failed epoch 3/9 validation 50.00 % CUDA out of memory." in text
        assert "control none started" in text

    def test_a_line_for_start_and_end_and_none_between(self) -> None:
        shown = display(["train.lr"], terminal=False)
        shown.update(trial(0))
        for epoch in range(1, 9):
            shown.update(trial(0), epoch, 0.5)
        shown.update(trial(0, COMPLETE), 9, 0.5)
        shown.update(trial(0, COMPLETE), 9, 0.5)
        assert [line.split()[2] for line in written(shown)] == ["started", "done"]

    def test_trials_of_an_earlier_session_are_listed_as_they_ended(self) -> None:
        shown = display(["train.lr"], terminal=False)
        shown.update(trial(0, PRUNED), 3, 0.5)
        assert [line.split()[2] for line in written(shown)] == ["stopped"]

    def test_bar(self) -> None:
        shown = display([], terminal=False)
        with shown.bar("teacher wrn_16_2", 3) as advance:
            for epoch in (1, 2, 3):
                advance(epoch, f"validation {epoch}0.00 %")
        assert written(shown) == ["teacher wrn_16_2: 3 epochs", "teacher wrn_16_2: done, validation 30.00 %"]

    def test_one_of_a_kind(self) -> None:
        shown = display([], terminal=False, trials=1)
        with shown.bar("teacher", 1):
            pass
        assert written(shown) == ["teacher: 1 epoch", "teacher: done"]
        assert drawn(shown)[0] == "0 of 1 trial done"

    def test_a_path_stays_in_one_piece(self) -> None:
        shown = display([], terminal=False)
        path = "/a/" + "long/" * 40 + "path"
        shown.say(f"teacher found ({path})")
        assert path in written(shown)[0]


def test_bar_on_a_terminal_counts_epochs() -> None:
    shown = display([])
    with shown.bar("teacher wrn_16_2", 3) as advance:
        advance(2, "validation 50.00 %")
    assert "2/3 epochs validation 50.00 %" in re.sub(r"\x1b\[[0-9;]*[a-zA-Z]", "", "\n".join(written(shown)))
