"""Media to model inputs: one PyAV pass over both streams, clips and windows, face crops, log-mel spectrograms.

Everything is placed by time on a grid of `frame_rate` (30) frames a second that starts with the first video frame; at
30 frames a second grid frames are the file's frames. Frames, samples and clips count from 0.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
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
    from .media_jca import Waveform, decode, decode_picture, describe, open_media, resample
except ImportError:  # installed or on sys.path: a top-level module
    from media_jca import Waveform, decode, decode_picture, describe, open_media, resample

FACES = ("center", "given")


# Clips and windows ---------------------------------------------------------------------------------------------------


def clip_frames(present: Sequence[int], length: int = 8, stride: int = 4) -> list[int]:
    """
    The `length` frames of a clip, out of those of its span that show a face (authors' code, T-BIOM repository).

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

    Raises:
        ValueError: if `hop` does not divide `span`.
    """
    if not (isinstance(hop, int) and hop >= 1 and span % hop == 0):
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


class Frame(NamedTuple):
    """What is known of one frame of the file: `time` in seconds from the first, `box` in its pixels (x0, y0, x1, y1)."""

    time: float
    box: list[float] | None
    face_detected: bool
    audio_present: bool


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
        floor (`float`, defaults to 1e-10): smallest power; `top_db` (`float`, defaults to 80): range below the loudest
            cell of the clip, in dB.
        mean (`float`, defaults to -14.8), std (`float`, defaults to 19.895): of the decibels.
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
        **kwargs,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.n_fft, self.win_length, self.hop_length = n_fft, win_length, hop_length
        self.floor, self.top_db = floor, top_db
        self.mean, self.std = mean, std

    def decibels(self, audio: torch.Tensor) -> torch.Tensor:
        """Waveforms `(..., samples)` to log-mel power in dB `(..., feature_size, 1 + samples // hop_length)`."""
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
        """`audio` `(..., samples)` to `input_features` `(..., feature_size, steps)`, normalised. `padding` is there for the
        call of Transformers' feature extractors: the waveforms of an array need none."""
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
        faces (`str`, defaults to `"center"`): `"center"`: frames are whole pictures, the crop is their central square
            and no face has been looked for; `"given"`: every frame is a face crop.
        image_mean, image_std (`list[float]`): of the colours in [0, 1]. Default: those of Kinetics-400 with which the
            visual encoder was trained (authors' code).
    """

    model_input_names = ["pixel_values"]
    size = 112
    faces = "center"
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
            source (`str` or `os.PathLike`): folder or Hub repository of the encoder; config (`PreTrainedConfig`): its.
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

    def crop(self, frame: "av.VideoFrame") -> tuple[np.ndarray, list[float]]:
        """A frame to its crop `(size, size, 3)` uint8 RGB and the box (x0, y0, x1, y1) of it in the frame's pixels."""
        width, height, size = frame.width, frame.height, self.size
        if self.faces == "given":
            return frame.to_ndarray(format="rgb24", width=size, height=size), [0.0, 0.0, float(width), float(height)]
        side = min(width, height)
        # scale first and then cut: one pass of the scaler, over no more pixels than needed
        scaled = frame.to_ndarray(format="rgb24", width=round(width * size / side), height=round(height * size / side))
        top, left = (scaled.shape[0] - size) // 2, (scaled.shape[1] - size) // 2
        y, x = height / scaled.shape[0], width / scaled.shape[1]
        crop = np.ascontiguousarray(scaled[top : top + size, left : left + size])
        return crop, [left * x, top * y, (left + size) * x, (top + size) * y]

    def preprocess(self, videos: Any, return_tensors: str | None = None) -> BatchFeature:
        """Crops `(..., height, width, 3)` uint8 to `pixel_values` `(..., 3, height, width)`, normalised."""
        # moved as bytes and scaled in place: a tenth of the time that three passes over floats take
        pixels = torch.as_tensor(np.asarray(videos)).movedim(-1, -3).contiguous().float()
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.image_mean, self.image_std))
        return BatchFeature({"pixel_values": pixels.mul_(1 / (255 * std)).sub_(mean / std)}, tensor_type=return_tensors)


# Both modalities -----------------------------------------------------------------------------------------------------


class WindowBuffer:
    """Collects the frames and samples of one video as they are decoded, and hands out its windows.

    Holds what the next block of windows needs, and what the file stores ahead of it, and forgets the rest.
    """

    def __init__(self, processor: "JCAProcessor", hop: int):
        self.processor, self.hop = processor, hop
        self.rate = processor.feature_extractor.sampling_rate
        self.block_length = processor.num_clips * processor.span
        self.sound = Waveform()
        self.grid, self.first = [], 0  # crops of the grid from frame `first` on
        self.start = 0  # grid frame with which the next block begins
        self.origin = None  # seconds of the first frame on the media's clock
        self.last = None  # (seconds from the first frame, crop) of the newest frame
        self.frames = []  # (seconds, box, face_detected) of the frames not yet handed out

    def _position(self, seconds: float) -> int:
        return round((self.origin + seconds) * self.rate)

    def _fill(self, stop: float) -> None:
        """The newest frame stands at every grid frame before `stop`."""
        while self.first + len(self.grid) < stop:
            self.grid.append(self.last[1])

    def add_audio(self, seconds: float, samples: np.ndarray) -> None:
        self.sound.write(round(seconds * self.rate), np.nan_to_num(samples))

    def add_frame(self, seconds: float, crop: Any, box: list[float] | None, face_detected: bool) -> None:
        if self.origin is None:
            self.origin = seconds
        else:  # a grid frame shows the frame that is nearest in time
            self._fill((self.last[0] + (seconds - self.origin)) / 2 * self.processor.frame_rate)  # as `nearest_frames`
        self.last = (seconds - self.origin, crop)
        self.frames.append((seconds - self.origin, box, face_detected))

    def finish(self) -> None:
        self._fill(round(self.last[0] * self.processor.frame_rate) + 1)

    def ready(self, has_audio: bool) -> bool:
        """Whether all that the next block needs has come."""
        stop = self.start + self.block_length
        return self.first + len(self.grid) >= stop and (
            not has_audio or self.sound.end >= self._position(stop / self.processor.frame_rate)
        )

    def pop(self) -> Iterator[dict[str, Any]]:
        """The windows of the next block."""
        num_frames = self.first + len(self.grid)
        for ends in self.processor.plan(min(num_frames - self.start, self.block_length), self.hop):
            yield self.window([self.start + end for end in ends], num_frames)
        self.start += self.block_length
        keep = self.start - self.processor.span + 1
        del self.grid[: keep - self.first]
        self.first = keep
        self.sound.forget(self._position(keep / self.processor.frame_rate))

    def window(self, ends: list[int], num_frames: int) -> dict[str, Any]:
        """The window of the clips that end with grid frames `ends` of a video of `num_frames`, as of
        `JCAProcessor.windows`."""
        crops = [self.clip_crops(end, num_frames) for end in ends]
        waveforms = [self.clip_waveform(end, num_frames) for end in ends]
        period = 1 / self.processor.frame_rate
        frames, self.frames = (
            [
                Frame(time, box, found, self.sound.read(self._position(time), self._position(time + period))[1])
                for time, box, found in self.frames
            ],
            [],
        )
        return {
            "crops": np.stack([clip for clip, _ in crops]),
            "waveforms": np.stack([clip for clip, _ in waveforms]),
            "video_mask": np.array([found for _, found in crops]),
            "audio_mask": np.array([found for _, found in waveforms]),
            "end_frames": np.array(ends),
            "frames": frames,
        }

    def clip_crops(self, end: int, num_frames: int) -> tuple[np.ndarray, bool]:
        """Crops `(clip_length, size, size, 3)` of the clip that ends with grid frame `end` of a video of `num_frames`, and
        whether they show a face."""
        processor, size = self.processor, self.processor.video_processor.size
        span = range(max(end - processor.span + 1, 0), min(end + 1, num_frames))
        faces = [g for g in span if self.grid[g - self.first] is not None]
        chosen = clip_frames(faces, processor.clip_length, processor.clip_stride)
        if not chosen:
            return np.zeros((processor.clip_length, size, size, 3), np.uint8), False
        for g in set(chosen):
            if not isinstance(crop := self.grid[g - self.first], np.ndarray):  # loaded once, when first needed
                self.grid[g - self.first] = decode_picture(crop, size)
        return np.stack([self.grid[g - self.first] for g in chosen]), True

    def clip_waveform(self, end: int, num_frames: int) -> tuple[np.ndarray, bool]:
        """Waveform `(samples,)` of the same clip, and whether it holds sound; a clip that lies wholly beyond the video has
        none."""
        low = end - self.processor.span + 1
        start = self._position(low / self.processor.frame_rate)
        waveform, audible = self.sound.read(start, start + self.processor.clip_samples)
        return waveform, audible and low < num_frames


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
        feature_extractor=None,
        video_processor=None,
        frame_rate: float = 30.0,
        clip_length: int = 8,
        clip_stride: int = 4,
        num_clips: int = 16,
        **kwargs,
    ):
        self.frame_rate = frame_rate
        self.clip_length, self.clip_stride = clip_length, clip_stride
        self.num_clips = num_clips
        super().__init__(feature_extractor or JCAFeatureExtractor(), video_processor or JCAVideoProcessor(), **kwargs)

    @classmethod
    def from_encoders(
        cls, video: str | os.PathLike | None = None, audio: str | os.PathLike | None = None, **kwargs
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

    def check_argument_for_proper_class(self, argument_name, argument):
        # Transformers has `VideoProcessorMixin` in its namespace only where torchvision is installed
        if argument_name == "video_processor":
            if not isinstance(argument, VideoProcessorMixin):
                raise TypeError(f"Received a {type(argument).__name__} for argument video_processor.")
            return VideoProcessorMixin
        return super().check_argument_for_proper_class(argument_name, argument)

    @property
    def model_input_names(self) -> list[str]:
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
    def clip_samples(self) -> int:
        """Samples of the waveform of a clip."""
        return round(self.span * self.feature_extractor.sampling_rate / self.frame_rate)

    def plan(self, num_frames: int, hop: int = 8) -> list[list[int]]:
        """[`window_plan`] of a video of `num_frames` grid frames in this processor's sizes."""
        return window_plan(num_frames, hop, self.num_clips, self.span)

    def windows(
        self,
        source: Any,
        *,
        audio: np.ndarray | None = None,
        hop: int = 8,
        fps: float = 30.0,
        sampling_rate: int | None = None,
        crops_dir: str | os.PathLike | None = None,
    ) -> Iterator[dict[str, Any]]:
        """
        The windows of one video, as they come, in one pass over the file.

        Args:
            source: path, URL, bytes or binary file object; or frames `(frames, height, width, 3)` uint8.
            audio (`np.ndarray` of shape `(samples,)`, *optional*): mono waveform that begins with the first frame, in
                place of the file's own.
            hop (`int`, defaults to 8): grid frames between the ends of the clips that are computed.
            fps (`float`, defaults to 30): rate of frames given as an array. For a file its own times hold.
            sampling_rate (`int`, *optional*): of `audio` in Hz; left out, the feature extractor's.
            crops_dir (`str`, *optional*): Aff-Wild2's folder of face crops `00001.jpg`, ... for the frames of the file;
                a missing one means that the frame has no face. The file's own pictures are not decoded then.

        Yields:
            A dict of `crops` `(clips, clip_length, size, size, 3)` uint8, `waveforms` `(clips, samples)` float32,
            `video_mask` and `audio_mask` `(clips,)` bool, `end_frames` `(clips,)` on the grid, and `frames`, a list of
            [`Frame`]: the frames of the file that were read since the last window. [`JCAProcessor.inputs`] makes
            tensors of it.

        Raises:
            ValueError, FileNotFoundError, IsADirectoryError: if an argument is wrong or the source can not be read.
        """
        self.plan(0, hop)  # raises for a wrong hop before anything is opened
        yield from self.windows_of(self.events(source, audio, fps, sampling_rate, crops_dir), hop, describe(source))

    def windows_of(self, events: Iterable[tuple[str, float, Any]], hop: int, name: str) -> Iterator[dict[str, Any]]:
        """
        [`JCAProcessor.windows`] of what was decoded elsewhere.

        Args:
            events: `("has_audio", 0, bool)` first, then `("video", seconds, (crop, box, face_detected))` and `("audio",
                seconds, samples)` on one clock, each in its order. A crop is `(size, size, 3)` uint8, a picture's bytes or
                path, which is read only if a clip needs it, or None where there is no face; samples are mono float32 at the
                feature extractor's rate.
            hop (`int`): grid frames between the ends of the clips.
            name (`str`): of the source, for errors.
        """
        buffer, has_audio = WindowBuffer(self, hop), False
        for kind, seconds, data in events:
            if kind == "audio":
                has_audio = True
                buffer.add_audio(seconds, data)
            elif kind == "video":
                buffer.add_frame(seconds, *data)
            else:
                has_audio = data
            if buffer.ready(has_audio):
                yield from buffer.pop()
        if buffer.last is None:
            raise ValueError(f"{name} holds no video frame that can be decoded: is the file complete?")
        buffer.finish()
        while buffer.start < buffer.first + len(buffer.grid):
            yield from buffer.pop()

    def events(
        self,
        source: Any,
        audio: np.ndarray | None = None,
        fps: float = 30.0,
        sampling_rate: int | None = None,
        crops_dir: str | os.PathLike | None = None,
    ) -> Iterator[tuple[str, float, Any]]:
        """What [`JCAProcessor.windows_of`] reads, of any source; arguments as of [`JCAProcessor.windows`]."""
        rate, given = self.feature_extractor.sampling_rate, self.video_processor.faces == "given"
        if audio is not None:
            if np.ndim(audio) != 1 or not np.issubdtype(np.asarray(audio).dtype, np.floating):
                raise ValueError(
                    f"audio has shape {np.shape(audio)} and dtype {np.asarray(audio).dtype}; give a mono waveform "
                    "(samples,) of floats in [-1, 1]."
                )
            audio = resample(audio, sampling_rate or rate, rate)
        if not isinstance(source, (str, bytes, os.PathLike)) and not hasattr(source, "read"):
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
                crop, box = self.video_processor.crop(av.VideoFrame.from_ndarray(picture, format="rgb24"))
                yield "video", index / fps, (crop, box, given)
            return
        crops = None
        if crops_dir is not None:
            crops = {int(path.stem): path for path in Path(crops_dir).glob("*.jpg") if path.stem.isdecimal()}
        with open_media(source) as container:
            yield "has_audio", 0.0, audio is not None or bool(container.streams.audio)
            number = 0
            for kind, seconds, data in decode(container, rate, timing_only=crops is not None):
                if kind == "audio":
                    if audio is None:
                        yield kind, seconds, data
                    continue
                number += 1  # Aff-Wild2's files count from 1
                if number == 1 and audio is not None:
                    yield "audio", seconds, audio
                if crops is None and data is None:
                    yield kind, seconds, (None, None, False)
                elif crops is None:
                    crop, box = self.video_processor.crop(data)
                    yield kind, seconds, (crop, box, given)
                else:
                    yield kind, seconds, (crops.get(number), None, number in crops)

    def audio_inputs(self, waveforms: np.ndarray) -> torch.Tensor:
        """Waveforms `(clips, samples)` to what the audio encoder reads of each clip, `(clips, ...)`."""
        rate = self.feature_extractor.sampling_rate
        # Whisper's would pad to 30 s, which its encoder does by itself
        inputs = self.feature_extractor(waveforms, sampling_rate=rate, padding="longest", return_tensors="pt")
        return inputs[self.audio_input_name]

    def inputs(self, window: dict[str, Any]) -> dict[str, torch.Tensor]:
        """A window of [`JCAProcessor.windows`] to the model's inputs, with a batch dimension of 1."""
        return {
            "pixel_values": self.video_processor(window["crops"])["pixel_values"][None],
            self.audio_input_name: self.audio_inputs(window["waveforms"])[None],
            "video_mask": torch.from_numpy(window["video_mask"])[None],
            "audio_mask": torch.from_numpy(window["audio_mask"])[None],
        }

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
                windows and clips follow each other and `processor.plan(frames, hop)` says where each ends.
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

__all__ = ["Frame", "JCAFeatureExtractor", "JCAProcessor", "JCAVideoProcessor", "clip_frames", "window_plan"]
