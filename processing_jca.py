"""Media to model inputs: clips and windows of every face, face crops, log-mel spectrograms.

Everything is placed by time on a grid of `frame_rate` (30) frames a second that starts with the first video frame; at
30 frames a second grid frames are the file's frames. Frames, samples and clips count from 0.
"""

import json
import math
import os
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoConfig, AutoFeatureExtractor, BatchFeature, ProcessorMixin
from transformers.audio_utils import mel_filter_bank
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils import cached_file
from transformers.video_processing_utils import VideoProcessorMixin


try:  # not at the mercy of `check_imports`: arrays of features need no decoder
    import av
except ImportError:
    av = None

try:  # copied next to the weights: part of a `transformers_modules.*` package
    from .detection_jca import Detector
    from .faces_jca import FaceTracker, mouth_motion, speaking_scores
    from .media_jca import Waveform, decode, decode_picture, display_size, resample, upright
    from .sources_jca import IncompleteMediaWarning, Limits, MediaError, describe, open_media, streams_of
except ImportError:  # installed or on sys.path: a top-level module
    from detection_jca import Detector
    from faces_jca import FaceTracker, mouth_motion, speaking_scores
    from media_jca import Waveform, decode, decode_picture, display_size, resample, upright
    from sources_jca import IncompleteMediaWarning, Limits, MediaError, describe, open_media, streams_of

FACES = ("detect", "center", "given")
MAX_SKEW_SECONDS = 10.0  # so long pictures wait for the sound of their time; containers interleave both within seconds
CONTEXT_SECONDS = 1.0  # of looks before the next rows, by which these are filled and scored
LIVE_SKEW_SECONDS = 0.5  # the same of live predictions


# Clips and windows ---------------------------------------------------------------------------------------------------


def clip_frames(present: Sequence[int], length: int = 8, stride: int = 4) -> list[int]:
    """
    The `length` frames of a clip, out of those `present` in its span, which show a face (authors' code, T-BIOM repository).

    Every `stride`-th, counted back from the last; with fewer than `length * stride` frames a smaller step, with fewer
    than `length` the last repeated, with none an empty list.
    """
    if len(present) < length:
        return [*present, *[present[-1]] * (length - len(present))] if present else []
    step = min(stride, len(present) // length)
    return list(present[len(present) - 1 - step * (length - 1) :: step])


def window_plan(
    num_frames: int, hop: int = 1, num_clips: int = 16, span: int = 32, complete: bool = False
) -> list[list[int]]:
    """
    The windows of a video: for each, the end frames of its `num_clips` clips, which follow each other without overlap.

    A block of `num_clips * span` frames holds `span / hop` windows, shifted by `hop`; together they have a clip that ends
    at every `hop`-th frame, each once. Ends beyond the video stand in the list (authors' evaluation reader);
    `complete=True` leaves out windows that have any (their training reader).

    Args:
        num_frames, hop, span: frames of the video, between the ends of the clips, and of a clip.
        num_clips: clips in a window.

    Raises:
        ValueError: if `hop` does not divide `span`.
    """
    if not (type(hop) is int and hop >= 1 and span % hop == 0):
        divisors = ", ".join(str(d) for d in range(1, span + 1) if span % d == 0)
        raise ValueError(
            f"hop={hop!r} frames: clips span {span} frames and follow each other without overlap, so that the hop must "
            f"divide {span}. Choose one of {divisors}."
        )
    plan = []
    for start in range(0, num_frames, num_clips * span):
        for phase in range(start + hop - 1, start + span, hop):
            ends = list(range(phase, phase + num_clips * span, span))
            if ends[-1] < num_frames or (not complete and phase - hop + 1 < num_frames):
                plan.append(ends)
    return plan


def nearest_frames(times: np.ndarray, positions: np.ndarray, frame_rate: float) -> np.ndarray:
    """The file's frame that each grid frame shows: the nearest in time, of two the later.

    Args:
        times (`np.ndarray` of shape `(frames,)`): seconds from the first frame, rising; positions (`np.ndarray` of shape
            `(grid frames,)`): on the grid of `frame_rate` frames a second.
    """
    return np.searchsorted((times[:-1] + times[1:]) / 2 * frame_rate, positions, side="right")


class Seen(NamedTuple):
    """A face in a frame: its id, its crop, and what the rows say of it; of a frame without one the id is None."""

    face: int | None
    crop: Any  # (size, size, 3) uint8, a picture's bytes or path, which is read only if a clip needs it, or None
    box: list[float] | None = None  # x0, y0, x1, y1 in px of the displayed picture
    face_detected: bool = False
    face_quality: float | None = None
    mouth_motion: float | None = None


Look = Callable[[float, Any], list[Seen]]  # (seconds, frame or None where it can not be decoded) -> the faces in it


# Processors of one modality ------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _mel_filters(num_bins: int, num_bands: int, sampling_rate: int) -> torch.Tensor:
    filters = mel_filter_bank(num_bins, num_bands, 0.0, sampling_rate / 2, sampling_rate, norm=None, mel_scale="htk")
    return torch.from_numpy(filters.T).float()  # (bands, bins)


class JCAFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Log-mel spectrogram of a clip, the front end of the authors' code: 20 ms windows every 10 ms at 44.1 kHz.

    Args:
        feature_size (`int`, defaults to 64): mel bands, HTK scale, from 0 Hz to half the sampling rate.
        sampling_rate (`int`, defaults to 44100): in Hz.
        n_fft (`int`, defaults to 1024), win_length (`int`, defaults to 882), hop_length (`int`, defaults to 441): in
            samples; a periodic Hann window, centred, with reflection at the ends.
        floor (`float`, defaults to 1e-10): smallest power.
        top_db (`float`, defaults to 80): range below the loudest cell of the clip, in dB.
        mean (`float`, defaults to -14.8), std (`float`, defaults to 19.895): of the decibels, in dB (authors' code).
        padding_value (`float`, defaults to 0): Transformers asks for it; nothing is padded.
    """

    model_input_names = ["input_features"]

    def __init__(
        self,
        feature_size: int = 64,
        sampling_rate: int = 44100,
        padding_value: float = 0.0,
        n_fft: int = 1024,
        win_length: int = 882,
        hop_length: int = 441,
        floor: float = 1e-10,
        top_db: float = 80.0,
        mean: float = -14.8,
        std: float = 19.895,
        **kwargs: Any,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.n_fft, self.win_length, self.hop_length = n_fft, win_length, hop_length
        self.floor, self.top_db = floor, top_db
        self.mean, self.std = mean, std

    def decibels(self, audio: torch.Tensor) -> torch.Tensor:
        """
        Args:
            audio (`torch.Tensor` of shape `(..., samples)`): waveforms at `sampling_rate` Hz.

        Returns:
            `torch.Tensor` of shape `(..., feature_size, 1 + samples // hop_length)`: log-mel power in dB.
        """
        window = torch.hann_window(self.win_length, periodic=True)
        spectrum = torch.stft(
            audio.reshape(-1, audio.shape[-1]),
            self.n_fft,
            self.hop_length,
            self.win_length,
            window,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        filters = _mel_filters(self.n_fft // 2 + 1, self.feature_size, self.sampling_rate)
        power = filters @ spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
        decibels = 10 * power.clamp(min=self.floor).log10()
        decibels = torch.maximum(decibels, decibels.amax(dim=(-2, -1), keepdim=True) - self.top_db)
        return decibels.unflatten(0, audio.shape[:-1]) if audio.ndim > 1 else decibels[0]

    def __call__(
        self, audio: Any, sampling_rate: int | None = None, padding: Any = None, return_tensors: str | None = None
    ) -> BatchFeature:
        """
        Args:
            audio (`np.ndarray` of shape `(..., samples)`): waveforms in [-1, 1].
            sampling_rate (`int`, *optional*): of `audio` in Hz, to be checked.
            padding: for the call of Transformers' feature extractors; the waveforms of an array need none.
            return_tensors (`str`, *optional*): `"np"` for arrays; left out, or `"pt"`, tensors.

        Returns:
            `input_features` of shape `(..., feature_size, 1 + samples // hop_length)`: [`JCAFeatureExtractor.decibels`],
            less `mean` and by `std`.

        Raises:
            ValueError: if the sound has another rate, or is no longer than half of `n_fft`.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(f"audio at {sampling_rate} Hz was given: resample it to {self.sampling_rate} Hz.")
        audio = torch.as_tensor(np.asarray(audio), dtype=torch.float32)
        if audio.shape[-1] <= self.n_fft // 2:
            raise ValueError(f"audio has {audio.shape[-1]} samples; a spectrogram needs more than {self.n_fft // 2}.")
        return BatchFeature(
            {"input_features": (self.decibels(audio) - self.mean) / self.std}, tensor_type=return_tensors
        )


class JCAVideoProcessor(VideoProcessorMixin):
    r"""
    Frames to normalised face crops, with FFmpeg's scaler and torch (Transformers' base class needs torchvision).

    Args:
        size (`int`, defaults to 112): height and width of a crop in pixels.
        faces (`str`, defaults to `"detect"`): what frames are. `"detect"`: pictures in which faces are looked for, see
            [`FaceTracker`]; `"center"`: pictures, the crop is their central square and no face is looked for; `"given"`:
            every frame is a face crop.
        image_mean, image_std (`list[float]`): of the colours in [0, 1]. Default: those of Kinetics-400 with which the
            visual encoder was trained (authors' code).

    Raises:
        ValueError: if `faces` is none of the three.
    """

    model_input_names = ["pixel_values"]
    size = 112
    faces = "detect"
    image_mean = [0.43216, 0.394666, 0.37645]
    image_std = [0.22803, 0.22145, 0.216989]

    def __init__(self, **kwargs: Any) -> None:
        for name in ("size", "faces", "image_mean", "image_std"):
            kwargs.setdefault(name, getattr(type(self), name))
        if kwargs["faces"] not in FACES:
            raise ValueError(f"faces={kwargs['faces']!r} is not known. Choose one of {', '.join(FACES)}.")
        super().__init__(**kwargs)

    @classmethod
    def from_encoder(cls, source: str | os.PathLike, config: Any) -> "JCAVideoProcessor":
        """
        What a visual encoder expects: size and colours of its own preprocessor's file or, without one, the size of its
        config and the colours of CLIP or ImageNet.

        Args:
            source (`str` or `os.PathLike`): folder or Hub repository of the encoder.
            config (`PreTrainedConfig`): of the encoder.
        """
        names = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")
        files = (cached_file(source, name, _raise_exceptions_for_missing_entries=False) for name in names)
        path = next((path for path in files if path), None)
        given = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
        given = given.get("video_processor") or given.get("image_processor") or given
        size = (given.get("do_center_crop", True) and given.get("crop_size")) or given.get("size")
        size = size or getattr(config, "image_size", 224)
        clip = "clip" in config.model_type
        mean = given.get("image_mean") or (OPENAI_CLIP_MEAN if clip else IMAGENET_DEFAULT_MEAN)
        std = given.get("image_std") or (OPENAI_CLIP_STD if clip else IMAGENET_DEFAULT_STD)
        if not given.get("do_normalize", True):
            mean, std = 0.0, 1.0
        # the file's numbers are of `colour * rescale_factor - offset` with colours to 255 (ViViT), ours of colours to 1
        scale = 255 * (given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 1)
        return cls(
            size=int(np.ravel(list(size.values()) if isinstance(size, dict) else size)[0]),
            image_mean=[float(value + given.get("offset", 0)) / scale for value in np.broadcast_to(mean, 3)],
            image_std=[float(value) / scale for value in np.broadcast_to(std, 3)],
        )

    def crop(self, frame: "av.VideoFrame", faces: str) -> tuple[np.ndarray, list[float]]:
        """The crop `(size, size, 3)` uint8 RGB of a frame without detection, all of it or (`faces="center"`) its central
        square, and its box (x0, y0, x1, y1) in px of the displayed picture."""
        size = self.size
        width, height = display_size(frame)
        if faces == "given":
            return upright(frame, size, size), [0.0, 0.0, float(width), float(height)]
        side = min(width, height)
        # scale first and then cut: one pass of the scaler, over no more pixels than needed
        scaled = upright(frame, round(width * size / side), round(height * size / side))
        top, left = (scaled.shape[0] - size) // 2, (scaled.shape[1] - size) // 2
        y, x = height / scaled.shape[0], width / scaled.shape[1]
        crop = np.ascontiguousarray(scaled[top : top + size, left : left + size])
        return crop, [left * x, top * y, (left + size) * x, (top + size) * y]

    def preprocess(self, videos: Any, return_tensors: str | None = None) -> BatchFeature:
        """
        Args:
            videos (`np.ndarray` of shape `(..., height, width, 3)`): crops, uint8 RGB.
            return_tensors (`str`, *optional*): `"np"` for arrays; left out, or `"pt"`, tensors.

        Returns:
            `pixel_values` of shape `(..., 3, height, width)`: colours in [0, 1], less `image_mean` and by `image_std`.
        """
        # moved as bytes and scaled in place: a tenth of the time that three passes over floats take
        pixels = torch.as_tensor(np.asarray(videos)).movedim(-1, -3).contiguous().float()
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.image_mean, self.image_std))
        return BatchFeature({"pixel_values": pixels.mul_(1 / (255 * std)).sub_(mean / std)}, tensor_type=return_tensors)


# Both modalities -----------------------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """A frame of the file: `seconds` from the first, and the faces in it without their crops, None if nobody looked."""

    seconds: float
    seen: list[Seen] | None
    decoded: bool

    @property
    def looked_at(self) -> bool:
        """Whether it says who is there; one that could not be decoded says nothing of its neighbours either."""
        return self.seen is not None and self.decoded


def fill_unseen(frames: Sequence[Shown]) -> list[list[Seen]]:
    """
    The faces of every frame, where some were not looked at: a face moves on a straight line between two that were, and one
    that only one of them shows is in the half that is nearer to it.
    """
    looked = [index for index, frame in enumerate(frames) if frame.looked_at]
    filled = [list(frame.seen or ()) for frame in frames]
    for index, frame in enumerate(frames):
        if frame.seen is not None or not looked:
            continue
        place = bisect_right(looked, index)
        near, far = (frames[looked[min(max(p, 0), len(looked) - 1)]] for p in (place - 1, place))
        share = (frame.seconds - near.seconds) / (far.seconds - near.seconds) if near is not far else 0.0
        if share > 0.5:
            near, far, share = far, near, 1 - share
        others = {face.face: face.box for face in far.seen}
        for face in near.seen:
            box, other = face.box, others.get(face.face)
            if box is not None and other is not None:
                box = [(1 - share) * x + share * y for x, y in zip(box, other, strict=True)]
            filled[index].append(face._replace(box=box))
    return filled


def fill_lost(
    filled: list[list[Seen]],
    times: Sequence[float],
    first: int,
    last_seen: Mapping[int | None, float],
    max_lost: float,
    causal: bool,
) -> None:
    """
    Add the faces that are lost for up to `max_lost` seconds to frames, in place.

    Args:
        filled: the faces that each frame shows; times (of shape `(frames,)`): seconds.
        first: of the frames that are new.
        last_seen: seconds at which those before showed each face.
        causal: without knowing whether a face comes back.
    """
    last, place = dict(last_seen), dict.fromkeys(last_seen, first - 1)
    for index in range(first, len(filled)):
        seen = [face.face for face in filled[index]]
        if causal:
            lost = [face for face, at in last.items() if face not in seen and times[index] - at <= max_lost]
            filled[index] += [Seen(face, None) for face in lost]
        for face in seen:
            if not causal and face in last and times[index] - last[face] <= max_lost:
                for between in range(place[face] + 1, index):
                    filled[between].append(Seen(face, None))
            last[face], place[face] = times[index], index


class WindowBuffer:
    """Collects the frames and samples of one video as they are decoded, and hands out its windows.

    Holds what the next block of windows needs, and what the file stores ahead of it, and forgets the rest. Frames that no
    clip uses are not looked at.

    Args:
        processor ([`JCAProcessor`]), hop (`int`): grid frames between the ends of the clips.
        look (`Look`, *optional*): finds and cuts the faces of a frame; without it frames come as lists of [`Seen`].
        max_lost (`float`, defaults to 0): seconds for which a face may be lost and keep its id.
        speaking (`bool`, defaults to `False`): rows say whether the face speaks.
    """

    def __init__(
        self,
        processor: "JCAProcessor",
        hop: int,
        look: Look | None = None,
        max_lost: float = 0.0,
        speaking: bool = False,
    ):
        self.processor, self.hop, self.look, self.max_lost, self.speaking = processor, hop, look, max_lost, speaking
        self.every = math.gcd(hop, processor.clip_stride)  # grid frames from one use to the next
        self.rate = processor.feature_extractor.sampling_rate
        self.sound, self.has_sound = Waveform(), False
        self.crops: dict[int | None, dict[int, Any]] = {}  # of each face by grid frame
        self.num_frames = 0  # grid frames that are known
        self.start = 0  # grid frame with which the next block begins
        self.origin: Any = None  # seconds of the first frame on the media's clock
        self.newest: Any = None  # (seconds from the first frame, picture) of the newest frame
        self.shown: list[Shown] = []  # frames before the newest: those whose rows are out, for context, and the others
        self.num_rows_out = 0  # of the frames in `shown`
        self.number = 0  # of the next frame whose rows go out
        self.last_seen: dict[int | None, float] = {}  # seconds at which each face was in the rows that are out

    def _position(self, seconds: float) -> int:
        return round((self.origin + seconds) * self.rate)

    def _show(self, stop: float) -> None:
        """The newest frame stands at every grid frame before `stop`."""
        seconds, picture = self.newest
        used = []
        while self.num_frames < stop:
            # spans that the start of the video cuts off use all
            if (self.num_frames + 1) % self.every == 0 or self.num_frames < self.processor.span:
                used.append(self.num_frames)
            self.num_frames += 1
        if self.look is None:
            seen = picture
        else:
            seen = self.look(self.origin + seconds, picture) if used or picture is None else None
        for face in seen or ():
            if face.crop is not None:
                self.crops.setdefault(face.face, {}).update(dict.fromkeys(used, face.crop))
        seen = None if seen is None else [face._replace(crop=None) for face in seen]
        self.shown.append(Shown(seconds, seen, picture is not None))

    def add_audio(self, seconds: float, samples: np.ndarray) -> None:
        """Take samples `(n,)` that begin at `seconds`."""
        self.has_sound = True
        self.sound.write(round(seconds * self.rate), np.nan_to_num(samples))

    def add_frame(self, seconds: float, picture: Any) -> None:
        """Take the picture that is shown from `seconds` on."""
        if self.origin is None:
            self.origin = seconds
        else:  # a grid frame shows the frame that is nearest in time, as `nearest_frames`
            self._show((self.newest[0] + (seconds - self.origin)) / 2 * self.processor.frame_rate)
        self.newest = (seconds - self.origin, picture)

    def finish(self) -> None:
        """No more comes: the newest picture is the last frame."""
        self._show(round(self.newest[0] * self.processor.frame_rate) + 1)

    def ready(self, live: bool = False) -> bool:
        """
        Whether all that the next block needs has come: its frames, those in which a lost face may come back, and the sound
        of its time, unless that is too far behind the pictures. With `live`, what the newest clip needs.
        """
        stop = self.start + (self.hop if live else self.processor.block_length)
        lookahead, max_skew = (0.0, LIVE_SKEW_SECONDS) if live else (self.max_lost, MAX_SKEW_SECONDS)
        if self.num_frames < stop + lookahead * self.processor.frame_rate:
            return False
        needed, newest = self._position(stop / self.processor.frame_rate), self._position(self.newest[0])
        return not self.has_sound or self.sound.end >= needed or newest >= needed + max_skew * self.rate

    def faces_of(self, rows: list[dict[str, Any]]) -> list[int | None]:
        """The faces that windows are for: those of the rows, or, where a pause has none, those that are there."""
        faces = {row["face"] for row in rows} or set(self.crops) or {None}
        return sorted(faces, key=lambda face: (face is None, face))

    def pop(self, tracks: bool, last: bool = False) -> Iterator[dict[str, Any]]:
        """The windows of the next block, or its tracks, those of one face after those of another; with the last come the
        rows."""
        rows = self.rows(None if last else self.start + self.processor.block_length)
        # rows may be left that lie a fraction of a grid frame behind the newest
        plan = self.processor.plan(max(1, min(self.num_frames - self.start, self.processor.block_length)), self.hop)
        faces = self.faces_of(rows)
        for face in faces:
            if tracks:
                yield {**self.track(face), "rows": rows if face == faces[-1] else []}
                continue
            for ends in plan:
                window = self.window(face, [self.start + end for end in ends])
                yield {**window, "rows": rows if face == faces[-1] and ends is plan[-1] else []}
        self.start += self.processor.block_length
        self.forget(self.start - self.processor.span + 1)

    def pop_clips(self, last: bool = False) -> Iterator[dict[str, Any]]:
        """The newest clip of every face as a window of one; with the last come the rows, which know nothing later."""
        end = self.start + self.hop - 1
        rows = self.rows(None if last else end + 1, causal=True)
        faces = self.faces_of(rows)
        for face in faces:
            yield {**self.window(face, [end]), "rows": rows if face == faces[-1] else []}
        self.start += self.hop
        self.forget(self.start + self.hop - self.processor.span)

    def forget(self, before: int) -> None:
        """Crops and sound of the grid frames before `before`."""
        for face, crops in list(self.crops.items()):
            while crops and (oldest := next(iter(crops))) < before:  # they come in order
                del crops[oldest]
            if not crops:
                del self.crops[face]
        self.sound.forget(self._position(before / self.processor.frame_rate - CONTEXT_SECONDS))

    def window(
        self, face: int | None, ends: Sequence[int], modalities: Sequence[str] = ("video", "audio")
    ) -> dict[str, Any]:
        """The window of the clips of a face that end with grid frames `ends`, as of `JCAProcessor.windows` without its
        rows."""
        window = {"face": face, "end_frames": np.array(ends)}
        if "video" in modalities:
            crops, found = zip(*(self.clip_crops(face, end) for end in ends), strict=True)
            window |= {"crops": np.stack(crops), "video_mask": np.array(found)}
        if "audio" in modalities:
            waveforms, found = zip(*(self.clip_waveform(end) for end in ends), strict=True)
            window |= {"waveforms": np.stack(waveforms), "audio_mask": np.array(found)}
        return window

    def track(self, face: int | None) -> dict[str, Any]:
        """All clips of the next block of a face as one track, as of `JCAProcessor.windows` without its rows."""
        ends = np.arange(self.start + self.hop - 1, self.start + self.processor.block_length, self.hop)
        length, size = self.processor.clip_length, self.processor.video_processor.size
        grid = range(ends[0] - (length - 1) * self.processor.clip_stride, ends[-1] + 1, self.every)
        chosen = [self.chosen(face, end) for end in ends]
        # clips that the start of the video cuts off take frames between those of the grid
        frames = [*grid, *sorted({g for clip in chosen for g in clip}.difference(grid))]
        known, places = self.crops.get(face, {}), {g: place for place, g in enumerate(frames)}
        count = len(grid) + self.processor.span  # always the same, for batches
        crops, mask = np.zeros((count, size, size, 3), np.uint8), np.zeros(count, bool)
        for g, place in places.items():
            if g in known:
                crops[place], mask[place] = self.crop(face, g), True
        waveforms = [self.clip_waveform(end) for end in ends]
        return {
            "face": face,
            "crops": crops,
            "frame_mask": mask,
            "clip_frames": np.array([[places[g] for g in clip] or [-1] * length for clip in chosen]),
            "waveforms": np.stack([clip for clip, _ in waveforms]),
            "video_mask": np.array([bool(clip) for clip in chosen]),
            "audio_mask": np.array([found for _, found in waveforms]),
            "end_frames": ends,
        }

    def crop(self, face: int | None, frame: int) -> np.ndarray:
        """The crop `(size, size, 3)` uint8 of a face in a grid frame that shows it; what is stored is decoded once, when
        first needed."""
        crops = self.crops[face]
        if not isinstance(crops[frame], np.ndarray):
            crops[frame] = decode_picture(crops[frame], self.processor.video_processor.size)
        return crops[frame]

    def clip_crops(self, face: int | None, end: int) -> tuple[np.ndarray, bool]:
        """Crops `(clip_length, size, size, 3)` of the clip of a face that ends with grid frame `end`, and whether they show
        it."""
        chosen, size = self.chosen(face, end), self.processor.video_processor.size
        if not chosen:
            return np.zeros((self.processor.clip_length, size, size, 3), np.uint8), False
        return np.stack([self.crop(face, g) for g in chosen]), True

    def chosen(self, face: int | None, end: int) -> list[int]:
        """Grid frames of the clip of a face that ends with grid frame `end`, see [`clip_frames`]."""
        processor, crops = self.processor, self.crops.get(face, {})
        low = end - processor.span + 1
        cut = low < 0 or (low == 0 and self.num_frames < processor.span)  # off by the start of the video, or its end
        first = max(low, 0) if cut else low + (-low - 1) % self.every  # the first of those that clips use
        present = [g for g in range(first, min(end + 1, self.num_frames), 1 if cut else self.every) if g in crops]
        return clip_frames(present, processor.clip_length, processor.clip_stride)

    def clip_waveform(self, end: int) -> tuple[np.ndarray, bool]:
        """Waveform `(samples,)` of the same clip, and whether it holds sound; a clip that lies wholly beyond the video has
        none."""
        low = end - self.processor.span + 1
        start = self._position(low / self.processor.frame_rate)
        waveform, audible = self.sound.read(start, start + self.processor.clip_samples)
        return waveform, audible and low < self.num_frames

    def rows(self, stop: int | None, causal: bool = False) -> list[dict[str, Any]]:
        """
        The rows, without outputs, of the frames before grid frame `stop` that are not out yet.

        A face has rows from the first to the last frame that shows it. Until it is seen again, `max_lost` seconds are waited
        for; `causal` gives rows to all that were seen in the `max_lost` seconds before, as later frames are not known.
        """
        period = 1 / self.processor.frame_rate
        times = [frame.seconds for frame in self.shown]
        filled = fill_unseen(self.shown)
        fill_lost(filled, times, self.num_rows_out, self.last_seen, self.max_lost, causal)
        count = len(filled)
        if stop is not None:
            count = bisect_right(times, (stop - 1) * period + 1e-6)
        rows = []
        for frame, seen in zip(self.shown[self.num_rows_out : count], filled[self.num_rows_out : count], strict=True):
            low = self._position(frame.seconds)
            audible = self.sound.read(low, low + round(period * self.rate))[1]
            for face in sorted(seen, key=attrgetter("face")) or [Seen(None, None)]:
                rows.append(
                    {
                        "time": round(frame.seconds, 6),
                        "frame": self.number,
                        "face": face.face,
                        "box": face.box,
                        "face_detected": face.face_detected,
                        "audio_present": audible,
                        "face_quality": face.face_quality,
                    }
                )
                if face.face_detected or face.box is not None:
                    self.last_seen[face.face] = frame.seconds
            self.number += 1
        if self.speaking:
            self._score_speaking(rows)
        newest = times[count - 1] if count else 0.0
        self.last_seen = {face: at for face, at in self.last_seen.items() if newest - at <= self.max_lost}
        looked = max((index for index in range(count) if self.shown[index].looked_at), default=0)
        context = min(looked, bisect_left(times, newest - CONTEXT_SECONDS))
        del self.shown[:context]
        self.num_rows_out = count - context
        return rows

    def _score_speaking(self, rows: list[dict[str, Any]]) -> None:
        """Add `speaking` to rows: how well the mouth goes with the sound, see [`speaking_scores`]."""
        looked = [frame for frame in self.shown if frame.looked_at]
        times = np.array([frame.seconds for frame in looked])
        positions = [self._position(seconds) for seconds in times]
        pieces = [self.sound.read(low, high)[0] for low, high in pairwise(positions)]
        power = np.array([0.0, *(np.square(piece).mean() if len(piece) else 0.0 for piece in pieces)])
        loudness = 10 * np.log10(power + 1e-8)  # dB between one look and the next
        motion: dict[int | None, list] = {}
        for index, frame in enumerate(looked):
            for face in frame.seen:
                if face.mouth_motion is not None:
                    motion.setdefault(face.face, []).append((index, face.mouth_motion))
        scores = {}
        for face, pairs in motion.items():
            where, moved = [index for index, _ in pairs], np.array([value for _, value in pairs])
            scores[face] = times[where], speaking_scores(moved, loudness[where], times[where])
        for row in rows:
            row["speaking"] = None
            if row["face_detected"] and row["face"] in scores:
                score = float(np.interp(row["time"], *scores[row["face"]]))
                row["speaking"] = None if math.isnan(score) else score


class JCAProcessor(ProcessorMixin):
    r"""
    Media to windows of clips: `model(**processor(videos="interview.mp4", return_tensors="pt"))`.

    Without arguments: the paper's 16 clips of 8 crops at 112x112, every 4th frame of a 32-frame span, each with the
    log-mel spectrogram of the same span.

    Args:
        feature_extractor ([`JCAFeatureExtractor`] or any audio feature extractor of Transformers, *optional*): makes what
            the audio encoder reads of the waveform of a clip.
        video_processor ([`JCAVideoProcessor`], *optional*).
        frame_rate (`float`, defaults to 30): frames a second of the grid on which clips are counted.
        clip_length (`int`, defaults to 8): crops in a clip; `clip_stride` (`int`, defaults to 4): grid frames between
            them. A clip spans `clip_length * clip_stride` frames.
        num_clips (`int`, defaults to 16): clips in a window, as the model's `config.num_clips`.
    """

    def __init__(
        self,
        feature_extractor: Any = None,
        video_processor: Any = None,
        frame_rate: float = 30.0,
        clip_length: int = 8,
        clip_stride: int = 4,
        num_clips: int = 16,
        **kwargs: Any,
    ):
        self.frame_rate = frame_rate
        self.clip_length, self.clip_stride = clip_length, clip_stride
        self.num_clips = num_clips
        super().__init__(feature_extractor or JCAFeatureExtractor(), video_processor or JCAVideoProcessor(), **kwargs)

    @classmethod
    def from_encoders(
        cls, video: str | os.PathLike | None = None, audio: str | os.PathLike | None = None, **kwargs: Any
    ) -> "JCAProcessor":
        """
        The processor for `JCAModel.from_encoders(video, audio)`: the visual encoder's picture size, colours and, if it has a
        fixed one, number of frames, spread over 32; the audio encoder's own feature extractor.

        Args:
            video, audio (`str` or `os.PathLike`, *optional*): folder or Hub repository of the encoder of a modality; left
                out, it is processed as by default.
            kwargs: arguments of [`JCAProcessor`], which go before what the encoders say.
        """
        settings = {}
        if audio is not None:
            settings["feature_extractor"] = AutoFeatureExtractor.from_pretrained(audio)
        if video is not None:
            config = AutoConfig.from_pretrained(video)
            config = getattr(config, "vision_config", config)
            settings["video_processor"] = JCAVideoProcessor.from_encoder(video, config)
            if num_frames := getattr(config, "num_frames", None):
                settings.update(clip_length=num_frames, clip_stride=max(1, 32 // num_frames))
        return cls(**{**settings, **kwargs})

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """
        The class that a part has to be of; for Transformers, which calls this of each.

        Args:
            argument_name, argument: name of the part, and what was given for it.

        Raises:
            TypeError: if it is of another class.
        """
        # Transformers has `VideoProcessorMixin` in its namespace only where torchvision is installed
        if argument_name == "video_processor":
            if not isinstance(argument, VideoProcessorMixin):
                raise TypeError(f"Received a {type(argument).__name__} for argument video_processor.")
            return VideoProcessorMixin
        return super().check_argument_for_proper_class(argument_name, argument)

    @property
    def model_input_names(self) -> list[str]:
        """What the model takes of that which this makes."""
        return ["pixel_values", self.audio_input_name, "video_mask", "audio_mask"]

    @property
    def audio_input_name(self) -> str:
        """The model's argument for audio: `input_features`, or `input_values` of encoders that read waveforms and of AST."""
        return self.feature_extractor.model_input_names[0]

    @property
    def span(self) -> int:
        """Grid frames of a clip."""
        return self.clip_length * self.clip_stride

    @property
    def block_length(self) -> int:
        """Grid frames of a block of windows, in which every clip stands once."""
        return self.num_clips * self.span

    @property
    def clip_samples(self) -> int:
        """Samples of the waveform of a clip."""
        return round(self.span * self.feature_extractor.sampling_rate / self.frame_rate)

    def plan(self, num_frames: int, hop: int = 8) -> list[list[int]]:
        """[`window_plan`] of a video of `num_frames` grid frames in this processor's sizes, with `hop` frames between the
        ends of the clips."""
        return window_plan(num_frames, hop, self.num_clips, self.span)

    def track_sizes(self, hop: int) -> tuple[int, int, int]:
        """Of a track, which has those of the grid frames that clips with this hop use: the `clip_length` of its clips, the
        `stride` from one frame of a clip to the next, and the `hop`, in frames of the track."""
        step = math.gcd(hop, self.clip_stride)
        return self.clip_length, self.clip_stride // step, hop // step

    def windows(
        self,
        source: Any,
        *,
        audio: np.ndarray | None = None,
        hop: int = 8,
        fps: float = 30.0,
        sampling_rate: int | None = None,
        crops_dir: str | os.PathLike | None = None,
        faces: str | Detector | None = None,
        limits: Limits | None = None,
        live: bool = False,
        speaking: bool = False,
        tracks: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """
        The windows of one video, as they come, in one pass over the file.

        Args:
            source: path, URL, bytes, binary file object or number of a camera, see [`open_media`]; or frames `(frames,
                height, width, 3)` uint8.
            audio (`np.ndarray` of shape `(samples,)`, *optional*): mono waveform that begins with the first frame, in
                place of the file's own.
            hop (`int`, defaults to 8): grid frames between the ends of the clips that are computed.
            fps (`float`, defaults to 30): frames a second of frames given as an array. For a file its own times hold.
            sampling_rate (`int`, *optional*): of `audio` in Hz; left out, the feature extractor's.
            crops_dir (`str`, *optional*): Aff-Wild2's folder of face crops `00001.jpg`, ... for the frames of the file;
                a missing one means that the frame has no face. The file's own pictures are not decoded then.
            faces (`str` or [`Detector`], *optional*): in place of the video processor's; a detector takes the place of the
                default one.
            limits ([`Limits`], *optional*): of size, length and time.
            live (`bool`, defaults to `False`): windows of the newest clip alone, as soon as it is complete.
            speaking (`bool`, defaults to `False`): rows of detected faces say whether the face speaks.
            tracks (`bool`, defaults to `False`): all windows of a block as one, for a model that reads tracks: each frame is
                there once, however many clips show it. Not with `live`.

        Yields:
            A dict of `face`, its id or None for the voice alone, `crops` `(clips, clip_length, size, size, 3)` uint8,
            `waveforms` `(clips, samples)` float32, `video_mask` and `audio_mask` `(clips,)` bool, `end_frames` `(clips,)` on
            the grid, and `rows`: empty but for the last window of a stretch of the video, which has the rows of all frames
            of the stretch, as the pipeline gives them, without outputs. [`JCAProcessor.inputs`] makes tensors of it. With
            `tracks` its `clips` are all of a block, by rising end frames, `crops` is `(frames, size, size, 3)`, first from
            the first frame of the first clip to the last of the last, `frame_mask` `(frames,)` says which show the face, and
            `clip_frames` `(clips, clip_length)` where the frames of each clip are, -1 if it shows no face.

        Raises:
            MediaError, ValueError, FileNotFoundError, IsADirectoryError: if an argument is wrong or the source can not be
                read.

        Warns:
            IncompleteMediaWarning: if the source ends before the end that it promises.
        """
        self.plan(0, hop)  # raises for a wrong hop before anything is opened
        if live and tracks:
            raise ValueError(
                "live=True gives clips one by one, and tracks=True all of a block at once: choose one of them."
            )
        look, max_lost = (None, 0.0) if crops_dir is not None else self.look(faces or self.video_processor.faces)
        events = self.events(source, audio, fps, sampling_rate, crops_dir, limits)
        yield from self.windows_of(events, hop, describe(source), look, max_lost, live, speaking, tracks)

    def look(self, faces: str | Detector) -> tuple[Look, float]:
        """
        How the faces of a frame are found and cut, and for how many seconds one may be lost and keep its id.

        Args:
            faces (`str` or [`Detector`]): as of [`JCAProcessor.windows`].

        Raises:
            ValueError: if `faces` is none of the names that are known, and can not be called.
        """
        if faces in ("center", "given"):

            def look(seconds: float, frame: "av.VideoFrame | None") -> list[Seen]:
                crop, box = (None, None) if frame is None else self.video_processor.crop(frame, faces)
                return [Seen(0, crop, box, faces == "given" and frame is not None)]

            return look, 0.0
        if faces != "detect" and not callable(faces):
            raise ValueError(f"faces={faces!r} is not known. Choose one of {', '.join(FACES)}, or give a detector.")
        tracker = FaceTracker(None if faces == "detect" else faces, self.video_processor.size)
        before: dict[int, np.ndarray] = {}  # crops of the last look

        def track(seconds: float, frame: "av.VideoFrame | None") -> list[Seen]:
            found = [] if frame is None else tracker(seconds, upright(frame))
            moved = {f.face: mouth_motion(before[f.face], f.crop) for f in found if f.face in before}
            before.clear()
            before.update({face.face: face.crop for face in found})
            return [Seen(f.face, f.crop, f.box, True, f.quality, moved.get(f.face)) for f in found]

        return track, tracker.max_lost_seconds

    def windows_of(
        self,
        events: Iterable[tuple[str, float, Any]],
        hop: int,
        name: str,
        look: Look | None = None,
        max_lost: float = 0.0,
        live: bool = False,
        speaking: bool = False,
        tracks: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """
        [`JCAProcessor.windows`] of what was decoded elsewhere.

        Args:
            events: `("has_audio", 0, bool)` first, then `("video", seconds, picture)` and `("audio", seconds, samples)` on
                one clock, each in its order; others, such as the `"end"` of [`decode`], are passed over. Without `look` a
                picture is the list of its [`Seen`], with it what that takes. Samples are mono float32 at the feature
                extractor's rate.
            hop (`int`): grid frames between the ends of the clips.
            name (`str`): of the source, for errors.
            look, max_lost, speaking: see [`WindowBuffer`].
            live, tracks (`bool`): see [`JCAProcessor.windows`].

        Raises:
            MediaError: if no picture came.
        """
        buffer = WindowBuffer(self, hop, look, max_lost, speaking)
        late = 0.0
        for kind, seconds, data in events:
            if kind == "audio":
                buffer.add_audio(seconds, data)
                length = len(data) / buffer.rate
                if buffer.start and seconds + length < buffer.origin + buffer.start / self.frame_rate:
                    late += length
            elif kind == "video":
                buffer.add_frame(seconds, data)
            elif kind == "has_audio":
                buffer.has_sound = data
            while buffer.newest is not None and buffer.ready(live):
                yield from buffer.pop_clips() if live else buffer.pop(tracks)
        if buffer.newest is None:
            raise MediaError(f"{name} holds no video frame that can be decoded: is the file complete?")
        buffer.finish()
        while buffer.num_rows_out < len(buffer.shown) or buffer.start < buffer.num_frames:
            last = buffer.start + (hop if live else self.block_length) >= buffer.num_frames
            yield from buffer.pop_clips(last) if live else buffer.pop(tracks, last)
        if late:
            why = f"{late:.2f} s of its sound came too far behind the pictures to be used"
            warnings.warn(f"{name}: {why}. Write it anew, interleaved.", IncompleteMediaWarning, stacklevel=2)

    def events(
        self,
        source: Any,
        audio: np.ndarray | None = None,
        fps: float = 30.0,
        sampling_rate: int | None = None,
        crops_dir: str | os.PathLike | None = None,
        limits: Limits | None = None,
    ) -> Iterator[tuple[str, float, Any]]:
        """
        What [`JCAProcessor.windows_of`] reads, of any source; arguments as of [`JCAProcessor.windows`].

        Raises:
            ValueError: if frames or audio have another shape or type.
            MediaError: as [`open_media`] and [`decode`].
        """
        rate = self.feature_extractor.sampling_rate
        if audio is not None:
            if np.ndim(audio) != 1 or not np.issubdtype(np.asarray(audio).dtype, np.floating):
                raise ValueError(
                    f"audio has shape {np.shape(audio)} and dtype {np.asarray(audio).dtype}; give a mono waveform "
                    "(samples,) of floats in [-1, 1]."
                )
            audio = resample(audio, sampling_rate or rate, rate)
        if not isinstance(source, (str, bytes, os.PathLike, int)) and not hasattr(source, "read"):
            pictures = np.asarray(source)
            if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
                raise ValueError(
                    f"Frames have shape {pictures.shape} and dtype {pictures.dtype}; give (frames, height, width, 3) uint8 "
                    "RGB, or the path, URL or bytes of one video."
                )
            yield "has_audio", 0.0, audio is not None
            if audio is not None:
                yield "audio", 0.0, audio
            for index, picture in enumerate(pictures):
                yield "video", index / fps, av.VideoFrame.from_ndarray(picture, format="rgb24")
            return
        crops = None
        if crops_dir is not None:
            crops = {int(path.stem): path for path in Path(crops_dir).glob("*.jpg") if path.stem.isdecimal()}
        limits = limits or Limits()
        with open_media(source, limits) as container:
            yield "has_audio", 0.0, audio is not None or streams_of(container)[1] is not None
            number = 0
            for kind, seconds, data in decode(container, rate, crops is not None, limits):
                if kind == "video":
                    number += 1  # Aff-Wild2's files count from 1
                    if number == 1 and audio is not None:
                        yield "audio", seconds, audio
                    if crops is not None:
                        data = [Seen(0, crops.get(number), None, number in crops)]
                elif kind == "audio" and audio is not None:
                    continue
                yield kind, seconds, data

    def audio_inputs(self, waveforms: np.ndarray) -> torch.Tensor:
        """`waveforms` `(clips, samples)` to what the audio encoder reads of each clip, `(clips, ...)`."""
        rate = self.feature_extractor.sampling_rate
        # Whisper's would pad to 30 s, which its encoder does by itself
        inputs = self.feature_extractor(waveforms, sampling_rate=rate, padding="longest", return_tensors="pt")
        return inputs[self.audio_input_name]

    def inputs(self, window: dict[str, Any]) -> dict[str, torch.Tensor]:
        """A window of [`JCAProcessor.windows`] to the model's inputs, with a batch dimension of 1; a track to those of
        [`JCAModel.forward_track`]."""
        ready = ("video_mask", "audio_mask", "frame_mask", "clip_frames")
        inputs = {name: torch.from_numpy(window[name])[None] for name in ready if name in window}
        if "crops" in window:
            inputs["pixel_values"] = self.video_processor(window["crops"])["pixel_values"][None]
        if "waveforms" in window:
            inputs[self.audio_input_name] = self.audio_inputs(window["waveforms"])[None]
        return inputs

    def __call__(
        self,
        videos: Any,
        audio: np.ndarray | None = None,
        *,
        fps: float = 30.0,
        sampling_rate: int | None = None,
        hop: int | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """
        All windows of one video as one batch: `pixel_values` `(batch, clips, clip_length, 3, size, size)`,
        `input_features` `(batch, clips, bands, steps)` or what else the feature extractor makes, `video_mask` and
        `audio_mask` `(batch, clips)`.

        Args:
            videos: path, URL, bytes or binary file object, whose audio is read with it; or frames `(frames, height,
                width, 3)` uint8.
            audio, fps, sampling_rate: see [`JCAProcessor.windows`].
            hop (`int`, *optional*): grid frames between the ends of the clips; left out, the span of a clip, so that
                windows and clips follow each other. Of one face, `processor.plan(frames, hop)` says where each ends; those
                of several stand one after another, and [`JCAProcessor.windows`] says whose each is.
            return_tensors (`str`, defaults to `"pt"`): tensors, or `"np"` for arrays.

        Raises:
            MediaError, ValueError, FileNotFoundError, IsADirectoryError: see [`JCAProcessor.windows`].
        """
        windows = self.windows(videos, audio=audio, hop=hop or self.span, fps=fps, sampling_rate=sampling_rate)
        inputs = [self.inputs(window) for window in windows]
        return BatchFeature(
            {name: torch.cat([part[name] for part in inputs]) for name in self.model_input_names},
            tensor_type=return_tensors,
        )


JCAProcessor.register_for_auto_class()
JCAFeatureExtractor.register_for_auto_class()
JCAVideoProcessor.register_for_auto_class("AutoVideoProcessor")

__all__ = ["JCAFeatureExtractor", "JCAProcessor", "JCAVideoProcessor", "clip_frames", "window_plan"]
