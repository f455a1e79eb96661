"""benchmarks.processes: counts what is sent, gives a wrong way no number, estimates what was measured."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import processes
import pytest
from helpers import ROOT

from benchmarks.processes import contenders, estimate, report, traffic, worker

RESULTS = json.loads((ROOT / "benchmarks" / "results" / "processes.json").read_text(encoding="utf-8"))


def test_bytes_of_a_connection_are_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sender:
        receiver, _ = server.accept()
        with receiver:
            before = traffic.bytes_sent()
            sender.sendall(bytes(100_000))
            left = 100_000
            while left > 0:
                left -= len(receiver.recv(left))
            assert traffic.bytes_sent() - before == 100_000


def measure(rank: int, world: int) -> dict[str, Any]:
    contenders.WAYS["gradient of another loss"] = lambda part: contenders.ours(part) + 1e-9 * part.weight.sum()
    return worker.measure(worker.Size(rows=8, depth=4, classes=5), seconds=0.01)


def test_a_way_with_another_gradient_gets_no_number(tmp_path: Path) -> None:
    measured = processes.run(measure, 2, tmp_path)[0]
    assert list(measured.pop("gradient of another loss")) == ["wrong"]
    assert all(result["bytes"] > 0 and result["error"] < worker.WRONG for result in measured.values())
    table = report.table(measured | {"another": {"wrong": "relative error 1"}})
    assert "wrong: relative error 1" in table and contenders.OURS in table


@pytest.mark.parametrize("place", RESULTS["results"])
def test_the_estimate_is_what_was_measured_at_few_processes(place: str) -> None:
    world, rows, depth, classes = map(int, place.split("x"))
    measured = RESULTS["results"][place]
    on_paper = {
        contenders.OURS: estimate.ours(world, rows),
        contenders.FEATURES: estimate.gathered(world, rows, depth),
        "logits gathered": estimate.gathered(world, rows, classes),
    }
    assert len(measured[contenders.OURS]["collectives"]) == len(on_paper[contenders.OURS])
    for name, collectives in on_paper.items():
        sent = estimate.cost(world, collectives).sent
        # Gloo adds some words to every message.
        assert 0 <= measured[name]["bytes"] - sent <= (world - 1) * 2500 + 0.01 * sent, name


def test_the_estimate_of_many_processes_by_hand() -> None:
    assert estimate.all_gather(1000, 12) == (1, 999 * 12)
    assert estimate.all_reduce(4, 100) == (2, 150)
    # 2 messages one after another, ceil(log2 1000) = 10 times 15 us each; in a ring 999 times.
    cost = estimate.cost(1000, [estimate.all_gather(1000, 50e6), estimate.all_gather(1000, 0)])
    assert cost.latency_s == pytest.approx(300e-6) and cost.ring_latency_s == pytest.approx(2 * 999 * 15e-6)
    assert cost.transfer_s == pytest.approx(0.999) and cost.seconds == pytest.approx(0.9993)
    assert "ESTIMATE, not measured" in report.estimates()
