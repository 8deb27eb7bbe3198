"""Processes that share work, and end with the one that started them."""

import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor


def process_pool(num_proc: int) -> ProcessPoolExecutor:
    """
    A pool of `num_proc` processes. Were the one that starts them killed, idle ones would wait for ever: they look after it.

    Raises:
        ValueError: if `num_proc` is below 1.
    """
    if num_proc < 1:
        raise ValueError(f"num_proc={num_proc} must be at least 1.")
    return ProcessPoolExecutor(num_proc, initializer=_follow, initargs=(os.getpid(),))


def _follow(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
