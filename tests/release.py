"""A folder laid out as the Aff-Wild2 release, with real media small enough to train on in a test."""

from pathlib import Path

import av
import numpy as np
from media import write_video


FPS, RATE, SIZE = 30, 44100, 32


def series(seed: int, num_frames: int) -> np.ndarray:
    """Valence and arousal `(frames, 2)` in [-0.9, 0.9], drawn anew every 1.2 s: a second later nothing foretells them."""
    knots = np.arange(0, num_frames / FPS + 1.2, 1.2)
    values = np.random.default_rng(seed).uniform(-0.9, 0.9, (2, len(knots)))
    time = np.arange(num_frames) / FPS
    return np.stack([np.interp(time, knots, value) for value in values], axis=1).astype(np.float32)


def write_release(root: Path, videos: dict[str, list[str]], num_frames: int = 640) -> Path:
    """Valence is the brightness of the picture, arousal the pitch of the sound."""
    for split, names in videos.items():
        for name in names:
            labels = series(sum(name.encode()), num_frames)
            brightness = np.clip(128 + 110 * labels[:, 0], 0, 255).astype(np.uint8)

            def picture(index, brightness=brightness):
                return np.full((SIZE, SIZE, 3), brightness[index], np.uint8)

            pitch = np.repeat(800 * 2.0 ** labels[:, 1], RATE // FPS)
            waveform = 0.5 * np.sin(2 * np.pi * np.cumsum(pitch) / RATE)
            (root / "batch1").mkdir(parents=True, exist_ok=True)
            write_video(root / "batch1" / f"{name}.mp4", num_frames, FPS, (SIZE, SIZE), picture, waveform)
            crops = root / "cropped_aligned" / name
            crops.mkdir(parents=True)
            for index in range(num_frames):
                if not 300 <= index < 340:  # no face there
                    write_crop(crops / f"{index + 1:05d}.jpg", picture(index))
            labels[100:110] = -5
            annotation = root / "VA_Estimation_Challenge" / split / f"{name}.txt"
            annotation.parent.mkdir(parents=True, exist_ok=True)
            lines = [f"{v:.4f},{a:.4f}" if v != -5 else "-5,-5" for v, a in labels]
            annotation.write_text("\n".join(["valence,arousal", *lines]) + "\n")
    return root


def write_crop(path: Path, picture: np.ndarray) -> None:
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("mjpeg", options={"qscale": "2"})
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "yuvj420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
