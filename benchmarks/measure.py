"""What the benchmarks share: the hardware line, times of calls that take turns, operations and the peaks, tables."""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from jca.backends import open_openvino, quantize, write_graph


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


def operations(run: Callable[[], object]) -> int:
    """Operations of the matrix products and convolutions of a call, two for each multiplication."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def product_peak(dtype: torch.dtype = torch.float32, device: str = "cpu", size: int = 1024) -> float:
    """Operations a second of PyTorch's product of two matrices, with all threads and by the clock on the wall."""
    x, least = torch.randn(size, size, device=device, dtype=dtype), float("inf")
    for _ in range(20):
        synchronize(device)
        start = time.perf_counter()
        x @ x
        synchronize(device)
        least = min(least, time.perf_counter() - start)
    return 2 * size**3 / least


def synchronize(device: str) -> None:
    """Wait for a GPU, which works on while Python goes on."""
    if device == "cuda":
        torch.cuda.synchronize()


@torch.no_grad()
def peaks(folder: Path, layers: int = 24, size: int = 1024) -> dict[str, float]:
    """Operations a second of products of two matrices in each precision: the better of PyTorch, one product, and OpenVINO, a
    chain of them as 1 x 1 convolutions, between which nothing leaves the precision."""
    x = torch.randn(size, size)
    half, byte = x.bfloat16(), x.clamp(-1, 1).mul(127).to(torch.int8)
    single = {"float32": lambda: x @ x, "bfloat16": lambda: half @ half, "int8": lambda: torch._int_mm(byte, byte)}
    chain, columns = nn.Sequential(), x[None, :, None]
    for _ in range(layers):
        chain.extend([nn.Conv2d(size, size, 1), nn.ReLU()])
    for name in ("float32", "int8"):
        write_graph(chain, (columns,), folder / f"{name}.onnx", ["x"], "y", (None,))
    quantize(folder / "int8.onnx", "x", columns)
    graphs = {"float32": ("float32", "float32"), "bfloat16": ("float32", "bfloat16"), "int8": ("int8", "float32")}
    chains = {
        name: partial(open_openvino(folder / f"{graph}.onnx", dtype)[0], columns)
        for name, (graph, dtype) in graphs.items()
    }
    single, chains = seconds(single), seconds(chains)
    return {name: 2 * size**3 * max(1 / single[name], layers / chains[name]) for name in graphs}


def timed(function: Callable, clock: Callable[[], float], spent: list[float]) -> Callable:
    """A function that adds what its calls take to the one number in `spent`."""

    def run(*arguments: Any, **options: Any) -> Any:
        start = clock()
        out = function(*arguments, **options)
        spent[0] += clock() - start
        return out

    return run


def print_table(
    rows: list[dict[str, Any]],
    about: dict[str, Any] | None = None,
    file: Path | None = None,
    ratios: Sequence[str] = (),
) -> None:
    """Rows as Markdown below a line of what they depend on; to `file` the same as JSON with `ratios`, the columns that are
    one timing over another of the same run, lower is better: check.py compares them for rows of the same text columns."""
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
        file.write_text(json.dumps({**about, "ratios": list(ratios), "rows": rows}, indent=1) + "\n", encoding="utf-8")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to write the same to")
