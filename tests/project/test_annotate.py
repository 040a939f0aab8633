"""No line of a hot loop touches the interpreter.

Every kernel is translated to C under the directives of setup.py; the C of each function that is declared
`noexcept nogil` may hold no use of the Python API, not even of Cython's own helpers over it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from Cython.Build import cythonize
from setuptools import Extension

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
KERNELS = sorted(SRC.rglob("*.pyx"))

DEFINITION = re.compile(
    r"(?P<indent>\s*)cp?def\s(?P<head>[^(=]*?)(?P<name>\w+)\s*\(.*\)(?P<tail>[^()]*):\s*", re.DOTALL
)
API = re.compile(r"\b(?:_*Py[A-Z_]\w*|__Pyx_\w+|__PYX_\w+|__pyx_(?:mstate|builtin|n_|kp_|int_|float_)\w*)")
HARMLESS = {"Py_ssize_t", "__Pyx_memviewslice"}  # types


class Function(NamedTuple):
    name: str  # as in the source
    cname: str  # as in the C
    source: str  # file:line
    hot: bool  # noexcept nogil
    nogil: bool


def statements(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of each logical line: brackets closed, comments and long strings blanked."""
    text = re.sub(r'("""|\'\'\').*?\1', lambda m: "\n" * m[0].count("\n"), path.read_text(), flags=re.DOTALL)
    start, held = 1, ""
    for number, line in enumerate(re.sub(r"#.*", "", text).splitlines(), 1):
        start = start if held else number
        held += line + "\n"
        if held.count("(") <= held.count(")"):
            yield start, held
            held = ""


def functions(path: Path, src: Path) -> Iterator[Function]:
    """The cdef functions that a source defines."""
    module = "".join(f"{len(part)}{part}_" for part in path.relative_to(src).with_suffix("").parts)
    owner = ""
    for line, text in statements(path):
        if m := re.match(r"cdef class (\w+)", text):
            owner = f"{len(m[1])}{m[1]}_"
        if m := DEFINITION.fullmatch(text):
            words = set(m["tail"].split())
            yield Function(
                m["name"],
                f"__pyx_f_{module}{owner if m['indent'] else ''}{m['name']}",
                f"{path.relative_to(src)}:{line}",
                {"noexcept", "nogil"} <= words,
                "nogil" in words,
            )


def bodies(c: str) -> dict[str, str]:
    """C functions by name."""
    found = {}
    for m in re.finditer(r"^\w[^;{}\n]*?\b(__pyx_f_\w+)\([^;{}\n]*\) \{\n(.*?)^\}", c, re.MULTILINE | re.DOTALL):
        found[m[1]] = m[2]
    return found


def touches(body: str) -> list[str]:
    """Each use of the Python API in a C function's body."""
    code = re.sub(r'/\*.*?\*/|"(?:\\.|[^"\\\n])*"', "", body, flags=re.DOTALL)
    return [symbol for symbol in API.findall(code) if symbol not in HARMLESS]


def load_setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fastmmu_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    return setup


def translate(sources: list[Path], src: Path, out: Path, shared: str | None = None) -> dict[Path, str]:
    """The C of each source; what stands in `out` and is newer than its source and headers is left as it is."""
    extensions = [Extension(".".join(path.relative_to(src).with_suffix("").parts), [str(path)]) for path in sources]
    made = cythonize(
        extensions,
        build_dir=str(out),
        include_path=[str(src)],
        compiler_directives=load_setup().DIRECTIVES,
        shared_utility_qualified_name=shared,
        quiet=True,
    )
    return {path: Path(extension.sources[0]).read_text() for path, extension in zip(sources, made, strict=True)}


def built_alike(root: Path) -> bool:
    """Whether the C below `root` was made by this Cython under the directives of setup.py."""
    stamp = root / "build" / "cython" / "settings"
    return stamp.exists() and stamp.read_text() == load_setup().TRANSLATION


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    """The C that the build made, where there was one."""
    if not built_alike(ROOT):
        return translate(KERNELS, SRC, tmp_path_factory.mktemp("c"))
    with contextlib.chdir(ROOT):  # the build's paths are relative
        return {
            ROOT / path: c
            for path, c in translate(
                [path.relative_to(ROOT) for path in KERNELS], Path("src"), Path("build") / "cython", load_setup().SHARED
            ).items()
        }


def complaints(c: str, candidates: list[Function]) -> tuple[list[str], set[str]]:
    """What is wrong, and the functions that were looked at."""
    found = bodies(c)
    seen = {function.name for function in candidates if function.cname in found}
    wrong = [
        f"{function.source}: {function.name}: {touch}"
        for function in candidates
        if function.cname in found
        for touch in touches(found[function.cname])
    ]
    return wrong, seen


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: str(path.relative_to(SRC)))
def test_no_python_in_the_kernel(path: Path, generated: dict[Path, str]) -> None:
    own = list(functions(path, SRC))
    slow = [f"{function.source}: {function.name}" for function in own if function.nogil and not function.hot]
    assert slow == [], "nogil without noexcept: each call takes the GIL to look for an exception"
    hot = [function for function in own if function.hot]
    inline = [function for header in SRC.rglob("*.pxd") for function in functions(header, SRC) if function.hot]
    wrong, seen = complaints(generated[path], hot + inline)
    assert wrong == []
    assert {function.name for function in hot} <= seen, "a function was not found in the C: was it looked at?"


def test_the_walk_is_such_a_kernel() -> None:
    assert any(function.hot for function in functions(SRC / "fastmmu" / "paging" / "walk.pyx", SRC))


def test_a_touch_is_found(tmp_path: Path) -> None:
    """The test above can fail: in the function itself, in one of several lines of parameters, in a method."""
    package = tmp_path / "src" / "probe"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "_k.pxd").write_text(
        "cdef inline int checked(int x) except? -1 nogil:\n    return x\n\n"
        "cdef inline int clean(int x) noexcept nogil:\n    return x + 1\n"
    )
    (package / "_k.pyx").write_text(
        "cdef int clean_here(const unsigned char *p,\n        int n) noexcept nogil:\n    return clean(p[n % 3])\n\n"
        "cdef int takes_gil(int x) noexcept nogil:\n    with gil:\n        print(x)\n    return x\n\n"
        "cdef int calls_checked(\n    int x,\n) noexcept nogil:\n    return checked(x)\n\n"
        "cdef class C:\n    cdef int method(self, int x) noexcept nogil:\n        with gil:\n            len([x])\n\n"
        "def use(bytes b, int x):\n"
        "    return clean_here(b, x) + takes_gil(x) + calls_checked(x) + C().method(x)\n"
    )
    kernel, header = package / "_k.pyx", package / "_k.pxd"
    c = translate([kernel], tmp_path / "src", tmp_path / "c")[kernel]
    own = list(functions(kernel, tmp_path / "src"))
    inline = list(functions(header, tmp_path / "src"))
    assert [function.name for function in inline if function.nogil and not function.hot] == ["checked"]
    wrong, seen = complaints(c, [function for function in own + inline if function.hot])
    assert seen == {"clean_here", "takes_gil", "calls_checked", "method", "clean"}
    assert {line.split(": ")[1] for line in wrong} == {"takes_gil", "calls_checked", "method"}
    assert any("PyGILState" in line or "__Pyx_" in line for line in wrong)
    assert all(re.match(r"probe/_k\.pyx:\d+: ", line) for line in wrong)
