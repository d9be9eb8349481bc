"""``clusters/onprem.yaml`` for real: 'ray up', 'ray submit', Ctrl-C, 'ray down' over ssh on loopback.

Takes minutes, and the tests build on each other: 'make test-clusters'. ``transcript.txt`` in the folder of the node
(``--basetemp``) holds every command and what it printed.
"""

from __future__ import annotations

import os
import pty
import select
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import node as machines
import program
import pytest
import yaml
from node import CHECKOUT, Node

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(400)]
TUNE = "akd/tune.py"


def search(name: str, epochs: int, trials: int) -> list[str]:
    """Arguments of a small search on the digits."""
    values = {
        "name": name, "epochs": epochs, "trials": trials, "champion-seeds": 1, "final-workers": 1,
        "teacher.train.epochs": 2, "method.views.head_warmup_epochs": 1, "search.grace": 1,
    }  # fmt: skip
    return [
        "search_spaces/quickstart.yaml",
        *(word for key, value in values.items() for word in (f"--{key}", f"{value}")),
    ]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    if why := machines.missing():
        pytest.skip(why)
    node = Node(tmp_path_factory.mktemp("node"))
    try:
        yield node
    finally:
        node.close()


@pytest.fixture(scope="module")
def up(node: Node) -> str:
    """The cluster's file, once it is up."""
    path = str(node.cluster_file())
    code, output = node.ray("up", "-y", path)
    assert code == 0, output
    return path


def test_the_node_is_ready_and_closed_to_others(node: Node, up: str) -> None:
    home = node.home
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
    assert not (home / "ray_bootstrap_key.pem").exists()
    found = program.listening(node.processes())
    assert found
    assert not [one for one in found if one.outside]
    # Who has no token is turned away.
    code, output = node.ray("exec", up, "RAY_AUTH_TOKEN=0123456789abcdef0123456789abcdef ray list nodes")
    assert code == 1
    assert "InvalidAuthToken" in output
    code, output = node.ray("exec", up, "RAY_AUTH_TOKEN_PATH=/nowhere python ~/akd-src/akd/tune.py quickstart")
    assert code == 1
    assert "akd: ray-address = 'auto': asks for its token: " in output
    assert "Traceback" not in output
    code, output = node.ray("exec", up, "ray list nodes && python -c 'import akd; print(akd.__file__)'")
    assert code == 0, output
    assert "Total: 1" in output
    assert str(home / "akd-src" / "akd" / "__init__.py") in output


def test_a_search_is_submitted(node: Node, up: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", up, TUNE, "--", *search("first", epochs=3, trials=2)]
    code, output = node.ray(*words)
    with capsys.disabled():
        print(f"\n$ ray {' '.join(words)}\n{output}", flush=True)
    assert code == 0, output
    assert "winner: angular_kd over kd, resnet8" in output
    result = program.read(node.home / "runs" / "first" / "result.json")
    assert result["best_trial"]["epochs_run"] == 3
    assert (node.home / "tune.py").read_bytes() == (CHECKOUT / TUNE).read_bytes()
    # It ran on the Ray that 'ray up' started, which is still there.
    assert sum("gcs_server" in c for c in node.commands()) == 1


def test_arguments_with_spaces_need_quotes_of_their_own(node: Node, up: str) -> None:
    """'ray submit' joins its arguments into one line for the shell of the head."""
    dry = ["submit", up, TUNE, "--", "search_spaces/quickstart.yaml", "--dry-run"]
    code, output = node.ray(*dry, "--data", "'{name: digits, validation: 0.31}'")
    assert code == 0, output
    assert "0.31" in output
    code, output = node.ray(*dry, "--data", "{name: digits, validation: 0.31}")
    assert code == 1
    assert "Traceback" not in output


def test_a_file_of_ones_own_is_sent_and_found(node: Node, up: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(program.SMALL, encoding="utf-8")
    code, output = node.ray("rsync-up", up, str(tmp_path / "mine.yaml"), "~/mine.yaml")
    assert code == 0, output
    code, output = node.ray("submit", up, TUNE, "--", "mine.yaml", "--dry-run")
    assert code == 0, output
    code, output = node.ray("rsync-down", up, "~/runs/first/", str(tmp_path / "first"))
    assert code == 0, output
    assert (tmp_path / "first" / "champion" / "student.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search_spaces/quickstrat.yaml"], "there is no such file or search space, did you mean 'quickstart'?"),
        (["quickstart", "--trails", "3"], "akd: --trails: unknown argument for akd search, did you mean '--trials'?"),
        (["quickstart", "--name", "first"], "akd: name = 'first': "),
        (["quickstart", "--search.cpus_per_trial", "4096"], "search.cpus_per_trial = 4096: fits on no node"),
    ],
)
def test_a_mistake_is_one_line(node: Node, up: str, arguments: list[str], words: str) -> None:
    code, output = node.ray("submit", up, TUNE, "--", *arguments)
    assert code == 1
    lines = [line for line in output.splitlines() if line.startswith("akd: ")]
    assert len(lines) == 1, output
    assert words in lines[0]
    assert "Traceback" not in output


def test_ctrl_c_ends_the_search_which_goes_on_when_told(node: Node, up: str) -> None:
    arguments = ["submit", up, TUNE, "--", *search("second", epochs=12, trials=1)]
    history = node.home / "runs" / "second" / "controls"
    code, output = _interrupted(node, arguments, lambda: list(history.glob("*/history.jsonl")))
    assert code == 1, output
    assert "stopped; go on with: " in output
    assert "search --resume second" in output
    assert "Traceback" not in output
    # The program has left, Ray stays for the next.
    program.wait_for(lambda: not any("tune.py" in c or "ray::ImplicitFunc" in c for c in node.commands()), 60)
    assert sum("gcs_server" in c for c in node.commands()) == 1
    code, output = node.ray("submit", up, TUNE, "--", "--resume", "second")
    assert code == 0, output
    assert (node.home / "runs" / "second" / "result.json").exists()


def test_mlflow_as_on_the_head_of_aws(node: Node, up: str) -> None:
    """Its commands in ``aws.yaml`` start it, on loopback, and leave it running; here with a folder for the bucket."""
    cluster = yaml.safe_load((CHECKOUT / "clusters" / "aws.yaml").read_text(encoding="utf-8"))
    port = str(machines.free_port())
    (wait,) = [c for c in cluster["head_setup_commands"] if "cat > ~/.akd-mlflow" in c]
    (start,) = [c for c in cluster["head_start_ray_commands"] if "mlflow server" in c]
    for command in (wait, start, start):
        assert "5000" in command
        code, output = node.ray("exec", up, command.replace("5000", port).replace("s3://$AKD_BUCKET", "$HOME"))
        assert code == 0, output
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
        assert answer.status == 200
    servers = [pid for pid in node.processes() if b"mlflow" in (Path("/proc") / str(pid) / "cmdline").read_bytes()]
    found = program.listening(servers)
    assert found
    assert not [one for one in found if one.outside]


def test_a_ray_that_is_gone_is_one_line_too_and_comes_back(node: Node, up: str) -> None:
    code, output = node.ray("exec", up, "ray stop")
    assert code == 0, output
    code, output = node.ray("submit", up, TUNE, "--", "quickstart")
    assert code == 1
    assert "akd: ray-address = 'auto': no Ray answers there" in output
    assert "Traceback" not in output
    code, output = node.ray("up", "-y", up)
    assert code == 0, output
    assert sum("gcs_server" in c for c in node.commands()) == 1


def test_down(node: Node, up: str) -> None:
    code, output = node.ray("down", "-y", up)
    assert code == 0, output
    assert "No nodes remaining" in output
    left = [c for c in node.commands() if "gcs_server" in c or "raylet" in c or c.startswith("ray::")]
    assert left == []
    assert (node.home / "akd-src" / "akd").is_dir()  # files stay


def _interrupted(node: Node, arguments: list[str], ready: object) -> tuple[int, str]:
    """Exit code and output of a ray command in a terminal of its own, at which Ctrl-C is typed once ``ready()``."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(CHECKOUT)
        os.execve(machines.RAY, [machines.RAY, *arguments], node.environment)
    output, typed, end = b"", False, time.monotonic() + 200
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                output += os.read(terminal, 65536)
            except OSError:  # the other end is closed
                break
        if not typed and ready():  # type: ignore[operator]
            os.write(terminal, b"\x03")
            typed = True
    else:
        os.kill(child, 9)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(terminal)
    text = output.decode(errors="replace")
    node.note(arguments, text, code)
    return code, text
