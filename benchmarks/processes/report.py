"""The tables that are printed, and the one of README.md."""

from __future__ import annotations

from typing import Any

from . import estimate
from .contenders import FEATURES

ESTIMATED = tuple((rows, depth) for rows in (128, 512, 2048) for depth in (512, 2048))
CLASSES = 1000


def table(results: dict[str, dict[str, Any]]) -> str:
    """One size: every way."""
    reference = results[FEATURES].get("bytes")
    lines = [f"  {'':44} {'bytes sent':>11} {'of features':>12} {'collectives':>12} {'time':>10} {'error':>8}"]
    for name, result in results.items():
        if "wrong" in result:
            lines.append(f"  {name:44} wrong: {result['wrong']}")
            continue
        share = f"{result['bytes'] / reference:.2g}x" if reference else ""
        time = f"{result['median_us'] / 1000:.2f} ms" if "median_us" in result else "another loss"
        error = f"{result['error']:.0e}"
        counts = (size(result["bytes"]), share, str(len(result["collectives"])))
        lines.append(f"  {name:44} {counts[0]:>11} {counts[1]:>12} {counts[2]:>12} {time:>12} {error:>6}")
    return "\n".join(lines)


def estimates() -> str:
    """Of many GPUs, with what it assumes."""
    gpus = estimate.GPUS
    header = (
        f"ESTIMATE, not measured: {gpus} GPUs, {estimate.BETA_BYTES_PER_S / 1e9:.0f} GB/s for each, "
        f"{estimate.ALPHA_S * 1e6:.0f} us for each of ceil(log2 {gpus}) messages one after another; float32, "
        f"C = {CLASSES}. In brackets the time if every collective were a ring."
    )
    columns = "".join(f"{name:>11}" for name in ("bytes sent", "transfer", "latency", "together"))
    lines = [header, f"  {'rows a GPU':>10} {'D':>5}  {'way':20}{columns}"]
    for rows, depth in ESTIMATED:
        ways = {"icm_fast": estimate.ours(gpus, rows)} if depth == ESTIMATED[0][1] else {}
        ways |= {FEATURES: estimate.gathered(gpus, rows, depth)}
        ways |= {"logits gathered": estimate.gathered(gpus, rows, CLASSES)} if depth == ESTIMATED[-1][1] else {}
        for name, collectives in ways.items():
            cost = estimate.cost(gpus, collectives)
            ring = f"({milliseconds(cost.ring_seconds)})"
            times = "".join(f"{milliseconds(s):>11}" for s in (cost.transfer_s, cost.latency_s, cost.seconds))
            lines.append(
                f"  {rows:>10} {depth if name == FEATURES else '':>5}  {name:20} {size(cost.sent):>11}{times} {ring}"
            )
        lines.append(
            f"  {'':16}  a GPU's block of scores, never held: {size(estimate.block_bytes(gpus, rows))}; "
            f"its exponentials: {milliseconds(estimate.exponentials_s(gpus, rows))}"
            if depth == ESTIMATED[-1][1]
            else ""
        )
    return "\n".join(line for line in lines if line)


def block(body: dict[str, Any]) -> str:
    """For README.md: bytes of every way, at every number of processes and size."""
    places = [[int(number) for number in name.split("x")] for name in body["results"]]
    heads = ["bytes sent", *(f"{world} × {rows}" for world, rows, _, _ in places)]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for way in next(iter(body["results"].values())):
        of_way = [results[way] for results in body["results"].values()]
        cells = [way, *("wrong" if "wrong" in result else size(result["bytes"]) for result in of_way)]
        lines.append(f"| {' | '.join(cells)} |")
    _, _, depth, classes = places[0]
    intro = (
        f"Bytes that one of so many processes, with so many rows each, sends in a step (loss, gradient); D = {depth}, "
        f"C = {classes}, float32; as the kernel counts them on its connections:"
    )
    return "\n".join([intro, "", *lines, "", f"- {sentence()}"])


def sentence() -> str:
    """The estimate for README.md."""
    gpus, rows, depth = estimate.GPUS, 512, 2048
    here = estimate.cost(gpus, estimate.ours(gpus, rows))
    there = estimate.cost(gpus, estimate.gathered(gpus, rows, depth))
    speed = f"{estimate.BETA_BYTES_PER_S / 1e9:.0f} GB/s and {estimate.ALPHA_S * 1e6:.0f} µs a message"
    return (
        f"An estimate on paper ([its formulae](benchmarks/processes/estimate.py)): of {gpus} GPUs with {rows} rows "
        f"each and D = {depth}, each would send {size(here.sent)} instead of {size(there.sent)} of features, in "
        f"{milliseconds(here.seconds)} instead of {milliseconds(there.seconds)} at {speed}, log2({gpus}) of them one "
        f"after another in a collective (were every one a ring: {milliseconds(here.ring_seconds)} against "
        f"{milliseconds(there.ring_seconds)}), and never hold its {size(estimate.block_bytes(gpus, rows))} of scores."
    )


def size(count: float) -> str:
    """Three digits with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def milliseconds(seconds: float) -> str:
    """Three digits."""
    return f"{seconds * 1000:.3g} ms"
