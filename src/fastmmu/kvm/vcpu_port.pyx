"""What a VMM in Python finds of a vCPU: its VMCS, instructions of VMX, what is asked of it before the next VM entry."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmmu._arguments cimport choice, flag, instance, linear_address, within, word
from fastmmu.arch.bits cimport FRAME
from fastmmu.arch.registers cimport long_mode, pae_paging, pages, paging_of
from fastmmu.arch.vmx cimport EXIT_EXTERNAL_INTERRUPT, SECONDARY_VPID, clear_exit_information, secondary_control
from fastmmu.cpu.vcpu cimport (
    ABORT_AWAY, ABORT_BUS, ABORT_IDENTITY, ABORT_MISCONFIG, ABORT_ROOT, ABORT_TABLES, ACT_ABORT, ACT_INJECT_GP,
    vcpu_abort, vcpu_derive, vcpu_enter, vcpu_leave,
)
from fastmmu.kvm.asid_port cimport svm_cpu_of
from fastmmu.kvm.ipi cimport NO_EXIT, ipi_arrived, ipi_routed
from fastmmu.kvm.kvm cimport EXITING_GUEST_MODE, NOWHERE
from fastmmu.kvm.registers_port cimport Registers, registers_of
from fastmmu.kvm.vm_port cimport made_of
from fastmmu.kvm.vmcb cimport vmcb_read, vmcb_write
from fastmmu.kvm.vmcs cimport vmcs_read, vmcs_write
from fastmmu.paging.guest cimport root_address
from fastmmu.tlb.invalidate cimport inv_invept, inv_invlpga, inv_invvpid, inv_tlb_control, inv_transition

from fastmmu.arch.registers import RULES
from fastmmu.errors import PolicyError, VmFailValid
from fastmmu.exits import ExitReason

_reasons = {"root": ABORT_ROOT, "tables": ABORT_TABLES, "identity": ABORT_IDENTITY, "bus": ABORT_BUS,
            "misconfig": ABORT_MISCONFIG, "away": ABORT_AWAY}


cdef class VcpuPort:
    """The state of a vCPU, of which :class:`fastmmu.kvm.port.VirtualCpu` is one.

    Threads: as of :class:`fastmmu.kvm.vm_port.VmPort`.
    """

    def __cinit__(self, made=None):
        made_of(made, "a vCPU is what the handlers of a fastmmu.Kvm get")

    cdef Mmu *loaded(self, str what) except NULL:
        # the MMU, which has this vCPU's roots in force
        self.vm.inside()
        if self.vm.kvm.running != self.vcpu:
            raise PolicyError(f"the {what} of vCPU {int(self.vcpu.index)} can be changed while it runs; now vCPU "
                              f"{int(self.vm.kvm.running.index)} does")
        return &self.vm.kvm.mmu

    # ---- its VMCS, and instructions of VMX -------------------------------------------------------------------

    def vmread(self, field):
        """VMREAD of a field of its VMCS, by encoding (:class:`fastmmu.vmx.Field`; + 1 for the high half of 64 bits).

        :raises VmFail: 12, there is no such field. :raises StateError: a field for which a machine has no use.
        """
        self.vm.inside()
        return vmcs_read(self.vcpu, word("field", field))

    def vmwrite(self, field, value):
        """VMWRITE of a field of its VMCS. What the processor has derived from it follows: the root of the EPT, whether
        writes are logged, registers of the guest, which the next VM entry loads; under shadow paging CR3 and what is
        walked from it.

        :raises VmFail: 12, there is no such field; 13, it is read-only. :raises StateError: the value is wider than the
            field, or asks for what a machine does not carry out. :raises BusError: the page is not in memory.
        """
        self.vm.inside()
        vmcs_write(self.vcpu, word("field", field), word("value", value))

    @property
    def vpid(self):
        """The VPID that :meth:`fastmmu.Kvm.allocate_vpid` gave it (vmx->vpid); 0: none."""
        self.vm.inside()
        return self.vcpu.vpid

    @property
    def vpid_enabled(self):
        """Its VMCS has "enable VPID" (secondary control 5)."""
        self.vm.inside()
        return secondary_control(&self.v.vmcs, SECONDARY_VPID)

    def invept(self, type, eptp=0):
        """INVEPT on the physical CPU that it runs on: 1 one EPT, 2 all (tlb.md §5.1); counted as ``invept``.

        :param eptp: of type 1, an EPTP. :raises VmFail: 28, an invalid operand.
        """
        cdef uint64_t kind = word("type", type), root = word("eptp", eptp)
        self.vm.inside()
        if kind != 1 and kind != 2 or kind == 1 and root & ~FRAME & ~0x5EULL:
            raise VmFailValid("INVEPT", 28, f"type {kind}, EPTP {root:#x}")
        self.vcpu.c.invept += 1
        inv_invept(self.v.tlb, kind, root & FRAME)

    def invvpid(self, type, vpid=0, la=0):
        """INVVPID on the physical CPU that it runs on: 0 one address, 1 one VPID, 2 all, 3 one VPID but global
        mappings (tlb.md §5.1); counted as ``invvpid``.

        :raises VmFail: 28, an invalid operand: no such type, VPID 0 or wider than 16 bits. :raises StateError: `la` is
            not canonical.
        """
        cdef uint64_t kind = word("type", type), tag = word("vpid", vpid), address = linear_address("la", la)
        self.vm.inside()
        if kind > 3 or tag >> 16 or (kind != 2 and not tag):
            raise VmFailValid("INVVPID", 28, f"type {kind}, VPID {tag:#x}")
        self.vcpu.c.invvpid += 1
        inv_invvpid(self.v.tlb, kind, tag, address)

    def flush_by_transition(self):
        """What a VM exit or entry flushes of a vCPU without a VPID: linear mappings (tlb.md §5), at once."""
        self.vm.inside()
        inv_transition(self.v.tlb, False)

    # ---- its VMCB, and instructions of SVM -------------------------------------------------------------------

    cdef int amd(self) except -1:
        self.vm.inside()
        if not self.v.svm:
            raise PolicyError('the vCPU has a VMCS, by vmread() and vmwrite(): a VMCB is of Config(vendor="amd")')
        return 0

    def vmcb_read(self, field):
        """A field of its VMCB, by offset (:class:`fastmmu.arch.vmcb.VmcbField`): the state of :meth:`vmread` in AMD's
        layout.

        :raises StateError: there is no such field. :raises PolicyError: the machine is of Intel.
        """
        self.amd()
        return vmcb_read(self.vcpu, word("field", field))

    def vmcb_write(self, field, value):
        """Write a field of its VMCB. What follows from it is as of :meth:`vmwrite`.

        :raises StateError: as of :meth:`vmcb_read`; a value wider than the field, or one that a machine does not carry
            out. :raises PolicyError: the machine is of Intel.
        """
        self.amd()
        vmcb_write(self.vcpu, word("field", field), word("value", value))

    @property
    def asid(self):
        """The ASID that KVM gave it on its physical CPU (svm->asid); it runs under that of its VMCB."""
        self.amd()
        return self.vcpu.asid

    @asid.setter
    def asid(self, value):
        self.amd()
        self.vcpu.asid = within("asid", value, 1, 0xFFFF, PolicyError)

    @property
    def asid_generation(self):
        """The generation of :attr:`asid`; 0: it has none on this physical CPU. 64 bits."""
        self.amd()
        return self.vcpu.asid_generation

    @asid_generation.setter
    def asid_generation(self, value):
        self.amd()
        self.vcpu.asid_generation = word("asid_generation", value)

    @property
    def svm_cpu(self):
        """What KVM keeps of the physical CPU that it is on, or is put on, a :class:`fastmmu.kvm.asid_port.SvmCpuData`
        (svm_cpu_data)."""
        cdef uint32_t at = self.vm.placing if self.vm.placing != NOWHERE else self.vcpu.pcpu
        self.amd()
        return svm_cpu_of(self.vm, &self.vm.kvm.svm_cpu[0 if at == NOWHERE else at])

    def invlpga(self, la, asid):
        """INVLPGA on the physical CPU that it runs on: what an ASID has cached of one address; counted as ``invlpga``.

        :raises StateError: `la` is not canonical.
        """
        cdef uint64_t address = linear_address("la", la)
        cdef uint32_t of = within("asid", asid, 0, 0xFFFF, PolicyError)
        self.amd()
        self.vcpu.c.invlpga += 1
        inv_invlpga(self.v.tlb, of, address)

    @property
    def in_guest(self):
        """The processor is in the guest, and not behind a VM exit: what its VMCB says counts at the next VM entry."""
        self.amd()
        return self.v.vpid_on

    def run_again(self):
        """A VM exit and VM entry at once, of a vCPU in the guest, which nobody counts: its ASID and TLB_CONTROL count.

        :raises PolicyError: it is not in the guest.
        """
        self.amd()
        if not self.v.vpid_on:
            raise PolicyError("the vCPU is behind a VM exit: the VM entry to come does it")
        inv_tlb_control(self.v.tlb, self.v.tlb_control, self.v.vmcs.vpid)
        self.v.tlb_control = 0
        vcpu_derive(self.v)

    @property
    def last_retry(self):
        """Guest-physical address of a load that runs once more before it is emulated (last_retry_addr); 0: none."""
        self.vm.inside()
        return self.vcpu.last_retry

    @last_retry.setter
    def last_retry(self, gpa):
        cdef uint64_t address = word("last_retry", gpa)
        self.vm.inside()
        self.vcpu.last_retry = address

    # ---- what is asked of it ---------------------------------------------------------------------------------

    @property
    def requests(self):
        """What it does before its next VM entry, an int of :class:`fastmmu.kvm.policy.requests.Request`."""
        self.vm.inside()
        return self.vcpu.requests

    @requests.setter
    def requests(self, value):
        self.vm.inside()
        self.vcpu.requests = within("requests", value, 0, 15, PolicyError)

    @property
    def mode(self):
        """Of this vCPU as the others of its VM see it, an int: :class:`fastmmu.kvm.policy.requests.Mode`."""
        self.vm.inside()
        return self.vcpu.mode

    @mode.setter
    def mode(self, value):
        self.vm.inside()
        self.vcpu.mode = within("mode", value, 0, 2, PolicyError)

    @property
    def pcpu(self):
        """Number of the physical CPU that it ran on last; -1: it did not run yet (vcpu->cpu)."""
        self.vm.inside()
        return -1 if self.vcpu.pcpu == NOWHERE else <int> self.vcpu.pcpu

    @property
    def index(self):
        """Its number within the VM (vcpu_idx)."""
        self.vm.inside()
        return self.vcpu.index

    # ---- while the host puts it on a physical CPU, or takes it from one ----------------------------------------

    cdef int placed(self) except -1:
        self.vm.inside()
        if self.vm.placing == NOWHERE or self.vm.kvm.running != self.vcpu:
            raise PolicyError("the host neither puts this vCPU on a CPU nor takes it from one: after a VM exit the "
                              "processor enters by itself")
        return 0

    def arrived(self):
        """What came while it stood still: its timer's end, interrupts of other vCPUs, a kick.

        :returns: the :class:`fastmmu.exits.ExitReason` of the VM exit that this takes if it is in guest mode, an int;
            None: it takes none, as a posted interrupt's notification.
        """
        cdef uint32_t reason = NO_EXIT
        self.placed()
        if self.vcpu.irq != NULL:
            reason = ipi_arrived(self.vcpu.irq)
        elif self.vcpu.mode == EXITING_GUEST_MODE:
            reason = EXIT_EXTERNAL_INTERRUPT
        return None if reason == NO_EXIT else reason

    def leave(self, reason):
        """VM exit, of a vCPU in guest mode, for a reason of the host's: an
        :class:`fastmmu.exits.ExitReason`, which is counted."""
        cdef uint32_t number = ExitReason(within("reason", reason, 0, 0xFF))
        self.placed()
        clear_exit_information(&self.v.vmcs)
        vcpu_leave(self.v, number)

    def count_remote(self, *, sent=0, ipis=0, asked=0, kicked=0, deferred=0):
        """Count its part of remote flushes (``remote_sent`` ... in ``Result.counters``): those that it asked others
        for, its IPIs for them; requests to it, of these by an IPI, and where it had no physical CPU; five counts."""
        cdef uint64_t n = word("sent", sent), k = word("ipis", ipis), m = word("asked", asked)
        cdef uint64_t by_ipi = word("kicked", kicked), late = word("deferred", deferred)
        self.vm.inside()
        self.vcpu.c.remote_sent += n
        self.vcpu.c.remote_ipis += k
        self.vcpu.c.remote_asked += m
        self.vcpu.c.remote_kicked += by_ipi
        self.vcpu.c.remote_deferred += late

    def route_notifications(self):
        """Notifications of posted interrupts go to the physical CPU that it is put on (vmx_vcpu_pi_load)."""
        self.placed()
        if self.vcpu.irq != NULL:
            ipi_routed(self.vcpu.irq, self.vm.placing)

    def enter(self):
        """VM entry on the physical CPU that it is put on, with the checks of vmx.md §3; False: it failed, and the
        machine stops."""
        self.placed()
        self.vcpu.pcpu = self.vm.placing
        return vcpu_enter(self.v) == 0

    @property
    def placing(self):
        """Number of the physical CPU that the host puts it on, or takes it from."""
        self.placed()
        return self.vm.placing

    # ---- registers of the guest ------------------------------------------------------------------------------

    @property
    def arch(self):
        """The guest's registers as the guest has them (vcpu->arch), as of the last VM exit: a copy, a
        :class:`fastmmu.kvm.registers_port.Registers`. Setting it changes what KVM takes them for, and nothing else."""
        self.vm.inside()
        return registers_of(&self.vcpu.arch)

    @arch.setter
    def arch(self, value):
        cdef Registers new = instance("arch", value, Registers)
        self.vm.inside()
        self.vcpu.arch = new.r

    def save_pkru(self):
        """What the guest has of PKRU into :attr:`arch`."""
        self.vm.inside()
        self.vcpu.arch.pkru = self.v.r.pkru

    def walk_guest_by(self, registers):
        """Under shadow paging: how the VMM walks the guest's tables from now on, of these registers."""
        cdef Registers new = instance("registers", registers, Registers)
        self.vm.inside()
        paging_of(&new.r, &self.vcpu.guest)
        self.vcpu.guest.ac = self.v.hw.ac
        self.vcpu.guest.write_ad = 1

    def walk_guest_from(self, registers, cr3):
        """Under shadow paging: where the guest's tables begin from now on, its CR3, and the PDPTE registers of
        `registers`."""
        cdef Registers new = instance("registers", registers, Registers)
        cdef uint64_t value = word("cr3", cr3)
        self.vm.inside()
        self.vcpu.guest.cr3 = value
        self.vcpu.guest.root = root_address(&self.vcpu.guest, value)
        memcpy(self.vcpu.guest.pdpte, new.r.pdpte, sizeof(new.r.pdpte))

    @property
    def guest_cr3(self):
        """CR3 of the tables that the VMM walks for the guest, under shadow paging."""
        self.vm.inside()
        return self.vcpu.guest.cr3

    def run_on(self, registers, *, vm86=False):
        """Under shadow paging: the processor translates by these registers while the guest runs; CR0 and CR4 are those
        of the VMCS, and CR3 has to be written by ``vmwrite`` before it does: until then it finds no table.

        :param vm86: as a virtual-8086 task. :raises PolicyError: registers of a processor that does not walk tables of
            the VMM's: without paging, or with 32-bit paging.
        """
        cdef Registers new = instance("registers", registers, Registers)
        cdef bint task = flag("vm86", vm86)
        cdef uint8_t ac
        self.vm.inside()
        if not self.vm.kvm.shadow:
            raise PolicyError("over EPT the next VM entry loads the guest's registers; write them by vmwrite")
        if not pages(&new.r) or not (long_mode(&new.r) or pae_paging(&new.r)):
            raise PolicyError(f"{registers!r}: shadow tables are those of long mode or of PAE paging")
        ac = self.v.hw.ac
        self.v.r = new.r
        self.v.r.cr0 = self.v.vmcs.guest_cr0
        self.v.r.cr4 = self.v.vmcs.guest_cr4
        self.v.vm86 = task
        paging_of(&new.r, &self.v.hw)
        self.v.hw.root = self.v.hw.frame
        memset(self.v.hw.pdpte, 0, sizeof(self.v.hw.pdpte))
        self.v.hw.ac = ac
        self.v.hw.write_ad = 1

    @property
    def pcid_on(self):
        """The processor tags translations by PCID while the guest runs (CR4.PCIDE of the hardware)."""
        self.vm.inside()
        return self.v.hw.pcid_on != 0

    # ---- the instruction under way ---------------------------------------------------------------------------

    @property
    def event(self):
        """The exit under way is an EXIT event of a trace: an instruction of which only the exit matters."""
        self.vm.inside()
        return self.v.event != 0

    @property
    def instruction(self):
        """The one that exited, where it is one of CPL 0, as the bytes at RIP say: a tuple of its number
        (:class:`fastmmu.kvm.policy.registers.Instruction`), that of the control register, and the source operand."""
        self.vm.inside()
        return self.v.instruction, self.v.instruction_cr, self.v.source

    def give(self, value):
        """What the instruction that exited reads: MOV from a control register, RDMSR of EFER; 64 bits."""
        cdef uint64_t result = word("value", value)
        self.vm.inside()
        self.v.result = result

    def inject_gp(self, rule):
        """#GP(0) for the guest, by a rule of :data:`fastmmu.arch.registers.RULES`; returns the action."""
        cdef uint64_t number = within("rule", rule, 1, 0xFFFF, PolicyError)
        self.vm.inside()
        if number not in RULES:
            raise PolicyError(f"rule={number} is none; there are {min(RULES)} to {max(RULES)}")
        self.v.rule = number
        return ACT_INJECT_GP

    def stop(self, reason, address=0):
        """The machine cannot go on; returns the action, whatever else is done at this exit.

        :param reason: "root" (no memory behind the root of the guest's tables: `address` is CR3), "tables" (table pages
            used up), "identity" (the guest stops paging, and there is no identity table: `address` is CR0), "bus" (a
            table of the guest's where the VMM does not read), "misconfig" (an entry that nobody made), "away" (the
            host is taking the page away: only the end of that lets the guest go on).
        """
        cdef int why = choice("reason", reason, _reasons, PolicyError)
        cdef uint64_t at = word("address", address)
        self.vm.inside()
        vcpu_abort(self.v, why, self.vm.kvm.mmu.pool_end if why == ABORT_TABLES else at)
        return ACT_ABORT
