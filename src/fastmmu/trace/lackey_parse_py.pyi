from __future__ import annotations

import numpy as np
import numpy.typing as npt

def parse(
    text: bytes | bytearray | memoryview,
    start: int,
    stop: int,
    last: bool,
    op: npt.NDArray[np.uint8],
    size: npt.NDArray[np.uint8],
    addr: npt.NDArray[np.uint64],
    n: int,
    pid: int = 0,
    skip: bool = False,
) -> tuple[int, int, int, int, int, int]: ...
def format(
    op: npt.NDArray[np.uint8],
    size: npt.NDArray[np.uint8],
    addr: npt.NDArray[np.uint64],
    first: int = 0,
    path: str | None = None,
) -> bytearray: ...
