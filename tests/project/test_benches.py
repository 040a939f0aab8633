"""What the benches' own tools say: ratios of a race, the table, the gate's counts, and the comparison of revisions."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("pytest_benchmark") is None:
    pytest.skip("skipped: pytest-benchmark is not installed", allow_module_level=True)

from bench import compare, instructions, table
from bench.race import Rival, compared, timed

ROOT = Path(__file__).parents[2]

# ---- race ----------------------------------------------------------------------------------------------------------


def test_a_ratio_is_the_median_of_neighbours() -> None:
    """A machine that becomes ten times as slow half-way changes no ratio."""
    found = compared([1.0, 2.0, 30.0, 40.0, 50.0], [2.0, 4.0, 60.0, 80.0, 200.0])
    assert found["ratio"] == found["high"] == 0.5
    assert compared([1.0, 2.0, 3.0], [4.0, 4.0, 4.0]) == {"ns_per_item": 4e9, "ratio": 0.5, "low": 0.375, "high": 0.625}


def test_rivals_take_turns_and_a_wrong_result_fails(tmp_path: Path) -> None:
    suite = tmp_path / "test_made.py"
    suite.write_text(
        "from __future__ import annotations\n\nimport time\n\nimport pytest\n\nfrom bench.conftest import *\n"
        "from bench.race import Rival, timed\n\nORDER = []\n\n\n@pytest.mark.benchmark(group='made')\n"
        "def test_turns(race):\n"
        "    rival = Rival('slow', timed(lambda: (ORDER.append('theirs'), time.sleep(0.02))), 2)\n"
        "    found = race(lambda: (ORDER.append('ours'), time.sleep(0.01)), 1, [rival], target=1.5)\n"
        "    assert ORDER == ['theirs', 'ours'] * (len(ORDER) // 2) and len(ORDER) == 16\n"
        "    assert found is not None\n\n\n"
        "def test_wrong(race):\n    assert race(lambda: 1, 1) == 2\n"
    )
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "bench.conftest", str(suite)]
    options = ["--bench-scale", "usual", f"--benchmark-json={out}", "-c", str(ROOT / "pyproject.toml")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run([*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert "node" not in report["machine_info"]
    (bench,) = (bench for bench in report["benchmarks"] if bench["name"] == "test_turns")
    extra = bench["extra_info"]
    assert extra["items"] == 1
    assert extra["target"] == 1.5
    assert 0.2 < extra["rivals"]["slow"]["ratio"] < 5  # 10 ms an item, each
    text = table.markdown(report | {"benchmarks": [bench]})
    assert "| made | turns | 1 | " in text
    assert "| slow | " in text
    assert text.endswith(" | 1.5 |")


def test_time_is_taken_of_the_call_alone() -> None:
    assert 0.01 <= timed(lambda: time.sleep(0.01))() < 1
    assert Rival("a", lambda: 2.0, 4).run() == 2.0


# ---- table ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nanoseconds", "said"), [(1.234, "1.23"), (12.34, "12.3"), (1234.5, "1,234"), (7e7, "70,000,000")]
)
def test_times_have_the_digits_that_count(nanoseconds: float, said: str) -> None:
    assert table.time_of(nanoseconds) == said


# ---- the gate ------------------------------------------------------------------------------------------------------

DUMP = """version: 1
creator: callgrind-3.19.0
desc: Trigger: Client Request: walk, native

events: Ir
summary: 4242

totals: 4300
"""


def test_a_count_is_read_by_the_name_that_the_program_gave() -> None:
    assert instructions.count_of(DUMP) == ("walk, native", 4242)
    assert instructions.count_of(DUMP.replace("Client Request: walk, native", "Program termination")) is None


def test_the_gate_holds_both_ways() -> None:
    committed = {"a": 100.0, "b": 100.0, "c": 100.0}
    assert instructions.differences(committed, {"a": 101.9, "b": 98.1, "c": 100.0}) == []
    found = instructions.differences(committed, {"a": 102.1, "b": 97.9, "d": 1.0})
    assert [line.partition(":")[0] for line in found] == ["a", "b", "c", "d"]
    assert "now 102.10 (+2.1%)" in found[0]
    assert found[2:] == ["c: not counted any more", "d: not in the file"]


def test_on_another_machine_nothing_is_compared() -> None:
    was = {"NumPy alone": 100.0, "Python alone": 50.0, "ours": 10.0}
    assert instructions.elsewhere(was, {**was, "NumPy alone": 100.4, "ours": 20.0}) == ""
    said = instructions.elsewhere(was, {**was, "NumPy alone": 101.0})
    assert said.startswith("NumPy alone takes 101.0 instructions an item here, 100.0 where instructions.json was made")


def test_what_is_committed_can_be_compared() -> None:
    committed: dict[str, Any] = json.loads(instructions.COMMITTED.read_text())
    assert committed["made_with"].keys() == instructions.made_with().keys()
    counts = committed["instructions_per_item"]
    assert len(counts) > 20
    assert all(count > 1 for count in counts.values())
    source = (ROOT / "bench" / "counted.py").read_text()
    assert [name for name in counts if name.split(",")[0].split(" .")[0] not in source] == []


def test_without_valgrind_the_gate_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert instructions.why_not() == "valgrind is not installed"


# ---- revisions -----------------------------------------------------------------------------------------------------


def test_ratios_are_of_what_both_ran() -> None:
    turns = [({"a": 2.0, "b": 1.0}, {"a": 1.0, "c": 1.0}), ({"a": 4.0}, {"a": 3.0, "c": 1.0})]
    found = compare.ratios(turns)
    assert found == {"a": [0.5, 0.75]}
    assert compare.report(found, {"c"}).splitlines()[2:] == [
        "| a | 0.625 | 0.500 | 0.750 |",
        "| c | base cannot |  |  |",
    ]
