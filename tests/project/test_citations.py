"""A rule that is cited can be read: the chapter is in docs/spec, the section in it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import fastmmu

ROOT = Path(__file__).parents[2]
CHAPTERS = Path("docs") / "spec"
FORMATS = {"FORMAT.md"}  # lies beside the recorded vectors
READ = (".py", ".pyx", ".pxd", ".pyi", ".toml", ".md")

DOCUMENT = r"(?<![\w./-])([A-Za-z_]+\.md)\b"
CITATION = re.compile(DOCUMENT + r"((?:(?:,| and| to|-|–|'s)? ?§[\d.]*\d)*)")
NUMBER = re.compile(r"§([\d.]*\d)")


def sections(chapter: Path) -> set[str]:
    """Numbers of the sections of a chapter."""
    return set(re.findall(r"^##+ ([\dA-Z][\d.]*?)\.? ", chapter.read_text(), re.MULTILINE))


def cited_in_vain(root: Path) -> list[str]:
    """Documents and sections that a file of `root` names and nobody finds, as "file: name.md §x"."""
    chapters = {path.name: sections(path) for path in (root / CHAPTERS).glob("*.md")}
    documents = {path.name for path in [*root.glob("*.md"), *(root / "docs").rglob("*.md")]} | FORMATS
    files = [
        path for place in ("src", "tests", "bench", "examples", "tools", "docs") for path in (root / place).rglob("*")
    ]
    found = []
    for path in [*files, *root.glob("*.md"), *root.glob("*.py")]:
        if path.suffix not in READ or path.name == Path(__file__).name:
            continue
        text = re.sub(r"\s*\n\s*(?:#+ |\*\s)?", " ", path.read_text())  # a citation may go on in the next line
        cited = {
            (name, number) for name, numbers in CITATION.findall(text) for number in NUMBER.findall(numbers) or [""]
        }
        if path.parent == root / CHAPTERS:  # of its own sections it says the number alone
            own = re.sub(CITATION, "", text)
            cited |= {(path.name, number) for number in NUMBER.findall(own)} - {(path.name, "")}
        for name, number in sorted(cited):
            if (name not in chapters and name not in documents) or (number and number not in chapters.get(name, ())):
                found.append(f"{path.relative_to(root)}: {name} {f'§{number}' if number else ''}".rstrip())
    return found


def test_each_chapter_and_section_that_is_cited_exists() -> None:
    assert len(list((ROOT / CHAPTERS).glob("*.md"))) >= 8
    assert cited_in_vain(ROOT) == []


# ---- what help() shows -----------------------------------------------------------------------------------------------

MANUAL = re.compile(r"\bSDM\b|\bAPM\b|\bKVM\b|\bLinux\b|\bvmx_[a-z_]+")


def help_of(name: str, thing: object) -> Iterator[tuple[str, str]]:
    """(name, text) of a public name, and of the public methods and properties of a class."""
    parts = {"": thing}
    if inspect.isclass(thing):
        parts |= {f".{own}": part for own, part in vars(thing).items() if not own.startswith("_")}
    for own, part in parts.items():
        text = getattr(part, "__doc__", None)
        if isinstance(text, str):
            yield f"fastmmu.{name}{own}", text


def test_help_names_the_manual_beside_the_chapter() -> None:
    """Who has no repository at hand finds the rule in the manual, or in KVM."""
    names = {path.name for path in (ROOT / CHAPTERS).glob("*.md")}
    every = [(where, text) for name in fastmmu.__all__ for where, text in help_of(name, getattr(fastmmu, name))]
    citing = [(where, text) for where, text in every if any(chapter in names for chapter, _ in CITATION.findall(text))]
    assert len(citing) > 20
    assert [where for where, text in citing if not MANUAL.search(text)] == []


def test_a_citation_of_nothing_is_found(tmp_path: Path) -> None:
    (tmp_path / CHAPTERS).mkdir(parents=True)
    (tmp_path / "src").mkdir()
    (tmp_path / "README.md").write_text("[a](docs/spec/ept.md), paging.md\n")
    (tmp_path / CHAPTERS / "ept.md").write_text("# ept.md\n\n## 1. One\n\nSee §1.1, §3.\n\n### 1.1 Of it\n")
    (tmp_path / "src" / "a.py").write_text('"""ept.md §1.1 and §2, ept.md §1-§4; README.md; old.md."""\n')
    (tmp_path / "src" / "b.pxd").write_text("# as in ept.md\n# §5, §1.1: so\n")
    assert sorted(cited_in_vain(tmp_path)) == [
        "README.md: paging.md",
        "docs/spec/ept.md: ept.md §3",
        "src/a.py: ept.md §2",
        "src/a.py: ept.md §4",
        "src/a.py: old.md",
        "src/b.pxd: ept.md §5",
    ]
