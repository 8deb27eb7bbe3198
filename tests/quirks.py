"""A synthetic folder with every quirk of the Aff-Wild2 release, real media of a few dozen frames in it."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from media import write_video
from release import RATE, SIZE, write_crop


NUM_FRAMES = 40
NO_CROP = range(10, 15)  # frames in which no face was found, counted from 0
UNLABELLED = {3: "-5", 4: "-5.0", 5: "-5.00"}  # spellings of what is not annotated
SLOWING = [*range(0, 660, 33), *range(660, 1980, 66)]  # ms, a variable rate
TEST_LIST = "names_of_videos_in_each_test_set/Valence_Arousal_Estimation_Challenge_test_set_release.txt"
NEW_CROPS = "cropped_aligned_new_50_vids"  # the later videos'
OLD_CROPS = "cropped_aligned/cropped_aligned"  # its archive was unpacked into a folder of its own


class Quirk(NamedTuple):
    """An annotation file and how it is written; `rows` after the header, which `order` names the columns of."""

    header: str = "valence,arousal\n"
    rows: int = NUM_FRAMES
    order: tuple[int, int] = (0, 1)
    newline: str = "\n"
    end: str = "\n"
    crops: str = OLD_CROPS


MEDIA = {  # `sound` is the share of the video that has any
    "batch1/1-30-640x360.mp4": {"fps": 30},
    "batch1/10-60-1280x720.mp4": {"fps": 60},
    "batch1/132-30-426x240.avi": {"fps": 30},
    "batch1/46-30-484x360.mp4": {"fps": 17},  # its name is wrong
    "batch1/video59.avi": {"fps": 17},
    "batch1/7.avi": {"fps": 25, "sound": 0.0},
    "batch2/batch2/video10_1.mp4": {"fps": 25},
    "batch2/batch2/video94.mp4": {"fps": 30, "audio_start": 0.5},
    "batch2/batch2/video95.mkv": {"fps": 30, "audio_start": 0.5},
    "batch2/batch2/video96.mp4": {"fps": 30, "sound": 0.5},
    "batch2/video100.mp4": {"fps": 30},
    "batch2/video101.mp4": {"fps": 25},
}
TIMED_MEDIA = {  # the header says 30 frames a second, and these are the times in ms
    "batch2/313.mkv": range(0, 40 * NUM_FRAMES, 40),
    "batch2/video2.mkv": SLOWING,
}
ANNOTATIONS = {
    "Train_Set/1-30-640x360": Quirk(),
    "Train_Set/10-60-1280x720": Quirk(header="Valence, Arousal\n"),
    "Train_Set/10-60-1280x720_right": Quirk(header="VALENCE,AROUSAL\n"),
    "Train_Set/132-30-426x240": Quirk(header="arousal,valence\n", order=(1, 0)),
    "Train_Set/313": Quirk(header="", rows=NUM_FRAMES - 4),
    "Train_Set/46-30-484x360": Quirk(header="\ufeffvalence,arousal\n"),
    "Train_Set/video10_1_left": Quirk(newline="\r\n"),
    "Train_Set/video10_1_right": Quirk(newline="\r\n", end="\n\n"),
    "Train_Set/video2_left": Quirk(end=""),
    "Train_Set/video59": Quirk(rows=NUM_FRAMES + 3),
    "Validation_Set/7": Quirk(end="\n\n"),
    "Validation_Set/video94": Quirk(crops=NEW_CROPS),
    "Validation_Set/video95": Quirk(crops=NEW_CROPS),
    "Validation_Set/video96": Quirk(crops=NEW_CROPS),
}
TEST_CROPS = {"video100": NEW_CROPS, "video101_left": OLD_CROPS, "video101_right": OLD_CROPS}


def quirky_labels(name: str, rows: int) -> np.ndarray:
    """What `name` is annotated with, `(rows, 2)` float32."""
    labels = np.random.default_rng(sum(name.encode())).uniform(-1, 1, (rows, 2)).round(3).astype(np.float32)
    labels[list(UNLABELLED)] = -5
    return labels


def write_quirky_release(root: Path) -> Path:
    """Writes the release below `root`, which it returns. `write_release` writes one that can be learnt from."""
    for place, options in MEDIA.items():
        options = dict(options)
        samples = round(options.pop("sound", 1.0) * NUM_FRAMES / options["fps"] * RATE)
        waveform = 0.5 * np.sin(np.arange(samples) * 2 * np.pi * 440 / RATE) if samples else None
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        write_video(root / place, NUM_FRAMES, size=(SIZE, SIZE), waveform=waveform, **options)
    for place, times in TIMED_MEDIA.items():
        write_timed_video(root / place, times)
    for place, quirk in ANNOTATIONS.items():
        path = root / "VA_Estimation_Challenge" / f"{place}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(annotation_text(path.stem, quirk).encode())
    (root / TEST_LIST).parent.mkdir()
    (root / TEST_LIST).write_text("".join(f"{name}\n" for name in TEST_CROPS) + "\n")
    crops = {place.split("/")[1]: quirk.crops for place, quirk in ANNOTATIONS.items()} | TEST_CROPS
    for name, folder in crops.items():
        (root / folder / name).mkdir(parents=True)
        for index in set(range(NUM_FRAMES)) - set(NO_CROP):
            write_crop(root / folder / name / f"{index + 1:05d}.jpg", np.full((SIZE, SIZE, 3), index, np.uint8))
    for archive in ("batch1.zip", "cropped_aligned.zip", f"{NEW_CROPS}.tar.gz"):  # kept beside what was unpacked
        (root / archive).write_bytes(b"PK")
    return root


def annotation_text(name: str, quirk: Quirk) -> str:
    lines = [
        ",".join(UNLABELLED.get(index, f"{value:.3f}") for value in values[list(quirk.order)])
        for index, values in enumerate(quirky_labels(name, quirk.rows))
    ]
    return (quirk.header + "\n".join(lines) + quirk.end).replace("\n", quirk.newline)


def write_timed_video(path: Path, times: Sequence[int], claimed_fps: int = 30, b_frames: int = 0) -> str:
    """A video of 32x32 whose pictures are shown at `times` (ms), whatever frame rate the header claims, without audio."""
    with av.open(str(path), "w") as container:
        options = {"bf": str(b_frames), "x264-params": "b-adapt=0:scenecut=0"}  # as many B frames as asked for
        stream = container.add_stream("libx264", rate=claimed_fps, options=options)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, time in enumerate(times):
            picture = np.full((SIZE, SIZE, 3), index % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)
