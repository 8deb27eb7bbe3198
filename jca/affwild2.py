"""The Aff-Wild2 release on disk to a `datasets.Dataset`, one row for each annotation file."""

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from datasets import Dataset, IterableDataset

from jca.corpus import (
    MEDIA_SUFFIXES,
    CorpusError,
    Media,
    compare_lengths,
    make_dataset,
    make_row,
    probe_media,
    shift_labels,
)
from modeling_jca import IGNORED_LABEL


FOLDERS = {"train": "Train_Set", "validation": "Validation_Set"}
ANNOTATIONS = "VA_Estimation_Challenge"
TEST_LISTS = "names_of_videos_in_each_test_set/Valence_Arousal*test_set*.txt"
NAMED_RATE = re.compile(r"^\d+-(\d+)-\d+x\d+$")  # `132-30-426x240` is number, frames a second, size


def _numbers(line: str) -> list[float] | None:
    try:
        return [float(value) for value in re.split(r"[,\s]+", line.strip().rstrip(","))]
    except ValueError:
        return None


def parse_annotation(path: str | Path) -> tuple[np.ndarray, list[str]]:
    """
    Valence and arousal of every frame, `(frames, 2)` float32, and all problems of the file.

    Line k after the header is frame k; -5, -5.0, ... is not annotated. A line that can not be used keeps its place as
    not annotated. The header may have any case, spaces and order, or be missing.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (UnicodeDecodeError, OSError) as error:
        return np.zeros((0, 2), np.float32), [f"{path}: can not be read as text ({error})"]
    if not lines:
        return np.zeros((0, 2), np.float32), [f"{path}: is empty"]
    names = re.split(r"[,\s]+", lines[0].strip().rstrip(",").lower())
    columns, first = [0, 1], 2
    if {"valence", "arousal"} <= set(names):
        columns = [names.index("valence"), names.index("arousal")]
    elif len(_numbers(lines[0]) or ()) == 2:
        first = 1
    else:
        return np.zeros((0, 2), np.float32), [f"{path}, line 1: {lines[0][:80]!r} is not the header `valence,arousal`"]
    lines = lines[first - 1 :]
    try:
        if not lines or not all(map(str.strip, lines)):
            raise ValueError  # NumPy would pass over a blank line, and the frames after it would move
        values = np.loadtxt(lines, np.float32, comments=None, delimiter=",", ndmin=2)
        if values.shape[1] != len(names):
            raise ValueError  # `0,1,0,2` may be decimal commas
    except ValueError:
        parsed = [_numbers(line) for line in lines]
        values = np.array([p if p and len(p) == len(names) else [np.nan] * len(names) for p in parsed], np.float32)
    values = values.reshape(-1, len(names))[:, columns]
    usable = (values == IGNORED_LABEL) | (np.abs(values) <= 1)
    problems = [
        f"{path}, line {index + first}: {lines[index][:80]!r} is not two numbers `valence,arousal` in [-1, 1], or -5"
        for index in np.flatnonzero(~usable.all(axis=1))
    ]
    return np.where(usable.all(axis=1, keepdims=True), values, np.float32(IGNORED_LABEL)), problems


def read_annotation(path: str | Path) -> np.ndarray:
    """
    Valence and arousal of every frame, `(frames, 2)` float32; -5 where not annotated.

    Raises:
        CorpusError: naming file and line of everything that can not be read.
    """
    labels, problems = parse_annotation(path)
    if problems:
        raise CorpusError(path, problems)
    return labels


def load_affwild2(
    root: str | Path,
    split: str,
    on_error: str = "raise",
    delay: float | Mapping[str, float] = 0.0,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """
    One row for each annotation file (a video and subject) of a split; no picture or sound is decoded.

    Expects the release's folders: `batch*/*.mp4`, `cropped_aligned*/<video>/00001.jpg` (the later videos are in a folder of
    their own), `VA_Estimation_Challenge/{Train_Set,Validation_Set}/<video>.txt`, and for the test split
    `names_of_videos_in_each_test_set/Valence_Arousal_..._release.txt`. Two subjects of one video (`_left`, `_right`) share
    its media. Without any folder of crops, `crops_dir` is None and frames are used as they are.

    Args:
        root: the folder of the release.
        split: `"train"`, `"validation"` or `"test"`, which has no labels.
        on_error: `"raise"`, or `"skip"` to log what is wrong and use the rest: a line that can not be read is a frame
            that is not annotated, a video without media is left out.
        delay: seconds by which annotators are late, see [`shift_labels`].
        streaming: give a `datasets.IterableDataset` with a shard for each row.

    Returns:
        `datasets.Dataset` of the columns of `jca.corpus.ROW`. `notes` says what is odd about a video and what was done.

    Raises:
        ValueError: for an unknown split.
        CorpusError: one report of all problems with file and line.
    """
    root = Path(root)
    names, problems = _listed(root, split)
    if not names and not problems:
        problems = [
            f"{root / ANNOTATIONS / FOLDERS.get(split, '')}: no annotations; root must be the folder that holds "
            f"{ANNOTATIONS}/, batch1/ and cropped_aligned/"
        ]
    media_files = {
        path.stem: path
        for pattern in ("batch*/*", "batch*/*/*")
        for path in sorted(root.glob(pattern), reverse=True)
        if path.suffix.lower() in MEDIA_SUFFIXES
    }
    crop_folders = _crop_folders(root)
    shared = {name: media_files.get(name) or media_files.get(re.sub(r"_(left|right)$", "", name)) for name in names}
    with ThreadPoolExecutor(8) as pool:  # waits for the disk most of the time
        paths = sorted({path for path in shared.values() if path})
        probes = dict(zip(paths, pool.map(_probe, paths), strict=True))
    problems += [probe for probe in probes.values() if isinstance(probe, str)]
    rows = []
    for name, annotation in names.items():
        labels = None
        if annotation is not None:
            labels, found = parse_annotation(annotation)
            problems += found
            if not len(labels):
                if not found:
                    problems.append(f"{annotation}: has no row")
                continue
        if (path := shared[name]) is None:
            problems.append(f"{annotation or name} has no media file: there is no {root}/batch*/{name}.*")
            continue
        media = probes[path]
        if isinstance(media, str):
            continue
        notes = list(media.notes)
        if (rate := NAMED_RATE.match(path.stem)) and abs(float(rate[1]) / media.fps - 1) > 0.03:
            notes.append(f"named {rate[1]} frames a second, the timestamps say {media.fps:.2f}: they hold")
        if labels is None:
            labels = np.full((media.num_frames, 2), IGNORED_LABEL, np.float32)
            if not media.exact:
                notes.append(f"about {media.num_frames} frames, by its duration")
        more, found = compare_lengths(len(labels), media)
        problems += [f"{annotation}: {problem}" for problem in found]
        folder = crop_folders.get(name)
        if crop_folders and folder is None:
            problems.append(f"{annotation or name} has no face crops: there is no {root}/cropped_aligned*/{name}/")
            folder = root / "cropped_aligned" / name
            notes.append("no face crops: no frame has a face")
        elif folder is not None and not _holds_crops(folder):
            notes.append(f"no file NUMBER.jpg in {folder.parent.name}/{name}: no frame has a face")
        if delay:
            labels = shift_labels(labels, media.fps, delay)
        rows.append(make_row(name, path, labels, media.fps, folder, notes=[*notes, *more, *found]))
    dataset = make_dataset(rows, problems, root, on_error)
    # `datasets` streams no format of some columns: the numbers come as lists then
    return dataset.with_format(None).to_iterable_dataset(num_shards=len(dataset)) if streaming else dataset


def _listed(root: Path, split: str) -> tuple[dict[str, Path | None], list[str]]:
    """The videos of a split with their annotation files, None for the test split."""
    if split in FOLDERS:
        return {path.stem: path for path in sorted((root / ANNOTATIONS / FOLDERS[split]).glob("*.txt"))}, []
    if split != "test":
        raise ValueError(f"split={split!r} is not known. Choose one of {', '.join([*FOLDERS, 'test'])}.")
    lists = sorted([*root.glob(TEST_LISTS), *root.glob(f"*/{TEST_LISTS}")])
    if not lists:
        return {}, [f"{root / TEST_LISTS}: there is no list of the test videos"]
    lines = lists[0].read_text(encoding="utf-8-sig").splitlines()
    names: dict[str, Path | None] = {line.strip().removesuffix(".txt"): None for line in lines if line.strip()}
    return names, [] if names else [f"{lists[0]}: names no video"]


def _holds_crops(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.endswith(".jpg") and entry.name[:-4].isdecimal() for entry in entries)


def _crop_folders(root: Path) -> dict[str, Path]:
    """The folder of crops of each video, from all of the release's."""
    folders = {}
    bases = [path for path in root.glob("cropped_aligned*") if path.is_dir()]  # the archives may lie beside them
    for base in sorted(bases, reverse=True):  # of two with one name the first folder's holds
        inner = base / base.name  # an archive unpacked into a folder of its own
        folders |= {path.name: path for path in (inner if inner.is_dir() else base).iterdir() if path.is_dir()}
    return folders


def _probe(path: Path) -> Media | str:
    try:
        return probe_media(path)
    except (ValueError, OSError) as error:
        return str(error)
