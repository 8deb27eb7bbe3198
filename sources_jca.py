"""What is given -> media that are open: paths, addresses, bytes, cameras, within limits.

Nothing in a file can open another file or address: containers are chosen from a list, FFmpeg is handed bytes, and what it
asks for besides is refused.
"""

import http.client
import io
import ipaddress
import os
import re
import socket
import ssl
import sys
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatch
from functools import partial
from time import monotonic
from typing import Any, BinaryIO, NamedTuple

import numpy as np


try:  # not at the mercy of `check_imports`: arrays of features need no decoder
    import av
except ImportError:
    av = None

try:  # adds its certificates to the system's, of which some installations of Python know none
    import certifi
except ImportError:
    certifi = None

READ_BYTES = 1 << 16
INDEX_BYTES = 1 << 20  # of a stream that are looked through for an mp4's index
# FFmpeg's names. Those that read other files (hls, dash, concat, sdp, image2, ...) or text (tty, ...) are not among them.
VIDEO_FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,mxf,rm,wtv,nut,gif,apng,dv,swf,ivf,gxf,nsv,dhav,h264,hevc,vvc,av1,obu,m4v,"
    "mpegvideo,h263,mjpeg,yuv4mpegpipe"
)
AUDIO_FORMATS = "wav,w64,mp3,aac,ac3,eac3,dts,flac,aiff,au,caf,amr,ape,wv,tta"  # to say that they hold no picture
LIVE_PROTOCOLS = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "tcp", "tls", "udp")
# tags that are no UTF-8 are no reason to refuse a file; PyAV 19 takes them without being told
TOLERANT = {"metadata_errors": "replace"} if av and int(av.__version__.split(".")[0]) < 19 else {}
LIVE_OPTIONS = {"probesize": "1000000", "analyzeduration": "1000000"}  # bytes and microseconds until it is opened
HEIF_BRANDS = ("heic", "heix", "heim", "heis", "mif1", "avif")
WEBCAMS = {"linux": ("v4l2", "/dev/video{}", {}), "darwin": ("avfoundation", "{}", {"framerate": "30"})}
XML = rb"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<"
KINDS = {  # by the first bytes
    "a playlist, which would have other files or addresses opened": rb"#EXTM3U|ffconcat version|\[playlist\]|\[reference\]"
    rb"|v=0\s+o=|" + XML + rb"(MPD|asx|smil|SmoothStreamingMedia)\b",
    "a picture": rb"\xff\xd8\xff|\x89PNG|GIF8|BM.{4}\0{4}|II\*\0|MM\0\*|RIFF.{4}WEBP|" + XML + rb"svg\b",
    "a web page": rb"<(!doctype )?html",
}


class MediaError(ValueError):
    """Something is wrong with the media: it can not be opened, or what it holds can not be used."""


class MediaLimitError(MediaError):
    """The media is larger, longer or slower than [`Limits`] allow."""


class IncompleteMediaWarning(UserWarning):
    """Part of the media did not come or could not be decoded; the rest is used."""


class Limits(NamedTuple):
    """
    What media may cost, for files and servers that are not one's own.

    Args:
        max_pixels (`int`, defaults to 40 million): of a frame as it is stored; 8K has 33 million.
        max_seconds (`float`, defaults to a day): of media; None for no limit.
        max_bytes (`int`, defaults to 4 GiB): of a download, and of a stream that can not be wound back.
        timeout (`float`, defaults to 20): seconds to wait for a URL's first and for its next bytes.
        max_download_seconds (`float`, defaults to an hour): for all of a download.
        redirect_hosts (`tuple[str]`, defaults to the Hub's storage): hosts, `*` allowed, to which an http URL may be
            redirected besides its own, whose "www." and https are its own.
    """

    max_pixels: int = 40_000_000
    max_seconds: float | None = 86_400.0
    max_bytes: int = 4 << 30
    timeout: float = 20.0
    max_download_seconds: float = 3600.0
    redirect_hosts: tuple[str, ...] = ("*.hf.co", "*.huggingface.co")


LIMITS = Limits()


# Opening --------------------------------------------------------------------------------------------------------------


def describe(source: Any) -> str:
    """A source as an error names it."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes>"
    if isinstance(source, int):
        return f"webcam {source}"
    if isinstance(source, np.ndarray):
        return f"<array of shape {source.shape}>"
    if not isinstance(source, (str, os.PathLike)):
        return repr(source)
    # a path from a NumPy array has a class of its own, which says nothing; a URL may hold a password
    return repr(re.sub(r"(?<=://)[^/@]*@", "", str(source)))


class SourceBytes:
    """The bytes of a file object as FFmpeg reads them: from its start, or no more than `max_bytes` of a stream that can not
    be wound back."""

    def __init__(self, file: Any, description: str, max_bytes: int, owned: bool = True):
        self.file, self.description, self.owned = file, description, owned
        self.head = b""  # of what has been read, to say what it is
        self.name = description.strip("'")
        self.windable = file.seekable() if hasattr(file, "seekable") else hasattr(file, "seek")
        self.left = float("inf") if self.windable else max_bytes
        self.max_bytes = max_bytes
        self.peeked = b""
        if self.windable:
            file.seek(0)

    def __del__(self) -> None:  # PyAV lets go of what it has read
        if self.owned:
            self.file.close()

    def seekable(self) -> bool:
        """Whether it can be wound back."""
        return self.windable

    def tell(self) -> int:
        """Bytes from the start."""
        return self.file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of any file, but -1 beyond its ends."""
        try:
            return self.file.seek(offset, whence)
        except (OSError, ValueError):  # beyond its ends, where damaged files point
            return -1

    def read(self, size: int) -> bytes:
        """
        Up to `size` bytes, as soon as there are some.

        Raises:
            MediaError: if the object does not read as a binary file does.
            MediaLimitError: if more than `max_bytes` came.
        """
        if self.peeked:
            data, self.peeked = self.peeked[:size], self.peeked[size:]
            return data
        # `read` of a pipe would wait until all have come
        data = getattr(self.file, "read1", self.file.read)(size)
        if not isinstance(data, bytes) or len(data) > size:
            raise MediaError(f"{self.description} does not read as a binary file does: open it with mode 'rb'.")
        if len(self.head) < 64:
            self.head += data[:4096]
        self.left -= len(data)
        if self.left < 0:
            raise MediaLimitError(
                f"{self.description} is longer than {self.max_bytes:,} bytes: give a shorter one or a larger "
                "Limits.max_bytes."
            )
        return data

    def peek(self, size: int) -> bytes:
        """The next `size` bytes of a stream that can not be wound back, or all if there are fewer."""
        kept, self.peeked = self.peeked, b""
        while len(kept) < size and (data := self.read(size - len(kept))):
            kept += data
        self.peeked = kept
        return kept[:size]


def index_is_last(source: SourceBytes) -> bool:
    """Whether this is an mp4 or mov (ISO/IEC 14496-12) with its data before its index, without which it says nothing."""
    position = 0
    while position < INDEX_BYTES:
        header = source.peek(position + 16)[position:]
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if kind not in (b"ftyp", b"free", b"skip", b"wide", b"uuid", b"pnot", b"udta", b"mdat"):
            return False
        if kind == b"mdat":
            return True
        position += max(length, 8)
    return False


def refuse(url: str, flags: int, options: dict) -> None:
    """FFmpeg's way to open what a file refers to. Raises a MediaError, whatever it is."""
    raise MediaError(f"A media file may not open another: {url!r}.")


def open_media(source: Any, limits: Limits = LIMITS) -> "av.container.InputContainer":
    """
    Open anybody's media: what it may be and cost is limited.

    Args:
        source: a path; a URL (http and https, which are fetched first; rtsp, rtmp, srt, udp, tcp, ... as far as FFmpeg was
            built with them, which are live); bytes; a binary file object, of which a pipe need not be seekable; the
            number of a webcam.
        limits (`Limits`).

    Raises:
        ImportError: without PyAV.
        FileNotFoundError, IsADirectoryError: if the path is none of a file, or there is no such webcam.
        MediaError: if FFmpeg finds no media in it, no video stream, or the URL can not be fetched.
        MediaLimitError: if it is larger, longer or slower than `limits`.
    """
    if av is None:
        raise ImportError("Reading media needs PyAV: pip install av")
    name = describe(source)
    if isinstance(source, int):
        return check(open_webcam(source, limits), name, limits)
    scheme = None
    if isinstance(source, (str, os.PathLike)):
        source = os.fspath(source)
        scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+)://", source)
        scheme = scheme and scheme[1].lower()
    if scheme in LIVE_PROTOCOLS:
        return check(open_live(source, name, limits), name, limits)
    if isinstance(source, (bytes, bytearray, memoryview)):
        file = io.BytesIO(source)
    elif hasattr(source, "read"):
        file = source
    elif not isinstance(source, str):
        raise MediaError(f"{name} holds no media: give a path, URL, bytes, binary file object or number of a webcam.")
    elif scheme in ("http", "https"):
        file = fetch(source, limits)
    elif scheme in (None, "file"):
        file = open_file(urllib.request.url2pathname(urllib.parse.urlsplit(source).path) if scheme else source)
    else:
        raise MediaError(f"{name}: {scheme} is not known. Choose one of http, https, {', '.join(LIVE_PROTOCOLS)}.")
    data = SourceBytes(file, name, limits.max_bytes, owned=file is not source)
    if not data.windable and index_is_last(data):
        data = SourceBytes(keep(iter(lambda: data.read(READ_BYTES), b"")), name, limits.max_bytes)
    options = {"format_whitelist": f"{VIDEO_FORMATS},{AUDIO_FORMATS}", "protocol_whitelist": "none"}
    options |= {"max_pixels": str(limits.max_pixels)} | ({} if data.windable else LIVE_OPTIONS)
    try:
        container = av.open(data, options=options, io_open=refuse, **TOLERANT)
    except MediaError:
        raise
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise MediaError(explain(name, data.head, error)) from error
    return check(container, name, limits)


def explain(name: str, head: bytes, error: Exception) -> str:
    """Why something is no media that can be opened, from its first bytes and FFmpeg's error."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for kind, pattern in KINDS.items():
        if re.match(pattern, text, re.IGNORECASE | re.DOTALL):
            return f"{name} is {kind}: give the video itself."
    why = getattr(error, "strerror", None) or error
    if isinstance(error, av.error.ArgumentError):
        why = "its format is not one of those that are read"
    if not head:
        why = "it is empty"
    elif head[4:8] == b"ftyp":
        why = "its index, the moov box, is missing or damaged: was it cut off?"
    return f"{name} can not be opened as media ({why}): give a file that FFmpeg can play."


def streams_of(container: "av.container.InputContainer") -> "tuple[av.VideoStream | None, av.AudioStream | None]":
    """The first video and the first audio stream that can be decoded; a cover picture is no video."""
    still = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    videos = (stream for stream in container.streams.video if stream.codec_context and not stream.disposition & still)
    audios = (stream for stream in container.streams.audio if stream.codec_context)
    return next(videos, None), next(audios, None)


def check(container: "av.container.InputContainer", name: str, limits: Limits) -> "av.container.InputContainer":
    """
    The container, if it holds video within the limits; else it is closed.

    Raises:
        MediaError: if it is a picture, or holds no video that can be decoded.
        MediaLimitError: if its frames are larger, or it is longer, than `limits`.
    """
    video, _ = streams_of(container)
    try:
        if container.metadata.get("major_brand") in HEIF_BRANDS:
            raise MediaError(f"{name} is a picture: give the video itself.")
        if video is None:
            streams = ", ".join(stream.type for stream in container.streams) or "none"
            raise MediaError(f"{name} has no video stream that can be decoded (streams: {streams}): give a video.")
        check_size(video.codec_context, name, limits)
        seconds = max(promises(container).values(), default=0.0)
        if limits.max_seconds is not None and seconds > limits.max_seconds:
            raise MediaLimitError(
                f"{name} is {seconds:,.0f} s long, {limits.max_seconds:,.0f} are allowed: give a shorter one or a larger "
                "Limits.max_seconds."
            )
    except MediaError:
        container.close()
        raise
    video.thread_type = "AUTO"
    video.codec_context.options = {"max_pixels": str(limits.max_pixels)}  # of frames whose size changes on the way
    return container


def check_size(codec: "av.VideoCodecContext", name: str, limits: Limits) -> None:
    """Raises MediaLimitError for frames with more pixels than are allowed."""
    if codec.width * codec.height > limits.max_pixels:
        raise MediaLimitError(
            f"{name} has frames of {codec.width}x{codec.height} px, {limits.max_pixels:,} pixels are allowed: make them "
            "smaller or give a larger Limits.max_pixels."
        )


def open_file(path: str) -> BinaryIO:
    """A file for reading. Raises an IsADirectoryError or a FileNotFoundError that names the remedy."""
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path!r} is a folder: give a video file.")
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {path!r}: give the path or URL of a video.") from None


def keep(pieces: Iterator[bytes]) -> BinaryIO:
    """Bytes in a file that has no name and goes with its last reader."""
    file = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        file.writelines(pieces)
    except BaseException:
        file.close()
        raise
    return file


def open_live(
    url: str, name: str, limits: Limits, device: str | None = None, **options: str
) -> "av.container.InputContainer":
    """
    What comes as it happens: a URL of `LIVE_PROTOCOLS`, or a device of FFmpeg's.

    Raises:
        MediaError: if it can not be opened as media.
        MediaLimitError: if nothing came for `limits.timeout` seconds.
    """
    options |= LIVE_OPTIONS | {
        "max_pixels": str(limits.max_pixels),
        "format_whitelist": device or f"{VIDEO_FORMATS},rtsp,rtp",
        "protocol_whitelist": ",".join(LIVE_PROTOCOLS),
        "rtsp_flags": "prefer_tcp",  # over UDP pictures are torn
    }
    begun = monotonic()
    try:
        return av.open(url, format=device, options=options, timeout=limits.timeout, **TOLERANT)
    except av.error.ProtocolNotFoundError as error:
        raise MediaError(f"{name} can not be opened: this FFmpeg was built without its protocol.") from error
    except (av.error.FFmpegError, ValueError) as error:
        if monotonic() - begun >= limits.timeout:
            raise MediaLimitError(
                f"{name}: nothing that can be played came for {limits.timeout:g} s. Is it sending? Else give a larger "
                "Limits.timeout."
            ) from error
        why = getattr(error, "strerror", None) or error
        raise MediaError(
            f"{name} can not be opened as media ({why}): is the address right, and is it sending?"
        ) from error


def open_webcam(number: int, limits: Limits) -> "av.container.InputContainer":
    """
    The webcam of this number.

    Raises:
        MediaError: where FFmpeg has no way to it, see also [`open_live`].
        FileNotFoundError: where there is none of this number.
    """
    device, path, options = WEBCAMS.get(sys.platform, (None, "", {}))
    try:
        av.format.ContainerFormat(device or "none", "r")
    except ValueError:
        raise MediaError(
            f"Webcams can not be read on {sys.platform} with this PyAV: pipe what another program records, or give its URL."
        ) from None
    if device == "v4l2" and not os.path.exists(path.format(number)):
        raise FileNotFoundError(f"There is no webcam {number} ({path.format(number)}): is it plugged in?")
    return open_live(path.format(number), f"webcam {number}", limits, device, **options)


def promises(container: "av.container.InputContainer") -> dict[int | None, float]:
    """
    Where media end as their header has it, in seconds on their clock: by index of a stream, or None for all of the file.

    Empty where the container says nothing, or FFmpeg takes it from what there is: MPEG-TS and PS, Ogg, raw streams, what is
    live.
    """
    name, streams = container.format.name.split(",")[0], [stream for stream in streams_of(container) if stream]
    ends = {}
    if name == "avi" and streams[0].average_rate:
        # FFmpeg shortens the duration of a file that is cut off, but not the count
        ends = {None: float(streams[0].frames / streams[0].average_rate)}
    elif name in ("mov", "mxf", "ivf", "rm"):
        ends = {s.index: float(((s.start_time or 0) + s.duration) * s.time_base) for s in streams if s.duration}
    elif name in ("matroska", "flv", "asf", "wtv") and container.duration:
        ends = {None: container.duration / av.time_base}
    return {index: seconds for index, seconds in ends.items() if seconds > 0}


def warn(message: str) -> None:
    """Say what is missing, to who called the caller."""
    warnings.warn(message, IncompleteMediaWarning, stacklevel=3)


# Fetching -------------------------------------------------------------------------------------------------------------


def fetch(url: str, limits: Limits) -> BinaryIO:
    """
    What an http or https URL gives, in a temporary file that goes with its last reader.

    It is fetched whole because a file can be wound back, needs one request of any server, and is known to be complete
    before the first frame. Redirects lead to the URL's own host and `limits.redirect_hosts`, and to private addresses only
    if the URL itself did.

    Raises:
        MediaError: if it can not be fetched whole.
        MediaLimitError: if it is larger or slower than `limits`.
    """
    name = describe(url)
    try:
        visit = Visit(url, limits)
    except ValueError as error:
        raise MediaError(f"{name} is no address ({error}): correct it.") from error
    timer = threading.Timer(limits.max_download_seconds, visit.hang_up)
    timer.daemon = True
    timer.start()
    try:
        with visit.open() as response:
            return keep(visit.body(response))
    except MediaError:
        raise
    except urllib.error.HTTPError as error:
        raise MediaError(
            f"{name} can not be fetched (HTTP {error.code} {error.reason}): is the address right?"
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        if visit.hung_up:
            raise MediaLimitError(
                f"{name} was not fetched within {limits.max_download_seconds:g} s: fetch it yourself or give a larger "
                "Limits.max_download_seconds."
            ) from error
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise MediaLimitError(
                f"{name}: the server sent nothing for {limits.timeout:g} s: try again or give a larger Limits.timeout."
            ) from error
        if isinstance(error, http.client.IncompleteRead):
            raise MediaError(f"{name} broke off: try again.") from error
        raise MediaError(f"{name} can not be fetched ({reason}): is the address right?") from error
    finally:
        timer.cancel()


class Visit:
    """A URL and where it leads, each step of which is looked at before anything is read."""

    def __init__(self, url: str, limits: Limits):
        self.parts, self.limits = urllib.parse.urlsplit(url), limits
        self.name = describe(url)
        self.sockets: list[socket.socket] = []
        self.private = None  # whether the URL's own host has a private address
        self.hung_up = False

    def open(self) -> http.client.HTTPResponse:
        """The answer, after redirections within the limits."""
        host = self.parts.netloc.rpartition("@")[2]
        url = urllib.parse.urlunsplit((self.parts.scheme, host, self.parts.path, self.parts.query, ""))
        request = urllib.request.Request(
            urllib.parse.quote(url, safe="%/:?&=+$,;@!*'()[]~"), headers={"User-Agent": "Mozilla/5.0 (compatible; jca)"}
        )
        if self.parts.username is not None:
            account = urllib.parse.unquote(f"{self.parts.username}:{self.parts.password or ''}")
            request.add_unredirected_header("Authorization", f"Basic {b64encode(account.encode()).decode()}")
        opener = urllib.request.OpenerDirector()  # one that knows neither files nor ftp
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            Redirects(self),
            Connections(self),
        ):
            opener.add_handler(handler)
        return opener.open(request, timeout=self.limits.timeout)

    def body(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """
        In pieces.

        Raises:
            MediaError: if it breaks off before what the header promised.
            MediaLimitError: if there are more than `limits.max_bytes`.
            TimeoutError: if it was hung up.
        """
        promised, received, most = int(response.headers.get("Content-Length") or 0), 0, self.limits.max_bytes
        while max(promised, received) <= most and (data := response.read1(READ_BYTES)):
            received += len(data)
            yield data
        if max(promised, received) > most:
            raise MediaLimitError(
                f"{self.name} is larger than {most:,} bytes ({max(promised, received):,}): give a smaller one or a larger "
                "Limits.max_bytes."
            )
        if self.hung_up:
            raise TimeoutError
        if received < promised:
            raise MediaError(f"{self.name} broke off after {received:,} of {promised:,} bytes: try again.")

    def redirect(self, url: str) -> None:
        """Raises a MediaError if it may not be followed."""
        parts, own = urllib.parse.urlsplit(url), self.parts
        host = parts.hostname or ""
        same = host.removeprefix("www.") == own.hostname.removeprefix("www.") and parts.port in (
            None,
            80,
            443,
            own.port,
        )
        if not (same or any(fnmatch(host, pattern) for pattern in self.limits.redirect_hosts)):
            raise MediaError(
                f"{self.name} is redirected to {describe(url)}, another host or port: give that URL itself, or its host in "
                "Limits.redirect_hosts."
            )
        if (own.scheme, parts.scheme) == ("https", "http"):
            raise MediaError(f"{self.name} is redirected to {describe(url)}, without encryption: fetch it yourself.")

    def arrive(self, connection: socket.socket, direct: bool) -> None:
        """Raises a MediaError if a public host led to a private address; `direct` is False where the peer is a proxy."""
        self.sockets.append(connection)
        if self.hung_up:
            raise TimeoutError
        if direct:
            address = ipaddress.ip_address(connection.getpeername()[0].partition("%")[0])
            private = not (getattr(address, "ipv4_mapped", None) or address).is_global
            if private and self.private is False:
                raise MediaError(f"{self.name} leads to the private address {address}: fetch it yourself.")
            self.private = private

    def hang_up(self) -> None:
        """Close the connections under whoever waits for them."""
        self.hung_up = True
        for connection in self.sockets:
            with suppress(OSError):  # that of the class: that of a TLS socket would pull the rug from under who reads
                socket.socket.shutdown(connection, socket.SHUT_RDWR)


class Redirects(urllib.request.HTTPRedirectHandler):
    """Redirections that the visit allows."""

    def __init__(self, visit: Visit):
        self.visit = visit

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # which Python 3.10 does not know

    def redirect_request(
        self, request: urllib.request.Request, response: Any, code: int, message: str, headers: Any, url: str
    ) -> urllib.request.Request | None:
        """The next request; raises as [`Visit.redirect`]."""
        self.visit.redirect(url)
        return super().redirect_request(request, response, 307 if code == 308 else code, message, headers, url)


class Connections(urllib.request.HTTPSHandler):
    """Connections, http and https, whose peers the visit sees first."""

    http_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, visit: Visit):
        super().__init__()
        self.visit = visit

    def http_open(self, request: urllib.request.Request) -> Any:
        """The answer by http."""
        return self.do_open(partial(self.connection, http.client.HTTPConnection, request), request)

    def https_open(self, request: urllib.request.Request) -> Any:
        """The answer by https, with the certificates of the system and of certifi."""
        context = ssl.create_default_context()
        if certifi is not None:
            context.load_verify_locations(certifi.where())
        kind = partial(http.client.HTTPSConnection, context=context)
        return self.do_open(partial(self.connection, kind, request), request)

    def connection(self, kind: Callable, request: urllib.request.Request, host: str, **options: Any) -> Any:
        """One that shows its peer to the visit before it sends anything."""
        connection = kind(host, **options)
        connect, direct = connection.connect, request.host == urllib.parse.urlsplit(request.full_url).netloc

        def connect_and_look() -> None:
            connect()
            self.visit.arrive(connection.sock, direct)

        connection.connect = connect_and_look
        return connection
