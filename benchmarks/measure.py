"""What the benchmarks share: the hardware line, times of calls that take turns, the machine's peaks, tables."""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch


def hardware() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.machine()}, {cores} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"


def seconds(runs: dict[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """Least processor time of each call; the calls take turns, so that all see the same state of the machine. On one thread
    it is what a quiet machine would take: the time of other programs is not in it."""
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            least[name] = min(least[name], time.process_time() - start)
    return least


def print_table(rows: list[dict[str, Any]], about: dict[str, Any] | None = None, file: Path | None = None) -> None:
    """Rows as Markdown below a line of what they depend on; to `file` the same as JSON."""
    root = Path(__file__).parents[1]
    run = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=7"]
    commit = subprocess.run(run, capture_output=True, text=True).stdout.strip() or "no checkout"
    about = {"hardware": hardware(), "date": date.today().isoformat(), "commit": commit, **(about or {})}
    print("; ".join(f"{name}: {value}" for name, value in about.items()) + "\n")
    columns = list(rows[0])
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for row in rows:
        print(f"| {' | '.join(str(row[column]) for column in columns)} |")
    if file:
        file.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to write the same to")
