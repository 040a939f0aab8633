"""The roots of the VMM's tables that a vCPU has: the one in use, and those kept for their next use
(kvm_policy.md §2.4)."""

from libc.stdint cimport uint64_t

from fastmmu._arguments cimport many, within
from fastmmu.arch.bits cimport ONES
from fastmmu.arch.types cimport MODE_32, MODE_NONE, MODE_PAE, Paging
from fastmmu.kvm.vcpu_port cimport VcpuPort
from fastmmu.mmu.mmu cimport NO_SP, PAE_LEVELS, ROLE_4_BYTE, ROLE_PAE, Mmu
from fastmmu.mmu.pages cimport mmu_forget_roots, mmu_zap_all
from fastmmu.mmu.roots cimport (
    mmu_common_root, mmu_forget_previous, mmu_root_found, mmu_root_kept, mmu_roots, mmu_set_pae_roots, mmu_set_role,
    mmu_set_root, mmu_write_pdptes,
)
from fastmmu.mmu.sync cimport sync_every_root, sync_roots

from fastmmu.errors import PolicyError, WrongTypeError

cdef object _VCPU = object()    # none but roots_of has it


cdef Roots roots_of(VcpuPort port):
    cdef Roots roots = Roots.__new__(Roots, _VCPU)
    roots.port = port
    return roots


cdef class Roots:
    """The roots of a vCPU, ``vcpu.roots``: of the tables that the processor walks while the guest runs. Under shadow
    paging each guest CR3 has one, keyed by (gfn, role); over EPT there is one for all vCPUs.

    Methods that load one return False where that is not possible: no table page is left (:attr:`out_of_tables`), or no
    memory is behind the guest's own root. What the processor walks is written by ``vmwrite(Field.GUEST_CR3)``,
    ``vmwrite(Field.EPTP)``.

    Threads: as of :class:`fastmmu.kvm.vm_port.VmPort`.
    """

    def __cinit__(self, made=None):
        if made is not _VCPU:
            raise WrongTypeError("Roots are the `roots` of a vCPU; they are not made by hand")

    cdef int shadow(self) except -1:
        if not self.port.vm.kvm.shadow:
            raise PolicyError("over EPT the root is none of the guest's; use load_direct()")
        return 0

    # ---- loading ---------------------------------------------------------------------------------------------

    def set_role(self, role):
        """What the guest's registers make of its tables (kvm_policy.md §1): 8 bits, NXE 1, WP 2, SMEP without WP 4,
        SMAP without WP 8, entries of 4 bytes 10H, PSE 20H, PAE 40H, protection keys 80H. Roots of another role are not
        kept.

        :raises PolicyError: the guest's tables (``vcpu.walk_guest_by``) have entries of another size, or other levels.
        """
        cdef int wanted = within("role", role, 0, 0xFF, PolicyError)
        cdef Mmu *mmu = self.port.loaded("roots")
        cdef const Paging *guest = &self.port.vcpu.guest
        self.shadow()
        if ((wanted & ROLE_4_BYTE != 0) != (guest.mode == MODE_32)
                or (wanted & ROLE_PAE != 0) != (guest.mode == MODE_PAE)):
            raise PolicyError(f"role={wanted:#x}: bits 10H and 40H are not what the guest's tables have")
        mmu_set_role(mmu, wanted, guest.levels if guest.levels >= 4 else PAE_LEVELS)

    def load(self, gfn):
        """The root that shadows a guest's top table, of a guest with 4 or 5 levels.

        :param gfn: page number of that table.
        """
        cdef uint64_t page = within("gfn", gfn, 0, ONES >> 12, PolicyError)
        cdef Mmu *mmu = self.port.loaded("roots")
        self.shadow()
        if mmu.vcpu.root_level == PAE_LEVELS:
            raise PolicyError("a guest of 32-bit addresses has four roots; use load_pae()")
        return mmu_set_root(mmu, page, False) == 0

    def load_pae(self, gfns):
        """Four roots, one a GB, of a guest of 32-bit addresses: page numbers of its page directories, or None where a
        PDPTE is not present; of a guest that does not page the first page of each GB. Writes the PDPTEs."""
        cdef uint64_t pages[4]
        cdef Mmu *mmu = self.port.loaded("roots")
        cdef int i
        given = many("gfns", gfns)
        self.shadow()
        if mmu.vcpu.root_level != PAE_LEVELS:
            raise PolicyError("a guest with 4 or 5 levels has one root; use load()")
        if len(given) != 4:
            raise PolicyError(f"{len(given)} roots; give 4, one a GB")
        for i in range(4):
            pages[i] = ONES if given[i] is None else within("a gfn", given[i], 0, ONES >> 12, PolicyError)
            if self.port.vcpu.guest.mode == MODE_NONE and pages[i] != <uint64_t> i << 18:
                raise PolicyError(f"gfns[{i}]: of a guest that does not page each root is of its own GB, {i << 18:#x}")
        return mmu_set_pae_roots(mmu, pages, self.port.vcpu.guest.mode == MODE_NONE) == 0

    def load_direct(self):
        """The root of the EPT."""
        cdef Mmu *mmu = self.port.loaded("roots")
        if self.port.vm.kvm.shadow:
            raise PolicyError("under shadow paging roots are of the guest's tables; use load() or load_pae()")
        return mmu_set_root(mmu, 0, True) == 0

    def load_common(self):
        """The root of the EPT as another vCPU has it; False: there is none yet, or none any more."""
        cdef Mmu *mmu = self.port.loaded("roots")
        if self.port.vm.kvm.shadow:
            raise PolicyError("under shadow paging vCPUs have roots of their own")
        return mmu_common_root(mmu) != 0

    def write_pdptes(self):
        """The four roots into the PDPTEs in memory, which vCPUs share."""
        mmu_write_pdptes(self.port.loaded("roots"))

    @property
    def pcid(self):
        """PCID with which the root in use was loaded."""
        return self.port.loaded("roots").vcpu.root_pcid

    @pcid.setter
    def pcid(self, value):
        cdef Mmu *mmu = self.port.loaded("roots")
        mmu.vcpu.root_pcid = within("pcid", value, 0, 0xFFF, PolicyError)

    # ---- what there is ---------------------------------------------------------------------------------------

    @property
    def rooted(self):
        """It has roots; else those went, and the next VM entry needs new ones."""
        return self.port.loaded("roots").vcpu.rooted != 0

    @property
    def pae(self):
        """Four roots of PAE tables; else one."""
        return self.port.loaded("roots").vcpu.root_level == PAE_LEVELS

    @property
    def address(self):
        """Host-physical address of the root in use; of PAE tables that of the four PDPTEs.

        :raises PolicyError: there is none.
        """
        cdef Mmu *mmu = self.port.loaded("roots")
        if mmu.vcpu.root_level == PAE_LEVELS:
            return mmu.pdpt
        if mmu.vcpu.root == NO_SP:
            raise PolicyError("no root is loaded")
        return mmu.sp[mmu.vcpu.root].hpa

    @property
    def number(self):
        """Roots that it has, in use or kept."""
        return mmu_roots(self.port.loaded("roots"))

    def found(self, gfn):
        """The root of a guest's top table is the one in use, or one of those kept."""
        cdef uint64_t page = within("gfn", gfn, 0, ONES >> 12, PolicyError)
        return mmu_root_found(self.port.loaded("roots"), page) != 0

    def kept(self, gfn, pcid):
        """That root was loaded with this PCID, and no flush of it came since."""
        cdef uint64_t page = within("gfn", gfn, 0, ONES >> 12, PolicyError)
        cdef uint64_t tag = within("pcid", pcid, 0, 0xFFF, PolicyError)
        return mmu_root_kept(self.port.loaded("roots"), page, tag) != 0

    @property
    def out_of_tables(self):
        """The pool of table pages is used up: :meth:`zap_all`."""
        return self.port.loaded("roots").out_of_tables != 0

    # ---- giving up, bringing in sync -------------------------------------------------------------------------

    def forget(self):
        """It has none any more; the table pages stay."""
        mmu_forget_roots(self.port.loaded("roots").vcpu)

    def forget_previous(self, pcid=None):
        """Those kept for a PCID, or all: their next load brings them in sync."""
        cdef int tag = -1 if pcid is None else <int> within("pcid", pcid, 0, 0xFFF, PolicyError)
        mmu_forget_previous(self.port.loaded("roots"), tag)

    def zap_all(self):
        """Every table page goes, and the roots of all vCPUs; ``vm.flush`` is set. A root must be loaded before the
        guest runs."""
        mmu_zap_all(self.port.loaded("roots"))

    def sync(self):
        """Table pages below the root in use that are out of sync are read again from the guest's."""
        sync_roots(self.port.loaded("roots"), &self.port.vcpu.guest)

    def sync_every(self):
        """Those below the roots kept as well."""
        sync_every_root(self.port.loaded("roots"), &self.port.vcpu.guest)
