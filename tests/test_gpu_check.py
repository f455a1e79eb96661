"""The harness of `make gpu-check`, without a GPU: budgets, verdicts, a stand-in run from end to end, planted faults."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import check, check_parts, outcomes, report
from benchmarks.gpu.parts import NO_TIME, Budget, Outcome, Part, run_parts
from benchmarks.gpu.processes import Finished, run

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: make gpu-check says more")


def finished(status: int | None = 0, output: str = "") -> Finished:
    return Finished(status, 1.0, output, Path("no log"))


def test_allowances_stay_within_the_budget() -> None:
    now = [100.0]
    budget = Budget(160.0, lambda: now[0])
    assert budget.allowance(50) == 50 and budget.allowance(90) == 60
    now[0] = 145.0
    assert budget.allowance(50) == 15
    now[0] = 155.0
    assert budget.allowance(50) is None, "5 seconds are too few to start"
    assert budget.allowance(3) == 3
    now[0] = 170.0
    assert budget.allowance(3) is None


def test_no_part_ends_another_and_those_alone_come_last() -> None:
    order: list[str] = []

    def part(name: str, state: Any, alone: bool = False) -> Part:
        def work(limit_s: float) -> Outcome:
            order.append(name)
            if state is None:
                raise ValueError("broken")
            return Outcome(state)

        return Part(name, 30, work, alone)

    found: dict[str, Outcome] = {}
    parts = [part("alone", "passed", True), part("raises", None), part("fails", "failed"), part("works", "passed")]
    run_parts(parts, Budget.of(60), 2, found.__setitem__)
    assert {name: outcome.state for name, outcome in found.items()} == {
        "raises": "failed",
        "fails": "failed",
        "works": "passed",
        "alone": "passed",
    }
    assert order[-1] == "alone" and "ValueError: broken" in found["raises"].note
    late: dict[str, Outcome] = {}
    run_parts(parts, Budget.of(5), 2, late.__setitem__)
    assert {outcome.note for outcome in late.values()} == {NO_TIME} and len(order) == 4


def test_a_limit_holds_for_children_too(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(2); open({str(mark)!r}, 'w')"
    code = "import subprocess, sys, time\nprint('{\"a\": 1}', flush=True)\n"
    code += f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    started = time.monotonic()
    ended = run([sys.executable, "-c", code], 1.0, tmp_path / "log")
    assert ended.status is None and time.monotonic() - started < 8
    assert ended.json() == {"a": 1}
    time.sleep(2.5)
    assert not mark.exists(), "a child outlived its parent's limit"


def test_json_is_found_between_warnings(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('{not json\nwarning: {}\n{\n "x": [1, {"y": 2}]\n}\nbye\n')
    assert Finished(0, 0.0, "", log).json() == {"x": [1, {"y": 2}]}
    log.write_text("nothing\n")
    assert Finished(0, 0.0, "", log).json() is None


def line(test: str, state: str, **more: Any) -> dict[str, Any]:
    return {"test": f"tests/gpu/test_x.py::{test}", "state": state, "seconds": 0.1, **more}


COVERS = {"operation": "icm_loss", "backend": "cuda", "dtype": "float32", "shape": [7, 10]}
PASSED = line("a", "passed", covers=[COVERS])


@pytest.mark.parametrize(
    ("status", "lines", "state", "words"),
    [
        (0, [PASSED], "passed", "1 passed"),
        (0, [PASSED, line("b", "skipped", message="no")], "passed", "1 passed, 1 skipped: no"),
        (5, [line("b", "skipped", message="no kernel")], "not run", "no kernel"),
        (1, [PASSED, line("b", "failed", message="off by one")], "failed", "1 of 2 tests; first b: off by one"),
        (9, [PASSED, line("b", "failed")], "failed", "it lost the device"),
        (-11, [PASSED, line("b", "started")], "failed", "b: did not end"),
        (None, [PASSED], "failed", "ran past its limit"),
        (3, [PASSED], "failed", "exit status 3"),
        (5, [], "not run", "no output"),
    ],
)
def test_verdicts(status: int | None, lines: list[dict[str, Any]], state: str, words: str) -> None:
    judged = outcomes.judge(finished(status), lines)
    assert judged.state == state and words in judged.note


def test_what_was_right_and_what_was_not() -> None:
    bad = line("b", "failed", operation="mixup", backend="cuda", dtype="bfloat16", message="?")
    first = outcomes.judge(finished(1), [line("a", "started"), PASSED, bad]).details
    second = outcomes.judge(finished(), [line("a", "passed", covers=[{**COVERS, "shape": [2, 2]}, COVERS])]).details
    merged = outcomes.merged([first, second, {}])
    assert merged == {"covered": {"cuda/icm_loss/float32": [[2, 2], [7, 10]]}, "failed": {"cuda/mixup/bfloat16": 1}}


def test_lines_cut_short_are_left_out(tmp_path: Path) -> None:
    record = tmp_path / "record"
    record.write_text(json.dumps(PASSED) + '\n{"test": "b", "sta')
    assert outcomes.read(record) == [PASSED] and outcomes.read(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("status", "output", "state"),
    [
        (0, "========= ERROR SUMMARY: 0 errors", None),
        (0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", None),
        (0, "3 passed", "failed"),  # no summary: the tool was not there
        (77, "========= ERROR SUMMARY: 2 errors", "failed"),
        (1, "========= ERROR SUMMARY: 2 errors", "failed"),
        (1, "========= Error: Device not supported. Please refer to the manual", "not run"),
        (1, "1 failed\n========= ERROR SUMMARY: 0 errors", None),
    ],
)
def test_words_of_the_sanitizer(status: int, output: str, state: str | None) -> None:
    said = check_parts.said_by_tool("memcheck", finished(status, output))
    assert (said and said.state) == state


def test_planted_faults_must_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "compute-sanitizer"

    def install(script: str) -> None:
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setattr(check_parts, "LOGS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for script, state in (
        ("echo '=========     at planted_fault+0x1'; exit 77", "passed"),
        ("echo '========= ERROR SUMMARY: 0 errors'; exit 0", "failed"),
        ("echo '========= Device not supported'; exit 1", "not run"),
    ):
        install(script)
        assert check_parts.planted("racecheck")(20).state == state
    assert "--error-exitcode" in (check_parts.sanitizer("memcheck") or [])


def test_a_lost_device_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = [outcomes.DEVICE_LOST, outcomes.DEVICE_LOST, 0]

    def fake(command: list[str], limit_s: float, log: Path, environment: dict[str, str]) -> Finished:
        record = Path(command[command.index("--outcomes") + 1])
        state = "failed" if len(statuses) > 1 else "passed"
        with record.open("a") as file:
            file.write(json.dumps(line(f"t{len(statuses)}", state)) + "\n")
        return Finished(statuses.pop(0), 1.0, "", log)

    monkeypatch.setattr(check_parts, "LOGS", tmp_path)
    monkeypatch.setattr(check_parts, "run", fake)
    part = check_parts.file_part("cuda: small", "tests", "small", [], stand_in=False)
    outcome = part.work(100)
    assert statuses == [] and outcome.state == "failed" and outcome.note.startswith("2 of 3 tests")


def test_a_backend_that_is_missing_is_one_line() -> None:
    state = {"triton": {"available": False, "reason": "no triton"}, "cuda": {"available": True, "reason": ""}}
    names = {part.name: part for part in check_parts.parts_for(state, ("triton", "cuda"), stand_in=False)}
    assert names["triton: all"].work(1) == Outcome("not run", "no triton")
    assert {"cuda: icm_loss", "cuda: memcheck", "cuda: large", "planted fault: racecheck", "timings"} <= set(names)
    assert not any(name.startswith("triton: i") for name in names)
    assert "cuda: linear_icm_loss" in names and "cuda: contrastive_loss" not in names, "cuda has a part of one"
    state["triton"]["available"] = True
    names = {part.name for part in check_parts.parts_for(state, ("triton", "cuda"), stand_in=False)}
    assert {"triton: linear_icm_loss", "triton: contrastive_loss"} <= names
    files = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "gpu").glob("test_*.py")}
    assert files == {*check_parts.TOGETHER, "large", "reference"}, "a file that no part runs, or a part without a file"


def test_a_stand_in_from_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    command_line = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "check",
        "--device",
        "cpu",
        "--jobs",
        "2",
        "--out",
        str(out),
    ]
    command_line += ["--only", "cpu: small", "cpu: streams_and_graphs", "timings"]
    result = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    body = report.read(out)
    states = {part["name"]: part["state"] for part in body["parts"]}
    assert states == {
        "device": "passed",
        "build": "not run",
        "self-check": "passed",
        "cpu: small": "passed",
        "cpu: streams_and_graphs": "not run",
        "timings": "passed",
    }
    assert body["device"]["stand_in"] is True
    assert [130, 100] in body["covered"]["cpu/icm_loss/bfloat16"] and body["failed"] == {}
    assert body["timings"]["icm_loss-8x10"][0]["results"]["icm_fast cpu"]["eager"]["both"]["median_us"] > 0
    table = result.stdout[result.stdout.index("part ") :].splitlines()
    assert {row.split("  ")[0] for row in table[1:]} == set(states), "the table comes last"


FAULTY = """
from icm_fast import functional
right = functional.mixup
functional.mixup = lambda *arguments, **options: right(*arguments, **options) * 1.02
"""


def test_a_wrong_kernel_fails_its_tests_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "faulty_kernel.py").write_text(FAULTY)
    record = tmp_path / "record"
    arguments = [
        "tests/gpu/test_small.py",
        "--stand-in",
        "--outcomes",
        str(record),
        "-k",
        "(7 or odd) and (mixup or icm)",
    ]
    result = run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "faulty_kernel", *arguments],
        120,
        tmp_path / "log",
        {"PYTHONPATH": str(tmp_path)},
    )
    outcome = outcomes.judge(result, outcomes.read(record))
    assert outcome.state == "failed" and "beyond the budget" in outcome.note, outcome
    assert set(outcome.details["failed"]) == {"cpu/mixup/float32", "cpu/mixup/bfloat16", "cpu/mixup/?"}
    right = {"cpu/icm_loss/float32", "cpu/mixup_cross_entropy/bfloat16"}
    assert right <= set(outcome.details["covered"]) and "cpu/mixup/float32" not in outcome.details["covered"]


def test_nothing_of_a_stand_in_goes_among_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--device", "cpu"], ["--only", "x"]):
        assert command.main(["check", *options, "--out", str(check.OUT)]) == 2
    assert capsys.readouterr().out.count("give another --out") == 2


@no_gpu
def test_without_a_gpu_nothing_is_checked_and_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "check.json"
    assert command.main(["check", "--out", str(out)]) == 2
    assert "nothing was checked: no GPU here" in capsys.readouterr().out and not out.exists()
    printed = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    for path in (ROOT / "tests" / "gpu").glob("test_*.py"):
        assert f"tests/gpu/{path.name}: not run: no GPU here" in printed
