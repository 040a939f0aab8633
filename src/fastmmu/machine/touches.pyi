import numpy as np
import numpy.typing as npt

class Touches:
    def forget(self) -> None: ...
    def first(
        self, op: npt.NDArray[np.uint8], size: npt.NDArray[np.uint8], addr: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.int64]: ...
