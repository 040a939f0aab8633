"""Imports go down the list of layers (ARCHITECTURE.md), for Python modules and kernels alike."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Every module has its place here; "name.*" stands for a package and all in it. A module may import from its own
# layer and from those above it in this table. "package" is fastmmu/__init__.py, which only gathers names.
LAYERS = {
    "vocabulary": "_bits _types _vmx _siblings _records dtypes errors exits ops",
    "memory": "_memory",
    "translation": "_memtype _registers _state _guest _ept _walk _nonroot _translate _translate_py _leaves _leaves_py "
    "_caching _tlb_entries _tlb _invalidate _operands _tlb_py geometry",
    "mmu": "_slots _spte _mmu _roots _ageing _reclaim _notifier _map _sync _shadow _dirty",
    "machine": "_apic _vapic _vmentry _vpid _watch _vcpu _data _control _modes _patch _interrupts _ipi _kvm_apic "
    "_apic_port _events _kvm _kvm_flush _kvm_roots _kvm_registers _kvm_faults _kvm_exits _vmm _guest_kernel _stops "
    "_counters _assembly _instructions _control_py _machine _host _replay machine.*",
    "use": "_lackey _stack _curve trace.* image.* study.* report.* cli.*",
    "package": "__init__ __main__",
    "reference": "reference.*",
    "adapters": "adapters.*",
}
ORDER = ["vocabulary", "memory", "translation", "mmu", "machine", "use"]


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


def layer_of(module: str) -> str | None:
    for layer, names in LAYERS.items():
        for name in names.split():
            package = name.removesuffix(".*")
            if module == package or (name != package and module.startswith(package + ".")):
                return layer
    return None


def may_import(layer: str, other: str) -> bool:
    if layer == "adapters":
        return True
    if layer == "reference":
        return other in ("vocabulary", "reference")
    if layer == "package":
        return other in ORDER
    if layer == "use" and other == "package":
        return True
    return other in ORDER and ORDER.index(other) <= ORDER.index(layer)


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
        layer = layer_of(module)
        if layer is None:
            complaints.append(f"{module}: in no layer; give it one in LAYERS of {Path(__file__).name}")
            continue
        for path in paths:
            for line, target in imported(path, module, set(found)):
                other = layer_of(target)
                if other is None or not may_import(layer, other):
                    complaints.append(f"{path.relative_to(src)}:{line}: {layer} imports {target} of {other or '?'}")
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


def test_imports_go_down_the_layers() -> None:
    assert len(modules(ROOT / "src")) > 5
    assert violations(ROOT / "src") == []


def test_no_two_modules_import_each_other() -> None:
    assert cycle(ROOT / "src") == []


def tree(tmp_path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = tmp_path / "fastmmu" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


OTHERS = {"_walk.pyx": "", "trace/__init__.py": "", "trace/reader.py": "", "adapters/qemu.py": ""}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("_memory.pyx", "cdef int x\nfrom fastmmu._walk cimport (\n    a,\n    b)\n"),
        ("_memory.pyx", "cimport fastmmu._walk\n"),
        ("_memory.pyx", "def f():\n    from fastmmu import _walk\n"),
        ("_memory.pxd", "from ._walk cimport walk\n"),
        ("_memory.pyi", "from fastmmu._walk import Walk\n"),
        ("_tlb.pyx", "from fastmmu import PhysicalMemory\n"),
        ("_vcpu.pyx", "from fastmmu.trace.reader import read\n"),
        ("machine/host.py", "def f():\n    from ..trace import reader\n"),
        ("machine/__init__.py", "from .. import trace\n"),
        ("reference/walk.py", "import fastmmu._walk\n"),
        ("reference/walk.py", "from .._walk import walk\n"),
        ("study/a.py", "from fastmmu.adapters import qemu\n"),
        ("study/a.py", "from fastmmu.reference.walk import walk\n"),
        ("__init__.py", "from .adapters import qemu\n"),
        ("newcomer.py", ""),
    ],
)
def test_a_violation_is_found(tmp_path: Path, name: str, text: str) -> None:
    assert len(violations(tree(tmp_path, {**OTHERS, name: text}))) == 1


def test_what_is_allowed_is_not_reported(tmp_path: Path) -> None:
    files = {
        **OTHERS,
        "__init__.py": "from .trace.reader import read\n",
        "_walk.pyx": '"""\nimport fastmmu.cli\n"""\nfrom fastmmu._types cimport Mem # of fastmmu.cli\n',
        "_types.pxd": "",
        "trace/reader.py": "from fastmmu import __version__\nfrom .. import _walk\nfrom . import reader\n",
        "reference/walk.py": "import numpy\nfrom fastmmu._types import Mem\n",
        "adapters/qemu.py": "import fastmmu\n",
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
