"""The wheel holds all that a run needs, and works from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, Result

pytest.importorskip("hatchling", reason="the dev extra is not installed")


def call(*command: str, cwd: Path, **env: str) -> Result:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=200, check=False
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the backend itself: no isolated environment, no network."""
    out = tmp_path_factory.mktemp("wheel")
    built = call(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out), cwd=ROOT)
    assert built.code == 0, built
    (path,) = out.glob("lrx-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content and its command, for ``PYTHONPATH``."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    done = call(*pip, "--target", str(target), str(wheel), cwd=target)
    assert done.code == 0, done
    return target


@pytest.fixture
def lrx(installed: Path, tmp_path: Path):
    """Call the installed ``lrx`` from an empty folder: ``lrx("list", "methods") -> Result``."""

    def run(*arguments: str) -> Result:
        script = installed / "bin" / "lrx"
        return call(sys.executable, str(script), *arguments, cwd=tmp_path, PYTHONPATH=str(installed))

    return run


def test_the_wheel_holds_code_configuration_and_sweeps_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if not name.endswith("/")}
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "lrx").rglob("*.py")}
    parts = [path for path in (ROOT / "lrx" / "report").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    expected |= {str(path.relative_to(ROOT)) for path in parts}  # scripts, styles and templates of the report
    expected.add("hydra_plugins/lrx_launcher.py")
    for folder in ("conf", "sweeps"):
        expected |= {f"lrx/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*.yaml")}
    found = {name for name in inside if ".dist-info/" not in name}
    assert found == expected
    assert len([name for name in found if name.startswith("lrx/conf/")]) > 40
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in inside)
    assert any(name.endswith(".dist-info/entry_points.txt") for name in inside)


def test_it_is_the_installed_package_that_answers(lrx, installed: Path) -> None:
    where = call(
        sys.executable, "-c", "import lrx; from lrx import paths; print(lrx.__file__, paths.conf_dir())",
        cwd=installed, PYTHONPATH=str(installed),
    )  # fmt: skip
    assert where.out.split() == [str(installed / "lrx" / "__init__.py"), str(installed / "lrx" / "conf")]


def test_the_desk_lists_what_there_is(lrx) -> None:
    result = lrx("list", "methods")
    assert result.code == 0, result
    for method in (ROOT / "conf" / "method").glob("*.yaml"):
        assert method.stem in result.out
    assert "altlora_glue" in lrx("list", "sweeps").out
    assert "2505.12455" in lrx("info", "altlora").out


def test_a_run_is_composed_from_the_shipped_configuration(lrx, tmp_path: Path) -> None:
    import yaml

    result = lrx("run", "--cfg", "job", "method=altlora", "scale=smoke")
    assert result.code == 0, result
    config = yaml.safe_load(result.out)
    assert (config["method"]["name"], config["model"]["name"], config["scale"]["name"]) == (
        "altlora",
        "tiny_bert",
        "smoke",
    )
    swept = lrx("run", "+sweeps=altlora_glue", "--cfg", "job")
    assert swept.code == 0, swept
    assert yaml.safe_load(swept.out)["sweep"]["name"] == "altlora_glue"
    assert not list(tmp_path.iterdir())  # nothing is written for an answer


def test_a_mistake_is_one_line_there_too(lrx, tmp_path: Path) -> None:
    result = lrx("run", "method=altlorra")
    assert result.code == 2, result
    (line,) = result.err.strip().splitlines()
    assert "did you mean 'altlora'" in line
    assert not list(tmp_path.iterdir())


def test_a_run_from_an_empty_folder(lrx, tmp_path: Path) -> None:
    result = lrx("run", "method=altlora", "scale=smoke", "task.subset=sentiment", "logger=none")
    assert result.code == 0, result
    assert len(list((tmp_path / "results" / "records").glob("*.json"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    (record,) = (tmp_path / "results" / "records").glob("*.json")
    exported = lrx("export", str(record))
    assert exported.code == 0, exported
    assert list((tmp_path / "results").glob("runs/*/export-peft/sentiment/adapter_model.safetensors"))
