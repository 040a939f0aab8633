"""No test stands on another test, and no file is longer than one subject."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module) of each import; of `from a import b` both a and a.b, for b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module or ''}.{alias.name}") for alias in node.names)


def imports_of_tests(root: Path) -> list[str]:
    """Tests that a module below tests/ imports."""
    tests = {path.stem for path in (root / "tests").rglob("test_*.py")}
    return [
        f"{path.relative_to(root)}:{line} imports {module}"
        for path in sorted((root / "tests").rglob("*.py"))
        for line, module in imported(ast.parse(path.read_text()))
        if module.rpartition(".")[2] in tests
    ]


def test_no_test_imports_a_test() -> None:
    assert imports_of_tests(ROOT) == [], "put what both need into tests/support"


@pytest.mark.parametrize(
    "text",
    [
        "from tests.tlb.test_a import helper\n",
        "from tests.tlb import test_a\n",
        "import tests.tlb.test_a as a\n",
        "from ..tlb.test_a import helper\n",
        "def f():\n    from . import test_a\n",
    ],
)
def test_an_import_of_a_test_is_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "tests" / "tlb").mkdir(parents=True)
    (tmp_path / "tests" / "tlb" / "test_a.py").write_text("from tests.support import tlb_modes\n")
    assert imports_of_tests(tmp_path) == []
    (tmp_path / "tests" / "test_b.py").write_text(text)
    assert len(imports_of_tests(tmp_path)) == 1
