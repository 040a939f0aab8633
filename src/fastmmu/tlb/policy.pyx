"""Replacement policies of other packages: what they derive from, and their names. Header, and what a policy is:
tlb/policy.pxd.
"""

from fastmmu._arguments cimport shown
from fastmmu.errors import ConfigError, WrongTypeError
from fastmmu.tlb.arrays import REPLACEMENTS, add_replacement

cdef dict _registered = {}


cdef class ReplacementPolicy:
    """A replacement policy in Cython, of any package: a class derived from it, whose constructor fills in
    ``self.policy`` (tlb/policy.pxd says with what; examples/policy is one). :func:`register_policy` gives it a name.

    Threads: immutable once it has a name; its functions are called in the thread that uses the TLB.
    """


def register_policy(name, policy, described_as=None):
    """Gives a replacement policy a name, under which ``replacement=`` of :class:`fastmmu.Config` and
    :func:`fastmmu.geometry` takes it, for as long as the process lives: ``"lru,NAME"``, ``"NAME:7"``.

    :param name: lower-case letters, digits and underscores, beginning with a letter; not yet taken.
    :param policy: of a class derived from :class:`ReplacementPolicy`.
    :param described_as: what tables call it; default: the name.
    :raises ConfigError: the name is none or taken, or the policy lacks a function or wants more than a MB of an array
        or 4096 bytes of a set or a way.
    """
    cdef const Replacer *p
    if not isinstance(policy, ReplacementPolicy):
        raise WrongTypeError(f"policy must be of a class derived from ReplacementPolicy, not {shown(policy)}")
    if not isinstance(name, str) or not (name.isascii() and name.isidentifier() and name == name.lower()):
        raise ConfigError(f"a replacement policy cannot be called {shown(name)}; use lower-case letters and digits")
    if described_as is not None and not isinstance(described_as, str):
        raise WrongTypeError(f"described_as must be text, not {shown(described_as)}")
    p = &(<ReplacementPolicy> policy).policy
    if p.on_hit == NULL or p.on_fill == NULL or p.victim == NULL:
        raise ConfigError(f"the replacement policy {name} lacks one of on_hit, on_fill, victim")
    if p.own_bytes > 1 << 20 or p.set_bytes > 4096 or p.way_bytes > 4096:
        raise ConfigError(f"the replacement policy {name} wants {p.own_bytes} bytes of an array, {p.set_bytes} of a "
                          f"set, {p.way_bytes} of a way; at most 1048576, 4096 and 4096")
    if p.fetches and p.own_bytes < 8 * FETCHES:
        raise ConfigError(f"the replacement policy {name} looks at fetches, which need the first 16 of its own_bytes")
    if name in REPLACEMENTS or name in _registered:
        raise ConfigError(f"there is a replacement policy {name!r} already; give another name")
    _registered[name] = policy                  # which lives from now on: arrays point into it
    add_replacement(name, described_as or name)


cdef const Replacer *registered_policy(str name) except NULL:
    if name not in _registered:
        raise ConfigError(f"there is no replacement policy {name!r}")
    return &(<ReplacementPolicy> _registered[name]).policy
