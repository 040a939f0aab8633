"""The documentation is whole: every public name is in its reference, every page is found, and it builds."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from fastmmu.cli.commands import commands

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = "\n".join(path.read_text() for path in sorted((DOCS / "reference").glob("*.md")))
ROOMS = ("", ".image", ".mmu", ".report", ".space", ".study", ".trace", ".vmx")
NEEDED = ("sphinx", "myst_parser", "furo", "sphinx_argparse_cli")
"""Modules of the group "docs" in pyproject.toml."""


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_in_the_reference(room: str) -> None:
    """By one of its names: some rooms have those of others."""
    described = {
        id(_named(name)) for name in re.findall(r"^\.\. auto\w+:: (fastmmu\.[\w.]+)$", REFERENCE, re.MULTILINE)
    }
    package = import_module(f"fastmmu{room}")
    names = [name for name in package.__all__ if not isinstance(getattr(package, name), type(package))]
    assert len(names) > 0
    assert [name for name in names if id(getattr(package, name)) not in described] == []


def _named(name: str) -> object:
    module, *parts = name.split(".")
    found: object = import_module(module)
    for part in parts:
        module = f"{module}.{part}"
        found = getattr(found, part) if hasattr(found, part) else import_module(module)
    return found


def test_every_name_stands_once() -> None:
    names = re.findall(r"^\.\. auto\w+:: (\S+)$", REFERENCE, re.MULTILINE)
    assert len(names) > 150
    assert sorted(names) == sorted(set(names))


def test_every_command_has_a_line() -> None:
    named = {
        word.split()[0]
        for row in re.findall(r"^\| (`.*?) \|", (DOCS / "commands.md").read_text(), re.MULTILINE)
        for word in re.findall(r"`([^`]+)`", row)
    }
    assert named - {"fastmmu"} == {command.name for command in commands()}


def test_every_page_has_a_title_and_is_found() -> None:
    """Those of docs/ itself are found by their names; others stand in a toctree."""
    trees = "\n".join(
        tree
        for path in DOCS.rglob("*.md")
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    )
    for path in DOCS.rglob("*.md"):
        text, place = path.read_text(), str(path.relative_to(DOCS).with_suffix(""))
        assert re.match(r"# .+|```\{include\}", text), path
        if path.parent != DOCS:
            found = (place, path.stem, f"{path.parent.name}/*")
            assert any(re.search(rf"^{re.escape(name)}$", trees, re.MULTILINE) for name in found), path


@pytest.mark.slow
@pytest.mark.skipif(
    not all(find_spec(name) for name in NEEDED), reason="skipped: the group docs is not installed (`make docs` does it)"
)
def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-d", tmp_path / "doctrees"]
    done = subprocess.run([*command, DOCS, tmp_path / "html"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    page = (tmp_path / "html" / "reference" / "tlb.html").read_text()
    assert "max_contexts" in page  # the signature, by the stub
    assert "fastmmu sweep [options] STUDY.toml" in (tmp_path / "html" / "reference" / "commands.html").read_text()


@pytest.mark.skipif(not find_spec("sphinx"), reason="skipped: the group docs is not installed (`make docs` does it)")
def test_fields_of_a_docstring_get_lines_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS / "extensions"))
    fields_apart = import_module("kernels").fields_apart
    text = """What it does. :raises StateError: never.

    More.
    :param a, b: two, of which one
        goes on. :param c: three. :raises
        ConfigError: often.

    End."""
    assert fields_apart(text.replace("\n    ", "\n").splitlines()) == [
        "What it does.",
        "",
        ":raises StateError: never.",
        "",
        "More.",
        "",
        ":param a,b: two, of which one",
        "    goes on.",
        ":param c: three.",
        ":raises ConfigError: often.",
        "",
        "End.",
    ]
