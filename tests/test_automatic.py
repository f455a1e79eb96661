"""What `auto` takes, by device, operation, rows and type; and the benchmark that its table comes from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import icm_fast as icm
from benchmarks.speed import automatic
from icm_fast import _backends, reference
from icm_fast import functional as F_icm
from icm_fast.functional import _dispatch
from icm_fast.operators import IMPLEMENTED


def taken(operation: str, rows: int | None, dtype: torch.dtype = torch.float32, backend: str | None = None) -> str:
    return _backends.choose(operation, backend, "cpu", rows, dtype)


def test_every_line_can_be_reached() -> None:
    for device, table in _backends._AUTOMATIC.items():
        assert table.keys() >= IMPLEMENTED.keys(), device
        for operation, lines in table.items():
            *limited, last = lines
            assert last.most_rows == math.inf and not last.types, operation
            assert all(line.most_rows < math.inf for line in limited)
            assert [line.most_rows for line in limited] == sorted(line.most_rows for line in limited)
            assert all(set(line.backends) <= set(_backends.NAMES) for line in lines)


@pytest.mark.parametrize(("operation", "last"), [("contrastive_loss", 64), ("icm_loss_dense", 128)])
def test_small_products_go_to_plain_torch(operation: str, last: int) -> None:
    assert taken(operation, 1) == taken(operation, last) == "reference"
    assert taken(operation, last + 1) == taken(operation, None) == "cpu"
    assert taken(operation, last, backend="cpu") == "cpu"
    assert taken(operation, last + 1, backend="reference") == "reference"


def test_the_type_counts() -> None:
    assert taken("contrastive_loss", 96, torch.bfloat16) == "reference"
    assert taken("contrastive_loss", 96, torch.float32) == taken("contrastive_loss", 97, torch.bfloat16) == "cpu"


def test_the_other_operations_have_kernels_for_every_size() -> None:
    for operation in set(IMPLEMENTED) - {"contrastive_loss"}:
        assert taken(operation, 1) == "cpu"


def test_calls_follow_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(original: Any) -> Any:
        return lambda *arguments, **options: calls.append(original) or original(*arguments, **options)

    for name in ("contrastive_loss", "icm_loss"):
        monkeypatch.setattr(reference, name, counted(getattr(reference, name)))
    views = torch.randn(65, 8)
    F_icm.contrastive_loss(views, views.flip(0))
    F_icm.icm_loss(torch.randn(129, 8), torch.randn(129, 8).softmax(1))
    assert not calls
    F_icm.contrastive_loss(views[:64], views[:64].flip(0))
    F_icm.icm_loss(torch.randn(128, 8), torch.randn(128, 8).softmax(1))
    assert len(calls) == 2
    # A graph of one size serves the others: there it does not count.
    compiled = torch.compile(F_icm.contrastive_loss, fullgraph=True, backend="eager")
    compiled(views[:64], views[:64].flip(0))
    assert len(calls) == 2


def test_float16_products_on_the_cpu_are_made_in_a_type_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    views = torch.randn(40, 8).half()
    monkeypatch.setattr(_dispatch, "_lacks_products", lambda dtype: dtype == torch.float16)
    assert _dispatch.product_type(views) == torch.float32
    assert _dispatch.product_type(views.bfloat16()) == torch.bfloat16
    with torch.autocast("cpu", torch.float16):
        assert _dispatch.product_type(views.float()) == torch.float32
        weight = torch.randn(5, 8, requires_grad=True)
        target = icm.MixedTarget(torch.arange(40) % 5, torch.arange(40) % 3, torch.tensor(0.3))
        F_icm.linear_icm_loss(views.float(), weight, target).backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    exact = reference.linear_icm_loss(views.double(), weight.detach().double().requires_grad_(), target)
    with torch.autocast("cpu", torch.float16):
        loss = F_icm.linear_icm_loss(views.float(), weight, target)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)  # as of float32 products
    monkeypatch.setattr(_dispatch, "_lacks_products", lambda dtype: False)
    assert _dispatch.product_type(views) == torch.float16


def test_a_missing_question_to_torch_means_products_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions that tell are torch's own, and may go."""
    assert not _dispatch._lacks_products(torch.float32) and not _dispatch._lacks_products(torch.float64)
    asked: Any = _dispatch._asked.__wrapped__
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    assert asked(torch.float16)
    monkeypatch.setitem(_dispatch._NARROW, torch.float16, "_a_function_that_torch_has_not")
    assert not asked(torch.float16)


# The benchmark


def test_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "automatic.json"
    options = ["--operations", "contrastive_loss", "--rows", "4", "70", "--dtypes", "float32", "--threads", "1"]
    assert automatic.main([*options, "--seconds", "0", "--out", str(out)]) == 0
    body = json.loads(out.read_text())
    assert set(body["results"]) == {"contrastive_loss-4x128 float32", "contrastive_loss-70x128 float32"}
    assert "B=70" in capsys.readouterr().out


def test_benchmark_says_where_the_table_is_wrong() -> None:
    def body(reference_us: float, cpu_us: float, rows: int) -> dict[str, object]:
        times = {"reference": {"median_us": reference_us}, "cpu": {"median_us": cpu_us}}
        return {"results": {f"contrastive_loss-{rows}x128 float32": times}}

    assert automatic.losses(body(100, 120, 64)) == automatic.losses(body(130, 120, 96)) != []
    assert "reference 120.0 us, 1.20x the time of cpu" in automatic.losses(body(120, 100, 64))[0]
    assert "cpu 120.0 us, 1.20x the time of reference" in automatic.losses(body(100, 120, 96))[0]
    assert "[1.20x]" in automatic.table(body(120, 100, 64))


@pytest.mark.parametrize("operation", automatic.OPERATIONS)
@pytest.mark.parametrize("dtype", automatic.DTYPES)
def test_benchmark_gate_lets_right_results_pass(operation: str, dtype: str) -> None:
    found = automatic._measured(operation, dtype, (9,), torch.get_num_threads(), 0)
    (results,) = found.values()
    assert not [result for result in results.values() if isinstance(result, str)], results
