"""What a TLB holds and has counted, for Python; header: tlb/readout.pxd."""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.tlb.attach cimport counters_of_extensions
from fastmmu.tlb.entries cimport CAUSES, CTX_LIVE, KINDS, L1S, NO_EPT, PSC, TlbArray, TlbContext, UNITS, set_at
from fastmmu.tlb.replacement cimport way_at

from fastmmu.tlb.geometry import PAGES, TABLES

UNIT_NAMES = ("l1i", "l1d", "l1s", "l2i", "l2", "gpm", "psc", "epsc")
KIND_NAMES = ("local", "global", "psc", "gpm", "epsc")
CAUSE_NAMES = (
    "cr3", "cr0", "cr4", "invlpg", "invpcid_0", "invpcid_1", "invpcid_2", "invpcid_3", "invvpid_0", "invvpid_1",
    "invvpid_2", "invvpid_3", "invept_1", "invept_2", "transition", "vmfunc", "page_fault", "ept_violation", "rewalk",
    "contexts", "reset", "invlpga", "tlb_control_1", "tlb_control_3", "tlb_control_7",
)
assert len(UNIT_NAMES) == UNITS and len(KIND_NAMES) == KINDS and len(CAUSE_NAMES) == CAUSES


cdef dict live_of(Tlb *t):
    return {UNIT_NAMES[u]: sum([t.unit[u].live[c] for c in range(4)]) for u in range(UNITS)}


cdef list entries_of(Tlb *t):
    cdef TlbArray *a
    cdef TlbContext *x
    cdef uint64_t key
    cdef uint32_t i, s, place, w = 0
    found = []
    for i in range(t.arrays):
        a = t.at[i]
        names = TABLES if a.unit >= PSC else PAGES
        for s in range(a.sets):
            for place in range(a.ways):
                w = way_at(a, set_at(a, s), place, w)
                key = set_at(a, s).way[w]
                if t.state[key >> 2 & 0xFFFF] == CTX_LIVE:
                    x = &t.ctx[key >> 2 & 0xFFFF]
                    root = None if x.eptrta == NO_EPT else x.eptrta
                    found.append((UNIT_NAMES[a.unit], KIND_NAMES[x.kind], x.vpid, x.pcid, root, key >> 18 << 12,
                                  names[key & 3], set_at(a, s).way[a.pad + w]))
    return found


cdef dict counters_of(Tlb *t):
    c = &t.c
    out = {}
    for u, name in enumerate(UNIT_NAMES):
        sizes = TABLES if u >= PSC else PAGES
        hits = {size: c.hits[u][i] for i, size in enumerate(sizes)}
        if u <= L1S:
            hits["4k"] = c.lookups[u] - c.misses[u] - hits["2m"] - hits["1g"]
        out[name] = {"lookups": c.lookups[u], "hits": hits, "misses": c.misses[u], "fills": c.fills[u],
                     "evictions": c.evictions[u]}
    causes = [i for i in range(CAUSES) if c.flushes[i] or any([c.invalidated[i][u] for u in range(UNITS)])]
    out["flushes"] = {CAUSE_NAMES[i]: c.flushes[i] for i in causes}
    out["invalidated"] = {
        CAUSE_NAMES[i]: {name: c.invalidated[i][u] for u, name in enumerate(UNIT_NAMES) if c.invalidated[i][u]}
        for i in causes
    }
    out["refill_misses"] = {CAUSE_NAMES[i]: c.refill_misses[i] for i in range(CAUSES) if c.refill_misses[i]}
    out["survivals"] = c.survivals
    if t.peers:
        out["displaced"] = {name: c.displaced[u] for u, name in enumerate(UNIT_NAMES) if c.displaced[u]}
        out["sibling_misses"] = c.sibling_misses
    if t.extension != NULL:
        out["extensions"] = counters_of_extensions(t)
    return out
