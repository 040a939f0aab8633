"""Data caches of the physical CPUs of a host, or of a system trace. Header: shared_caches.pxd."""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.cache.hierarchy cimport MOST_CPUS
from fastmmu.cache.hierarchy_py cimport CacheHierarchy
from fastmmu.cpu.vcpu cimport vcpu_use_caches
from fastmmu.machine.board cimport Board

from fastmmu.errors import ConfigError
from fastmmu.machine.topology import topology


cdef tuple caches_of_cpus(object config, uint32_t cpus, uint64_t nbytes, object turns):
    # one each, those of the hyperthreads of a core the same; L3 and memory shared; () without
    cdef CacheHierarchy first, more
    if config.caches is None:
        return ()
    threads = 1 if config.topology is None else topology(config.topology).threads
    cores = cpus // threads
    if cores > MOST_CPUS:
        raise ConfigError(f"caches={config.caches!r} of {cores} cores; at most {MOST_CPUS} share an L3")
    first = CacheHierarchy(config.cache_description)
    first.use_frames(config.host_frames, nbytes, config.backing_bytes)
    first.turns = turns
    found = [first] * threads
    for _ in range(1, cores):
        more = CacheHierarchy(first)
        found += [more] * threads
    return tuple(found)


cdef int caches_under(Board b, CacheHierarchy caches) except -1:
    b.caches = caches
    vcpu_use_caches(b.v, caches.c, &b.kvm.mmu.caches)
    return 0


cdef void caches_here(Board b, CacheHierarchy caches, uint32_t number):
    # the vCPU that is loaded runs on the physical CPU that has these; its number of all of the host
    b.v.caches = caches.c
    if b.v.guest:
        b.v.exit_touches = 1 + number


cdef int check_same(object config, object first) except -1:
    # machines of one host have its caches under them
    if (config.caches, config.host_frames) != (first.caches, first.host_frames):
        raise ConfigError(f"caches={config.caches!r}, host_frames={config.host_frames!r} beside {first.caches!r}, "
                          f"{first.host_frames!r}: the machines of a Host share its caches; give all of them the same")
    return 0
