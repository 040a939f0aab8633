"""The documents say what is so."""

from __future__ import annotations

import lzma
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "fastmmu"
DOCS = ROOT / "docs"


def test_each_file_that_the_architecture_names_exists() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`((?:\w+/)*\w+(?:\.(?:pyx|pxd|py|toml)|/))`", text))
    assert len(named) > 20
    assert [name for name in sorted(named) if not any((place / name).exists() for place in (PACKAGE, ROOT))] == []
    assert len(text.splitlines()) < 100


def test_each_name_that_the_architecture_uses_is_one_of_the_code() -> None:
    named = set(re.findall(r"`([A-Za-z]\w+)`", (ROOT / "ARCHITECTURE.md").read_text()))
    assert len(named) > 10
    sources = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".pyx", ".pxd")]
    words = {word for path in sources for word in re.findall(r"\w+", path.read_text())}
    assert named - words - {"import", "cimport"} == set()


def test_each_room_stands_in_the_architecture() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    assert len(rooms) > 10
    assert [room for room in sorted(rooms) if f"`{room}`" not in text] == []


SOURCE = r"(?<![\w./<-])((?:\w+/)*\w+\.(?:pyx|pxd|pyi|py))\b"
MODULE = r"(?<![\w./-])((?:{})/[a-z]\w+)(?![\w./*{{])"


TOKEN = re.compile(r"""#[^\n]*|\"{3}.*?\"{3}|'{3}.*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""", re.DOTALL)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of the comments of a source and of its long strings, which are its docstrings."""
    text = path.read_text()
    for m in TOKEN.finditer(text):
        if m[0].startswith(("#", '"""')):
            yield from enumerate(m[0].splitlines(), text.count("\n", 0, m.start()) + 1)


def files_that_are_not(root: Path) -> list[str]:
    """What comments name and nobody finds: files, with their room or alone, and modules by room and name."""
    places = [root / "src" / "fastmmu", root]
    rooms = "|".join(path.parent.name for path in places[0].glob("*/__init__.py"))
    sources = [path for name in ("src", "tests", "bench", "examples", "tools") for path in (root / name).rglob("*.p*")]
    sources = [path for path in sources if path.suffix in (".py", ".pyx", ".pxd", ".pyi")]
    known = {str(path.relative_to(root)) for path in [*sources, *root.glob("*.py")]}
    known |= {name[i + 1 :] for name in known for i, letter in enumerate(name) if letter == "/"}
    found = []
    for path in sources:
        for line, text in prose(path):
            named = {name for name in re.findall(SOURCE, text) if name not in known}
            for name in re.findall(MODULE.format(rooms), text):
                if not any((place / name).exists() or [*place.glob(f"{name}.*")] for place in places):
                    named.add(name)
            found += [f"{path.relative_to(root)}:{line}: {name}" for name in sorted(named)]
    return found


def test_each_file_that_a_comment_names_exists() -> None:
    assert files_that_are_not(ROOT) == []


def test_a_file_that_is_not_there_is_found(tmp_path: Path) -> None:
    room = tmp_path / "src" / "fastmmu" / "tlb"
    room.mkdir(parents=True)
    (room / "__init__.py").write_text('"""See lookup.pyx and `tlb/gone`."""\n')
    (room / "lookup.pyx").write_text("# tlb/lookup.pyx, tlb/lookup\ncdef int x  # as in tlb/old.pxd\ny = 'none.py'\n")
    (room / "a.py").write_text('x = "b.py"\n\n\ndef f():\n    """One.\n\n    Two: old.py.\n    """\n')
    assert sorted(files_that_are_not(tmp_path)) == [
        "src/fastmmu/tlb/__init__.py:1: tlb/gone",
        "src/fastmmu/tlb/a.py:7: old.py",
        "src/fastmmu/tlb/lookup.pyx:2: tlb/old.pxd",
    ]


def test_each_kernel_that_python_sees_has_a_stub() -> None:
    seen = [
        path
        for path in PACKAGE.rglob("*.pyx")
        if re.search(r"^(?:def|cpdef|class|cdef class)\b", path.read_text(), re.MULTILINE)
    ]
    assert len(seen) > 3
    assert [path.name for path in seen if not path.with_suffix(".pyi").exists()] == []


def test_the_group_for_building_is_what_the_build_requires() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["dependency-groups"]["build"] == project["build-system"]["requires"]


def test_the_readme_is_short_and_begins_with_two_commands() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert re.findall(r"^    (make \w+)", "\n".join(lines), re.MULTILINE) == ["make demo", "make test"]
    assert len(lines) < 130


PAGES = ("vmx", "translation", "compare", "exits", "kvm-log")
EXAMPLES = [
    block
    for name in PAGES
    for block in re.findall(r"```python\n(.*?)```", (DOCS / f"{name}.md").read_text(), re.DOTALL)
]
"""What they print is held to in tests/project/test_pages.py; here, what they have done."""


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Where an example of the documentation finds its trace."""
    text = (ROOT / "tests" / "data" / "true.lackey").read_bytes()
    (tmp_path / "program.lackey.xz").write_bytes(lzma.compress(text))
    monkeypatch.chdir(tmp_path)
    return {}


def test_the_vmm_of_the_page_is_that_of_the_example() -> None:
    assert EXAMPLES[0].rstrip() in (ROOT / "examples" / "vmx.py").read_text()


def test_example_of_walk(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    exec(EXAMPLES[1], names)
    steps = names["fastmmu"].walk(names["mem"], names["state"], 0x400123).steps
    assert [hex(step.hpa) for step in steps] == ["0x1000", "0x2000", "0x3010", "0x4000", "0x7123"]
    addresses = np.array([0x400123, 0x500000], np.uint64)
    assert names["fastmmu"].translate(names["mem"], names["state"], addresses).pa.tolist() == [0x7123, 2**64 - 1]
    assert str(0x7123) in capsys.readouterr().out


def test_example_of_simulate(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    exec(EXAMPLES[2], names)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["shadow", "ept"]
    assert names["result"].counters["accesses"] > 100


def test_example_of_policy(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    exec(EXAMPLES[3], names)
    pages = names["policy"].pages
    assert len(pages) == len(set(pages)) == names["result"].counters["vm_exits"] > 10
    assert capsys.readouterr().out == f"{len(pages)} pages, {len(pages)} exits\n"
    plain = names["fastmmu"].simulate(names["trace"], names["result"].config)
    assert plain.counters == names["result"].counters


def test_example_of_exit_log(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    exec(EXAMPLES[4], names)
    counters, log = names["result"].counters, names["log"]
    assert log.by_class() == {"build": counters["violations_build"]}
    assert len(log) == counters["vm_exits"] == len(Path("exits.csv").read_text().splitlines()) - 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"<ExitLog of {len(log)} exits: {len(log)} ept_violation>"
    assert lines[2].startswith("access 1: gpa 0x")


def test_example_of_kvm_log(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    Path("kvm.txt").write_text((ROOT / "tests" / "data" / "kvm_logs" / "perf.txt").read_text())
    exec(EXAMPLES[5], names)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[1:]] == ["4k", "2m", "2m-pml"]
    assert names["run"].faults == int((names["log"].faults["class"] != 3).sum())


KVM_LOG = Path(os.environ.get("FASTMMU_FILES") or ROOT.parent / "shared" / "files") / "kvm"
KVM_LOG /= "perf-script_kvm_amd_6.1.txt.xz"


@pytest.mark.skipif(not KVM_LOG.exists(), reason=f"skipped: no {KVM_LOG.name} in FASTMMU_FILES")
def test_the_kvm_log_of_the_page_is_what_is_printed() -> None:
    command = [sys.executable, "-m", "fastmmu", "kvm-log", str(KVM_LOG)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (DOCS / "kvm-log.md").read_text()
    shown = page.partition("A log has the accesses")[0].partition("again  ")[2]
    rows = [" ".join(line.split()) for line in shown.splitlines()[1:] if line.startswith("    ") and line.strip(" ─")]
    assert len(rows) > 10
    assert [row for row in rows if row not in {" ".join(line.split()) for line in done.stdout.splitlines()}] == []


LINUX = Path(os.environ.get("FASTMMU_TRACES") or ROOT.parent / "shared" / "traces") / "shell.rec.zst"


@pytest.mark.skipif("FASTMMU_EXHAUSTIVE" not in os.environ, reason="skipped: FASTMMU_EXHAUSTIVE=1 runs it")
@pytest.mark.skipif(not LINUX.exists(), reason="skipped: no shell.rec.zst in FASTMMU_TRACES")
def test_the_linux_of_the_page_is_what_replay_prints(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastmmu", "replay", str(LINUX), "--schemes"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = (DOCS / "system-traces.md").read_text().partition("Shadow paging that emulates")[0]
    rows = [" ".join(line.split()) for line in shown.splitlines() if line.startswith("    ") and line.strip(" ─")]
    assert len(rows) > 10
    assert [row for row in rows if row not in {" ".join(line.split()) for line in done.stdout.splitlines()}] == []
