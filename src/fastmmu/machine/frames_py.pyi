from collections.abc import Sequence

from fastmmu.machine.machine import Machine

__all__ = ["buddyinfo", "unusable_index"]

def buddyinfo(machine: Machine) -> tuple[int, ...] | None: ...
def unusable_index(chunks: Sequence[int], order: int = 9) -> float: ...
