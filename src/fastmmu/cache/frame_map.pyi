import numpy as np
import numpy.typing as npt

__all__ = ["host_frame_plan", "map_frames"]

def host_frame_plan(text: object) -> tuple[float | None, int]: ...
def map_frames(text: str, nbytes: int, page: int, hpa: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]: ...
