"""What a VMM in Python puts into the VMCS for the APIC of a vCPU, and what of it lies in memory.

    VM entry    what is injected, the TPR threshold, the EOI-exit bitmap, RVI, interrupt-window exiting
    posted      the descriptor of posted interrupts
    record      the TPR of a guest whose instructions were patched
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from fastmmu._arguments cimport flag, many, physical_address, shown, whole, within, word
from fastmmu.arch.vmx cimport PRIMARY_CR8_LOAD, PRIMARY_INTERRUPT_WINDOW, SECONDARY_APIC_ACCESSES, SECONDARY_X2APIC
from fastmmu.cpu.interrupts cimport RULE_SLIDES, ApicCounters
from fastmmu.cpu.tpr_patch cimport SITE_BYTES, patch_dword, patch_replace
from fastmmu.cpu.vapic cimport vapic_posted
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.vm_port cimport made_of
from fastmmu.mmu.mmu cimport mmu_of_tables
from fastmmu.paging.memory cimport mem_holds, mem_read32, mem_write64

from fastmmu.errors import BusError, StateError

cdef tuple _ways = ("trap", "patch", "flexpriority", "apicv")       # [TprWay]
cdef ApicCounters _none
cdef dict _places = {name: i for i, name in enumerate(<dict> _none)}


cdef int vector_or_none(str name, value) except -2:
    found = whole(name, value)
    return -1 if found == -1 else <int> within(name, found, 0, 0xFF)


cdef class ApicEntry:
    """What VM entry loads for the APIC of a vCPU: of :class:`fastmmu.kvm.lapic_port.Lapic` what is no register.

    Vectors are 0 to 255, -1 where there is none.

    :raises PolicyError: every call while no VM exit is handled by a :class:`fastmmu.Kvm`.

    Threads: as of :class:`fastmmu.kvm.port.VirtualMachine`.
    """

    def __cinit__(self, made=None):
        made_of(made, "a Lapic is what a fastmmu.kvm.port.VirtualCpu has")

    # ---- how it is handled, by the configuration ------------------------------------------------------------------

    @property
    def way(self):
        """Who handles the TPR: ``Config.tpr``."""
        self.vm.inside()
        return _ways[self.irq.way]

    @property
    def access_page(self):
        """There is an APIC-access page (``Config.apic_access_page``)."""
        self.vm.inside()
        return self.irq.apic_page != 0

    @property
    def threshold_rule(self):
        """``Config.tpr_threshold``: "kvm" or "slides"."""
        self.vm.inside()
        return "slides" if self.irq.rule == RULE_SLIDES else "kvm"

    @property
    def tpr_shadow(self):
        """Whether the processor has a TPR shadow."""
        self.vm.inside()
        return bool(self.irq.tpr_shadow)

    @property
    def rtc_vector(self):
        """Vector of the real-time clock in the I/O APIC, whose end of interrupt KVM always wants to see."""
        self.vm.inside()
        return self.irq.rtc_vector & 0xFF

    # ---- before VM entry ------------------------------------------------------------------------------------------

    @property
    def request_event(self):
        """KVM_REQ_EVENT: look for an interrupt to inject before the next VM entry. May be set."""
        self.vm.inside()
        return bool(self.irq.request_event)

    @request_event.setter
    def request_event(self, on):
        self.vm.inside()
        self.irq.request_event = flag("request_event", on)

    @property
    def interrupts_on(self):
        """RFLAGS.IF of the guest."""
        self.vm.inside()
        return bool(self.irq.interrupts_on)

    @property
    def injected(self):
        """The vector that the next VM entry injects, or -1."""
        self.vm.inside()
        return self.irq.inject

    def inject(self, vector):
        """The next VM entry injects an external interrupt (VM-entry interruption information, type 0).

        :raises StateError: another one is injected already; there is one event a VM entry.
        """
        self.vm.inside()
        cdef int number = within("vector", vector, 0, 0xFF)
        if self.irq.inject >= 0:
            raise StateError(f"VM entry injects vector {self.irq.inject:#x} already; ask Lapic.injected")
        self.irq.inject = number

    @property
    def interrupt_window(self):
        """Interrupt-window exiting: exit as soon as the guest takes interrupts. May be set."""
        self.vm.inside()
        return self.irq.v.vmcs.primary & PRIMARY_INTERRUPT_WINDOW != 0

    @interrupt_window.setter
    def interrupt_window(self, on):
        self.vm.inside()
        cdef bint wanted = flag("interrupt_window", on)
        self.irq.v.vmcs.primary &= ~PRIMARY_INTERRUPT_WINDOW
        if wanted:
            self.irq.v.vmcs.primary |= PRIMARY_INTERRUPT_WINDOW

    @property
    def tpr_threshold(self):
        """The TPR threshold, 0 to 15: a TPR of a lower class exits (exit 43; SDM vol. 3, "TPR Virtualization"). May be
        set; VM entry refuses one above the class of the TPR where accesses to the page are not virtualized."""
        self.vm.inside()
        return self.irq.v.vmcs.tpr_threshold

    @tpr_threshold.setter
    def tpr_threshold(self, value):
        self.vm.inside()
        self.irq.v.vmcs.tpr_threshold = within("tpr_threshold", value, 0, 15)

    @property
    def virtual_apic_address(self):
        """Host-physical address of the virtual-APIC page, which holds the registers. May be set to another page of the
        host's memory, to which they move.

        :raises StateError: the address is no multiple of 4096. :raises BusError: there is no memory.
        """
        self.vm.inside()
        return self.irq.v.vmcs.virtual_apic_address

    @virtual_apic_address.setter
    def virtual_apic_address(self, hpa):
        self.vm.inside()
        cdef uint64_t page = physical_address("virtual_apic_address", hpa)
        cdef Vcpu *v = self.irq.v
        if page & 0xFFF:
            raise StateError(f"the virtual-APIC page at {page:#x} is not aligned to 4096")
        if mmu_of_tables(&self.vm.kvm.mmu, page):
            raise StateError(f"the VMM's own tables stand at {page:#x}; give another page")
        if not mem_holds(v.mem, page, 4096):
            raise BusError(f"the virtual-APIC page at {page:#x} lies outside the host's memory of "
                           f"{v.mem.nbytes:#x} bytes")
        if page != v.vmcs.virtual_apic_address:
            memcpy(v.mem.base + page, self.irq.apic.page, 4096)
            self.irq.apic.page = self.irq.virt.page = v.mem.base + page
            v.vmcs.virtual_apic_address = page

    @property
    def intercept_cr8_writes(self):
        """CR8-load exiting, of AMD the intercept of writes to CR8. May be set."""
        self.vm.inside()
        return self.irq.v.vmcs.primary & PRIMARY_CR8_LOAD != 0

    @intercept_cr8_writes.setter
    def intercept_cr8_writes(self, on):
        cdef bint wanted = flag("intercept_cr8_writes", on)
        self.vm.inside()
        self.irq.v.vmcs.primary &= ~PRIMARY_CR8_LOAD
        if wanted:
            self.irq.v.vmcs.primary |= PRIMARY_CR8_LOAD

    @property
    def virtualize_accesses(self):
        """Virtualize APIC accesses: those to the APIC-access page. May be set; ends :attr:`virtualize_x2apic`."""
        self.vm.inside()
        return self.irq.v.vmcs.secondary & SECONDARY_APIC_ACCESSES != 0

    @virtualize_accesses.setter
    def virtualize_accesses(self, on):
        self.vm.inside()
        cdef bint wanted = flag("virtualize_accesses", on)
        self.irq.v.vmcs.secondary &= ~SECONDARY_APIC_ACCESSES
        if wanted:
            self.irq.v.vmcs.secondary = self.irq.v.vmcs.secondary & ~SECONDARY_X2APIC | SECONDARY_APIC_ACCESSES

    @property
    def virtualize_x2apic(self):
        """Virtualize x2APIC mode: the MSRs. May be set; ends :attr:`virtualize_accesses`."""
        self.vm.inside()
        return self.irq.v.vmcs.secondary & SECONDARY_X2APIC != 0

    @virtualize_x2apic.setter
    def virtualize_x2apic(self, on):
        self.vm.inside()
        cdef bint wanted = flag("virtualize_x2apic", on)
        self.irq.v.vmcs.secondary &= ~SECONDARY_X2APIC
        if wanted:
            self.irq.v.vmcs.secondary = self.irq.v.vmcs.secondary & ~SECONDARY_APIC_ACCESSES | SECONDARY_X2APIC

    @property
    def rvi(self):
        """Requesting virtual interrupt, bits 7:0 of the guest interrupt status: what the processor delivers next. May
        be set (vmx_set_rvi)."""
        self.vm.inside()
        return self.irq.v.vmcs.guest_interrupt_status & 0xFF

    @rvi.setter
    def rvi(self, vector):
        self.vm.inside()
        cdef uint32_t number = within("rvi", vector, 0, 0xFF)
        self.irq.v.vmcs.guest_interrupt_status = self.irq.v.vmcs.guest_interrupt_status & 0xFF00 | number

    @property
    def svi(self):
        """Servicing virtual interrupt, bits 15:8 of the guest interrupt status. May be set."""
        self.vm.inside()
        return self.irq.v.vmcs.guest_interrupt_status >> 8

    @svi.setter
    def svi(self, vector):
        self.vm.inside()
        cdef uint32_t number = within("svi", vector, 0, 0xFF)
        self.irq.v.vmcs.guest_interrupt_status = self.irq.v.vmcs.guest_interrupt_status & 0xFF | number << 8

    @property
    def eoi_exit_bitmap(self):
        """The vectors whose end of interrupt exits (exit 45), four words of 64 bits. May be set
        (vmx_load_eoi_exitmap)."""
        self.vm.inside()
        return tuple([self.irq.v.vmcs.eoi_exit_bitmap[i] for i in range(4)])

    @eoi_exit_bitmap.setter
    def eoi_exit_bitmap(self, words):
        self.vm.inside()
        cdef uint64_t new[4]
        cdef int i
        given = many("eoi_exit_bitmap", words)
        if len(given) != 4:
            raise StateError(f"eoi_exit_bitmap={shown(words)}: give four words of 64 bits, one a bit for each vector")
        for i in range(4):
            new[i] = word("a word of eoi_exit_bitmap", given[i])
        memcpy(self.irq.v.vmcs.eoi_exit_bitmap, new, sizeof(new))

    # ---- posted interrupts ----------------------------------------------------------------------------------------

    @property
    def posting(self):
        """Posted interrupts are on."""
        self.vm.inside()
        return bool(self.irq.posting)

    def enable_posting(self, vector):
        """Posted interrupts are on, notified by this vector of the host's, in the VMCS and in the descriptor
        (vmx_vcpu_reset, vmx_vcpu_pi_load); the pin-based control is written by ``vmwrite``."""
        self.vm.inside()
        cdef uint32_t number = within("vector", vector, 0, 0xFF)
        self.irq.v.vmcs.posted_vector = number
        self.irq.descriptor[4] = self.irq.descriptor[4] & ~0xFF0000ULL | <uint64_t> number << 16
        self.irq.posting = True

    @property
    def posted(self):
        """ON of the posted-interrupt descriptor: a vector waits there."""
        self.vm.inside()
        return self.irq.descriptor[4] & 1 != 0

    def post(self, vector):
        """A vector into the descriptor; True: ON was 0 and is 1, so that a notification is due
        (vmx_deliver_posted_interrupt)."""
        self.vm.inside()
        cdef uint32_t number = within("vector", vector, 0, 0xFF)
        cdef bint due = not self.irq.descriptor[4] & 1
        self.irq.descriptor[number >> 6] |= 1ULL << (number & 63)
        self.irq.descriptor[4] |= 1
        return due

    def notify(self):
        """The notification vector goes to the physical CPU that it runs on, which takes what was posted without a VM
        exit."""
        self.vm.inside()
        self.irq.notified = True

    def sync_pir_to_irr(self):
        """What was posted moves into IRR (vmx_sync_pir_to_irr)."""
        self.vm.inside()
        vapic_posted(&self.irq.virt, self.irq.descriptor)

    # ---- a guest that was patched (apic.md §2.2) --------------------------------------------------------------------

    @property
    def patched(self):
        """The guest's instructions were replaced, and its TPR is in its record. May be set.

        :raises StateError: the guest has named no option ROM, so that there is no record.
        """
        self.vm.inside()
        return bool(self.irq.patch.in_use)

    @patched.setter
    def patched(self, on):
        self.vm.inside()
        cdef bint wanted = flag("patched", on)
        if wanted:
            self.record()
        self.irq.patch.in_use = wanted

    @property
    def at_site(self):
        """The access that exited comes from an instruction that can be replaced."""
        self.vm.inside()
        return bool(self.irq.patch.at_site)

    @property
    def enabling(self):
        """The OUT 7EH that exited asks for this vCPU's record."""
        self.vm.inside()
        return bool(self.irq.patch.enabling)

    @property
    def one_record(self):
        """``Config.tpr_patch`` is "one-vcpu": one record, of the only vCPU, number 0."""
        self.vm.inside()
        return bool(self.irq.patch.one_vcpu)

    @property
    def number(self):
        """Number of the vCPU, as its KPCR has it: the APIC id."""
        self.vm.inside()
        return self.irq.patch.cpu

    @property
    def site_address(self):
        """Linear address of that instruction; before the first, 0."""
        self.vm.inside()
        return self.irq.patch.ip

    def replace_instruction(self):
        """A call in place of the instruction that accessed the TPR; False: it is none that can be replaced."""
        self.vm.inside()
        cdef uint64_t hpa = self.irq.patch.ip_hpa
        if not self.irq.patch.at_site or not mem_holds(self.irq.v.mem, hpa, SITE_BYTES):
            return False
        return patch_replace(self.irq.v.mem.base + hpa, self.irq.patch.ip, self.irq.patch.rom_la) != 0

    cdef uint64_t record(self) except? 0xBAD:
        # its address
        if not self.irq.patch.rom_la or not mem_holds(self.irq.v.mem, self.irq.patch.record_hpa, 8):
            raise StateError("the guest has no record of its TPR: it has named no option ROM; ask Lapic.patched")
        return self.irq.patch.record_hpa

    def read_record(self):
        """The TPR in the record. :raises StateError: there is no record."""
        self.vm.inside()
        return mem_read32(self.irq.v.mem, self.record()) & 0xFF

    def write_record(self, tpr, isr, irr):
        """TPR, highest vectors in service and requested (-1: none) into the record, which is in use.

        :raises StateError: there is no record.
        """
        self.vm.inside()
        cdef uint32_t priority = within("tpr", tpr, 0, 0xFF)
        cdef int served = vector_or_none("isr", isr), requested = vector_or_none("irr", irr)
        mem_write64(self.irq.v.mem, self.record(), patch_dword(priority, served, requested))

    def clear_record(self):
        """The record is not in use. :raises StateError: there is none."""
        self.vm.inside()
        mem_write64(self.irq.v.mem, self.record(), 0)

    # ---- what is counted ------------------------------------------------------------------------------------------

    @property
    def below_threshold(self):
        """The exit under way is one of a TPR below the threshold, of which ``spurious`` tells whether it was of use.
        May be set."""
        self.vm.inside()
        return bool(self.irq.below)

    @below_threshold.setter
    def below_threshold(self, on):
        self.vm.inside()
        self.irq.below = flag("below_threshold", on)

    def count(self, name, by=1):
        """Add to a counter of the APIC, named as in :mod:`fastmmu.counters` without ``apic_``.

        :raises StateError: there is no such counter.
        """
        self.vm.inside()
        cdef uint64_t more = word("by", by)
        place = _places.get(name) if isinstance(name, str) else None
        if place is None:
            raise StateError(f"count({shown(name)}): the APIC counts {', '.join(_places)}")
        (<uint64_t *> &self.irq.c)[<int> place] += more
