"""What users give: every row of the README's table of bad input has its test here, through the whole pipeline."""

import http.server
import io
import re
import threading
import time
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
from faces import draw_face
from media import write_sound, write_video
from transformers import pipeline

from sources_jca import IncompleteMediaWarning, Limits, MediaError, MediaLimitError


ROOT = Path(__file__).parents[1]
ROWS = {}  # name of the README's row: its test


def row(name):
    def register(test):
        ROWS[name] = test
        return test

    return register


def test_the_readme_has_these_rows():
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Bad input")[1].split("\n## ")[0]
    table = re.findall(r"^\| ([^|]+?) \| [^|]+ \|$", section, re.M)
    assert [name for name in table if name != "given"] == list(ROWS)


@pytest.fixture(scope="module")
def pipe(model_folder):
    return pipeline("audio-visual-emotion", model=model_folder)


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """4 s at 30 frames a second with noise."""
    waveform = np.random.default_rng(0).normal(0, 0.1, 4 * 44100).astype(np.float32)
    return Path(write_video(tmp_path_factory.mktemp("talk") / "talk.mkv", 120, waveform=waveform))


def complete(pipe, source, **options):
    """Rows of a source about which there is nothing to say."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", IncompleteMediaWarning)
        return pipe(source, **options)


def flags(rows, name):
    return [row[name] for row in rows]


def finite(rows):
    return bool(np.isfinite([[row["valence"], row["arousal"]] for row in rows]).all())


@row("no audio track")
def test_no_audio(pipe, silent_video):
    rows = complete(pipe, silent_video)
    assert len(rows) == 40
    assert not any(flags(rows, "audio_present"))
    assert finite(rows)


@row("silent audio")
def test_silence(pipe, tmp_path):
    rows = complete(pipe, write_video(tmp_path / "a.mp4", 60, waveform=np.zeros(88200, np.float32)))
    assert len(rows) == 60
    assert all(flags(rows, "audio_present"))  # there is sound, and it is silence
    assert finite(rows)


@row("no video track")
def test_no_video(pipe, tmp_path):
    with pytest.raises(MediaError, match=r"no video stream that can be decoded \(streams: audio\): give a video"):
        pipe(write_sound(tmp_path / "voice.mp4", "aac", 44100))


@row("no face at all")
def test_no_face(pipe, talk):
    rows = complete(pipe, str(talk), faces="detect")
    assert len(rows) == 120
    assert {(r["face"], r["box"], r["face_detected"], r["face_quality"]) for r in rows} == {(None, None, False, None)}
    assert all(flags(rows, "audio_present"))
    assert finite(rows)


@row("a face that appears late")
def test_late_face(pipe, tmp_path):
    def picture(index):
        out = np.full((180, 320, 3), 110, np.uint8)
        if index >= 90:
            draw_face(out, 4, (160, 90), 120)
        return out

    rows = complete(pipe, write_video(tmp_path / "late.mp4", 180, size=(320, 180), picture=picture), faces="detect")
    assert sorted({r["frame"] for r in rows}) == list(range(180))
    first = next(r["frame"] for r in rows if r["face"] == 0)
    assert 90 <= first <= 112  # faces are looked for every half second, and confirmed by a second look
    assert {r["face"] for r in rows if r["frame"] < 90} == {None}
    assert all(r["face"] == 0 and r["face_detected"] for r in rows if r["frame"] > 112)


@row("a file that is cut off")
def test_cut_off(pipe, talk, tmp_path):
    whole = talk.read_bytes()
    rng, outcomes = np.random.default_rng(0), []
    for size in sorted(rng.integers(len(whole) // 50, len(whole) * 95 // 100, 20)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                rows = pipe(whole[:size])
            except MediaError:
                outcomes.append("error")
                continue
        said = [str(w.message) for w in caught if w.category is IncompleteMediaWarning]
        missing = [float(found) for text in said for found in re.findall(r"lacks ([\d.]+) s", text)]
        end = rows[-1]["time"] + 1 / 30 + max(missing, default=0.0)
        assert end == pytest.approx(4, abs=0.6)  # containers round what they promise by up to half a second
        outcomes.append("said" if missing else "whole")
    assert outcomes.count("said") > 10


@row("a header that promises more than there is")
def test_promises(pipe, tmp_path):
    """An mp4 with its index in front: the index is whole, the frames are not."""
    path = tmp_path / "front.mp4"
    source = write_video(tmp_path / "source.mp4", 300)
    with av.open(source) as given, av.open(str(path), "w", options={"movflags": "faststart"}) as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + (len(data) - data.index(b"mdat")) * 6 // 10])
    with pytest.warns(IncompleteMediaWarning, match=r"lacks [\d.]+ s that its header promises and ends after [\d.]+ s"):
        rows = pipe(str(path))
    assert 60 < len(rows) < 270


@row("garbage, text, nothing")
@pytest.mark.parametrize("data", [bytes(range(256)) * 40, b"no media", b""])
def test_garbage(pipe, tmp_path, data):
    path = tmp_path / "garbage.mp4"
    path.write_bytes(data)
    for source in (str(path), data):
        with pytest.raises(MediaError, match="can not be opened as media"):
            pipe(source)


@row("a picture or a sound instead of a video")
def test_pictures_and_sounds(pipe, tmp_path):
    for suffix, codec, form in ((".jpg", "mjpeg", "yuvj420p"), (".png", "png", "rgb24")):
        path = tmp_path / f"picture{suffix}"
        with av.open(str(path), "w", format="image2") as container:
            stream = container.add_stream(codec, rate=1)
            stream.width, stream.height, stream.pix_fmt = 64, 48, form
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
            container.mux(stream.encode(None))
        with pytest.raises(MediaError, match="is a picture: give the video itself"):
            pipe(str(path))
    with pytest.raises(MediaError, match="no video stream"):
        pipe(write_sound(tmp_path / "sound.wav"))


@row("frames of 1 x 1 or of 8K")
def test_sizes(pipe, tmp_path):
    path = tmp_path / "one.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width = stream.height = 1
        stream.pix_fmt = "gray"
        for index in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((1, 1), 20 * index, np.uint8), format="gray")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for faces in ("center", "detect"):
        assert len(complete(pipe, str(path), faces=faces)) == 10
    path = write_video(
        tmp_path / "8k.mp4", 2, size=(7680, 4320), picture=lambda index: np.zeros((4320, 7680, 3), np.uint8)
    )
    assert len(complete(pipe, path)) == 2
    with pytest.raises(MediaLimitError, match=r"7680x4320 px, 10,000,000 pixels are allowed: .* Limits\.max_pixels"):
        pipe(path, limits=Limits(max_pixels=10_000_000))


@row("a single frame")
def test_one_frame(pipe, tmp_path):
    (only,) = complete(pipe, write_video(tmp_path / "one.mp4", 1))
    assert (only["time"], only["frame"]) == (0.0, 0)
    assert finite([only])


@row("NaN in the sound")
def test_nan(pipe, tmp_path):
    path = tmp_path / "nan.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mjpeg", rate=30)
        video.width, video.height, video.pix_fmt = 64, 48, "yuvj420p"
        audio = container.add_stream("pcm_f32le", rate=44100, layout="mono")
        for index in range(60):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), index, np.uint8), format="rgb24")
            frame.pts = index
            container.mux(video.encode(frame))
            sound = np.full((1, 1470), np.nan if index % 2 else 0.1, np.float32)
            frame = av.AudioFrame.from_ndarray(sound, format="flt", layout="mono")
            frame.sample_rate, frame.pts = 44100, index * 1470
            container.mux(audio.encode(frame))
        container.mux(video.encode(None))
    rows = pipe(str(path))
    assert len(rows) == 60
    assert finite(rows)


@row("paths that are long or not ASCII")
def test_paths(pipe, silent_video, tmp_path):
    data = Path(silent_video).read_bytes()
    folder = tmp_path.joinpath("面白い 視頻 ñ", *["long " * 40 + "x"] * 12)
    folder.mkdir(parents=True)
    for name in ("12:30 %03d gespräch é.mp4", "-i.mp4", "a'b\"c#?.mp4"):
        (folder / name).write_bytes(data)
        assert len(complete(pipe, str(folder / name))) == 40
    with pytest.raises(OSError, match="name too long|no file"):
        pipe("x" * 5000 + ".mp4")


@row("a folder, a file that is not there")
def test_no_file(pipe, tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder: give a video file"):
        pipe(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nowhere\.mp4"):
        pipe(str(tmp_path / "nowhere.mp4"))


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/hangs":
            time.sleep(3)
        elif self.path == "/endless":
            self.send_response(200)
            self.send_header("Content-Length", str(10 << 30))
            self.end_headers()
        elif self.path == "/endless-unsaid":
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(bytes(1 << 16))
        elif self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "http://example.com/video.mp4")
            self.end_headers()
        elif self.path == "/file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
        else:
            self.send_error(404)

    def log_message(self, *arguments):
        pass


@row("a URL that answers 404, hangs, never ends or leads elsewhere")
def test_urls(pipe):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    limits = Limits(timeout=0.5, max_bytes=1_000_000)
    cases = {
        "nothing": (MediaError, "HTTP 404"),
        "hangs": (MediaLimitError, r"sent nothing for 0\.5 s"),
        "endless": (MediaLimitError, "larger than 1,000,000 bytes"),
        "endless-unsaid": (MediaLimitError, "larger than 1,000,000 bytes"),
        "elsewhere": (MediaError, r"redirected to 'http://example\.com/video\.mp4', another host"),
        "file": (MediaError, "redirect|can not be fetched"),
    }
    try:
        for path, (kind, message) in cases.items():
            with pytest.raises(kind, match=message):
                pipe(f"http://127.0.0.1:{server.server_port}/{path}", limits=limits)
    finally:
        server.shutdown()


@row("a playlist")
@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{video}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{video}'\n",
        '<?xml version="1.0"?><MPD><BaseURL>{video}</BaseURL></MPD>',
    ],
)
def test_playlists(pipe, silent_video, tmp_path, text):
    for name in ("list.m3u8", "list.mp4"):
        path = tmp_path / name
        path.write_text(text.format(video=silent_video))
        for source in (str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
            with pytest.raises(MediaError, match="is a playlist, .*: give the video itself"):
                pipe(source)
