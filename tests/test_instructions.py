"""Instructions of the CPU kernels: the record in the tree is what they take, and a change of either sign is seen."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from benchmarks.instructions import __main__ as command
from benchmarks.instructions import loops, record
from benchmarks.instructions.callgrind import SETS, Count, conditions, counts, missing, self_counts, split
from benchmarks.instructions.cases import parts

# Names are written out once; lines after `calls=` belong to what is called; fn=(3) is a function of another library.
DUMP = """\
ob=(1) /somewhere/lib/libicm_fast_cpu.so
fl=(1) ???
fn=(1) void icm::avx2::sums<float>(icm::Scores<float> const&)
0 100
+3 20
cob=(2) /lib/libc.so.6
cfn=(3) malloc
calls=1 0
0 5000

fn=(2) icm::prepare(long)
0 7
cfn=(1)
calls=2 0
0 120
* 1

ob=(2)
fn=(3)
0 5000
cob=(1)
cfn=(2)
calls=1 0
0 8

ob=(1)
fn=(1)
0 3
"""

LISTING = """\
0000000000001000 <void icm::avx512::sums<float>(icm::Scores<float> const&, long)>:
    1000:\tmov    %rdi,%rax
    1004:\tvfmadd213ps %zmm1,%zmm2,%zmm3
    1008:\tvpslld $0x17,%zmm3,%zmm4
    100c:\tadd    $0x40,%rax
    1010:\tjne    1004 <void icm::avx512::sums<float>(icm::Scores<float> const&, long)+0x4>
    1014:\tvaddps %zmm1,%zmm2,%zmm3
    1018:\tjb     1014 <void icm::avx512::sums<float>(icm::Scores<float> const&, long)+0x14>
    101c:\tjmp    1000 <void icm::avx512::sums<float>(icm::Scores<float> const&, long)>
    1020:\tret

0000000000002000 <void icm::avx512::sums<icm::float16>(icm::Scores<icm::float16> const&, long)>:
    2000:\tvfmadd213ps %zmm1,%zmm2,%zmm3
    2004:\tjne    2000 <void icm::avx512::sums<icm::float16>(icm::Scores<icm::float16> const&, long)>
"""


def test_own_instructions_of_our_library_by_hand() -> None:
    functions = self_counts(DUMP)
    assert functions == {"void icm::avx2::sums<float>(icm::Scores<float> const&)": 123, "icm::prepare(long)": 8}
    assert split(functions) == Count(kernels=123, operator=8)


def test_loops_of_a_listing_by_hand() -> None:
    """The inner one with fused multiplications: neither the other inner one nor the outer one; float alone."""
    found = [loops.hottest(name, body) for name, body in loops.functions(LISTING)]
    assert found == [loops.Loop("sums<float>(Scores)", instructions=4, vector=2, fused=1, exponentials=1)]


def doctored(body: dict[str, Any], factor: float) -> dict[str, Any]:
    """The record with one count changed."""
    name, of_set = next(iter(body["counts"].items()))
    part, count = next(iter(of_set.items()))
    changed = {**of_set, part: {**count, "kernels": round(count["kernels"] * factor)}}
    return {**body, "counts": {**body["counts"], name: changed}}


def recorded(body: dict[str, Any]) -> dict[str, dict[str, Count]]:
    return {name: {part: Count(**count) for part, count in of.items()} for name, of in body["counts"].items()}


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_a_change_beyond_the_margin_is_seen(factor: float) -> None:
    body = record.read()
    assert record.differences(body["counts"], recorded(body)) == []
    assert record.differences(doctored(body, 1.01)["counts"], recorded(body)) == []
    (line,) = record.differences(doctored(body, factor)["counts"], recorded(body))
    assert "kernels" in line and f"{100 * (1 / factor - 1):+.1f} %" in line


def test_a_part_that_is_not_recorded_or_no_longer_counted_is_seen() -> None:
    body = record.read()
    of_sets = recorded(body)
    gone = {"another": of_sets["avx2"].pop(next(iter(of_sets["avx2"])))}
    lines = record.differences(body["counts"], {"avx2": of_sets["avx2"] | gone})
    assert [line.partition(": ")[2] for line in lines] == ["recorded, but no longer counted", "not recorded"]


def test_the_record_holds_every_part() -> None:
    names = [name for name, _, _ in parts()]
    assert {name: list(of_set) for name, of_set in record.read()["counts"].items()} == dict.fromkeys(SETS, names)


def test_other_conditions_are_not_compared() -> None:
    body = record.read()
    assert record.incomparable(body, body["conditions"]) is None
    reason = record.incomparable(body, {**body["conditions"], "compiler": "another"})
    assert reason is not None and "compiler 'another', recorded with" in reason


def test_command_without_valgrind(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    assert command.main([]) == 1
    assert "nothing can be counted" in capsys.readouterr().out


def counted(monkeypatch: pytest.MonkeyPatch, counts_of_sets: dict[str, dict[str, Count]]) -> None:
    monkeypatch.setattr(command, "missing", lambda: None)
    monkeypatch.setattr(command, "conditions", lambda: record.read()["conditions"])
    monkeypatch.setattr(command, "counts", lambda name: counts_of_sets[name])
    monkeypatch.setattr(command, "loops", lambda library: "not looked for")


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of counts that are handed to it: what it prints, records and returns."""
    body = record.read()
    counted(monkeypatch, recorded(body))
    assert command.main([]) == 0
    assert "all within 2 % of the record" in capsys.readouterr().out
    counted(monkeypatch, recorded(doctored(body, 1.5)))
    assert command.main([]) == 1
    assert record.AGAIN in capsys.readouterr().out
    path = tmp_path / "new.json"
    assert command.main(["--record", "--path", str(path)]) == 0
    assert command.main(["--path", str(path)]) == 0
    more = 1 + 2 / body["counts"]["avx2"][next(iter(body["counts"]["avx2"]))]["kernels"]  # two instructions
    runs = iter([recorded(body)["avx2"], recorded(doctored(body, more))["avx2"]])
    monkeypatch.setattr(command, "counts", lambda name: next(runs))
    path.unlink()
    assert command.main(["--record", "--sets", "avx2", "--path", str(path)]) == 1
    assert not path.exists()


first_counts = functools.cache(counts)


@pytest.fixture
def comparable() -> dict[str, Any]:
    """The record, where it can be compared with counts of this machine."""
    body = record.read()
    if reason := missing() or record.incomparable(body, conditions()):
        pytest.skip(reason)
    return body


@pytest.mark.long
@pytest.mark.parametrize("name", SETS)
def test_kernels_take_as_many_instructions_as_recorded(name: str, comparable: dict[str, Any]) -> None:
    """Beyond the margin in either direction it fails; a gain is recorded as well, or it could be lost unseen."""
    lines = record.differences(comparable["counts"], {name: first_counts(name)})
    assert not lines, "\n".join([*lines, record.AGAIN])


@pytest.mark.long
def test_counts_are_the_same_from_run_to_run(comparable: dict[str, Any]) -> None:
    """In the kernels to the instruction: the margin is for small changes of the code, not for noise."""
    name = next(iter(SETS))
    first = record.kept({name: first_counts(name)})
    assert record.differences(first, {name: counts(name)}, record.NOISE) == []


def test_parts_run_as_they_come() -> None:
    for name, elements, run in parts():
        run()
        assert elements > 0 and name
