"""Files of other formats: each is refused by its own name, with the remedy, and never read as something else."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from fastmmu.errors import TraceError
from fastmmu.trace import read_trace, write_trace
from fastmmu.trace.foreign import foreign
from tests.support.trace_files import COMPRESS, cloudsuite, events, record, sample

MAPS = r"fastmmu maps"
RECORD = r"--tool=lackey --trace-mem=yes"
FILES = {
    "v2p": (
        b"# of a run\naddress_mapping_group {\n  page_size: 4096\n}\n",
        "a page map of drmemtrace",
        "--v2p takes this",
    ),
    "core": (b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + b"\x04\0\x3e\0", "an ELF core", MAPS),
    "program": (b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + b"\x03\0\x3e\0", "an ELF program", RECORD),
    "lime": (struct.pack("<4sIQQQ", b"EMiL", 1, 0x1000, 0x1FFF, 0), "a LiME image", MAPS),
    "avml": (struct.pack("<4sIQQQ", b"AVML", 2, 0x1000, 0x1FFF, 0), "an AVML image", MAPS),
    "kdump": (b"KDUMP   \6\0\0\0", "a kdump", MAPS),
    "flat": (b"makedumpfile\0\0\0\0", "a flattened kdump", MAPS),
    "dmp": (b"PAGEDU64\x0f", "a Windows crash dump", MAPS),
    "vmss": (b"\xd2\xbe\xd2\xbe\x08", "a VMware snapshot", MAPS),
    "qemu": (b"QEVM\0\0\0\3", "a QEMU migration stream", "dump-guest-memory"),
    "perf": (b"PERFILE2", "a perf.data file", r"perf script -F comm,tid,time,event,addr,ip"),
    "trace-cmd": (b"\x17\x08Dtracing6\0", "a trace-cmd file", "fastmmu kvm-log"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file", r"\.npy"),
    "tar": (bytes(257) + b"ustar\0", "a tar archive", "unpack"),
    "words": (struct.pack("<64Q", *range(0x1000, 0x1040)), "plain binary", r"numpy\.save"),
    "pairs": (struct.pack("<64Q", *[0x7000, 1] * 32), "plain binary", r"numpy\.save"),
    "ramulator": (b"3 20734016\n1 20846400\n8 20841280 20841280\n", "a CPU trace of Ramulator", "physical"),
    "ramulator_2": (b"0 20734016\n2 20846400\n4 20841280\n", "a CPU trace of Ramulator", "physical"),
    "dramsim": (b"0x2000D5C0 IFETCH  30\n0x1FF96FC0 WRITE   160\n", "a DRAMSim trace", "physical"),
    "usimm": (b"51 R 0x6a88d40 0x406af7\n3 W 0x7a0d8c0\n", "a USIMM trace", "physical"),
    "execlog": (
        b'0, 0x100000, 0xfa, "cli "\n0, 0x1, 0x8b07, "movl (%rdi), %eax", load, 0x7f12, RAM\n',
        "a log of QEMU's execlog",
        RECORD,
    ),
    "ftrace": (
        b"# tracer: nop\n   kvmx-95  [000] .....     8.434978: kvm_exit: vcpu 0 reason npf rip 0x1\n",
        "a log of KVM's trace points",
        "fastmmu kvm-log",
    ),
    "perf-script": (
        b" kvmx 109 [000] 27.87: kvm:kvm_entry: vcpu 0, rip 0x10000\n",
        "a log of KVM's",
        "fastmmu kvm-log",
    ),
    "perf-kvm": (b"\n\nAnalyze events for all VMs, all VCPUs:\n", "a table of `perf kvm stat`", "perf record"),
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_format_is_refused_by_its_name(tmp_path: Path, name: str, suffix: str) -> None:
    data, said, remedy = FILES[name]
    path = tmp_path / f"file{suffix}"
    path.write_bytes(COMPRESS[suffix](data))
    with pytest.raises(TraceError, match=rf"file{suffix}: this is {said}.*{remedy}"):
        read_trace(path)
    sure = foreign(data)
    assert sure is not None
    for format in ("lackey", "champsim", "cloudsuite", "npy") if sure.sure else ():
        with pytest.raises(TraceError, match=f"this is {said}"):
            read_trace(path, format)


def test_a_cut_line_at_the_end_of_what_is_looked_at_is_no_matter() -> None:
    line = b"0x2000D5C0 IFETCH  30\n"
    assert foreign(line * 9000) is not None
    assert foreign(line * 9 + b"0x2000D5C0 IFE") is not None
    assert foreign(line * 9 + b"0x2000D5C0\n") is None


def test_another_trace_than_the_name_or_the_caller_says(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="skipped: the extra arrow is not installed")
    path = tmp_path / "t.npy"
    write_trace(sample(9, False), path, "arrow")
    with pytest.raises(TraceError, match=r"this is \.arrow, not \.npy; pass --format arrow, or name it \.arrow"):
        read_trace(path)
    with pytest.raises(TraceError, match=r"this is \.arrow, not ChampSim; leave --format \(format=\) out"):
        read_trace(path, "champsim")


RECORDS = b"".join(record(0x400000 + 4 * n, [0x7000 + n], []) for n in range(50))


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("at", [0, 30, 49])
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (record(0, [5], []), "ip 0x0, is_branch 0"),
        (record(0x400000, [5], [], 2), "ip 0x400000, is_branch 2, branch_taken 2"),
        (
            record(0x400000, [5], []).replace(b"\0\0\1\2", b"\0\1\1\2"),
            "ip 0x400000, is_branch 0, branch_taken 1",
        ),
    ],
    ids=["ip", "branch", "taken"],
)
def test_champsim_is_what_fits_in_every_record(tmp_path: Path, head: bool, at: int, bad: bytes, said: str) -> None:
    """Also where the format is asked for, and where only the first events are."""
    path = tmp_path / "t"
    path.write_bytes(RECORDS[: at * 64] + bad + RECORDS[at * 64 + 64 :])
    with pytest.raises(TraceError, match=f"byte {at * 64}: no trace of ChampSim: {said}.*numpy.save"):
        list((read_trace(path, "champsim").head(2) if head else read_trace(path, "champsim")).batches())
    with pytest.raises(TraceError):
        read_trace(path)


def test_champsim_names_registers_and_goes_on_near_by(tmp_path: Path) -> None:
    path = tmp_path / "t.champsim"
    far = [int(ip) for ip in np.random.default_rng(1).integers(1 << 20, 1 << 40, 50)]
    path.write_bytes(b"".join(record(ip, [], []) for ip in far))
    with pytest.raises(TraceError, match="no trace of ChampSim: only 1 of 50 ips are within 64 KiB of the last"):
        read_trace(path)
    path.write_bytes(b"".join(struct.pack("<8Q", 0x400000 + n, 0, 0, 0, 0x7000, 0, 0, 0) for n in range(50)))
    with pytest.raises(TraceError, match="no trace of ChampSim: no one of 50 records names a register"):
        read_trace(path)


def test_what_is_wrong_behind_the_first_records_is_found_before_it_is_handed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmmu.trace.champsim._FIRST_BYTES", 640)
    path = tmp_path / "t.champsim"
    path.write_bytes(RECORDS[: 40 * 64] + bytes(64) + RECORDS[: 9 * 64])
    batches = read_trace(path).batches(28)  # of four records each
    for _ in range(10):
        assert len(next(batches)) == 8
    with pytest.raises(TraceError, match=f"byte {40 * 64}: no trace of ChampSim: ip 0x0"):
        next(batches)


@pytest.mark.parametrize("name", ["t.cloudsuite", "t.trace.xz", "t"])
@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_the_two_forms_of_champsim_are_told_apart(tmp_path: Path, name: str, n: int) -> None:
    path = tmp_path / name
    data = b"".join(cloudsuite(0x400000 + 3 * i, [0x7000 + i], [0x8000, 0, 0, 0x9000 + i]) for i in range(n))
    path.write_bytes(COMPRESS[".xz" if name.endswith("xz") else ""](data))
    trace = read_trace(path)
    assert trace.format == "cloudsuite"
    got = events(trace, 5)
    assert got.op.tolist() == [3, 0, 1, 1] * n
    assert got.addr.tolist() == [addr for i in range(n) for addr in (0x400000 + 3 * i, 0x7000 + i, 0x8000, 0x9000 + i)]
    if n > 1:
        with pytest.raises(TraceError, match=r"the 96-byte records of CloudSuite.*--format cloudsuite reads them"):
            events(read_trace(path, "champsim"))
    path.write_bytes(COMPRESS[".xz" if name.endswith("xz") else ""](RECORDS))
    with pytest.raises(TraceError, match="the 64-byte records of ChampSim: --format champsim reads them"):
        events(read_trace(path, "cloudsuite"))
