"""Rewrites the measured parts of README.md, the page and the figure of benchmarks/results, from the files there.

`make bench` and `make readme` write those files and end with this.
`--check` changes nothing and fails if README.md or the page says something else.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .gpu import coverage
from .processes import report as processes
from .speed import crossover
from .speed.contenders import OURS
from .speed.floor import FLOOR
from .wheel import table as wheel

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LOSS = "icm_loss"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write, or with --check compare; 1 if README.md or the page of results is out of date."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    readme = ROOT / "README.md"
    content = readme.read_text(encoding="utf-8")
    for section, block in blocks().items():
        content = replace(content, section, block)
    pages = {readme: content, coverage.RESULTS / "README.md": coverage.text()}
    if check:
        stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
        for path in stale:
            name = path.relative_to(ROOT)
            print(f"{name} does not say what benchmarks/results says; run python -m benchmarks.readme", file=sys.stderr)
        return 1 if stale else 0
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    draw(results("cpu"), RESULTS / "speed.png")
    return 0


def blocks() -> dict[str, str]:
    """What stands between the markers of each name in README.md."""
    with (RESULTS / "digits" / "summary.csv").open(encoding="utf-8", newline="") as file:
        digits = list(csv.DictReader(file))
    return {
        "speed": speed_block(results("cpu")),
        "linear": linear_block(results("linear"), results("crossover")),
        "processes": processes.block(results("processes")),
        "wheel": wheel.markdown(results("wheel")),
        "digits": digits_block(digits),
    }


def results(name: str) -> dict[str, Any]:
    """What a benchmark kept."""
    body: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return body


def replace(text: str, name: str, block: str) -> str:
    """The text with what stands between the markers of that name replaced."""
    pattern = rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)"
    found, count = re.subn(pattern, lambda match: f"{match[1]}{block}\n{match[2]}", text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"README.md: expected one pair of markers {name}:begin, {name}:end, found {count}")
    return found


def speed_block(speed: dict[str, Any]) -> str:
    """The loss against its rivals."""
    rows = [
        "| (B, C) | icm_fast | best eager | best torch.compile | vs eager | vs compile | extra memory | eager's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, results in speed["results"].items():
        operation, _, size = name.partition("-")
        if operation != LOSS:
            continue
        ours, eager, compiled = contenders(results)
        cells = [f"({size.replace('x', ', ')})", time(ours["median_us"])]
        cells += [time(rival["median_us"]) if rival else "not run" for rival in (eager, compiled)]
        cells += [f"{rival['median_us'] / ours['median_us']:.1f}×" if rival else "" for rival in (eager, compiled)]
        cells += [memory(each["peak_extra_bytes"]) for each in (ours, eager)]
        rows.append("| " + " | ".join(cells) + " |")
    others = [other_line(name, results) for name, results in speed["results"].items() if not name.startswith(LOSS)]
    return "\n".join([f"{where(speed)}; medians:", "", *rows, "", *(line for line in others if line)])


def where(speed: dict[str, Any]) -> str:
    """What was measured on, and what all workloads have in common."""
    machine = speed["machine"]
    return (
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}, float32, one lam per sample"
    )


def contenders(results: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]:
    """Ours, the fastest eager rival and the fastest compiled one."""
    timed = {
        name: result
        for name, result in results.items()
        if isinstance(result, dict) and name != FLOOR and not name.startswith(OURS)
    }
    compiled = [result for name, result in timed.items() if name.startswith("torch.compile")]
    eager = [result for name, result in timed.items() if not name.startswith("torch.compile")]
    return results[OURS], min(eager, key=median), min(compiled, key=median, default=None)


def median(result: dict[str, Any]) -> float:
    """By which the fastest is found."""
    return float(result["median_us"])


def other_line(name: str, results: dict[str, Any]) -> str:
    """One sentence for another operation."""
    operation, _, size = name.partition("-")
    ours, eager, compiled = contenders(results)
    against = f"{eager['median_us'] / ours['median_us']:.2f}× the speed of the best eager form"
    if compiled:
        against += f", {compiled['median_us'] / ours['median_us']:.2f}× of torch.compile"
    return f"- `{operation}` at {size.replace('x', '×')}: {time(ours['median_us'])}, {against}."


def linear_block(linear: dict[str, Any], ways: dict[str, Any]) -> str:
    """The losses that are made of matrix products, against rivals and floor; and where the ways of one cross."""
    rows = [
        "| loss | sizes | icm_fast | vs eager | vs compile | over the floor | extra memory | best rival's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    others: dict[str, list[str]] = {}
    for name, results in linear["results"].items():
        operation, _, size = name.partition("-")
        ours, eager, compiled = contenders(results)
        best = min((rival for rival in (eager, compiled) if rival), key=median)
        cells = [f"`{operation}`", f"({size.replace('x', ', ')})", time(median(ours))]
        cells += [factor(rival, ours) if rival else "not run" for rival in (eager, compiled)]
        cells += [factor(ours, results[FLOOR]), *(memory(each["peak_extra_bytes"]) for each in (ours, best))]
        rows.append("| " + " | ".join(cells) + " |")
        for other, result in results.items():
            if other.startswith(f"{OURS} ") and isinstance(result, dict):
                text = f"{time(median(result))}, {memory(result['peak_extra_bytes'])} at {cells[1]}"
                others.setdefault(other.removeprefix(f"{OURS} "), []).append(text)
    lines = [f"- `{other}`: {'; '.join(texts)}." for other, texts in others.items()]
    return "\n".join([f"{where(linear)}; medians:", "", *rows, "", *lines, f"- {crossover.sentence(ways)}"])


def factor(slow: dict[str, Any], fast: dict[str, Any]) -> str:
    """The quotient of two times."""
    return f"{median(slow) / median(fast):.2f}×"


def time(us: float) -> str:
    """Three digits with a unit."""
    value, unit = (us, "µs") if us < 1000 else (us / 1000, "ms") if us < 1e6 else (us / 1e6, "s")
    return f"{value:.3g} {unit}"


def memory(size_bytes: float) -> str:
    """MiB."""
    mebibytes = size_bytes / 2**20
    return f"{mebibytes:.0f} MiB" if mebibytes >= 10 else f"{mebibytes:.2g} MiB"


def digits_block(rows: list[dict[str, str]]) -> str:
    """Accuracy of every method: balanced, and long-tailed with head and tail apart."""
    table = {(row["data"], row["method"]): row for row in rows}
    names = list(dict.fromkeys(row["method"] for row in rows))
    lines = [
        "| method | balanced | long-tailed (0.01) | its head | its tail |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        balanced, tailed = table["digits", name], table["digits-lt-0.01", name]
        cells = [mean(balanced, "accuracy"), *(mean(tailed, f"{part}accuracy") for part in ("", "head_", "tail_"))]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    seeds = rows[0]["seeds"]
    return "\n".join([f"Test accuracy in %, mean ± standard deviation over {seeds} seeds:", "", *lines])


def mean(row: dict[str, str], name: str) -> str:
    """Mean and standard deviation."""
    return f"{float(row[f'{name}_mean']):.1f} ± {float(row[f'{name}_std']):.1f}"


def draw(speed: dict[str, Any], path: Path) -> None:
    """Time and memory of the loss at C = 100 and C = 1000, on log axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    styles = {
        OURS: ("#D55E00", "-", "o"),
        "authors' formulation": ("#0072B2", "-", "s"),
        "index-gather": ("#009E73", "-", "^"),
        "torch.compile authors' formulation": ("#0072B2", "--", "s"),
        "torch.compile index-gather": ("#009E73", "--", "^"),
    }
    for name, (colour, line, marker) in styles.items():
        points = []
        for workload, results in speed["results"].items():
            operation, _, size = workload.partition("-")
            if operation == LOSS and isinstance(results.get(name), dict):
                points.append((int(size.split("x")[0]), int(size.split("x")[1]), results[name]))
        largest = [max((p for p in points if p[0] == B), key=lambda p: p[1]) for B in sorted({p[0] for p in points})]
        batch_sizes = [p[0] for p in largest]
        for axis, values in (
            (axes[0], [p[2]["median_us"] / 1000 for p in largest]),
            (axes[1], [max(p[2]["peak_extra_bytes"], 2**12) / 2**20 for p in largest]),
        ):
            axis.loglog(batch_sizes, values, line, color=colour, marker=marker, markersize=4, label=name)
    titles = (
        "time of loss and gradient",
        "peak extra memory of a step",
    )
    for axis, title, unit in zip(axes, titles, ("ms, median", "MiB"), strict=True):
        axis.set(title=title, xlabel="batch size B (C = 100 below 1024, 1000 from there)", ylabel=unit)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
