"""What a VMM in Python finds of a vCPU: its VMCS, instructions of VMX, what is asked of it before the next VM entry."""

from libc.stdint cimport uint64_t

from fastmmu._arguments cimport linear_address, within, word
from fastmmu.arch.bits cimport FRAME
from fastmmu.arch.vmx cimport SECONDARY_VPID, secondary_control
from fastmmu.kvm.vm_port cimport made_of
from fastmmu.kvm.vmcs cimport vmcs_read, vmcs_write
from fastmmu.tlb.invalidate cimport inv_invept, inv_invvpid, inv_transition

from fastmmu.errors import PolicyError, VmFailValid


cdef class VcpuPort:
    """The state of a vCPU, of which :class:`fastmmu.kvm.port.VirtualCpu` is one.

    Threads: as of :class:`fastmmu.kvm.vm_port.VmPort`.
    """

    def __cinit__(self, made=None):
        made_of(made, "a vCPU is what the handlers of a fastmmu.Kvm get")

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

    # ---- what is asked of it ---------------------------------------------------------------------------------

    @property
    def requests(self):
        """What it does before its next VM entry, an int of :class:`fastmmu.kvm.policy.requests.Request`."""
        self.vm.inside()
        return self.vcpu.requests

    @requests.setter
    def requests(self, value):
        self.vm.inside()
        self.vcpu.requests = within("requests", value, 0, 7, PolicyError)

    @property
    def mode(self):
        """Of this vCPU as the others of its VM see it, an int: :class:`fastmmu.kvm.policy.requests.Mode`."""
        self.vm.inside()
        return self.vcpu.mode

    @mode.setter
    def mode(self, value):
        self.vm.inside()
        self.vcpu.mode = within("mode", value, 0, 2, PolicyError)
