"""A Python policy takes over exactly the exits whose methods it overrides."""

from __future__ import annotations

import runpy
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmu import (
    Action,
    Config,
    ConfigError,
    Exit,
    ExitReason,
    Machine,
    Op,
    Policy,
    PolicyError,
    Qualification,
    Simulation,
    simulate,
)
from fastmmu.errors import WrongTypeError
from fastmmu.exits import VMX_REASONS
from tests.support.event_lists import ALL_SCHEMES, events, program, run, with_events

VMM_SCHEMES = ALL_SCHEMES[1:]
EPT = Config(mmu="ept", memory="256M")
SHADOW = Config(mmu="shadow", memory="256M")
REASONS = tuple(reason for reason in ExitReason if reason < VMX_REASONS)  # that an instruction may have
TRACE = with_events(
    program(3000),
    100,
    (Op.SWITCH, 1),
    (Op.SWITCH, 0),
    (Op.INVLPG, 0x40_0000),
    (Op.UNMAP, 0x5555_5555_5000),
    *((Op.EXIT, int(reason)) for reason in REASONS),
    (Op.INTERRUPT, 32),
)
TOUCH = events((Op.WRITE, 0x1000_0000))


def overriding(*reasons: ExitReason) -> type[Policy]:
    """A policy that records the exits of these reasons and handles them as KVM does."""

    def handler(self: Policy, machine: Machine, exit: Exit) -> Action:
        self.seen.append(exit)  # type: ignore[attr-defined]
        return machine.default()

    names = {f"on_{reason.name.lower()}": handler for reason in reasons}
    return type("Recorder", (Policy,), {**names, "__init__": lambda self: setattr(self, "seen", [])})


@pytest.mark.parametrize("config", VMM_SCHEMES, ids=lambda config: config.name)
def test_default_does_what_no_policy_does(config: Config) -> None:
    """For each reason alone, and all at once: equal counters, and the handler saw its reason's exits, all of them."""
    config = config.replace(exit_every=500)
    plain = simulate(TRACE, config).counters
    for reasons in (*((reason,) for reason in REASONS), REASONS):
        policy = overriding(*reasons)()
        assert simulate(TRACE, config, policy=policy).counters == plain
        seen = Counter(exit.reason.name.lower() for exit in policy.seen)  # type: ignore[attr-defined]
        wanted = {reason.name.lower() for reason in reasons}
        assert seen == {name: n for name, n in plain["exits_by_reason"].items() if name in wanted}


def test_all_schemes_counters_match_their_reasons() -> None:
    """The trace has every reason under every scheme, or the test above would show little."""
    for config in VMM_SCHEMES:
        reasons = set(simulate(TRACE, config).counters["exits_by_reason"])
        assert reasons == {reason.name.lower() for reason in REASONS}


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.name.lower())
def test_every_reason_can_be_taken_over(reason: ExitReason) -> None:
    """A handler that does nothing is all that happens at an exit-causing instruction."""
    policy = overriding(reason)()
    setattr(type(policy), f"on_{reason.name.lower()}", lambda self, machine, exit: self.seen.append(exit) or 1)
    machine = Machine(SHADOW, policy=policy)
    run(machine, events((Op.EXIT, int(reason))))
    assert policy.seen == [Exit(reason, 0, 0, 0, 0, 0)]  # type: ignore[attr-defined]


def test_exit_information_under_ept() -> None:
    policy = overriding(ExitReason.EPT_VIOLATION, ExitReason.CPUID)()
    machine = Machine(EPT, policy=policy)
    (gpa,) = run(machine, TOUCH).tolist()
    run(machine, events((Op.EXIT, 10)))
    *violations, cpuid = policy.seen  # type: ignore[attr-defined]
    assert cpuid == Exit(ExitReason.CPUID, 0, 0, 0, 0, 0)
    tables = [exit for exit in violations if not exit.qualification & Qualification.TRANSLATED]
    assert len(tables) == 3  # the rest of them the kernel wrote first
    assert all(exit.guest_physical % 8 == 0 for exit in tables)
    data = [exit for exit in violations if exit.guest_physical >> 12 == gpa >> 12]
    assert [exit.qualification & 7 for exit in data] == [Qualification.WRITE]  # the kernel clears the page
    assert {exit.error_code for exit in violations} == {exit.operand for exit in violations} == {0}


def test_exit_information_under_shadow_paging() -> None:
    policy = overriding(ExitReason.EXCEPTION_NMI, ExitReason.INVLPG, ExitReason.CR_ACCESS)()
    machine = Machine(SHADOW, policy=policy)
    run(machine, events((Op.WRITE, 0x1000_0000), (Op.INVLPG, 0x1234_5000), (Op.SWITCH, 1)))
    seen = policy.seen  # type: ignore[attr-defined]
    assert seen[0] == Exit(ExitReason.EXCEPTION_NMI, 0x1000_0000, 0, 0, 6, 0, 0x8000_0B0E)
    assert Exit(ExitReason.INVLPG, 0x1234_5000, 0, 0, 0, 0) in seen
    cr3 = next(exit for exit in seen if exit.reason == ExitReason.CR_ACCESS)
    assert cr3.qualification == 3
    assert cr3.operand != 0
    assert cr3.operand % 4096 == 0


# ---- handlers that fail ---------------------------------------------------------------------------------------


class Broken(Policy):
    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.calls = 0

    def on_ept_violation(self, machine: Machine, exit: Exit) -> Action:
        self.calls += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return machine.default() if self.answer is None else self.answer  # type: ignore[return-value]

    on_exception_nmi = on_ept_violation


class OwnError(Exception):
    pass


@pytest.mark.parametrize("error", [OwnError("mine"), KeyboardInterrupt(), SystemExit(3), PolicyError("theirs")])
@pytest.mark.parametrize("config", VMM_SCHEMES, ids=lambda config: config.name)
def test_an_exception_comes_out_unchanged(config: Config, error: BaseException) -> None:
    """And the machine is whole afterwards: the same accesses succeed once the handler does its work."""
    policy = Broken(error)
    machine = Machine(config, policy=policy)
    with pytest.raises(type(error)) as caught:
        run(machine, TOUCH)
    assert caught.value is error
    assert policy.calls == 1
    counters = machine.counters()
    assert counters["vm_exits"] == counters["l1d_hits"] + counters["tlb_misses"] == 1
    policy.answer = None  # from now on the default
    assert run(machine, TOUCH).tolist() == run(Machine(config), TOUCH).tolist()


@pytest.mark.parametrize("answer", [7, -1, "retry", 3.5, b"", 1 << 70])
@pytest.mark.parametrize("config", [EPT, SHADOW], ids=lambda config: config.name)
def test_a_bad_answer_is_refused(config: Config, answer: object) -> None:
    with pytest.raises(PolicyError, match=r"returned .*machine\.default\(\)"):
        run(Machine(config, policy=Broken(answer)), TOUCH)


def test_no_answer_is_refused() -> None:
    """The return that was forgotten."""

    class Forgets(Policy):
        def on_cpuid(self, machine: Machine, exit: Exit) -> Action:
            machine.default()  # type: ignore[return]

    with pytest.raises(PolicyError, match=r"CPUID returned None; return a fastmmu\.Action"):
        run(Machine(EPT, policy=Forgets()), events((Op.EXIT, 10)))


@pytest.mark.parametrize("config", VMM_SCHEMES, ids=lambda config: config.name)
def test_a_handler_without_progress_is_stopped(config: Config) -> None:
    policy = Broken(Action.RETRY)
    with pytest.raises(PolicyError, match="exits again and again"):
        run(Machine(config, policy=policy), TOUCH)
    assert policy.calls < 100


@pytest.mark.parametrize("config", VMM_SCHEMES, ids=lambda config: config.name)
def test_page_faults_injected_for_ever_are_stopped(config: Config) -> None:
    class Injects(Policy):
        def on_ept_violation(self, machine: Machine, exit: Exit) -> Action:
            return machine.inject_page_fault(0x1000_0000, 6)

        on_exception_nmi = on_ept_violation

    machine = Machine(config, policy=Injects())
    with pytest.raises(Exception, match="0x10000000") as caught:
        run(machine, TOUCH)
    assert type(caught.value).__module__ == "fastmmu.errors"


def test_an_access_that_a_policy_completes_has_no_address() -> None:
    """A bare guest without tables of its own below the root: every access is emulated, and told apart from a #PF."""

    class Emulates(Policy):
        def on_ept_violation(self, machine: Machine, exit: Exit) -> Action:
            return Action.EMULATED

    machine = Machine(EPT, guest_kernel=False, policy=Emulates())
    assert machine.access(0x1000_0000) == (None, None, None)
    assert Machine(EPT, guest_kernel=False).access(0x1000_0000) == (None, 0, 0x1000_0000)


def test_the_guest_stands_still_in_a_handler() -> None:
    class Meddles(Policy):
        def on_cpuid(self, machine: Machine, exit: Exit) -> Action:
            instructions = (
                lambda: run(machine, TOUCH),
                lambda: machine.access(0),
                lambda: machine.store(0, 0),
                lambda: machine.mov_cr3(0),
                lambda: machine.invlpg(0),
            )
            for instruction in instructions:
                with pytest.raises(PolicyError, match="stands still"):
                    instruction()
            return machine.default()

    machine = Machine(EPT, policy=Meddles())
    run(machine, events((Op.EXIT, 10)))
    with pytest.raises(PolicyError, match="no VM exit is under way"):
        machine.default()


def test_an_interrupt_of_the_user_leaves_what_was_done() -> None:
    class Stops(Policy):
        def on_cpuid(self, machine: Machine, exit: Exit) -> Action:
            raise KeyboardInterrupt

    trace = events((Op.READ, [0x1000_0000] * 10), (Op.EXIT, 10), (Op.READ, [0x1000_0000] * 10))
    result = simulate(trace, EPT, policy=Stops(), keep_partial=True)
    assert not result.complete
    assert result.counters["accesses"] == 10
    with pytest.raises(KeyboardInterrupt):
        simulate(trace, EPT, policy=Stops())
    simulation = Simulation(EPT, policy=Stops())
    with pytest.raises(KeyboardInterrupt):
        simulation.feed(next(trace.batches()))
    assert simulation.result().counters["exits_by_reason"]["cpuid"] == 1


# ---- the example ----------------------------------------------------------------------------------------------


def test_example(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """examples/policy.py: an exit for each page of the program, and few more; large pages: one for each region."""
    path = Path(__file__).parents[2] / "examples/policy.py"
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    small, large, regions = capsys.readouterr().out.splitlines()
    touched = len(np.unique(np.random.default_rng(0).integers(0, 2000, 20_000)))
    exits = int(small.split()[5])
    assert touched < exits < touched + 20
    assert small.endswith(f"{4 * exits} KB of host memory")
    assert large.split()[5:8:4] == ["5"]
    assert regions == f"the {exits} small pages lie in 5 regions of 2 MB"


# ---- what is no policy -----------------------------------------------------------------------------------------------


class Misspelt(Policy):
    def on_ept_violaton(self, machine: Machine, exit: Exit) -> Action:
        return machine.default()


class Unknown(Policy):
    def on_tuesday(self) -> None: ...


class NoMethod(Policy):
    on_cpuid = 5


class OfAnInstance(Policy):
    def __init__(self) -> None:
        self.on_epd_violation = lambda machine, exit: machine.default()


class Plain:
    def on_cpuid(self, machine: Machine, exit: Exit) -> Action:
        return machine.default()


@pytest.mark.parametrize(
    ("policy", "error", "said"),
    [
        (
            Misspelt(),
            ConfigError,
            r"Misspelt.on_ept_violaton: there is no such VM exit.*did you mean on_ept_violation\?",
        ),
        (OfAnInstance(), ConfigError, r"OfAnInstance.on_epd_violation: .*did you mean on_ept_violation\?"),
        (Unknown(), ConfigError, "Unknown.on_tuesday: there is no such VM exit.*a name of fastmmu.ExitReason"),
        (NoMethod(), ConfigError, r"NoMethod.on_cpuid: no function; give a method \(self, machine, exit\)"),
        (Plain(), WrongTypeError, "is no fastmmu.Policy: make its class one of fastmmu.Policy"),
        (Misspelt, WrongTypeError, r"is no fastmmu.Policy: give an instance, Misspelt\(\)"),
        ("trap", WrongTypeError, "policy='trap' is no fastmmu.Policy"),
        (lambda machine, exit: None, TypeError, "is no fastmmu.Policy"),
    ],
)
def test_what_is_no_policy_is_refused(policy: Any, error: type[Exception], said: str) -> None:
    for call in (
        lambda: simulate(TOUCH, EPT, policy=policy),
        lambda: Simulation(EPT, policy=policy),
        lambda: Machine(EPT, policy=policy),
    ):
        with pytest.raises(error, match=said):
            call()


def test_a_misspelt_name_of_any_handler_is_led_back() -> None:
    for reason in ExitReason:
        name = f"on_{reason.name.lower()}"
        wrong = name[:-2] + name[-1]
        if wrong.upper().removeprefix("ON_") in ExitReason.__members__:
            continue
        with pytest.raises(ConfigError, match=f"did you mean {name}" if len(name) > 8 else "did you mean on_"):
            Machine(EPT, policy=type("P", (Policy,), {wrong: lambda *_: None})())


def test_a_handler_may_be_an_instances_own() -> None:
    seen: list[int] = []

    def handler(machine: Machine, exit: Exit) -> Action:
        seen.append(exit.guest_physical)
        return machine.default()

    policy = Policy()
    policy.on_ept_violation = handler  # type: ignore[method-assign]
    result = simulate(TRACE, EPT, policy=policy)
    assert len(seen) == result.counters["exits_by_reason"]["ept_violation"] > 0
    assert result.counters == simulate(TRACE, EPT).counters
    assert (result.policy, simulate(TRACE, EPT).policy) == ("Policy", "")


def test_other_names_and_inherited_handlers_are_let_be() -> None:
    class Base(Policy):
        on_disk = 3

        def once(self) -> None: ...

        def on_cpuid(self, machine: Machine, exit: Exit) -> Action:
            self.seen = getattr(self, "seen", 0) + 1
            return machine.default()

    class Derived(Base):
        pass

    policy = Derived()
    simulate(program(1000), EPT.replace(exit_every=100), policy=policy)
    assert policy.seen == 10
