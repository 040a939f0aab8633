from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fastmmu.cache.hierarchy_py import CacheHierarchy

_Arrays = dict[str, npt.NDArray[np.generic]]

def caches_state(caches: CacheHierarchy) -> tuple[list[str], _Arrays]: ...
def restore_caches(caches: CacheHierarchy, names: Sequence[str], arrays: _Arrays) -> None: ...
