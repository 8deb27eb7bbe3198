"""A corpus to one file for each row with all that training reads: face crops, sound and labels, frame by frame.

Crops stay the JPEGs they were, sound is what the pipeline hears: mono float32 at the processor's rate, on the clock of the
video. The files are Arrow, memory-mapped, a line for each frame; `datasets.Dataset.from_file` opens them too.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
from datasets import Dataset
from tqdm.auto import tqdm
from transformers.utils import logging

from jca.corpus import CorpusError, Media, compare_lengths, frame_labels, make_dataset, make_row, write_whole
from jca.pools import process_pool
from jca.synthetic import ORIGIN_FILE, SETTINGS_FILE, read_settings
from media_jca import Waveform, decode_picture
from modeling_jca import IGNORED_LABEL
from processing_jca import JCAProcessor, Look, Seen, WindowBuffer, nearest_frames


logger = logging.get_logger(__name__)

INDEX = "prepared.json"  # written last: a folder that has it is complete
CORPUS = "corpus"  # the entry of the index that is no split: what the rows of each are of
FORMAT = 1  # counts up when the files change: those of another format are made anew
SCHEMA = pa.schema(
    {
        "time": pa.float64(),  # seconds on the clock of the media
        "crop": pa.large_binary(),  # a picture file; null where there is no face
        "audio": pa.large_binary(),  # float32 samples from this frame to the next; before the first and after the last too
        "valence": pa.float32(),
        "arousal": pa.float32(),
    }
)


# Writing -------------------------------------------------------------------------------------------------------------


def fit_labels(row: Mapping, num_frames: int) -> tuple[np.ndarray, list[str]]:
    """
    Labels `(frames, outputs)` of a row for the frames that were read, and notes. Aff-Wild2's annotations are off by a
    frame or two: row k stays with frame k; frames without a row are not annotated.

    Raises:
        ValueError: if so much is missing that the media is cut off, or another's.
    """
    labels = frame_labels(row)
    notes, problems = compare_lengths(len(labels), Media(row["fps"], num_frames, True, []))
    if problems:
        raise ValueError(f"{row['media_path']}: {problems[0]} It may also be cut off.")
    missing = max(num_frames - len(labels), 0)
    fitted = np.pad(labels[:num_frames], ((0, missing), (0, 0)), constant_values=IGNORED_LABEL).astype(np.float32)
    return fitted, notes


def source_key(row: Mapping) -> str:
    """
    What a row depends on, as 16 hex digits: the media's and each crop's size and date, and the labels; of a prepared file,
    what it was made from.

    Raises:
        ValueError, OSError: if the media is not there.
    """
    path = Path(row["media_path"])
    if path.suffix == ".arrow":
        return hashlib.sha256(json.dumps(open_prepared(path)[1]).encode()).hexdigest()[:16]
    media = path.stat()
    digest = hashlib.sha256(f"{row['video_id']} {media.st_size} {media.st_mtime_ns}".encode())
    if row["crops_dir"] is not None and Path(row["crops_dir"]).exists():
        with os.scandir(row["crops_dir"]) as entries:
            crops = sorted((e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in entries)
        digest.update(repr(crops).encode())
    digest.update(frame_labels(row).tobytes())
    return digest.hexdigest()[:16]


def encode_picture(picture: np.ndarray) -> bytes:
    """`(height, width, 3)` uint8 RGB as JPEG of the best quality that FFmpeg gives."""
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.height, encoder.width = picture.shape[:2]
    encoder.pix_fmt, encoder.time_base, encoder.thread_count = "yuvj420p", Fraction(1, 30), 1
    encoder.options = {"qmin": "2", "qmax": "2", "flags": "+bitexact"}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def _binary(data: bytes | memoryview, lengths: np.ndarray, valid: np.ndarray | None = None) -> pa.Array:
    """A binary column of values that stand one behind the other in `data`."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    bitmap = None if valid is None else pa.array(valid).buffers()[1]
    return pa.Array.from_buffers(pa.large_binary(), len(lengths), [bitmap, pa.py_buffer(offsets), pa.py_buffer(data)])


def subject_look(row: Mapping, processor: JCAProcessor) -> Look | None:
    """
    How the one face of a row's frames is found and cut; None where the corpus has crops. Of several faces that are detected
    the largest is the subject's.
    """
    if row["crops_dir"] is not None:
        return None
    look, _ = processor.look(processor.video_processor.faces)

    def largest(seconds: float, frame: Any) -> list[Seen]:
        faces: list[Any] = look(seconds, frame)
        if len(faces) > 1:
            faces = [max(faces, key=lambda face: (face.box[2] - face.box[0]) * (face.box[3] - face.box[1]))]
        return [face._replace(face=0) for face in faces] or [Seen(0, None)]

    return largest


def prepare_row(row: Mapping, path: str | Path, processor: JCAProcessor) -> None:
    """
    Write the file of one row of a corpus, in one pass over its media. A crop that is no picture is noted in it as a problem;
    its frame counts as without a face.

    Raises:
        ValueError, OSError: if the media can not be read.
    """
    rate, size = processor.feature_extractor.sampling_rate, processor.video_processor.size
    times, crops, sound, problems = [], [], Waveform(), []
    look = subject_look(row, processor)
    for kind, seconds, data in processor.events(row["media_path"], crops_dir=row["crops_dir"]):
        if kind == "audio":
            sound.write(round(seconds * rate), np.nan_to_num(data))
        elif kind == "video":
            times.append(seconds)
            (seen,) = data if look is None else look(seconds, data)
            crop = encode_picture(seen.crop) if isinstance(seen.crop, np.ndarray) else seen.crop
            if isinstance(crop, Path):
                try:
                    decode_picture(crop, size)
                    crop = crop.read_bytes()
                except (ValueError, OSError) as error:
                    problems.append(f"{seen.crop}: {error}" if isinstance(error, OSError) else str(error))
                    crop = None
            crops.append(crop)
    if not times:
        raise ValueError(f"{row['media_path']} holds no video frame that can be decoded: is the file complete?")
    labels, notes = fit_labels(row, len(times))
    times = np.array(times)
    pieces = _merge([[start, start + len(p)] for start, p in zip(sound.starts, sound.pieces, strict=True)])
    start, stop = (pieces[0][0], pieces[-1][1]) if pieces else (0, 0)
    waveform = sound.read(start, stop)[0]
    bounds = np.clip([start, *np.round(times[1:] * rate).astype(int), stop], start, stop)
    valid = np.array([crop is not None for crop in crops])
    columns = [
        pa.array(times),
        _binary(b"".join(crop or b"" for crop in crops), [len(crop or b"") for crop in crops], valid),
        _binary(waveform.tobytes(), np.diff(bounds) * waveform.itemsize),
        pa.array(labels[:, 0]),
        pa.array(labels[:, 1]),
    ]
    facts = {
        "video_id": row["video_id"],
        "subject": row["subject"],
        "recording": row["recording"],
        "fps": (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else row["fps"],
        # what was counted goes before what a header said
        "notes": [*(note for note in row["notes"] if "rows are annotated" not in note), *notes],
        "sampling_rate": rate,
        "audio_start": int(start),
        "audio_pieces": pieces,
        "made_from": _made_from(row, processor),
        "problems": problems,
    }
    table = pa.table(columns, SCHEMA.with_metadata({"jca": json.dumps(facts)}))

    def write(part: Path) -> None:
        with pa.OSFile(str(part), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)

    write_whole(Path(path), write)


def _merge(pieces: list[list[int]]) -> list[list[int]]:
    """Stretches `[start, stop]` that touch as one."""
    merged = pieces[:1]
    for start, stop in pieces[1:]:
        if start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], stop)
        else:
            merged.append([start, stop])
    return merged


def _cut(processor: JCAProcessor) -> list:
    return [processor.video_processor.faces, processor.video_processor.size]


def _made_from(row: Mapping, processor: JCAProcessor) -> list:
    frames = None if row["crops_dir"] else _cut(processor)
    names = [row["subject"], row["recording"]]
    return [FORMAT, source_key(row), processor.feature_extractor.sampling_rate, frames, names]


def _prepare(job: tuple) -> tuple[list[str], dict | None]:
    """Problems of a row and its entry in the index. A file that is there, whole, of the same and without problems stays."""
    row, path, processor, before = job
    try:
        current = _is_current(path, row, processor)
        if not current or (before is not None and file_hash(path) != before["sha256"]):
            prepare_row(row, path, processor)
        table, facts = open_prepared(path)
        labels, times = _labels(table), table["time"].to_numpy()
        return facts["problems"], {
            "sha256": file_hash(path),
            "frames": len(times),
            "labelled": int((labels != IGNORED_LABEL).all(axis=1).sum()),
            "seconds": round(float(times[-1] - times[0]) + 1 / facts["fps"], 3),
            "missing_crops": table["crop"].null_count,
        }
    except (ValueError, OSError) as error:
        text = str(error)
        return [text if row["media_path"] in text else f"{row['media_path']}: {text}"], None


def _is_current(path: Path, row: Mapping, processor: JCAProcessor) -> bool:
    try:
        facts = open_prepared(path)[1]
    except (OSError, ValueError):
        return False
    return facts["made_from"] == _made_from(row, processor) and not facts["problems"]


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, as hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def prepare(
    splits: Mapping[str, Dataset],
    folder: str | Path,
    processor: JCAProcessor,
    num_proc: int = 1,
    on_error: str = "raise",
    corpus: Mapping[str, dict | None] | None = None,
) -> dict[str, dict]:
    """
    Write a corpus as one file for each row, `folder/<split>/<video_id>.arrow`, and an index with their hashes.

    A run that was stopped goes on where it was: files that are there and made from the same media, crops, labels and
    settings are kept.

    Args:
        splits: rows of each split, as the loaders give them.
        folder: to make, or to complete.
        processor: of the model to be trained: its sampling rate, and for frames without crops its way to cut and its size.
        num_proc: processes that share the videos.
        on_error: `"raise"`: a crop that is no picture or media that can not be read is an error at the end; `"skip"`: such
            a frame counts as without a face, such a video is left out.
        corpus: what the rows of each split are of, by [`corpus_record`]: kept in the index, for `metrics.json` and cards.

    Returns:
        What the index holds of each split: for each file hash, frames, labelled frames, seconds and missing crops.

    Raises:
        CorpusError: with all problems.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    before = _read_index(folder) if (folder / INDEX).exists() else {}
    records = {**before.pop(CORPUS, {}), **dict.fromkeys(splits), **(corpus or {})}
    if before:  # from here on until its end this run's splits are not complete
        kept = {split: files for split, files in before.items() if split not in splits}
        write_whole(folder / INDEX, partial(_dump, {**kept, CORPUS: records}))
    jobs = {
        (split, row["video_id"]): (
            row,
            folder / split / f"{row['video_id']}.arrow",
            processor,
            before.get(split, {}).get(f"{split}/{row['video_id']}.arrow"),
        )
        for split, dataset in splits.items()
        for row in dataset
    }
    index, problems = {split: {} for split in splits}, []
    longest_first = sorted(jobs, key=lambda key: -jobs[key][0]["num_frames"])
    with process_pool(num_proc) as pool:
        futures = {pool.submit(_prepare, jobs[key]): key for key in longest_first}
        for future in tqdm(as_completed(futures), total=len(futures), desc=f"{folder.name}", unit="video"):
            found, entry = future.result()
            problems += found
            if entry is not None:
                split, video_id = futures[future]
                index[split][f"{split}/{video_id}.arrow"] = entry
    if problems and on_error == "raise":
        raise CorpusError(folder, sorted(problems))
    if problems:
        logger.warning(f"{CorpusError(folder, sorted(problems))}\n  What could be used of it was.")
    index = {split: dict(sorted(entries.items())) for split, entries in index.items()}
    write_whole(folder / INDEX, partial(_dump, {**before, **index, CORPUS: records}))
    return index


def _dump(content: dict, path: Path) -> None:
    path.write_text(json.dumps(content, indent=1))


def _labels(table: pa.Table) -> np.ndarray:
    return np.stack([table["valence"].to_numpy(), table["arousal"].to_numpy()], axis=1)


def check_prepared(folder: str | Path, num_proc: int = 1) -> list[str]:
    """
    What is wrong with a prepared folder: files that are missing, that differ from their hash, or that the index does not
    name.

    Raises:
        CorpusError: if the folder has no index.
    """
    folder = Path(folder)
    splits = {name: files for name, files in _read_index(folder).items() if name != CORPUS}
    known = {name: entry for files in splits.values() for name, entry in files.items()}
    present = {str(path.relative_to(folder)) for path in folder.glob("*/*.arrow")}
    problems = [f"{folder / name}: is missing" for name in known if name not in present]
    problems += [f"{folder / name}: is not in {INDEX}" for name in sorted(present - set(known))]
    names = sorted(present & set(known))
    with process_pool(num_proc) as pool:
        hashes = pool.map(file_hash, [folder / name for name in names])
        for name, found in zip(names, tqdm(hashes, total=len(names), desc="hashes", unit="video"), strict=True):
            if found != known[name]["sha256"]:
                problems.append(f"{folder / name}: differs from its hash in {INDEX}: prepare it again")
    return problems


# Reading -------------------------------------------------------------------------------------------------------------


def is_prepared(folder: str | Path) -> bool:
    """Whether `folder` is one that [`prepare`] makes, complete or not."""
    return (Path(folder) / INDEX).exists() or any(Path(folder).glob("*/*.arrow"))


def corpus_record(source: str | Path, split: str) -> dict | None:
    """
    Of which corpus the rows are that `jca.corpus.load_corpus` gives: `kind` is `"synthetic"`, `"affwild2"` or `"csv"`. A
    synthetic one has its `settings`, and if it was fetched from the Hub data set and commit, `hub` and `revision`; a CSV
    file its `name`. Of a prepared folder, what it was made from, or None if its index does not say.

    Raises:
        CorpusError: if a prepared folder has no index.
        ValueError: if the settings of a synthetic corpus are damaged.
    """
    source = Path(source)
    if source.suffix.lower() == ".csv":
        return {"kind": "csv", "name": source.stem}
    if is_prepared(source):
        return _read_index(source).get(CORPUS, {}).get(split)
    if not (source / SETTINGS_FILE).exists():
        return {"kind": "affwild2"}
    origin = source / ORIGIN_FILE
    return {
        "kind": "synthetic",
        "settings": read_settings(source / SETTINGS_FILE),
        **(json.loads(origin.read_text()) if origin.exists() else {}),
    }


def _read_index(folder: Path) -> dict[str, dict]:
    if not (folder / INDEX).exists():
        how = f"`scripts/prepare_affwild2.py DATA {folder}` makes it, or goes on with it"
        raise CorpusError(folder, [f"there is no {INDEX}: let scripts/prepare_affwild2.py end ({how})"])
    try:
        return json.loads((folder / INDEX).read_text())
    except ValueError as error:
        raise CorpusError(folder, [f"{INDEX} is damaged ({error}): remove it and prepare again"]) from error


def open_prepared(path: str | Path) -> tuple[pa.Table, dict]:
    """
    A file of [`prepare`], memory-mapped: its table, a line for each frame, and what is known of the whole.

    Raises:
        ValueError: if it is no such file, or not complete.
    """
    try:
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        facts = json.loads(table.schema.metadata[b"jca"])
        if facts["made_from"][0] != FORMAT:
            raise KeyError(f"its format is {facts['made_from'][0]}, not {FORMAT}")
    except (pa.ArrowInvalid, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no file of a prepared corpus ({error}): prepare it again.") from error
    return table, facts


def load_prepared(folder: str | Path, split: str) -> Dataset:
    """
    The rows of a split of a folder that [`prepare`] made, with the columns of `jca.corpus.ROW`; `media_path` is the prepared
    file.

    Raises:
        CorpusError: if the folder is not complete, lacks the split or a file.
    """
    folder, index = Path(folder), _read_index(Path(folder))
    if split not in index:
        there = ", ".join(name for name in index if name != CORPUS) or "none that is complete"
        raise CorpusError(folder, [f"has no split {split!r}; it has {there}: let scripts/prepare_affwild2.py end"])
    rows, problems = [], []
    for name in index[split]:
        try:
            table, facts = open_prepared(folder / name)
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        rows.append(
            make_row(
                facts["video_id"],
                folder / name,
                _labels(table),
                facts["fps"],
                subject=facts["subject"],
                recording=facts["recording"],
                notes=facts["notes"],
            )
        )
    return make_dataset(rows, problems, folder, "raise")


class PreparedVideo:
    """
    Clips of a file of [`prepare`] in any order, and all of it as a stream. What is not asked for is not read.

    Args:
        path: the file.
        processor: cuts the clips; of the rate of sound, the cut and the size that the file was made for.

    Raises:
        ValueError: if it is no such file, or was made for another rate, cut or size.
    """

    def __init__(self, path: str | Path, processor: JCAProcessor):
        table, facts = open_prepared(path)
        rate = processor.feature_extractor.sampling_rate
        if facts["sampling_rate"] != rate:
            raise ValueError(
                f"{path} was prepared with sound at {facts['sampling_rate']} Hz, and the processor reads {rate} Hz: prepare "
                f"the corpus again with --sampling_rate {rate}."
            )
        cut, asked = facts["made_from"][3], _cut(processor)
        if cut is not None and cut != asked:
            raise ValueError(
                f"{path} was prepared with frames cut as faces={cut[0]!r}, size={cut[1]}, and the processor has "
                f"faces={asked[0]!r}, size={asked[1]}: prepare the corpus again with --faces {asked[0]} --size {asked[1]}."
            )
        self.path, self.processor = path, processor
        self.clock = table["time"].to_numpy()
        self.times = self.clock - self.clock[0]
        self.crops = table["crop"].chunk(0)
        self.has_crop = self.crops.is_valid().to_numpy(zero_copy_only=False)
        self.sound = Waveform()
        samples = np.frombuffer(table["audio"].chunk(0).buffers()[2], np.float32)
        for start, stop in facts["audio_pieces"]:
            self.sound.write(start, samples[start - facts["audio_start"] : stop - facts["audio_start"]])
        self.num_grid_frames = round(self.times[-1] * processor.frame_rate) + 1
        self.nearest = nearest_frames(self.times, np.arange(self.num_grid_frames), processor.frame_rate)

    def events(self) -> Iterator[tuple[str, float, Any]]:
        """What `JCAProcessor.windows_of` reads: the same as of the media from which the file was made."""
        rate = self.processor.feature_extractor.sampling_rate
        yield "has_audio", 0.0, bool(self.sound.pieces)
        waiting = [
            (start + first, piece[first : first + rate])
            for start, piece in zip(self.sound.starts, self.sound.pieces, strict=True)
            for first in range(0, len(piece), rate)
        ]
        for frame, seconds in enumerate(self.clock.tolist()):
            while waiting and waiting[0][0] <= seconds * rate:  # in the order of a file
                start, piece = waiting.pop(0)
                yield "audio", start / rate, piece
            yield "video", seconds, [Seen(0, self.crop(frame), None, bool(self.has_crop[frame]))]
        for start, piece in waiting:
            yield "audio", start / rate, piece

    def crop(self, frame: int) -> bytes | None:
        """The picture file of a frame of the media, None where there is no face."""
        return self.crops[int(frame)].as_py()

    def shows(self, modality: str, ends: np.ndarray) -> np.ndarray:
        """Whether the clips that end with grid frames `ends` `(clips,)` hold a face (`"video"`) or sound (`"audio"`):
        `(clips,)` bool."""
        low = ends - self.processor.span + 1
        if modality == "video":
            count = np.concatenate([[0], np.cumsum(self.has_crop[self.nearest])])
            return count[ends + 1] > count[np.maximum(low, 0)]
        rate = self.processor.feature_extractor.sampling_rate
        start = np.round((self.clock[0] + low / self.processor.frame_rate) * rate)
        spans = [
            (position, position + len(piece))
            for position, piece in zip(self.sound.starts, self.sound.pieces, strict=True)
        ]
        heard = [(start < stop) & (start + self.processor.clip_samples > first) for first, stop in spans]
        return np.any(heard, axis=0) if heard else np.zeros(len(ends), bool)

    def buffer(self, first: int, last: int, hop: int) -> WindowBuffer:
        """A buffer that holds the clips that end with grid frames `first` to `last`, for its `clip_crops` and
        `clip_waveform`; of frames that show no face, those of clips with this hop are taken into account."""
        buffer = WindowBuffer(self.processor, hop)
        buffer.origin, buffer.sound = self.clock[0], self.sound
        buffer.num_frames = self.num_grid_frames
        low = max(first - self.processor.span + 1, 0)
        shown = self.nearest[low : last + 1]
        buffer.crops[0] = {low + g: self.crop(frame) for g, frame in enumerate(shown) if self.has_crop[frame]}
        return buffer

    def window(self, ends: Sequence[int], hop: int, modalities: Sequence[str] = ("video", "audio")) -> dict[str, Any]:
        """A window of clips with these end frames, as of `JCAProcessor.windows` with this hop."""
        return self.buffer(ends[0], ends[-1], hop).window(0, [int(end) for end in ends], modalities)


def video_windows(row: Mapping, processor: JCAProcessor, hop: int, tracks: bool = False) -> Iterator[dict[str, Any]]:
    """The windows or tracks of a row of any corpus, see `JCAProcessor.windows`: of its media and crops, or of its prepared
    file."""
    if row["media_path"].endswith(".arrow"):
        video = PreparedVideo(row["media_path"], processor)
        return processor.windows_of(video.events(), hop, row["media_path"], tracks=tracks)
    events = processor.events(row["media_path"], crops_dir=row["crops_dir"])
    return processor.windows_of(events, hop, row["media_path"], subject_look(row, processor), tracks=tracks)
