"""What importing akd costs, what its wheel holds, and names that would shadow others."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import akd

PACKAGE = Path(akd.__file__).parent
ROOT = PACKAGE.parent
HEAVY = {"ray", "optuna", "mlflow", "torchvision", "sklearn", "scipy", "pandas", "pyarrow", "matplotlib"}


def loaded_by(statement: str) -> set[str]:
    """Top-level modules a fresh interpreter has after a statement."""
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_needs_nothing_heavy() -> None:
    assert not loaded_by("import akd") & HEAVY


def test_training_rooms_need_torch_only() -> None:
    rooms = (
        "akd.fit, akd.config, akd.space, akd.folder, akd.prepare, akd.cli, akd.methods, akd.models, akd.teacher.keep"
    )
    found = loaded_by(f"import {rooms}")
    assert "torch" in found
    assert not found & HEAVY


def test_search_and_distil_are_found_when_asked_for() -> None:
    from akd import single, study

    assert akd.search is study.search
    assert akd.distil is single.distil
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        _ = akd.serach
    # A function of this name would hide the module akd.fit.
    assert not hasattr(akd, "fit") or not callable(akd.fit)


def test_no_file_is_named_like_a_module_of_others() -> None:
    """As a script, akd/tune.py has its folder on sys.path until it takes it off: such a file would be imported."""
    wanted = [re.match(r"[\w-]+", r)[0] for r in importlib.metadata.requires("akd") or []]  # type: ignore[index]
    others = {n.replace("-", "_").lower() for n in wanted} | {"yaml", "sklearn", "PIL", "numpy", "setuptools"}
    names = {p.stem for p in PACKAGE.glob("*.py")} | {p.name for p in PACKAGE.iterdir() if p.is_dir()}
    assert not names & (set(sys.stdlib_module_names) | others)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("not a checkout")
    folder = tmp_path_factory.mktemp("wheel")
    if importlib.util.find_spec("hatchling"):
        build = ["-c", "import hatchling.build as b, sys; b.build_wheel(sys.argv[1])", str(folder)]
    else:  # pip fetches the backend into a place of its own
        build = ["-m", "pip", "wheel", ".", "--no-deps", "--quiet", "--wheel-dir", str(folder)]
    done = subprocess.run([sys.executable, *build], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


class TestWheel:
    def test_holds_code_and_spaces_and_no_tests(self, wheel: Path) -> None:
        names = set(zipfile.ZipFile(wheel).namelist())
        modules = {p.relative_to(ROOT).as_posix() for p in PACKAGE.rglob("*.py")}
        shipped = {f"akd/search_spaces/{p.name}" for p in (ROOT / "search_spaces").glob("*.yaml")}
        assert shipped
        info = f"akd-{akd.__version__}.dist-info/"
        assert {n for n in names if not n.startswith(info) and not n.endswith(".md")} == modules | shipped
        assert any(n.startswith(info) and n.endswith("LICENSE") for n in names)

    def test_gives_the_command(self, wheel: Path) -> None:
        archive = zipfile.ZipFile(wheel)
        (points,) = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
        assert "akd = akd.cli:main" in archive.read(points).decode()

    def test_runs_from_the_wheel_alone(self, wheel: Path, tmp_path: Path) -> None:
        """The shipped spaces are found beside the installed code, not beside a checkout."""
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tmp_path / "site")
        code = "import sys; sys.path.insert(0, 'site'); from akd import spaces; print(spaces.folder(), spaces.names())"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert f"{tmp_path}/site/akd/search_spaces" in done.stdout
        assert "quickstart" in done.stdout
