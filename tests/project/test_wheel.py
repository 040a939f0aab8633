"""What is built and installed is whole: sdist, wheel from the sdist, the wheel in a new virtual environment.

Needs no network: the new environment sees this one's dependencies, but not its fastmmu.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("build")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MADE = (".git", ".venv", "build", "dist", "results", "*.so", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
CARRIED = ("*.py", "*.pxd", "*.pyi", "py.typed", "*.toml", "*.xz")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**clean, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def sources(*patterns: str) -> set[str]:
    """Files below src/ that are neither made by a build nor by an interpreter."""
    found = {path for pattern in patterns for path in (ROOT / "src").rglob(pattern)}
    return {
        str(path.relative_to(ROOT / "src"))
        for path in found
        if not any(part in ("__pycache__", "fastmmu.egg-info") for part in path.parts)
    }


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree") / "fastmmu"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*MADE))
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", tree.parent, tree, cwd=tree.parent)
    (archive,) = tree.parent.glob("fastmmu-*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Out of the sdist. The C that a build made of the same sources here is not made again: it is newer than they."""
    place = tmp_path_factory.mktemp("wheel")
    shutil.unpack_archive(sdist, place)
    (source,) = place.iterdir()
    if (ROOT / "build" / "cython").exists():
        shutil.copytree(ROOT / "build" / "cython", source / "build" / "cython")
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"),
        *("--wheel-dir", place, source),
        cwd=place,
        FASTMMU_CFLAGS="-O0",  # what is tested here is not speed
        FASTMMU_LIMITED_API="1",
        FASTMMU_JOBS=str(os.cpu_count()),
    )
    (built,) = place.glob("fastmmu-*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment in which the wheel is installed."""
    place = tmp_path_factory.mktemp("venv")
    venv.create(place, with_pip=False)
    made = place / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", made, "install", "--quiet", "--no-deps", "--no-index", wheel),
        cwd=place,
    )
    # Directories named in a .pth are searched, but the .pth files in them (an editable fastmmu is one) are not read.
    site = Path(run(made, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip())
    paths = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (site / "dependencies.pth").write_text("\n".join(paths) + "\n")
    return made


def test_the_sdist_has_the_sources(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {f"src/{name}" for name in sources(*CARRIED, "*.pyx")}
    assert wanted - names == set()
    assert {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "setup.py", "tools/check_tools.sh"} <= names
    assert f"tests/project/{Path(__file__).name}" in names
    assert [name for name in names if name.endswith((".so", ".pyc", ".c", ".o"))] == []


def test_the_wheel_carries_headers_stubs_and_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    own = {name for name in names if ".dist-info/" not in name}
    extensions = {name for name in own if name.endswith(".so")}
    assert own - extensions == sources(*CARRIED)
    kernels = {name.removesuffix(".pyx") for name in sources("*.pyx")}
    assert {name.split(".")[0] for name in extensions} == kernels | {"fastmmu/_cyutility"}
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert "\nLicense-Expression: Apache-2.0\n" in metadata


@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="free-threaded: no stable ABI")
def test_the_wheel_is_of_the_stable_abi(wheel: Path) -> None:
    """One file for CPython 3.11 and all later ones."""
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.split("-")[2:] == ["cp311", "abi3", f"{platform}.whl"]
    with zipfile.ZipFile(wheel) as archive:
        extensions = {name for name in archive.namelist() if name.endswith(".so")}
    assert {name for name in extensions if not name.endswith(".abi3.so")} == set()


LOOK = """
import importlib, json, pathlib, pkgutil, sys
import fastmmu
failed = {}
for module in pkgutil.walk_packages(fastmmu.__path__, "fastmmu."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except Exception as error:
        failed[module.name] = repr(error)
loaded = [m.__file__ for name, m in sys.modules.items() if name.startswith("fastmmu.") and m.__file__]
print(json.dumps([fastmmu.__file__, fastmmu.__version__, failed, loaded]))
"""


def test_the_installed_wheel_imports_from_any_directory(python: Path, tmp_path: Path) -> None:
    answer: list[Any] = json.loads(run(python, "-c", LOOK, cwd=tmp_path))
    file, version, failed, loaded = answer
    assert failed == {}
    assert {path for path in [file, *loaded] if not Path(path).is_relative_to(python.parents[1])} == set()
    assert len([path for path in loaded if path.endswith(".so")]) == len(sources("*.pyx")) + 1  # fastmmu._cyutility
    assert f'__version__ = "{version}"' in (ROOT / "src" / "fastmmu" / "__init__.py").read_text()


def test_the_installed_command_runs(python: Path, tmp_path: Path) -> None:
    assert "compare" in run(python.with_name("fastmmu"), "--help", cwd=tmp_path)


def test_others_can_cimport_from_the_installed_wheel(python: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs.pyx").write_text(
        "from fastmmu.arch.types cimport Mem\nfrom fastmmu.paging.memory cimport mem_holds\n\n"
        "def holds(unsigned long long pa):\n    cdef Mem m\n    m.nbytes = 4096\n    return mem_holds(&m, pa, 8)\n"
    )
    run(python, "-m", "cython", "-3", "theirs.pyx", cwd=tmp_path)
    assert "__pyx_f_7fastmmu_6paging_6memory_mem_holds(" in (tmp_path / "theirs.c").read_text()
