from typing import NamedTuple

class AsidCpu(NamedTuple):
    asid_generation: int
    next_asid: int
    max_asid: int
    min_asid: int

class Asid(NamedTuple):
    asid: int
    generation: int
    flush_all: bool

class AsidAllocator:
    def __init__(self, cpus: int = 1, *, asids: int = 32768, min_asid: int = 1) -> None: ...
    def new_asid(self, cpu: int = 0) -> Asid: ...
    def __len__(self) -> int: ...
    def __getitem__(self, cpu: int, /) -> AsidCpu: ...
