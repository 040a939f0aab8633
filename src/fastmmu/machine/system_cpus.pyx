"""The CPUs of a system trace, for Python; header: machine/system_cpus.pxd."""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu._arguments cimport instance, many, within
from fastmmu.machine.board cimport Board
from fastmmu.machine.host cimport Host, _HostVcpu
from fastmmu.machine.layout cimport host_bytes
from fastmmu.machine.machine cimport Machine
from fastmmu.machine.shared_caches cimport caches_of_cpus, caches_under
from fastmmu.machine.vcpus cimport vcpu_set_registers
from fastmmu.kvm.asid_py cimport AsidAllocator
from fastmmu.kvm.vpid_py cimport VpidAllocator
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.paging.state cimport GuestState
from fastmmu.tlb.tlb cimport TLB
from fastmmu.threads.turns cimport Turn, Turns

from fastmmu.counters import COUNTERS
from fastmmu.errors import ConfigError
from fastmmu.machine.hosted import tlbs_of

_OF_VM = frozenset(row.name for row in COUNTERS if "mmu." in row.at) | {"remote_flushes", "flush_requests", "ipis"}
_LARGEST = frozenset({"apic_latency_max"})


cdef class SystemCpus:
    """The CPUs of a system trace.

    :param config: :class:`Config`. :param states: :class:`GuestState` of each CPU at the start.
    :param policy: overrides handlers of VM exits.
    :raises ConfigError: no state, or a configuration that cannot run them.

    Threads: as of :class:`Machine`.
    """

    def __init__(self, config, states, *, policy=None):
        self.states = tuple([instance("a state", state, GuestState) for state in many("states", states)])
        if not self.states:
            raise ConfigError("no state; give a GuestState for each CPU")
        if len(self.states) == 1:
            self.machines = Machine(config, policy=policy, guest_kernel=False, state=self.states[0]),
        elif config.mmu == "native":
            self._native(config, policy)
        else:
            self._hosted(config, policy)
        self.tlbs = self.tlbs or tuple([machine.tlb for machine in self.machines])

    def _native(self, config, policy):
        cdef uint64_t nbytes = host_bytes(config)
        cdef TLB tlb
        cdef Turns turns
        cdef PhysicalMemory memory = PhysicalMemory(nbytes + 0x1FFFFF & ~<uint64_t> 0x1FFFFF)
        vpids, asids = VpidAllocator(), AsidAllocator()     # natively nobody asks for any
        cdef Machine machine
        machines = []
        tlbs = tlbs_of(config, len(self.states))
        turns = (<TLB> tlbs[0]).turns
        caches = caches_of_cpus(config, len(tlbs), memory.mem.nbytes, turns) or (None,) * len(tlbs)
        for state, tlb, own in zip(self.states, tlbs, caches, strict=True):
            tlb.turns = turns
            machine = Machine(config, policy=policy, guest_kernel=False, state=state,
                              place=(memory, 0, tlb, vpids, asids))
            if own is not None:
                caches_under(machine.board, own)
            machines.append(machine)
        self.machines = tuple(machines)

    def _hosted(self, config, policy):
        cdef _HostVcpu vcpu
        cdef uint32_t count = <uint32_t> len(self.states), i
        cdef Machine machine
        self.host = Host([(config, count)], cpus=count, guest_kernel=False, state=self.states[0], policy=policy)
        machine = self.host.machines[0]
        self.machines = (machine,) * count
        self.tlbs = self.host.cpus
        for i in range(1, count):
            vcpu = self.host.vcpu[i]
            vcpu_set_registers(machine.board, vcpu.run, self.states[i])
        for i in range(count):
            self.host._place(i, i)
        self.host._place(0, 0)

    cdef Board turn_to(self, uint32_t cpu):
        # this CPU runs from now on
        if self.host is not None:
            self.host._place(cpu, cpu)
        return (<Machine> self.machines[cpu]).board

    def resume(self, Machine machine not None):
        """Go on with another machine of the same configuration in the place of the only one."""
        if len(self.machines) != 1:
            raise ConfigError(f"{len(self.machines)} CPUs; a machine takes the place of one")
        self.machines, self.tlbs = (machine,), (machine.tlb,)

    def counters(self, cpu):
        """Counters of a CPU, as of :meth:`Machine.counters`; those of the VMM are of its machine."""
        cdef _HostVcpu vcpu
        cdef Turn _turn
        cpu = within("cpu", cpu, 0, len(self.states) - 1, ConfigError)
        if self.host is None:
            return self.machines[cpu].counters()
        _turn = self.host.turns.take()
        vcpu = self.host.vcpu[cpu]
        return vcpu.vm.board._counters(vcpu.run, &(<TLB> self.tlbs[cpu]).t.c)

    def totals(self):
        """Counters of all CPUs together."""
        once = _OF_VM if self.host is None else _OF_VM | {"uses_compared", "stale_uses"}
        found = self.counters(0)
        for cpu in range(1, len(self.machines)):
            for name, value in self.counters(cpu).items():
                if isinstance(value, dict):
                    for key, n in value.items():
                        found[name][key] = found[name].get(key, 0) + n
                elif name in _LARGEST:
                    found[name] = max(found[name], value)
                elif name not in once:
                    found[name] += value
        return found
