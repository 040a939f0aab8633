"""Every example of the documentation runs, and prints what its page shows."""

from __future__ import annotations

import lzma
import re
from pathlib import Path

import pytest

from tests.support.pages import Block, blocks, commands, matches, run_page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
SOURCES = [path for path in sorted((ROOT / "examples").rglob("*")) if path.suffix in (".py", ".pyx")]
EXAMPLES = "\n".join(path.read_text() for path in SOURCES)
"""What tests/project/test_examples.py runs: a page may show a part of it."""

SHOWN = [path for path in PAGES if blocks(path.read_text())]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader has a trace and a log of KVM already."""
    trace, log = ROOT / "tests" / "data" / "true.lackey", ROOT / "tests" / "data" / "kvm_logs" / "perf.txt"
    (tmp_path / "program.lackey.xz").write_bytes(lzma.compress(trace.read_bytes()))
    (tmp_path / "kvm.txt").write_bytes(log.read_bytes())
    return tmp_path


@pytest.mark.parametrize("path", SHOWN, ids=name)
def test_the_examples_of_a_page_run(path: Path, folder: Path) -> None:
    left_out = run_page(path.read_text(), folder, EXAMPLES)
    if left_out:
        pytest.skip(f"skipped in part: {'; '.join(left_out)}")


@pytest.mark.parametrize("path", [path for path in PAGES if "```cython\n" in path.read_text()], ids=name)
def test_cython_of_a_page_is_that_of_an_example(path: Path) -> None:
    """tests/project/test_wheel.py builds it."""
    found = re.findall(r"^```cython\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    assert len(found) > 0
    assert [block for block in found if block not in EXAMPLES] == []


def test_there_are_pages_with_examples() -> None:
    assert len(SHOWN) > 8
    assert sum(len(blocks(path.read_text())) for path in SHOWN) > 40


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_the_links_of_a_page_lead_to_files(path: Path) -> None:
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (path.parent / link).exists()] == []


# ---- what runs them ------------------------------------------------------------------------------------------------

PAGE = """
```python
print(1)
```

```text
1
```

```python
# written.toml
x = 2
```

<!-- needs: no_such_module -->
```python
import no_such_module
```

```console
$ cat written.toml
x = 2
$ echo one \\
    two
...
```
"""


def test_the_blocks_of_a_page() -> None:
    assert blocks(PAGE) == [
        Block(3, "python", "print(1)\n", (), "1\n"),
        Block(11, "python", "# written.toml\nx = 2\n", (), None),
        Block(17, "python", "import no_such_module\n", ("no_such_module",), None),
        Block(21, "console", "$ cat written.toml\nx = 2\n$ echo one \\\n    two\n...\n", (), None),
    ]
    assert list(commands("$ a\n$ b \\\n  c\nd\n...\n")) == [("a", ""), ("b \\\n  c", "d\n...\n")]


def test_a_page_is_run(tmp_path: Path) -> None:
    assert run_page(PAGE, tmp_path) == ["line 17: no no_such_module"]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "line 2 prints\n1"),
        ("```console\n$ echo 1\n2\n```\n", "line 2: echo 1 prints\n1"),
        ("```console\n$ exit 3\n```\n", "line 2: exit 3"),
        ("```console\n$ fastmmu walk --va nonsense\n```\n", "fastmmu: error: "),
    ],
)
def test_what_a_page_shows_and_is_not_so_is_found(page: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as found:
        run_page(page, tmp_path)
    assert message in str(found.value)


def test_what_stands_in_an_example_is_not_run(tmp_path: Path) -> None:
    assert run_page("```python\nraise ValueError\n```\n", tmp_path, "x\nraise ValueError\n") == []


@pytest.mark.parametrize(
    ("shown", "printed", "so"),
    [
        ("a\n", "a\n", True),
        ("a\n", "b\n", False),
        ("a ... c\n", "a b c\n", True),
        ("a ... c\n", "a\nc\n", False),
        ("a\n...\n", "a\n", True),
        ("a\n...\n", "a\nb\nc\n", True),
        ("...\nc\n", "a\nb\nc\n", True),
        ("a\n...\nc\n", "a\nc\n", True),
        ("a\n...\nc\n", "a\nb\nd\n", False),
        ("a  b\n────\n", "a   b\n─────\n", True),
    ],
)
def test_dots_stand_for_anything(shown: str, printed: str, so: bool) -> None:
    assert matches(shown, printed) is so
