"""The output folder's disk fills up during a search, and has space again later."""

from __future__ import annotations

import shutil
from pathlib import Path

import program
import pytest
import smalldisk
from studies import ONE, agree, identical

from akd.folder import FAILED, Run

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(bool(why := smalldisk.missing()), reason=str(why)),
]

#: A file whose lines say that a moment has come, and how many.
TRIAL = ("s/trials/00001/history.jsonl", 1)
MOMENTS = {
    "teacher": ("teachers/*/history.jsonl", 1),
    "control": ("s/controls/none/history.jsonl", 1),
    "trial": TRIAL,
    "another trial": ("s/trials/00003/experiment.yaml", 1),
    "final run": ("s/finals/champion-seed4/history.jsonl", 1),
}


def filled(disk: smalldisk.SmallDisk, arguments: list[str], moment: tuple[str, int]) -> None:
    """A session in which the disk fills up."""
    out = disk.place.parent / "out.txt"
    pattern, count = moment

    def come() -> bool:
        return any(len(p.read_text().splitlines()) >= count for p in disk.outside.glob(pattern))

    process = smalldisk.started(disk, arguments)
    try:
        program.wait_for(lambda: come() or process.poll() is not None)
        assert process.poll() is None, out.read_text()
        disk.fill()
        assert process.wait(100) == 1, out.read_text()
    finally:
        program.kill_group(process)
    output = out.read_text()
    last = [line for line in output.splitlines() if line.startswith("akd: ")]
    assert last == [
        "akd: the disk is full: nothing more can be written in runs/s. Nothing is lost; free some space, then go on "
        "with: akd search --resume s"
    ], output
    assert output.endswith(last[0] + "\n")
    assert "Traceback" not in output
    for path in disk.outside.glob("s/**/run.json"):
        run = Run.read(path.parent)  # whole, and nothing has failed for want of space
        assert run is not None
        assert run.state != FAILED, run.reason


def goes_on(disk: smalldisk.SmallDisk, undisturbed: Path) -> None:
    """With space the study ends as the undisturbed one."""
    process = smalldisk.started(disk, ["search", "--resume", "s"])
    try:
        assert process.wait(200) == 0, (disk.place.parent / "out.txt").read_text()
    finally:
        program.kill_group(process)
    identical(disk.outside / "s", undisturbed)
    # Artifacts and notes name the place inside; what compares them has to be there.
    process = smalldisk.started(disk, ["report", "s", "--verify"])
    code = process.wait(100)
    output = (disk.place.parent / "out.txt").read_text()
    assert code == 0, output
    assert "verified: folders, Optuna and MLflow agree" in output
    copy = disk.place.parent / "copy"  # SQLite follows the link to the place inside, which is another place here
    shutil.copytree(disk.outside, copy)
    agree(copy / "s")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    code, output = program.run(ONE, folder)
    assert code == 0, output
    return folder / "runs" / "s"


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_full_again_and_again(undisturbed: Path, tmp_path: Path) -> None:
    disk = smalldisk.SmallDisk(tmp_path / "runs", 200)
    try:
        arguments = ONE
        for moment in MOMENTS.values():
            filled(disk, arguments, moment)
            arguments = ["search", "--resume", "s"]
            if moment == TRIAL:  # still full
                process = smalldisk.started(disk, arguments)
                assert process.wait(100) == 1
                assert (tmp_path / "out.txt").read_text().count("akd: ") == 1
                program.kill_group(process)
            disk.free()
        goes_on(disk, undisturbed)
    finally:
        disk.close()
