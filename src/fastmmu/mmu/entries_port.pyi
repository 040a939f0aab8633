from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from fastmmu.mmu.tables_port import Tables

_Pages = npt.NDArray[np.integer[Any]] | range | Sequence[int]
_Page = int | np.integer[Any]
_Bools = npt.NDArray[np.bool_]

class Entries(Tables):
    @overload
    def map(
        self,
        gfns: _Page,
        pfns: _Page | None = None,
        *,
        level: int = 1,
        rights: int = 7,
        memory_type: int | None = None,
        ignore_pat: bool | None = None,
    ) -> bool: ...
    @overload
    def map(
        self,
        gfns: _Pages,
        pfns: _Pages | None = None,
        *,
        level: int = 1,
        rights: int = 7,
        memory_type: int | None = None,
        ignore_pat: bool | None = None,
    ) -> _Bools: ...
    def mark_mmio(self, gfns: _Page | _Pages) -> None: ...
    @overload
    def lookup(self, pages: _Page) -> np.void: ...
    @overload
    def lookup(self, pages: _Pages) -> npt.NDArray[np.void]: ...
    @overload
    def zap(self, gfns: _Page) -> bool: ...
    @overload
    def zap(self, gfns: _Pages) -> _Bools: ...
    @overload
    def write_protect(self, gfns: _Page, *, restorable: bool = True) -> bool: ...
    @overload
    def write_protect(self, gfns: _Pages, *, restorable: bool = True) -> _Bools: ...
    @overload
    def clear_dirty(self, gfns: _Page) -> bool: ...
    @overload
    def clear_dirty(self, gfns: _Pages) -> _Bools: ...
    @property
    def flush(self) -> bool: ...
    @flush.setter
    def flush(self, value: bool) -> None: ...
