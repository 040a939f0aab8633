"""The ASIDs of a physical CPU in the hands of a VMM in Python (svm_cpu_data of Linux; tlb.md §11)."""

from fastmmu._arguments cimport within, word
from fastmmu.kvm.vm_port cimport VmPort, made_of, word_of_board

from fastmmu.errors import PolicyError


cdef SvmCpuData svm_cpu_of(VmPort vm, SvmCpu *sd):
    """Of a CPU of the host that a machine is of."""
    cdef SvmCpuData found = SvmCpuData.__new__(SvmCpuData, word_of_board())
    found.vm, found.sd = vm, sd
    return found


cdef class SvmCpuData:
    """What KVM keeps of a physical CPU of AMD. All machines of the host share it, whatever their VMMs.

    Threads: as of :class:`fastmmu.kvm.port.VirtualMachine`.
    """

    def __cinit__(self, made=None):
        made_of(made, "the ASIDs of a CPU are what a fastmmu.kvm.port.VirtualCpu has")

    @property
    def asid_generation(self):
        """The generation that its ASIDs are of, from 1 on; 64 bits."""
        self.vm.inside()
        return self.sd.asid_generation

    @asid_generation.setter
    def asid_generation(self, value):
        self.vm.inside()
        self.sd.asid_generation = word("asid_generation", value)

    @property
    def next_asid(self):
        """The next ASID that it gives out; ``max_asid + 1``: this generation has none left."""
        self.vm.inside()
        return self.sd.next_asid

    @next_asid.setter
    def next_asid(self, value):
        self.vm.inside()
        self.sd.next_asid = within("next_asid", value, 1, self.sd.max_asid + 1, PolicyError)

    @property
    def max_asid(self):
        """The last ASID of the processor."""
        self.vm.inside()
        return self.sd.max_asid

    @property
    def min_asid(self):
        """The first that is given out; those below it are of encrypted guests."""
        self.vm.inside()
        return self.sd.min_asid
