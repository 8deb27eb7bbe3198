"""What every corpus becomes: one row for each annotated subject of a video, and one report of all that is wrong with it."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from transformers.utils import logging

from media_jca import REORDER_FRAMES
from modeling_jca import IGNORED_LABEL
from sources_jca import open_media, streams_of


logger = logging.get_logger(__name__)

SPLITS = ("train", "validation", "test")
MEDIA_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".flv", ".wmv")
TIMED_PACKETS = 150  # of a video, whose timestamps give its rate
LATE_SECONDS = 0.1  # by which audio may start later or end earlier than the video without a note
MISMATCH_SHARE, MISMATCH_SECONDS = 0.05, 2.0  # above both, annotation and video can hardly be of one recording

ROW = Features(
    video_id=Value("string"),  # of the annotation: two subjects of one video have two
    subject=Value("string"),  # whom it shows; folds are made of subjects
    recording=Value("string"),  # in which it is: two subjects of one have its sound in common
    media_path=Value("string"),
    crops_dir=Value("string"),  # face crops 00001.jpg, ...; None where the frames themselves are to be used
    fps=Value("float64"),  # as the timestamps of the first frames have it
    num_frames=Value("int64"),
    valence=List(Value("float32")),  # of each frame, -5 where not annotated
    arousal=List(Value("float32")),
    labelled=List(Value("bool")),  # annotated in both
    notes=List(Value("string")),  # what is odd about it and what was done
)


class CorpusError(ValueError):
    """All that is wrong with a corpus, a line for each in `problems`."""

    def __init__(self, where: str | Path, problems: Sequence[str]):
        self.problems = list(problems)
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        super().__init__("\n  ".join([f"{where}: {count}", *problems]))


class Media(NamedTuple):
    """What the header and the first timestamps of a media file say: `fps`, `num_frames` (0 if unknown), `exact` whether the
    header counts the frames, and notes on its rate and audio."""

    fps: float
    num_frames: int
    exact: bool
    notes: list[str]


def probe_media(path: str | Path) -> Media:
    """
    What can be known of a media file without decoding a picture.

    Raises:
        FileNotFoundError, IsADirectoryError, ValueError: see `open_media`; ValueError also if there is no picture in it.
    """
    notes = []
    with open_media(path) as container:
        video, audio = streams_of(container)
        times, ended = [], True
        try:
            for packet in container.demux(video):
                if packet.pts is not None and not packet.is_discard:
                    times.append(float(packet.pts * packet.time_base))
                if len(times) >= TIMED_PACKETS:
                    ended = False
                    break
        except av.error.FFmpegError as error:
            raise ValueError(f"{str(path)!r} is damaged ({error}): give a file that FFmpeg can play.") from error
        if not times and not video.frames:
            raise ValueError(f"{str(path)!r} has no picture: was it cut off after its header? Copy it again.")
        times = sorted(times)[: None if ended else -REORDER_FRAMES]  # the last ones may lack some that are shown before
        header = float(video.average_rate or video.guessed_rate or 0)
        fps = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else header or 30.0
        if header and abs(header / fps - 1) > 0.01:
            notes.append(f"the header says {header:.2f} frames a second, the timestamps {fps:.2f}: they hold")
        seconds = (
            float(video.duration * video.time_base) if video.duration else (container.duration or 0) / av.time_base
        )
        counted = len(times) if ended else 0  # an AVI's header counts frames that were dropped too
        exact = bool(counted or video.frames)
        num_frames = counted or video.frames or round(seconds * fps)
        if audio is None:
            notes.append("no audio")
        else:
            late = _start(audio) - _start(video)
            if late > LATE_SECONDS:
                notes.append(f"audio starts {late:.2f} s after the video")
            if video.duration and audio.duration:
                early = seconds + _start(video) - _start(audio) - float(audio.duration * audio.time_base)
                if early > LATE_SECONDS:
                    notes.append(f"audio ends {early:.2f} s before the video")
    return Media(fps, num_frames, exact, notes)


def _start(stream: "av.stream.Stream") -> float:
    return float((stream.start_time or 0) * stream.time_base)


def compare_lengths(annotated: int, media: Media) -> tuple[list[str], list[str]]:
    """Notes and problems of an annotation of `annotated` rows: row k stays with frame k whatever the lengths are."""
    more = annotated - media.num_frames
    if not more or not media.num_frames:
        return [], []
    about = "" if media.exact else "about "
    line = f"{annotated} rows are annotated, the video has {about}{media.num_frames} frames"
    if media.exact and abs(more) > max(MISMATCH_SHARE * media.num_frames, MISMATCH_SECONDS * media.fps):
        return [], [f"{line}: is it the annotation of another video?"]
    if not media.exact and abs(more) < media.fps:
        return [], []  # within what a duration tells
    done = "rows beyond the video are left out" if more > 0 else "frames beyond the annotation are not labelled"
    return [f"{line}: {done}"], []


def make_row(
    video_id: str,
    media_path: str | Path,
    labels: np.ndarray,
    fps: float,
    crops_dir: str | Path | None = None,
    subject: str | None = None,
    recording: str | None = None,
    notes: Iterable[str] = (),
) -> dict:
    """A row of a corpus, as `ROW` says, from labels `(frames, 2)`, -5 where not annotated, at `fps` frames a second. Without
    a name, the subject is that of the annotation and the recording that of the media file."""
    return {
        "video_id": video_id,
        "subject": subject or video_id,
        "recording": recording or Path(media_path).stem,
        "media_path": str(media_path),
        "crops_dir": None if crops_dir is None else str(crops_dir),
        "fps": float(fps),
        "num_frames": len(labels),
        "valence": labels[:, 0],
        "arousal": labels[:, 1],
        "labelled": (labels != IGNORED_LABEL).all(axis=1),
        "notes": list(notes),
    }


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """
    Let `write` make a file beside `path` and give it its name when it is complete: one that is there is whole, also after a
    run that was killed or two at a time.

    Raises:
        OSError: naming `path`, if it can not be written; nothing is left behind.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise OSError(f"{path} can not be written ({error}): make room, or see to the rights of its folder.") from error


def make_dataset(rows: Sequence[dict], problems: Sequence[str], where: str | Path, on_error: str) -> Dataset:
    """
    The rows as a `datasets.Dataset`, the numbers of frames as NumPy arrays `(frames, ...)`.

    Args:
        on_error: `"raise"`: any problem is an error; `"skip"`: problems are logged and the rows are what is left.

    Raises:
        CorpusError: with all problems, or if no row is left.
        ValueError: if `on_error` is neither of the two.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f'on_error={on_error!r} is not known. Choose "raise" or "skip".')
    if problems and (on_error == "raise" or not rows):
        raise CorpusError(where, problems)
    if not rows:
        raise CorpusError(where, ["no video was found"])
    names = [row["video_id"] for row in rows]
    strange = sorted({name for name in names if Path(name).name != name or len(os.fsencode(name)) > 200})
    if strange or len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise CorpusError(
            where,
            [*(f"video_id {name!r} can not be the name of a file: give one of at most 200 bytes" for name in strange)]
            + [
                f"video_id {name!r} stands there more than once: each annotation needs a name of its own"
                for name in twice
            ],
        )
    if problems:
        logger.warning(f"{CorpusError(where, problems)}\n  What could be used of it was.")
    columns = {}
    for name, kind in ROW.items():
        values = [row[name] for row in rows]
        if name in ("valence", "arousal", "labelled"):  # millions of numbers: no Python object for each
            offsets = np.concatenate([[0], np.cumsum([len(v) for v in values])]).astype(np.int32)
            columns[name] = pa.ListArray.from_arrays(
                pa.array(offsets), pa.array(np.concatenate(values), kind.feature.pa_type)
            )
        else:
            columns[name] = pa.array(values, ROW.arrow_schema.field(name).type)
    return with_arrays(Dataset(pa.table(columns).cast(ROW.arrow_schema)))


def with_arrays(dataset: Dataset) -> Dataset:
    """Rows whose numbers of frames are NumPy arrays `(frames, ...)`, and all else as it is in Python."""
    return dataset.with_format("numpy", ["valence", "arousal", "labelled"], output_all_columns=True)


def frame_labels(row: Mapping) -> np.ndarray:
    """Valence and arousal of a row's frames, `(frames, 2)` float32, -5 where not annotated."""
    return np.stack([row["valence"], row["arousal"]], axis=1).astype(np.float32)


def shift_labels(labels: np.ndarray, fps: float, delay: float | Mapping[str, float]) -> np.ndarray:
    """
    Labels as if annotators had reacted at once: frame t gets what was annotated `delay` seconds later, and frames at the end
    nothing.

    Args:
        labels (`np.ndarray` of shape `(frames, 2)`): valence and arousal.
        fps: frames a second.
        delay: in seconds, for both or by name. FG 2021 has 58 frames for valence and 68 for arousal on RECOLA.

    Returns:
        `np.ndarray` of shape `(frames, 2)`.

    Raises:
        ValueError: if a delay is below 0, no number, or of another name than valence and arousal.
    """
    delays = delay if isinstance(delay, Mapping) else {"valence": delay, "arousal": delay}
    if unknown := set(delays) - {"valence", "arousal"}:
        raise ValueError(f"delay names {sorted(unknown)}: give seconds for valence and arousal.")
    out = np.full_like(labels, IGNORED_LABEL)
    for column, name in enumerate(("valence", "arousal")):
        if not 0 <= delays.get(name, 0.0) < float("inf"):
            raise ValueError(f"delay={delays[name]} s of {name}: annotators react late, give 0 or more.")
        frames = round(delays.get(name, 0.0) * fps)
        out[: max(len(labels) - frames, 0), column] = labels[frames:, column]
    return out


def split_by_length(lengths: Sequence[float], num_parts: int) -> list[list[int]]:
    """Indices of items of these `lengths`, of any unit, in `num_parts` parts of nearly the same total length: longest first,
    each to the shortest part."""
    parts, totals = [[] for _ in range(num_parts)], [0.0] * num_parts
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        shortest = totals.index(min(totals))
        parts[shortest].append(index)
        totals[shortest] += lengths[index]
    return [sorted(part) for part in parts]


def load_corpus(source: str | Path, split: str, **options: Any) -> Dataset:
    """
    Rows of a split of any corpus, with the columns of `jca.corpus.ROW`. What the scripts and recipes call `data`.

    Args:
        source: a folder that [`prepare`] made, a CSV file (see [`load_csv`]) or the folder of Aff-Wild2's release (see
            [`load_affwild2`]).
        split: `"train"`, `"validation"` or `"test"`.
        options: of [`load_csv`] or [`load_affwild2`]; what is prepared has none.

    Raises:
        CorpusError: with all that is wrong with it, or if options are given for what is prepared.
        ValueError: for an unknown split.
    """
    from jca.affwild2 import load_affwild2
    from jca.csv_corpus import load_csv
    from jca.preparation import is_prepared, load_prepared

    if Path(source).suffix.lower() == ".csv":
        return load_csv(source, split, **options)
    if not is_prepared(source):
        return load_affwild2(source, split, **options)
    if options:
        raise CorpusError(source, ["is prepared already: give the release, or the CSV file, from which it was"])
    return load_prepared(source, split)
