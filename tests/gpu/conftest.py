"""Where the tests run, for which kernels, and a record of what ran.

Without a GPU nothing here is collected, and each file says so in a line. `--stand-in` runs what a CPU can run on
the CPU's kernels instead: that tests these tests, and no GPU.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import outcomes
from benchmarks.gpu.workloads import PRODUCTS, backends_of
from icm_fast.operators import _products

from .problems import OPERATIONS, Kernel, lacks

BACKENDS = ("triton", "cuda")
UNCACHED = "PYTORCH_NO_CUDA_MEMORY_CACHING"
Covers = Callable[[Kernel, torch.dtype, tuple[int, ...]], None]
_left_out: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("icm_fast on a GPU")
    group.addoption("--stand-in", action="store_true", help="run on the CPU and its kernels what needs no GPU")
    group.addoption("--kernels", action="append", metavar="BACKEND", help="of this backend only; may be repeated")
    group.addoption("--outcomes", type=Path, metavar="FILE", help="append a JSON line as each test starts and ends")
    group.addoption("--resume", action="store_true", help="leave out the tests that --outcomes knows already")


def option(config: pytest.Config, name: str) -> Any:
    # Not known in a run that starts above this folder.
    return config.getoption(name, default=None)


def why_not(config: pytest.Config) -> str | None:
    if torch.cuda.is_available() or option(config, "stand_in"):
        return None
    return f"no GPU here (torch {torch.__version__})"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    reason = why_not(config)
    if reason is None or not collection_path.name.startswith("test_"):
        return None
    _left_out.append(f"tests/gpu/{collection_path.name}: not run: {reason}")
    return True


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in _left_out:
        terminalreporter.write_line(line)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`kernel`: every operation, or those that the test or its file is of, by every backend."""
    if "kernel" not in metafunc.fixturenames:
        return
    default = getattr(metafunc.module, "OPERATIONS", OPERATIONS)
    if os.environ.get(
        UNCACHED
    ):  # under compute-sanitizer, which is to judge our kernels and not the framework's products
        default = tuple(operation for operation in default if operation not in PRODUCTS)
    operations = getattr(metafunc.function, "operations", default)
    standing_in = option(metafunc.config, "stand_in")
    names = option(metafunc.config, "kernels") or (("cpu",) if standing_in else BACKENDS)
    kernels = [Kernel(operation, name) for operation in operations for name in backends_of(operation, names)]
    metafunc.parametrize("kernel", kernels, ids=[f"{kernel.operation}-{kernel.backend}" for kernel in kernels])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if option(config, "resume"):
        known = {line["test"] for line in outcomes.read(option(config, "outcomes"))}
        items[:] = [item for item in items if item.nodeid not in known]


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    return torch.device("cpu" if option(pytestconfig, "stand_in") else "cuda")


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """For what a CPU does not have: streams, graphs."""
    if device.type != "cuda":
        pytest.skip("needs a GPU, not a stand-in")
    return device


@pytest.fixture(autouse=True)
def _skip_what_is_missing(request: pytest.FixtureRequest, device: torch.device) -> None:
    if "kernel" in request.fixturenames:
        reason = _lacks(request.getfixturevalue("kernel"), device)
        if reason is not None:
            pytest.skip(reason)


_lacks = functools.cache(lacks)


@pytest.fixture(autouse=True)
def _poison(device: torch.device) -> None:
    """Memory that is handed out next holds NaN: an element that a kernel does not write cannot pass for one it did."""
    # Under compute-sanitizer the allocator keeps nothing, and initcheck sees what is read before it is written.
    if device.type == "cuda" and not os.environ.get(UNCACHED):
        # The allocator keeps blocks below and above 1 MiB apart.
        blocks = [torch.full((size,), float("nan"), device=device) for size in [2**16] * 32 + [2**22] * 8]
        del blocks


@pytest.fixture
def way(way: str, small_blocks: None) -> str:
    """Of tests/conftest.py, on any device."""
    return way


@pytest.fixture
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of few rows, so that small batches have many."""
    # What is about queues must not fill one: it holds about a thousand launches.
    block = (1 << 20, 64, 512) if "gpu" in request.fixturenames else (1 << 10, 16, 64)
    for device in ("cpu", "cuda"):
        monkeypatch.setitem(_products._BLOCKS, device, block)
    monkeypatch.setattr(_products, "_KEPT", 1000)  # of 31 rows or fewer


@pytest.fixture
def covers(record_property: Callable[[str, object], None]) -> Covers:
    """Record that a kernel was right for a type and a shape."""

    def record(kernel: Kernel, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        name = str(dtype).removeprefix("torch.")
        record_property("covers", {**kernel._asdict(), "dtype": name, "shape": list(shape)})

    return record


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """After an error of the device every later call in this process fails too: stop, `--resume` goes on."""
    _write(item.config, {"test": item.nodeid, "state": "started"})
    result = yield
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            pytest.exit(f"the device is lost after {item.nodeid}: {error}", returncode=outcomes.DEVICE_LOST)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: Any = yield
    if report.when == "call" or report.outcome != "passed":
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        line = {"test": item.nodeid, "state": report.outcome, "seconds": round(call.duration, 3)}
        line |= parameters["kernel"]._asdict() if "kernel" in parameters else {}
        line |= {"dtype": str(parameters["dtype"]).removeprefix("torch.")} if "dtype" in parameters else {}
        if call.excinfo is not None:
            line["message"] = str(call.excinfo.value) if report.skipped else call.excinfo.exconly()[:2000]
        line["covers"] = [value for name, value in item.user_properties if name == "covers"]
        line |= {name: value for name, value in item.user_properties if name != "covers"}
        _write(item.config, line)
    return report


def _write(config: pytest.Config, line: dict[str, Any]) -> None:
    path = option(config, "outcomes")
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
