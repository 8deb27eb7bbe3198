"""Processes that share work, and end with the one that started them."""

import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import torch


def process_pool(num_proc: int) -> ProcessPoolExecutor:
    """
    A pool of `num_proc` processes of one thread each, so that they are not in each other's way. Were the one that starts
    them killed, idle ones would wait for ever: they look after it.

    Raises:
        ValueError: if `num_proc` is below 1.
    """
    if num_proc < 1:
        raise ValueError(f"num_proc={num_proc} must be at least 1.")
    return ProcessPoolExecutor(num_proc, initializer=_begin, initargs=(os.getpid(),))


def _begin(parent: int) -> None:
    torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
