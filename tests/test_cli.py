"""The command line: every mistake is one line and exit 2, with nothing written; what the other verbs print."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import akd
from akd import cli, spaces
from akd.config import Experiment, load, resolve
from akd.errors import Interrupted
from akd.folder import COMPLETE, Run
from akd.space import parse

SPACE = """\
data: {name: digits, subset: 200}
teacher: {name: wrn_16_1, train: {epochs: 1, batch_size: 16, threads: 1}}
train: {epochs: 2, batch_size: 16, threads: 1}
search: {trials: 4, champion_seeds: 1}
space:
  train.lr: {type: float, low: 0.01, high: 0.2, log: true}
  train.momentum: {choices: [0.8, 0.9]}
"""

Fails = Callable[..., str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("AKD_DATA_DIR", str(tmp_path / "no-data"))
    (tmp_path / "s.yaml").write_text(SPACE, encoding="utf-8")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fails(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Fails:
    """Run a command that is a mistake and give its one line."""
    # A mistake that passes must fail its test, not start a search.
    monkeypatch.setattr("akd.running.RunningStudy.run", lambda self: None)

    def call(*arguments: str) -> str:
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
        began = time.process_time()  # others may be using the machine
        code = cli.main(list(arguments))
        seconds = time.process_time() - began
        out, err = capsys.readouterr()
        assert code == 2, err
        assert out == ""
        assert err.endswith("\n")
        assert err.count("\n") == 1, err
        assert err.startswith("akd: ")
        assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
        assert seconds < 5
        return err.strip()

    return call


class TestSearchMistakes:
    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (["--train.lrr", "0.1"], ["--train.lrr", "train.lrr", "did you mean 'lr'"]),
            (["--trian.lr", "0.1"], ["--trian.lr", "did you mean 'train'"]),
            (["--trails", "3"], ["--trails", "did you mean '--trials'"]),
            (["--method", "kdd"], ["--method", "kdd", "did you mean 'kd'"]),
            (["--teacher", "wrn_16_3"], ["--teacher", "wrn_16_3", "did you mean 'wrn_16_"]),
            (["--student", "resnet9"], ["--student", "resnet9", "did you mean 'resnet8'"]),
            (["--student", "nowhere:net"], ["--student", "nowhere:net", "cannot be imported"]),
            (["--data", "digit"], ["--data", "digit", "did you mean 'digits'"]),
            (["--data", "cifar100"], ["cifar100 is not in", "no-data", "akd data prepare cifar100", "--data-dir"]),
            (["--data", "cifar100", "--data-dir", "gone"], ["gone", "akd data prepare cifar100"]),
            (["--trials", "0"], ["--trials", "search.trials = 0", "a whole number >= 1"]),
            (["--trials", "-3"], ["--trials", "-3", ">= 1"]),
            (["--trials", "many"], ["--trials", "'many'", "a whole number >= 1"]),
            (["--trials", "2.5"], ["--trials", "2.5", "a whole number"]),
            (["--epochs", "0"], ["--epochs", "train.epochs = 0", ">= 1"]),
            (["--epochs", "-1"], ["--epochs", "-1"]),
            (["--train.batch_size", "0"], ["train.batch_size = 0", ">= 1"]),
            (["--train.batch_size", "-64"], ["train.batch_size = -64"]),
            (["--train.batch_size", "181"], ["train.batch_size = 181", "at most 180", "training images"]),
            (["--teacher.train.batch_size", "181"], ["teacher.train.batch_size", "at most 180"]),
            (["--data.subset", "2000"], ["data.subset = 2000", "at most 1437"]),
            (["--data.validation", "0.001"], ["data.validation", "both parts need some"]),
            (["--seed", "-1"], ["--seed", "-1", ">= 0"]),
            (["--concurrent", "0"], ["--concurrent", ">= 1"]),
            (["--cpus-per-trial", "0"], ["--cpus-per-trial", "> 0"]),
            (["--champion-seeds", "0"], ["--champion-seeds", ">= 1"]),
            (["--sampler", "tpee"], ["--sampler", "random, tpe", "did you mean 'tpe'"]),
            (["--scheduler", "hyperband"], ["--scheduler", "asha, median, none"]),
            (["--log-checkpoints", "bset"], ["--log-checkpoints", "did you mean 'best'"]),
            (["--time-budget", "soon"], ["--time-budget", "'soon'", "a time like 90"]),
            (["--time-budget", "0"], ["--time-budget", "> 0"]),
            (["--time-budget", "-5m"], ["--time-budget"]),
            (["--scheduler", "none", "--search.eta", "4"], ["search.eta = 4", "scheduler"]),
            (["--train.momentum", "0.5"], ["--train.momentum", "s.yaml:7", "--space.train.momentum"]),
            (["--train.lr", "0.1"], ["--train.lr", "s.yaml:6"]),
            (["--epochs", "3", "--train.epochs", "4"], ["--train.epochs", "given twice", "--epochs"]),
            (["--train.ema", "0.9", "--train.ema", "0.8"], ["--train.ema", "given twice"]),
            (["--trials"], ["--trials"]),
            (["--train.ema"], ["--train.ema", "needs a value"]),
            (["--name", "a b"], ["name", "'a b'", "letters"]),
            (["--name", "../up"], ["name", "'../up'"]),
            (["--name", "teachers"], ["name", "reserved"]),
            (["extra"], ["extra"]),
        ],
        ids=" ".join,
    )
    def test_flag(self, flags: list[str], words: list[str], fails: Fails) -> None:
        line = fails("search", "s.yaml", *flags)
        assert all(word in line for word in words), line

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            ("low: 0.01", "low: 0.3", ["s.yaml:6", "space.train.lr.low = 0.3", "at most high, which is 0.2"]),
            ("low: 0.01", "low: 0.0", ["s.yaml:6", "space.train.lr.low = 0.0", "above 0"]),
            ("high: 0.2", "hihg: 0.2", ["s.yaml:6", "hihg", "did you mean 'high'"]),
            ("train.momentum:", "train.momentun:", ["s.yaml:7", "train.momentun", "did you mean 'momentum'"]),
            ("epochs: 2,", "epoch: 2,", ["s.yaml:3", "train.epoch", "did you mean 'epochs'"]),
            ("search:", "serach:", ["s.yaml:4", "serach", "did you mean 'search'"]),
            ("trials: 4", "trials: four", ["s.yaml:4", "search.trials = 'four'", "a whole number >= 1"]),
            ("[0.8, 0.9]", "[]", ["s.yaml:7", "space.train.momentum.choices = []"]),
            ("[0.8, 0.9]", "[0.8, 1.5]", ["s.yaml:7", "space.train.momentum", "1.5", "< 1"]),
            ("[0.8, 0.9]", "[0.8, 0.9", ["s.yaml", "YAML"]),
            ("search: {", "search: !!python/object/apply:os.system {", ["s.yaml:4", "YAML"]),
            ("train: {epochs: 2", "data: digits\ntrain: {epochs: 2", ["s.yaml:3", "data", "twice", "line 1"]),
        ],
    )
    def test_file(self, old: str, new: str, words: list[str], fails: Fails, tmp_path: Path) -> None:
        assert old in SPACE
        (tmp_path / "s.yaml").write_text(SPACE.replace(old, new, 1), encoding="utf-8")
        line = fails("search", "s.yaml")
        assert all(word in line for word in words), line

    def test_batch_sizes_of_the_space_are_held_against_the_data(self, fails: Fails, tmp_path: Path) -> None:
        text = SPACE + "  train.batch_size: {choices: [16, 256]}\n"
        (tmp_path / "s.yaml").write_text(text, encoding="utf-8")
        line = fails("search", "s.yaml")
        assert "train.batch_size = 256" in line
        assert "at most 180" in line

    def test_space_file(self, fails: Fails, tmp_path: Path) -> None:
        assert "did you mean 'quickstart'" in fails("search", "quikstart")
        assert all(name in fails("search", "nothing-like-it.yaml") for name in spaces.names())
        assert all(name in fails("search") for name in spaces.names())
        (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
        assert "binary.yaml" in fails("search", "binary.yaml")
        (tmp_path / "list.yaml").write_text("- 1\n", encoding="utf-8")
        assert "list.yaml:1" in fails("search", "list.yaml")
        (tmp_path / "empty.yaml").write_text("", encoding="utf-8")
        assert "nothing to search" in fails("search", "empty.yaml")

    def test_name_that_exists(self, fails: Fails, tmp_path: Path) -> None:
        (tmp_path / "runs" / "mine").mkdir(parents=True)
        Run("study", "mine").write(tmp_path / "runs" / "mine")
        line = fails("search", "s.yaml", "--name", "mine")
        assert "exists already" in line
        assert "akd search --resume mine" in line
        assert "exists already" in fails("search", "s.yaml", "--name", "mine", "--dry-run")
        Run("single", "mine").write(tmp_path / "runs" / "mine")
        assert "akd train --resume mine" in fails("train", "s.yaml", "--name", "mine")

    def test_output_that_cannot_be_written(self, fails: Fails, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way", encoding="utf-8")
        for output in ("file", "file/below"):
            line = fails("search", "s.yaml", "--output", output)
            assert "output" in line
            assert "file" in line

    def test_resume(self, fails: Fails, tmp_path: Path) -> None:
        assert "no study of this name" in fails("search", "--resume", "nothing")
        folder = tmp_path / "runs" / "study-one"
        folder.mkdir(parents=True)
        Run("study", "study-one").write(folder)
        assert "did you mean 'study-one'" in fails("search", "--resume", "study-two")
        assert "study-one" in fails("search", "--resume", "xyz")
        for extra in (
            ["--trials", "5"],
            ["--seed", "1"],
            ["--name", "n"],
            ["--train.lr", "1"],
            ["--dry-run"],
            ["--time-budget", "1h"],
        ):
            line = fails("search", "--resume", "study-one", *extra)
            assert extra[0] in line
            assert "nothing else" in line

    def test_verbs(self, fails: Fails) -> None:
        assert "serach" in fails("serach")
        assert "model" in fails("list", "model")
        assert "--what" in fails("list", "models", "--what")
        assert "digits" in fails("data", "prepare", "digits")
        assert "start a search first" in fails("ui")


def experiment_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Experiment:
    """The experiment that ``akd search`` would run."""
    seen: list[Experiment] = []
    monkeypatch.setattr("akd.study.search", lambda e, **kw: seen.append(e))
    assert cli.main(["search", *arguments]) == 0
    return seen[0]


class TestFlags:
    def test_every_flag_sets_its_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        flags = "--epochs 7 --trials 9 --concurrent 2 --cpus-per-trial 0.5 --gpus-per-trial 0 --champion-seeds 5"
        flags += " --sampler random --scheduler none --log-checkpoints all --teacher resnet20 --student resnet8"
        flags += " --data digits --data-dir here --method none --seed 11 --train.ema=0.5 --train.decay_factor 0.1"
        e = experiment_of(monkeypatch, "s.yaml", *flags.split())
        search = e.search
        assert (e.train.epochs, search.trials, search.concurrent, search.champion_seeds) == (7, 9, 2, 5)
        assert (search.cpus_per_trial, search.gpus_per_trial) == (0.5, 0)
        assert (search.sampler, search.scheduler, search.log_checkpoints) == ("random", "none", "all")
        assert (e.teacher.name, e.student.name, e.method.host_name) == ("resnet20", "resnet8", "none")
        assert (e.data.name, e.data.dir, e.data.subset) == ("digits", "here", 200)
        assert (search.seed, e.train.seed, e.train.plan_seed) == (11, 11, 11)
        assert e.train.ema == 0.5

    @pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("45s", 45), ("1.5m", 90), ("2h", 7200)])
    def test_time_budget(self, text: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
        assert experiment_of(monkeypatch, "s.yaml", "--time-budget", text).search.time_budget == seconds

    def test_overrides_may_stand_before_the_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        e = experiment_of(monkeypatch, "--train.ema", "0.9", "--trials", "3", "--train.nesterov=true", "s.yaml")
        assert (e.train.ema, e.train.nesterov, e.search.trials, e.data.subset) == (0.9, True, 3, 200)

    def test_space_from_flags_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        e = experiment_of(monkeypatch, "--space.train.lr", "{type: float, low: 0.1, high: 0.2}")
        assert [p.key for p in parse(e).searched] == ["train.lr"]

    def test_a_searched_key_can_be_fixed_in_the_space(self, monkeypatch: pytest.MonkeyPatch) -> None:
        e = experiment_of(monkeypatch, "s.yaml", "--space.train.momentum", "0.7")
        assert [p.key for p in parse(e).searched] == ["train.lr"]

    def test_shipped_spaces_are_found_by_name_and_by_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        named = [experiment_of(monkeypatch, n) for n in ("kd", "kd.yaml", "search_spaces/kd.yaml")]
        assert named[0] == named[1] == named[2] == load(spaces.find("kd"), {})


class TestEnds:
    @pytest.mark.parametrize("error", [KeyboardInterrupt(), None], ids=["ctrl-c", "asked"])
    def test_interrupted(
        self, error: BaseException | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from akd.errors import Interrupted

        def stop(*args: object, **kw: object) -> None:
            raise error or Interrupted("stopped; go on with: akd search --resume x")

        monkeypatch.setattr("akd.study.search", stop)
        assert cli.main(["search", "s.yaml"]) == 130
        said = "interrupted" if error else "stopped; go on with: akd search --resume x"
        assert capsys.readouterr().err == f"akd: {said}\n"

    def test_failed(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        from akd.errors import AkdError

        def fail(*args: object, **kw: object) -> None:
            raise AkdError("no trial finished: 3 x out of memory (see runs/s/trials)")

        monkeypatch.setattr("akd.study.search", fail)
        assert cli.main(["search", "s.yaml"]) == 1
        assert capsys.readouterr().err == "akd: no trial finished: 3 x out of memory (see runs/s/trials)\n"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
    def test_a_server_ends_quietly_with_all_it_started(self, number: signal.Signals, tmp_path: Path) -> None:
        """As Ctrl-C in a terminal does it: to every process of the group at once."""
        (tmp_path / "server.py").write_text(
            "import subprocess, sys, time\n"
            "below = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
            "print(below.pid, flush=True)\n"
            "time.sleep(60)\n",
            encoding="utf-8",
        )
        program = "import os, sys; from akd import cli, ui; from pathlib import Path\n"
        program += "cli._run = lambda words: ui._run([sys.executable, 'server.py'], os.environ)\n"
        program += "sys.exit(cli.main([]))\n"
        command = [sys.executable, "-c", program]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as process:
            assert process.stdout is not None
            below = int(process.stdout.readline())
            os.killpg(process.pid, number)
            out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (130, "", "akd: MLflow has ended\n")
        # Left to this machine's init, it may still be there to be waited for, but it does not run.
        state = Path(f"/proc/{below}/stat")
        assert not state.exists() or state.read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"

    def test_a_server_that_ends_by_itself(self) -> None:
        from akd import ui
        from akd.errors import AkdError

        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(AkdError, match="ended by itself, with code 3"):
            ui._run([sys.executable, "-c", "raise SystemExit(3)"], os.environ)
        assert signal.getsignal(signal.SIGINT) is before


class TestDryRun:
    def test_shows_all_and_leaves_nothing(self, tmp_path: Path) -> None:
        # A process of its own: another test may have a Ray running in this one.
        code = "import sys; from akd.cli import main; c = main(sys.argv[1:]); r = sys.modules.get('ray'); "
        code += "print('ray runs:', r is not None and r.is_initialized()); sys.exit(c)"
        command = [sys.executable, "-c", code, "search", "s.yaml", "--dry-run", "--trials", "7"]
        before = sorted(tmp_path.rglob("*"))
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert sorted(tmp_path.rglob("*")) == before
        lines = done.stdout.splitlines()
        assert lines[-1] == "ray runs: False"
        assert "trials: 7" in done.stdout
        assert "subset: 200" in done.stdout
        for number in range(3):
            (line,) = [t for t in lines if t.startswith(f"  trial {number}: ")]
            assert "train.lr 0." in line
            assert "train.momentum 0." in line
        assert not any(t.startswith("  trial 3") for t in lines)
        assert "7 trials of at most 2 epochs" in done.stdout
        assert "estimated time: teacher " in done.stdout
        assert "kept are logits (1 key)" in done.stdout
        assert "how rungs rank: correlation of their scores with full training" in done.stdout
        assert "nothing was started, nothing was written" in done.stdout

    def test_configurations_are_those_the_search_would_try(self, capsys: pytest.CaptureFixture[str]) -> None:
        import optuna

        from akd.searcher import make_sampler
        from akd.terminal import show_value

        assert cli.main(["search", "s.yaml", "--dry-run", "--seed", "4"]) == 0
        printed = capsys.readouterr().out
        e = load(Path("s.yaml"), {"search.seed": 4})
        values = parse(e)(optuna.create_study(sampler=make_sampler(e, 0)).ask())
        assert "  trial 0: " + ", ".join(f"{k} {show_value(v)}" for k, v in values.items()) in printed

    def test_resolved_experiment_is_one_that_can_be_run(self, capsys: pytest.CaptureFixture[str]) -> None:
        import yaml

        assert cli.main(["search", "s.yaml", "--dry-run"]) == 0
        text = capsys.readouterr().out.partition("\nthe first three configurations")[0]
        again = resolve(yaml.safe_load(text), strict=False)
        assert again.train.epochs == 2
        assert again.data.subset == 200
        assert again.search.champion_seeds == 1


class _NoTracker:
    """In the place of MLflow's: takes everything, keeps nothing."""

    closed = True

    def __init__(self, *args: object, **settings: object) -> None:
        pass

    def changed(self, *args: object, **settings: object) -> None:
        pass

    def close(self, patience_s: float = 60.0) -> bool:
        return True

    def run_id(self, folder: Path) -> str:
        return ""


class TestGoingOn:
    def test_a_run_says_where_it_goes_on_and_that_it_was_finished(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from akd.terminal import Display

        class Stopped(Display):
            @contextlib.contextmanager
            def bar(self, title: str, epochs: int) -> Iterator[Callable[..., None]]:
                def advance(epoch: int, note: str = "") -> None:
                    if epoch == 3:
                        raise KeyboardInterrupt

                yield advance

        monkeypatch.setattr("akd.single.Tracker", _NoTracker)
        experiment = load(Path("s.yaml"), {"method": "none", "train.epochs": 4, "data.subset": 80})
        with pytest.raises(Interrupted, match="akd train --resume a"):
            akd.distil(experiment, name="a", display=Stopped(4, 1, []))
        for words in (r"\ngoes on after epoch [23] of 4\nstudent resnet8: 4 epochs\n", "\nit was finished already: "):
            assert cli.main(["train", "--resume", "a"]) == 0
            assert re.search(words, capsys.readouterr().out)

    def test_a_study_says_that_it_was_finished(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr("akd.running.RunningStudy.run", lambda self: None)
            akd.search("s.yaml", name="one")
        run = Run.read(tmp_path / "runs/one")
        assert run is not None
        run.end(tmp_path / "runs/one", COMPLETE)
        monkeypatch.setattr("akd.running.Tracker", _NoTracker)
        monkeypatch.setattr("akd.running.StudyResult.read", lambda folder: "the result")
        monkeypatch.setattr("akd.running.RunningStudy._conclude", lambda self, result: self.display.say(result))
        assert cli.main(["search", "--resume", "one"]) == 0
        assert capsys.readouterr().out.endswith("\nit was finished already: nothing is trained again\nthe result\n")


class TestOtherVerbs:
    def test_lists(self, capsys: pytest.CaptureFixture[str]) -> None:
        wanted = {
            "models": ["resnet8", "resnet20", "wrn_16_1", "wrn_16_2"],
            "methods": ["none", "kd", "host", "views", "logits", "1503.02531"],
            "data": ["digits", "cifar10", "cifar100"],
            "spaces": ["kd", "quickstart", "How many views, how far apart"],
        }
        for what, words in wanted.items():
            assert cli.main(["list", what]) == 0
            out, err = capsys.readouterr()
            assert err == ""
            assert all(word in " ".join(out.split()) for word in words), out
            assert max(map(len, out.splitlines())) <= 100

    @pytest.mark.parametrize("verb", [[], ["search"], ["data"], ["list"], ["ui"]], ids=lambda v: " ".join(v) or "akd")
    def test_help_fits_a_hundred_columns(self, verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main([*verb, "--help"])
        assert ended.value.code == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 100

    def test_help_of_data_names_both_actions(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            cli.main(["data", "--help"])
        out = " ".join(capsys.readouterr().out.split())
        assert "prepare: fetch or decode NAME; score: rank augmentations" in out
        assert "akd data score --help" in out

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(["--version"])
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"akd {akd.__version__}\n"

    def test_no_verb_prints_the_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main([]) == 0
        assert "search" in capsys.readouterr().out


def test_script_is_the_same_program(tmp_path: Path) -> None:
    """``python akd/tune.py`` from another folder, as ``ray submit`` runs it."""
    script = Path(akd.__file__).parent / "tune.py"

    def run(*command: str) -> tuple[int, str, str]:
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60, env=os.environ)
        return done.returncode, done.stdout, done.stderr

    assert run(str(script), "--help") == run("-m", "akd.cli", "search", "--help")
    mistake = run(str(script), "s.yaml", "--trails", "3")
    assert mistake == run("-m", "akd.cli", "search", "s.yaml", "--trails", "3")
    assert mistake[0] == 2
