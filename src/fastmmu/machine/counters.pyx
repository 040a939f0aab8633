"""Counters of a run, by name: the rows of fastmmu.counters.

    row of the table ──► sum of words of structs (once, at import) ──► Word: added up for each dict

A struct's words are found by name: each is given its own number, and Cython makes a dict of the struct.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc

from fastmmu.arch.vmx cimport N_REASONS
from fastmmu.cpu.interrupts cimport ApicCounters
from fastmmu.cpu.vcpu cimport Counters
from fastmmu.kvm.agile cimport kvm_mmu_counters
from fastmmu.kvm.kvm cimport Kvm, KvmCounters
from fastmmu.machine.events cimport Run
from fastmmu.machine.kernel_state cimport GuestCounters
from fastmmu.mmu.mmu cimport MmuCounters
from fastmmu.tlb.lookup cimport L1D, L1I, L1S, L2, L2I, TlbCounters

from fastmmu.counters import APIC, COUNTERS, reader, sums
from fastmmu.exits import REASON_NAMES

cdef enum:
    WORDS = 1 << 12             # of a struct, at most

cdef enum Room:
    CPU, TLB, MMU, GUEST, KVM, VM, APIC_ROOM, ROOMS

cdef struct Word:               # a summand of a row
    uint32_t row
    uint32_t room               # Room
    uint32_t at
    uint64_t factor             # modulo 2**64

cdef struct Table:
    Word *word
    uint32_t n


cdef void number(void *struct, size_t nbytes) noexcept:
    # each word of it, by its place
    cdef size_t i
    for i in range(nbytes // 8):
        (<uint64_t *> struct)[i] = i


cdef dict structs():
    # the structs of a run, room -> member -> Sum; what a room does not count itself, but names, is put together here
    cdef Counters cpu
    cdef TlbCounters tlb
    cdef MmuCounters mmu
    cdef GuestCounters guest
    cdef KvmCounters kvm
    cdef ApicCounters apic
    number(&cpu, sizeof(cpu))
    number(&tlb, sizeof(tlb))
    number(&mmu, sizeof(mmu))
    number(&guest, sizeof(guest))
    number(&kvm, sizeof(kvm))
    number(&apic, sizeof(apic))
    found = {room: sums(members, which * WORDS) for room, which, members in (
        ("cpu", CPU, cpu), ("tlb", TLB, tlb), ("mmu", MMU, mmu), ("guest", GUEST, guest), ("kvm", KVM, kvm),
        ("apic", APIC_ROOM, apic))}
    lookups, misses, hits = [found["tlb"][name] for name in ("lookups", "misses", "hits")]
    found["tlb"] = {
        "l1i_hits": lookups[L1I] - misses[L1I], "l1i_misses": misses[L1I],
        "l1d_hits": lookups[L1D] + lookups[L1S] - misses[L1D] - misses[L1S],
        "l1d_misses": misses[L1D] + misses[L1S], "stlb_hits": sum(hits[L2]) + sum(hits[L2I]),
        **{name: found["tlb"][name] for name in ("extension_reads", "extension_refs", "background_refs")},
        "sibling_evictions": sum(found["tlb"]["displaced"]), "sibling_misses": found["tlb"]["sibling_misses"],
    }
    found["kvm"] |= sums({"remote_flushes": 0, "flush_requests": 1, "ipis": 2}, VM * WORDS)
    found["cpu"]["exits_by_reason"] = sums(0) * 0       # a dict of its own
    return found


cdef Table table_of(rows) except *:
    cdef Table t
    cdef uint32_t n = 0
    named = reader(rows)(structs())
    words = [(i, word, factor) for i, row in enumerate(named.values()) for word, factor in row.words.items() if factor]
    t.n = len(words)
    t.word = <Word *> calloc(t.n, sizeof(Word))
    if t.word == NULL:
        raise MemoryError
    for row, word, factor in words:
        t.word[n] = Word(row, word // WORDS, word % WORDS, factor % (1 << 64))
        n += 1
    return t


cdef list _names = [row.name for row in COUNTERS], _apic_names = [row.name for row in APIC]
cdef dict _none = dict.fromkeys(_names, 0), _apic_none = dict.fromkeys(_apic_names, 0)
cdef Table _counters = table_of(COUNTERS), _apic = table_of(APIC)
cdef enum:
    ROWS = 256
assert len(_names) <= ROWS and len(_apic_names) <= ROWS


cdef add_up(dict found, list names, const Table *t, uint64_t **room):
    # rows that are not 0 into the dict, which has them all as 0
    cdef uint64_t[ROWS] total
    cdef uint32_t i
    cdef const Word *w
    for i in range(<uint32_t> len(names)):
        total[i] = 0
    for i in range(t.n):
        w = &t.word[i]
        total[w.row] += w.factor * room[w.room][w.at]
    for i in range(<uint32_t> len(names)):
        if total[i]:
            found[names[i]] = total[i]


cdef dict counters_of(Run *run, TlbCounters *t):
    # of a vCPU, with those of its VM
    cdef Kvm *kvm = run.vcpu.kvm
    cdef uint64_t[3] vm = [kvm.remote_flushes, kvm.flush_requests, kvm.ipis]
    cdef uint64_t *exits = run.vcpu.cpu.c.exits
    cdef uint64_t *room[ROOMS]
    cdef dict found = _none.copy(), more
    cdef MmuCounters mmu = kvm_mmu_counters(kvm)
    cdef int i
    room[<int> CPU] = <uint64_t *> &run.vcpu.cpu.c
    room[<int> TLB] = <uint64_t *> t
    room[<int> MMU] = <uint64_t *> &mmu
    room[<int> GUEST] = <uint64_t *> &run.c
    room[<int> KVM] = <uint64_t *> &run.vcpu.c
    room[<int> VM] = vm
    add_up(found, _names, &_counters, room)
    found["exits_by_reason"] = {REASON_NAMES[i]: exits[i] for i in range(N_REASONS) if exits[i]}
    if run.vcpu.irq != NULL:
        room[<int> APIC_ROOM] = <uint64_t *> &run.vcpu.irq.c
        more = _apic_none.copy()
        add_up(more, _apic_names, &_apic, room)
        found |= more
    return found
