"""What the benches share: how much to do, data made once a session, and the rivals that are there."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.race import SCALES, Race, Scale
from bench.spaces import Space
from bench.yardstick import Yardstick


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bench-scale", choices=list(SCALES), default="once", help="sizes and rounds: once, usual (minutes), or full"
    )


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, object]) -> None:
    """Results may be passed on: they do not name the machine."""
    machine_info.pop("node", None)


@pytest.fixture(scope="session")
def scale(request: pytest.FixtureRequest) -> Scale:
    return SCALES[request.config.getoption("--bench-scale")]


@pytest.fixture
def race(benchmark: BenchmarkFixture, scale: Scale) -> Race:
    return Race(benchmark, scale)


@pytest.fixture(scope="session")
def yardstick(tmp_path_factory: pytest.TempPathFactory) -> Yardstick:
    return Yardstick(tmp_path_factory.mktemp("yardstick"))


@pytest.fixture(scope="session")
def space() -> Callable[[int, bool], Space]:
    """`space(pages, nested)`."""
    return cache(Space)
