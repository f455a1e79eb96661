"""`python -m pytest benchmarks/speed`: its options, the races, and what its JSON file says beside the statistics.

A race times all contenders of a workload in turn, in a process of its own; a test then reports one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from .contenders import contenders
from .measure import Measurement
from .race import Options, race
from .replay import Replay
from .report import machine
from .suite import SUITE
from .workloads import Spec

Results = Mapping[str, Measurement | str]
RACES = pytest.StashKey[dict[Spec, Results]]()
FACTS = ("processor", "threads", "torch", "icm_fast", "backend")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("races against rivals")
    group.addoption(
        "--workloads", help="names such as icm_loss-128x100-float32-cpu, with commas (default: make bench's)"
    )
    group.addoption("--seconds", type=float, default=3.0, help="of timing for each workload (default 3)")
    group.addoption("--threads", type=int, default=torch.get_num_threads(), help="of every contender")
    group.addoption("--no-compile", action="store_true", help="leave the torch.compile rivals out")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RACES] = {}


def options_of(config: pytest.Config) -> Options:
    """Those of the command line; nothing but the gate with --benchmark-disable."""
    seconds = 0.0 if config.getoption("benchmark_disable") else config.getoption("seconds")
    return Options(seconds, config.getoption("threads"), not config.getoption("no_compile"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each contender, the workload its group."""
    if "contender" not in metafunc.fixturenames:
        return
    names = metafunc.config.getoption("workloads")
    try:
        specs = [Spec.parse(name) for name in names.split(",")] if names else SUITE
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    cases = []
    for spec in specs:
        for contender in contenders(spec, options_of(metafunc.config).compiled):
            replay = Replay()
            mark = pytest.mark.benchmark(group=spec.name, timer=replay)
            cases.append(pytest.param(spec, contender, replay, marks=mark, id=f"{spec.name}-{contender}"))
    metafunc.parametrize(("spec", "contender", "replay"), cases)


@pytest.fixture
def results(request: pytest.FixtureRequest, spec: Spec) -> Results:
    """Of the contenders of this workload that were chosen, all timed as the first of them is asked for."""
    races = request.config.stash[RACES]
    if spec not in races:
        chosen = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
        names = [each["contender"] for each in chosen if each.get("spec") == spec]
        races[spec] = race(spec, options_of(request.config), names)
    return races[spec]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    torch.set_num_threads(config.getoption("threads"))
    facts = machine()
    machine_info.update({name: facts[name] for name in FACTS})
    machine_info["cpu"] = {}  # its list of flags is longer than the results of a race


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Joined by those without a time, of whom pytest-benchmark knows nothing."""
    output_json["without_time"] = {
        spec.name: reasons
        for spec, results in config.stash[RACES].items()
        if (reasons := {name: each for name, each in results.items() if isinstance(each, str)})
    }
    for entry in output_json["benchmarks"]:
        entry["params"] = {}  # as text in the group and in extra_info
        del entry["options"]  # of how pytest-benchmark would have measured
