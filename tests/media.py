"""Small real media files, written by PyAV."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np


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
