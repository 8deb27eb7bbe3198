"""Media to timeline: `pipeline("audio-visual-emotion")`."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers.pipelines.base import ChunkPipeline


try:  # copied next to the weights: part of a `transformers_modules.*` package
    from .processing_jca import Frame
except ImportError:  # installed or on sys.path: a top-level module
    from processing_jca import Frame

PAPER_SMOOTHING = {"valence": 21, "arousal": 51}  # frames; the authors' evaluation has 20 and 50, see `smooth`


def clips_to_frames(values: np.ndarray, end_frames: np.ndarray, times: np.ndarray, frame_rate: float) -> np.ndarray:
    """
    Outputs of clips to outputs of frames, linear between the ends of the clips and constant outside of them.

    Args:
        values (`np.ndarray` of shape `(clips, outputs)`), end_frames (`np.ndarray` of shape `(clips,)`): on the grid of
            `frame_rate` frames a second, in any order, each once.
        times (`np.ndarray` of shape `(frames,)`): seconds from the first frame.

    Returns:
        `np.ndarray` of shape `(frames, outputs)`.
    """
    order = np.argsort(end_frames)
    position = np.asarray(times) * frame_rate
    return np.stack([np.interp(position, end_frames[order], column[order]) for column in values.T], axis=-1)


def smooth(values: np.ndarray, times: np.ndarray, size: int, frame_rate: float = 30.0) -> np.ndarray:
    """
    Moving average over `size` frames at `frame_rate`, centred on each frame and by time.

    The authors' evaluation has even sizes, which shift the series by half a frame, and pads with zeros, which pulls its
    ends to 0. Here the size is odd and at the ends the average is over the frames that there are.

    Args:
        values (`np.ndarray` of shape `(frames,)`), times (`np.ndarray` of shape `(frames,)`): seconds, rising.

    Raises:
        ValueError: if `size` is not an odd number of at least 1.
    """
    if not isinstance(size, int) or size < 1 or size % 2 == 0:
        raise ValueError(
            f"smoothing={size!r} must be an odd number of frames, such as 21: an even one shifts the series."
        )
    half = size / 2 / frame_rate - 1e-4  # a frame on the very edge is left out on both sides
    low, high = np.searchsorted(times, times - half), np.searchsorted(times, times + half)
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return (total[high] - total[low]) / (high - low)


def timeline(
    values: np.ndarray,
    end_frames: np.ndarray,
    times: np.ndarray,
    names: Sequence[str],
    frame_rate: float = 30.0,
    smoothing: int | str | Mapping[str, int] | None = None,
) -> np.ndarray:
    """
    Outputs of a video's clips to one row for each frame, `(frames, outputs)`: interpolated, clipped to the range of the
    labels [-1, 1] and smoothed. The pipeline, evaluation and training all walk this function.

    Args:
        values, end_frames, times, frame_rate: see [`clips_to_frames`].
        names (`list[str]`): of the outputs.
        smoothing (`int`, `dict[str, int]` or `"paper"`, *optional*): frames of the moving average, see [`smooth`]; one
            for all outputs or one for each by name. `"paper"` is 21 for valence and 51 for arousal.
    """
    out = clips_to_frames(values, end_frames, times, frame_rate).clip(-1, 1)
    if smoothing is None:
        return out
    if smoothing == "paper":
        smoothing = PAPER_SMOOTHING
    sizes = smoothing if isinstance(smoothing, Mapping) else dict.fromkeys(names, smoothing)
    if unknown := set(sizes) - set(names) - set(PAPER_SMOOTHING):
        raise ValueError(f"smoothing names {sorted(unknown)}, and the outputs are {list(names)}.")
    return np.stack(
        [smooth(column, times, sizes.get(name, 1), frame_rate) for name, column in zip(names, out.T, strict=True)],
        axis=-1,
    )


class AudioVisualEmotionPipeline(ChunkPipeline):
    """
    A video in, one row for each of its frames and faces out.

    ```python
    rows = pipeline("audio-visual-emotion", model="path-or-repo")("interview.mp4")
    ```

    Takes a path, URL, bytes or binary file object, or a list of them, and gives a list of dicts (for a list of inputs a
    list of such lists): `time` in seconds from the first frame, `frame` from 0, `face`, `valence` and `arousal` in
    [-1, 1], `box` (x0, y0, x1, y1) in pixels or None, `face_detected`, `audio_present`.

    Args:
        hop (`int`, defaults to 8): frames at 30 a second between the clips that are computed; 1 is the paper's dense
            protocol, 8 costs an eighth of it. Outputs are interpolated to every frame.
        smoothing (`int`, `dict[str, int]` or `"paper"`, *optional*): see [`timeline`].
        batch_size (`int`, defaults to 1): windows (of 16 clips) that go through the model together.
    """

    _load_processor = True
    _load_feature_extractor = False
    _load_video_processor = False
    _load_image_processor = False
    _load_tokenizer = False

    def _sanitize_parameters(self, hop: int | None = None, smoothing: Any = None, **kwargs):
        if kwargs:
            raise TypeError(
                f"{sorted(kwargs)} are no arguments of this pipeline: it takes hop, smoothing and batch_size."
            )
        return (
            {} if hop is None else {"hop": hop},
            {},
            {} if smoothing is None else {"smoothing": smoothing},
        )

    def preprocess(self, inputs: Any, hop: int = 8):
        previous = None
        for window in self.processor.windows(inputs, hop=hop):
            if previous is not None:
                yield previous
            previous = {
                "is_last": False,
                "end_frames": window["end_frames"].tolist(),
                "frames": window["frames"],
                **self.processor.inputs(window),
            }
        yield {**previous, "is_last": True}

    def _forward(self, model_inputs: dict[str, Any]):
        extra = {name: model_inputs.pop(name) for name in ("is_last", "end_frames", "frames")}
        for name, tensor in model_inputs.items():
            model_inputs[name] = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        return {"logits": self.model(**model_inputs).logits, **extra}

    def postprocess(self, model_outputs: list[dict[str, Any]], smoothing: Any = None) -> list[dict[str, Any]]:
        names = list(self.model.config.id2label.values())
        # between the steps of a pipeline a named tuple becomes a plain one
        frames = [Frame(*frame) for chunk in model_outputs for frame in chunk["frames"]]
        values = timeline(
            np.concatenate([chunk["logits"][0].float().numpy() for chunk in model_outputs]),
            np.concatenate([chunk["end_frames"] for chunk in model_outputs]),
            np.array([frame.time for frame in frames]),
            names,
            self.processor.frame_rate,
            smoothing,
        )
        return [
            {
                "time": round(frame.time, 6),
                "frame": index,
                "face": 0,
                **dict(zip(names, row, strict=True)),
                "box": frame.box,
                "face_detected": frame.face_detected,
                "audio_present": frame.audio_present,
            }
            for index, (frame, row) in enumerate(zip(frames, values.tolist(), strict=True))
        ]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any):
        # `Pipeline.save_pretrained` writes the sub-processors' legacy files, not processor_config.json
        feature_extractor, self.feature_extractor = self.feature_extractor, None
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.feature_extractor = feature_extractor
        self.processor.save_pretrained(save_directory)


__all__ = ["AudioVisualEmotionPipeline", "clips_to_frames", "smooth", "timeline"]
