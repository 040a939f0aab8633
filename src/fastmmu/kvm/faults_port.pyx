"""A fault of the guest's in the hands of a VMM in Python: what was accessed, the guest's tables, what comes of it."""

from libc.stdint cimport uint64_t
from libc.string cimport memset

from collections import namedtuple

from fastmmu._arguments cimport instance, within, word
from fastmmu.arch.pferr cimport PF_ID, PF_U, PF_W
from fastmmu.arch.types cimport (
    ACC_R, ACC_W, ACC_X, FAULT_BUS, FAULT_NONE, FAULT_PF, MODE_NONE, GuestPath, Paging, Walk,
)
from fastmmu.cpu.vcpu cimport ACC_PDPTES, ACT_EMULATED, ACT_INJECT_PF, Vcpu
from fastmmu.kvm.faults cimport emulate_store, inject_no_table
from fastmmu.kvm.kvm cimport KvmVcpu
from fastmmu.kvm.vcpu_port cimport VcpuPort
from fastmmu.mmu.mmu cimport ROLE_KEYS, Mmu
from fastmmu.mmu.tables_port cimport TableWalk
from fastmmu.mmu.shadow cimport log_flags, no_memory
from fastmmu.mmu.sync cimport guest_entry, shadow_drop, shadow_invlpg, sync_from, sync_page, usable
from fastmmu.paging.guest cimport page_fault, reachable
from fastmmu.paging.walk cimport walk_path, walk_silent

from fastmmu.errors import PolicyError, WrongTypeError

cdef object _VCPU = object()    # none but faults_of has it

GuestWalk = namedtuple("GuestWalk", "fault, gpa, error_code, writable, user, dirty, key, smep, path")
GuestWalk.__doc__ = """A walk of the guest's tables (Linux' struct guest_walker).

fault: "", "pf" (the guest's own #PF), "bus" (a table lies where the VMM does not read). gpa: of the data, or of the
table that is missing. error_code: of the #PF. writable, user: R/W, U/S ANDed over all levels; dirty: D of the last
entry. key: its protection key. smep: CR4.SMEP. path: (level, entry) from the root down; () where the guest does not
page."""


cdef Faults faults_of(VcpuPort port):
    cdef Faults faults = Faults.__new__(Faults, _VCPU)
    faults.port = port
    return faults


cdef class Faults:
    """The fault of a vCPU that exited, ``vcpu.faults``, and its guest's tables under shadow paging.

    Threads: as of :class:`fastmmu.kvm.vm_port.VmPort`.
    """

    def __cinit__(self, made=None):
        if made is not _VCPU:
            raise WrongTypeError("Faults are the `faults` of a vCPU; they are not made by hand")

    cdef Mmu *shadows(self, given, bint table) except NULL:
        # the MMU, which the walk is of; `table`: at a page of it that shadows a page table
        cdef TableWalk walk = instance("walk", given, TableWalk)
        cdef Mmu *mmu = self.port.loaded("faults")
        self.shadow()
        if walk.port.mmu != mmu:
            raise PolicyError("this walk is of another machine's tables")
        if table and (walk.sp().direct or walk.it.level != 1):
            raise PolicyError("the table page of this walk is no shadow of a page table")
        walk.sp()
        return mmu

    # ---- what comes of it ------------------------------------------------------------------------------------

    def emulated(self, gpa):
        """The VMM carries out the access, to guest-physical address `gpa`: returns Action.EMULATED."""
        cdef uint64_t at = word("gpa", gpa)
        self.port.loaded("faults")
        self.port.v.emulated = at
        return ACT_EMULATED

    def inject_page_fault(self, address, error_code):
        """A #PF for the guest, with CR2 and error code: returns Action.INJECT_PAGE_FAULT."""
        cdef uint64_t cr2 = word("address", address)
        self.port.loaded("faults")
        self.port.v.error_code = within("error_code", error_code, 0, 0xFFFFFFFF, PolicyError)
        self.port.v.cr2 = cr2
        return ACT_INJECT_PF

    def emulate_store(self, gpa):
        """The guest's store, of the access that faulted, into its table at `gpa`, and what it makes of the shadow
        entries (emulator_write_emulated, kvm_mmu_pte_write; kvm_policy.md §2.2).

        :raises PolicyError: no slot holds the page.
        """
        cdef uint64_t at = word("gpa", gpa)
        cdef Mmu *mmu = self.port.loaded("faults")
        if no_memory(mmu, at) or (at | 0xFFF) >= mmu.guest.nbytes:
            raise PolicyError(f"gpa={int(at):#x}: the guest's tables lie in slot 0")
        emulate_store(self.port.vcpu, at)

    # ---- a guest's table that lies where no memory is --------------------------------------------------------

    @property
    def loads_pdptes(self):
        """It is no access to data that faulted, but the load of the PDPTE registers."""
        self.port.loaded("faults")
        return bool(self.port.v.access == ACC_PDPTES)

    @property
    def loads(self):
        """It is a load that faulted: no store, no fetch, nothing that reads and writes."""
        self.port.loaded("faults")
        return bool(self.port.v.access == ACC_R)

    def table_at(self, gpa):
        """The walk of the access ends at this page for want of memory: a table lies there. The MMIO SPTE that the
        processor met does not tell that from data."""
        cdef uint64_t where = word("gpa", gpa)
        cdef Mmu *mmu = self.port.loaded("faults")
        cdef Vcpu *v = self.port.v
        cdef Paging guest = v.hw
        cdef Walk w
        guest.write_ad = 0
        if v.access == ACC_PDPTES:
            return False
        return bool(walk_silent(&mmu.guest, &guest, NULL, v.access_la, v.access, &w) == FAULT_BUS
                    and w.gpa >> 12 == where >> 12)

    def inject_no_table(self):
        """What KVM's emulator gives where a table of the guest's lies in no memory: its entry counts as not present,
        PDPTEs that cannot be read are refused (kvm_policy.md §4.4). Returns the :class:`fastmmu.Action`."""
        self.port.loaded("faults")
        return inject_no_table(self.port.v)

    # ---- shadow paging: the guest's tables -------------------------------------------------------------------

    def walk(self, address, error_code):
        """Walk the guest's tables as the access of a #PF did, with its rights; A and D are set, and logged
        (FNAME(walk_addr); kvm_policy.md §2.1).

        :param address: linear. :param error_code: of the #PF: W, U and I/D count. :returns: :class:`GuestWalk`.
        """
        cdef uint64_t la = word("address", address), code = word("error_code", error_code)
        cdef Mmu *mmu = self.port.loaded("faults")
        cdef KvmVcpu *vcpu = self.port.vcpu
        cdef Vcpu *v = self.port.v
        cdef int acc = ACC_W if code & PF_W else ACC_X if code & PF_ID else ACC_R, fault, level
        cdef GuestPath path
        cdef Walk w
        cdef str why = ""
        self.shadow()
        vcpu.guest.user = code & PF_U != 0
        vcpu.guest.ac = v.hw.ac
        vcpu.guest.implicit = v.hw.implicit
        vcpu.guest.pkr_user = v.hw.pkr_user
        memset(&w, 0, sizeof(w))
        if vcpu.guest.mode == MODE_NONE:
            return GuestWalk("", la, 0, True, True, True, 0, False, ())
        fault = walk_path(&mmu.guest, &vcpu.guest, NULL, la, acc, &w, &path)
        log_flags(mmu, &path)
        if fault == FAULT_BUS and no_memory(mmu, w.gpa):
            page_fault(&vcpu.guest, &w, acc, 0)
            fault = FAULT_PF
        if fault != FAULT_NONE:
            why = "pf" if fault == FAULT_PF else "bus"
        return GuestWalk(why, w.gpa, w.error_code if fault == FAULT_PF else 0, bool(w.rw), bool(w.us), bool(w.dirty),
                         w.pkey, bool(vcpu.guest.smep),
                         tuple([(level, path.entry[level]) for level in range(path.top, path.level - 1, -1)])
                         if fault == FAULT_NONE else ())

    def shadow(self):
        """Nothing under shadow paging. :raises PolicyError: over EPT, where the guest's tables are its own matter."""
        self.port.vm.inside()
        if not self.port.vm.kvm.shadow:
            raise PolicyError("over EPT the VMM does not walk the guest's tables")

    @property
    def keys(self):
        """Entries of the shadow tables carry the guest's protection keys."""
        return bool(self.port.loaded("faults").vcpu.role & ROLE_KEYS)

    def guest_entry(self, walk):
        """What the guest's page table holds for an entry of its shadow, an int; None: it lies in no memory."""
        cdef Mmu *mmu = self.shadows(walk, True)
        cdef uint64_t entry = 0
        return entry if guest_entry(mmu, (<TableWalk> walk).sp(), (<TableWalk> walk).it.index, &entry) else None

    def usable(self, entry):
        """An entry of the guest's page table to map without an access: present, used before (A), and without reserved
        bits."""
        self.port.loaded("faults")
        return bool(usable(&self.port.vcpu.guest, word("entry", entry)))

    def frame(self, entry):
        """The guest-physical page that an entry of the guest's page table leads to, gpa >> 12."""
        self.port.loaded("faults")
        return (word("entry", entry) & self.port.vcpu.guest.frame) >> 12

    # ---- shadow paging: out of sync --------------------------------------------------------------------------

    def sync_page(self, walk):
        """Every entry of its table page follows the guest's again (kvm_sync_page; kvm_policy.md §2.2); returns whether
        Linux flushes for that."""
        cdef Mmu *mmu = self.shadows(walk, True)
        return bool(sync_page(mmu, &self.port.vcpu.guest, (<TableWalk> walk).it.owner))

    def sync_below(self, walk):
        """All unsync pages below its table page are write-protected, then synchronized (mmu_sync_children)."""
        cdef Mmu *mmu = self.shadows(walk, False)
        sync_from(mmu, &self.port.vcpu.guest, (<TableWalk> walk).it.owner)

    def drop(self, address):
        """What a #PF of the guest's does to the shadow entry: an unsync one is read again
        (kvm_inject_emulated_page_fault, which invalidates like the processor). :param address: linear."""
        cdef uint64_t la = word("address", address)
        cdef Mmu *mmu = self.port.loaded("faults")
        self.shadow()
        shadow_drop(mmu, &self.port.vcpu.guest, la)

    def invlpg(self, address):
        """The unsync entry for a linear address goes, below every root that is kept, and the guest's is read anew
        (FNAME(invlpg); kvm_policy.md §2.4)."""
        cdef uint64_t la = word("address", address)
        cdef Mmu *mmu = self.port.loaded("faults")
        self.shadow()
        shadow_invlpg(mmu, &self.port.vcpu.guest, la)

    def reachable(self, address):
        """The linear address is canonical for the guest: anything may be cached of it."""
        self.port.loaded("faults")
        return bool(reachable(word("address", address), self.port.v.hw.la_bits))

    @property
    def invpcid(self):
        """Operands of the INVPCID that exited: (type, PCID, linear address) (tlb.md §4)."""
        self.port.loaded("faults")
        return self.port.v.instruction_cr, self.port.v.invpcid_pcid, self.port.v.source

    @property
    def pcid(self):
        """The PCID in use, as the guest has it."""
        self.port.loaded("faults")
        return self.port.v.hw.pcid
