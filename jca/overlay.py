"""A video with its timeline drawn in: faces, gauges and the whole series. It needs the extra `plots`."""

import io
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from jca.corpus import write_whole
from jca.plots import COLORS, draw_series, face_panels, import_figure, main_faces, time_axis, time_limits
from jca.timeline import Timeline
from media_jca import AUDIO_GAP_SECONDS, Packets, decode, display_size, upright
from sources_jca import LIMITS, LIVE_PROTOCOLS, Limits, describe, fetch, open_media, streams_of


FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}  # that keep times as they are
# good to look at, at a speed that one core keeps up with; not every FFmpeg has the first
ENCODERS = {"libx264": {"crf": "20", "preset": "veryfast"}, "mpeg4": {"qmin": "2", "qmax": "6"}}
SMALLEST = 320  # px: a smaller picture is enlarged, so that what is drawn can be read
STRIP_FACES = 3  # for which the strip has room
CLOCK_SECONDS = 0.01  # by which the times of a frame may differ: files of timelines round them


def write_overlay(source: Any, timeline: Timeline, path: str | Path, limits: Limits | None = None) -> None:
    """
    The video with a box around every face, its id and gauges of valence (V) and arousal (A), above the whole series with a
    cursor that moves over it.

    Frames keep their number and their times; if neither pictures nor sound start at 0, both are that much earlier. The
    sound is copied as it is, and encoded as AAC where the format can not hold it. The picture stands upright and has square
    pixels, as players show it, and is enlarged if it is smaller than 320 px. A face that is lost for a moment keeps its
    gauges where it was seen last; those of a voice without a face are in the corner.

    Args:
        source: what the timeline is of: a path, an http or https URL, bytes or a binary file object that can be wound back.
        timeline: with rows of every frame.
        path: .mp4, .m4v, .mov or .mkv.
        limits ([`Limits`], *optional*): of the source, as of the pipeline.

    Raises:
        ImportError: if Matplotlib is not installed.
        ValueError: if `path` has another suffix or is the source, if the source can be read only once, or if the timeline
            is of another video.
        OSError: if the source is not there, or `path` can not be written.
    """
    import_figure()
    path, limits = Path(path), limits or LIMITS
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"An overlay can not be written to {str(path)!r}: choose one of {', '.join(FORMATS)}.")
    if isinstance(source, (str, os.PathLike)) and path.exists() and os.path.exists(source) and path.samefile(source):
        raise ValueError(
            f"The overlay {str(path)!r} would overwrite the video that it is made of: choose another name."
        )
    # one decodes the pictures and the other copies the sound, each at its own pace
    first, second = _readers(source, limits)
    with open_media(first, limits) as pictures, open_media(second, limits) as sound:

        def write(part: Path) -> None:
            with av.open(str(part), "w", format=FORMATS[path.suffix.lower()]) as out:
                _encode(pictures, sound, timeline, out, limits)

        write_whole(path, write)


class Cursor:
    """A reader of a file that others read too, each from its own place."""

    def __init__(self, file: Any, name: str):
        self.file, self.name, self.position = file, name, 0

    def __repr__(self) -> str:
        return self.name

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Bytes from the start."""
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move this cursor alone."""
        self.file.seek(self.position)
        self.position = self.file.seek(offset, whence)
        return self.position

    def read(self, size: int = -1) -> bytes:
        """Bytes from this cursor on, which it passes."""
        self.file.seek(self.position)
        data = self.file.read(size)
        self.position += len(data)
        return data


def _readers(source: Any, limits: Limits) -> tuple[Any, Any]:
    """The source for two that read it at the same time."""
    name = describe(source)
    if isinstance(source, (str, os.PathLike)):
        scheme = urlsplit(os.fspath(source)).scheme.lower()
        if scheme in ("http", "https"):
            source = fetch(os.fspath(source), limits)
        elif scheme not in LIVE_PROTOCOLS:
            return source, source
    elif isinstance(source, (bytes, bytearray, memoryview)):
        return source, source
    if not (hasattr(source, "seekable") and source.seekable()):
        raise ValueError(f"{name} can be read only once, and its timeline was made of that: save it as a file first.")
    return Cursor(source, name), Cursor(source, name)


def _encode(pictures: Any, sound: Any, timeline: Timeline, out: Any, limits: Limits) -> None:
    video, _ = streams_of(pictures)
    _, audio = streams_of(sound)
    starts = [s.start_time * s.time_base for s in (video, audio) if s and s.start_time is not None]
    start = max(min(starts, default=0), 0)  # the clock of a broadcast is at anything when it begins
    encoder = next(name for name in ENCODERS if name in av.codecs_available)
    # MPEG-4 counts no more than 65535 ticks a second
    time_base = video.time_base if encoder == "libx264" else video.time_base.limit_denominator(65535)
    sink = out.add_stream(encoder, rate=video.average_rate or video.guessed_rate or 30, options=ENCODERS[encoder])
    sink.pix_fmt = "yuv420p"
    sink.codec_context.time_base = time_base
    sink.codec_context.colorspace, sink.codec_context.color_range = Colorspace.ITU709, ColorRange.MPEG
    packets = _sound_packets(sound, audio, out, start, limits) if audio else iter(())
    packet = next(packets, None)
    for seconds, canvas in _canvases(pictures, timeline, limits):
        if not sink.codec_context.is_open:
            sink.height, sink.width = canvas.shape[:2]
        frame = av.VideoFrame.from_numpy_buffer(canvas, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        frame.pts, frame.time_base = round((seconds - float(start)) / time_base), time_base
        out.mux(sink.encode(frame))
        while packet and packet.dts * packet.time_base <= frame.time:  # what comes too early waits in memory
            out.mux(packet)
            packet = next(packets, None)
    out.mux(sink.encode(None))
    while packet:
        out.mux(packet)
        packet = next(packets, None)


# Sound ---------------------------------------------------------------------------------------------------------------


def _sound_packets(container: Any, stream: Any, out: Any, start: float | Fraction, limits: Limits) -> Iterator[Any]:
    """The packets of a stream, `start` seconds earlier, for a stream of `out` that is made at once: as they are, or as AAC
    if `out` can not hold them."""
    packets = (p for p in Packets(container, container.name, limits) if p.stream is stream)
    if _holds(out.format.name, stream):
        return _copied(packets, out.add_stream_from_template(stream), round(start / stream.time_base))
    rate = stream.rate if stream.rate in av.Codec("aac", "w").audio_rates else 48000
    sink = out.add_stream("aac", rate=rate, layout="mono" if stream.channels == 1 else "stereo")
    return _encoded(packets, sink, float(start))


def _holds(format_: str, stream: Any) -> bool:
    """Whether a file of that format can hold the stream as it is, so that players know it."""
    if format_ == "mp4" and stream.codec_context.name.startswith("pcm_"):
        return False  # there is a standard for it, but hardly a player
    try:  # the header tells
        with av.open(io.BytesIO(), "w", format=format_) as trial:
            trial.add_stream_from_template(stream)
            trial.start_encoding()
    except (av.error.FFmpegError, ValueError):
        return False
    return True


def _copied(packets: Iterator[Any], sink: Any, ticks: int) -> Iterator[Any]:
    newest = None
    for packet in packets:
        dts = packet.pts if packet.dts is None else packet.dts
        if dts is not None and (newest is None or dts > newest):  # a file can not hold what steps back
            packet.pts = (dts if packet.pts is None else packet.pts) - ticks
            packet.stream, packet.dts, newest = sink, dts - ticks, dts
            yield packet


def _encoded(packets: Iterator[Any], sink: Any, start: float) -> Iterator[Any]:
    position = None  # of the next sample
    for packet in packets:
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            continue  # a gap, as it was for the model
        for frame in frames:
            time = None if frame.time is None else frame.time - start
            if position is None or (time is not None and abs(time - position / frame.sample_rate) > AUDIO_GAP_SECONDS):
                position = round((time or 0.0) * frame.sample_rate)
            frame.pts, frame.time_base = position, Fraction(1, frame.sample_rate)
            position += frame.samples
            yield from sink.encode(frame)
    yield from sink.encode(None)


# Pictures ------------------------------------------------------------------------------------------------------------


class Scene(NamedTuple):
    """What all frames of an overlay share; lengths in pixels."""

    unit: int  # height of the letters' line
    font: Any
    size: tuple[int, int]  # width and height of what stands above the strip
    picture: tuple[int, int, int, int]  # left, top, width and height of the video's picture in it
    colors: dict[int, str]  # of faces
    strip: np.ndarray  # (height, width, 3) uint8 RGB
    plot: tuple[int, int, int, int]  # left, top, right and bottom of the series in the strip


def _canvases(pictures: Any, timeline: Timeline, limits: Limits) -> Iterator[tuple[float, np.ndarray]]:
    """Seconds on the media's clock and painted picture `(height, width, 3)` uint8 RGB of every frame."""
    from PIL import Image

    scene: Scene
    number, origin, picture, last_boxes = 0, 0.0, None, {}
    order = np.argsort(timeline.frame, kind="stable")
    frames = timeline.frame[order]
    begin, end = time_limits(timeline)
    for kind, seconds, frame in decode(pictures, sampling_rate=8000, limits=limits):
        if kind != "video":
            continue
        if number == 0:
            origin = seconds
            codec = streams_of(pictures)[0].codec_context
            scene = _scene(timeline, display_size(frame) if frame else (codec.width, codec.height))
            left, top, width, height = scene.picture
            picture, scale = np.zeros((height, width, 3), np.uint8), (1.0, 1.0)
        rows = order[slice(*np.searchsorted(frames, (number, number + 1)))]
        time = _checked_time(timeline, rows, number, seconds - origin)
        if frame is not None:  # one that can not be decoded shows the last one again
            picture = upright(frame, width, height)
            scale = width / display_size(frame)[0], height / display_size(frame)[1]
        image = Image.new("RGB", scene.size)
        image.paste(Image.fromarray(picture), (left, top))
        _draw_rows(image, scene, timeline, rows, scale, last_boxes)
        canvas = np.concatenate([np.asarray(image), scene.strip])
        first, above, last, below = scene.plot
        x, half = first + round((time - begin) / (end - begin) * (last - first)), max(scene.unit // 16, 1)
        cursor = canvas[scene.size[1] + above : scene.size[1] + below]
        cursor[:, x - 2 * half : x + 2 * half] = 255
        cursor[:, x - half : x + half] = 0
        yield seconds, canvas
        number += 1
    if number <= frames[-1]:
        raise ValueError(
            f"The video has {number} frames and the timeline {timeline.name!r} has rows up to frame {frames[-1]}: give "
            "the timeline of this video."
        )


def _checked_time(timeline: Timeline, rows: np.ndarray, number: int, seconds: float) -> float:
    """The time of frame `number`, if `rows` of the timeline can be those of a frame at `seconds`."""
    if not len(rows):
        raise ValueError(
            f"Frame {number} of the video has no row in the timeline {timeline.name!r}: give the timeline of this video, "
            "with all of its faces and at its frame rate."
        )
    time = float(timeline.time[rows[0]])
    if abs(seconds - time) > CLOCK_SECONDS:
        raise ValueError(
            f"Frame {number} is at {seconds:.3f} s in the video and at {time:.3f} s in the timeline {timeline.name!r}: "
            "give the timeline of this video."
        )
    return time


def _scene(timeline: Timeline, shown: tuple[int, int]) -> Scene:
    """For pictures of that width and height."""
    from PIL import ImageFont

    scale = max(SMALLEST / max(shown), 1)
    picture = round(shown[0] * scale), round(shown[1] * scale)
    # even, as H.264 needs it, and with room for gauges
    width, height = (
        -(-max(side, least) // 2) * 2 for side, least in zip(picture, (SMALLEST, SMALLEST // 2), strict=True)
    )
    unit = max(min(width, height) // 22, 11)
    strip, plot = _strip(timeline, width, unit)
    return Scene(
        unit,
        ImageFont.load_default(unit),
        (width, height),
        ((width - picture[0]) // 2, (height - picture[1]) // 2, *picture),
        main_faces(timeline),
        strip,
        plot,
    )


def _strip(timeline: Timeline, width: int, unit: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """The whole series as a picture `(height, width, 3)`, and left, top, right and bottom of its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    panels = face_panels(timeline, STRIP_FACES)
    row = {1: 5, 2: 4, 3: 3}.get(len(panels), 2.5) * unit
    above, below = 1.5 * unit, 1.6 * unit
    height = round((above + len(panels) * row + below) / 2) * 2
    figure = import_figure()(figsize=(width / 100, height / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    points = 0.72 * unit  # of text
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    margin = (2.6 if len(panels) == 1 else 5) * unit / width
    figure.subplots_adjust(margin, below / height, 1 - unit / width, 1 - above / height, hspace=0.15)
    for panel, axes in zip(panels, grid, strict=True):
        draw_series(axes, panel.rows, width=unit / 10)
        axes.set(yticks=[-1, 0, 1], xlim=time_limits(timeline))
        axes.tick_params(labelsize=0.8 * points, pad=points / 5, length=points / 4)
        if panel.name:
            axes.set_yticks([])
            box = {"facecolor": panel.color, "pad": points / 6, "linewidth": 0.5}
            place = {"transform": axes.transAxes, "ha": "right", "va": "center", "fontsize": 0.8 * points}
            axes.text(-0.3 * unit / axes.bbox.width, 0.5, panel.name, bbox=box, **place)
    time_axis(axes.xaxis, timeline)
    axes.set_xlabel("")
    handles, names = grid[0].get_legend_handles_labels()
    style = {"frameon": False, "borderpad": 0, "borderaxespad": 0.2, "fontsize": points, "handlelength": 3}
    figure.legend(handles[:2], names[:2], loc="upper left", ncols=2, bbox_to_anchor=(margin, 1), **style)
    faces = len(timeline.faces)
    if faces > STRIP_FACES:
        text = f"{STRIP_FACES} of {faces} faces"
        figure.text(1 - unit / width, 1 - 0.3 * unit / height, text, ha="right", va="top", fontsize=0.8 * points)
    canvas.draw()
    left, right = grid[0].bbox.x0, grid[0].bbox.x1
    top, bottom = height - grid[0].bbox.y1, height - grid[-1].bbox.y0
    picture = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    left, top, right, bottom = (round(float(value)) for value in (left, top, right, bottom))
    return picture, (left, top, right, bottom)


def _draw_rows(
    image: Any, scene: Scene, timeline: Timeline, rows: np.ndarray, scale: tuple[float, float], last_boxes: dict
) -> None:
    """Boxes, ids and gauges of the `rows` of a frame; `last_boxes` keeps where each face was seen last."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(image, "RGBA")
    unit = scene.unit
    line = max(unit // 5, 2)
    corner = unit // 2  # where the next gauges without a box stand
    taken = []
    for row in rows.tolist():
        face, detected, box = int(timeline.face[row]), bool(timeline.face_detected[row]), timeline.box[row]
        name = "voice only" if face < 0 else f"face {face}" if detected else f"face {face}, not detected"
        color = scene.colors.get(face, "white") if detected else "white"
        if not np.isnan(box).any():
            box = last_boxes[face] = box * (*scale, *scale) + 2 * scene.picture[:2]
            for width, fill in ((line + 2, "black"), (line, color)) if detected else ((3, "black"), (1, color)):
                draw.rectangle(box.tolist(), outline=fill, width=width)
        if face in last_boxes:
            x, y = last_boxes[face][0], last_boxes[face][3] + line
            _text(draw, scene, x, last_boxes[face][1] - 1.4 * unit, name)
        else:
            x, y = unit // 2, corner + 1.4 * unit
            _text(draw, scene, x, corner, name)
            corner += 4.2 * unit
        x, y = min(max(x, 0), scene.size[0] - 10 * unit), min(max(y, 0), scene.size[1] - 2.6 * unit)
        step = 2.7 * unit if y + 5.3 * unit < scene.size[1] else -2.7 * unit
        while any(abs(x - other_x) < 10 * unit and abs(y - other_y) < 2.6 * unit for other_x, other_y in taken):
            y += step  # below those that stand there, or above if there is no room
        taken.append((x, y))
        _gauges(draw, scene, x, y, color, {key: float(getattr(timeline, key)[row]) for key in COLORS})


def _text(draw: Any, scene: Scene, x: float, y: float, text: str) -> None:
    """Outlined, and moved into the picture where it would leave it."""
    x = min(max(x, 0), scene.size[0] - scene.font.getlength(text))
    y = min(max(y, 0), scene.size[1] - 1.4 * scene.unit)
    outline = {"stroke_width": max(scene.unit // 8, 1), "stroke_fill": "black"}
    draw.text((x, y), text, font=scene.font, fill="white", **outline)


def _gauges(draw: Any, scene: Scene, x: float, y: float, color: str, values: dict[str, float]) -> None:
    """A bar from the middle for each of the values in [-1, 1], together ten units wide and 2.6 high, beside `color`."""
    unit = scene.unit
    draw.rectangle((x, y + 0.1 * unit, x + 0.3 * unit, y + 2.4 * unit), fill=color, outline="black")
    for index, (key, value) in enumerate(values.items()):
        top = y + 1.25 * unit * index
        _text(draw, scene, x + 0.6 * unit, top, key[0].upper())
        left, middle, right = x + 1.7 * unit, x + 4.2 * unit, x + 6.7 * unit
        draw.rectangle((left, top + 0.2 * unit, right, top + 1.05 * unit), fill=(255, 255, 255, 220), outline="black")
        end = middle + value * (right - middle)
        draw.rectangle((min(middle, end), top + 0.25 * unit, max(middle, end), top + unit), fill=COLORS[key])
        draw.line((middle, top + 0.1 * unit, middle, top + 1.15 * unit), fill="black", width=max(unit // 10, 1))
        _text(draw, scene, right + 0.4 * unit, top, f"{value:+.2f}")
