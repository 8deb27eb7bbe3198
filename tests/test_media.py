import http.server
import io
import itertools
import math
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
import warnings
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import media
import numpy as np
import pytest
from media import CLAP_SECONDS, CLAPPING, RATE, boxes, clap, dark, joined, usual_priority, weave, write_media

from media_jca import Waveform, decode, decode_picture, display_size, upright
from sources_jca import (
    IncompleteMediaWarning,
    Limits,
    MediaError,
    MediaLimitError,
    Visit,
    describe,
    open_media,
    streams_of,
)


def noise(index, size=(64, 48)):
    return np.random.default_rng(index).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)


def write_noise(path, seconds=2.0, **options):
    times = [index / 30 for index in range(round(seconds * 30))]
    return Path(write_media(path, noise, times, clap(seconds, 0.5), **options))


def read(source, limits=None, timing_only=False):
    """`(video events, seconds of sound, end event)`."""
    with open_media(source, limits or Limits()) as container:
        events = list(decode(container, 16_000, timing_only))
    assert [kind for kind, *_ in events].index("end") == len(events) - 1
    sound = [(seconds, samples) for kind, seconds, samples in events if kind == "audio"]
    heard = max((seconds + len(samples) / 16_000 for seconds, samples in sound), default=0.0)
    return [event for event in events if event[0] == "video"], heard, events[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def mp4(folder):
    """2 s of noise with the index at the end."""
    return write_noise(folder / "noise.mp4")


# Sources --------------------------------------------------------------------------------------------------------------

NAMES = ["12:30 talk.mp4", "frame%03d.mp4", "ü 顔 .mp4", f"{'n' * 240}.mp4", "concat:a|b.mp4", "pipe:0", "#?&'\".mp4"]


@pytest.mark.parametrize("name", NAMES)
def test_any_file_name_is_a_file(mp4, tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(mp4.read_bytes())
    monkeypatch.chdir(tmp_path)
    for source in (
        name,
        tmp_path / name,
        os.fspath(tmp_path / name),
        f"file://{urllib.parse.quote(str(tmp_path / name))}",
    ):
        frames, heard, _ = read(source)
        assert len(frames) == 60
        assert heard == pytest.approx(2, abs=0.05)


def test_bytes_and_file_objects(mp4):
    data = mp4.read_bytes()
    with open(mp4, "rb") as buffered, open(mp4, "rb", buffering=0) as raw:
        buffered.seek(100)  # it is read from its start, whoever has looked into it
        for source in (data, bytearray(data), memoryview(data), io.BytesIO(data), buffered, raw, buffered):
            assert len(read(source)[0]) == 60


class Careless:
    """Reads more than it is asked for."""

    def __init__(self, data):
        self.data = data

    def read(self, size):
        return self.data


def test_a_file_object_that_is_none(mp4):
    for source in (open(mp4, encoding="latin-1"), io.StringIO("text"), Careless(bytes(1 << 20))):  # noqa: SIM115
        with pytest.raises(MediaError, match="does not read as a binary file does: open it with mode 'rb'"):
            open_media(source)


def test_what_is_no_source():
    for source in (None, 1.5, [b"1", b"2"], object()):
        with pytest.raises(
            MediaError, match="holds no media: give a path, URL, bytes, binary file object or number of a web"
        ):
            open_media(source)


@pytest.mark.parametrize("name", ["index_first.mp4", "noise.mp4", "noise.mkv", "noise.ts", "noise.webm", "noise.avi"])
def test_a_pipe_need_not_be_wound_back(folder, tmp_path, name):
    options = {
        "index_first.mp4": {"container_options": {"movflags": "faststart"}},
        "noise.webm": {"codec": "libvpx", "options": media.VPX, "audio_codec": "libopus"},
        "noise.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "audio_codec": "pcm_s16le"},
    }
    path = write_noise(tmp_path / name, **options.get(name, {}))
    expected = read(path)
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as process:
        frames, heard, end = read(process.stdout)
    assert [seconds for _, seconds, _ in frames] == [seconds for _, seconds, _ in expected[0]]
    assert heard == pytest.approx(expected[1])
    assert end[2] == 0


def test_standard_input(mp4):
    code = """
import sys
from media_jca import decode
from sources_jca import open_media
print(sum(kind == "video" for kind, *_ in decode(open_media(sys.stdin.buffer), 16000)))
"""
    with open(mp4, "rb") as file:
        run = subprocess.run([sys.executable, "-c", code], stdin=file, capture_output=True, text=True, check=True)
    assert run.stdout == "60\n"


def test_a_pipe_is_read_no_further_than_the_limit():
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as process:
        with pytest.raises(MediaError):
            open_media(process.stdout)
        process.terminate()
    data = io.BytesIO(bytes(4096))
    data.seekable = lambda: False
    with pytest.raises(MediaLimitError, match=r"is longer than 4,000 bytes: .* larger Limits\.max_bytes"):
        open_media(data, Limits(max_bytes=4000))


def test_limit_of_a_pipe_in_the_middle(tmp_path):
    path = write_noise(tmp_path / "noise.ts", 6)
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as process:
        with open_media(process.stdout, Limits(max_bytes=path.stat().st_size // 2)) as container:
            got = []
            with pytest.raises(MediaLimitError, match="is longer than"):
                got.extend(decode(container, 16_000))
        process.stdout.close()
    assert 20 < sum(kind == "video" for kind, *_ in got) < 150


# What is no video -----------------------------------------------------------------------------------------------------


def picture_bytes(codec, container, pix_fmt, more=lambda output: None):
    file = io.BytesIO()
    with usual_priority(), av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        output.mux(stream.encode(av.VideoFrame.from_ndarray(noise(0), format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()


PICTURES = {
    "jpg": ("mjpeg", "image2pipe", "yuvj420p"),
    "png": ("png", "image2pipe", "rgb24"),
    "webp": ("libwebp", "webp", "yuv420p"),
    "bmp": ("bmp", "image2pipe", "bgr24"),
    "tiff": ("tiff", "image2pipe", "rgb24"),
    "avif": ("libsvtav1", "avif", "yuv420p"),
}


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="priorities of this kind are Linux's")
def test_files_are_made_at_the_usual_priority():
    """Where root runs SVT-AV1, all tests after it would go before everything else on the machine."""
    before = os.sched_getscheduler(0)
    picture_bytes(*PICTURES["avif"])
    assert os.sched_getscheduler(0) == before


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_is_named_as_one(kind, tmp_path):
    data = picture_bytes(*PICTURES[kind])
    path = tmp_path / f"still.{kind}"
    path.write_bytes(data)
    for source in (data, path, open(path, "rb")):  # noqa: SIM115
        with pytest.raises(MediaError, match="is a picture: give the video itself"):
            open_media(source)


def test_sound_alone(tmp_path):
    """A cover picture is no video."""
    cover = av.open(io.BytesIO(picture_bytes(*PICTURES["png"])))
    template = cover.streams.video[0]
    packet = next(packet for packet in cover.demux(template) if packet.size)

    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as output:
        audio = output.add_stream("libmp3lame", rate=RATE, layout="mono")
        picture = output.add_stream_from_template(template)
        picture.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(clap(1, 0.5)[None], format="flt", layout="mono")
        frame.sample_rate = RATE
        for piece in audio.encode(frame):
            output.mux(piece)
        packet.stream = picture
        output.mux(packet)
        output.mux(audio.encode(None))
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(
        MediaError, match=r"song\.mp3' has no video stream that can be decoded \(streams: audio, video\)"
    ):
        open_media(path)


REFUSED = {
    "a playlist": [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nnoise.mp4\n#EXT-X-ENDLIST\n",
        b"\xef\xbb\xbf#EXTM3U\nhttp://127.0.0.1/x\n",
        b"ffconcat version 1.0\nfile noise.mp4\n",
        b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
        b"[playlist]\nFile1=noise.mp4\n",
        b'<asx version="3.0"><entry><ref href="noise.mp4"/></entry></asx>',
        b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 5004 RTP/AVP 33\r\n",
    ],
    "a web page": [b"<!DOCTYPE html><html></html>", b"\n <html>"],
    "it is empty": [b""],
    "can not be opened as media": [
        b"The quick brown fox. " * 500,
        bytes(10_000),
        np.random.default_rng(0).bytes(50_000),
    ],
}


@pytest.mark.parametrize(
    ("what", "data"),
    [(what, data) for what, several in REFUSED.items() for data in several],
    ids=lambda x: repr(x)[:20],
)
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".txt", ".ffconcat", ".mpd", ".sdp"])
def test_what_would_open_other_files_is_refused(mp4, what, data, suffix):
    path = mp4.parent / f"list{suffix}"  # beside the video that it names
    path.write_bytes(data)
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as process:
        for source in (path, data, process.stdout):
            with pytest.raises(MediaError, match=what):
                open_media(source)


def test_a_sequence_of_pictures_is_refused(tmp_path):
    for number in range(3):
        (tmp_path / f"{number:03d}.jpg").write_bytes(picture_bytes(*PICTURES["jpg"]))
    with pytest.raises(FileNotFoundError):
        open_media(tmp_path / "%03d.jpg")


def with_reference(data, path):
    """An mp4 whose samples are in another file (ISO/IEC 14496-12, 8.7.2; QuickTime's alias with a path, record 2)."""
    name = str(path).replace("/", ":").encode()
    alias = bytes(150) + struct.pack(">hH", 2, len(name)) + name + bytes(len(name) % 2) + struct.pack(">hH", -1, 0)
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    box = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
    found = [low for name, low, _ in boxes(data) if name.endswith("dinf/dref")]
    assert len(found) == 2
    for low in reversed(found):
        length = struct.unpack_from(">I", data, low)[0]
        parents = [start for name, start, end in boxes(data) if start < low < end]
        changed = bytearray(data[:low] + box + data[low + length :])
        for start in parents:  # they are longer by as much
            struct.pack_into(">I", changed, start, struct.unpack_from(">I", changed, start)[0] + len(box) - length)
        data = bytes(changed)
    return data


def test_a_mov_can_not_lead_to_another_file(mp4, tmp_path):
    other = tmp_path / "other.mov"
    other.write_bytes(mp4.read_bytes())
    data = with_reference(mp4.read_bytes(), other)
    # FFmpeg follows it if it is told to
    with av.open(io.BytesIO(data), options={"enable_drefs": "1", "use_absolute_path": "1"}) as container:
        assert len(list(container.decode(video=0))) == 60
    with pytest.raises(MediaError, match="holds no video frame that can be decoded"):
        read(data)


def test_wrong_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file 'nowhere\.mp4'"):
        open_media("nowhere.mp4")
    with pytest.raises(IsADirectoryError, match="is a folder: give a video file"):
        open_media(tmp_path)
    with pytest.raises(
        MediaError, match=r"'gopher://127\.0\.0\.1/x': gopher is not known\. Choose one of http, https, rtsp"
    ):
        open_media("gopher://127.0.0.1/x")


# Addresses ------------------------------------------------------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    """What `self.server.data` is, as the path says."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def head(self, code=200, **fields):
        self.send_response(code)
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def drip(self, data):
        for byte in data:
            self.wfile.write(bytes([byte]))
            time.sleep(0.02)

    def do_GET(self):
        data, (path, _, query) = self.server.data, self.path.partition("?")
        self.close_connection = True
        try:
            if path == "/redirect":
                self.head(302, Location=urllib.parse.unquote(query), Content_Length=0)
            elif path == "/missing":
                self.head(404, Content_Length=0)
            elif path == "/locked" and self.headers["Authorization"] != "Basic bWU6cEBzcw==":
                self.head(401, Content_Length=0)
            elif path == "/silent":
                time.sleep(5)
            elif path == "/slow_head":
                self.drip(b"HTTP/1.1 200 OK\r\nX: " + bytes(1000))
            elif path == "/slow_body":
                self.head(Connection="close")
                self.drip(data)
            elif path == "/endless":
                self.head(Transfer_Encoding="chunked")
                while True:
                    self.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
            elif path == "/huge":
                self.head(Content_Length=1 << 50)
            elif path == "/cut":
                self.head(Content_Length=len(data) + 1)
                self.wfile.write(data)
            elif path == "/cut_piece":
                self.head(Transfer_Encoding="chunked")
                self.wfile.write(b"%x\r\n" % len(data) + data[:-1])
            elif path == "/pieces":
                self.head(Transfer_Encoding="chunked")
                self.wfile.write(b"%x\r\n" % len(data) + data + b"\r\n0\r\n\r\n")
            elif path == "/page":
                self.head(Content_Length=20)
                self.wfile.write(b"<html>Not here</html")
            elif path == "/list":
                self.head(Content_Length=24)
                self.wfile.write(b"#EXTM3U\n/etc/passwd     ")
            else:
                self.head(Content_Length=len(data))
                self.wfile.write(data)
        except OSError:
            pass  # the other side has had enough


@pytest.fixture(scope="module")
def site(mp4):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.data, server.daemon_threads = mp4.read_bytes(), True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["video.mp4", "pieces", "ü%20 ?a=1&b=ä#part", "redirect?/video.mp4"])
def test_a_url_is_fetched(site, path):
    frames, heard, end = read(f"http://{site}/{path}")
    assert len(frames) == 60
    assert heard == pytest.approx(2, abs=0.05)
    assert end[2] == 0


def test_a_password_opens_and_is_not_told(site):
    assert len(read(f"http://me:p%40ss@{site}/locked")[0]) == 60
    with pytest.raises(MediaError, match=f"'http://{site}/locked' can not be fetched .HTTP 401 Unauthorized") as error:
        open_media(f"http://me:wrong@{site}/locked")
    assert "wrong" not in str(error.value)
    with pytest.raises(MediaError) as error:
        open_media("rtsp://admin:secret@127.0.0.1:1/")
    assert "secret" not in str(error.value)


QUICK = Limits(max_bytes=1_000_000, timeout=0.5, max_download_seconds=1.0)


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("missing", MediaError, r"can not be fetched \(HTTP 404 Not Found\): is the address right\?"),
        ("silent", MediaLimitError, r"the server sent nothing for 0\.5 s: .* larger Limits\.timeout"),
        ("slow_head", MediaLimitError, r"was not fetched within 1 s: .* larger Limits\.max_download_seconds"),
        ("slow_body", MediaLimitError, r"was not fetched within 1 s: .* larger Limits\.max_download_seconds"),
        ("endless", MediaLimitError, r"is larger than 1,000,000 bytes .* larger Limits\.max_bytes"),
        ("huge", MediaLimitError, r"is larger than 1,000,000 bytes \(1,125,899,906,842,624\)"),
        ("cut", MediaError, r"broke off after ([\d,]+) of [\d,]+ bytes: try again"),
        ("cut_piece", MediaError, "broke off: try again"),
        ("page", MediaError, "is a web page: give the video itself"),
        ("list", MediaError, "is a playlist"),
        (
            "redirect?http://localhost:80/video.mp4",
            MediaError,
            r"is redirected to 'http://localhost:80/video\.mp4', another",
        ),
        ("redirect?http://127.0.0.1:1/video.mp4", MediaError, "another host or port: give that URL itself"),
        ("redirect?http://169.254.169.254/latest", MediaError, r"another host or port.*Limits\.redirect_hosts"),
        ("redirect?http://127.0.0.1.evil.test/", MediaError, "another host or port"),
        ("redirect?file:///etc/hostname", MediaError, "file:///etc/hostname"),
        ("redirect?ftp://127.0.0.1/x", MediaError, "another host or port|can not be fetched"),
        ("redirect?/redirect?/redirect", MediaError, "can not be fetched"),
    ],
)
def test_what_a_server_may_do(site, path, kind, message):
    begun = time.monotonic()
    with pytest.raises(kind, match=message) as error:
        open_media(f"http://{site}/{path}", QUICK)
    assert f"'http://{site}/{path}'" in str(error.value)
    assert type(error.value) is kind
    assert time.monotonic() - begun < 4  # the silent server would take 5


def test_redirects_that_are_allowed(site):
    port = site.partition(":")[2]
    url = f"http://{site}/redirect?http://localhost:{port}/video.mp4"
    assert len(read(url, Limits(redirect_hosts=("localhost",)))[0]) == 60
    assert len(read(url, Limits(redirect_hosts=("*.org", "local*")))[0]) == 60
    with pytest.raises(MediaError, match="another host"):
        open_media(url, Limits(redirect_hosts=("*.localhost",)))


def test_a_public_host_may_not_lead_to_a_private_address(site):
    visit = Visit(f"http://{site}/video.mp4", QUICK)
    with visit.open() as response:
        assert response.status == 200
    assert visit.private
    visit.private = False  # as if the URL's own host had had a public address
    with pytest.raises(MediaError, match=r"leads to the private address 127\.0\.0\.1: fetch it yourself"):
        visit.open()


def test_encryption_is_not_given_up():
    visit = Visit("https://media.test/video.mp4", QUICK)
    visit.redirect("https://www.media.test/other.mp4")
    with pytest.raises(MediaError, match="without encryption"):
        visit.redirect("http://media.test/video.mp4")


def test_addresses_of_nobody():
    for url, message in {
        "http://127.0.0.1:1/x": "can not be fetched .*[Rr]efused",
        "http://[::1": "is no address",
        "http:///x": "can not be fetched",
        "srt://127.0.0.1:1": "built without its protocol|can not be opened",
        "tcp://127.0.0.1:1": "can not be opened as media .*refused.*: is the address right, and is it sending",
    }.items():
        with pytest.raises(MediaError, match=message):
            open_media(url, QUICK)


def test_a_download_leaves_no_file(site, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with open_media(f"http://{site}/video.mp4"):
        assert list(tmp_path.iterdir()) == [] or os.name == "nt"
    with pytest.raises(MediaError):
        open_media(f"http://{site}/page")
    assert list(tmp_path.iterdir()) == []


# Live -----------------------------------------------------------------------------------------------------------------


LIVE = {"tune": "zerolatency", "g": "15"}


def send(connection, data, seconds=0.0):
    with connection:
        for start in range(0, len(data), 1316):
            connection.sendall(data[start : start + 1316])
        time.sleep(seconds)


@pytest.fixture(scope="module")
def stream(folder):
    """6 s of MPEG-TS."""
    return write_noise(folder / "live.ts", 6, options=LIVE).read_bytes()


def serve(talk):
    """The port at which `talk(connection)` answers whoever comes."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer():
        with server:
            talk(server.accept()[0])

    threading.Thread(target=answer, daemon=True).start()
    return server.getsockname()[1]


def test_tcp(stream):
    frames, heard, end = read(f"tcp://127.0.0.1:{serve(partial(send, data=stream))}")
    assert len(frames) == 180
    assert heard == pytest.approx(frames[0][1] + 6, abs=0.1)
    assert end[2] == 0


def test_a_live_source_that_stops(stream):
    """It may still be open: what has come is used."""
    port = serve(partial(send, data=stream, seconds=5))
    with pytest.warns(IncompleteMediaWarning, match=r"breaks off after [56]\.\d s"):
        frames, _, end = read(f"tcp://127.0.0.1:{port}", QUICK)
    assert len(frames) >= 175
    assert math.isinf(end[2])


def test_a_live_source_that_never_begins():
    for scheme in ("tcp", "rtsp"):
        begun, port = time.monotonic(), serve(lambda connection: time.sleep(10))
        with pytest.raises(MediaLimitError, match=r"nothing that can be played came for 0\.5 s.*Limits\.timeout"):
            open_media(f"{scheme}://127.0.0.1:{port}", QUICK)
        assert time.monotonic() - begun < 8  # it would take 10


def test_udp(stream):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = threading.Event()

    def talk():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not done.is_set():
                for start in range(0, len(stream), 1316):
                    sender.sendto(stream[start : start + 1316], ("127.0.0.1", port))
                    time.sleep(0.001)

    threading.Thread(target=talk, daemon=True).start()
    with open_media(f"udp://127.0.0.1:{port}", Limits(timeout=5)) as container:
        events = decode(container, 16_000)
        assert sum(kind == "video" and frame is not None for kind, _, frame in (next(events) for _ in range(200))) > 20
    done.set()


def test_rtsp(stream):
    """A camera that sends MPEG-TS in RTP over its RTSP connection (RFC 2326, RFC 3551)."""
    asked = []

    def talk(connection):
        with connection, connection.makefile("rwb") as lines:
            while True:
                request = []
                while line := lines.readline().strip().decode():
                    request.append(line)
                method, fields, body = request[0].split()[0], [], b""
                asked.append(method)
                if method == "DESCRIBE":
                    body = (
                        b"v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track\r\n"
                    )
                    fields = ["Content-Type: application/sdp"]
                elif method == "SETUP":
                    fields = ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 1"]
                fields += [line for line in request if line.startswith("CSeq")] + [f"Content-Length: {len(body)}"]
                lines.write("\r\n".join(["RTSP/1.0 200 OK", *fields, "", ""]).encode() + body)
                lines.flush()
                if method == "PLAY":
                    break
            for number, start in enumerate(range(0, len(stream), 1316)):
                packet = struct.pack(">BBHII", 0x80, 33, number, number * 3000, 1) + stream[start : start + 1316]
                lines.write(struct.pack(">cBH", b"$", 0, len(packet)) + packet)

    frames, heard, _ = read(f"rtsp://127.0.0.1:{serve(talk)}/camera", Limits(timeout=5))
    assert asked[-3:] == ["DESCRIBE", "SETUP", "PLAY"]
    assert len(frames) >= 175
    assert heard == pytest.approx(frames[0][1] + 6, abs=0.2)


def test_a_webcam_that_is_not_there():
    with pytest.raises(
        (FileNotFoundError, MediaError), match="There is no webcam 97 .*is it plugged in|Webcams can not be"
    ):
        open_media(97)


def test_a_live_pipe_gives_what_it_has(tmp_path):
    """FFmpeg would look for 5 s for a sound that is listed and does not come, and a buffered pipe for its 32 KiB."""
    path = write_media(
        tmp_path / "live.ts", partial(dark, white=-1), [i / 30 for i in range(60)], clap(2, 1), options=LIVE
    )
    data = Path(path).read_bytes()
    packets = [data[start : start + 188] for start in range(0, len(data), 188)]
    silent = b"".join(packet for packet in packets if int.from_bytes(packet[1:3], "big") & 0x1FFF != 0x101)
    assert len(silent) < 32_768
    read_end, write_end = os.pipe()
    had, given_up = threading.Event(), threading.Event()

    def talk():
        with os.fdopen(write_end, "wb", buffering=0) as sender:
            sender.write(silent)
            if not had.wait(20):
                given_up.set()

    thread = threading.Thread(target=talk)
    thread.start()
    with os.fdopen(read_end, "rb") as pipe, open_media(pipe) as container:
        events = decode(container, 16_000)
        for _ in range(20):
            assert next(events)[0] == "video"
        assert not given_up.is_set()  # the rest has not been sent yet
        had.set()
        assert sum(kind == "video" for kind, *_ in events) == 40
    thread.join()


# Time -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def claps(folder):
    """By name, the path of a file of `CLAPPING`."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = folder / name
            CLAPPING[name](made[name])
        return made[name]

    return get


def seen_and_heard(path, limits=None):
    """Seconds of the pictures, of the white ones, of the loud samples, from the first picture on; and the end."""
    times, white, sound = [], [], Waveform()
    with open_media(path, limits or Limits()) as container:
        for kind, seconds, data in decode(container, 44_100):
            if kind == "video":
                times.append(seconds)
                if upright(data).mean() > 128:
                    white.append(seconds)
            elif kind == "audio":
                sound.write(round(seconds * 44_100), data)
            else:
                end = seconds, data
    start = round((times[0] - 5) * 44_100)
    samples, _ = sound.read(start, sound.end)
    loud = (np.flatnonzero(np.abs(samples) > 0.2) + start) / 44_100
    return np.array(times) - times[0], np.array(white) - times[0], loud - times[0], (end[0] - times[0], end[1])


@pytest.mark.parametrize("name", CLAPPING)
@pytest.mark.filterwarnings("error::sources_jca.IncompleteMediaWarning")
def test_a_clap_is_seen_and_heard_when_it_was(claps, name):
    times, white, loud, (end, missing) = seen_and_heard(claps(name))
    assert white == pytest.approx([CLAP_SECONDS], abs=0.5 / 30)
    assert loud[0] == pytest.approx(CLAP_SECONDS, abs=0.5 / 30)
    assert loud[-1] == pytest.approx(CLAP_SECONDS + 0.04, abs=0.5 / 30)
    assert (np.diff(times) > 0).all()
    assert times[-1] == pytest.approx(9, abs=0.1)
    assert len(times) == 270 or name.startswith("variable_rate")
    assert missing == 0  # nor a warning
    assert end == pytest.approx(14 if name == "audio_longer.mp4" else 9, abs=0.1)


def test_pictures_are_at_the_time_that_was_written(claps):
    times, *_ = seen_and_heard(claps("variable_rate.mkv"))
    steps = np.diff(times)
    assert steps.max() == pytest.approx(1.5, abs=0.1)
    assert np.median(steps) == pytest.approx(0.045, abs=0.01)


def test_timing_alone_is_that_of_the_pictures(claps):
    for name in ("b_frames.mp4", "edited.mp4", "variable_rate.mp4", "audio_first.ts", "web.webm", "h264.mkv"):
        path = claps(name) if name in CLAPPING else write_noise(claps("b_frames.mp4").parent / name)
        decoded, alone = read(path)[0], read(path, timing_only=True)[0]
        assert [seconds for _, seconds, _ in alone] == [seconds for _, seconds, _ in decoded]
        assert all(frame is None for *_, frame in alone)


@pytest.mark.parametrize("options", [{}, {"codec": "mpeg2video", "audio_codec": "mp2"}], ids=["ts", "mpg"])
def test_recordings_one_after_the_other(tmp_path, options):
    path = tmp_path / ("joined.mpg" if options else "joined.ts")
    joined(path, **options)
    times, white, loud, (end, missing) = seen_and_heard(path)
    assert len(times) == 1170
    assert white == pytest.approx([37], abs=0.1)
    assert np.diff(times).max() < 0.1
    # wherever the seam is: both are still together
    assert loud[loud > 30][0] == pytest.approx(white[0], abs=0.5 / 30)
    assert end == pytest.approx(39, abs=0.1)
    assert missing == 0


def test_sound_that_is_stored_after_all_pictures(tmp_path):
    """Neither clock has started anew, though the second begins 30 s back."""
    path = tmp_path / "apart.mkv"
    waveform = clap(40, CLAP_SECONDS)
    with av.open(str(path), "w", container_options={"max_interleave_delta": "1"}) as output:
        video = output.add_stream("libx264", rate=30, options={"bf": "0"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = output.add_stream("mp2", rate=RATE, layout="mono")
        for index in range(1200):
            frame = av.VideoFrame.from_ndarray(dark(index, 210), format="rgb24")
            frame.pts = index
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        for start in range(0, len(waveform), 1152):
            frame = av.AudioFrame.from_ndarray(
                (waveform[None, start : start + 1152] * 32767).astype(np.int16), "s16", "mono"
            )
            frame.sample_rate, frame.pts = RATE, start
            output.mux(audio.encode(frame))
    times, white, loud, (end, missing) = seen_and_heard(path)
    assert white == pytest.approx([CLAP_SECONDS], abs=0.5 / 30)
    assert loud[0] == pytest.approx(CLAP_SECONDS, abs=0.5 / 30)
    assert len(times) == 1200
    assert end == pytest.approx(40, abs=0.2)
    assert missing == 0


def test_a_clock_that_leaps_does_not_last_for_years(tmp_path):
    """One damaged timestamp of a Matroska cluster."""
    data = bytearray(write_noise(tmp_path / "leap.mkv", 12, options={"g": "30"}).read_bytes())
    clusters = [i for i in range(len(data)) if data[i : i + 4] == b"\x1f\x43\xb6\x75"]
    at = data.index(b"\xe7", clusters[1])  # the timestamp, in milliseconds
    length = data[at + 1] & 0x7F
    before = int.from_bytes(data[at + 2 : at + 2 + length], "big")
    data[at + 2] ^= 0x80
    assert int.from_bytes(data[at + 2 : at + 2 + length], "big") - before > 30_000
    frames, _, end = read(bytes(data))
    assert len(frames) == pytest.approx(360, abs=4)
    assert frames[-1][1] == pytest.approx(12, abs=1)
    assert end[1] == pytest.approx(12, abs=1)


def test_sound_that_is_no_number_is_silence(tmp_path):
    waveform = clap(2, 0.5)
    waveform[20_000:20_100] = np.nan
    waveform[40_000:40_100] = np.inf
    waveform[60_000:60_100] = -1e30
    times = [index / 30 for index in range(60)]
    path = write_media(
        tmp_path / "float.mkv", noise, times, waveform, audio_codec="pcm_f32le", codec="mjpeg", pix_fmt="yuvj420p"
    )
    for rate in (RATE, 44_100):
        with open_media(path) as container:
            pieces = [samples for kind, _, samples in decode(container, rate) if kind == "audio"]
        sound = np.concatenate(pieces)
        assert np.isfinite(sound).all()
        assert np.abs(sound).max() < 1.3
        assert np.abs(sound[round(0.5 * rate) : round(0.54 * rate)]).max() > 0.5
        assert sound.dtype == np.float32


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8])
def test_sound_of_any_channels_and_rate_becomes_one(channels):
    sound = np.sin(np.arange(32_000) * 2 * np.pi * 440 / 32_000)
    file = io.BytesIO()
    with av.open(file, "w", format="nut") as output:
        video = output.add_stream("mjpeg", rate=30)
        video.width, video.height, video.pix_fmt = 64, 48, "yuvj420p"
        layout = {1: "mono", 2: "stereo", 3: "2.1", 6: "5.1", 8: "7.1"}[channels]
        audio = output.add_stream("pcm_s16le", rate=32_000, layout=layout)
        for index in range(30):
            frame = av.VideoFrame.from_ndarray(noise(index), format="rgb24")
            frame.pts = index
            output.mux(video.encode(frame))
        samples = np.repeat((sound * 8000).astype(np.int16), channels)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
        frame.sample_rate, frame.pts = 32_000, 0
        output.mux(audio.encode(frame))
        output.mux(video.encode(None))
    with open_media(file) as container:
        heard = np.concatenate([samples for kind, _, samples in decode(container, 16_000) if kind == "audio"])
    spectrum = np.abs(np.fft.rfft(heard[:16_000]))
    assert len(heard) == pytest.approx(16_000, abs=100)
    assert spectrum.argmax() == 440


# Complete and damaged -------------------------------------------------------------------------------------------------

CUT = {  # of 9 s each: whether the container promises how long it is
    "fast_start.mp4": True,
    "b_frames.mp4": True,
    "audio_first.mkv": True,
    "web.webm": True,
    "old.avi": True,
    "flash.flv": True,
    "studio.mxf": True,
    "phone.3gp": True,
    "film.mov": True,
    "fragmented.mp4": False,
    "late_start.ts": False,
    "disc.mpg": False,
    "free.ogv": False,
    "live.webm": False,
}


@pytest.mark.parametrize("name", CUT)
def test_what_is_cut_off_says_how_much_is_missing(claps, name):
    data = claps(name).read_bytes()
    whole, sound, _ = read(data)
    said = 0
    for share in np.random.default_rng(0).uniform(0.05, 0.95, 20):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                frames, heard, (_, _, missing) = read(data[: int(share * len(data))])
            except MediaError:
                continue
        if not heard:
            continue  # half an index may list one stream, or both of which one has nothing
        lost = max(whole[-1][1] - frames[-1][1], sound - heard)
        if CUT[name]:
            assert missing == pytest.approx(lost, abs=1)
        else:
            assert missing == 0 or math.isinf(missing)
        notes = [note for note in told if "lacks" in str(note.message) or "breaks off" in str(note.message)]
        assert len(notes) == (missing > 0)
        assert all(note.category is IncompleteMediaWarning and note.filename == __file__ for note in notes)
        said += missing > 0
    if name in ("fast_start.mp4", "audio_first.mkv", "old.avi", "studio.mxf"):
        assert said >= 4


def test_a_header_that_claims_more_than_its_table_lists(mp4):
    """All samples have come: whoever wrote a longer duration has not written more."""
    data = bytearray(mp4.read_bytes())
    for name, low, _ in boxes(bytes(data)):
        if name in ("moov/mvhd", "moov/trak/mdia/mdhd"):
            (duration,) = struct.unpack_from(">I", data, low + 24)
            struct.pack_into(">I", data, low + 24, 5 * duration)
        elif name == "moov/trak/edts/elst":
            (duration,) = struct.unpack_from(">I", data, low + 16)
            struct.pack_into(">I", data, low + 16, 5 * duration)
    with warnings.catch_warnings():
        warnings.simplefilter("error", IncompleteMediaWarning)
        frames, _, end = read(bytes(data))
    assert len(frames) == 60
    assert end[2] == 0


def test_an_mp4_without_its_index_says_so(mp4):
    with pytest.raises(MediaError, match="its index, the moov box, is missing or damaged: was it cut off"):
        open_media(mp4.read_bytes()[: mp4.stat().st_size // 2])


class Failing(io.BytesIO):
    """A disk with a hole."""

    def read(self, size=-1):
        if self.tell() > 60_000:
            raise OSError(5, "Input/output error")
        return super().read(size)

    read1 = read


def test_an_error_in_the_middle_ends_it(tmp_path):
    path = write_noise(tmp_path / "noise.mkv", 6)
    assert path.stat().st_size > 120_000
    with pytest.warns(
        IncompleteMediaWarning, match=r"lacks \d\.\d s that its header promises and ends after \d.\d s .Input/o"
    ):
        frames, _, (_, seconds, missing) = read(Failing(path.read_bytes()))
    assert 10 < len(frames) < 150
    assert seconds + missing == pytest.approx(6, abs=0.5)


def spoil(path, numbers):
    """The file with all but the first bytes of some of its video packets overwritten."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for start, size in packets if numbers is None else [packets[number] for number in numbers]:
        start += 8 if data[start + 8 : start + 10] == b"\xff\xd8" else 0  # the head of an AVI's chunk
        data[start + 8 : start + size - 4] = b"\xff" * (size - 12)
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "options"),
    [("mjpeg.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "audio_codec": "pcm_s16le"}), ("h264.mkv", {})],
)
def test_damaged_packets_are_one_warning_and_keep_their_places(tmp_path, name, options):
    data = spoil(write_noise(tmp_path / name, 2, **options), (10, 11, 12, 30))
    with pytest.warns(IncompleteMediaWarning) as told:
        frames, *_ = read(data)
    assert [re.sub(r" \(.*\)", "", str(note.message)) for note in told] == [
        f"<{len(data)} bytes>: 4 of 60 video packets are damaged and left out."
    ]
    assert told[0].filename == __file__
    assert len(frames) == 60
    assert sum(frame is None for *_, frame in frames) == 4
    if name != "h264.mkv":  # whose packets are in another order
        assert [index for index, (*_, frame) in enumerate(frames) if frame is None] == [10, 11, 12, 30]
    assert [seconds for _, seconds, _ in frames] == pytest.approx([index / 30 for index in range(60)], abs=1e-3)


def test_places_of_a_long_damage_come_before_its_end(tmp_path):
    """Their times are not held until a picture can be decoded again."""
    times = [index / 30 for index in range(400)]
    options = {"codec": "mjpeg", "pix_fmt": "yuvj420p", "audio_codec": "pcm_s16le"}
    path = Path(write_media(tmp_path / "noise.avi", noise, times, clap(400 / 30, 1), **options))
    damaged = pytest.warns(IncompleteMediaWarning, match="380 of 400 video packets")
    with open_media(spoil(path, range(10, 390))) as container, damaged:
        events = list(decode(container, 16_000))
    last, latest = 0.0, 0.0
    for kind, seconds, _ in events:
        last = seconds if kind == "video" else last
        latest = max(latest, seconds - last) if kind == "audio" else latest
    assert last == pytest.approx(399 / 30)
    assert latest < 5


def test_sound_that_can_not_be_mixed_leaves_the_pictures():
    file = io.BytesIO()
    with av.open(file, "w", format="nut") as output:
        video, audio = (
            output.add_stream("mjpeg", rate=30),
            output.add_stream("pcm_s16le", rate=RATE, layout="9 channels"),
        )
        video.width, video.height, video.pix_fmt = 64, 48, "yuvj420p"
        for index in range(30):
            frame = av.VideoFrame.from_ndarray(noise(index), format="rgb24")
            frame.pts = index
            output.mux(video.encode(frame))
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1600 * 9), np.int16), format="s16", layout="9 channels")
            sound.sample_rate, sound.pts = RATE, 1600 * index
            output.mux(audio.encode(sound))
        output.mux(video.encode(None))
    with pytest.warns(IncompleteMediaWarning, match=r"30 of 30 audio packets are damaged \(Invalid argument\)"):
        frames, heard, _ = read(file)
    assert (len(frames), heard) == (30, 0)


def test_damaged_sound_leaves_the_pictures(tmp_path):
    path = write_noise(tmp_path / "noise.mkv", 2, audio_codec="flac")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    for start, size in packets[3:6]:
        data[start + 4 : start + size] = bytes(size - 4)
    with pytest.warns(IncompleteMediaWarning, match=r"3 of \d+ audio packets are damaged \(.*\) and left out"):
        frames, heard, _ = read(bytes(data))
    assert all(frame is not None for *_, frame in frames)
    assert len(frames) == 60
    assert heard == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
    "options", [{"codec": "mjpeg", "pix_fmt": "yuvj420p"}, {"codec": "libvpx", "options": media.VPX}]
)
def test_pictures_none_of_which_can_be_decoded(tmp_path, options):
    suffix = "webm" if options["codec"] == "libvpx" else "avi"
    data = spoil(
        write_noise(
            tmp_path / f"noise.{suffix}", 2, audio_codec="pcm_s16le" if suffix == "avi" else "libopus", **options
        ),
        None,
    )
    with pytest.raises(
        MediaError, match=r"holds no video frame that can be decoded \(Invalid data.*\): is the file complete"
    ):
        read(data)


def test_a_stream_without_a_decoder_is_none(tmp_path):
    data = write_noise(tmp_path / "noise.mkv").read_bytes()
    frames, heard, _ = read(data.replace(b"A_AAC", b"A_XYZ"))
    assert (len(frames), heard) == (60, 0)
    with open_media(data.replace(b"A_AAC", b"A_XYZ")) as container:
        assert streams_of(container)[1] is None
    with pytest.raises(MediaError, match=r"has no video stream that can be decoded \(streams: video, audio\)"):
        open_media(data.replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ"))


def test_tags_of_another_century(tmp_path):
    data = write_noise(
        tmp_path / "noise.mkv", more=lambda output: output.metadata.update(title="Gespraech")
    ).read_bytes()
    assert b"Gespraech" in data
    assert len(read(data.replace(b"Gespraech", b"Gespr\xe4ch!"))[0]) == 60


# Limits ---------------------------------------------------------------------------------------------------------------


def test_frames_are_not_larger_than_allowed(tmp_path, claps):
    path = write_noise(tmp_path / "noise.mp4")
    assert len(read(path, Limits(max_pixels=64 * 48))[0]) == 60
    with pytest.raises(
        MediaLimitError, match=r"has frames of 64x48 px, 3,000 pixels are allowed: .* Limits\.max_pixels"
    ):
        open_media(path, Limits(max_pixels=3000))
    limits = Limits(max_pixels=5000)  # of two_sizes.ts the second is larger
    for name in ("two_sizes.ts", "two_sizes.mkv"):
        with open_media(claps(name), limits) as container:
            got = []
            with pytest.raises(MediaLimitError, match=r"has frames of 96x64 px, 5,000 pixels are allowed"):
                got.extend(decode(container, 16_000, limits=limits))
        assert 100 < sum(kind == "video" for kind, *_ in got) <= 120
    assert Limits().max_pixels > 7680 * 4320


def test_media_are_not_longer_than_allowed(claps):
    with pytest.raises(MediaLimitError, match=r"fast_start\.mp4' is 9 s long, 5 are allowed: .* Limits\.max_seconds"):
        open_media(claps("fast_start.mp4"), Limits(max_seconds=5))
    for name in ("late_start.ts", "live.webm"):  # which do not say how long they are
        limits, got = Limits(max_seconds=5), []
        longer = pytest.raises(MediaLimitError, match=r"is longer than 5 s: .* Limits\.max_seconds")
        with open_media(claps(name), limits) as container, longer:
            got.extend(decode(container, 16_000, limits=limits))
        assert sum(kind == "video" for kind, *_ in got) == pytest.approx(150, abs=10)
        assert len(seen_and_heard(claps(name), Limits(max_seconds=None))[0]) == 270


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read as on Linux")
def test_memory_does_not_grow(tmp_path):
    """Of a file with twelve times as many frames no more is held."""
    code = """
import re, sys
from pathlib import Path
from media_jca import decode, upright
from sources_jca import open_media
for path in sys.argv[1:]:
    with open_media(path) as container:
        for kind, _, data in decode(container, 16000):
            if kind == "video":
                upright(data, 16, 16)
    print(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
"""
    short, long = tmp_path / "short.mkv", tmp_path / "long.mkv"
    for path, count in ((short, 1000), (long, 12_000)):
        write_media(
            path,
            partial(dark, white=-1),
            [i / 30 for i in range(count)],
            clap(count / 30, 1),
            options={"preset": "ultrafast"},
        )
    run = subprocess.run([sys.executable, "-c", code, short, long], capture_output=True, text=True, check=True)
    before, after = map(int, run.stdout.split())
    assert after - before < 4000, (before, after)  # KiB: of each of the 11,000 more less than 370 bytes


# Pictures -------------------------------------------------------------------------------------------------------------

CORNERS = [(220, 30, 40), (40, 200, 60), (50, 60, 210), (230, 220, 60)]  # left and right above, left and right below


def corners(width=64, height=48):
    picture = np.zeros((height, width, 3), np.uint8)
    for number, colour in enumerate(CORNERS):
        y, x = divmod(number, 2)
        picture[y * height // 2 : (y + 1) * height // 2, x * width // 2 : (x + 1) * width // 2] = colour
    return picture


def first_frame(source):
    with open_media(source) as container:
        return next(data for kind, _, data in decode(container, 16_000) if kind == "video")


def colours(picture):
    """Of the middles of the quarters."""
    height, width, _ = picture.shape
    places = [(height // 4, width // 4), (height // 4, width * 3 // 4), (height * 3 // 4, width // 4)]
    return [picture[y, x].astype(int) for y, x in [*places, (height * 3 // 4, width * 3 // 4)]]


def assert_corners(picture, order=(0, 1, 2, 3), atol=6):
    for seen, number in zip(colours(picture), order, strict=True):
        np.testing.assert_allclose(seen, CORNERS[number], atol=atol)


FINE = {"crf": "1", "preset": "ultrafast"}


@pytest.mark.parametrize(
    ("turn", "size", "order"),
    [
        ({"rotation": 0}, (64, 48), (0, 1, 2, 3)),
        ({"rotation": 90}, (48, 64), (1, 3, 0, 2)),  # counterclockwise
        ({"rotation": 180}, (64, 48), (3, 2, 1, 0)),
        ({"rotation": 270}, (48, 64), (2, 0, 3, 1)),
        ({"rotation": 45}, None, None),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_turned_pictures_are_upright(tmp_path, turn, size, order, suffix):
    path = write_media(tmp_path / f"turned.{suffix}", lambda index: corners(), [0, 1 / 30], options=FINE, **turn)
    frame = first_frame(path)
    if size is None:  # no player shows that one either: it is shown somehow
        assert upright(frame).shape[2] == 3
        return
    assert display_size(frame) == size
    assert_corners(upright(frame), order)
    assert upright(frame).shape == (size[1], size[0], 3)
    small = upright(frame, size[0] // 4, size[1] // 4)
    assert small.shape == (size[1] // 4, size[0] // 4, 3)
    assert_corners(small, order)
    assert small.flags.c_contiguous


def test_every_orientation_of_a_track_header(mp4, tmp_path):
    """The matrix of `tkhd` (ISO/IEC 14496-12, 8.3.2) takes a pixel (x, y) to where it is shown."""
    path = Path(write_media(tmp_path / "plain.mp4", lambda index: corners(), [0, 1 / 30], options=FINE))
    data = path.read_bytes()
    end = next(high for name, _, high in boxes(data) if name == "moov/trak/tkhd")
    plain = corners()
    straight, turned = [(1, 0), (-1, 0)], [(0, 1), (0, -1)]
    for (a, b), (d, c) in [*itertools.product(straight, repeat=2), *itertools.product(turned, repeat=2)]:
        changed = bytearray(data)
        matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
        struct.pack_into(">9i", changed, end - 44, *matrix)
        shown = upright(first_frame(bytes(changed)))
        for y, x in ((5, 5), (5, 60), (40, 5), (40, 60)):
            place = a * x + c * y, b * x + d * y
            place = [p if p >= 0 else p + size - 1 for p, size in zip(place, shown.shape[1::-1], strict=True)]
            np.testing.assert_allclose(shown[place[1], place[0]].astype(int), plain[y, x], atol=6)


@pytest.mark.parametrize(
    ("aspect", "size"),
    [((4, 3), (85, 48)), ((1, 2), (64, 96)), ((1, 1), (64, 48)), ((12, 11), (70, 48)), ((8, 1), (64, 48))],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_pixels_are_square(tmp_path, aspect, size, suffix):
    path = write_media(
        tmp_path / f"wide.{suffix}",
        lambda index: corners(),
        [index / 30 for index in range(20)],
        options=FINE,
        aspect=Fraction(*aspect),
    )
    frame = first_frame(path)
    assert display_size(frame) == size
    assert upright(frame).shape == (size[1], size[0], 3)
    assert_corners(upright(frame))


def test_square_and_upright_at_once(tmp_path):
    path = write_media(
        tmp_path / "both.mp4", lambda index: corners(), [0, 1 / 30], options=FINE, aspect=Fraction(2), rotation=90
    )
    assert display_size(first_frame(path)) == (48, 128)
    assert_corners(upright(first_frame(path)), (1, 3, 0, 2))


@pytest.mark.parametrize("size", [(64, 48), (32, 24), (100, 70), (33, 17)])
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("mp4", {"options": {"x264-params": "tff=1", "crf": "1"}}),
        ("mpg", {"codec": "mpeg2video", "options": {"flags": "+ildct+ilme", "qmin": "1", "qmax": "1"}}),
    ],
)
def test_one_field_is_shown(tmp_path, size, suffix, options):
    field, other = corners(64, 24), np.full((24, 64, 3), (10, 200, 200), np.uint8)
    path = write_media(
        tmp_path / f"fields.{suffix}", lambda index: weave(field, other), [i / 30 for i in range(4)], **options
    )
    frame = first_frame(path)
    assert frame.interlaced_frame
    picture = upright(frame, *size)
    assert picture.shape == (size[1], size[0], 3)
    assert_corners(picture, atol=10)
    assert display_size(frame) == (64, 48)
    lines = picture[size[1] // 8 : size[1] * 3 // 8, size[0] // 4].astype(int)
    assert np.abs(np.diff(lines, axis=0)).max() < 10  # no comb


PIXELS = """
    yuv420p yuvj420p nv12 yuv422p yuv444p yuv420p10le yuv422p10le yuv444p16le p010le gray gray16le ya8 rgb24 bgr24 rgba argb
    bgr0 gbrp gbrap rgb48le yuyv422 uyvy422 yuva420p yuv411p yuv410p pal8 monow
""".split()  # noqa: SIM905


@pytest.mark.parametrize("size", [(64, 48), (63, 47), (1, 1), (2, 3)])
@pytest.mark.parametrize(
    "pix_fmt",
    PIXELS,
)
def test_pixels_of_any_format(pix_fmt, size):
    width, height = size
    colour = (
        (128, 128, 128)
        if pix_fmt in ("gray", "gray16le", "ya8")
        else (255, 255, 255)
        if pix_fmt == "monow"
        else CORNERS[0]
    )
    plain = av.VideoFrame.from_ndarray(np.full((height, width, 3), colour, np.uint8), format="rgb24")
    if pix_fmt == "pal8":
        palette = np.zeros((256, 4), np.uint8)
        palette[7] = (255, *colour)
        frame = av.VideoFrame.from_ndarray((np.full((height, width), 7, np.uint8), palette), format="pal8")
    else:
        frame = plain.reformat(format=pix_fmt)
    for target in ((None, None), (20, 30), (width, height)):
        picture = upright(frame, *target)
        shape = (height, width, 3) if target[0] is None else (target[1], target[0], 3)
        assert picture.shape == shape
        assert picture.dtype == np.uint8
        np.testing.assert_allclose(picture.astype(int), np.broadcast_to(colour, shape), atol=9)


@pytest.mark.parametrize("space", ["ITU601", "ITU709"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("size", [(64, 48), (32, 24)])
def test_colours_are_those_that_were_meant(space, full, size):
    space, levels = av.video.reformatter.Colorspace[space], av.video.reformatter.ColorRange["JPEG" if full else "MPEG"]
    plain = av.VideoFrame.from_ndarray(corners(), format="rgb24")
    frame = plain.reformat(format="yuv444p", dst_colorspace=space, dst_color_range=levels)
    assert_corners(upright(frame, *size), atol=4)
    white = av.VideoFrame(64, 48, "yuv420p")
    for plane, value in zip(white.planes, (255 if full else 235, 128, 128), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    white.color_range = levels
    assert upright(white, *size).min() == 255


def test_high_definition_without_a_tag_is_taken_as_players_take_it():
    space = av.video.reformatter.Colorspace.ITU709
    for size, right in (((1280, 720), True), ((640, 360), False)):
        frame = av.VideoFrame.from_ndarray(corners(*size), format="rgb24").reformat(
            format="yuv444p", dst_colorspace=space
        )
        frame.colorspace = 2  # unspecified
        off = np.abs(np.subtract(colours(upright(frame)), CORNERS)).max()
        assert bool(off < 6) is right
        assert frame.colorspace == 2


def test_pixels_that_can_not_be_shown():
    frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 4), np.float32), format="rgbaf32le")
    with pytest.raises(MediaError, match="of rgbaf32le pixels can not be shown .*: convert the video"):
        upright(frame)


def test_a_frame_is_left_as_it_is():
    frame = av.VideoFrame.from_ndarray(corners(), format="rgb24")
    before = frame.to_ndarray()
    picture = upright(frame)
    picture[:] = 0
    np.testing.assert_array_equal(frame.to_ndarray(), before)


def test_crops_are_pictures_and_nothing_else(tmp_path, mp4):
    for kind in ("jpg", "png", "webp", "bmp", "tiff"):
        assert decode_picture(picture_bytes(*PICTURES[kind]), 16).shape == (16, 16, 3)
    (tmp_path / "list.jpg").write_text(f"ffconcat version 1.0\nfile {mp4}\n")
    for source in (mp4, tmp_path / "list.jpg", b"", b"\xff\xd8\xff\xe0"):
        with pytest.raises(MediaError, match="can not be read as a picture .* mend or remove it"):
            decode_picture(source if isinstance(source, bytes) else Path(source), 16)


def test_names_of_sources():
    assert describe("https://me:secret@host/a@b.mp4") == "'https://host/a@b.mp4'"
    assert describe(Path("a.mp4")) == "'a.mp4'"
    assert describe(b"123") == describe(bytearray(3)) == describe(memoryview(b"123")) == "<3 bytes>"
    assert describe(2) == "webcam 2"


# Fuzz -----------------------------------------------------------------------------------------------------------------

FUZZED = {
    "index_first.mp4": {"container_options": {"movflags": "faststart"}},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+delay_moov"}, "options": {"g": "10"}},
    "h264.mkv": {},
    "h264.ts": {"options": {"g": "10"}},
    "h264.flv": {},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "audio_codec": "pcm_s16le"},
    "mpeg4.avi": {"codec": "mpeg4", "audio_codec": "libmp3lame"},
    "vp8.webm": {"codec": "libvpx", "options": media.VPX, "audio_codec": "libopus"},
    "prores.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le", "audio_codec": "pcm_s16le"},
    "mpeg2.mpg": {"codec": "mpeg2video", "audio_codec": "mp2"},
    "mpeg2.mxf": {"codec": "mpeg2video", "audio_codec": "pcm_s16le"},
    "wmv2.wmv": {"codec": "wmv2", "audio_codec": "wmav2"},
    "vp8.ogv": {"codec": "libvpx", "options": media.VPX, "audio_codec": "libopus"},
}
FUZZ = """
import resource, signal, sys, warnings
from pathlib import Path
import numpy as np
from media import mutate
from media_jca import decode, upright
from sources_jca import IncompleteMediaWarning, MediaError, open_media

resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
warnings.simplefilter("error")
warnings.simplefilter("ignore", IncompleteMediaWarning)
files = [Path(name).read_bytes() for name in sys.argv[3:]]
for seed in range(int(sys.argv[1]), int(sys.argv[2])):
    print(seed, flush=True)
    signal.alarm(30)
    try:
        with open_media(mutate(files[seed % len(files)], seed)) as container:
            last, ends = -float("inf"), 0
            for kind, seconds, data in decode(container, 16000):
                if kind == "video":
                    assert seconds > last
                    last = seconds
                    assert data is None or upright(data).ndim == 3
                elif kind == "audio":
                    assert np.isfinite(data).all() and data.dtype == np.float32 and np.isfinite(seconds)
                else:
                    ends += 1
                    assert data >= 0 and np.isfinite(seconds)
            assert ends == 1
    except MediaError:
        pass
"""


def test_a_thousand_damaged_files(tmp_path):
    """A crash, a hang or more than 3 GiB end the process: the last number that it has printed is the seed."""
    pytest.importorskip("resource", reason="memory is limited by POSIX")
    files = [write_noise(tmp_path / name, 1, **options) for name, options in FUZZED.items()]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]),
        "MALLOC_ARENA_MAX": "2",  # each thread's own would be 64 MiB of addresses
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", FUZZ, "0", "1000", *files]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    seed = int(run.stdout.split()[-1])
    assert run.returncode == 0, (
        f"seed {seed} of {files[seed % len(files)].name}, {run.returncode}: {run.stderr[-3000:]}"
    )
    assert seed == 999
