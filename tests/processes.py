"""Real processes that train together, forked so that they need not import everything anew."""

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from tqdm.auto import tqdm


def _child(function: Callable, arguments: tuple, rank: int, world: int, port: int) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    GradientState._reset_state()
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # a bar's thread may have held the old one at the fork
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if world > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
        os.environ.update({name: str(value) for name, value in names.items()})
    function(*arguments)
    os._exit(0)  # gloo's threads may abort where the interpreter is ending


def run(function: Callable, *arguments, world: int = 1, kill_when: Callable[[], bool] | None = None) -> list[int]:
    """Exit codes of `world` processes that call `function`; all are killed (SIGKILL) as soon as `kill_when` says so."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_child, args=(function, arguments, rank, world, port)) for rank in range(world)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        if kill_when is not None and kill_when():
            for process in processes:
                process.kill()
        time.sleep(0.002)
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]
