"""Any annotated corpus as one CSV file to a `datasets.Dataset`, by the same interface as Aff-Wild2.

A line for each annotated moment, at any rate; times are seconds from the first video frame:

    media,time,valence,arousal,subject,split
    videos/P16.mp4,0.00,0.012,-0.104,P16,train
    videos/P16.mp4,0.04,0.015,-0.101,P16,train
    videos/P17.mp4,0.00,,,P17,validation

How corpora of the field become such a file:

- RECOLA: a line for each of the values that it gives every 40 ms, and `delay={"valence": 2.32, "arousal": 2.72}`, the 58 and
  68 frames of 40 ms by which the authors of FG 2021 compensate the annotators' delay.
- SEWA: a line for each of the values that it gives at 10 Hz; the frames between them are interpolated.
- OMG: the one value of an utterance in lines at most `MAX_GAP_SECONDS` apart, from its start to shortly before its end, and
  a line with neither value between two utterances of one file.
"""

import csv
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from datasets import Dataset
from pyarrow import ArrowInvalid, string
from pyarrow.csv import ConvertOptions, InvalidRow, ParseOptions, ReadOptions, read_csv

from jca.corpus import (
    MISMATCH_SECONDS,
    MISMATCH_SHARE,
    CorpusError,
    Media,
    make_dataset,
    make_row,
    probe_media,
    shift_labels,
)
from modeling_jca import IGNORED_LABEL
from sources_jca import open_media, streams_of


REQUIRED = ("media", "time", "valence", "arousal")
OPTIONAL = ("subject", "split", "crops_dir", "video_id", "recording")
MAX_GAP_SECONDS = 1.0  # between two moments, above which what lies between them is not annotated
ROUNDING_SECONDS = 0.001  # CSV files and Matroska have times in milliseconds


def frame_times(path: str | Path) -> np.ndarray:
    """
    The times of a video's frames, `(frames,)` in seconds from the first, without decoding a picture or sound.

    They are the timestamps of the packets in rising order, since B-frames are stored after frames that are shown later; the
    time at which the stream starts is taken off, and what an edit list cuts away is no frame.

    Raises:
        FileNotFoundError, IsADirectoryError, ValueError: see `open_media`; ValueError also for a damaged file and one
            without timestamps.
    """
    with open_media(path) as container:
        video, _ = streams_of(container)
        try:
            ticks = [
                packet.pts for packet in container.demux(video) if packet.pts is not None and not packet.is_discard
            ]
        except av.error.FFmpegError as error:
            raise ValueError(f"{str(path)!r} is damaged ({error}): give a file that FFmpeg can play.") from error
        seconds = float(video.time_base)
    if not ticks:
        raise ValueError(f"{str(path)!r} has no timestamps: store it in a container that has them, such as mp4.")
    ticks = np.sort(np.array(ticks))
    return (ticks - ticks[0]) * seconds


def interpolate(times: np.ndarray, moments: np.ndarray, values: np.ndarray, slack: float) -> np.ndarray:
    """
    Values at `times`, linear between two neighbouring moments that are both annotated and at most `MAX_GAP_SECONDS` apart.

    Args:
        times (`np.ndarray` of shape `(frames,)`): in seconds.
        moments (`np.ndarray` of shape `(moments,)`): in seconds, in rising order.
        values (`np.ndarray` of shape `(moments,)`): -5 where not annotated.
        slack: seconds by which times may lie before the first moment or after the last, to have its value.

    Returns:
        `np.ndarray` of shape `(frames,)`, -5 where not annotated.
    """
    known = values != IGNORED_LABEL
    joined = known[:-1] & known[1:] & (np.diff(moments) <= MAX_GAP_SECONDS + ROUNDING_SECONDS)
    between = np.concatenate([[False], joined, [False]])[np.searchsorted(moments, times)]
    nearest = np.searchsorted((moments[1:] + moments[:-1]) / 2, times)
    outside = (times < moments[0]) | (times > moments[-1])
    at = np.abs(times - moments[nearest]) <= np.where(outside, slack, 0.0) + ROUNDING_SECONDS
    return np.where(between, np.interp(times, moments, values), np.where(at, values[nearest], IGNORED_LABEL))


def load_csv(
    path: str | Path, split: str | None = None, on_error: str = "raise", delay: float | Mapping[str, float] = 0.0
) -> Dataset:
    """
    One row for each subject of each media file that a CSV file names; no picture or sound is decoded.

    Its columns, in any order: `media` (path of the media file, absolute or from the CSV's folder), `time` (seconds from the
    first video frame, rising within a subject of a media file), `valence` and `arousal` (in [-1, 1]; empty, NaN or -5 where
    not annotated), and if need be `subject` (else the media file's stem), `split`, `crops_dir` (folder of face crops
    00001.jpg, ..., absolute or from the CSV's folder), `video_id` (else the media file's stem, with `_<subject>` where the
    file shows several) and `recording` (else the media file; one name for the files of two subjects who talk with each
    other). Other columns are ignored. Cells are parted by commas, semicolons or tabs, names are in any case, numbers may
    have a decimal comma.

    The label of a frame is linear in time between the annotated moments, see [`interpolate`]; half a frame beyond the first
    and the last is still theirs.

    Args:
        path: the CSV file, UTF-8.
        split: one of the names in the column `split`; left out, all lines.
        on_error: `"raise"`, or `"skip"` to log what is wrong and use the rest: a line that can not be read is a moment that
            is not annotated, a media file that can not be read is left out.
        delay: seconds by which annotators are late, see [`shift_labels`].

    Returns:
        `datasets.Dataset` of the columns of `jca.corpus.ROW`, in the order of the file.

    Raises:
        CorpusError: one report of all problems with file and line.
    """
    path = Path(path)
    cells, lines, problems = _read(path)
    splits = {name.lower() for name in cells["split"]} - {""}
    if split is not None and split.lower() not in splits:
        remedy = f"choose one of {', '.join(sorted(splits))}" if splits else "add the column `split` with its name"
        raise CorpusError(path, [f"{path}: no line is of the split {split!r}: {remedy}"])
    paths = {cell: Path(os.path.normpath(path.parent / cell)) for cell in {*cells["media"], *cells["crops_dir"]}}
    first_lines, subjects, series = {}, defaultdict(set), defaultdict(list)
    for index, cell in enumerate(cells["media"]):
        if not any(column[index] for column in cells.values()):
            continue  # a blank line
        if not cell:
            problems.append((lines[index], "media is empty: give the path of the media file"))
            continue
        media = paths[cell]
        subject = cells["subject"][index] or media.stem
        subjects[media].add(subject)
        if split is None or cells["split"][index].lower() == split.lower():
            first_lines.setdefault(media, lines[index])
            series[media, subject].append(index)
    unplaced = sorted(line for line, _ in problems)
    with ThreadPoolExecutor(8) as pool:  # waits for the disk most of the time
        timings = dict(zip(first_lines, pool.map(_timing, first_lines), strict=True))
    problems += [(first_lines[media], found) for media, found in timings.items() if isinstance(found, str)]
    rows, lines_of_ids = [], {}
    for (media, subject), indices in series.items():
        first, line = indices[0], lines[indices[0]]
        for name in ("crops_dir", "video_id", "recording"):
            given = cells[name][first]
            if other := next((index for index in indices if cells[name][index] != given), None):
                text = f"{name} {cells[name][other]!r} is not the {given!r} of line {line}"
                problems.append((lines[other], f"{text}: give one for a subject of a media file"))
        moments, values, found = _moments(cells, lines, indices, unplaced)
        problems += found
        video_id = cells["video_id"][first] or media.stem + (f"_{subject}" if len(subjects[media]) > 1 else "")
        if video_id in lines_of_ids:
            text = f"the video_id {video_id!r} of {media} and {subject!r} is taken by line {lines_of_ids[video_id]}"
            problems.append((line, f"{text}: give each its own in a column `video_id`"))
            continue
        lines_of_ids[video_id] = line
        timing = timings[media]
        if isinstance(timing, str) or not len(moments):
            continue
        about, times = timing
        beyond = moments[-1] - times[-1]
        if beyond > max(MISMATCH_SECONDS, MISMATCH_SHARE * times[-1]):
            text = f"{media} is annotated up to {moments[-1]:g} s and ends at {times[-1]:g} s"
            problems.append((line, f"{text}: are the times in seconds, and of this video?"))
        labels = np.stack([interpolate(times, moments, v, slack=0.5 / about.fps) for v in values.T], axis=1)
        labels = labels.astype(np.float32)
        if delay:
            labels = shift_labels(labels, about.fps, delay)
        folder = paths[cells["crops_dir"][first]] if cells["crops_dir"][first] else None
        if folder is not None and not folder.is_dir():
            problems.append((line, f"there is no folder of face crops {folder}"))  # no frame has a face
        recording = cells["recording"][first] or os.path.relpath(media, path.parent)
        rows.append(
            make_row(
                video_id, media, labels, about.fps, folder, subject=subject, recording=recording, notes=about.notes
            )
        )
    return make_dataset(rows, [f"{path}, line {line}: {text}" for line, text in sorted(problems)], path, on_error)


def _read(path: Path) -> tuple[dict[str, list[str]], list[int], list[tuple[int, str]]]:
    """The cells of each column that is used, empty where there is no such column, the lines they stand in, and lines that
    have more or fewer cells than the header."""
    remedy = "give a CSV file in UTF-8"
    try:
        with open(path, encoding="utf-8-sig") as file:
            header = file.readline().rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(path, [f"{path}: can not be read ({error}): {remedy}"]) from error
    delimiter = max(",;\t", key=header.count)
    names = [
        name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])
    ]
    problems = [f"{path}, line 1: the column `{name}` is missing" for name in REQUIRED if name not in names]
    problems += [f"{path}, line 1: there are two columns `{n}`" for n in (*REQUIRED, *OPTIONAL) if names.count(n) > 1]
    if problems:
        raise CorpusError(path, [*problems, f"{path}, line 1: the columns are {', '.join(names) or 'none'}"])
    used = [name for name in (*REQUIRED, *OPTIONAL) if name in names]
    left_out = {}

    def leave_out(row: InvalidRow) -> str:
        left_out[row.number] = f"{row.text!r} has {row.actual_columns} cells, the header {row.expected_columns}"
        return "skip"

    try:
        table = read_csv(
            path,
            read_options=ReadOptions(column_names=names, skip_rows=1, use_threads=False),  # threads do not count lines
            parse_options=ParseOptions(delimiter=delimiter, ignore_empty_lines=False, invalid_row_handler=leave_out),
            convert_options=ConvertOptions(column_types=dict.fromkeys(names, string()), include_columns=used),
        )
    except ArrowInvalid as error:
        raise CorpusError(path, [f"{path}: can not be read ({error}): {remedy}"]) from error
    cells = {name: [""] * len(table) for name in OPTIONAL}
    cells |= {name: [cell.strip() for cell in table[name].to_pylist()] for name in used}
    lines = [number for number in range(2, len(table) + len(left_out) + 2) if number not in left_out]
    return cells, lines, list(left_out.items())


def _timing(path: Path) -> tuple[Media, np.ndarray] | str:
    try:
        return probe_media(path), frame_times(path)
    except (ValueError, OSError) as error:
        return str(error)


def _moments(
    cells: Mapping[str, Sequence[str]], lines: Sequence[int], indices: Sequence[int], unplaced: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]:
    """
    Times `(moments,)` in rising order and values `(moments, 2)`, -5 where not annotated, of some lines, and their problems.
    A line without a usable time, or one in between that is `unplaced`, becomes a moment that is not annotated.
    """
    rows, problems = np.full((len(indices), 3), np.nan), []
    for row, index in zip(rows, indices, strict=True):
        wrong = []
        for column, name in enumerate(("time", "valence", "arousal")):
            text = cells[name][index]
            try:
                row[column] = number = float(text.replace(",", ".") or "nan")
            except ValueError:
                wrong.append(f"{name} {text!r} is not a number")
                continue
            if name == "time" and not 0 <= number < np.inf:
                wrong.append(f"time {text!r}: give seconds from the first video frame, 0 or more")
                row[column] = np.nan
            elif name != "time" and abs(number) > 1 and number != IGNORED_LABEL:
                wrong.append(f"{name} {text!r} is outside [-1, 1] and not -5: rescale {name} to [-1, 1]")
        if wrong:
            row[1:] = np.nan
            problems += [(lines[index], text) for text in wrong]
    times, values = rows[:, 0], np.where(np.isnan(rows[:, 1:]), IGNORED_LABEL, rows[:, 1:])
    timed = np.flatnonzero(~np.isnan(times))
    for before, after in pairwise(timed):
        if times[after] <= times[before]:
            back = "stands there too" if times[after] == times[before] else f"has {times[before]:g} s"
            text = f"time {times[after]:g} s, and line {lines[indices[before]]} before it {back}"
            problems.append((lines[indices[after]], f"{text}: sort the lines of a subject by time, each time once"))
    latest = np.fmax.accumulate(np.concatenate([[-np.inf], times]))
    kept = np.flatnonzero(times > latest[:-1])
    order = np.arange(len(indices)) + np.searchsorted(unplaced, [lines[index] for index in indices])
    holes = np.flatnonzero(np.diff(order[kept]) > 1)
    times, values = times[kept], values[kept]
    middles = (times[holes] + times[holes + 1]) / 2
    return np.insert(times, holes + 1, middles), np.insert(values, holes + 1, IGNORED_LABEL, axis=0), problems
