"""What is built and installed is whole: sdist, wheel from the sdist, the wheel in a new virtual environment.

Needs no network: the new environment sees this one's dependencies, but not its fastmmu.
"""

from __future__ import annotations

import json
import os
import re
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
CARRIED = ("*.py", "*.pxd", "*.pyi", "py.typed", "*.toml", "*.html", "*.xz")


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
    assert {f"docs/spec/{path.name}" for path in (ROOT / "docs" / "spec").glob("*.md")} <= names
    assert f"tests/project/{Path(__file__).name}" in names
    compiled = {name for name in names if name.endswith((".so", ".pyc", ".c", ".o"))}
    assert compiled == {"bench/callgrind.c", "bench/yardstick.c"}


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


# ---- kernels for other packages -----------------------------------------------------------------------------

MAPPED = """
import fastmmu, json, last_pages, numpy as np, pagesizes
memory = fastmmu.PhysicalMemory(1 << 16)
for at, entry in ((0x1000, 0x2007), (0x2000, 0x3007), (0x3008, 0x200087), (0x3010, 0x4007), (0x4008, 0x7007)):
    memory.write64(at, entry)
state = fastmmu.GuestState(cr3=0x1000, cpl=3)
addresses = np.arange(0, 0x800000, 0x800, dtype=np.uint64)
sizes = pagesizes.page_sizes(memory, state, addresses)
unmapped = int((fastmmu.translate(memory, state, addresses).fault != 0).sum())
tlb = fastmmu.TLB(fastmmu.geometry("skylake", l1d="1/1", stlb="1/1"))
last_pages.attach(tlb, 2)
for la in (0x1000, 0x2000, 0x3000):
    tlb.fill(la, tlb.value(la))
found = [tlb.lookup(0x1000)[0], tlb.lookup(0x2000)[0]]
tlb.mov_cr3()
found.append(tlb.lookup(0x3000)[0])
print(json.dumps([[size, n] for size, n in sizes.items()] + [unmapped, found]))
"""


def test_the_example_package_is_built_on_the_installed_wheel(python: Path, tmp_path: Path) -> None:
    example = shutil.copytree(ROOT / "examples" / "cython", tmp_path / "example")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps")
    run(*pip, "--no-build-isolation", example, cwd=tmp_path, CFLAGS="-O0")
    *sizes, unmapped, found = json.loads(run(python, "-c", MAPPED, cwd=tmp_path))
    assert found == [0, 2, 0]  # of an extension of one's own: two pages are held, until a flush
    assert sizes == [[4096, 2], [1 << 21, 1024], [None, unmapped]]


FIRST_IN_FIRST_OUT = """
import fifo, json
from fastmmu import TLB
from fastmmu.tlb.geometry import Array, Geometry
small = Geometry(name="small", l1i=(Array(1, 1),), l1d=(Array(1, 1),), l2=(Array(4, 4),), replacement=("lru", "fifo"))
tlb, held, equal, hits = TLB(small), [], 0, 0
for turn in range(4000):
    page = turn * turn * 2654435761 % 4294967291 % 7
    level, _ = tlb.lookup(page << 12)
    if not level:
        tlb.fill(page << 12, TLB.value(page << 12))
    hits += level > 0
    if page not in held:
        held = [*held, page][-4:]
    equal += sorted(held) == sorted(entry[5] >> 12 for entry in tlb.entries() if entry[0] == "l2")
print(json.dumps([equal, hits > 1000, hits < 3000]))
"""


def test_a_policy_of_another_package_is_built_on_the_installed_wheel(python: Path, tmp_path: Path) -> None:
    example = shutil.copytree(ROOT / "examples" / "policy", tmp_path / "policy")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps")
    run(*pip, "--no-build-isolation", example, cwd=tmp_path, CFLAGS="-O0")
    assert json.loads(run(python, "-c", FIRST_IN_FIRST_OUT, cwd=tmp_path)) == [4000, True, True]


def surface() -> dict[str, list[str]]:
    """Header → names that other packages may cimport, as fastmmu/__init__.pxd lists them."""
    text = (ROOT / "src" / "fastmmu" / "__init__.pxd").read_text().replace("\n#", "\n")
    found = re.findall(r"^     from (\S+) cimport (?:\(([^)]*)\)|(.*))", text, re.MULTILINE)
    return {header: re.findall(r"\w+", several + one) for header, several, one in found}


SURFACE = """
# cython: language_level=3
{cimports}

def every_name():
    cdef void *function
    {uses}

def gpa(Machine machine, unsigned long long la):
    cdef unsigned long long hpa = 0
    cdef int outcome
    cdef Vcpu *v = machine_vcpu(machine)
    with nogil:
        outcome = vcpu_access(v, la, ACC_R, BY_USER, <uint64_t *> &hpa)
    if outcome == DONE_ABORT:
        machine_raise(machine)
    return None if outcome else hpa
"""


def test_every_name_for_other_packages_can_be_cimported(python: Path, tmp_path: Path) -> None:
    """Compiled against the installed wheel, and a guest's access from there is that of `Machine.access`."""
    names = [name for found in surface().values() for name in found]
    assert len(names) > 80
    assert len(names) == len(set(names))
    headers = "".join(path.read_text() for path in (ROOT / "src" / "fastmmu").rglob("*.pxd"))
    classes = re.findall(r"^cdef class (\w+)", headers, re.MULTILINE)
    uses = [
        f"isinstance(None, {name})"
        if name in classes
        else f"<unsigned long long> {name}"
        if name.isupper()
        else f"sizeof({name})"
        if name[0].isupper()
        else f"function = <void *> {name}"
        for name in names
    ]
    cimports = ["from libc.stdint cimport uint64_t"]
    cimports += [f"from {header} cimport {', '.join(found)}" for header, found in surface().items()]
    text = SURFACE.format(cimports="\n".join(cimports), uses="\n    ".join(uses))
    (tmp_path / "surface.pyx").write_text(text)
    run(python, "-m", "Cython.Build.Cythonize", "--inplace", "--quiet", "surface.pyx", cwd=tmp_path, CFLAGS="-O0")
    program = (
        "import fastmmu, surface; surface.every_name(); state = fastmmu.GuestState(cr0=0x11)\n"
        "m = fastmmu.Machine(fastmmu.Config(), guest_kernel=False, state=state)\n"
        "print(fastmmu.get_include(), surface.gpa(m, 0x1234), m.access(0x1234, user=True).gpa)"
    )
    include, ours, theirs = run(python, "-c", program, cwd=tmp_path).split()
    assert (Path(include) / "fastmmu" / "paging" / "guest.pxd").is_file()
    assert Path(include).is_relative_to(python.parents[1])
    assert ours == theirs == str(0x1234)
