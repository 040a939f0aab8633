from typing import NamedTuple

from fastmmu.machine.assembly import Assembly

class Access(NamedTuple):
    gpa: int | None
    error_code: int | None
    cr2: int | None

class Load(NamedTuple):
    gpa: int | None
    error_code: int | None
    cr2: int | None
    value: int | None

class Instructions(Assembly):
    def access(self, la: int, access: str = "r", *, user: bool = False, size: int = 1) -> Access: ...
    def load(self, la: int, size: int = 8, *, user: bool = False) -> Load: ...
    def store(self, la: int, value: int, size: int = 8, *, user: bool = False) -> Access: ...
    def exit_instruction(self, reason: int) -> None: ...
    def invlpg(self, la: int) -> None: ...
