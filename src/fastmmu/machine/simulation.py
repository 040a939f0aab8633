"""One run, fed batch by batch; its exits as they come; its result."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fastmmu._checked import checked, checked_but
from fastmmu.errors import CheckpointError
from fastmmu.machine.cache_counts import cache_counts
from fastmmu.machine.cache_result import caches_between
from fastmmu.machine.checkpoint.machines import OWN, machine_of, own, read, stored, write
from fastmmu.machine.config import Config, as_config
from fastmmu.machine.costs import CostModel, cycles
from fastmmu.machine.identity import Content, Origin
from fastmmu.machine.machine import Machine
from fastmmu.machine.policy import Policy, policy_name
from fastmmu.machine.result import Result
from fastmmu.ops import Op

__all__ = ["Events", "Exits", "Part", "Simulation", "Stream", "result_of"]

Exits = Callable[[npt.NDArray[np.void]], None]
"""Called with VM exits as they come, arrays of ``fastmmu.dtypes.EXIT_DTYPE``: every exit once, in order. Where Ctrl-C
interrupts such a call, it is made once more, with the same array."""

_PART = 1 << 16  # events between two calls of it


class Events(Protocol):
    """Columns of consecutive events, see :class:`fastmmu.trace.Batch`."""

    @property
    def op(self) -> npt.NDArray[np.uint8]: ...
    @property
    def size(self) -> npt.NDArray[np.uint8]: ...
    @property
    def addr(self) -> npt.NDArray[np.uint64]: ...


class Simulation:
    """One run, fed batch by batch; :meth:`result` may be asked for at any time.

    ``content`` hashes the events that are fed (:class:`~fastmmu.machine.identity.Content`), so that results can be put
    side by side; None, set before the first batch: that is known otherwise. ``counted``: where the batches count
    instructions, as :class:`fastmmu.trace.Trace` says; None: nowhere.

    :param config: what is simulated. :param policy: overrides handlers of VM exits. :param costs: cost model.
    :param exits: is given every VM exit, also those before an exception that ends :meth:`feed`.

    Threads: as of its machine: one feeds it at a time, and :meth:`result` may be asked for meanwhile.
    """

    @checked_but("config", "policy")
    def __init__(
        self,
        config: Config | None = None,
        *,
        policy: Policy | None = None,
        costs: CostModel | None = None,
        exits: Exits | None = None,
    ) -> None:
        self.costs, self.policy = costs or CostModel.load(), policy
        self._begin(as_config(config), exits)
        self.content: Content | None = Content()
        self.counted: str | None = None
        self.instructions = 0
        self.seconds = 0.0

    def _begin(self, config: Config, exits: Exits | None) -> None:
        self.config, self.machine = config, Machine(config, policy=self.policy)
        self.exits = None if exits is None else Stream(self.machine, self.costs, exits)

    @checked
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the run as it is between two batches to a file, as :meth:`Machine.save` does: its machine, what it has
        counted, the hash of its events.

        :raises CheckpointError: its machine cannot be saved. :raises OSError: the file cannot be written.
        """
        content, arrays = (None, {}) if self.content is None else self.content.kept()
        more = {"what": "simulation", "content": content, "instructions": self.instructions, "seconds": self.seconds}
        own_arrays = {OWN + name: array for name, array in arrays.items()}
        write(path, stored(self.machine, {**more, "counted": self.counted}, own_arrays))

    @classmethod
    @checked_but("policy")
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        *,
        policy: Policy | None = None,
        vmm: type[Any] | None = None,
        costs: CostModel | None = None,
    ) -> Simulation:
        """The run of a file that :meth:`save` wrote, which goes on with the batch behind those that it was fed.

        :param policy, vmm: as of :meth:`Machine.from_checkpoint`. :param costs: cost model.
        :raises CheckpointError: no such file, damaged, or of another version. :raises OSError: it cannot be read.
        """
        found = read(path)
        more = found.header.more
        if more.get("what") != "simulation":
            raise CheckpointError(f"{found.path}: of no Simulation; see Machine.from_checkpoint, simulate(checkpoint=)")
        machine = machine_of(found, policy=policy, vmm=vmm)
        self = cls(Config(memory="64M"), policy=policy, costs=costs)
        self.resume(machine)
        try:
            self.content = None if more["content"] is None else Content()
            if self.content is not None:
                self.content.resume(more["content"], own(found.arrays))
            self.counted = None if more["counted"] is None else str(more["counted"])
            self.instructions, self.seconds = int(more["instructions"]), float(more["seconds"])
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise CheckpointError(f"{found.path}: damaged: {type(error).__name__}: {error}") from error
        return self

    @checked
    def resume(self, machine: Machine) -> None:
        """Go on with a machine that was saved."""
        self.config, self.machine = machine.config, machine

    @property
    def events(self) -> int:
        """Events carried out."""
        return self.machine.events

    @checked
    def feed(self, batch: Events, out: npt.NDArray[np.uint64] | None = None) -> None:
        """Run the events of a batch.

        :param out: receives the guest-physical address of each access, all ones for other events.
        :raises TraceError: an event that is none; ``where`` counts from the first event of the run.
        """
        if self.exits is not None and len(batch.op) > _PART:
            for first in range(0, len(batch.op), _PART):
                part = slice(first, first + _PART)
                self.feed(Part.of(batch, part), None if out is None else out[part])
            return
        if self.config.kernel_memory == "low" and not self.events and (np.asarray(batch.op) == Op.PLACE).any():
            self._begin(self.config.replace(kernel_memory="high"), None if self.exits is None else self.exits.exits)
        started, before, done = time.perf_counter(), self.events, 0
        try:
            done = self.machine.run(batch.op, batch.size, batch.addr, out, before)
        except KeyboardInterrupt:  # between two events of the batch
            done = self.events - before
            raise
        finally:
            self.seconds += time.perf_counter() - started
            if self.counted is not None and done:
                self.instructions += _instructions(batch, done)
            if self.content is not None and done:
                self.content.update(batch.op[:done], batch.size[:done], batch.addr[:done])
            if self.exits is not None:
                self.exits.give()

    @checked
    def result(self, *, trace: str = "", path: str = "", content: str = "", complete: bool = True) -> Result:
        """Counters and modelled cycles until now.

        :param trace, path: what was run, see :class:`~fastmmu.machine.result.Result`. :param content: its hash, where
            it is known otherwise.
        """
        known = content or ("" if self.content is None else self.content.digest())
        origin = Origin(trace, path, known)
        result = result_of(self.machine, self.costs, self.seconds, origin, complete, policy=self.policy)
        if self.counted is not None:
            result.counters["instructions"] = self.instructions
        return result


def _instructions(batch: Any, done: int) -> int:
    """Those begun by the first `done` events of a batch."""
    column = getattr(batch, "instructions", None)
    return int(np.count_nonzero(batch.op[:done] == Op.FETCH) if column is None else column[:done].sum(dtype=np.uint64))


class Stream:
    """The exits of a machine, given to who wants them: none is lost, whenever a signal comes."""

    def __init__(self, machine: Machine, costs: CostModel, exits: Exits) -> None:
        self.machine, self.costs, self.exits = machine, costs, exits
        self.given = 0
        self.part: npt.NDArray[np.void] | None = None
        machine.take_exits(costs)

    def give(self) -> None:
        if self.part is None:
            self.part = self.machine.take_exits(self.costs, first=self.given)
        if many := len(self.part):
            self.exits(self.part)
        self.given, self.part = self.given + many, None


class Part(NamedTuple):
    op: npt.NDArray[np.uint8]
    size: npt.NDArray[np.uint8]
    addr: npt.NDArray[np.uint64]
    instructions: npt.NDArray[np.uint32] | None = None

    @staticmethod
    def of(batch: Events, part: slice | npt.NDArray[np.intp]) -> Part:
        counted = getattr(batch, "instructions", None)
        return Part(batch.op[part], batch.size[part], batch.addr[part], None if counted is None else counted[part])


def result_of(
    machine: Machine,
    costs: CostModel,
    seconds: float,
    origin: Origin,
    complete: bool,
    notes: tuple[str, ...] = (),
    policy: Policy | None = None,
    counters: dict[str, Any] | None = None,
) -> Result:
    """A machine's counters with the cycles that the model makes of them; `origin`: trace, path, content."""
    counters = counters or machine.counters()
    caches = caches_between(cache_counts(machine), None)
    by_cause = cycles(counters, machine.config, costs, caches)
    return Result(
        config=machine.config,
        counters=counters,
        cycles=float(sum(by_cause.values())),
        cycles_by=by_cause,
        seconds=seconds,
        trace=origin.trace,
        complete=complete,
        notes=notes,
        tlb=machine.tlb.counters(),
        path=origin.path,
        content=origin.content,
        costs=costs.identity,
        geometry=str(machine.tlb.geometry),
        policy=policy_name(policy),
        exit_log=machine.exit_log(costs) if machine.config.exit_log else None,
        overlap=costs.walk.overlap,
        fetch_cycles=costs.access.trace,
        caches=caches,
    )
