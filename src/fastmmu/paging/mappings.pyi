from collections.abc import Iterator

import numpy as np

from fastmmu.dtypes import Fault
from fastmmu.paging.memory import PhysicalMemory
from fastmmu.paging.state import GuestState, SecondLevel

MAX_ROWS: int

class MappingArray(np.recarray[tuple[int], np.dtype[np.void]]):
    truncated: bool | None
    skipped: dict[Fault, int] | None
    faults: np.recarray[tuple[int], np.dtype[np.void]] | None

class MappingIterator(Iterator[np.recarray[tuple[int], np.dtype[np.void]]]):
    @property
    def truncated(self) -> bool: ...
    @property
    def rows(self) -> int: ...
    @property
    def skipped(self) -> dict[Fault, int]: ...
    @property
    def faults(self) -> np.recarray[tuple[int], np.dtype[np.void]]: ...
    def __next__(self) -> np.recarray[tuple[int], np.dtype[np.void]]: ...

def mappings(
    mem: PhysicalMemory,
    state: GuestState,
    eptp: int | SecondLevel | None = None,
    *,
    start: int | None = None,
    stop: int | None = None,
    limit: int | None = None,
    threads: int = 1,
) -> MappingArray: ...
def iter_mappings(
    mem: PhysicalMemory,
    state: GuestState,
    eptp: int | SecondLevel | None = None,
    *,
    start: int | None = None,
    stop: int | None = None,
    limit: int | None = None,
    chunk: int = ...,
) -> MappingIterator: ...
def ept_mappings(
    mem: PhysicalMemory,
    eptp: int | SecondLevel,
    *,
    start: int | None = None,
    stop: int | None = None,
    limit: int | None = None,
) -> MappingArray: ...
def iter_ept_mappings(
    mem: PhysicalMemory,
    eptp: int | SecondLevel,
    *,
    start: int | None = None,
    stop: int | None = None,
    limit: int | None = None,
    chunk: int = ...,
) -> MappingIterator: ...
