"""What a release says of itself: its version in one place, the list of changes, how to cite it, how to add to it."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import fastmmu

ROOT = Path(__file__).parents[2]
CHANGES = (ROOT / "CHANGELOG.md").read_text()


# ---- the list of changes -------------------------------------------------------------------------------------------

HEADINGS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]


def versions(text: str) -> list[tuple[str, str]]:
    """(version, day) of each heading of a version."""
    return re.findall(r"^## (\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)$", text, re.MULTILINE)


def complaints(text: str) -> list[str]:
    """What of a list of changes is not as it should be."""
    found = [
        f"no version: {line}"
        for line in re.findall(r"^## .*", text, re.MULTILINE)
        if not versions(line) and line != "## Unreleased"
    ]
    for part in re.split(r"^## .*\n", text, flags=re.MULTILINE)[1:]:
        headings = re.findall(r"^### (.*)$", part, re.MULTILINE)
        if headings != [name for name in HEADINGS if name in headings]:
            found.append(f"headings: {', '.join(headings)}")
        if re.search(r"^- ", part.partition("\n### ")[0], re.MULTILINE):
            found.append("a change before the first heading")
    changes = re.findall(r"^- .*(?:\n  .*)*", text, re.MULTILINE)
    found += [f"twice: {change}" for change in {change for change in changes if changes.count(change) > 1}]
    return found + [f"long: {line}" for line in text.splitlines() if len(line) > 130]


def test_the_list_of_changes_is_one() -> None:
    assert complaints(CHANGES) == []
    assert len(versions(CHANGES)) > 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("## Soon\n\n### Added\n\n- a\n", "no version: ## Soon"),
        ("## 0.1.0 - 2026-11-29\n\n### Fixed\n\n- a\n\n### Added\n\n- b\n", "headings: Fixed, Added"),
        ("## 0.1.0 - 2026-11-29\n\n### Fixes\n\n- a\n", "headings: Fixes"),
        ("## 0.1.0 - 2026-11-29\n\n- a\n\n### Added\n\n- b\n", "a change before the first heading"),
        ("## 0.1.0 - 2026-11-29\n\n### Added\n\n- a\n  b\n- c\n- a\n  b\n", "twice: - a\n  b"),
    ],
)
def test_what_is_wrong_with_a_list_of_changes_is_found(text: str, complaint: str) -> None:
    assert complaints(text) == [complaint]


def test_the_newest_version_is_that_of_the_package() -> None:
    assert versions(CHANGES)[0][0] == fastmmu.__version__
    days = [date.fromisoformat(day) for _, day in versions(CHANGES)]
    assert days == sorted(days, reverse=True)


# ---- how to cite it ------------------------------------------------------------------------------------------------

CITED = {"cff-version", "message", "title", "type", "authors", "version", "date-released", "license", "abstract",
         "keywords"}  # fmt: skip
"""Keys that stand in CITATION.cff, all of them keys of its format (version 1.2.0)."""


def test_the_citation_is_of_this_version() -> None:
    yaml = pytest.importorskip("yaml", reason="skipped: PyYAML is not installed")
    cited: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited.keys() == CITED
    assert (cited["cff-version"], cited["type"], cited["license"]) == ("1.2.0", "software", "Apache-2.0")
    assert (cited["version"], cited["date-released"]) == versions(CHANGES)[0]
    assert [set(author) for author in cited["authors"]] == [{"name"}]  # an entity
    assert len(set(cited["keywords"])) == len(cited["keywords"]) > 3
    assert all(isinstance(cited[name], str) and cited[name] for name in ("message", "title", "abstract"))


# ---- how to add to it, how to say what is wrong --------------------------------------------------------------------


def test_each_file_that_contributing_names_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().replace("NAME", "vpid")
    named = {name for name in re.findall(r"`([\w./-]+)`", text) if re.search(r"/|\.(md|cff|py)$", name)}
    named -= {"src/fastmmu/trace/vpid.py", "dist/", "bench/results/"}
    named |= set(re.findall(r"\]\(([^):#]+)\)", text))
    assert len(named) > 50
    assert [name for name in sorted(named) if not (ROOT / name).exists() and name != "__init__.py"] == []


def test_each_target_that_contributing_names_is_one_of_make() -> None:
    named = set(re.findall(r"`make ([a-z-]+)`", (ROOT / "CONTRIBUTING.md").read_text()))
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(named) > 4
    assert named - set(targets) == set()


FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
KINDS = {"markdown": {"value"}, "textarea": {"label"}, "input": {"label"}, "dropdown": {"label", "options"}}
"""Kinds of elements, and what each needs."""


@pytest.mark.parametrize("path", [path for path in FORMS if path.stem != "config"], ids=lambda path: path.stem)
def test_a_form_of_an_issue_is_one(path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="skipped: PyYAML is not installed")
    form: dict[str, Any] = yaml.safe_load(path.read_text())
    assert set(form) <= {"name", "description", "title", "labels", "assignees", "body"}
    assert form["name"]
    assert form["description"]
    identifiers = [element["id"] for element in form["body"] if element["type"] != "markdown"]
    assert len(set(identifiers)) == len(identifiers) > 1
    for element in form["body"]:
        assert KINDS[element["type"]] <= set(element["attributes"])
        assert set(element) <= {"type", "id", "attributes", "validations"}
