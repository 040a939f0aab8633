"""v2p.textproto: where the pages of a drmemtrace lay."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmmu import Config, Op, TraceError, read_trace, simulate
from fastmmu.trace.v2p import Placed, place_events, read_v2p
from tests.files import folder
from tests.support.drmemtrace_files import MARKER, file
from tests.support.trace_files import events

GOOD = """# VirtualToPhysical
address_mapping_group {
  page_size: 2097152
  address_mapping { virtual_address: 4194304 physical_address: 0x600000 }
  address_mapping {
    virtual_address: 281464337858560
    physical_address: 10485760  # of AArch64
  }
  information { page_count: 2 kind: "a } b" }
}
address_mapping_group: <
  page_size: 4096, address_mapping: < physical_address: 20480; virtual_address: 28672 >
>
information { page_count: 3 }
"""


def text(tmp_path: Path, content: str = GOOD) -> Path:
    path = tmp_path / "v2p.textproto"
    path.write_text(content)
    return path


def rows(trace: object) -> list[tuple[int, int, int]]:
    got = events(trace, 7)
    return list(zip(got.op.tolist(), got.size.tolist(), got.addr.tolist(), strict=True))


def test_its_pages(tmp_path: Path) -> None:
    pages = read_v2p(text(tmp_path))
    assert pages == [Placed(0x400000, 0x600000, 1 << 21), Placed(281464337858560, 10485760, 1 << 21),
                     Placed(0x7000, 0x5000, 4096)]  # fmt: skip
    assert place_events(pages) == [
        (Op.PLACE, 0, 0x400000), (Op.PLACE, 21, 0x600000), (Op.PLACE, 0, 0x7000), (Op.PLACE, 12, 0x5000),
    ]  # fmt: skip
    assert len(place_events([Placed(1 << 30, 1 << 30, 1 << 30)])) == 1024
    assert place_events([Placed(1 << 16, 1 << 17, 1 << 13)])[2:] == [(31, 0, 0x11000), (31, 12, 0x21000)]


def test_the_sample() -> None:
    path = folder() / "traces" / "v2p.textproto"
    if not path.exists():
        pytest.skip(f"skipped: there is no {path}; FASTMMU_FILES names the folder")
    pages = read_v2p(path)
    assert len(pages) == 9
    assert sum(page.nbytes for page in pages) == 18874368


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("nothing", "names no address_mapping"),
        (GOOD.replace("4194304", "4194305"), "line 4: virtual_address 4194305 is no multiple of page_size, 2097152"),
        (GOOD.replace("2097152", "2097153"), "line 3: pages of 2097153 bytes"),
        (GOOD.replace("page_size: 4096", "page_size: 0x10000000000000"), "line 12: pages of"),
        (GOOD.replace("physical_address: 20480; ", ""), "line 12: an address_mapping without a physical_address"),
        (GOOD.replace("4194304", "four"), "no integer|without a virtual"),
        (GOOD.replace("0x600000", "-2097152"), "is no multiple of page_size"),
        (GOOD.replace("0x600000", "0x7fffffe00000"), "is not below"),
        (GOOD + "}", "line 15: a message ends that did not begin"),
        (GOOD[: GOOD.index("information")], "it was cut short"),
        (GOOD + "(", "line 1[45]: this is no v2p"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(TraceError, match=said):
        read_v2p(text(tmp_path, content))


TRACE = file([(0, 8, 0x7010), (0, 8, 0x400020), (0, 8, 0x9000)])


@pytest.mark.parametrize("where", ["", "aux", "trace"])
def test_that_of_a_folder_is_used(tmp_path: Path, where: str) -> None:
    place = tmp_path / "drmemtrace.app.1.dir"
    for name in ("trace", "aux"):
        (place / name).mkdir(parents=True)
    (place / "trace" / "drmemtrace.app.1.trace").write_bytes(TRACE)
    text(place / where)
    plain = [(0, 8, 0x7010), (0, 8, 0x400020), (0, 8, 0x9000)]
    placed = [(31, 0, 0x400000), (31, 21, 0x600000), (31, 0, 0x7000), (31, 12, 0x5000), *plain]
    trace = read_trace(place)
    assert rows(trace) == placed
    assert "1 pages of v2p.textproto are left out" in trace.notes()[0]
    assert rows(read_trace(place / "trace")) == placed
    assert rows(read_trace(place, v2p="none")) == plain
    assert rows(read_trace(place / "trace" / "drmemtrace.app.1.trace")) == plain, "whose pages these are nobody says"
    assert rows(read_trace(place / "trace" / "drmemtrace.app.1.trace", v2p=place / where / "v2p.textproto")) == placed
    assert simulate(trace, Config(mmu="ept")).counters["pages_touched"] == 3


def test_each_process_has_the_pages(tmp_path: Path) -> None:
    for pid in (1, 2):
        (tmp_path / f"{pid}.trace").write_bytes(file([(MARKER, 2, pid), (0, 8, 0x7010)], pid, pid))
    text(tmp_path)
    found = rows(read_trace(tmp_path))
    assert [(op, addr) for op, size, addr in found if op != Op.PLACE or size == 12] == [
        (31, 0x5000), (0, 0x7010), (16, 1), (31, 0x5000), (0, 0x7010),
    ]  # fmt: skip


def test_markers_say_it_as_well(tmp_path: Path) -> None:
    path = tmp_path / "t.trace"
    path.write_bytes(file([(10, 4, 0x1000), (MARKER, 15, 0x5000), (MARKER, 17, 0x7000), (0, 8, 0x7010)]))
    assert rows(read_trace(path)) == [(3, 4, 0x1000), (31, 0, 0x7000), (31, 12, 0x5000), (0, 8, 0x7010)]
    assert rows(read_trace(path, v2p="none")) == [(3, 4, 0x1000), (0, 8, 0x7010)]
    for chunk in (1, 2, 3):
        assert len(events(read_trace(path), chunk)) == 4
    assert simulate(read_trace(path), Config(mmu="shadow")).counters["pages_touched"] == 2


def test_it_is_for_drmemtrace(tmp_path: Path) -> None:
    (tmp_path / "t.lackey").write_text(" L 1000,4\n")
    with pytest.raises(TraceError, match="v2p is for drmemtrace, this is lackey"):
        read_trace(tmp_path / "t.lackey", v2p=text(tmp_path))
