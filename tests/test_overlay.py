import io
import os
import threading
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
from media import RATE, clap, dark, write_media

from jca.overlay import write_overlay
from jca.plots import COLORS, FACE_COLORS
from jca.timeline import Timeline
from media_jca import decode
from sources_jca import IncompleteMediaWarning, open_media


SIZE = (640, 360)
NUM_FRAMES = 90
GREY = 100
GREEN, PURPLE, BLUE, VERMILION = (
    np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    for color in (*FACE_COLORS[:2], COLORS["valence"], COLORS["arousal"])
)


def grey(index, size=SIZE):
    return np.full((size[1], size[0], 3), GREY, np.uint8)


def row(frame, time, face=0, box=(100, 80, 180, 180), valence=0.8, arousal=-0.6):
    return {
        "time": round(float(time), 6),
        "frame": frame,
        "face": face,
        "valence": valence,
        "arousal": arousal,
        "box": None if box is None or face is None else [float(corner) for corner in box],
        "face_detected": box is not None and face is not None,
        "audio_present": True,
        "face_quality": None,
    }


def times_of(path):
    with av.open(str(path)) as container:
        return [frame.time for frame in container.decode(video=0)]


def timeline_of(path, **values):
    """One face, in every frame of a file."""
    times = times_of(path)
    return Timeline.from_rows((row(i, t - times[0], **values) for i, t in enumerate(times)), name="film.mp4")


def pictures_of(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def sound_of(path):
    """Second and bytes of every packet."""
    with av.open(str(path)) as container:
        return [(float(p.pts * p.time_base), bytes(p)) for p in container.demux(audio=0) if p.size]


def claps_of(path, white):
    """Second of the brightest picture, by the part of it `white` that nothing is drawn into, and of the loudest sound."""
    with av.open(str(path)) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")[white].mean()) for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        pieces = [(frame.time, frame.sample_rate, frame.to_ndarray()[0]) for frame in container.decode(audio=0)]
    samples = np.concatenate([piece for _, _, piece in pieces])
    first = pieces[0][0] + np.flatnonzero(np.abs(samples) > 0.2 * np.abs(samples).max())[0] / pieces[0][1]
    return max(frames, key=lambda frame: frame[1])[0], first


def heard(path):
    """Seconds of the claps from the first picture, as the model gets them."""
    with open_media(str(path)) as container:
        events = list(decode(container, 8000))
    first = next(seconds for kind, seconds, _ in events if kind == "video")
    times = [s + np.arange(len(p)) / 8000 - first for kind, s, p in events if kind == "audio"]
    loud = np.abs(np.concatenate([piece for kind, _, piece in events if kind == "audio"])) > 0.2
    loud = np.concatenate(times)[loud]
    return loud[np.diff(loud, prepend=-np.inf) > 1].tolist()


def is_color(pixels, color, within=50):
    return np.abs(pixels.astype(int) - color).max(-1) < within  # colours of a video have half of the resolution


def cursor_of(picture, above=SIZE[1]):
    """The column in the strip of a picture that is black between the panels too."""
    column = np.flatnonzero((picture[above + 30 : above + 150].max(-1) < 90).all(0))
    return column.mean()


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """3 s: face 0 moves by 2 px a frame and is lost from frame 30 to 40; face 1 comes with frame 45; from frame 70 on only
    the voice is there."""
    folder = tmp_path_factory.mktemp("film ü 会話")
    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE)
    source = write_media(folder / "a.mp4", grey, np.arange(NUM_FRAMES) / 30, waveform, size=SIZE)
    rows = []
    for frame in range(NUM_FRAMES):
        here = partial(row, frame, frame / 30)
        if frame >= 70:
            rows.append(here(None, valence=-0.5, arousal=0.9))
            continue
        lost = 30 <= frame < 40
        rows.append(here(0, None if lost else (100 + 2 * frame, 80, 180 + 2 * frame, 180)))
        if frame >= 45:
            rows.append(here(1, (450, 60, 550, 200), valence=-1.0, arousal=1.0))
    timeline = Timeline.from_rows(rows, name="a.mp4")
    write_overlay(source, timeline, folder / "überlagert 会話.mp4")
    return source, timeline, folder / "überlagert 会話.mp4"


@pytest.fixture(scope="module")
def pictures(film):
    return pictures_of(film[2])


def test_frames_and_sound_are_those_of_the_source(film):
    source, _, overlay = film
    with av.open(source) as before, av.open(str(overlay)) as after:
        assert after.duration == before.duration
        for old, new in zip(before.streams, after.streams, strict=True):
            assert (new.codec_context.name, new.time_base, new.duration) == (
                old.codec_context.name,
                old.time_base,
                old.duration,
            )
        old, new = ([frame.pts for frame in container.decode(video=0)] for container in (before, after))
        assert new == old
    assert sound_of(overlay) == sound_of(source)
    assert sorted(os.listdir(overlay.parent)) == ["a.mp4", overlay.name]


def test_boxes_are_where_the_faces_are(pictures):
    for frame in (0, 10, 29, 40, 60):
        x0, x1 = 100 + 2 * frame, 180 + 2 * frame
        picture = pictures[frame]
        for line in (picture[90:170, x0 + 1], picture[90:170, x1 - 1], picture[81, x0 + 5 : x1 - 5]):
            assert is_color(line, GREEN).mean() > 0.9
        inside = picture[90:170, x0 + 8 : x1 - 8]
        assert np.abs(inside.astype(int) - GREY).max() < 40
    assert is_color(pictures[60][70:190, 451], PURPLE).mean() > 0.9
    assert not is_color(pictures[40][:360, 400:], PURPLE).any()  # face 1 is not there yet
    lost = pictures[35][:360]
    assert not is_color(lost[60:190], GREEN).any()
    assert np.abs(pictures[:, :360, 615:].astype(int) - GREY).max() < 20  # nothing else is touched


def test_gauges_say_how_much(pictures):
    def bars(picture, left, top):
        """Leftmost and rightmost pixel of the two bars in a part of a picture."""
        part = picture[top : top + 50, left : left + 160]
        return [np.flatnonzero(is_color(part, color).sum(0) > 3)[[0, -1]] for color in (BLUE, VERMILION)]

    def below(frame, x0=None, y1=180):
        return bars(pictures[frame], 100 + 2 * frame if x0 is None else x0, y1)

    (valence_start, valence_end), (arousal_start, arousal_end) = below(10)
    assert abs(valence_start - arousal_end) <= 4  # positive goes to the right of the middle, negative to the left
    assert (valence_end - valence_start) / (arousal_end - arousal_start) == pytest.approx(0.8 / 0.6, rel=0.15)
    (full_start, full_end), _ = below(60, 450, 200)
    assert (full_end - full_start) / (valence_end - valence_start) == pytest.approx(1 / 0.8, rel=0.15)
    # of a face that is lost they stay where it was
    assert np.array(below(35, 100 + 2 * 29)) == pytest.approx(np.array(below(29)), abs=2)
    # without a face they are in the corner
    voice = np.array(bars(pictures[80], 0, 25))
    assert voice[0, 0] < voice[0, 1] <= voice[1, 0] + 4
    assert not is_color(pictures[80][80:350], BLUE).any()


def test_the_cursor_moves_with_time(pictures):
    columns = np.array([cursor_of(picture) for picture in pictures])
    assert columns == pytest.approx(np.linspace(columns[0], columns[-1], NUM_FRAMES), abs=1)
    assert columns[-1] - columns[0] > 500  # of 640 px
    changed = np.abs(pictures[20][362:].astype(int) - pictures[70][362:]).max((0, 2)) > 60
    assert 4 <= changed.sum() < 20  # the series itself stays


@pytest.mark.parametrize("suffix", [".mkv", ".mov"])
def test_other_formats(film, tmp_path, suffix):
    source, timeline, _ = film
    write_overlay(source, timeline, tmp_path / f"a{suffix}")
    new, old = times_of(tmp_path / f"a{suffix}"), times_of(source)
    assert np.diff(new) == pytest.approx(np.diff(old), abs=0.0011)  # Matroska counts milliseconds
    assert [data for _, data in sound_of(tmp_path / f"a{suffix}")] == [data for _, data in sound_of(source)]
    # both by as much, where a format does not hold what comes before 0
    assert sound_of(tmp_path / f"a{suffix}")[0][0] - new[0] == pytest.approx(
        sound_of(source)[0][0] - old[0], abs=0.0011
    )


def test_variable_rate_and_late_pictures(tmp_path):
    steps = np.random.default_rng(0).integers(1500, 6000, 50)
    times = [Fraction(int(tick), 90000) for tick in np.cumsum(steps) + 45000]
    options = {"size": (320, 180), "clock": Fraction(1, 90000)}
    source = write_media(tmp_path / "a.mp4", partial(grey, size=(320, 180)), times, clap(2.5, 1), **options)
    write_overlay(source, timeline_of(source), tmp_path / "b.mp4")
    assert times_of(tmp_path / "b.mp4") == times_of(source)
    assert times_of(source)[0] == pytest.approx(float(times[0]), abs=0.001)
    assert sound_of(tmp_path / "b.mp4") == sound_of(source)


def test_a_broadcast_begins_at_0(tmp_path):
    """Its pictures start at second 20, its sound 0.3 s later, and its clap is 1 s after its first picture."""
    source = write_media(
        tmp_path / "a.ts",
        partial(dark, white=10, size=(320, 180)),
        20 + np.arange(120) / 10,
        clap(11.7, 0.7),
        size=(320, 180),
        clock=Fraction(1, 90000),
        audio_start=20.3,
    )
    timeline = timeline_of(source, box=(10, 10, 60, 60))
    write_overlay(source, timeline, tmp_path / "b.mp4")
    new, old = times_of(tmp_path / "b.mp4"), times_of(source)
    assert new == pytest.approx(np.array(old) - old[0], abs=1e-4)
    white, loud = claps_of(tmp_path / "b.mp4", np.s_[100:170, 200:300])
    assert white == pytest.approx(1.0, abs=1e-3)
    assert loud == pytest.approx(claps_of(source, np.s_[:])[1] - old[0], abs=2e-3)
    # two recordings in one: the clock starts anew
    joined = tmp_path / "joined.ts"
    joined.write_bytes((tmp_path / "a.ts").read_bytes() * 2)
    times = np.concatenate([timeline.time, timeline.time + 12])
    rows = [row(frame, time, box=(10, 10, 60, 60)) for frame, time in enumerate(times)]
    write_overlay(joined, Timeline.from_rows(rows), tmp_path / "c.mp4")
    assert times_of(tmp_path / "c.mp4") == pytest.approx(times, abs=0.01)
    claps = heard(tmp_path / "c.mp4")
    assert claps == pytest.approx(heard(joined), abs=2e-3)
    assert claps == pytest.approx([1, 13], abs=0.15)


def test_segments_whose_sound_overlaps(tmp_path):
    parts = []
    for second in (20, 22):
        options = {"size": (320, 180), "clock": Fraction(1, 90000), "audio_start": second}
        pictures, times = partial(dark, white=15, size=(320, 180)), second + np.arange(60) / 30
        parts.append(write_media(tmp_path / f"{second}.ts", pictures, times, clap(2.3, 0.5), **options))
    source = tmp_path / "a.ts"
    source.write_bytes(b"".join(Path(part).read_bytes() for part in parts))
    assert (np.diff([time for time, _ in sound_of(source)]) < 0).any()
    rows = [row(frame, frame / 30, box=(10, 10, 60, 60)) for frame in range(120)]
    write_overlay(source, Timeline.from_rows(rows), tmp_path / "b.mp4")
    assert np.diff(times_of(tmp_path / "b.mp4")) == pytest.approx(np.full(119, 1 / 30), abs=1e-4)
    assert (np.diff([time for time, _ in sound_of(tmp_path / "b.mp4")]) > 0).all()
    assert heard(tmp_path / "b.mp4") == pytest.approx([0.5, 2.5], abs=0.03)


@pytest.mark.parametrize(
    ("container", "codec", "suffix", "copied"),
    [
        ("mkv", "pcm_s16le", ".mp4", False),
        ("mkv", "pcm_s16le", ".mkv", True),
        ("avi", "adpcm_ms", ".mkv", False),
        ("mkv", "libopus", ".mp4", True),
        ("mkv", "libopus", ".mov", False),
        ("mkv", "libmp3lame", ".mp4", True),
        ("mkv", "flac", ".mp4", True),
    ],
)
def test_sound_is_copied_if_the_format_holds_it(tmp_path, container, codec, suffix, copied):
    source = write_media(
        tmp_path / f"a.{container}",
        partial(dark, white=45, size=(320, 180)),
        np.arange(75) / 30,
        clap(2.25, 1.25),
        audio_start=0.25,
        size=(320, 180),
        codec="mjpeg",
        pix_fmt="yuvj420p",
        audio_codec=codec,
    )
    write_overlay(source, timeline_of(source, box=(10, 10, 60, 60)), tmp_path / f"b{suffix}")
    with av.open(source) as before, av.open(str(tmp_path / f"b{suffix}")) as after:
        old, new = before.streams.audio[0].codec_context, after.streams.audio[0].codec_context
        assert new.name == (old.name if copied else "aac")
        assert new.sample_rate == old.sample_rate
    if copied:
        assert [data for _, data in sound_of(tmp_path / f"b{suffix}")] == [data for _, data in sound_of(source)]
    white, loud = claps_of(tmp_path / f"b{suffix}", np.s_[100:170, 200:300])
    assert loud - white == pytest.approx(np.diff(claps_of(source, np.s_[:]))[0], abs=0.01)


def test_a_gap_of_the_sound_is_kept(tmp_path):
    options = {"size": (320, 180), "audio_codec": "pcm_s16le"}
    pictures = partial(dark, white=45, size=(320, 180))
    whole = write_media(tmp_path / "a.mkv", pictures, np.arange(75) / 30, clap(2.5, 1.5), **options)
    with av.open(whole) as container, av.open(str(tmp_path / "b.mkv"), "w") as gapped:
        streams = {stream: gapped.add_stream_from_template(stream) for stream in container.streams}
        for packet in container.demux():
            if packet.size and not (packet.stream.type == "audio" and 0.5 < packet.pts * packet.time_base < 1):
                packet.stream = streams[packet.stream]
                gapped.mux(packet)
    write_overlay(tmp_path / "b.mkv", timeline_of(whole), tmp_path / "c.mp4")
    with av.open(str(tmp_path / "c.mp4")) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
    assert heard(tmp_path / "c.mp4") == pytest.approx([1.5], abs=0.03)


@pytest.mark.parametrize(
    ("size", "box", "shown"),
    [
        ((1, 1), None, (320, 320)),
        ((33, 21), (3, 3, 15, 15), (320, 204)),
        ((641, 359), (100, 80, 180, 180), (642, 360)),
        ((1000, 10), (100, 2, 130, 8), (1000, 160)),
        ((90, 160), (10, 80, 80, 160), (320, 320)),
    ],
)
def test_any_size_without_sound(tmp_path, size, box, shown):
    pictures = partial(grey, size=size)
    source = write_media(tmp_path / "a.mkv", pictures, np.arange(5) / 30, size=size, codec="ffv1", pix_fmt="bgr0")
    write_overlay(source, timeline_of(source, box=box), tmp_path / "b.mp4")
    overlay = pictures_of(tmp_path / "b.mp4")
    assert overlay.shape[0] == 5
    assert overlay.shape[2] == shown[0]
    assert overlay.shape[1] > shown[1] + 50
    (strip,) = {int(np.flatnonzero((picture > 230).all((1, 2)))[0]) for picture in overlay}  # its first line is white
    assert abs(strip - shown[1]) <= 1
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert not container.streams.audio
    if size == (33, 21):  # enlarged with the picture
        scale = 320 / 33
        assert is_color(overlay[2][round(5 * scale) : round(14 * scale), round(3 * scale) + 1], GREEN, 70).mean() > 0.8


def halves(index):
    """Red above and blue below, 320x180."""
    picture = np.zeros((180, 320, 3), np.uint8)
    picture[:90, :, 0] = picture[90:, :, 2] = 200
    return picture


def test_the_picture_stands_upright(tmp_path):
    options = {"size": (320, 180), "options": {"crf": "10"}}
    source = write_media(tmp_path / "a.mp4", halves, np.arange(5) / 30, rotation=90, **options)
    write_overlay(source, timeline_of(source, box=(20, 200, 100, 300)), tmp_path / "b.mp4")
    picture = pictures_of(tmp_path / "b.mp4")[2]
    assert picture.shape[1] == 320  # 180 px and a margin
    left = (320 - 180) // 2
    assert picture[20, left + 10, 0] > 150  # turned counterclockwise, what was above is left
    assert picture[300, left + 170, 2] > 150
    assert is_color(picture[210:290, left + 21], GREEN).mean() > 0.8
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0

    source = write_media(tmp_path / "c.mp4", halves, np.arange(5) / 30, aspect=Fraction(2), **options)
    write_overlay(source, timeline_of(source, box=(400, 20, 500, 120)), tmp_path / "d.mp4")
    picture = pictures_of(tmp_path / "d.mp4")[2]
    assert picture.shape[1] == 640
    assert is_color(picture[40:110, 401], GREEN).mean() > 0.8


def test_colours_stay(tmp_path):
    """Of HD, which players and FFmpeg take to be of another matrix than what is small."""
    color = np.array([200, 60, 30], np.uint8)
    source = write_media(
        tmp_path / "a.mkv",
        lambda index: np.broadcast_to(color, (720, 1280, 3)).copy(),
        np.arange(3) / 30,
        size=(1280, 720),
        codec="ffv1",
        pix_fmt="bgr0",
    )
    write_overlay(source, timeline_of(source, box=(10, 10, 90, 90)), tmp_path / "b.mp4")
    with av.open(str(tmp_path / "b.mp4")) as container:
        frame = next(container.decode(video=0))
        assert frame.colorspace == 1  # BT.709, and it says so
        assert frame.to_ndarray(format="rgb24")[300:600, 600:1200].mean((0, 1)) == pytest.approx(color, abs=3)


def test_a_damaged_picture_shows_the_last_one(tmp_path):
    source = tmp_path / "a.mkv"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuvj420p"
        for index in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((180, 320, 3), 20 * index, np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                if index in (0, 5):
                    damaged = av.Packet(bytes(200))
                    damaged.stream, damaged.pts, damaged.dts = stream, packet.pts, packet.dts
                    damaged.time_base, packet = packet.time_base, damaged
                container.mux(packet)
    rows = [row(frame, round(frame / 30, 3), box=(10, 10, 40, 40)) for frame in range(10)]
    with pytest.warns(IncompleteMediaWarning):
        write_overlay(source, Timeline.from_rows(rows), tmp_path / "b.mp4")
    levels = pictures_of(tmp_path / "b.mp4")[:, 150, 300].mean(-1)
    assert levels == pytest.approx([0, 20, 40, 60, 80, 80, 120, 140, 160, 180], abs=6)


def test_without_an_h264_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    times = [0, 0.04, 0.05, 0.3, 0.31, 0.5]
    options = {"size": (320, 180), "clock": Fraction(1, 90000)}
    source = write_media(tmp_path / "a.mp4", partial(grey, size=(320, 180)), times, **options)
    write_overlay(source, timeline_of(source), tmp_path / "b.mp4")
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    assert times_of(tmp_path / "b.mp4") == pytest.approx(times, abs=1 / 65535)
    assert is_color(pictures_of(tmp_path / "b.mp4")[3][90:170, 101], GREEN, 70).mean() > 0.8


class Cut(io.RawIOBase):
    """A pipe: it can not be wound back."""

    def seekable(self):
        return False


def test_sources(film, tmp_path):
    source, timeline, overlay = film
    with open(source, "rb") as file:
        data = file.read()
        write_overlay(file, timeline, tmp_path / "file.mp4")
    write_overlay(data, timeline, tmp_path / "bytes.mp4")

    requests = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            requests.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=os.path.dirname(source)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        write_overlay(f"http://127.0.0.1:{server.server_port}/a.mp4", timeline, tmp_path / "http.mp4")
    finally:
        server.shutdown()
        server.server_close()
    assert requests == ["/a.mp4"]  # fetched once
    for name in ("file", "bytes", "http"):
        assert (tmp_path / f"{name}.mp4").read_bytes() == overlay.read_bytes()
    for once in (Cut(), 0, "rtsp://127.0.0.1/a"):
        with pytest.raises(ValueError, match="can be read only once"):
            write_overlay(once, timeline, tmp_path / "once.mp4")


def test_what_does_not_fit_is_refused(film, tmp_path):
    source, timeline, _ = film

    def refused(timeline, message, source=source, path=tmp_path / "new" / "a.mp4", error=ValueError):
        with pytest.raises(error, match=message):
            write_overlay(source, timeline, path)
        assert not list(tmp_path.rglob("*.*"))

    rows = list(timeline)
    refused(Timeline.from_rows(rows[:50]), r"Frame 48 of the video has no row in the timeline ''")
    longer = [*rows, row(90, 3.0), row(91, 3.033)]
    refused(Timeline.from_rows(longer), r"The video has 90 frames and the timeline '' has rows up to frame 91")
    slow = [{**row, "time": row["time"] * 1.2} for row in rows]
    refused(Timeline.from_rows(slow), r"Frame 2 is at 0.067 s in the video and at 0.080 s in the timeline ''")
    refused(timeline.of_face(1), r"Frame 0 of the video has no row in the timeline 'a.mp4': .* with all of its faces")
    refused(timeline, r"can not be written to .*a.gif.*choose one of .mp4, .m4v, .mov, .mkv", path=tmp_path / "a.gif")
    refused(timeline, "There is no file", source=tmp_path / "none.mp4", error=FileNotFoundError)
    before = os.stat(source)
    with pytest.raises(ValueError, match="would overwrite the video that it is made of"):
        write_overlay(source, timeline, os.path.relpath(source))
    assert os.stat(source).st_mtime_ns == before.st_mtime_ns
