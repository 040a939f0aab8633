"""`fastmmu trace info` and `fastmmu trace convert`, and the survey behind the first."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import fastmmu
from fastmmu.cli import main
from fastmmu.ops import Op
from fastmmu.study import survey
from fastmmu.trace import Trace, exits_every, interleave

LACKEY = """\
I  04001000,3
 L 1ffe0000,8
 S 1ffe0010,8
 M 1ffe0020,4
I  04001003,2
"""


@pytest.fixture
def lackey(tmp_path: Path) -> Path:
    (tmp_path / "a.lackey").write_text(LACKEY)
    return tmp_path / "a.lackey"


def events(path: Path) -> list[tuple[int, int, int]]:
    batches = fastmmu.read_trace(path).batches()
    return [(int(o), int(s), int(a)) for b in batches for o, s, a in zip(b.op, b.size, b.addr, strict=True)]


def test_info(capsys: pytest.CaptureFixture[str], lackey: Path) -> None:
    assert main(["trace", "info", str(lackey)]) == 0
    out = capsys.readouterr().out
    for name, n in (("events", 5), ("accesses", 5), ("fetch", 2), ("read", 1), ("write", 1), ("modify", 1)):
        assert re.search(rf"^ +{name} +{n}$", out, re.M)
    assert re.search(r"4 KB pages +2 ", out)
    assert "0x4001000 .. 0x1ffe0020" in out


def test_lines_of_the_program_are_told(capsys: pytest.CaptureFixture[str], lackey: Path) -> None:
    lackey.write_text("total 4\n" + LACKEY)
    assert main(["trace", "info", str(lackey)]) == 2
    assert "line 1: not a lackey line" in capsys.readouterr().err
    assert main(["trace", "info", "--skip-other-lines", str(lackey)]) == 0
    assert capsys.readouterr().err == f"fastmmu: {lackey}: skipped 1 line that the program itself wrote\n"


@pytest.mark.parametrize("name", ["b.npy", "b.arrow", "b.lackey.gz", "b.npy.xz"])
def test_conversion_keeps_the_events(lackey: Path, tmp_path: Path, name: str) -> None:
    if ".arrow" in name:
        pytest.importorskip("pyarrow")
    assert main(["trace", "convert", str(lackey), str(tmp_path / name)]) == 0
    assert events(tmp_path / name) == events(lackey)


def test_conversion_changes_what_it_is_told_to(lackey: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.npy"
    assert main(["trace", "convert", str(lackey), str(out), "--data-only", "--limit", "2"]) == 0
    assert events(out) == [(Op.READ, 8, 0x1FFE0000), (Op.WRITE, 8, 0x1FFE0010)]
    both = ["trace", "convert", str(lackey), str(lackey), str(out), "--switch-every", "3", "--exit-every", "5"]
    assert main(both) == 0
    wanted = exits_every(interleave([fastmmu.read_trace(lackey)] * 2, 3), 5)
    assert [op for op, _, _ in events(out)] == [int(op) for batch in wanted.batches() for op in batch.op]


def test_a_survey_counts_by_brute_force() -> None:
    random = np.random.default_rng(5)
    op = random.choice([0, 1, 2, 3, Op.SWITCH, Op.INVLPG, Op.INTERRUPT], 5000).astype(np.uint8)
    addr = random.integers(0, 1 << 23, 5000, dtype=np.uint64)
    addr[op == Op.SWITCH] %= 3
    addr[op == Op.INTERRUPT] %= 256
    found = survey(Trace.from_arrays(addr, op))
    process, pages, touched = 0, set(), []
    for code, address in zip(op.tolist(), addr.tolist(), strict=True):
        if code == Op.SWITCH:
            process = address
        elif code <= Op.FETCH:
            pages.add((process, address >> 12))
            touched.append(address)
    assert found.pages_4k == len(pages)
    assert found.pages_2m == len({(p, page >> 9) for p, page in pages})
    assert (found.lowest, found.highest) == (min(touched), max(touched))
    assert found.processes == len({p for p, _ in pages})
    assert (found.events, found.accesses) == (5000, len(touched))
    assert found.by_op == {code: int((op == code).sum()) for code in Op if (op == code).any()}


def test_a_survey_of_nothing() -> None:
    found = survey(Trace.from_arrays(np.array([], np.uint64)))
    assert (found.events, found.pages_4k, found.lowest, found.processes) == (0, 0, None, 1)
