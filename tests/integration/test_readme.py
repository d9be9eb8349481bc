"""The library example of the README, run as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import program
import pytest

pytestmark = pytest.mark.ray

README = Path(__file__).parents[2] / "README.md"


def test_library_example(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(example.splitlines()) < 40
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    with open(tmp_path / "out.txt", "w", encoding="utf-8") as out:
        command = [sys.executable, "example.py"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=out, text=True, start_new_session=True)
    try:
        process.wait(240)
    finally:
        program.kill_group(process)
    output = (tmp_path / "out.txt").read_text(encoding="utf-8")
    assert process.returncode == 0, output
    assert "Traceback" not in output
    (study,) = (tmp_path / "runs").glob("*/result.json")
    result = program.read(study)
    assert f"{result['best_trial']['parameters']} {result['champion']['test']['mean']}" in output
    # What the comment beside the last line promises is what is printed.
    promised = example.rstrip().rpartition("  # ")[2]
    assert output.splitlines()[-1] == promised
    assert "tensor([" in output
    # The run of akd.distil; the mistake left none.
    (single,) = [p for p in (tmp_path / "runs").glob("digits-*") if p != study.parent]
    assert program.read(single / "run.json")["kind"] == "single"
