"""Pages of documentation as programs: their blocks in order, run in a folder, and what they print beside what is shown.

A block of `python` is executed, all of a page in one namespace; of `console` the lines after `$ ` are commands, what
follows one is what it prints. A block of `text` right behind one of `python` is what that prints. `...` stands for
anything, within a line or as lines of its own. A block whose first line is a comment with the name of a file, .py or
.toml, is that file.
`<!-- needs: NAME ... -->` before a block names modules and programs without which it is left out.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Block", "blocks", "commands", "matches", "run_page"]

FENCE = re.compile(
    r"^(?:<!-- needs: (?P<needs>[\w. -]+) -->\n\n?)?```(?P<kind>python|console|text|toml)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
FILE = re.compile(r"# ([\w-]+\.(?:py|toml))\n")


class Block(NamedTuple):
    """``line``: of its first line in the page. ``shown``: what it prints, None where that is not said."""

    line: int
    kind: str
    text: str
    needs: tuple[str, ...]
    shown: str | None

    def missing(self) -> list[str]:
        """What it needs and is not there."""
        return [name for name in self.needs if not shutil.which(name) and not _module(name)]


def _module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of a package that is not there
        return False


def blocks(page: str) -> list[Block]:
    """The blocks of a page that are run or written, in order."""
    found: list[Block] = []
    end = 0
    for fence in FENCE.finditer(page):
        between, end = page[end : fence.start()], fence.end()
        if fence["kind"] == "text":
            if found and found[-1].kind == "python" and not between.strip():
                found[-1] = found[-1]._replace(shown=fence["text"])
            continue
        line = page.count("\n", 0, fence.start("text")) + 1
        found.append(Block(line, fence["kind"], fence["text"], tuple((fence["needs"] or "").split()), None))
    return found


def commands(text: str) -> Iterator[tuple[str, str]]:
    """(command, what it shows) of a block of `console`; a line that ends with a backslash goes on in the next."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        match = re.match(r"((?:.*\\\n)*.*)\n?", part)
        assert match is not None
        yield match[1], part[match.end() :]


def matches(shown: str, printed: str) -> bool:
    """Whether `printed` is what a page shows, but for how wide columns are."""
    pattern = "".join(r"(?:[^\n]*\n)*?" if line == "..." else f"{_pattern(line)}\n" for line in _lines(shown))
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _lines(printed))) is not None


def _lines(text: str) -> list[str]:
    return [re.sub("─+", "─", " ".join(line.split())) for line in text.strip("\n").splitlines()]


def _pattern(line: str) -> str:
    return r"[^\n]*".join(re.escape(part) for part in line.split("..."))


def run_page(page: str, folder: Path, written_elsewhere: str = "") -> list[str]:
    """Run what a page has, in a folder; returns what was left out, and why. AssertionError where something fails, or
    prints what the page does not show.

    :param written_elsewhere: sources of programs that are tested by themselves; a block that stands there, and shows
        nothing, is not run.
    """
    left_out = []
    names: dict[str, Any] = {"__name__": "page"}
    environment = _environment(folder)
    for block in blocks(page):
        where = f"line {block.line}"
        file = FILE.match(block.text)
        if missing := block.missing():
            left_out.append(f"{where}: no {', '.join(missing)}")
        elif file is not None:
            (folder / file[1]).write_text(block.text.partition("\n")[2])
        elif block.kind == "console":
            for command, shown in commands(block.text):
                done = subprocess.run(
                    ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, f"{where}: {command}\n{done.stdout}{done.stderr}"
                assert not shown.strip() or matches(shown, done.stdout), f"{where}: {command} prints\n{done.stdout}"
        elif block.kind == "python" and (block.shown is not None or block.text not in written_elsewhere):
            printed = io.StringIO()
            with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
                exec(compile("\n" * (block.line - 1) + block.text, "<page>", "exec"), names)
            shown = block.shown
            assert shown is None or matches(shown, printed.getvalue()), f"{where} prints\n{printed.getvalue()}"
    return left_out


def _environment(folder: Path) -> dict[str, str]:
    """That of a shell in which `fastmmu` and `python` are those of these tests."""
    programs = folder / ".bin"
    programs.mkdir()
    for name, words in (("python", ""), ("fastmmu", " -m fastmmu")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        program.chmod(0o755)
    return {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "120"}
