"""Command line: `python -m benchmarks.accuracy demo` trains every method on handwritten digits and reports.

`python -m benchmarks.accuracy list` shows the methods and the data sets.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy import data, figure, floor, methods, report
from benchmarks.accuracy.grid import run_all
from benchmarks.accuracy.timing import Rounds, Timing, measure
from benchmarks.accuracy.train import Recipe, Run, RunResult

DEMO_DATA = ["digits", "digits-lt-0.01"]
DEMO_SEEDS = 5
NEEDED = {"sklearn": "scikit-learn", "scipy": "scipy", "matplotlib": "matplotlib", "tqdm": "tqdm"}
QUICK_RECIPE = Recipe(steps=40, evaluations=2)
QUICK_ROUNDS = Rounds(loss=5, step=2)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show the methods and the data sets")
    demo = commands.add_parser("demo", help="train every method on handwritten digits; table, CSV, JSON, picture")
    demo.add_argument("--methods", nargs="+", default=list(methods.METHODS), metavar="NAME")
    demo.add_argument("--data", nargs="+", default=DEMO_DATA, metavar="NAME")
    demo.add_argument("--seeds", type=int, default=None, help=f"how many, from 0 (default {DEMO_SEEDS})")
    demo.add_argument("--workers", type=int, default=None, help="processes of one thread each (default: 2, or 1 core)")
    demo.add_argument("--out", type=Path, default=Path("results/demo"), help="folder to write to (default %(default)s)")
    demo.add_argument("--quick", action="store_true", help="one seed and a few steps: does it run?")
    options = parser.parse_args(arguments)
    if options.command == "demo":
        options.seeds = options.seeds if options.seeds is not None else 1 if options.quick else DEMO_SEEDS
        if options.workers is None:
            options.workers = 1 if options.quick else min(2, os.cpu_count() or 1)
        for name in ("seeds", "workers"):
            if getattr(options, name) < 1:
                demo.error(f"argument --{name}: expected at least 1, got {getattr(options, name)}")
        try:
            for name in options.methods:
                methods.get(name)
            for name in options.data:
                data.get(name)
        except ValueError as error:
            demo.error(str(error))
    return options


def show_list() -> None:
    print("methods:")
    for name, method in methods.METHODS.items():
        print(f"  {name:16} {method.title}")
    print("data sets:")
    for name in data.DATA_SETS:
        print(f"  {name}")


def run_demo(options: argparse.Namespace) -> None:
    recipe = QUICK_RECIPE if options.quick else Recipe()
    options.out.mkdir(
        parents=True, exist_ok=True
    )  # before the work, so that a folder that cannot be written costs none
    names, data_names = list(dict.fromkeys(options.methods)), list(dict.fromkeys(options.data))
    runs = [
        Run(data_name, name, seed, recipe)
        for data_name in data_names
        for seed in range(options.seeds)
        for name in names
    ]
    results = _train(runs, options.workers)
    timings = _time(names, data_names[0], recipe, QUICK_ROUNDS if options.quick else Rounds())
    data_sets = [data.load(name, seed=0) for name in data_names]
    with_icm = data_sets if "ic-mixup" in names else []
    duplicates = [floor.mixup_duplicates(images, recipe.batch_size) for images in with_icm]
    found = report.Report(data_sets, recipe, results, timings, duplicates)
    files = [*report.write_files(found, options.out), figure.draw(found, options.out / "demo.png")]
    print((options.out / "report.txt").read_text(encoding="utf-8"))
    print(f"Written: {', '.join(map(str, files))}")


def _train(runs: list[Run], workers: int) -> list[RunResult]:
    from tqdm import tqdm

    with tqdm(total=len(runs), desc="training", unit="run") as bar:

        def show(result: RunResult) -> None:
            bar.set_postfix_str(f"{result.data} {result.method} {result.accuracy:.1f} %")
            bar.update()

        return run_all(runs, workers, show)


def _time(names: list[str], data_name: str, recipe: Recipe, rounds: Rounds) -> list[Timing]:
    from tqdm import tqdm

    return [measure(name, data_name, recipe, rounds) for name in tqdm(names, desc="timing", unit="method")]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.command == "list":
        show_list()
        return 0
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(f"the demo needs {', '.join(missing)}: pip install {' '.join(missing)}", file=sys.stderr)
        return 1
    try:
        run_demo(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
