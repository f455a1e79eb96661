"""What needs a GPU: `check` (are the kernels right there?) and `bench` (how fast are they, and who is faster?).

check, check_parts, outcomes                what `make gpu-check` runs, and what tests/gpu wrote down
bench, race, contenders, workloads          what `make gpu-bench` runs: one workload and its rivals at a time
truths, chunked, timing, launches, floors   what a race compares with, its clock, and what it divides by
parts, processes                            budgets, and commands that end when they must
facts, report, tables, coverage             the device, the files, the tables, the page of results
"""
