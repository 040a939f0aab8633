from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastmmu.errors import Code

class MemoryType(Code):
    UC = 0
    WC = 1
    WT = 4
    WP = 5
    WB = 6
    UC_MINUS = 7

class Mtrrs:
    registers: Mapping[str, Any]
    def __init__(
        self, def_type: int = 0x806, fixed: Sequence[int] | None = None, variable: Iterable[tuple[int, int]] = ()
    ) -> None: ...
    def type_at(self, pa: int) -> MemoryType: ...
