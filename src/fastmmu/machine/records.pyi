from typing import Final

import numpy as np
import numpy.typing as npt

FAULTS: Final[dict[int, str]]

def scan(raw: npt.NDArray[np.uint8]) -> tuple[int, int, int, int]: ...
