"""Every member of every struct that a machine is made of is written, or a comment says why not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "fastmmu"
DESCRIPTIONS = sorted((SRC / "machine" / "checkpoint").glob("*.pyx"))
WHOLE = {
    "Counters", "KvmCounters", "KvmStats", "MmuCounters", "TlbCounters", "GuestCounters", "ApicCounters", "Stale",
    "Seen", "Stored", "ExtensionCounters", "ExitRecord", "CacheCounters",
}  # fmt: skip
"""Written as they lie in memory: numbers, none of which is an index."""
DERIVED = {
    "Mem": "memory, of the new machine",
    "TlbUnit": "numbers of entries, counted anew, and pointers to arrays",
    "TlbPort": "pointers into the first level",
    "TlbSet": "written as it lies in memory, and checked (tlb.pyx)",
    "PolicySets": "what a policy remembers is written whole, the rest is the configuration's (tlb.pyx)",
    "Pages": "of calls from Python, without a machine",
    "Lost": "of hyperthreads, which are not written",
    "Policy": "what the configuration says",
    "Agile": "agile paging has no checkpoints",
    "AgileMmu": "agile paging has no checkpoints",
    "Modes": "what the configuration says",
    "SpteFormat": "constant",
    "PmlQuery": "of a query",
    "Permutation": "of the configuration",
    "FrameMap": "of the configuration",
    "LayoutRun": "of the configuration",
}
"""Structs that others have, and that are not described by themselves."""
FUNCTIONS = {"ExitHandler", "Premap", "Surface", "PageQuery", "ReferenceTold"}
OUTSIDE = {"Lost", "Walk", "Steps", "Segments", "Registers"}


def members(struct: str, path: Path) -> set[str]:
    found = re.search(rf"^cdef struct {struct}:.*\n((?:(?:    .*)?\n)+)", path.read_text(), re.MULTILINE)
    assert found is not None, f"{path} has no struct {struct}"
    names: set[str] = set()
    for line in found[1].splitlines():
        code = re.sub(r"\[[^\]]*\]", "", line.partition("#")[0]).strip()
        if "(*" in code:
            names.add(re.search(r"\(\*(\w+)\)", code)[1])  # type: ignore[index]
        elif code:
            first, *more = code.split(",")
            names.add(first.split()[-1].lstrip("*"))
            names |= {name.strip().lstrip("*") for name in more}
    return names


def described() -> dict[str, tuple[str, str]]:
    """Struct: (its header, the text of the function that describes it)."""
    found = {}
    for path in DESCRIPTIONS:
        for text in re.split(r"\n\n\n", path.read_text()):
            comment = " ".join(line.strip().lstrip("# ") for line in text.splitlines() if line.strip().startswith("#"))
            for structs, header in re.findall(r"((?:\w+, )*\w+) of (\w+/[\w/]+\.pxd)", comment):
                for struct in structs.split(", "):
                    found[struct] = (header, text)
    return found


ALL = described()


@pytest.mark.parametrize("struct", sorted(ALL.keys() - WHOLE))
def test_no_member_is_forgotten(struct: str) -> None:
    header, text = ALL[struct]
    lacking = {name for name in members(struct, SRC / header) if not re.search(rf"\b{name}\b", text)}
    assert lacking == set(), f"{struct}: write these members in machine/checkpoint, or say in its comment why not"


@pytest.mark.parametrize("struct", sorted(ALL))
def test_every_struct_within_is_described(struct: str) -> None:
    """Structs that are members of one that is written."""
    header, _ = ALL[struct]
    text = re.search(rf"^cdef struct {struct}:.*\n((?:(?:    .*)?\n)+)", (SRC / header).read_text(), re.MULTILINE)
    assert text is not None
    types = {line.split()[0] for line in text[1].splitlines() if line.strip() and line.strip()[0] != "#"}
    types = {name for name in types if re.fullmatch(r"[A-Z]\w+", name)} - FUNCTIONS
    assert types <= ALL.keys() | DERIVED.keys() | WHOLE | OUTSIDE


STRUCTS = """
Apic Born Buddy CacheArray Caches CachesShared Delivery Detector Ept ExitLog Extension Extensions Frame FrameList Frames
GuestCpu GuestKernel HashTable Interrupts Kvm KvmVcpu Memslot Memslots Mmu MmuContext MtrrState Paging Patch PlacedPages
Recency Registers Reserved Ring Run Sp Space SvmCpu Tlb TlbArray TlbContext Vapic Vcpu Vmcs VpidMap
"""


def test_those_that_a_machine_is_made_of() -> None:
    assert set(STRUCTS.split()) <= ALL.keys()


EXTENSIONS = {"clustered": "Clusters", "ranges": "Ranges", "pom": "Pom", "prefetch": "Prefetches", "mixed": "Mixed"}


@pytest.mark.parametrize("module", EXTENSIONS)
def test_no_member_of_an_extension_is_forgotten(module: str) -> None:
    """Each describes its state itself, by blocks."""
    path = SRC / "tlb" / f"{module}.pyx"
    (text,) = re.findall(r"^cdef void \*block\(.*\n(?:    .*\n|\n(?=    ))+", path.read_text(), re.MULTILINE)
    lacking = {name for name in members(EXTENSIONS[module], path) if not re.search(rf"\b{name}\b", text)}
    assert lacking == set()
