class SvmCpuData:
    asid_generation: int
    next_asid: int
    @property
    def max_asid(self) -> int: ...
    @property
    def min_asid(self) -> int: ...
