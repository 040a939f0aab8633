"""No test stands on another test, and no file holds more than one subject."""

from __future__ import annotations

import ast
import subprocess
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


# ---- the top folder ----------------------------------------------------------------------------------------------

TOP = {
    ".ci", ".github", ".gitignore", "ARCHITECTURE.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE",
    "MANIFEST.in", "Makefile", "README.md", "bench", "docs", "examples", "pyproject.toml", "scripts", "setup.py", "src",
    "tests", "tools",
}  # fmt: skip


def test_nothing_strays_into_the_top_folder() -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("skipped: this is no checkout, git lists nothing")
    assert {name.partition("/")[0] for name in listed.stdout.split("\0") if name} == TOP


# ---- length ------------------------------------------------------------------------------------------------------

MOST = {".py": 400, ".pyi": 400, ".pyx": 500, ".pxd": 500}
"""Lines of a file, by its suffix: of one subject, which a kernel may need more for."""


def too_long(root: Path) -> dict[str, int]:
    """{file: lines} of those below src, tests and bench that are longer than MOST."""
    found = {}
    for path in (path for place in ("src", "tests", "bench") for path in (root / place).rglob("*")):
        if path.suffix in MOST and (lines := len(path.read_text().splitlines())) > MOST[path.suffix]:
            found[str(path.relative_to(root))] = lines
    return found


def test_no_file_is_too_long() -> None:
    assert too_long(ROOT) == {}


def test_a_file_that_is_too_long_is_found(tmp_path: Path) -> None:
    files = {"src/a.py": 401, "tests/b.py": 400, "src/c.pyx": 500, "bench/d.py": 999}
    for name, lines in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x\n" * lines)
    assert too_long(tmp_path) == {"src/a.py": 401, "bench/d.py": 999}
