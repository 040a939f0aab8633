"""The dirty log as user space asks for it: what it protects, and when (kvm_policy.md §4.1).

The kernels' form of these rules: mmu/dirty_log.pyx. What a write to a protected page does is a fault's matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmmu.kvm.policy.base import Base

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fastmmu.kvm.log_port import DirtyLog

__all__ = ["DirtyLogs"]


class DirtyLogs(Base):
    """What user space does to dirty logs (:class:`fastmmu.Vmm`)."""

    def start_dirty_log(self, log: DirtyLog) -> None:
        """A slot is logged from now on: none of its pages can be written unseen (kvm_mmu_slot_apply_flags). Not asked
        of a log that starts with all pages set: that is protected as it is cleared."""
        log.protect_slot()

    def get_dirty_log(self, log: DirtyLog, dirty: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """User space reads the log, which begins anew: the pages that were written are protected again
        (kvm_get_dirty_log_protect).

        :param dirty: one a page; what is returned is what user space gets. Not asked of a log that is cleared by hand.
        """
        log.protect(dirty)
        return dirty
