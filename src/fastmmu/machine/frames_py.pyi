from collections.abc import Sequence

from fastmmu.machine.machine import Machine
from fastmmu.paging.contiguity import Contiguity

__all__ = ["buddyinfo", "program_runs", "unusable_index"]

def buddyinfo(machine: Machine) -> tuple[int, ...] | None: ...
def program_runs(machine: Machine) -> Contiguity: ...
def unusable_index(chunks: Sequence[int], order: int = 9) -> float: ...
