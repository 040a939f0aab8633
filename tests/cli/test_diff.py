"""`fastmmu diff`: equal runs have equal files but for the wall time; what differs is named."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from fastmmu import write_trace
from fastmmu.cli import main
from fastmmu.report.differences import differences, read_rows
from tests.support.event_lists import program


@pytest.fixture
def trace(tmp_path: Path) -> str:
    write_trace(program(2000), tmp_path / "a.npy")
    return str(tmp_path / "a.npy")


STUDIES = (
    ["compare"],
    ["run", "--mmu", "ept"],
    ["vpid", "--rates", "1,5"],
    ["tpr", "--ways", "native,flexpriority,flexpriority-slides"],
    ["overcommit", "--schemes", "ept", "--host-memory", "100%,50%"],
    ["migrate", "--methods", "pml"],
    ["tlb-curve", "--l1-sets", "16"],
    ["host", "--cpus", "1"],
)


@pytest.mark.parametrize("words", STUDIES, ids=lambda words: words[0])
@pytest.mark.parametrize("format", ["csv", "json"])
def test_two_equal_runs(words: list[str], format: str, trace: str, tmp_path: Path,
                        capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """Every command's files are equal, say what made them, and know the trace."""
    files = [str(tmp_path / f"{n}.{format}") for n in (1, 2)]
    for file in files:
        assert main([words[0], trace, *words[1:], f"--{format}", file, "--quiet"]) == 0
    capsys.readouterr()
    assert main(["diff", *files]) == 0
    rows = read_rows(files[0])
    assert capsys.readouterr().out == f"{len(rows)} rows are equal\n"
    assert {row["path"] for row in rows} == {trace}
    assert len({row["content"] for row in rows}) == 1
    assert all(len(row["content"]) == 24 for row in rows)
    if words[0] not in ("vpid", "tlb-curve"):
        assert all(row["costs"].startswith("skylake ") for row in rows)
    assert all(row["geometry"].startswith("L1I 128/8") for row in rows)
    text = Path(files[0]).read_text()
    assert f"fastmmu {words[0]} {trace}" in text
    assert main(["diff", *files, "--leave-out", ""]) == (1 if format == "csv" or "seconds" in rows[0] else 0)


def test_what_differs_is_named(trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / name) for name in ("a.csv", "b.csv")]
    for file, more in zip(files, ([], ["--schemes", "native,ept"]), strict=True):
        assert main(["compare", trace, "--csv", file, *more]) == 0
    rows = list(csv.DictReader(Path(files[1]).read_text().splitlines()))
    rows[1]["tlb_misses"] = str(int(rows[1]["tlb_misses"]) * 2)
    with open(files[1], "w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    capsys.readouterr()
    assert main(["diff", *files]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    (changed,) = (line for line in lines if " tlb_misses " in line)
    assert changed.startswith("a, EPT, ")
    assert changed.endswith("(+100.00%)")
    assert sum(line.endswith("only in the first file") for line in lines) == 3
    assert main(["diff", files[1], files[1]]) == 0


def test_rows_of_the_same_texts_go_by_their_order() -> None:
    a = [{"trace": "t", "rate": "1", "misses": "5"}, {"trace": "t", "rate": "2", "misses": "7"}]
    assert differences(a, a) == []
    assert differences(a, [a[0], {**a[1], "misses": "8"}]) == ["t: misses 7 -> 8 (+14.29%)"]
    assert differences(a, a[:1]) == ["t: only in the first file"]
    assert differences(a[:1], a) == ["t: only in the second file"]
    assert differences([{**a[0], "seconds": "1"}], [{**a[0], "seconds": "2"}]) == []
    assert differences([{**a[0], "x": "0"}], a[:1]) == []  # a counter that only other runs have is 0
    assert differences([{**a[0], "x": "3"}], a[:1]) == ["t: x is in the first file alone"]
    assert differences([{**a[0], "misses": "5.0"}], a[:1]) == []
    assert differences([{"x": "0"}], [{"x": ""}]) == ["row: x 0 -> none"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "{", "a.json: no JSON"),
        ("a.json", "[1]", "a.json: no file of results"),
        ("a.json", '{"results": [1]}', "a.json: no file of results"),
        ("a.csv", "a,b\n1\n", "a.csv: lines with more or fewer values than names"),
        ("a.csv", "a,b\n1,2,3\n", "a.csv: lines with more or fewer values than names"),
    ],
)
def test_what_is_no_file_of_results(
    name: str, text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text)
    assert main(["diff", str(tmp_path / name), str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err
    assert main(["diff", str(tmp_path / "none.csv"), str(tmp_path / name)]) == 2
    assert "none.csv: No such file" in capsys.readouterr().err


def test_parquet(trace: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    files = [str(tmp_path / f"a.{suffix}") for suffix in ("parquet", "csv")]
    assert main(["compare", trace, "--parquet", files[0], "--csv", files[1]]) == 0
    assert differences(read_rows(files[0]), read_rows(files[1])) == []
    assert main(["diff", *files]) == 0
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    assert main(["diff", str(tmp_path / "b.parquet"), files[1]]) == 2
