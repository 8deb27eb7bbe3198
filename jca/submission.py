"""Submissions to the valence-arousal challenge of ABAW: one text file with a row for each frame of each test video."""

import re
from array import array
from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jca.corpus import CorpusError


HEADER = "image_location,valence,arousal"
NAMES = ("valence", "arousal")
LOCATION = re.compile(r"([^/,\s][^/,\r\n]*)/(?!00000\.)([0-9]{5}|[1-9][0-9]{5,6})\.jpg")
STRIDE = 10_000_000  # more than a frame's number can be: video * STRIDE + frame names a row


class _Rows(NamedTuple):
    """The rows whose location can be read: `keys` are video * STRIDE + frame, `values` `(rows, 2)` are NaN where wrong."""

    keys: np.ndarray
    lines: np.ndarray
    values: np.ndarray


def write_submission(
    predictions: Mapping[str, np.ndarray], path: str | Path, sample: str | Path | None = None
) -> list[str]:
    """
    Write predictions as a submission: `<video>/00001.jpg,valence,arousal`, frames from 1, values with six decimals.

    The challenge asks for every frame of a video, whether a face was cropped there or not.

    Args:
        predictions (mapping of video to `np.ndarray` of shape `(frames, 2)`): valence and arousal in [-1, 1] of every
            frame that was decoded, in order.
        path: the file to write.
        sample: the organisers' sample file. The rows are then its rows in its order: frames beyond what was decoded
            repeat the last one, frames and videos that it does not ask for are left out. Its own values are not read.

    Returns:
        A line for each video of which rows were repeated or left out; none without a sample.

    Raises:
        CorpusError: listing every prediction that is no submission's, every video of the sample without predictions, and
            all that is wrong with the sample. Nothing is written then.
    """
    problems = [] if predictions else ["there are no predictions: give (frames, 2) for each video"]
    for video, values in predictions.items():
        if not LOCATION.fullmatch(f"{video}/00001.jpg"):
            problems.append(f"{video!r} can not be a video of a submission: a name has no slash, comma or line break")
        if np.ndim(values) != 2 or np.shape(values)[1] != 2 or not len(values):
            problems.append(f"{video}: predictions have the shape {np.shape(values)}, they must be (frames, 2)")
            continue
        for name, column in zip(NAMES, np.asarray(values, np.float64).T, strict=True):
            wrong = np.flatnonzero(~(np.abs(column) <= 1))
            if len(wrong):
                problems.append(
                    f"{video}: {name} must be in [-1, 1]: {column[wrong[0]]}{', ...' if len(wrong) > 1 else ''} "
                    f"in {_frames(wrong + 1)}"
                )
    videos = {}
    if sample is not None:
        rows, found = _read(sample, videos, located_only=True)
        keys = rows.keys
        problems += found
        problems += [
            f"{video} has no predictions, {sample} asks for it" for video in videos if video not in predictions
        ]
    if problems:
        raise CorpusError(path, problems)
    if sample is None:
        keys = _keys({video: len(values) for video, values in predictions.items()}, videos)
    numbers, frames = np.divmod(keys, STRIDE)
    counts = np.array([len(predictions[video]) for video in videos])
    notes = []
    for number, (video, count) in enumerate(zip(videos, counts, strict=True)):
        asked = frames[numbers == number]
        if repeated := int((asked > count).sum()):
            notes.append(f"{video}: {_count(repeated)} beyond the {count} predicted frames, the last one is repeated")
        if left := int(count - (asked <= count).sum()):
            notes.append(
                f"{video}: {_count(left)} left out of {count} predicted frames, {sample} does not ask for them"
            )
    notes += [
        f"{video}: all {_count(len(values))} left out, {sample} does not ask for this video"
        for video, values in predictions.items()
        if video not in videos
    ]
    starts = counts.cumsum() - counts
    values = np.concatenate([predictions[video] for video in videos])
    values = values[starts[numbers] + np.minimum(frames, counts[numbers]) - 1]
    names = list(videos)
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(f"{HEADER}\n")
        for number, frame, (valence, arousal) in zip(numbers.tolist(), frames.tolist(), values.tolist(), strict=True):
            file.write(f"{names[number]}/{frame:05d}.jpg,{valence:.6f},{arousal:.6f}\n")
    return notes


def read_submission(path: str | Path) -> dict[str, np.ndarray]:
    """
    Valence and arousal of each video of a submission, `(frames, 2)` float32 in the order of its frames.

    Raises:
        CorpusError: listing all that [`validate_submission`] finds without a sample.
    """
    videos = {}
    rows, problems = _read(path, videos)
    problems += _compare(path, rows, videos, _keys(_last_frames(rows.keys, videos), videos), None)
    if problems:
        raise CorpusError(path, problems)
    order = np.argsort(rows.keys)
    values = rows.values[order].astype(np.float32)
    return dict(zip(videos, np.split(values, np.flatnonzero(np.diff(rows.keys[order] // STRIDE)) + 1), strict=True))


def last_frames(path: str | Path) -> dict[str, int]:
    """The number of the last frame, from 1, of each video of a submission, whatever is wrong with it besides."""
    videos = {}
    rows, _ = _read(path, videos, located_only=True)
    return _last_frames(rows.keys, videos)


def validate_submission(
    path: str | Path, sample: str | Path | None = None, num_frames: Mapping[str, int] | None = None
) -> list[str]:
    """
    All that is wrong with a submission, a line for each with file and line number; none if it can be handed in.

    The first line must be the header, every other one a location, valence and arousal in [-1, 1], and no location may
    stand twice. Blank lines, CRLF and a byte order mark are passed over. Alike problems in a row are one line.

    Args:
        path: the submission.
        sample: the organisers' sample file: its rows must be there in its order, and no others.
        num_frames: frames of each video: rows 1, ..., n of these videos must be there, and no others.

    With neither of the two, the frames of a video must be 1, 2, ... without a hole; with both, both must hold.
    """
    videos = {}
    rows, problems = _read(path, videos)
    if not len(rows.keys):
        return problems
    if sample is not None:
        asked, found = _read(sample, videos, located_only=True)
        problems += found
        if not found:
            problems += _compare(path, rows, videos, asked.keys, sample)
            problems += _disorder(path, rows, videos, asked.keys, sample)
    if num_frames is not None:
        problems += _compare(path, rows, videos, _keys(num_frames, videos), "the count of frames")
    if sample is None and num_frames is None:
        problems += _compare(path, rows, videos, _keys(_last_frames(rows.keys, videos), videos), None)
    return problems


def _read(path: str | Path, videos: dict[str, int], located_only: bool = False) -> tuple[_Rows, list[str]]:
    """Rows of a file and what is wrong with each; `videos` numbers the videos and gets those that are new."""
    keys, lines, values = array("q"), array("q"), array("d")
    found: dict[str, list[list[Any]]] = defaultdict(list)  # of each rule the runs of lines that break it

    def note(line: int, rule: str, text: str) -> None:
        if found[rule] and found[rule][-1][1] == line - 1:
            found[rule][-1][1] = line
        else:
            found[rule].append([line, line, text[:80]])

    started = False
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                line = line.strip()
                if not line:
                    continue
                location, *numbers = line.split(",")
                match = LOCATION.fullmatch(location)
                if not started:
                    started = True
                    if line != HEADER:
                        note(number, f"the first line must be the header `{HEADER}`", line)
                    if not match:
                        continue
                if not match:
                    note(
                        number,
                        "a location must be `<video>/<number>.jpg`, `a/00001.jpg` for the first frame",
                        location,
                    )
                pair = [np.nan, np.nan]
                if located_only:
                    pass
                elif len(numbers) != 2:
                    note(number, "a row must have three fields `<video>/<number>.jpg,valence,arousal`", line)
                else:
                    for column, text in enumerate(numbers):
                        try:
                            pair[column] = float(text)
                        except ValueError:
                            note(number, f"{NAMES[column]} must be a number", text)
                            continue
                        if not -1 <= pair[column] <= 1:
                            note(number, f"{NAMES[column]} must be a number in [-1, 1]", text)
                if match:
                    keys.append(videos.setdefault(match[1], len(videos)) * STRIDE + int(match[2]))
                    lines.append(number)
                    values.extend(pair)
    except (UnicodeDecodeError, OSError) as error:
        found.clear()
        keys, lines, values = array("q"), array("q"), array("d")
        problems = [(0, f"{path}: can not be read as text ({error})")]
    else:
        problems = [
            (first, f"{path}, {_lines(first, last)}: {rule}: {text!r}{', ...' if last > first else ''}")
            for rule, runs in found.items()
            for first, last, text in runs
        ]
        if not keys and not problems:
            problems = [(0, f"{path}: has no row: it must hold the header `{HEADER}` and a row for each frame")]
    rows = _Rows(np.array(keys), np.array(lines), np.array(values).reshape(-1, 2))
    firsts = _firsts(rows.keys)
    again = np.flatnonzero(firsts != np.arange(len(firsts)))
    for run in _runs(rows.lines[again], rows.lines[firsts[again]]):
        here, there = rows.lines[again[run]], rows.lines[firsts[again[run]]]
        place = f"{_locations(rows.keys[again[run]], list(videos))} already on {_lines(*there[[0, -1]])}"
        problems.append((here[0], f"{path}, {_lines(*here[[0, -1]])}: {place}"))
    return rows, [problem for _, problem in sorted(problems)]


def _compare(
    path: str | Path, rows: _Rows, videos: dict[str, int], asked: np.ndarray, asker: str | Path | None
) -> list[str]:
    """Rows that are missing and rows that are not asked for, given the keys of those that are."""
    names, problems = list(videos), []
    there = set((rows.keys // STRIDE).tolist())
    missing = np.setdiff1d(asked, rows.keys)
    numbers = missing // STRIDE
    for number in np.unique(numbers):
        frames = missing[numbers == number] % STRIDE
        what = f"{_frames(frames)} of {names[number]} missing" if number in there else f"no row of {names[number]}"
        rule = (
            f"{asker} asks for {_count(len(frames))}"
            if asker
            else "the frames of a video must be 1, 2, ..., none left out"
        )
        problems.append(f"{path}: {what}: {rule}")
    extra = np.flatnonzero(~np.isin(rows.keys, asked))
    for run in _runs(rows.lines[extra], rows.keys[extra]):
        lines = _lines(*rows.lines[extra[run]][[0, -1]])
        problems.append(f"{path}, {lines}: {_locations(rows.keys[extra[run]], names)} not asked for by {asker}")
    return problems


def _disorder(
    path: str | Path, rows: _Rows, videos: dict[str, int], asked: np.ndarray, sample: str | Path
) -> list[str]:
    """The first row that stands in another order than in the sample, given the sample's keys."""
    common = np.unique(_firsts(rows.keys))
    common = common[np.isin(rows.keys[common], asked)]
    sorter = np.argsort(asked)
    ranks = sorter[np.searchsorted(asked, rows.keys[common], sorter=sorter)]
    back = np.flatnonzero(np.diff(ranks) < 0)
    if not len(back):
        return []
    before, row = common[back[0]], common[back[0] + 1]
    here, there = (_locations(rows.keys[[index]], list(videos)) for index in (row, before))
    return [f"{path}, line {rows.lines[row]}: {here} after {there}, {sample} has them the other way round"]


def _firsts(keys: np.ndarray) -> np.ndarray:
    """For each row the index of the first one with its key."""
    _, firsts, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return firsts[inverse]


def _keys(num_frames: Mapping[str, int], videos: dict[str, int]) -> np.ndarray:
    """The keys of frames 1, ..., n of each video."""
    keys = [videos.setdefault(video, len(videos)) * STRIDE + np.arange(1, n + 1) for video, n in num_frames.items()]
    return np.concatenate([np.zeros(0, np.int64), *keys])


def _last_frames(keys: np.ndarray, videos: dict[str, int]) -> dict[str, int]:
    lasts = np.zeros(len(videos), np.int64)
    np.maximum.at(lasts, keys // STRIDE, keys % STRIDE)
    return dict(zip(videos, lasts.tolist(), strict=True))


def _runs(*series: np.ndarray) -> list[slice]:
    """Stretches over which every one of the series counts on by one."""
    breaks = np.flatnonzero(np.any([np.diff(values) != 1 for values in series], axis=0)) + 1
    edges = [0, *breaks.tolist(), len(series[0])]
    return [slice(start, end) for start, end in pairwise(edges) if end > start]


def _count(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"


def _lines(first: int, last: int) -> str:
    return f"line {first}" if first == last else f"lines {first} to {last}"


def _frames(frames: np.ndarray) -> str:
    """`frames 4 to 9, 12` of frames in ascending order."""
    runs = [frames[run] for run in _runs(frames)]
    spans = [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return f"frame{'s' if len(frames) > 1 else ''} {', '.join(spans)}"


def _locations(keys: np.ndarray, names: list[str]) -> str:
    """`a/00004.jpg`, or `a/00004.jpg to a/00009.jpg`, from the first key to the last."""
    ends = keys[:1] if len(keys) == 1 else keys[[0, -1]]
    return " to ".join(f"{names[key // STRIDE]}/{key % STRIDE:05d}.jpg" for key in ends)
