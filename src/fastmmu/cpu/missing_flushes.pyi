from typing import Final, NamedTuple

KINDS: Final[tuple[str, ...]]
OWED: Final[tuple[str, ...]]

class StaleUse(NamedTuple):
    event: int
    address: int
    access: int
    kind: str
    cached: int
    backed: int | None
    cached_by: int | None
    table: str
    level: int
    entry: int | None
    was: int
    now: int
    changed_by: int | None
    owed: str
    vpid: int
    pcid: int

class MissingFlushes:
    def __new__(cls, *, shadow: bool = False, amd: bool = False) -> MissingFlushes: ...
    @property
    def uses(self) -> int: ...
    @property
    def found(self) -> int: ...
    def counters(self) -> dict[str, int | dict[str, int]]: ...
    def examples(self) -> list[StaleUse]: ...
