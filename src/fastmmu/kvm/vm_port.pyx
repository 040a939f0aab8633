"""What a VMM in Python finds of its virtual machine: what it is, what it owes and counts before the next VM entry."""

from libc.stdint cimport uint64_t

from fastmmu._arguments cimport flag, guest_physical_address, page_address, within, word
from fastmmu.arch.bits cimport ONES
from fastmmu.kvm.kvm cimport NOWHERE
from fastmmu.kvm.kvm cimport Modes as ModesState
from fastmmu.mmu.dirty_log cimport dirty_collect, dirty_drain
from fastmmu.mmu.pages cimport mmu_hpa
from fastmmu.mmu.tables_port cimport refuse_outside
from fastmmu.paging.memory cimport mem_holds, mem_read64

from typing import NamedTuple

from fastmmu.errors import BusError, PolicyError, WrongTypeError


class Modes(NamedTuple):
    """How a machine runs a guest in each paging mode."""

    ept: bool  # else shadow paging
    amd: bool  # nested paging runs every mode, and CR0 and CR4 are intercepted otherwise
    unrestricted: bool  # the processor runs a guest without paging
    identity: int  # guest-physical address of the identity table; 0: there is none
    keys: bool  # shadow tables carry the guest's protection keys
    pcid: bool  # translations of shadow tables are tagged by the guest's PCID


cdef object _BOARD = object()   # none but what word_of_board() is given to has it


cdef object word_of_board():
    return _BOARD


cdef int made_of(made, str what) except -1:
    if made is not _BOARD:
        raise WrongTypeError(f"{what}; it is not made by hand")
    return 0


cdef class VmPort:
    """The state of a VM, of which :class:`fastmmu.kvm.port.VirtualMachine` is one.

    Threads: of the thread that runs the machine, while its VMM handles a VM exit; refused elsewhere (PolicyError).
    """

    def __cinit__(self, made=None):
        made_of(made, "a VM is what a fastmmu.Kvm gets")
        self.placing = NOWHERE

    cdef int refuse(self) except -1:
        return refuse_outside()

    # ---- what it is, and what it owes ------------------------------------------------------------------------

    @property
    def shadow(self):
        """Shadow paging; else EPT."""
        self.inside()
        return self.kvm.shadow != 0

    @property
    def modes(self):
        """How the machine runs a guest in each paging mode, a :class:`Modes` (kvm_policy.md §3.4)."""
        cdef const ModesState *m = &self.kvm.modes
        self.inside()
        if self._modes is None:
            self._modes = Modes(m.ept != 0, m.amd != 0, m.unrestricted != 0, int(m.identity), m.keys != 0, m.pcid != 0)
        return self._modes

    @property
    def enable_vpid(self):
        """Its vCPUs get VPIDs (``Config.vpid``); of AMD they have ASIDs instead."""
        self.inside()
        return self.board.config.vpid and not self.kvm.modes.amd

    @property
    def flush_by_asid(self):
        """Of AMD: a flush is asked of TLB_CONTROL; else a vCPU gets a new ASID (``Config.flush_by_asid``)."""
        self.inside()
        return self.kvm.flush_by_asid != 0

    @property
    def noncoherent(self):
        """A device writes memory past the caches: the guest's own memory types count (kvm_policy.md §7)."""
        self.inside()
        return self.kvm.mmu.noncoherent != 0

    @property
    def ignore_cd(self):
        """KVM_X86_QUIRK_CD_NW_CLEARED: the guest's CR0.CD changes nothing."""
        self.inside()
        return self.kvm.mmu.ignore_cd != 0

    @property
    def uncached(self):
        """The guest's CR0.CD, as the MMU goes by it; a bool."""
        self.inside()
        return self.kvm.mmu.uncached != 0

    @uncached.setter
    def uncached(self, value):
        self.inside()
        self.kvm.mmu.uncached = flag("uncached", value)

    def read_guest(self, gpa, count=1):
        """Qwords of guest-physical memory, a tuple of ints, all in one page; None: no memory is there.

        :param gpa: of the first, a multiple of 8. :param count: 1 to 512.
        """
        cdef uint64_t first = guest_physical_address("gpa", gpa), n = within("count", count, 1, 512, PolicyError), at
        self.inside()
        if first & 7 or (first & 0xFFF) + 8 * n > 4096:
            raise PolicyError(f"gpa={first:#x}, count={n}: give a multiple of 8, and qwords of one page")
        at = mmu_hpa(&self.kvm.mmu, first)
        if at == ONES or not mem_holds(self.kvm.mmu.mem, at, 8 * n):
            return None
        return tuple([mem_read64(self.kvm.mmu.mem, at + 8 * i) for i in range(n)])

    @property
    def pml(self):
        """Writes are logged by the processor, where any are (``Config.pml``)."""
        self.inside()
        return self.kvm.mmu.policy.pml != 0

    @property
    def tdp(self):
        """EPT by the TDP MMU (``Config.tdp_mmu``)."""
        self.inside()
        return self.kvm.mmu.policy.tdp != 0

    @property
    def tables_made(self):
        """Table pages made so far, a count."""
        self.inside()
        return self.kvm.mmu.counters.tables_made

    @property
    def logged(self):
        """A dirty log of any slot is on."""
        cdef int i
        self.inside()
        for i in range(self.kvm.mmu.slots.n):
            if self.kvm.mmu.slots.slot[i].dirty != NULL:
                return True
        return False

    @property
    def omit(self):
        """Flushes to leave out, an int of :class:`fastmmu.kvm.policy.requests.Omit` (:attr:`Vmm.omit`)."""
        self.inside()
        return self.kvm.omit

    @property
    def flush(self):
        """Entries of its tables lost rights, or went: cached translations may be stale until every vCPU has flushed;
        a bool. The MMU's primitives set it, whoever flushes clears it."""
        self.inside()
        return self.kvm.mmu.flush != 0

    @flush.setter
    def flush(self, value):
        self.inside()
        self.kvm.mmu.flush = flag("flush", value)

    @property
    def flush_requests(self):
        """Flushes of every vCPU that were requested so far (KVM's remote_tlb_flush_requests), a count."""
        self.inside()
        return self.kvm.mmu.counters.flush_requests

    @property
    def flush_requests_served(self):
        """:attr:`flush_requests` when flushes were counted last."""
        self.inside()
        return self.kvm.stats.served

    @flush_requests_served.setter
    def flush_requests_served(self, value):
        self.inside()
        self.kvm.stats.served = word("flush_requests_served", value)

    @property
    def owed(self):
        """Kinds of flushes that KVM counts at the next VM entry, an int of
        :class:`fastmmu.kvm.policy.requests.Request`."""
        self.inside()
        return self.kvm.stats.owed

    @owed.setter
    def owed(self, value):
        self.inside()
        self.kvm.stats.owed = within("owed", value, 0, 7, PolicyError)

    @property
    def roots_gone(self):
        """Roots that went while in use: Linux frees them, and counts them once more, at the next VM entry; a count."""
        self.inside()
        return self.kvm.stats.roots_gone

    @roots_gone.setter
    def roots_gone(self, value):
        self.inside()
        self.kvm.stats.roots_gone = within("roots_gone", value, 0, 0xFFFFFFFF, PolicyError)

    @property
    def tables_early(self):
        """Table pages that are made before the VM entry at which Linux makes them, a count."""
        self.inside()
        return self.kvm.stats.tables_early

    @tables_early.setter
    def tables_early(self, value):
        self.inside()
        self.kvm.stats.tables_early = word("tables_early", value)

    def count_zaps(self, n):
        """Count `n` table pages as gone (KVM's mmu_shadow_zapped) that no primitive counts: roots freed late."""
        self.inside()
        self.kvm.mmu.counters.zaps += word("n", n)

    def count_flush_request(self):
        """Count a flush requested of every vCPU (KVM's remote_tlb_flush_requests)."""
        self.inside()
        self.kvm.mmu.counters.flush_requests += 1

    def count_remote(self, *, flushes=0, requests=0, ipis=0):
        """Count what :meth:`fastmmu.Host.totals` gives of remote flushes: changes that other vCPUs had to flush for,
        requests to another vCPU, IPIs for them; three counts."""
        self.inside()
        cdef uint64_t n = word("flushes", flushes), m = word("requests", requests), k = word("ipis", ipis)
        self.kvm.remote_flushes += n
        self.kvm.flush_requests += m
        self.kvm.ipis += k

    @property
    def ring_full(self):
        """The dirty ring of the vCPU that runs has no room left that is not kept free (kvm_policy.md §4.2)."""
        self.inside()
        return self.kvm.mmu.slots.ring.size and self.kvm.mmu.slots.ring.used >= self.kvm.mmu.slots.ring.room

    def read_rings(self):
        """User space reads the dirty rings of all vCPUs, as after an exit to it, and resets them (``ring_full``)."""
        self.inside()
        self.kvm.mmu.counters.ring_full += 1
        dirty_collect(&self.kvm.mmu)

    def log_writes(self, address, index):
        """Take a page-modification log into the dirty log: of 512 qwords at a host-physical address those behind
        `index`, all of them where the index is 512 or more (ept.md §7).

        :raises BusError: the log does not lie in memory.
        """
        cdef uint64_t at = page_address("address", address), last = within("index", index, 0, 0xFFFF, PolicyError)
        self.inside()
        if not mem_holds(self.kvm.mmu.mem, at, 4096):
            raise BusError(f"a page-modification log at {at:#x}: memory has {int(self.kvm.mmu.mem.nbytes):#x} bytes")
        dirty_drain(&self.kvm.mmu, at, last)
