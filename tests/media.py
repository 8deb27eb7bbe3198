"""Small real media files, written by PyAV."""

import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np


@contextmanager
def usual_priority() -> Iterator[None]:
    """SVT-AV1, where root runs it, leaves the thread that encodes with real-time priority, and with it all that this starts:
    everything else on the machine would wait. Here the thread is afterwards as before."""
    if not hasattr(os, "sched_setscheduler"):  # not on Linux
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def write_video(
    path: Path,
    num_frames: int = 60,
    fps: int = 30,
    size: tuple[int, int] = (64, 48),
    picture: Callable[[int], np.ndarray] | None = None,
    waveform: np.ndarray | None = None,
    sampling_rate: int = 44100,
    audio_start: float = 0.0,
    bit_rate: int = 128_000,
) -> str:
    """An mp4 (h264, and aac if there is a waveform); `picture(index)` gives `(height, width, 3)` uint8."""
    width, height = size
    picture = picture or (lambda index: np.full((height, width, 3), (index * 5) % 256, np.uint8))
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"crf": "10", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = None
        if waveform is not None:
            audio = container.add_stream("aac", rate=sampling_rate, layout="mono")
            audio.bit_rate = bit_rate
        done = 0
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts = index
            container.mux(video.encode(frame))
            while (
                audio is not None and done < len(waveform) and done / sampling_rate + audio_start <= (index + 1) / fps
            ):
                piece = av.AudioFrame.from_ndarray(
                    waveform[None, done : done + 1024].astype(np.float32), format="fltp", layout="mono"
                )
                piece.sample_rate, piece.pts = sampling_rate, done + round(audio_start * sampling_rate)
                container.mux(audio.encode(piece))
                done += 1024
        container.mux(video.encode(None))
        if audio is not None:
            container.mux(audio.encode(None))
    return str(path)


def write_sound(path: Path, codec: str = "pcm_s16le", sampling_rate: int = 16_000) -> str:
    """A second of silence, without a picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=sampling_rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, sampling_rate), np.float32), format="flt", layout="mono")
        frame.sample_rate = sampling_rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def clapping_video(path: Path, seconds: float, claps: tuple[float, ...], fps: int = 30, **options) -> str:
    """Dark and quiet, but for one white frame and a burst of noise of 40 ms at each clap (s)."""
    rate, num_frames = 44100, round(seconds * fps)
    white = {round(clap * fps) for clap in claps}
    waveform = np.zeros(round(seconds * rate), np.float32)
    noise = np.random.default_rng(0).uniform(-0.8, 0.8, round(0.04 * rate)).astype(np.float32)
    for clap in claps:
        waveform[round(clap * rate) : round(clap * rate) + len(noise)] = noise
    return write_video(
        path,
        num_frames,
        fps,
        picture=lambda index: np.full((48, 64, 3), 235 if index in white else 20, np.uint8),
        waveform=waveform,
        **options,
    )


# Of any container, codec and clock ------------------------------------------------------------------------------------

RATE = 48000
CLAP_SECONDS = 7.0  # after the first picture


def write_media(
    path: Path,
    pictures: Callable[[int], "np.ndarray | av.VideoFrame"],
    times: Sequence[float],
    waveform: np.ndarray | None = None,
    *,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    clock: Fraction = Fraction(1, 30),
    audio_codec: str = "aac",
    audio_start: float = 0.0,
    container: str | None = None,
    container_options: dict[str, str] | None = None,
    rotation: float = 0,
    aspect: Fraction | None = None,
    more: Callable[["av.container.OutputContainer"], None] = lambda output: None,
) -> str:
    """
    Picture `index`, `(height, width, 3)` uint8 or a frame, at second `times[index]`, in steps of `clock`; the waveform
    (48 kHz mono) from `audio_start` (s); `rotation` in degrees counterclockwise; `aspect` of a pixel; `more(output)` adds
    to the container.
    """
    with usual_priority(), av.open(str(path), "w", format=container, options=container_options or {}) as output:
        video = output.add_stream(
            codec, rate=round(1 / clock) if clock > Fraction(1, 100) else 30, options=options or {}
        )
        video.width, video.height, video.pix_fmt = *size, pix_fmt
        video.codec_context.time_base = clock
        if aspect:
            video.codec_context.sample_aspect_ratio = aspect
        if rotation:
            video.set_display_rotation(rotation)
        audio, fifo, done = None, av.AudioFifo(), 0
        if waveform is not None:
            audio = output.add_stream(audio_codec, rate=RATE, layout="mono")
            audio.bit_rate = 128_000
        more(output)
        for index, time in enumerate(times):
            frame = pictures(index)
            if isinstance(frame, np.ndarray):
                frame = av.VideoFrame.from_ndarray(frame, format="rgb24")
            frame.pts, frame.time_base = round(time / clock), clock
            output.mux(video.encode(frame))
            last = index == len(times) - 1
            while audio and done < len(waveform) and (last or audio_start + done / RATE <= time):
                samples = waveform[None, done : done + 960].astype(np.float32)
                piece = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
                piece.sample_rate, piece.time_base, piece.pts = RATE, Fraction(1, RATE), done
                done += samples.shape[1]
                fifo.write(piece)
                for ready in fifo.read_many(audio.codec_context.frame_size or 960):
                    ready.pts += round(audio_start * RATE)
                    output.mux(audio.encode(ready))
        output.mux(video.encode(None))
        if audio:
            if rest := fifo.read():
                rest.pts += round(audio_start * RATE)
                output.mux(audio.encode(rest))
            output.mux(audio.encode(None))
    return str(path)


def dark(index: int, white: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    return np.full((size[1], size[0], 3), 235 if index == white else 20, np.uint8)


def clap(seconds: float, at: float) -> np.ndarray:
    """A waveform of quiet, but for a burst of noise of 40 ms at second `at`."""
    waveform = np.zeros(round(seconds * RATE), np.float32)
    noise = np.random.default_rng(0).uniform(-0.8, 0.8, round(0.04 * RATE))
    waveform[round(at * RATE) : round(at * RATE) + len(noise)] = noise
    return waveform


def clapping(
    path: Path, start: float = 0.0, audio_start: float = 0.0, audio_end: float | None = None, **options
) -> str:
    """A clap 7 s after the first of 270 pictures, which is at second `start`; audio from `audio_start` to `audio_end` (s),
    9 s after `start` if left out."""
    end = start + 9 if audio_end is None else audio_end
    options = {"pictures": partial(dark, white=210), "times": [start + index / 30 for index in range(270)], **options}
    return write_media(
        path, waveform=clap(end - audio_start, start + CLAP_SECONDS - audio_start), audio_start=audio_start, **options
    )


def variable_rate(path: Path) -> str:
    """Steps of 20 to 70 ms, and a pause of 1.5 s before the clap."""
    steps = np.random.default_rng(0).uniform(0.02, 0.07, 400).round(3)
    before = np.cumsum(steps)
    times = [0.0, *before[before < 5.5], CLAP_SECONDS, *(CLAP_SECONDS + before[before < 2])]
    white = times.index(CLAP_SECONDS)
    return clapping(path, pictures=partial(dark, white=white), times=times, clock=Fraction(1, 1000))


def weave(top: np.ndarray, bottom: np.ndarray) -> "av.VideoFrame":
    """Two fields, `(height / 2, width, 3)` uint8, in the lines of one frame."""
    fields = [av.VideoFrame.from_ndarray(field, format="rgb24").reformat(format="yuv420p") for field in (top, bottom)]
    frame = av.VideoFrame(top.shape[1], 2 * top.shape[0], "yuv420p")
    for number, plane in enumerate(frame.planes):
        lines = np.zeros((plane.height, plane.line_size), np.uint8)
        for parity, field in enumerate(fields):
            source = field.planes[number]
            lines[parity::2, : plane.width] = np.frombuffer(source, np.uint8).reshape(-1, source.line_size)[
                :, : plane.width
            ]
        plane.update(lines)
    return frame


def interlaced(path: Path) -> str:
    """The clap is in the field that comes first; the other field is brighter than the rest."""

    def picture(index: int) -> "av.VideoFrame":
        return weave(dark(index, 210, (64, 24)), np.full((24, 64, 3), 80, np.uint8))

    return clapping(path, pictures=picture, options={"x264-params": "tff=1", "crf": "5"})


def two_sizes(path: Path) -> str:
    """64x48 until second 4, then 96x64."""
    encoders = []
    for width, height in ((64, 48), (96, 64)):
        encoder = av.CodecContext.create("libx264", "w")
        encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
        encoder.time_base, encoder.framerate = Fraction(1, 30), Fraction(30)
        encoder.options = {"tune": "zerolatency", "x264-params": "repeat-headers=1"}
        encoders.append(encoder)
    waveform = clap(9, CLAP_SECONDS)
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=30)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = output.add_stream("aac", rate=RATE, layout="mono")
        for index in range(270):
            encoder = encoders[index >= 120]
            frame = av.VideoFrame.from_ndarray(dark(index, 210, (encoder.width, encoder.height)), format="rgb24")
            frame.pts = index
            for packet in encoder.encode(frame):
                packet.stream, packet.time_base = video, Fraction(1, 30)
                output.mux(packet)
            piece = av.AudioFrame.from_ndarray(waveform[None, index * 1600 : (index + 1) * 1600], "flt", "mono")
            piece.sample_rate, piece.pts = RATE, index * 1600
            output.mux(audio.encode(piece))
        output.mux(audio.encode(None))
    return str(path)


def joined(path: Path, **options) -> str:
    """Two recordings one after the other, of 30 s and of 9 s: the clock starts anew, the clap is at 37."""
    clapping(
        path, pictures=partial(dark, white=-1), times=[index / 30 for index in range(900)], audio_end=30.0, **options
    )
    first = path.read_bytes()
    clapping(path, **options)
    path.write_bytes(first + path.read_bytes())
    return str(path)


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[str, int, int]]:
    """`(path, start, end)` of the boxes of an mp4 (ISO/IEC 14496-12), those within others after these."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        length, kind = struct.unpack(">I4s", data[start : start + 8])
        length = min(max(length, 8), end - start)
        name = kind.decode("latin-1")
        yield name, start, start + length
        if name in ("moov", "trak", "mdia", "minf", "stbl", "edts", "dinf", "moof", "traf", "mvex", "udta"):
            for inner, low, high in boxes(data, start + 8, start + length):
                yield f"{name}/{inner}", low, high
        start += length


def edited(path: Path) -> str:
    """The first 2 s are cut away by edit lists, in the middle of a group of pictures: the clap of second 9 is at 7."""
    clapping(
        path, pictures=partial(dark, white=270), times=[index / 30 for index in range(330)], start=2.0, audio_end=11.0
    )
    data, scales = bytearray(path.read_bytes()), {}
    found = list(boxes(bytes(data)))
    (movie_scale,) = struct.unpack_from(">I", data, next(low for name, low, _ in found if name == "moov/mvhd") + 20)
    scales = [struct.unpack_from(">I", data, low + 20)[0] for name, low, _ in found if name == "moov/trak/mdia/mdhd"]
    lists = [low for name, low, _ in found if name == "moov/trak/edts/elst"]
    assert len(scales) == len(lists) == 2
    for low, scale in zip(lists, scales, strict=True):
        version, count = data[low + 8], struct.unpack_from(">I", data, low + 12)[0]
        assert (version, count) == (0, 1)
        length, media_time = struct.unpack_from(">Ii", data, low + 16)
        struct.pack_into(">Ii", data, low + 16, length - 2 * movie_scale, media_time + 2 * scale)
    path.write_bytes(data)
    return str(path)


VPX = {"threads": "1"}
CLAPPING = {  # by a name that ends with what files are called
    "b_frames.mp4": partial(clapping, options={"bf": "3", "crf": "10"}),
    "fast_start.mp4": partial(clapping, container_options={"movflags": "faststart"}),
    "fragmented.mp4": partial(
        clapping, options={"g": "30"}, container_options={"movflags": "frag_keyframe+delay_moov+default_base_moof"}
    ),
    "late_start.mp4": partial(clapping, start=3.0, audio_start=3.0),
    "late_start.ts": partial(clapping, start=3000.0, audio_start=3000.0),
    "audio_first.ts": partial(clapping, start=1.5),
    "audio_first.mkv": partial(clapping, start=1.5),
    "audio_first.mp4": partial(clapping, start=1.5),
    "audio_late.mp4": partial(clapping, audio_start=1.5),
    "audio_late.mkv": partial(clapping, audio_start=1.5),
    "audio_late.ts": partial(clapping, audio_start=1.5),
    "audio_longer.mp4": partial(clapping, audio_end=14.0),
    "audio_shorter.mp4": partial(clapping, audio_end=7.5),
    "variable_rate.mp4": variable_rate,
    "variable_rate.mkv": variable_rate,
    "edited.mp4": edited,
    "rotated.mp4": partial(clapping, rotation=90),
    "interlaced.mp4": interlaced,
    "interlaced.ts": interlaced,
    "10_bit.mp4": partial(clapping, pix_fmt="yuv420p10le"),
    "two_sizes.ts": two_sizes,
    "two_sizes.mkv": two_sizes,
    "wide_pixels.mp4": partial(clapping, aspect=Fraction(4, 3)),
    "film.mov": partial(clapping, codec="prores_ks", pix_fmt="yuv422p10le", audio_codec="pcm_s16le"),
    "phone.3gp": partial(clapping, codec="mpeg4"),
    "web.webm": partial(clapping, codec="libvpx", options=VPX, audio_codec="libopus"),
    "live.webm": partial(clapping, codec="libvpx", options=VPX, audio_codec="libopus", container_options={"live": "1"}),
    "av1.mkv": partial(clapping, codec="libsvtav1", audio_codec="flac", options={"preset": "12"}),
    "hevc.mkv": partial(clapping, codec="libx265", options={"x265-params": "log-level=none", "preset": "ultrafast"}),
    "old.avi": partial(clapping, codec="mjpeg", pix_fmt="yuvj420p", audio_codec="pcm_s16le"),
    "flash.flv": clapping,
    "disc.mpg": partial(clapping, codec="mpeg2video", audio_codec="mp2"),
    "disc.vob": partial(clapping, codec="mpeg2video", audio_codec="ac3"),
    "free.ogv": partial(clapping, codec="libvpx", options=VPX, audio_codec="libopus"),
    "studio.mxf": partial(clapping, codec="mpeg2video", audio_codec="pcm_s16le"),
    "windows.wmv": partial(clapping, codec="wmv2", audio_codec="wmav2"),
    "picture.mkv": partial(clapping, codec="mjpeg", pix_fmt="yuvj420p", audio_codec="pcm_s16le"),
    "set_top.wtv": partial(clapping, codec="mpeg2video", audio_codec="mp2"),
}


# Damage ---------------------------------------------------------------------------------------------------------------


def mutate(data: bytes, seed: int) -> bytes:
    """A file with one to four faults: flipped bits, lost, doubled, moved and overwritten pieces, among them whole parts of
    an mp4, Matroska or MPEG-TS file, and cuts."""
    rng = np.random.default_rng(seed)
    for _ in range(rng.integers(1, 5)):
        if len(data) < 16:
            break
        if data[4:8] == b"ftyp" and rng.random() < 0.7:  # the small boxes say the most
            pieces = [(low, high) for _, low, high in boxes(data)]
        elif data[:4] == b"\x1a\x45\xdf\xa3":  # elements of the first levels begin with four bytes
            starts = [m.start() for m in re.finditer(rb"[\x10-\x1f][\x00-\xff]{3}", data)]
            pieces = list(zip(starts, [*starts[1:], len(data)], strict=True))
        else:
            step = 188 if data[:1] == b"\x47" else max(len(data) // 50, 1)
            pieces = [(low, low + step) for low in range(0, len(data), step)]
        low, high = pieces[rng.integers(len(pieces))]
        piece, place = data[low:high], rng.integers(len(data))
        match rng.integers(7):
            case 0:
                changed = bytearray(data)
                for position in rng.integers(len(data), size=rng.integers(1, 30)):
                    changed[position] ^= 1 << rng.integers(8)
                data = bytes(changed)
            case 1:  # in the head of a piece
                changed = bytearray(data)
                for position in rng.integers(low, min(low + 40, len(data)), size=rng.integers(1, 6)):
                    changed[position] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
                data = bytes(changed)
            case 2:
                data = data[:low] + data[high:]
            case 3:
                data = data[:high] + piece + data[high:]
            case 4:
                data = data[:place] + piece + data[place:]
            case 5:
                data = data[:low] + rng.bytes(high - low) + data[high:]
            case 6:
                data = data[: rng.integers(len(data) // 4, len(data))]
    return data
