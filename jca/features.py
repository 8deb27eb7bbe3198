"""Encode once, keep, draw windows: clips and features of a corpus as memory-mapped Arrow files."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from datasets import Array2D, Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from tqdm.auto import tqdm

from modeling_jca import IGNORED_LABEL, JCAModel
from processing_jca import JCAProcessor


# Labels --------------------------------------------------------------------------------------------------------------


def fit_labels(labels: np.ndarray, num_frames: int) -> np.ndarray:
    """Labels `(frames, outputs)` for the frames that were read: Aff-Wild2's annotations are off by a frame or two. Row k
    stays with frame k; frames without a row are not annotated."""
    missing = max(num_frames - len(labels), 0)
    return np.pad(labels[:num_frames], ((0, missing), (0, 0)), constant_values=IGNORED_LABEL).astype(np.float32)


def labels_at(end_frames: np.ndarray, times: np.ndarray, labels: np.ndarray, frame_rate: float) -> np.ndarray:
    """
    The labels of clips, those of the frame that is nearest to the end of each: `(clips, outputs)`.

    Args:
        end_frames (`np.ndarray` of shape `(clips,)`): on the grid of `frame_rate` frames a second.
        times (`np.ndarray` of shape `(frames,)`): of the file's frames, in seconds.
        labels (`np.ndarray` of shape `(frames, outputs)`): of the file's frames. Beyond the last frame there is no label.
    """
    seconds = np.asarray(end_frames) / frame_rate
    nearest = np.searchsorted((times[1:] + times[:-1]) / 2, seconds)
    out = labels[nearest].astype(np.float32)
    out[seconds > times[-1] + 0.5 / frame_rate] = IGNORED_LABEL
    return out


# Caches --------------------------------------------------------------------------------------------------------------


def fingerprint(dataset: Dataset, processor: JCAProcessor, hop: int, model: JCAModel | None = None) -> str:
    """What a cache depends on, as 16 hex digits: media, crops, annotations, processor, hop and the encoders' weights."""
    digest = hashlib.sha256()
    parts = (processor, processor.video_processor, processor.feature_extractor)
    # a processor that was loaded differs from the one that was saved by where its code is found
    code = {"auto_map", "processor_class", "feature_extractor", "video_processor"}
    settings = [{name: value for name, value in part.to_dict().items() if name not in code} for part in parts]
    digest.update(json.dumps([hop, settings], sort_keys=True).encode())
    for row in dataset:
        media = Path(row["media_path"]).stat()
        digest.update(f"{row['video_id']} {media.st_size} {media.st_mtime_ns}".encode())
        if row["crops_dir"] is not None and Path(row["crops_dir"]).exists():
            digest.update(str(Path(row["crops_dir"]).stat().st_mtime_ns).encode())  # changes as crops come and go
        digest.update(np.ascontiguousarray(row["labels"]).tobytes())
    for name, tensor in model.state_dict().items() if model is not None else ():
        if "_encoder." in name:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _kept(path: Path, features: Features, rows: Iterable[dict]) -> Dataset:
    """The memory-mapped data set of `path`; `rows` are made and written where it is not there yet."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")  # a run that is stopped leaves no file that looks whole
        with ArrowWriter(path=str(part), features=features, writer_batch_size=16) as writer:
            for row in rows:
                writer.write(row)
            writer.finalize()
        part.rename(path)
    return Dataset.from_file(str(path))


def extract_clips(dataset: Dataset, processor: JCAProcessor, hop: int, folder: str | Path) -> Dataset:
    """
    Every labelled clip of a corpus, decoded once and kept: what the encoders are trained on.

    Args:
        dataset: rows of `load_affwild2`.
        hop: frames between the ends of the clips.
        folder: where the Arrow file is kept, under a name that changes with whatever it depends on.

    Returns:
        `datasets.Dataset`, a row for each clip: `crops` (bytes of `(clip_length, size, size, 3)` uint8), `input_features` or
        `input_values`, as the processor names it (bytes of float16), `video_mask`, `audio_mask`, `labels` `(outputs,)`.
    """

    def rows() -> Iterator[dict]:
        for row in tqdm(dataset, desc="clips", unit="video"):
            windows = list(processor.windows(row["media_path"], crops_dir=row["crops_dir"], hop=hop))
            times = np.array([frame.time for window in windows for frame in window["frames"]])
            labels = fit_labels(row["labels"], len(times))
            for window in windows:
                sound = processor.audio_inputs(window["waveforms"]).half().numpy()
                targets = labels_at(window["end_frames"], times, labels, processor.frame_rate)
                for clip in np.flatnonzero((targets != IGNORED_LABEL).all(axis=1)):
                    yield {
                        "crops": window["crops"][clip].tobytes(),
                        processor.audio_input_name: sound[clip].tobytes(),
                        "video_mask": window["video_mask"][clip],
                        "audio_mask": window["audio_mask"][clip],
                        "labels": targets[clip],
                    }

    features = Features(
        {
            "crops": Value("binary"),
            processor.audio_input_name: Value("binary"),
            "video_mask": Value("bool"),
            "audio_mask": Value("bool"),
            "labels": List(Value("float32")),
        }
    )
    return _kept(Path(folder) / f"clips-{fingerprint(dataset, processor, hop)}.arrow", features, rows())


@torch.no_grad()
def extract_features(
    dataset: Dataset, model: JCAModel, processor: JCAProcessor, hop: int, folder: str | Path
) -> Dataset:
    """
    What the model's encoders make of every clip of a corpus, computed once and kept.

    Args:
        dataset: rows of `load_affwild2`.
        model: of which the encoders are used, on the device where it is.
        hop: frames between the ends of the clips.
        folder: where the Arrow file is kept, under a name that changes with whatever it depends on.

    Returns:
        `datasets.Dataset`, a row for each video: `video_id`, `end_frames` `(clips,)` in rising order, for each modality
        of the model `{modality}_features` `(clips, size)` float16 and `{modality}_mask` `(clips,)`, and for the frames of
        the file `times` `(frames,)` in seconds and `labels` `(frames, outputs)`.
    """

    def rows() -> Iterator[dict]:
        model.eval()
        for row in tqdm(dataset, desc="features", unit="video"):
            parts, times = [], []
            for window in processor.windows(row["media_path"], crops_dir=row["crops_dir"], hop=hop):
                inputs = processor.inputs(window)
                part = {"end_frames": window["end_frames"]}
                for modality in model.config.modalities:
                    name = "pixel_values" if modality == "video" else processor.audio_input_name
                    clips, mask = (
                        inputs[name].to(model.device, model.dtype),
                        inputs[f"{modality}_mask"].to(model.device),
                    )
                    encoded = getattr(model, f"get_{modality}_features")(clips, mask)
                    part[f"{modality}_features"] = encoded[0].half().cpu().numpy()
                    part[f"{modality}_mask"] = window[f"{modality}_mask"]
                parts.append(part)
                times += [frame.time for frame in window["frames"]]
            whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            order = np.argsort(whole["end_frames"])
            yield {
                "video_id": row["video_id"],
                **{name: values[order] for name, values in whole.items()},
                "times": times,
                "labels": fit_labels(row["labels"], len(times)),
            }

    features = Features(
        video_id=Value("string"),
        end_frames=List(Value("int64")),
        times=List(Value("float64")),
        labels=Array2D((None, 2), "float32"),
    )
    for modality in model.config.modalities:
        features[f"{modality}_features"] = Array2D((None, getattr(model, f"{modality}_size")), "float16")
        features[f"{modality}_mask"] = List(Value("bool"))
    return _kept(Path(folder) / f"features-{fingerprint(dataset, processor, hop, model)}.arrow", features, rows())


# What training reads -------------------------------------------------------------------------------------------------


class ClipDataset(torch.utils.data.Dataset):
    """Rows of [`extract_clips`] as the model's inputs for windows of one clip; `modality` alone is read."""

    def __init__(self, clips: Dataset, processor: JCAProcessor, modality: str):
        mask = f"{modality}_mask"
        # an encoder learns nothing from a clip that does not show it its modality
        self.rows = np.flatnonzero(clips.data.column(mask).to_numpy())
        columns = ["crops" if modality == "video" else processor.audio_input_name, mask, "labels"]
        self.clips = clips.select_columns(columns)
        self.processor, self.modality = processor, modality
        silence = np.zeros((1, processor.clip_samples), np.float32)
        self.audio_shape = processor.audio_inputs(silence).shape  # of every clip: all have one length

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row, processor = self.clips[int(self.rows[index])], self.processor
        if self.modality == "video":
            size = processor.video_processor.size
            crops = np.frombuffer(bytearray(row["crops"]), np.uint8).reshape(1, processor.clip_length, size, size, 3)
            inputs = {"pixel_values": processor.video_processor(crops)["pixel_values"]}
        else:
            name = processor.audio_input_name
            sound = np.frombuffer(row[name], np.float16).astype(np.float32)
            inputs = {name: torch.from_numpy(sound.reshape(self.audio_shape))}
        return {**inputs, "labels": torch.tensor([row["labels"]])}


def _views(features: Dataset, column: str) -> list[np.ndarray]:
    """The arrays of a column, one for each row, as views of the memory-mapped file."""
    kind, views = features.features[column], []
    for chunk in features.data.column(column).chunks:
        lists = getattr(chunk, "storage", chunk)  # an Array2D is stored as a list of lists
        values = lists.flatten()
        if isinstance(kind, Array2D):
            values = values.flatten()
        array = values.to_numpy(zero_copy_only=False)  # booleans are bits in Arrow: they are copied
        if isinstance(kind, Array2D):
            array = array.reshape(-1, kind.shape[1])
        views += np.split(array, np.cumsum(lists.value_lengths().to_numpy())[:-1])
    return views


class WindowDataset(torch.utils.data.Dataset):
    """
    Windows of the rows of [`extract_features`] as the model's inputs: `video_features`, `audio_features` `(clips, size)`,
    `video_mask`, `audio_mask` `(clips,)` and `labels` `(clips, outputs)`, -5 where there is none.

    Args:
        hop: of the features.
        every_phase: all windows that lie in the video, shifted by `hop`, as well as those of the plan (for training);
            otherwise those of the plan alone, in which each clip stands once (for evaluation).
    """

    def __init__(self, features: Dataset, processor: JCAProcessor, hop: int, every_phase: bool = False):
        self.inputs = {
            name: _views(features, name) for name in features.column_names if name.endswith(("_features", "_mask"))
        }
        self.end_frames, self.times, self.labels = (_views(features, n) for n in ("end_frames", "times", "labels"))
        self.frame_rate = processor.frame_rate
        self.windows = []  # (row, end frames)
        for row, times in enumerate(self.times):
            num_frames = round(times[-1] * processor.frame_rate) + 1
            plan = {tuple(ends) for ends in processor.plan(num_frames, hop)}
            if every_phase:
                length = processor.num_clips * processor.span
                plan |= {
                    tuple(range(end, end + length, processor.span))
                    for end in range(hop - 1, num_frames - length + processor.span, hop)
                }
            self.windows += [(row, np.array(ends)) for ends in sorted(plan)]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row, ends = self.windows[index]
        known = self.end_frames[row]
        position = np.minimum(np.searchsorted(known, ends), len(known) - 1)
        exists = known[position] == ends
        item = {"labels": labels_at(ends, self.times[row], self.labels[row], self.frame_rate)}
        for name, rows in self.inputs.items():
            values = rows[row][position]
            item[name] = values & exists if name.endswith("_mask") else values.astype(np.float32)
        return {name: torch.from_numpy(values) for name, values in item.items()}
