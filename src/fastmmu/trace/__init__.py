"""Traces: files in, batches of events out.

    file ── ByteSource ── reader (lackey, npy, arrow, ...) ── combinators ── Batch(op, size, addr) ── simulator
            decompresses   one file each                       data_only, head, interleave, exits_every

    base, events         what a trace is; a batch of its events
    formats              the table of formats
    read, names          which format a file has, by content and by name
    source, codecs, zstd_blocks, ahead, archive   bytes of a file, decompressed on the way, in a thread; out of a .zip
    filetrace            what readers of files share
    lackey, champsim, cloudsuite, drmemtrace, gem5, npy, npz, arrow, parquet   the formats
    table                columns of the last two
    text                 lines with columns; of it: dinero, pinatrace, csv, hexlines, perf
    v2p                  where the pages of a drmemtrace lay in physical memory
    lackey_parse, drmemtrace_parse, gem5_parse, text_parse   their kernels; for Python: lackey_parse_py,
                         drmemtrace_parse_py, gem5_parse_py, text_parse_py
    parse_columns, long_access, swar   what kernels share
    magics               kinds of files by their first bytes, those of image/ as well
    foreign              files that are no traces, by name, with the remedy
    kvm_log              what a log of KVM's trace points says
    kvm_log_read, kvm_names   reading one; the names of VM exits in it
    system, system_cpus  system traces: what a whole machine did; its CPUs, and the order of records
    combine, tpr         traces made of traces; TPR traffic put in between
    identity             a trace that tells its content
    survey               what a trace holds
    write, bundle        writing them; those that come with the package
    record, valgrind     a program under Valgrind, as a trace; where Valgrind is and what it can run
    valgrind_log         its log on the way

Everything streams: memory does not grow with the length of a trace.

Imports the vocabulary, the constants of `arch`, `machine.identity` and `machine.records`, no other kernel.

To add a format: its module (what is in it, `formats` says) and its row in `formats`; names, `--format`, the help and
error messages follow. tests/trace/test_files.py then takes it through every compression and batch length.
"""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.trace.base import Trace
    from fastmmu.trace.bundle import bundled
    from fastmmu.trace.combine import exits_every, interleave
    from fastmmu.trace.events import CHUNK, EVENT_DTYPE, Batch
    from fastmmu.trace.formats import FORMATS
    from fastmmu.trace.kvm_log import KvmLog
    from fastmmu.trace.kvm_log_read import read_kvm_log
    from fastmmu.trace.read import read_trace
    from fastmmu.trace.tpr import TprProfile, tpr_profile, with_tpr
    from fastmmu.trace.write import write_trace

__all__ = [
    "CHUNK",
    "EVENT_DTYPE",
    "FORMATS",
    "Batch",
    "KvmLog",
    "TprProfile",
    "Trace",
    "bundled",
    "exits_every",
    "interleave",
    "read_kvm_log",
    "read_trace",
    "tpr_profile",
    "with_tpr",
    "write_trace",
]

_HOMES = {
    "fastmmu.trace.base": ("Trace",),
    "fastmmu.trace.bundle": ("bundled",),
    "fastmmu.trace.combine": ("exits_every", "interleave"),
    "fastmmu.trace.events": ("CHUNK", "EVENT_DTYPE", "Batch"),
    "fastmmu.trace.formats": ("FORMATS",),
    "fastmmu.trace.kvm_log": ("KvmLog",),
    "fastmmu.trace.kvm_log_read": ("read_kvm_log",),
    "fastmmu.trace.read": ("read_trace",),
    "fastmmu.trace.tpr": ("TprProfile", "tpr_profile", "with_tpr"),
    "fastmmu.trace.write": ("write_trace",),
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)
