"""What training reads: clips of a prepared corpus for the encoders, windows of kept features for the fusion."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from datasets import Array2D, Dataset, concatenate_datasets
from torch.utils.data import default_collate

from jca.corpus import frame_labels
from jca.preparation import PreparedVideo
from modeling_jca import IGNORED_LABEL
from processing_jca import JCAProcessor, nearest_frames


def labels_at(end_frames: np.ndarray, times: np.ndarray, labels: np.ndarray, frame_rate: float) -> np.ndarray:
    """
    The labels of clips, those of the frame that the grid shows at the end of each: `(clips, outputs)`.

    Args:
        end_frames (`np.ndarray` of shape `(clips,)`): on the grid of `frame_rate` frames a second.
        times (`np.ndarray` of shape `(frames,)`): of the file's frames, in seconds.
        labels (`np.ndarray` of shape `(frames, outputs)`): of the file's frames. Beyond the last frame there is no label.
    """
    ends = np.asarray(end_frames)
    out = labels[nearest_frames(times, ends, frame_rate)].astype(np.float32)
    out[ends / frame_rate > times[-1] + 0.5 / frame_rate] = IGNORED_LABEL
    return out


class ClipDataset(torch.utils.data.Dataset):
    """
    Every labelled clip of a prepared corpus that shows one modality, as the model's inputs for windows of one clip:
    `pixel_values` or what the audio encoder reads, and `labels` `(1, outputs)`. Read and cut when asked for.

    Args:
        rows: of [`load_prepared`].
        modality: `"video"` or `"audio"`; the other is not read.
        hop: frames between the ends of the clips.

    Raises:
        ValueError: if no labelled clip shows the modality.
    """

    def __init__(self, rows: Dataset, processor: JCAProcessor, modality: str, hop: int):
        self.paths, self.processor, self.modality, self.hop = rows["media_path"][:], processor, modality, hop
        videos, ends, labels = [], [], []
        for index, row in enumerate(rows):
            video = PreparedVideo(row["media_path"], processor)
            clips = np.arange(hop - 1, video.num_grid_frames, hop)
            targets = labels_at(clips, video.times, frame_labels(row), processor.frame_rate)
            # an encoder learns nothing from a clip that does not show it its modality
            keep = (targets != IGNORED_LABEL).all(axis=1) & video.shows(modality, clips)
            videos.append(np.full(keep.sum(), index, np.int32))
            ends.append(clips[keep].astype(np.int32))
            labels.append(targets[keep])
        if not sum(map(len, ends)):
            raise ValueError(
                f"No labelled clip of these {len(rows)} videos holds {modality}: there is nothing to learn from."
            )
        self.rows, self.ends, self.labels = (np.concatenate(parts) for parts in (videos, ends, labels))
        self._open: Any = None  # of this process: files are opened where they are read

    def __getstate__(self) -> dict:
        return {**vars(self), "_open": None}

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if self._open is None:
            self._open = lru_cache(maxsize=None)(lambda path: PreparedVideo(path, self.processor))
        video, end = self._open(self.paths[self.rows[index]]), int(self.ends[index])
        labels = torch.from_numpy(self.labels[index][None])
        if self.modality == "video":
            crops = video.buffer(end, end, self.hop).clip_crops(0, end)[0]
            return {**self.processor.video_processor(crops[None]), "labels": labels}
        waveform = video.buffer(end, end, self.hop).clip_waveform(end)[0]
        return {self.processor.audio_input_name: self.processor.audio_inputs(waveform[None]), "labels": labels}


def _views(features: Dataset, column: str) -> list[np.ndarray]:
    """The arrays of a column, one for each row, as views of the memory-mapped files."""
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


def window_firsts(num_frames: int, processor: JCAProcessor, hop: int, every_phase: bool) -> np.ndarray:
    """
    End frames of the first clips of a video's windows, `(windows,)`: those of the plan, in which each clip stands once (for
    evaluation), and with `every_phase` also all that lie in the video, shifted by `hop` (for training).
    """
    first = np.array([ends[0] for ends in processor.plan(num_frames, hop)])
    if every_phase:
        length = (processor.num_clips - 1) * processor.span
        first = np.union1d(first, np.arange(hop - 1, num_frames - length, hop))
    return np.sort(first).astype(np.int32)


class WindowBatch(Sequence):
    """Items of a [`WindowDataset`] that lie in one tensor `(windows, ...)` of each name already, which a `DataLoader` that
    is told so takes without copying them once more."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors["labels"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:  # type: ignore[override]  # nobody slices it
        return {name: x[index] for name, x in self.tensors.items()}

    @staticmethod
    def collate(items: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """`collate_fn` of a `DataLoader` over any data set of windows or clips."""
        return items.tensors if isinstance(items, WindowBatch) else default_collate(items)


class PlacedWindows(torch.utils.data.Dataset):
    """Where the windows of some videos stand: `rows` `(windows,)` and `ends` `(windows, clips)`, end frames on the grid."""

    def place(self, num_frames: list[int], processor: JCAProcessor, hop: int, every_phase: bool) -> None:
        """Of videos with `num_frames` grid frames each, see [`window_firsts`]."""
        firsts = [window_firsts(count, processor, hop, every_phase) for count in num_frames]
        self.rows = np.repeat(np.arange(len(firsts), dtype=np.int32), [len(first) for first in firsts])
        self.firsts = np.concatenate(firsts)
        self.offsets = np.arange(processor.num_clips) * processor.span
        self.num_clips = sum(count // hop for count in num_frames)

    @property
    def ends(self) -> np.ndarray:
        """End frames of the clips of each window, `(windows, clips)`."""
        return self.firsts[:, None] + self.offsets

    def __len__(self) -> int:
        return len(self.rows)


class WindowDataset(PlacedWindows):
    """
    Windows of the rows of [`extract_features`] as the model's inputs: `video_features`, `audio_features` `(clips, size)`
    float16, `video_mask`, `audio_mask` `(clips,)` and `labels` `(clips, outputs)`, -5 where a clip ends with a frame that
    is not annotated: such a window stays, and the loss leaves the clip out.

    `times` holds the seconds of each row's frames.

    Args:
        hop: of the features, and the shift between two windows: with 1 all phases of the paper's windows are there.
        every_phase: see [`window_firsts`].
    """

    def __init__(self, features: Dataset, processor: JCAProcessor, hop: int, every_phase: bool = False):
        if features._indices is not None:  # `_views` would not see a selection
            rows, features = features._indices.column(0).to_pylist(), Dataset(features.data, info=features.info)
            features = concatenate_datasets([features.select([row]) for row in rows])
        self.inputs = {
            name: _views(features, name) for name in features.column_names if name.endswith(("_features", "_mask"))
        }
        self.end_frames, self.times = _views(features, "end_frames"), _views(features, "times")
        self.labels = [
            labels_at(ends, times, labels, processor.frame_rate)
            for ends, times, labels in zip(self.end_frames, self.times, _views(features, "labels"), strict=True)
        ]
        self.step = processor.span // hop
        num_frames = [round(times[-1] * processor.frame_rate) + 1 for times in self.times]
        self.place(num_frames, processor, hop, every_phase)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> "WindowBatch":
        """The items of a batch, gathered at once: what `DataLoader` asks for where it can."""
        count, clips = len(indices), len(self.offsets)
        batch = {"labels": np.full((count, clips, self.labels[0].shape[1]), IGNORED_LABEL, np.float32)}
        for name, rows in self.inputs.items():
            batch[name] = np.zeros((count, clips, *rows[0].shape[1:]), rows[0].dtype)
        arrays = [(batch["labels"], self.labels), *((batch[name], rows) for name, rows in self.inputs.items())]
        for place, index in enumerate(indices):
            row, first = self.rows[index], self.firsts[index]
            known = self.end_frames[row]
            start = int(np.searchsorted(known, first))
            stop = start + (clips - 1) * self.step + 1
            if stop <= len(known) and known[start] == first and known[stop - 1] == first + self.offsets[-1]:
                for values, rows in arrays:  # all are there, evenly: a slice is copied at once
                    values[place] = rows[row][start : stop : self.step]
                continue
            ends = first + self.offsets  # a window beyond the end of a video
            position = np.minimum(np.searchsorted(known, ends), len(known) - 1)
            exists = known[position] == ends
            for values, rows in arrays:
                values[place, exists] = rows[row][position[exists]]
        return WindowBatch({name: torch.from_numpy(values) for name, values in batch.items()})


class MediaWindowDataset(PlacedWindows):
    """
    Windows of a prepared corpus as the model's inputs from pixels and sound, for end-to-end training: `pixel_values`, what
    the audio encoder reads, masks and `labels` as of [`WindowDataset`]. Read and cut when asked for.

    Args:
        hop, every_phase: see [`WindowDataset`].
        modalities: what is read. With one alone, clips that do not show it have no label: nothing is to be learnt from them.
    """

    def __init__(
        self,
        rows: Dataset,
        processor: JCAProcessor,
        hop: int,
        every_phase: bool = False,
        modalities: Sequence[str] = ("video", "audio"),
    ):
        self.paths, self.processor = rows["media_path"][:], processor
        self.hop, self.modalities = hop, modalities
        videos = [PreparedVideo(path, processor) for path in self.paths]
        self.times, self.frame_labels = [video.times for video in videos], [frame_labels(row) for row in rows]
        self.place([video.num_grid_frames for video in videos], processor, hop, every_phase)
        self._open: Any = None

    def __getstate__(self) -> dict:
        return {**vars(self), "_open": None}

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if self._open is None:
            self._open = lru_cache(maxsize=None)(lambda path: PreparedVideo(path, self.processor))
        row, ends = self.rows[index], self.firsts[index] + self.offsets
        window = self._open(self.paths[row]).window(ends, self.hop, self.modalities)
        labels = labels_at(ends, self.times[row], self.frame_labels[row], self.processor.frame_rate)
        if len(self.modalities) == 1:
            labels[~window[f"{self.modalities[0]}_mask"]] = IGNORED_LABEL
        inputs = {name: values[0] for name, values in self.processor.inputs(window).items()}
        return {**inputs, "labels": torch.from_numpy(labels)}


class EpochSampler(torch.utils.data.Sampler):
    """
    Items drawn anew for each epoch, the same on every process and in every run with the same seed.

    Args:
        rows (`np.ndarray` of shape `(items,)`): the video of each item, rising.
        num_samples: items of an epoch, drawn without replacement; left out, all.
        balanced: every video is as likely as any other, and then every item in it; otherwise every item is.
        seed: of the draws; `set_epoch` gives the next one.
    """

    def __init__(self, rows: np.ndarray, num_samples: int | None = None, balanced: bool = False, seed: int = 0):
        self.num_samples = num_samples or len(rows)
        self.first_of_row = np.searchsorted(rows, np.arange(rows[-1] + 2))
        self.balanced, self.seed, self.epoch = balanced, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Draw anew for this epoch, from 0 on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        total = self.first_of_row[-1]
        if self.balanced:
            filled = np.flatnonzero(np.diff(self.first_of_row))  # a video may have no item
            row = rng.choice(filled, self.num_samples)
            drawn = rng.integers(self.first_of_row[row], self.first_of_row[row + 1])
        else:
            rounds = -(-self.num_samples // total)  # more than there are: all of them, and then again
            drawn = np.concatenate([rng.permutation(total) for _ in range(rounds)])[: self.num_samples]
        yield from drawn.tolist()
