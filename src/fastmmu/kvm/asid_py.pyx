"""`AsidAllocator`: the ASIDs of the physical CPUs of one host, for Python."""

from typing import NamedTuple

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastmmu._arguments cimport within
from fastmmu.kvm.asid cimport asid_init, asid_new

from fastmmu.errors import ConfigError, OutOfMemoryError, StateError


class AsidCpu(NamedTuple):
    """ASIDs of a physical CPU: generation, from 1 on; next_asid, the next that it gives out (max_asid + 1: a new
    generation begins first); max_asid, min_asid."""

    asid_generation: int
    next_asid: int
    max_asid: int
    min_asid: int


class Asid(NamedTuple):
    """What a vCPU gets: asid; generation, that it is of; flush_all, the VM entry flushes all ASIDs of the CPU."""

    asid: int
    generation: int
    flush_all: bool


cdef class AsidAllocator:
    """The ASIDs of the physical CPUs of one host, as KVM gives them out to vCPUs of AMD: the next one of a generation,
    and a new generation, with a flush of all, where they have run out. None is given back. A vCPU keeps its own while
    it stays on the CPU and the generation does (pre_svm_run, new_asid of Linux; tlb.md §11).

    :param cpus: physical CPUs, 1..4096. :param asids: that a CPU has, 2..65536, the host's 0 included (CPUID
        8000000AH EBX). :param min_asid: the first that is given out, those below are of encrypted guests.
    :raises ConfigError: no ASID is left to give out.

    Threads: each call is one step.
    """

    def __cinit__(self, cpus=1, *, asids=32768, min_asid=1):
        cdef uint32_t i, many = within("asids", asids, 2, 65536, ConfigError)
        cdef uint32_t least = within("min_asid", min_asid, 1, 65535, ConfigError)
        cdef uint32_t n = within("cpus", cpus, 1, 4096, ConfigError)
        if least >= many:
            raise ConfigError(f"min_asid={least}: of {many} ASIDs none is left to give out; give a smaller one")
        self.cpu = <SvmCpu *> calloc(n, sizeof(SvmCpu))
        if self.cpu == NULL:
            raise OutOfMemoryError("no memory for the ASIDs of the CPUs")
        self.n = n
        for i in range(n):
            asid_init(&self.cpu[i], many, least)

    def __dealloc__(self):
        free(self.cpu)

    def new_asid(self, cpu=0):
        """An ASID of a physical CPU, an :class:`Asid`: of a vCPU that is new there, or whose own is of another
        generation.

        :raises StateError: there is no such CPU.
        """
        cdef uint32_t asid = 0, at = within("cpu", cpu, 0, self.n - 1, StateError)
        cdef uint64_t generation = 0
        begins = asid_new(&self.cpu[at], &asid, &generation)
        return Asid(asid, generation, bool(begins))

    def __len__(self):
        return self.n

    def __getitem__(self, cpu):
        cdef uint32_t at = within("cpu", cpu, 0, self.n - 1, IndexError)
        cdef const SvmCpu *sd = &self.cpu[at]
        return AsidCpu(sd.asid_generation, sd.next_asid, sd.max_asid, sd.min_asid)
