"""Media to timeline: `pipeline("audio-visual-emotion")`."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from transformers.pipelines.base import ChunkPipeline


try:  # copied next to the weights: part of a `transformers_modules.*` package
    from .sources_jca import Limits
except ImportError:  # installed or on sys.path: a top-level module
    from sources_jca import Limits

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
        values (`np.ndarray` of shape `(frames,)`): a series.
        times (`np.ndarray` of shape `(frames,)`): seconds, rising.

    Returns:
        `np.ndarray` of shape `(frames,)`.

    Raises:
        ValueError: if `size` is not an odd number of at least 1.
    """
    check_smoothing(size)
    half = size / 2 / frame_rate - 1e-4  # a frame on the very edge is left out on both sides
    low, high = np.searchsorted(times, times - half), np.searchsorted(times, times + half)
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return (total[high] - total[low]) / (high - low)


def check_smoothing(size: Any) -> None:
    """Raises ValueError for what is no odd number of frames."""
    if type(size) is not int or size < 1 or size % 2 == 0:
        raise ValueError(
            f"smoothing={size!r} must be an odd number of frames, such as 21 (an even one shifts the series), or "
            '"paper".'
        )


def smoothing_sizes(names: Sequence[str], smoothing: int | str | Mapping[str, int] | None) -> dict[str, int]:
    """Frames of the moving average of each output that has one, by its name; arguments as of [`timeline`]."""
    if smoothing is None:
        return {}
    smoothing = PAPER_SMOOTHING if smoothing == "paper" else smoothing
    sizes: Mapping[str, Any] = smoothing if isinstance(smoothing, Mapping) else dict.fromkeys(names, smoothing)
    for size in sizes.values():
        check_smoothing(size)
    if unknown := set(sizes) - set(names) - set(PAPER_SMOOTHING):
        raise ValueError(f"smoothing names {sorted(unknown)}, and the outputs are {list(names)}.")
    return {name: size for name, size in sizes.items() if name in names}


def smooth_all(
    values: np.ndarray, times: np.ndarray, names: Sequence[str], frame_rate: float, sizes: Mapping[str, int]
) -> np.ndarray:
    """[`smooth`] of the outputs `(frames, outputs)` that `sizes` names."""
    out = np.array(values, dtype=np.float64)
    for name, size in sizes.items():
        out[:, names.index(name)] = smooth(values[:, names.index(name)], times, size, frame_rate)
    return out


def timeline(
    values: np.ndarray,
    end_frames: np.ndarray,
    times: np.ndarray,
    names: Sequence[str],
    frame_rate: float = 30.0,
    smoothing: int | str | Mapping[str, int] | None = None,
) -> np.ndarray:
    """
    Outputs of a face's clips to one row for each of its frames, `(frames, outputs)`: interpolated, clipped to the range of
    the labels [-1, 1] and smoothed. The pipeline, evaluation and training all walk this function.

    Args:
        values, end_frames, times, frame_rate: see [`clips_to_frames`].
        names (`list[str]`): of the outputs.
        smoothing (`int`, `dict[str, int]` or `"paper"`, *optional*): frames of the moving average, see [`smooth`]; one
            for all outputs or one for each by name. `"paper"` is 21 for valence and 51 for arousal.

    Raises:
        ValueError: if `smoothing` is no odd number of frames, or of an output that there is not.
    """
    out = clips_to_frames(values, end_frames, times, frame_rate).clip(-1, 1)
    return smooth_all(out, times, names, frame_rate, smoothing_sizes(names, smoothing))


def timeline_rows(
    outputs: Iterable[Mapping[str, Any]],
    names: Sequence[str],
    frame_rate: float = 30.0,
    smoothing: int | str | Mapping[str, int] | None = None,
) -> Iterator[dict[str, Any]]:
    """
    [`timeline`] of every face as the windows come: rows with outputs, each as soon as all that it depends on is there.

    Args:
        outputs: of each window of `JCAProcessor.windows` in their order: `values` `(clips, outputs)` beside its `face`,
            `end_frames` and `rows`.
        names, frame_rate, smoothing: see [`timeline`].

    Raises:
        ValueError: see [`timeline`].
    """
    sizes = smoothing_sizes(names, smoothing)
    half = max(sizes.values()) / 2 / frame_rate if sizes else 0.0  # seconds that the average looks ahead and back
    clips: dict[int | None, tuple[np.ndarray, np.ndarray]] = {}  # of each face: end frames and outputs
    frames: dict[int | None, tuple[np.ndarray, np.ndarray]] = {}  # of each face: times and outputs before smoothing
    waiting: deque[dict] = deque()  # rows

    def ready(until: float) -> Iterator[dict[str, Any]]:
        smoothed = {
            face: dict(zip(times, smooth_all(values, times, names, frame_rate, sizes).tolist(), strict=True))
            for face, (times, values) in frames.items()
        }
        while waiting and waiting[0]["time"] <= until:
            row = waiting.popleft()
            values = smoothed[row["face"]][row["time"]]
            first = {name: row[name] for name in ("time", "frame", "face")}
            yield {**first, **dict(zip(names, values, strict=True)), **row}

    for part in outputs:
        _extend(clips, part["face"], np.asarray(part["end_frames"]), np.asarray(part["values"]))
        if not part["rows"]:
            continue
        waiting.extend(part["rows"])
        newest = part["rows"][-1]["time"]
        times: dict[int | None, list[float]] = {}
        for row in part["rows"]:
            times.setdefault(row["face"], []).append(row["time"])
        for face, seconds in times.items():
            ends, values = clips[face]
            _extend(frames, face, np.array(seconds), clips_to_frames(values, ends, seconds, frame_rate).clip(-1, 1))
        yield from ready(newest - half)
        # the averages of the rows that wait look back so far
        frames = {face: _after(series, newest - 2 * half) for face, series in frames.items()}
        frames = {face: series for face, series in frames.items() if len(series[0])}
        # rows to come lie behind one clip at most
        last = {face: max(clips[face][0][clips[face][0] <= newest * frame_rate], default=0) for face in times}
        clips = {face: _after(clips[face], end - 1) for face, end in last.items()}
    yield from ready(np.inf)


def _extend(series: dict, face: int | None, places: np.ndarray, values: np.ndarray) -> None:
    known = series.get(face, (places[:0], values[:0]))
    series[face] = np.concatenate([known[0], places]), np.concatenate([known[1], values])


def _after(series: tuple[np.ndarray, np.ndarray], place: float) -> tuple[np.ndarray, np.ndarray]:
    keep = series[0] > place
    return series[0][keep], series[1][keep]


def _join(clips: Mapping[int, Mapping[str, torch.Tensor]], ends: Iterable[int]) -> dict[str, torch.Tensor]:
    """One window of clips `(1, 1, ...)` by their end frames; one that is not there is masked."""
    nothing = {name: torch.zeros_like(tensor) for name, tensor in next(iter(clips.values())).items()}
    return {name: torch.cat([clips.get(end, nothing)[name] for end in ends], dim=1) for name in nothing}


def read_ahead(items: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same items; a thread makes the next one while the caller works with one. What it raises comes in its place."""
    with ThreadPoolExecutor(1) as thread:
        num_threads = torch.get_num_threads()
        # its operations are small: on several threads of PyTorch they would wait for those of the caller's
        thread.submit(torch.get_num_threads).result()  # which also takes the number for this thread, once and for all
        thread.submit(torch.set_num_threads, 1).result()
        torch.set_num_threads(num_threads)  # of threads to come; for those that are there the above changed nothing
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


class AudioVisualEmotionPipeline(ChunkPipeline):
    """
    A video in, one row for each of its frames and faces out.

    ```python
    rows = pipeline("audio-visual-emotion", model="path-or-repo")("interview.mp4")
    ```

    Takes a path, URL, bytes or binary file object, or a list of them, and gives a list of dicts (for a list of inputs a
    list of such lists): `time` in seconds from the first frame, `frame` from 0, `face`, `valence` and `arousal` in
    [-1, 1], `box` (x0, y0, x1, y1) in pixels of the displayed picture or None, `face_detected`, `audio_present`,
    `face_quality` in [0, 1] or None. The hop's frames are looked at; what stands in the rows between is interpolated.

    A face has rows from the first to the last frame that shows it; `face` is its id, which survives a short loss and ends
    with a cut. A frame that shows none has one row with `face` None, predicted from the voice alone. With
    `faces="center"` or `"given"` there is face 0 in every frame.

    Args:
        hop (`int`, defaults to 8): grid frames (30 a second, unless the processor says otherwise) between the clips that are
            computed; 1 is the paper's dense protocol, 8 costs an eighth of it. Outputs are interpolated to every frame.
        smoothing (`int`, `dict[str, int]` or `"paper"`, *optional*): see [`timeline`].
        faces (`str` or [`Detector`], *optional*): `"detect"`, `"center"`, `"given"` or a detector, in place of what the
            processor's configuration says.
        limits ([`Limits`], *optional*): of size, length and time of the media.
        speaking (`bool`, defaults to `False`): rows also have `speaking` in [-1, 1] or None: how well the motion of the
            mouth goes with the loudness.
        batch_size (`int`, defaults to 1): windows (of 16 clips) that go through the model together.
    """

    _load_processor = True
    _load_feature_extractor = False
    _load_video_processor = False
    _load_image_processor = False
    _load_tokenizer = False

    def _sanitize_parameters(
        self,
        hop: Any = None,
        smoothing: Any = None,
        faces: Any = None,
        limits: Any = None,
        speaking: Any = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if kwargs:
            raise TypeError(
                f"{sorted(kwargs)} are no arguments of this pipeline: it takes hop, smoothing, faces, limits, speaking and "
                "batch_size."
            )
        smoothing_sizes(list(self.model.config.id2label.values()), smoothing)  # raises before a video is read
        reading = {"hop": hop, "faces": faces, "limits": limits, "speaking": speaking}
        return (
            {name: value for name, value in reading.items() if value is not None},
            {},
            {} if smoothing is None else {"smoothing": smoothing},
        )

    def stream(
        self,
        source: Any,
        *,
        live: bool = False,
        **options: Any,
    ) -> Iterator[dict[str, Any]]:
        """
        The rows of one video as they come, in memory that does not grow with its length.

        Args:
            source: as of the pipeline, or the number of a camera, or an address of a live stream such as
                `rtsp://...`.
            options: hop, smoothing, faces, limits and speaking, as of the pipeline and with what it was built with.
            live (`bool`, defaults to `False`): without it rows come a block of windows (17 s) at a time and are those that
                the pipeline gives. With it a row comes at most `hop` frames after its own, plus the time of the
                computation and of sound that comes late (0.5 s are waited for). It depends on nothing later: the fusion sees
                the newest clip and those before it, an encoder of tracks each clip alone. `smoothing` delays rows by half
                its length, and a face has rows for a second after it was last seen.

        Raises:
            TypeError: for an option that there is not.
            ValueError: if `smoothing` is no odd number of frames; what else, see [`JCAProcessor.windows`].
        """
        reading, _, writing = self._sanitize_parameters(**options)
        reading = {**self._preprocess_params, **reading}
        if live:  # which has no end
            reading.setdefault("limits", Limits(max_seconds=None))
            outputs = self._live(self.processor.windows(source, **reading, live=True))
        else:
            outputs = map(self.forward, self._windows(source, **reading))
        return self._rows(outputs, **{"smoothing": None, **self._postprocess_params, **writing})

    @torch.inference_mode()
    def _live(self, windows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The newest clip of each face at the end of a window of those before it; each clip is encoded once."""
        span, num_clips, modalities = self.processor.span, self.processor.num_clips, self.model.config.modalities
        heard: dict[int, dict[str, torch.Tensor]] = {}  # the audio of clips by the end frame
        seen: dict[int | None, dict[int, dict[str, torch.Tensor]]] = {}  # the same of each face's video
        for window in windows:
            (end,) = window["end_frames"].tolist()
            ends = range(end - (num_clips - 1) * span, end + 1, span)
            inputs = self._ensure_tensor_on_device(self._cast(self.processor.inputs(window)), device=self.device)
            if end not in heard:
                heard = {e: clip for e, clip in heard.items() if e >= ends[0]}
                seen = {face: {e: clip for e, clip in clips.items() if e >= ends[0]} for face, clips in seen.items()}
                seen = {face: clips for face, clips in seen.items() if clips}
                heard[end] = clip = {"audio_mask": inputs["audio_mask"]}
                if "audio" in modalities:
                    audio = inputs[self.processor.audio_input_name]
                    clip["audio_features"] = self.model.get_audio_features(audio, clip["audio_mask"])
            seen.setdefault(window["face"], {})[end] = clip = {"video_mask": inputs["video_mask"]}
            if "video" in modalities:
                clip["video_features"] = self.model.get_video_features(inputs["pixel_values"], clip["video_mask"])
            logits = self.model(**_join(seen[window["face"]], ends), **_join(heard, ends)).logits
            yield {"values": logits[:, -1:].float().cpu(), **{k: window[k] for k in ("face", "end_frames", "rows")}}

    def _cast(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {
            name: tensor.to(self.dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()
        }

    def preprocess(self, inputs: Any, **options: Any) -> Iterator[dict[str, Any]]:
        windows = self._windows(inputs, **options)
        previous = next(windows)  # a video that is read has a window
        for window in windows:
            yield {"is_last": False, **previous}
            previous = window
        yield {"is_last": True, **previous}

    def _windows(self, source: Any, **options: Any) -> Iterator[dict[str, Any]]:
        windows = self.processor.windows(source, **options, tracks=self.model.reads_tracks)
        inputs = map(self._model_inputs, windows)
        # where the model has all processors to itself it is slower with a reader beside it, with PyTorch by a fifth
        return inputs if self.device.type == "cpu" else read_ahead(inputs)

    def _model_inputs(self, window: dict[str, Any]) -> dict[str, Any]:
        place = {"face": window["face"], "end_frames": window["end_frames"].tolist(), "rows": window["rows"]}
        inputs = self.processor.inputs(window)
        if self.device.type == "cuda":  # from where a GPU fetches them by itself
            inputs = {name: tensor.pin_memory() for name, tensor in inputs.items()}
        return {**place, **inputs}

    def _ensure_tensor_on_device(self, inputs: Any, device: torch.device) -> Any:
        if isinstance(inputs, torch.Tensor) and device.type == "cuda":  # outputs, which go back, are waited for
            return inputs.to(device, non_blocking=True)
        return super()._ensure_tensor_on_device(inputs, device)

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        names = ("is_last", "face", "end_frames", "rows")
        extra = {name: model_inputs.pop(name) for name in names if name in model_inputs}
        inputs = self._cast(model_inputs)
        if "frame_mask" in inputs:
            hop = self.processor.block_length // inputs["video_mask"].shape[1]
            logits = self.model.forward_track(self.processor.track_sizes(hop), **inputs)
        else:
            logits = self.model(**inputs).logits
        return {"values": logits.float(), **extra}

    def postprocess(self, model_outputs: list[dict[str, Any]], smoothing: Any = None) -> list[dict[str, Any]]:
        return list(self._rows(model_outputs, smoothing))

    def _rows(self, outputs: Iterable[dict[str, Any]], smoothing: Any) -> Iterator[dict[str, Any]]:
        names = list(self.model.config.id2label.values())
        windows = ({**part, "values": part["values"][0].numpy()} for part in outputs)
        return timeline_rows(windows, names, self.processor.frame_rate, smoothing)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        # `Pipeline.save_pretrained` writes the sub-processors' legacy files, not processor_config.json
        feature_extractor, self.feature_extractor = self.feature_extractor, None
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.feature_extractor = feature_extractor
        self.processor.save_pretrained(save_directory)


__all__ = ["AudioVisualEmotionPipeline", "clips_to_frames", "smooth", "timeline", "timeline_rows"]
