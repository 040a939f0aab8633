from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from fastmmu.machine.machine import Machine
from fastmmu.paging.state import GuestState

KINDS: Final[tuple[str, ...]]

class SystemReplay:
    @property
    def machine(self) -> Machine: ...
    @property
    def state(self) -> GuestState: ...
    @property
    def tables(self) -> list[int]: ...
    def __init__(self, machine: Machine, state: GuestState, *, omit: Sequence[str] = ()) -> None: ...
    def run(
        self, rows: npt.NDArray[np.uint8], data: npt.NDArray[np.uint64], pages: npt.NDArray[np.uint8], first: int = 0
    ) -> None: ...
    def counters(self) -> dict[str, int]: ...
    def examples(self) -> list[tuple[int, str, int, int]]: ...
