"""Weights and inputs that the authors' code was run on, made again from the formula of tests/golden/README.md."""

import json
import math
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file


GOLDEN = Path(__file__).parent / "golden"
SEED = 0


def weight(key: str, shape: list[int]) -> torch.Tensor:
    """A tensor of a checkpoint from its key in the authors' module."""
    x = np.random.RandomState(zlib.crc32(f"{SEED}:{key}".encode())).standard_normal(shape).astype(np.float32)
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.tensor(0)
    if last in ("running_mean", "bias"):
        x = 0.1 * x
    elif last == "running_var":
        x = 1 + 0.1 * np.abs(x)
    elif len(shape) == 1:  # scale of a normalisation layer
        x = 1 + 0.1 * x
    else:
        x = x / np.float32(math.sqrt(np.prod(shape[1:])))
    return torch.from_numpy(x.astype(np.float32))


def model_input(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    x = np.random.RandomState(zlib.crc32(f"{SEED}:input:{name}".encode())).standard_normal(shape)
    return torch.from_numpy(x.astype(np.float32))


@lru_cache
def _tensors(case: str) -> dict[str, torch.Tensor]:
    shapes = json.loads((GOLDEN / "authors_state_dict_shapes.json").read_text())[case]
    return {key: weight(key, shape) for key, shape in shapes.items()}


def state_dict(case: str) -> dict[str, torch.Tensor]:
    """The checkpoint of one of the authors' modules, in a dict that may be changed; its tensors may not."""
    return dict(_tensors(case))


def output(key: str) -> torch.Tensor:
    """What their code gave."""
    return load_file(GOLDEN / "authors_outputs_seed0.safetensors")[key]
