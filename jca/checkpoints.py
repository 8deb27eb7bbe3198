"""Checkpoints of a run that is being trained: written whole or not at all, found again, two of them kept."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from transformers.utils import logging


logger = logging.get_logger(__name__)

COMPLETE = "complete.json"  # sizes of all files, written last
SETTINGS = "settings.json"
KEPT = 2  # should the newest be damaged after all


class CheckpointError(OSError):
    """A checkpoint could not be written; those before it are as they were."""


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, settings: dict) -> None:
    """
    Write `folder/step-<step>`: the state of model, optimizer, schedule, scaler and whatever else is registered with
    Accelerate, and the settings with which it was trained. All processes call it. It is written beside and renamed, so that
    a run killed in between has the one before.

    Raises:
        CheckpointError: if it can not be written.
    """
    path = folder / f"step-{step:08d}"
    part = path.with_suffix(".part")
    with saving(path, folder):
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(part, ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(part))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (part / SETTINGS).write_text(json.dumps(settings, indent=1))
            sizes = {
                str(file.relative_to(part)): file.stat().st_size for file in sorted(part.rglob("*")) if file.is_file()
            }
            (part / COMPLETE).write_text(json.dumps(sizes, indent=1))
            shutil.rmtree(path, ignore_errors=True)
            os.replace(part, path)
            steps = _steps(folder)  # damaged ones may lie ahead
            for old in {*steps} - {*[other for other in steps if other.name <= path.name][-KEPT:]}:
                shutil.rmtree(old, ignore_errors=True)
        accelerator.wait_for_everyone()


@contextmanager
def saving(path: Path, checkpoints: Path) -> Iterator[None]:
    """
    Raises:
        CheckpointError: if what is done in it fails, naming `path` and the last good one of `checkpoints`.
    """
    try:
        yield
    except Exception as error:  # of the system, or PyTorch's and safetensors' own for a full disk
        good = latest_checkpoint(checkpoints)
        last = f"the last good checkpoint is {good}" if good else "there is no checkpoint before it"
        raise CheckpointError(
            f"{path} could not be written ({error}); {last}. Make room or see to the rights, and start the same command "
            "again: it goes on from there."
        ) from error


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in a folder; one that is not is passed over with a warning."""
    for path in [*folder.glob("step-*.part")] if folder.exists() else []:
        logger.warning(f"{path} was not written to its end and is passed over.")
    for path in reversed(_steps(folder)):
        if damage := _damage(path):
            logger.warning(f"The checkpoint {path} is not complete ({damage}) and is passed over.")
        else:
            return path
    return None


def checkpoint_settings(path: Path) -> dict:
    """With what a checkpoint was trained."""
    return json.loads((path / SETTINGS).read_text())


def difference(before: dict, now: dict) -> str:
    """What something was trained with and what is asked for now, where they differ, or an empty string. Names that `now`
    does not have are not compared."""
    now = json.loads(json.dumps(now))  # as a file holds it
    names = [name for name, value in now.items() if before.get(name) != value]
    was, asked = (", ".join(f"{name}={values.get(name)}" for name in names) for values in (before, now))
    return f"was trained with {was}, and now {asked} is asked for" if names else ""


def _steps(folder: Path) -> list[Path]:
    if not folder.exists():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d+", path.name))


def _damage(path: Path) -> str | None:
    try:
        sizes = json.loads((path / COMPLETE).read_text())
    except (OSError, ValueError):
        return f"no {COMPLETE}"
    for name, size in sizes.items():
        file = path / name
        if not file.exists() or file.stat().st_size != size:
            return f"{name} is missing or cut off"
    return None
