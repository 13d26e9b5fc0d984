"""What a wheel carries, and what importing modnet costs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import modnet

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "datasets",
    "sklearn",
    "tensorboard",
    "numpy",
    "pandas",
    "matplotlib",
}


def pip(*arguments: str) -> None:
    """Run pip quietly, without the network; the test fails with what it printed."""
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    command = [sys.executable, "-m", "pip", *arguments, *options]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the working tree."""
    pytest.importorskip("hatchling", reason="the build backend is in the dev extra")
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), ".")
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_carries_every_recipe(wheel: Path) -> None:
    here = {f"modnet/shipped/{path.relative_to(ROOT / 'recipes')}" for path in (ROOT / "recipes").rglob("*.yaml")}
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.startswith("modnet/shipped/")}
        assert inside == here
        for name in here:
            assert archive.read(name) == (ROOT / "recipes" / name.removeprefix("modnet/shipped/")).read_bytes()
    assert here, "there are no recipes to ship"


def test_the_wheel_carries_the_package_and_nothing_else(wheel: Path) -> None:
    source = {str(path.relative_to(ROOT)) for path in (ROOT / "modnet").rglob("*.py")}
    source |= {"modnet/py.typed", "modnet/data/wnids.txt"}
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if not name.startswith("modnet/shipped/")}
        metadata = {name for name in inside if ".dist-info/" in name}
        entry_points = archive.read(next(name for name in metadata if name.endswith("entry_points.txt"))).decode()
    assert inside - metadata == source
    assert any(name.endswith("licenses/LICENSE") for name in metadata)
    assert "modnet = modnet.cli.main:main" in entry_points


def test_the_wheel_has_the_version_of_the_package(wheel: Path) -> None:
    assert wheel.name.split("-")[1] == modnet.__version__


def test_an_installed_wheel_finds_its_recipes(wheel: Path, tmp_path: Path) -> None:
    pip("install", "--target", str(tmp_path / "site"), str(wheel))
    code = "import modnet, sys; print(modnet.__file__); sys.argv[1:] = ['ls']; from modnet.cli.main import main; main()"
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(tmp_path / "site") in done.stdout.split("\n")[0]
    for path in (ROOT / "recipes").rglob("*.yaml"):
        assert path.stem in done.stdout, f"{path.stem} is not listed"


@pytest.mark.parametrize("module", ["modnet", "modnet.cli.main", "modnet.recipe", "modnet.registry"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout.split() == []
