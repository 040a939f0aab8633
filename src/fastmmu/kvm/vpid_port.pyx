"""The VPIDs of a host in the hands of a VMM in Python (vmx_vpid_bitmap of Linux; tlb.md §6)."""

from libc.stdint cimport uint32_t

from fastmmu._arguments cimport counted, whole, within
from fastmmu.kvm.vm_port cimport VmPort, made_of, word_of_board
from fastmmu.kvm.vpid cimport VPIDS, vpid_first, vpid_free, vpid_is_free, vpid_take

from fastmmu.errors import PolicyError


cdef VpidBitmap vpids_of(VmPort vm, VpidAllocator host):
    """Of the host that a machine is of."""
    cdef VpidBitmap found = VpidBitmap.__new__(VpidBitmap, word_of_board())
    found.vm, found.host = vm, host
    return found


cdef class VpidBitmap:
    """The VPIDs of a host, a bit each that is set where a vCPU has it: 65,536, of which 0 is the host's. All machines
    of the host share them, whatever their VMMs: a VMM sets and clears what it is asked for, in
    :meth:`fastmmu.Kvm.allocate_vpid` and :meth:`fastmmu.Kvm.free_vpid`.

    Threads: as of :class:`fastmmu.kvm.port.VirtualMachine`.
    """

    def __cinit__(self, made=None):
        made_of(made, "the VPIDs of a host are what a fastmmu.kvm.port.VirtualMachine has")

    def find_first_zero_bit(self):
        """The lowest VPID that nobody has; 65536: there is none."""
        self.vm.inside()
        return vpid_first(&self.host.map)

    def test_bit(self, vpid):
        """Does a vCPU have it? Of 0, which is the host's, True.

        :param vpid: 0 to 65535.
        """
        cdef uint32_t number = within("vpid", vpid, 0, VPIDS - 1, PolicyError)
        self.vm.inside()
        return not vpid_is_free(&self.host.map, number)

    def set_bit(self, vpid):
        """Take one, in :meth:`fastmmu.Kvm.allocate_vpid`.

        :param vpid: 1 to 65535. :raises PolicyError: somebody has it; no VPID is asked for.
        """
        cdef uint32_t number = within("vpid", vpid, 1, VPIDS - 1, PolicyError)
        self.vm.inside()
        if self.given is None:
            raise PolicyError("no VPID is asked for: set_bit() is for allocate_vpid()")
        if not vpid_take(&self.host.map, number):
            raise PolicyError(f"VPID {number} is another vCPU's; choose one of which test_bit() is False")
        self.given.add(number)

    def clear_bit(self, vpid):
        """Give one back: in :meth:`fastmmu.Kvm.free_vpid` that of the vCPU that ends, in
        :meth:`fastmmu.Kvm.allocate_vpid` one that it took.

        :param vpid: 1 to 65535. :raises PolicyError: it is another's.
        """
        cdef uint32_t number = within("vpid", vpid, 1, VPIDS - 1, PolicyError)
        self.vm.inside()
        if self.given is not None and number in self.given:
            self.given.remove(number)
        elif number == self.ends:
            self.ends = 0
        else:
            raise PolicyError(f"VPID {number} is not that of a vCPU that ends: clear_bit() is for free_vpid(), with "
                              "vcpu.vpid")
        vpid_free(&self.host.map, number)

    # ---- what came of it -------------------------------------------------------------------------------------

    cdef void undo(self):
        for number in self.given:
            vpid_free(&self.host.map, number)
        self.given = set()

    cdef uint32_t granted(self, answer, bint enabled) except? 0xBAD:
        # what allocate_vpid() returned, where it is what it took
        vpid = whole("what allocate_vpid() returned", answer)
        if vpid and not enabled:
            raise PolicyError(f"allocate_vpid() returned {counted(vpid)}: the machine has no VPIDs; use "
                              "Config(vpid=True), or return 0 where vm.enable_vpid is False")
        if self.given != ({vpid} if vpid else set()):
            has = ", ".join(map(str, sorted(self.given)[:4])) or "no VPID"
            raise PolicyError(f"allocate_vpid() returned {counted(vpid)} and has set {has}: set_bit() the one that it "
                              "returns, or return 0 for none")
        return vpid
