from __future__ import annotations

import numpy as np
import numpy.typing as npt

class PacketStream:
    @property
    def others(self) -> int: ...
    def parse(
        self,
        data: bytes | bytearray | memoryview,
        start: int,
        stop: int,
        op: npt.NDArray[np.uint8],
        size: npt.NDArray[np.uint8],
        addr: npt.NDArray[np.uint64],
        n: int,
    ) -> tuple[int, int, int]: ...
