"""Media -> pictures and samples: one PyAV pass over both streams of a file, on one clock, in constant memory."""

import heapq
import io
import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging


try:  # not at the mercy of `check_imports`: arrays of features need no decoder
    import av
except ImportError:
    av = None

logger = logging.get_logger(__name__)

AUDIO_GAP_SECONDS = 0.05  # a jump of the audio clock above this is a gap, below it is jitter of the container
ONE_PICTURE_A_PACKET = ("h264", "hevc", "mjpeg", "vp9", "av1")  # codecs in which none is hidden or empty
REORDER_FRAMES = 16  # H.264 and HEVC show at most so many frames in another order than they store them


class Waveform:
    """Mono samples that arrive in pieces, addressed by their position on the media's clock (seconds * sampling rate)."""

    def __init__(self):
        self.starts: list[int] = []  # of the pieces, rising
        self.pieces: list[np.ndarray] = []
        self.longest = 0  # samples of the longest piece: none that starts further ahead reaches a position
        self.end = -float("inf")

    def write(self, start: int, samples: np.ndarray) -> None:
        index = bisect_right(self.starts, start)
        self.starts.insert(index, start)
        self.pieces.insert(index, samples)
        self.longest = max(self.longest, len(samples))
        self.end = max(self.end, start + len(samples))

    def read(self, start: int, stop: int) -> tuple[np.ndarray, bool]:
        """Samples `(stop - start,)`, zero where there are none, and whether there are any."""
        out, found = np.zeros(stop - start, np.float32), False
        for index in range(bisect_left(self.starts, start - self.longest), bisect_left(self.starts, stop)):
            position, samples = self.starts[index], self.pieces[index]
            low, high = max(start, position), min(stop, position + len(samples))
            if low < high:
                out[low - start : high - start] = samples[low - position : high - position]
                found = True
        return out, found

    def forget(self, before: int) -> None:
        index = bisect_left(self.starts, before - self.longest)
        del self.starts[:index], self.pieces[:index]


def describe(source: Any) -> str:
    """A source as an error names it."""
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    if isinstance(source, np.ndarray):
        return f"<array of shape {source.shape}>"
    # a path from a NumPy array has a class of its own, which says nothing
    return repr(str(source) if isinstance(source, (str, os.PathLike)) else source)


def open_media(source: Any) -> "av.container.InputContainer":
    """
    Open a path, URL, bytes or binary file object.

    Raises:
        ImportError: without PyAV.
        FileNotFoundError, IsADirectoryError: if the path is none of a file.
        ValueError: if FFmpeg finds no media in it, or no video stream.
    """
    if av is None:
        raise ImportError("Reading media needs PyAV: pip install av")
    name = describe(source)
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    elif isinstance(source, os.PathLike):
        source = os.fspath(source)
    if isinstance(source, str) and "://" not in source:
        if os.path.isdir(source):
            raise IsADirectoryError(f"{name} is a folder: give a video file.")
        if not os.path.exists(source):
            raise FileNotFoundError(f"There is no file {name}: give the path or URL of a video.")
    try:
        container = av.open(source)
    except (av.error.FFmpegError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"{name} can not be opened as media ({why}): give a file that FFmpeg can play.") from error
    if not container.streams.video or container.streams.video[0].codec_context is None:
        streams = ", ".join(stream.type for stream in container.streams) or "none"
        container.close()
        raise ValueError(f"{name} has no video stream that can be decoded (streams: {streams}): give a video.")
    return container


def decode(container: "av.container.InputContainer", sampling_rate: int, timing_only: bool = False) -> Iterator[tuple]:
    """
    Both streams in one pass, in the order of the file, in constant memory.

    Yields `("video", seconds, av.VideoFrame)` and `("audio", seconds, samples)`, the samples mono float32 at
    `sampling_rate` Hz. A picture that can not be decoded keeps its place as None; with `timing_only` none is decoded and
    all come so.
    """
    video, audio = container.streams.video[0], next(iter(container.streams.audio), None)
    video.thread_type = "AUTO"
    rate = float(video.average_rate or video.guessed_rate or 30)
    last_time = None
    keeps_places = video.codec_context.name in ONE_PICTURE_A_PACKET
    waiting, number = [], 0  # times of packets come in storage order: a heap brings them in order
    resampler, position, expected = None, 0, None
    for packet in container.demux([video, audio] if audio else [video]):
        if packet.stream is video and packet.size and not packet.is_discard:
            number += 1
            heapq.heappush(waiting, number / rate if packet.pts is None else float(packet.pts * packet.time_base))
        if packet.stream is video and timing_only:
            while waiting and (len(waiting) > REORDER_FRAMES or not packet.size):  # the last packet is empty
                yield "video", heapq.heappop(waiting), None
            continue
        try:
            decoded = packet.decode()
        except av.error.InvalidDataError as error:
            logger.warning(f"{container.name}: a damaged {packet.stream.type} packet ({error.strerror}).")
            continue
        for frame in decoded:
            if packet.stream is video:
                time = frame.time
                if time is None or (last_time is not None and time <= last_time):  # no clock, or one that steps back
                    time = 0.0 if last_time is None else last_time + 1 / rate
                    keeps_places = False
                while waiting and waiting[0] <= time:
                    missing = heapq.heappop(waiting)
                    if keeps_places and missing < time:  # a later one has come
                        yield "video", missing, None
                last_time = time
                yield "video", time, frame
            else:
                time = frame.time if frame.time is not None else expected or 0.0
                if expected is None or abs(time - expected) > AUDIO_GAP_SECONDS:
                    for piece in resampler.resample(None) if resampler else ():
                        yield "audio", position / sampling_rate, piece.to_ndarray()[0]
                    resampler = av.AudioResampler(format="flt", layout="mono", rate=sampling_rate)
                    position = round(time * sampling_rate)
                    expected = time
                expected += frame.samples / frame.sample_rate
                for piece in resampler.resample(frame):
                    yield "audio", position / sampling_rate, piece.to_ndarray()[0]
                    position += piece.samples
    for time in sorted(waiting) if keeps_places else ():
        yield "video", time, None
    for piece in resampler.resample(None) if resampler else ():
        yield "audio", position / sampling_rate, piece.to_ndarray()[0]


def resample(samples: np.ndarray, sampling_rate: int, target_rate: int) -> np.ndarray:
    """Mono float `(samples,)` from one rate to another (Hz), by the resampler that decodes media."""
    if sampling_rate == target_rate:
        return samples.astype(np.float32)
    frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], format="flt", layout="mono")
    frame.sample_rate = sampling_rate
    resampler = av.AudioResampler(format="flt", layout="mono", rate=target_rate)
    return np.concatenate([p.to_ndarray()[0] for p in [*resampler.resample(frame), *resampler.resample(None)]])


_pictures = threading.local()  # a decoder and a scaler: made anew for each picture they cost ten times the decoding


def decode_picture(source: bytes | str | os.PathLike, size: int) -> np.ndarray:
    """
    A picture file or its bytes to `(size, size, 3)` uint8 RGB.

    Raises:
        ValueError: if it is no picture, or a JPEG that is cut off or damaged.
        OSError: if the file can not be read.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not hasattr(_pictures, "scaler"):
        _pictures.scaler = av.video.reformatter.VideoReformatter()
        _pictures.jpeg = av.CodecContext.create("mjpeg", "r")
        _pictures.jpeg.thread_count = 1
        _pictures.jpeg.options = {"err_detect": "explode"}  # FFmpeg would fill a damaged part with grey
    try:
        if data.startswith(b"\xff\xd8"):
            (frame,) = _pictures.jpeg.decode(av.Packet(data))
        else:
            with av.open(io.BytesIO(data)) as container:
                frame = next(container.decode(video=0))
    except (av.error.FFmpegError, ValueError, IndexError, StopIteration) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(
            f"The crop {describe(source)} can not be read as a picture ({why}): mend or remove it."
        ) from error
    return _pictures.scaler.reformat(frame, size, size, "rgb24", threads=1).to_ndarray()
