"""The wheel: what it holds, what it declares, and that every third-party import is a declared dependency.

That the installed wheel renders outside the checkout is checked end to end by `.ci/run`.
"""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"streamgen", "models", "distill", "configs"}
DATA_SUFFIXES = {".yaml", ".safetensors", ".txt", ".json", ".md", ".typed"}
# Import names that differ from the name of the distribution which brings them.
DISTRIBUTION_OF = {
    "PIL": "pillow",
    "yaml": "omegaconf",
    "cv2": "opencv-python-headless",
    "minify_html": "minify-html",
    "prometheus_client": "prometheus-client",
}


def source_files() -> list[Path]:
    """Files of the checkout relative to its root: what git tracks or would track; without git, all."""
    git = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(git, capture_output=True, check=True, text=True).stdout.split("\0")
        files = [Path(name) for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        folders = [(ROOT / package).rglob("*") for package in PACKAGES]
        candidates = chain(ROOT.glob("*"), *folders)
        files = [path.relative_to(ROOT) for path in candidates if path.suffix != ".pyc"]
    return [file for file in files if (ROOT / file).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel built from a copy of the checkout, so that no build folder is left behind or picked up."""
    folder = tmp_path_factory.mktemp("wheel")
    for file in source_files():
        if file.parts[0] in PACKAGES or len(file.parts) == 1:
            (folder / "source" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, folder / "source" / file)
    pip_wheel = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command = [*pip_wheel, "--wheel-dir", str(folder / "out"), str(folder / "source")]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (folder / "out").glob("streamgen-*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.slow
def test_wheel_top_level_is_the_four_packages(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == PACKAGES


@pytest.mark.slow
def test_wheel_holds_every_module_and_data_file(wheel: zipfile.ZipFile) -> None:
    """A folder without __init__.py, or a suffix missing from package-data, would be left out in silence."""
    names = set(wheel.namelist())
    expected = {
        file.as_posix()
        for file in source_files()
        if file.parts[0] in PACKAGES and (file.suffix == ".py" or file.suffix in DATA_SUFFIXES)
    }
    left_out = sorted(expected - names)
    assert not left_out
    assert any(name.startswith("configs/") and name.endswith(".yaml") for name in names)
    assert {"streamgen/py.typed", "models/py.typed"} <= names


@pytest.mark.slow
def test_wheel_holds_the_shipped_weights(wheel: zipfile.ZipFile) -> None:
    weights = ROOT / "streamgen" / "weights" / "tiny"
    assert weights.is_dir(), "they are part of the repository"
    inside = {Path(name).name for name in wheel.namelist() if name.startswith("streamgen/weights/tiny/")}
    assert inside == {path.name for path in weights.rglob("*") if path.is_file()}
    assert "config.yaml" in inside
    assert any(name.endswith(".safetensors") for name in inside)


@pytest.mark.slow
def test_wheel_declares_command_and_licence(wheel: zipfile.ZipFile) -> None:
    (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    assert "streamgen = streamgen.cli.app:main" in wheel.read(f"{info}/entry_points.txt").decode()
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert f"{info}/licenses/LICENSE" in wheel.namelist()


def undeclared_imports(text: str, declared: set[str]) -> set[str]:
    """Third-party packages the source imports whose distribution is not in `declared`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    foreign = found - set(sys.stdlib_module_names) - PACKAGES - {"demo"}
    return {name for name in foreign if DISTRIBUTION_OF.get(name, name) not in declared}


def declared_distributions(*extras: str) -> set[str]:
    """Names of the direct dependencies, those of `extras` included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for line in lines}


@pytest.mark.parametrize("package", [*sorted(PACKAGES), "demo"])
def test_every_import_is_declared(package: str) -> None:
    """Nothing is used that only happens to be installed; some packages may also use an extra."""
    extras = {"distill": ["train"], "streamgen": ["ray", "track", "wan"], "demo": ["test", "ray"]}
    declared = declared_distributions(*extras.get(package, []))
    offences = {
        str(path.relative_to(ROOT)): sorted(missing)
        for path in (ROOT / package).rglob("*.py")
        if (missing := undeclared_imports(path.read_text(encoding="utf-8"), declared))
    }
    assert not offences


def test_undeclared_import_is_caught() -> None:
    assert undeclared_imports("import scipy.ndimage\nfrom cv2 import imread", {"torch"}) == {"scipy", "cv2"}
    assert not undeclared_imports("import os\nfrom . import rope\nfrom PIL import Image", {"pillow"})
