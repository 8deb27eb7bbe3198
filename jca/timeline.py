"""A timeline: the pipeline's rows as columns, what they say in short, and the files that they become."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import islice
from mimetypes import guess_type
from pathlib import Path, PurePath
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from jca.corpus import write_whole
from pipeline_jca import PAPER_SMOOTHING
from pipeline_jca import smooth as moving_average


if TYPE_CHECKING:
    import pandas


QUADRANTS = ("excited", "tense", "sad", "calm")  # of valence and arousal: + +, - +, - -, + -
FORMATS = {  # suffixes that `Timeline.save` knows, and the methods that write them
    ".csv": "to_csv",
    ".jsonl": "to_jsonl",
    ".parquet": "to_parquet",
    ".vtt": "to_webvtt",
    ".srt": "to_srt",
    ".eaf": "to_elan",
    ".TextGrid": "to_textgrid",
}
GAP_SECONDS = 0.5  # without a row of a face; a tracker that looks for faces three times a second leaves less
MIN_PROMINENCE = 0.01  # a hundredth of the way from neutral to the end of the scale: less is no peak
CHUNK = 4096  # rows that are Python objects at a time
CORNERS = ("x0", "y0", "x1", "y1")
DTYPES = {  # of the columns, in the order of a row's keys
    "time": np.float64,
    "frame": np.int64,
    "face": np.int64,
    "valence": np.float32,
    "arousal": np.float32,
    "box": np.float32,
    "face_detected": np.bool_,
    "audio_present": np.bool_,
    "face_quality": np.float32,
    "speaking": np.float32,
}
NEEDED = {name for name in DTYPES if name not in ("face_quality", "speaking")}


@dataclass(eq=False, repr=False)
class Timeline:
    """
    The rows of one file as columns, one entry for each frame and face.

    ```python
    timeline = Timeline.from_rows(pipe("interview.mp4"), name="interview.mp4")
    timeline.smooth("paper").resample(10).save("interview.eaf")
    ```

    Iteration gives the pipeline's rows back. Rows of a face, or of nobody, that are more than 0.5 s apart (at low rates:
    1.5 frames) have a gap between them, across which nothing is averaged or interpolated.

    Args:
        time (`np.ndarray` of shape `(rows,)`): seconds from the first frame of the file.
        frame (`np.ndarray` of shape `(rows,)`): from 0.
        face (`np.ndarray` of shape `(rows,)`): id, or -1 where nobody is seen and the voice alone is heard.
        valence, arousal (`np.ndarray` of shape `(rows,)`): in [-1, 1].
        box (`np.ndarray` of shape `(rows, 4)`): x0, y0, x1, y1 in pixels, NaN where there is none.
        face_detected, audio_present (`np.ndarray` of shape `(rows,)`): what the row rests on.
        face_quality (`np.ndarray` of shape `(rows,)`): in [0, 1], NaN where there is none.
        speaking (`np.ndarray` of shape `(rows,)`, *optional*): in [-1, 1], NaN where it is not known.
        name (`str`): of the media file.
        fps (`float`): frames a second.
    """

    time: np.ndarray
    frame: np.ndarray
    face: np.ndarray
    valence: np.ndarray
    arousal: np.ndarray
    box: np.ndarray
    face_detected: np.ndarray
    audio_present: np.ndarray
    face_quality: np.ndarray
    speaking: np.ndarray | None = None
    name: str = ""
    fps: float = 30.0

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], name: str = "") -> "Timeline":
        """
        The rows of one file, or an iterator over them that is read as it comes: what is kept are 60 bytes a row. Keys that
        the pipeline does not give are left out. `fps` is that of the usual step between frames, 30 for a single frame.

        Args:
            rows: as the pipeline gives them.
            name: of the media file.

        Raises:
            ValueError: if there is no row, if one lacks a key or a number, if a face has two rows of one frame, or if time
                runs backwards.
        """
        rows, chunks, speaking = iter(rows), [], False
        while chunk := list(islice(rows, CHUNK)):
            chunks.append(_columns(chunk, CHUNK * len(chunks)))
            speaking = speaking or any("speaking" in row for row in chunk)
        if not chunks:
            raise ValueError("A timeline needs rows, and there is none. Give it what the pipeline gives for one file.")
        columns = {column: np.concatenate([chunk[column] for chunk in chunks]) for column in DTYPES}
        if not speaking:
            columns["speaking"] = None
        _check(columns)
        return cls(**columns, name=name, fps=_frame_rate(columns["time"]))

    def __len__(self) -> int:
        return len(self.time)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), CHUNK):
            part = self._take(slice(start, start + CHUNK))
            corners = _numbers(part.box.ravel())
            boxes = [corners[index : index + 4] for index in range(0, len(corners), 4)]
            lists = {
                "time": part.time.tolist(),
                "frame": part.frame.tolist(),
                "face": [None if face < 0 else face for face in part.face.tolist()],
                "valence": _numbers(part.valence),
                "arousal": _numbers(part.arousal),
                "box": [None if None in box else box for box in boxes],
                "face_detected": part.face_detected.tolist(),
                "audio_present": part.audio_present.tolist(),
                "face_quality": _numbers(part.face_quality),
            }
            if part.speaking is not None:
                lists["speaking"] = _numbers(part.speaking)
            for values in zip(*lists.values(), strict=True):
                yield dict(zip(lists, values, strict=True))

    def __repr__(self) -> str:
        frames = len(np.unique(self.frame))
        faces = f"faces {', '.join(map(str, self.faces))}" if self.faces else "no face"
        name = f"{self.name!r}, " if self.name else ""
        return (
            f"Timeline({name}{len(self)} rows, {frames} frames at {self.fps:.5g} a second, "
            f"{self.time.min():.2f} to {self.time.max():.2f} s, {faces})"
        )

    @property
    def faces(self) -> list[int]:
        """Ids in the order of their appearance."""
        faces, first = np.unique(self.face, return_index=True)
        return [face for face in faces[np.argsort(first)].tolist() if face >= 0]

    def of_face(self, face: int | None) -> "Timeline":
        """
        The rows of one face, or, for None, those in which nobody is seen.

        Raises:
            ValueError: if there is none.
        """
        rows = self.face == (-1 if face is None else face)
        if not rows.any():
            raise ValueError(f"No row is of face {face!r}: this timeline has {[*self.faces, *self._nobody()]}.")
        return self._take(rows)

    def slice(self, start: float = 0.0, stop: float = float("inf")) -> "Timeline":
        """
        The rows with `start <= time < stop`, in seconds; they keep their times.

        Raises:
            ValueError: if there is none.
        """
        rows = (self.time >= start) & (self.time < stop)
        if not rows.any():
            raise ValueError(
                f"No row is in {start} <= time < {stop}: this timeline is of {self.time.min()} to {self.time.max()} s."
            )
        return self._take(rows)

    def smooth(self, size: int | str | Mapping[str, int]) -> "Timeline":
        """
        Moving average of valence and arousal, of each face for itself and not across gaps; see `pipeline_jca.smooth`.

        Args:
            size (`int`, `dict[str, int]` or `"paper"`): frames at 30 a second, odd: 21 is 0.7 s at any rate; one for both
                or one for each by name. `"paper"` is 21 for valence and 51 for arousal.

        Raises:
            ValueError: if a size is not an odd number of at least 1, or of something else.
        """
        size = PAPER_SMOOTHING if size == "paper" else size
        sizes: Mapping[str, Any] = size if isinstance(size, Mapping) else dict.fromkeys(PAPER_SMOOTHING, size)
        if unknown := set(sizes) - set(PAPER_SMOOTHING):
            raise ValueError(f"smoothing names {sorted(unknown)}, and what can be smoothed is {list(PAPER_SMOOTHING)}.")
        columns = {name: getattr(self, name).copy() for name in sizes}
        for rows in self._stretches():
            for name, column in columns.items():
                column[rows] = moving_average(column[rows], self.time[rows], sizes[name])
        return replace(self, **columns)

    def resample(self, fps: float) -> "Timeline":
        """
        Rows at the multiples of `1 / fps` seconds, frame k at k / fps.

        Faces and flags are those of the nearest frame. What is measured (valence, arousal, box, quality, speaking) is
        linear between the two rows of the face around it, and that of the nearest where the other has none. There is no
        row in a gap. A lower rate takes rows out and does not average: `smooth` first.

        Raises:
            ValueError: if `fps` is not positive, or no multiple lies within the timeline.
        """
        if not (np.isfinite(fps) and fps > 0):
            raise ValueError(f"fps={fps!r} must be a positive number of rows a second, such as 10.")
        order = np.argsort(self.frame, kind="stable")
        _, first, count = np.unique(self.frame[order], return_index=True, return_counts=True)
        times = self.time[order[first]]
        half = 0.5 / self.fps  # a frame stands for what is not farther from it
        low, high = np.ceil((times[0] - half) * fps - 1e-6), np.floor((times[-1] + half) * fps + 1e-6)
        frame = np.arange(max(low, 0), high + 1).astype(np.int64)
        time = frame / fps
        after = np.searchsorted(times, time).clip(max=len(times) - 1)
        before = (after - 1).clip(min=0)
        nearest = np.where(time - times[before] <= np.abs(times[after] - time), before, after)
        kept = (times[after] - times[before] <= self._gap) | (np.abs(time - times[nearest]) <= half + 1e-6)
        if not kept.any():
            raise ValueError(
                f"fps={fps!r} leaves no row of {self.time.min()} to {self.time.max()} s: take a higher one."
            )
        frame, time, nearest = frame[kept], time[kept], nearest[kept]

        count, first = count[nearest], first[nearest]
        rows = order[np.arange(count.sum()) + np.repeat(first + count - np.cumsum(count), count)]
        frame, time = np.repeat(frame, count), np.repeat(time, count)
        previous, following = np.arange(len(self)), np.arange(len(self))
        for stretch in self._stretches():
            previous[stretch[1:]], following[stretch[:-1]] = stretch[:-1], stretch[1:]
        other = np.where(time > self.time[rows], following[rows], previous[rows])
        step = self.time[other] - self.time[rows]
        weight = np.divide(time - self.time[rows], step, out=np.zeros_like(time), where=step != 0)

        def linear(column: np.ndarray) -> np.ndarray:
            share = weight[:, None] if column.ndim == 2 else weight
            mixed = column[rows] + share * (column[other].astype(np.float64) - column[rows])
            return np.where(np.isnan(mixed), column[rows], mixed).astype(column.dtype)

        columns = {
            name: linear(column) if column.dtype == np.float32 else column[rows]
            for name, column in self._present().items()
        }
        return replace(self, **{**columns, "time": time, "frame": frame, "fps": float(fps)})

    def summary(self, num_peaks: int = 5) -> dict[str, Any]:
        """
        What the timeline says in short, as JSON can hold it: `name`, `fps`, `seconds`, `frames`, `share_audio_present` and
        `faces`, an entry for each face and one with `face` None for the time in which nobody is seen:

        - `seconds`: for which it has rows; `share_detected` of them it was detected in;
        - `quadrants`: the share of them in each of `QUADRANTS`; zero counts as positive;
        - `valence` and `arousal`: `mean`, `std`, `min`, `max` over time, and `peaks`, at most `num_peaks` local maxima and
          minima by prominence (how far the series turns back on both sides before it goes beyond them), in the order of
          time: `time`, `value`, `prominence` and `type`.
        """
        seconds = self._seconds()
        _, first = np.unique(self.frame, return_index=True)
        stretches = self._stretches()
        faces = []
        for face in [*self.faces, *self._nobody()]:
            runs = [rows for rows in stretches if self.face[rows[0]] == (-1 if face is None else face)]
            rows = np.concatenate(runs)
            weights = seconds[rows]
            shares = np.bincount(quadrant(self.valence[rows], self.arousal[rows]), weights, len(QUADRANTS))
            entry = {
                "face": face,
                "start": float(self.time[rows[0]]),
                "seconds": float(weights.sum()),
                "share_detected": float(np.average(self.face_detected[rows], weights=weights)),
                "quadrants": dict(zip(QUADRANTS, (shares / weights.sum()).tolist(), strict=True)),
            }
            for name in PAPER_SMOOTHING:
                values = getattr(self, name)[rows].astype(np.float64)
                mean = np.average(values, weights=weights)
                entry[name] = {
                    "mean": float(mean),
                    "std": float(np.sqrt(np.average((values - mean) ** 2, weights=weights))),
                    "min": float(values.min()),
                    "max": float(values.max()),
                    "peaks": self._peaks(name, runs, num_peaks),
                }
            faces.append(entry)
        return {
            "name": self.name,
            "fps": self.fps,
            "seconds": float(seconds[first].sum()),
            "frames": len(first),
            "share_audio_present": float(np.average(self.audio_present[first], weights=seconds[first])),
            "faces": faces,
        }

    def save(self, path: str | Path, **options: Any) -> None:
        """
        Write the format that the suffix of `path` says, see `FORMATS`, whole or not at all.

        Args:
            options: of the method that writes it, such as `interval`.

        Raises:
            ValueError: if no format has the suffix.
        """
        writers = {suffix.lower(): writer for suffix, writer in FORMATS.items()}
        if (suffix := Path(path).suffix.lower()) not in writers:
            raise ValueError(
                f"No format of a timeline has the suffix of {str(path)!r}: choose of {', '.join(FORMATS)}."
            )
        getattr(self, writers[suffix])(path, **options)

    def to_pandas(self) -> "pandas.DataFrame":
        """A line for each row; `face` is nullable, and `box` is `x0`, `y0`, `x1`, `y1`, NaN where there is none."""
        import pandas as pd

        columns = {}
        for name, column in self._present().items():
            if name == "face":
                columns[name] = pd.array(np.where(column < 0, 0, column), dtype="Int64")
                columns[name][column < 0] = pd.NA
            elif name == "box":
                columns.update(zip(CORNERS, column.T, strict=True))
            else:
                columns[name] = column
        return pd.DataFrame(columns)

    def to_csv(self, path: str | Path) -> None:
        """Write `path`: a line for each row, as in [`Timeline.to_pandas`] with six decimals (of a box: two), flags 0 or 1,
        and empty cells for what there is not."""
        table = self.to_pandas()
        table = table.astype({name: "float64" for name in table.columns if table[name].dtype == np.float32})
        table = table.astype({"face_detected": "int64", "audio_present": "int64"})
        table = table.round({name: 2 if name in CORNERS else 6 for name in table.select_dtypes("float64").columns})
        write_whole(Path(path), lambda part: table.to_csv(part, index=False, lineterminator="\n", encoding="utf-8"))

    @classmethod
    def read_csv(cls, path: str | Path) -> "Timeline":
        """
        What [`Timeline.to_csv`] wrote to `path`, named after the file.

        Raises:
            ValueError: with the line, if a cell is no number; see also [`Timeline.from_rows`].
        """
        with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets put a byte order mark in front
            return cls.from_rows(_csv_rows(csv.DictReader(file), path), Path(path).stem)

    def to_jsonl(self, path: str | Path) -> None:
        """Write `path`: a JSON object for each row, with the pipeline's keys, in a line of its own."""

        def write(part: Path) -> None:
            with open(part, "w", encoding="utf-8", newline="\n") as file:
                file.writelines(json.dumps(row) + "\n" for row in self)

        write_whole(Path(path), write)

    @classmethod
    def read_jsonl(cls, path: str | Path) -> "Timeline":
        """
        What [`Timeline.to_jsonl`] wrote to `path`, named after the file.

        Raises:
            ValueError: with the line, if one is no JSON; see also [`Timeline.from_rows`].
        """
        with open(path, encoding="utf-8") as file:
            return cls.from_rows(_json_rows(file, path), Path(path).stem)

    def to_parquet(self, path: str | Path) -> None:
        """Write `path`: a table with the pipeline's columns, `box` a list of four; `name` and `fps` are metadata of its
        schema."""
        import pyarrow as pa
        from pyarrow import parquet

        columns = {}
        for name, column in self._present().items():
            if name == "face":
                columns[name] = pa.array(column, mask=column < 0)
            elif name == "box":
                missing, ends = pa.array(np.isnan(column).any(axis=1)), np.arange(0, column.size + 1, 4, np.int32)
                # no lists of a fixed size: pyarrow 25 writes those with nulls so that it can not read them
                columns[name] = pa.ListArray.from_arrays(ends, pa.array(column.ravel()), mask=missing)
            else:
                columns[name] = pa.array(column, from_pandas=True)  # NaN is null
        table = pa.table(columns).replace_schema_metadata({"name": self.name, "fps": repr(self.fps)})
        write_whole(Path(path), partial(parquet.write_table, table))

    @classmethod
    def read_parquet(cls, path: str | Path) -> "Timeline":
        """
        What [`Timeline.to_parquet`] wrote to `path`.

        Raises:
            ValueError: if it is no Parquet file; see also [`Timeline.from_rows`].
        """
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata or {}
            rows = (row for batch in file.iter_batches(CHUNK) for row in batch.to_pylist())
            timeline = cls.from_rows(rows, metadata.get(b"name", b"").decode())
        return replace(timeline, fps=float(metadata.get(b"fps", timeline.fps)))

    def to_webvtt(self, path: str | Path, interval: float = 1.0) -> None:
        """
        Write `path`, subtitles for web players: a cue for every `interval` seconds, with a line for each face that is seen
        in it, or one that says `voice only`: the means of valence and arousal, and their quadrant.

        Raises:
            ImportError: without pysubs2.
            ValueError: if `interval` is not positive.
        """
        self._write_subtitles(path, "vtt", interval)

    def to_srt(self, path: str | Path, interval: float = 1.0) -> None:
        """
        Write `path`, subtitles for any player, as [`Timeline.to_webvtt`] with its `interval`.

        Raises:
            ImportError: without pysubs2.
            ValueError: if `interval` is not positive.
        """
        self._write_subtitles(path, "srt", interval)

    def to_elan(self, path: str | Path, interval: float = 1.0) -> None:
        """
        Write `path`, an annotation document of ELAN, linked to the file `name` beside it. Each face has the tiers
        `face 0 valence`, `face 0 arousal` (means over `interval` seconds) and `face 0 quadrant`; where nobody is seen they
        begin with `voice only`.

        Raises:
            ImportError: without pympi-ling.
            ValueError: if `interval` is not positive.
        """
        document = _library("pympi").Eaf(author="jca")
        document.remove_tier("default")
        document.header["TIME_UNITS"] = "milliseconds"
        if media := PurePath(self.name).name:
            document.add_linked_file(media, f"./{media}", guess_type(media)[0] or "unknown")
        for label, tiers in self._tiers(interval).items():
            for name, intervals in tiers.items():
                document.add_tier(f"{label} {name}", part=label)
                for start, end, text in intervals:
                    document.add_annotation(f"{label} {name}", _milliseconds(start), _milliseconds(end), text)
        write_whole(Path(path), document.to_file)

    def to_textgrid(self, path: str | Path, interval: float = 1.0) -> None:
        """
        Write `path`, a TextGrid of Praat with the tiers of [`Timeline.to_elan`] and its `interval`; outside of a face's
        presence they are empty.

        Raises:
            ImportError: without pympi-ling.
            ValueError: if `interval` is not positive.
        """
        grid = _library("pympi").TextGrid(xmax=float((self.time + self._seconds()).max()))
        for label, tiers in self._tiers(interval).items():
            for name, intervals in tiers.items():
                tier = grid.add_tier(f"{label} {name}")
                for start, end, text in intervals:
                    tier.add_interval(start, end, text, check=False)  # for overlaps: each with all before it
        write_whole(Path(path), grid.to_file)

    @property
    def _gap(self) -> float:
        """The longest step in seconds between two rows of a face that is not a gap."""
        return max(GAP_SECONDS, 1.5 / self.fps)

    def _present(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in DTYPES if getattr(self, name) is not None}

    def _take(self, rows: Any) -> "Timeline":
        return replace(self, **{name: column[rows] for name, column in self._present().items()})

    def _nobody(self) -> list[None]:
        """What `of_face` takes for the rows without a face, if there are any."""
        return [None] if (self.face < 0).any() else []

    def _seconds(self) -> np.ndarray:
        """For how long each row stands, `(rows,)`: until the next frame, at the end and before a gap for a usual one."""
        times, position = np.unique(self.time, return_inverse=True)
        steps = np.append(np.diff(times), np.inf)
        return np.where(steps > self._gap, 1 / self.fps, steps)[position]

    def _stretches(self) -> list[np.ndarray]:
        """Indices of the rows of one face, or of nobody, in frames that follow each other without a gap; in the order of
        faces, then time."""
        _, position = np.unique(self.frame, return_inverse=True)
        order = np.lexsort((position, self.face))
        face, position, time = self.face[order], position[order], self.time[order]
        breaks = (np.diff(face) != 0) | (np.diff(position) != 1) | (np.diff(time) > self._gap)
        return np.split(order, np.flatnonzero(breaks) + 1)

    def _cells(self, runs: Iterable[np.ndarray], interval: float) -> Iterator[tuple[float, float, np.ndarray]]:
        """Start, end and rows of what the multiples of `interval` seconds cut runs of rows into."""
        if not (np.isfinite(interval) and interval > 0):
            raise ValueError(f"interval={interval!r} must be a positive number of seconds, such as 1.0.")
        ends = self.time + self._seconds()
        for rows in runs:
            # half a millisecond, which no format can say: 0.3 / 0.1 is less than 3, and no interval is left without length
            cells = np.floor((self.time[rows] + 0.0005) / interval)
            first = np.flatnonzero(np.diff(cells, prepend=-np.inf))
            edges = [float(self.time[rows[0]]), *(cells[first[1:]] * interval).tolist(), float(ends[rows[-1]])]
            yield from zip(edges[:-1], edges[1:], np.split(rows, first[1:]), strict=True)

    def _means(self, rows: np.ndarray) -> tuple[float, float]:
        return float(self.valence[rows].mean(dtype=np.float64)), float(self.arousal[rows].mean(dtype=np.float64))

    def _tiers(self, interval: float) -> dict[str, dict[str, list[tuple[float, float, str]]]]:
        """For each face, and for nobody, start, end and text of the intervals of the tiers valence, arousal, quadrant."""
        faces = [*self.faces, *(-1 for _ in self._nobody())]
        tiers = {_label(face): {"valence": [], "arousal": [], "quadrant": []} for face in faces}
        for start, end, rows in self._cells(self._stretches(), interval):
            valence, arousal = self._means(rows)
            texts = f"{valence:+.3f}", f"{arousal:+.3f}", QUADRANTS[quadrant(valence, arousal)]
            for intervals, text in zip(tiers[_label(self.face[rows[0]])].values(), texts, strict=True):
                intervals.append((start, end, text))
        return tiers

    def _write_subtitles(self, path: str | Path, suffix: str, interval: float) -> None:
        pysubs2 = _library("pysubs2")
        document = pysubs2.SSAFile()
        order = np.lexsort((self.face, self.frame))
        runs = np.split(order, np.flatnonzero(np.diff(self.time[order]) > self._gap) + 1)
        for start, end, rows in self._cells(runs, interval):
            seen, lines = self.face[rows], []
            for face in np.unique(seen[seen >= 0] if (seen >= 0).any() else seen):
                valence, arousal = self._means(rows[seen == face])
                text = QUADRANTS[quadrant(valence, arousal)]
                lines.append(f"{_label(face)}  valence {valence:+.2f}  arousal {arousal:+.2f}  ({text})")
            times = {"start": _milliseconds(start), "end": _milliseconds(end)}
            document.append(pysubs2.SSAEvent(**times, text=r"\N".join(lines)))
        text = document.to_string(suffix)
        write_whole(Path(path), lambda part: part.write_text(text, encoding="utf-8"))

    def _peaks(self, name: str, runs: Sequence[np.ndarray], count: int) -> list[dict[str, Any]]:
        """The most prominent local extrema of a column within runs of rows, in the order of time."""
        found: list[dict[str, Any]] = []
        for rows in runs:
            for sign, kind in ((1, "maximum"), (-1, "minimum")):
                for index, prominence in maxima(sign * getattr(self, name)[rows]):
                    if prominence >= MIN_PROMINENCE:
                        row = rows[index]
                        time, value = float(self.time[row]), float(getattr(self, name)[row])
                        found.append({"time": time, "value": value, "prominence": prominence, "type": kind})
        found = sorted(found, key=lambda peak: -peak["prominence"])[:count]
        return sorted(found, key=lambda peak: peak["time"])


def quadrant(valence: np.ndarray | float, arousal: np.ndarray | float) -> np.ndarray:
    """Indices `(rows,)` into `QUADRANTS`, of valence `(rows,)` and arousal `(rows,)` or numbers; zero counts as positive."""
    right = np.greater_equal(valence, 0)
    return np.where(np.greater_equal(arousal, 0), np.where(right, 0, 1), np.where(right, 3, 2))


def maxima(values: np.ndarray) -> list[tuple[int, float]]:
    """
    Index and prominence of every local maximum of a series `(n,)`. A plateau is one, at its middle; the ends are none.

    The prominence of a maximum is its height above the higher of two valleys: the lowest value on its left and on its
    right, each up to where the series rises above it, or ends.
    """
    starts = np.flatnonzero(np.diff(values, prepend=np.nan))  # of runs of equal values; a step from NaN is no zero
    heights = values[starts].astype(np.float64)
    rises = np.diff(heights) > 0
    tops = np.flatnonzero(rises[:-1] & ~rises[1:]) + 1
    valleys = np.maximum(_valleys(heights), _valleys(heights[::-1])[::-1])
    ends = np.append(starts[1:], len(values)) - 1
    middles = (starts + ends) // 2
    return list(zip(middles[tops].tolist(), (heights - valleys)[tops].tolist(), strict=True))


def _valleys(heights: np.ndarray) -> np.ndarray:
    """For each height the lowest one before it, back to where one is above it."""
    valleys, open_ = [], []  # the second falls: heights that nothing has risen above, with their valleys
    for height in heights.tolist():
        valley = height
        while open_ and open_[-1][0] <= height:
            valley = min(valley, open_.pop()[1])
        open_.append((height, valley))
        valleys.append(valley)
    return np.array(valleys)


def _columns(rows: Sequence[Mapping[str, Any]], start: int) -> dict[str, np.ndarray]:
    """The columns of some rows, the first of which is row `start`."""
    for index, row in enumerate(rows, start):
        missing = sorted(NEEDED - row.keys() if isinstance(row, Mapping) else NEEDED)
        if missing:
            raise ValueError(
                f"Row {index} lacks {', '.join(missing)}: a timeline is made of the dicts that the pipeline gives for one "
                f"file, and this one is {repr(row)[:80]}."
            )
    lists = {name: [row.get(name) for row in rows] for name in DTYPES}
    lists["face"] = [-1 if face is None else face for face in lists["face"]]
    lists["box"] = [[None] * 4 if box is None else box for box in lists["box"]]
    columns = {}
    for name, dtype in DTYPES.items():
        shape = (len(rows), 4) if name == "box" else len(rows)
        try:
            columns[name] = np.array(lists[name], dtype).reshape(shape)  # None becomes NaN
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The {name} of one of the rows {start} to {start + len(rows) - 1} is no number, or not four: {error}."
            ) from error
    return columns


def _check(columns: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError unless the columns are those of one file."""
    time, frame, face = columns["time"], columns["frame"], columns["face"]
    for name in ("time", "valence", "arousal"):
        if len(bad := np.flatnonzero(~np.isfinite(columns[name]))):
            value = columns[name][bad[0]]
            raise ValueError(f"Row {bad[0]} (frame {frame[bad[0]]}) has the {name} {value}: it must be a number.")
    order = np.lexsort((face, frame))
    twice = (np.diff(frame[order]) == 0) & (np.diff(face[order]) == 0)
    if twice.any():
        row = order[1:][twice][0]
        raise ValueError(
            f"Frame {frame[row]} has two rows of face {face[row]}: the rows of each file are a timeline of their own."
        )
    if (back := np.diff(time[order]) < 0).any():
        row = order[1:][back][0]
        raise ValueError(
            f"Frame {frame[row]} is at {time[row]} s, before the frame that it follows: times must rise with the frames."
        )


def _frame_rate(time: np.ndarray) -> float:
    """Frames a second, in six digits. Containers round times, some to milliseconds, so that the median step alone is off:
    it is averaged with those like it."""
    steps = np.diff(np.unique(time))
    if not len(steps):
        return 30.0
    return float(f"{1 / steps[np.abs(steps / np.median(steps) - 1) < 0.5].mean():.6g}")


def _csv_rows(reader: csv.DictReader, path: str | Path) -> Iterator[dict[str, Any]]:
    for cells in reader:
        try:
            row = {name: float(cells[name]) if cells[name] else None for name in (*DTYPES, *CORNERS) if name in cells}
        except ValueError as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}. Cells hold numbers, or nothing.") from error
        box = [row.pop(corner, None) for corner in CORNERS]
        yield {**row, "box": None if None in box else box}


def _json_rows(file: Iterable[str], path: str | Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is no JSON: {error}.") from error


def _numbers(column: np.ndarray) -> list[float | None]:
    """As short as float32 has them, 0.31 and not 0.3100000023841858; None for NaN."""
    return [None if value != value else value for value in column.astype(str).astype(np.float64).tolist()]


def _label(face: int) -> str:
    return "voice only" if face < 0 else f"face {face}"


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def _library(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError("Subtitles, ELAN and Praat need more packages: pip install 'jca[formats]'") from error
