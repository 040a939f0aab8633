"""Folders are the layers: imports go down the list of rooms, for Python modules and kernels alike."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The rooms: a module may import from its own folder and from those before it. Modules at the top are the vocabulary,
# but for these. "package" is fastmmu/__init__.py, which only gathers names, and the command `python -m fastmmu`.
ORDER = [
    "vocabulary",
    "threads",
    "arch",
    "cache",
    "tlb",
    "paging",
    "space",
    "mmu",
    "cpu",
    "vmx",
    "kvm",
    "machine",
    "trace",
    "image",
    "adapters",
    "report",
    "cli",
    "study",
]
ASIDE = {"reference": {"vocabulary", "reference"}}  # the executable specification: what it may import
AT_THE_TOP = {"_walk": "paging", "__init__": "package", "__main__": "package"}
MOST_AT_THE_TOP = 22


def modules(src: Path) -> dict[str, list[Path]]:
    """Module name below fastmmu (`_walk`, `trace.lackey`, `__init__`) and its sources."""
    found: dict[str, list[Path]] = {}
    for path in sorted((src / "fastmmu").rglob("*")):
        if path.suffix in (".py", ".pyx", ".pxd", ".pyi"):
            parts = list(path.relative_to(src / "fastmmu").with_suffix("").parts)
            if len(parts) > 1 and parts[-1] == "__init__":
                parts.pop()
            found.setdefault(".".join(parts), []).append(path)
    return found


def room_of(module: str) -> str:
    first, _, rest = module.partition(".")
    return first if rest or first in ORDER or first in ASIDE else AT_THE_TOP.get(first, "vocabulary")


def may_import(room: str, other: str) -> bool:
    if room in ASIDE:
        return other in ASIDE[room]
    if room == "package":
        return other in ORDER
    if other == "package":  # fastmmu.__version__, by those who write files and talk to people
        return room in ("report", "cli", "study")
    return room in ORDER and other in ORDER and ORDER.index(other) <= ORDER.index(room)


def imported(path: Path, module: str, known: set[str], types: bool = True) -> Iterator[tuple[int, str]]:
    """(line, module below fastmmu) of each import and cimport in a source; `types`: also those for type checkers."""
    package = ["fastmmu"] if module == "__init__" else ["fastmmu", *module.split(".")]
    if path.stem != "__init__":
        package.pop()
    for line, dots, base, names in statements(path, types):
        if dots:
            base = ".".join(package[: len(package) - dots + 1] + ([base] if base else []))
        if base != "fastmmu" and not base.startswith("fastmmu."):
            continue
        base = base.removeprefix("fastmmu").removeprefix(".")
        targets = [f"{base}.{name}".strip(".") for name in names]
        yield from ((line, target) for target in targets if target in known)
        if not all(target in known for target in targets) or not targets:
            yield line, base or "__init__"


def statements(path: Path, types: bool) -> Iterator[tuple[int, int, str, list[str]]]:
    """(line, leading dots, module, imported names; none for a plain import)."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".py", ".pyi"):
        tree = ast.parse(text)
        unread: set[ast.AST] = set() if types else set(ast.walk(tree)) if path.suffix == ".pyi" else type_checking(tree)
        for node in ast.walk(tree):
            if node in unread:
                continue
            if isinstance(node, ast.Import):
                yield from ((node.lineno, 0, alias.name, []) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield node.lineno, node.level, node.module or "", [alias.name for alias in node.names]
        return
    text = re.sub(r'("""|\'\'\').*?\1', lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL)
    text = re.sub(r"#.*", "", text)
    for m in re.finditer(r"^[ \t]*from[ \t]+(\.*)([\w.]*)[ \t]+c?import[ \t]+(\([^)]*\)|.*(?:\\\n.*)*)", text, re.M):
        names = [part.split()[0] for part in re.sub(r"[()\\]", " ", m[3]).split(",") if part.strip()]
        yield text.count("\n", 0, m.start()) + 1, len(m[1]), m[2], names
    for m in re.finditer(r"^[ \t]*c?import[ \t]+(.*)", text, re.M):
        for part in m[1].split(","):
            yield text.count("\n", 0, m.start()) + 1, 0, part.split()[0], []


def type_checking(tree: ast.AST) -> set[ast.AST]:
    """What stands under `if TYPE_CHECKING:`."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }


def violations(src: Path) -> list[str]:
    found = modules(src)
    complaints = []
    for module, paths in found.items():
        room = room_of(module)
        if room not in (*ORDER, *ASIDE, "package"):
            complaints.append(f"{module}: {room}/ is no room of ORDER in {Path(__file__).name}")
            continue
        for path in paths:
            for line, target in imported(path, module, set(found)):
                if not may_import(room, room_of(target)):
                    complaints.append(f"{path.relative_to(src)}:{line}: {room} imports {target} of {room_of(target)}")
    return complaints


def cycle(src: Path) -> list[str]:
    """Modules that import each other in a circle; [] where there is none.

    A package may gather from its modules, and imports for type checkers alone are no imports.
    """
    found = modules(src)
    graph = {
        module: {
            target
            for path in paths
            for _, target in imported(path, module, set(found), types=False)
            if target != "__init__" and target != module and not module.startswith(target + ".")
        }
        for module, paths in found.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module not in done:
            for target in sorted(graph.get(module, ())):
                if circle := visit(target, [*trail, module]):
                    return circle
            done.add(module)
        return []

    return next((circle for module in graph if (circle := visit(module, []))), [])


def test_imports_go_down_the_rooms() -> None:
    assert len(modules(ROOT / "src")) > 5
    assert violations(ROOT / "src") == []


def test_no_two_modules_import_each_other() -> None:
    assert cycle(ROOT / "src") == []


def test_few_files_stand_at_the_top() -> None:
    files = [path.name for path in (ROOT / "src/fastmmu").iterdir() if path.is_file() and path.suffix != ".so"]
    assert "_walk.pyx" in files
    assert len(files) <= MOST_AT_THE_TOP


def test_each_room_says_what_it_is_and_how_to_add_to_it() -> None:
    for room in (*ORDER[1:], *ASIDE):
        text = ast.get_docstring(ast.parse((ROOT / "src/fastmmu" / room / "__init__.py").read_text())) or ""
        assert "Imports" in text, f"{room}: the rule of imports"
        assert "To add" in text, f"{room}: how to add to it"


def test_each_package_names_what_is_in_it() -> None:
    packages = [path.parent for path in (ROOT / "src/fastmmu").rglob("__init__.py") if path.parent.name != "fastmmu"]
    assert len(packages) > len(ORDER)
    for package in packages:
        room = ROOT / "src/fastmmu" / package.relative_to(ROOT / "src/fastmmu").parts[0]
        texts = [ast.get_docstring(ast.parse((place / "__init__.py").read_text())) or "" for place in (package, room)]
        text = "\n".join(texts)  # what all packages of a room hold, the room says
        inside = {path.stem for path in package.iterdir() if path.suffix in (".py", ".pyx", ".pxd")}
        inside |= {path.parent.name for path in package.glob("*/__init__.py")}
        missing = [name for name in sorted(inside - {"__init__"}) if not re.search(rf"\b{name}\b", text)]
        assert missing == [], f"{package.name}: modules that its docstring does not name"


def tree(tmp_path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = tmp_path / "fastmmu" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


OTHERS = {"_walk.pyx": "", "trace/__init__.py": "", "trace/reader.py": "", "reference/walk.py": ""}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("arch/bits.pyx", "cdef int x\nfrom fastmmu._walk cimport (\n    a,\n    b)\n"),
        ("arch/bits.pyx", "cimport fastmmu._walk\n"),
        ("arch/bits.pyx", "def f():\n    from fastmmu import _walk\n"),
        ("arch/bits.pxd", "from .._walk cimport walk\n"),
        ("arch/bits.pyi", "from fastmmu._walk import Walk\n"),
        ("tlb/tlb.pyx", "from fastmmu import PhysicalMemory\n"),
        ("cpu/vcpu.pyx", "from fastmmu.trace.reader import read\n"),
        ("machine/host.py", "def f():\n    from ..trace import reader\n"),
        ("machine/__init__.py", "from .. import trace\n"),
        ("reference/outcome.py", "import fastmmu._walk\n"),
        ("reference/outcome.py", "from .._walk import walk\n"),
        ("study/a.py", "from fastmmu.reference.walk import walk\n"),
        ("study/a/run.py", "from fastmmu.reference.walk import walk\n"),
        ("cli/a.py", "def f():\n    from fastmmu.study.b.run import b\n"),
        ("__init__.py", "from .reference import walk\n"),
        ("newroom/a.py", ""),
        ("newcomer.py", "from fastmmu.arch import bits\n"),
    ],
)
def test_a_violation_is_found(tmp_path: Path, name: str, text: str) -> None:
    assert len(violations(tree(tmp_path, {"arch/__init__.py": "", **OTHERS, name: text}))) == 1


def test_what_is_allowed_is_not_reported(tmp_path: Path) -> None:
    files = {
        **OTHERS,
        "__init__.py": "from .trace.reader import read\n",
        "_walk.pyx": '"""\nimport fastmmu.cli\n"""\nfrom fastmmu.arch.types cimport Mem # of fastmmu.cli\n',
        "arch/types.pxd": "",
        "ops.py": "",
        "trace/reader.py": "from .. import _walk\nfrom . import reader\n",
        "report/files.py": "from fastmmu import __version__\n",
        "reference/walk.py": "import numpy\nfrom fastmmu.ops import Op\n",
    }
    assert violations(tree(tmp_path, files)) == []


def test_a_cycle_is_found(tmp_path: Path) -> None:
    files = {
        "_walk.pyx": "from fastmmu._tlb cimport b\n",
        "_tlb.pyx": "from fastmmu._ept cimport c\n",
        "_ept.pyx": "def f():\n    from fastmmu._tlb import d\n",
        "_guest.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fastmmu._ept import e\n",
    }
    assert cycle(tree(tmp_path, files)) == ["_ept", "_tlb", "_ept"]
    files["_ept.pyx"] = "from fastmmu._guest import f"
    assert cycle(tree(tmp_path, files)) == []
