"""Executable specification of what invalidates cached translations (tlb.md §3-§5, §11), each row as it reads.

Nothing is forgotten that a row does not name.
"""

from __future__ import annotations

from collections.abc import Callable

from .tlb import LINEAR, MAPPINGS, Caches, Entry

__all__ = ["Tlb"]

Which = Callable[[Entry], bool]


def _linear(entry: Entry) -> bool:
    """Linear or combined mapping, or a paging-structure entry of either kind."""
    return entry.kind in ("local", "global", "psc")


def _of(vpid: int, pcid: int | None = None, *, globals_too: bool = True) -> Which:
    """Linear and combined ones of a VPID, of one PCID or of all, with all EPT roots."""

    def which(entry: Entry) -> bool:
        if not _linear(entry) or entry.vpid != vpid:
            return False
        if entry.kind == "global":
            return globals_too
        return pcid is None or entry.pcid == pcid

    return which


def _for(address: int, which: Which) -> Which:
    """Those of the page that holds the address, all pieces of it."""
    return lambda entry: which(entry) and address & LINEAR in entry.page


def _used_for(address: int, which: Which) -> Which:
    """Those that translate the address, whatever there is of the rest of its page."""
    return lambda entry: which(entry) and address & LINEAR in entry.own


class Tlb(Caches):
    """All caches of translations of one physical CPU. Every method gives the number of entries invalidated."""

    # ---- tlb.md §3 --------------------------------------------------------------------------------------------

    def _context(self, cause: str, which: Which) -> int:
        self.flushes[cause] += 1
        return self._flush(cause, which)

    def _address(self, cause: str, which: Which) -> int:
        self.flushes[cause] += 1
        return self._drop(cause, which)

    def mov_cr3(self, vpid: int = 0, pcid: int = 0) -> int:
        return self._context("cr3", _of(vpid, pcid, globals_too=False))

    def cr0_pg(self, vpid: int = 0) -> int:
        return self._context("cr0", _of(vpid))

    def cr4_all(self, vpid: int = 0) -> int:
        return self._context("cr4", _of(vpid))

    def cr4_pcid(self, vpid: int = 0, pcid: int = 0) -> int:
        return self._context("cr4", _of(vpid, pcid, globals_too=False))

    def invlpg(self, la: int, vpid: int = 0, pcid: int = 0) -> int:
        """Global ones too; of the paging-structure caches everything of the PCID."""
        mine = _of(vpid, pcid)
        n = self._address("invlpg", _for(la, lambda entry: mine(entry) and entry.kind != "psc"))
        return n + self._flush("invlpg", lambda entry: mine(entry) and entry.kind == "psc")

    def page_fault(self, la: int, vpid: int = 0, pcid: int = 0) -> int:
        return self._address("page_fault", _for(la, _of(vpid, pcid, globals_too=False)))

    # ---- tlb.md §4 --------------------------------------------------------------------------------------------

    def invpcid(self, type: int, vpid: int = 0, pcid: int = 0, la: int = 0) -> int:
        cause = f"invpcid_{type}"
        if type == 0:
            return self._address(cause, _for(la, _of(vpid, pcid, globals_too=False)))
        return self._context(
            cause,
            {
                1: _of(vpid, pcid, globals_too=False),
                2: _of(vpid),
                3: _of(vpid, globals_too=False),
            }[type],
        )

    # ---- tlb.md §5 --------------------------------------------------------------------------------------------

    def transition(self, vpid_enabled: bool = False) -> int:
        if not vpid_enabled:
            return self._context("transition", _of(0))
        self.survivals += sum(
            1 for c in self.caches if c.unit in MAPPINGS for _, _, entry in self._own(c) if entry.kind != "gpm"
        )
        return 0

    def invvpid(self, type: int, vpid: int = 0, la: int = 0) -> int:
        cause = f"invvpid_{type}"
        if type == 0:
            return self._address(cause, _for(la, _of(vpid)))
        return self._context(
            cause,
            {
                1: _of(vpid),
                2: lambda entry: _linear(entry) and entry.vpid != 0,
                3: _of(vpid, globals_too=False),
            }[type],
        )

    def invept(self, type: int, eptrta: int = 0) -> int:
        """Guest-physical mappings too; linear ones stay."""
        if type == 1:
            return self._context("invept_1", lambda entry: entry.eptrta == eptrta)
        return self._context("invept_2", lambda entry: entry.eptrta is not None)

    def vmfunc(self, vpid_enabled: bool = False) -> int:
        mine = _of(0)
        return 0 if vpid_enabled else self._context("vmfunc", lambda entry: mine(entry) and entry.eptrta is not None)

    def ept_violation(
        self, gpa: int, eptrta: int | None, *, vpid: int = 0, pcid: int = 0, la: int | None = None
    ) -> int:
        n = self._address(
            "ept_violation", _used_for(gpa, lambda entry: entry.kind in ("gpm", "epsc") and entry.eptrta == eptrta)
        )
        if la is None:
            return n
        mine = _of(vpid, pcid, globals_too=False)
        return n + self._drop("ept_violation", _used_for(la, lambda entry: mine(entry) and entry.eptrta == eptrta))

    # ---- tlb.md §11: AMD, with the ASID for a VPID and asid << 12 for an EPT root -------------------------------

    def invlpga(self, la: int, asid: int = 0) -> int:
        return self._address("invlpga", _for(la, _of(asid)))

    def tlb_control(self, control: int, asid: int = 0) -> int:
        """VMRUN; of guest-physical entries the ASID is their only tag."""
        linear, kept = _of(asid), () if control == 3 else ("global",)
        if control == 0:
            return 0
        if control == 1:
            return self._context("tlb_control_1", lambda entry: True)
        return self._context(
            f"tlb_control_{control}",
            lambda entry: (
                (linear(entry) and entry.kind not in kept)
                or (entry.kind in ("gpm", "epsc") and entry.eptrta == asid << 12)
            ),
        )

    def reset(self) -> int:
        return self._context("reset", lambda entry: True)
