"""Open media -> pictures and samples: one PyAV pass over both streams, on one clock, in constant memory."""

import heapq
import io
import math
import os
import threading
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np


try:  # not at the mercy of `check_imports`: arrays of features need no decoder
    import av
except ImportError:
    av = None

try:  # copied next to the weights: part of a `transformers_modules.*` package
    from .sources_jca import (
        LIMITS,
        Limits,
        MediaError,
        MediaLimitError,
        check_size,
        describe,
        promises,
        refuse,
        streams_of,
        warn,
    )
except ImportError:  # installed or on sys.path: a top-level module
    from sources_jca import (
        LIMITS,
        Limits,
        MediaError,
        MediaLimitError,
        check_size,
        describe,
        promises,
        refuse,
        streams_of,
        warn,
    )

AUDIO_GAP_SECONDS = 0.05  # a jump of the audio clock above this is a gap, below it is jitter of the container
AUDIO_DRIFT_SECONDS = 0.01  # unless it stays: by which sound is late or early on average over some twenty packets
# codecs in which none is hidden or empty
ONE_PICTURE_A_PACKET = ("h264", "hevc", "mjpeg", "vp9", "av1", "prores", "dnxhd", "ffv1")
REORDER_FRAMES = 16  # H.264 and HEVC show at most so many frames in another order than they store them
MISSING_SECONDS = 0.5  # by which containers round what they promise
LOUDEST = 100.0  # 40 dB above full scale: no sound is, what a damaged packet decodes to may be
LOWEST_RATE = 1000  # Hz: a header with less is damaged, and a second of it would become hours
JUMP_SECONDS = 10.0  # by which a clock that goes on may step at most: twice what interleaving needs
PAUSE_SECONDS = 3600.0  # longest picture of a screen recording, in containers whose clock never starts anew
MOST_WAITING = 128  # pictures that a decoder holds back, on many threads
MOST_STRETCHED = 4  # width of a pixel to its height, above which a header is damaged
UNSPECIFIED = 2  # colour space, FFmpeg's number

PICTURE_FORMATS = "jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,tiff_pipe,gif_pipe,gif,apng"
RESTARTING_FORMATS = ("mpegts", "mpeg")  # whose clock may start anew in the middle: joined recordings, DVDs
FRAGMENTED = "mov,mp4,m4a,3gp,3g2,mj2"  # the format whose files may be
# FFmpeg's SWS_BILINEAR, _ACCURATE_RND and _FULL_CHR_H_INT, without which white is grey
SCALING = 0x2 | 0x40000 | 0x2000


class Waveform:
    """Mono samples that arrive in pieces, addressed by their position on the media's clock (seconds * sampling rate)."""

    def __init__(self) -> None:
        self.starts: list[int] = []  # of the pieces, rising
        self.pieces: list[np.ndarray] = []
        self.longest = 0  # samples of the longest piece: none that starts further ahead reaches a position
        self.end = -float("inf")

    def write(self, start: int, samples: np.ndarray) -> None:
        """Take samples `(n,)`, of which the first stands at `start`."""
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
        """Let go of pieces that end before a position."""
        index = bisect_left(self.starts, before - self.longest)
        del self.starts[:index], self.pieces[:index]


# Decoding ------------------------------------------------------------------------------------------------------------


class Packets:
    """
    The packets of a container in its order, until its end or an error, on a clock that goes on where its own starts anew.

    Then `seconds` says where what came ends, and `missing` how much the header promises beyond that.
    """

    def __init__(self, container: "av.container.InputContainer", name: str, limits: Limits):
        self.container, self.name, self.limits = container, name, limits
        self.streams = [stream for stream in streams_of(container) if stream]
        self.promises = promises(container)
        self.restarts = container.format.name in RESTARTING_FORMATS
        self.offset = 0.0  # seconds by which the container's clock is behind
        self.newest: dict[int, float] = {}  # by stream, seconds of its newest packet
        self.ends: dict[int, float] = {}  # by stream, where what is shown of it ends
        self.counts: Counter[int] = Counter()
        self.start: float | None = None
        self.cut: dict[int, bool] = {}  # by stream, whether its last packet is
        self.error: Exception | None = None

    def __iter__(self) -> "Iterator[av.Packet]":
        try:
            for packet in self.container.demux():
                if packet.dts is not None or packet.pts is not None or packet.size:  # else it is PyAV's, at the end
                    self.counts[packet.stream.index] += 1
                    self.place(packet)
                if packet.size:  # without, it would end the decoder's stream
                    self.cut[packet.stream.index] = packet.is_corrupt
                    yield packet
        except MediaError:
            raise
        except IndexError:
            pass  # PyAV's at the end, if a stream appeared on the way
        except (av.error.FFmpegError, OSError) as error:
            self.error = error

    def place(self, packet: "av.Packet") -> None:
        """
        Puts a packet on the clock that goes on, and notes how far that is.

        Raises:
            MediaLimitError: if it lies beyond `limits.max_seconds`.
        """
        ticks = packet.pts if packet.dts is None else packet.dts
        if ticks is None or not packet.time_base:
            return
        index, unit = packet.stream.index, float(packet.time_base)
        length, seconds = min((packet.duration or 0) * unit, PAUSE_SECONDS), ticks * unit
        latest = max(self.newest.values(), default=seconds)
        own, end = self.newest.get(index, latest), max(self.promises.values(), default=None)
        pause = JUMP_SECONDS if self.restarts else PAUSE_SECONDS
        allowed = max(latest, end) + JUMP_SECONDS if end else latest + pause
        back = index in self.newest and seconds + self.offset < own - JUMP_SECONDS
        if back or seconds + self.offset > allowed:
            if packet.stream not in self.streams:
                return  # subtitles, data: their clock may be another
            self.offset = own + min(length, 1.0) - seconds
        if packet.pts is not None:
            ahead = (packet.pts - ticks) * unit  # of when it is stored it is shown, within the same bounds
            if not -JUMP_SECONDS <= ahead <= min(pause, allowed - seconds - self.offset):
                packet.pts = packet.dts
        shift = round(self.offset / unit)
        if shift and packet.pts is not None:
            packet.pts += shift
        if shift and packet.dts is not None:
            packet.dts += shift
        self.newest[index] = seconds + self.offset
        if not packet.is_discard:  # what an edit list cuts away is not shown
            shown = (ticks + shift if packet.pts is None else packet.pts) * unit
            self.ends[index] = max(self.ends.get(index, shown), shown + length)
            self.start = shown if self.start is None else self.start
            if self.limits.max_seconds is not None and shown - self.start > self.limits.max_seconds:
                raise MediaLimitError(
                    f"{self.name} is longer than {self.limits.max_seconds:,.0f} s: give a shorter one or a larger "
                    "Limits.max_seconds."
                )

    @property
    def seconds(self) -> float:
        """Time (s) at which what has come ends."""
        return max(self.ends.values(), default=0.0)

    @property
    def missing(self) -> float:
        """Seconds that were promised and did not come; infinite where it broke off and nothing says how far it went."""
        late = max(
            (end - self.ends.get(index, 0.0) for index, end in self.promises.items() if index is not None), default=0.0
        )
        late = max(late, self.promises.get(None, 0.0) - self.seconds)
        broke_off = late > MISSING_SECONDS or self.error is not None or any(self.cut.values())
        fragmented = self.container.format.name == FRAGMENTED and not any(stream.frames for stream in self.streams)
        if fragmented or not self.promises:  # a fragment speaks for itself alone
            return float("inf") if broke_off else 0.0
        return late if late > MISSING_SECONDS else 0.0


class Voice:
    """Decoded audio of any rate and layout to mono float32 at `sampling_rate` Hz."""

    def __init__(self, sampling_rate: int):
        self.sampling_rate = sampling_rate
        self.resampler, self.kind = None, None
        self.position, self.expected = 0, 0.0  # of the next sample out; seconds of the next frame in
        self.drift = 0.0  # seconds by which frames come later than expected

    def pieces(self, frame: "av.AudioFrame | None") -> Iterator[tuple[float, np.ndarray]]:
        """`(seconds, samples)` of a frame; None for what is held back at the end."""
        if frame is not None:
            time = self.expected if frame.time is None else frame.time
            kind = (frame.format.name, frame.layout.name, frame.sample_rate)
            jump = time - self.expected
            self.drift += (jump - self.drift) / 20
            if kind != self.kind or abs(jump) > AUDIO_GAP_SECONDS or abs(self.drift) > AUDIO_DRIFT_SECONDS:
                yield from self.push(None)
                self.resampler = av.AudioResampler(format="flt", layout="mono", rate=self.sampling_rate)
                self.kind, self.position = kind, round(time * self.sampling_rate)
                self.expected, self.drift = time, 0.0
            self.expected += frame.samples / frame.sample_rate
        yield from self.push(frame)

    def push(self, frame: "av.AudioFrame | None") -> Iterator[tuple[float, np.ndarray]]:
        """Times (s) and mono samples `(n,)` of a frame, or with None of what is left."""
        try:
            pieces = self.resampler.resample(frame) if self.resampler else ()
        except av.error.FFmpegError:
            self.resampler = self.kind = None  # it can not go on
            raise
        for piece in pieces:
            samples = piece.to_ndarray()[0]
            yield self.position / self.sampling_rate, np.where(np.abs(samples) < LOUDEST, samples, np.float32(0))
            self.position += len(samples)


def decode(
    container: "av.container.InputContainer", sampling_rate: int, timing_only: bool = False, limits: Limits = LIMITS
) -> Iterator[tuple]:
    """
    Both streams in one pass, in the order of the file, in constant memory.

    Yields `("video", seconds, av.VideoFrame)` and `("audio", seconds, samples)`, the samples mono float32 at
    `sampling_rate` Hz. A picture that can not be decoded keeps its place as None; with `timing_only` none is decoded and
    all come so. Damaged packets and a file that ends early are an [`IncompleteMediaWarning`], once for all of it.

    The last is `("end", seconds, missing)`: where the media end, and the seconds that their header promises beyond: 0 if
    all have come or it promises nothing, infinity if the reading broke off and nothing says how much is lost.

    Raises:
        MediaError: if no picture can be decoded.
        MediaLimitError: if a picture is larger, or all of it longer, than `limits`.
    """
    video, audio = streams_of(container)
    name = container.name if container.name.startswith("<") else describe(container.name)
    packets, voice = Packets(container, name, limits), Voice(sampling_rate)
    rate = float(video.average_rate or video.guessed_rate or 30)
    aspect, coded_aspect = video.sample_aspect_ratio, video.codec_context.sample_aspect_ratio
    keeps_places = video.codec_context.name in ONE_PICTURE_A_PACKET
    waiting, number = [], 0  # times of packets come in storage order: a heap brings them in order
    last_time, seen = -math.inf, timing_only
    damaged: dict[int, tuple[int, str]] = {}  # by stream, how many packets and why the first
    for packet in chain(packets, (flush(stream) for stream in (video, audio) if stream)):
        stream, decoded = packet.stream, []
        if stream is video and packet.size and not packet.is_discard:
            number += 1
            heapq.heappush(waiting, number / rate if packet.pts is None else float(packet.pts * packet.time_base))
        if stream is audio or (stream is video and not timing_only):
            try:
                frames = packet.decode()
                if stream is audio:
                    frames = [piece for f in frames if f.sample_rate >= LOWEST_RATE for piece in voice.pieces(f)]
                decoded = frames
            except av.error.FFmpegError as error:
                check_size(video.codec_context, name, limits)
                count, why = damaged.get(stream.index, (0, error.strerror))
                damaged[stream.index] = count + 1, why
        if stream is audio:
            for seconds, samples in decoded:
                yield "audio", seconds, samples
            continue
        for frame in decoded:
            seen, time = True, frame.time
            if time is None or time <= last_time:  # no clock, or one that steps back
                time = 0.0 if math.isinf(last_time) else last_time + 1 / rate
                keeps_places = False
            while waiting and waiting[0] <= time:
                missing = heapq.heappop(waiting)
                if keeps_places and last_time < missing < time:  # a later one has come
                    last_time = missing
                    yield "video", missing, None
            last_time = time
            if (coded := video.codec_context.sample_aspect_ratio) and coded != coded_aspect:
                aspect = coded  # a broadcast changes it on the way
            frame.opaque = (aspect,)  # the shape of its pixels, which PyAV does not give
            yield "video", time, frame
        ended = stream is video and not packet.size
        if ended and not (seen and number):
            why = f" ({damaged[video.index][1]})" if video.index in damaged else ""
            raise MediaError(f"{name} holds no video frame that can be decoded{why}: is the file complete?")
        held = 0 if ended else REORDER_FRAMES if timing_only else MOST_WAITING
        while len(waiting) > held:
            time = heapq.heappop(waiting)
            if timing_only and time <= last_time:
                time = last_time + 1 / rate
            if time > last_time and (timing_only or keeps_places):
                last_time = time
                yield "video", time, None
    for seconds, samples in voice.pieces(None):
        yield "audio", seconds, samples
    for index, (count, why) in damaged.items():
        kind = container.streams[index].type
        warn(f"{name}: {count:,} of {packets.counts[index]:,} {kind} packets are damaged ({why}) and left out.")
    seconds, missing = max(packets.seconds, last_time + 1 / rate), packets.missing  # without timestamps, as counted
    if missing:
        lacks = "breaks off" if math.isinf(missing) else f"lacks {missing:.1f} s that its header promises and ends"
        why = f" ({getattr(packets.error, 'strerror', None) or packets.error})" if packets.error else ""
        warn(f"{name} {lacks} after {seconds - (packets.start or 0):.1f} s{why}: is the file complete?")
    yield "end", seconds, missing


def flush(stream: "av.VideoStream | av.AudioStream") -> "av.Packet":
    """What has a decoder give out what it holds back."""
    packet = av.Packet()
    packet.stream, packet.time_base = stream, stream.time_base
    return packet


def resample(samples: np.ndarray, sampling_rate: int, target_rate: int) -> np.ndarray:
    """Mono float samples `(n,)` from one rate to another (Hz), by the resampler that decodes media: `(n * target_rate /
    sampling_rate,)` float32, about."""
    if sampling_rate == target_rate:
        return samples.astype(np.float32)
    frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], format="flt", layout="mono")
    frame.sample_rate = sampling_rate
    resampler = av.AudioResampler(format="flt", layout="mono", rate=target_rate)
    return np.concatenate([p.to_ndarray()[0] for p in [*resampler.resample(frame), *resampler.resample(None)]])


# Pictures ------------------------------------------------------------------------------------------------------------

_pictures = threading.local()  # a decoder and a scaler: made anew for each picture they cost ten times the decoding


def scaler() -> "av.video.reformatter.VideoReformatter":
    """This thread's own."""
    if not hasattr(_pictures, "scaler"):
        _pictures.scaler = av.video.reformatter.VideoReformatter()
    return _pictures.scaler


def display_matrix(frame: "av.VideoFrame") -> list[int]:
    """
    Where a stored pixel is shown: `[a, b, c, d]` so that (x, y) stands at (a x + c y, b x + d y), up to scale and shift, as
    of an mp4's track (ISO/IEC 14496-12, 8.3.2).
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return np.frombuffer(bytes(matrix), np.int32)[[0, 1, 3, 4]].tolist() if matrix else [1, 0, 0, 1]


def is_turned(matrix: list[int]) -> bool:
    """Whether width and height change places."""
    a, b, c, d = matrix
    return abs(b) + abs(c) > abs(a) + abs(d)


def display_size(frame: "av.VideoFrame") -> tuple[int, int]:
    """`(width, height)` in px of a frame as a player shows it: turned upright, with square pixels, of which it has as many
    as are stored or more."""
    width, height = frame.width, frame.height
    aspect = frame.opaque[0] if isinstance(frame.opaque, tuple) else None
    if aspect and MOST_STRETCHED > aspect > 1:
        width = round(width * aspect)
    elif aspect and 1 > aspect > 1 / MOST_STRETCHED:
        height = round(height / aspect)
    return (height, width) if is_turned(display_matrix(frame)) else (width, height)


def upright(frame: "av.VideoFrame", width: int | None = None, height: int | None = None) -> np.ndarray:
    """
    A frame that [`decode`] yielded as a player shows it: `(height, width, 3)` uint8 RGB.

    Turned by its display matrix, with square pixels, one field of an interlaced picture (the lines of the other are of
    another moment), in one pass of the scaler.

    Args:
        width, height (`int`, *optional*): of the result, in px; left out, `display_size(frame)`.

    Raises:
        MediaError: if FFmpeg can not convert its pixels.
    """
    if width is None or height is None:
        width, height = display_size(frame)
    a, b, c, d = matrix = display_matrix(frame)
    turned = is_turned(matrix)
    if turned:
        width, height = height, width
    fields = 2 if frame.interlaced_frame else 1  # FFmpeg scales them apart, and lays them into each other again
    untagged_hd = frame.colorspace == UNSPECIFIED and (frame.width >= 1280 or frame.height > 576)
    same = (width, height) == (frame.width, frame.height)
    try:
        picture = (
            scaler()
            .reformat(
                frame,
                width,
                fields * height,
                "rgb24",
                src_colorspace="ITU709" if untagged_hd else None,  # as players take it
                interpolation=None if same else SCALING,
                threads=1,
            )
            .to_ndarray()[::fields]
        )
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(
            f"A picture of {frame.format.name} pixels can not be shown ({error}): convert the video."
        ) from error
    if turned:
        picture = picture.transpose(1, 0, 2)
    x, y = (c, b) if turned else (a, d)
    return np.ascontiguousarray(picture[:: -1 if y < 0 else 1, :: -1 if x < 0 else 1])


def decode_picture(source: bytes | str | os.PathLike, size: int) -> np.ndarray:
    """
    A picture file or its bytes to `(size, size, 3)` uint8 RGB.

    Raises:
        MediaError: if it is no picture, or a JPEG that is cut off or damaged.
        OSError: if the file can not be read.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not hasattr(_pictures, "jpeg"):
        _pictures.jpeg = av.CodecContext.create("mjpeg", "r")
        _pictures.jpeg.thread_count = 1
        # FFmpeg would fill a damaged part with grey
        _pictures.jpeg.options = {"err_detect": "explode", "max_pixels": str(LIMITS.max_pixels)}
    try:
        if data.startswith(b"\xff\xd8"):
            (frame,) = _pictures.jpeg.decode(av.Packet(data))
        else:
            options = {"format_whitelist": PICTURE_FORMATS, "max_pixels": str(LIMITS.max_pixels)}
            with av.open(io.BytesIO(data), options=options, io_open=refuse) as container:
                frame = next(container.decode(video=0))
    except (av.error.FFmpegError, ValueError, IndexError, StopIteration) as error:
        why = getattr(error, "strerror", None) or error
        raise MediaError(
            f"The crop {describe(source)} can not be read as a picture ({why}): mend or remove it."
        ) from error
    return scaler().reformat(frame, size, size, "rgb24", threads=1).to_ndarray()
