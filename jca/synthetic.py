"""A small synthetic corpus laid out like Aff-Wild2: drawn faces and artificial voices in real media files.

Everything in it is synthetic: it tests that the software runs and can learn, and says nothing about real
people. The face shows valence well (mouth corners, brows, cheeks) and arousal weakly (eye opening, height of
the brows, head motion); the voice carries arousal well (pitch, loudness, pace) and valence weakly (timbre,
intonation). The mouth opens with the voice. Stretches of either are spoilt, independently of each other, and
subjects differ in looks and voice.
"""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
from tqdm.auto import tqdm

from jca.affwild2 import ANNOTATIONS, FOLDERS
from jca.pools import process_pool


WIDTH, HEIGHT, CROP = 144, 112, 112  # px; the crop is the central square of the frame
SAMPLING_RATE = 44_100  # Hz
CONTROL_RATE = 100  # Hz, at which the parameters of the voice are set
BATCH = 16  # frames drawn at a time: the pictures then stay in the processor's cache
SETTINGS_FILE = "synthetic.json"
ORIGIN_FILE = "hub.json"  # of a corpus that was fetched: the data set of the Hub and its commit
DESIGN = 1  # counts up when the same seed would give other files

VIDEO_FAULTS = ("none", "hidden", "absent", "noise", "dark")
AUDIO_FAULTS = ("none", "noise", "silence", "tones")
SPOILT_SHARE, SPOILT_SECONDS = 0.25, (1.5, 5.0)  # of the time of each modality; length of a stretch
UNANNOTATED_SHARE, UNANNOTATED_SECONDS = 0.02, (0.3, 1.0)
PAUSE_SHARE, PAUSE_SECONDS = 0.2, (0.3, 0.9)  # between the phrases of the voice
MOVING_SECONDS = 0.4  # in which a face leaves the picture, or a card comes up before it

README = """# Synthetic audio-visual corpus

Synthetic: no person appears in it. The faces are drawn, the voices computed, the annotations chosen by
chance and then rendered. Nothing about real people, and nothing about accuracy on recordings of them, can be
concluded from it. Folders and files are laid out like the Aff-Wild2 release. Made by `jca.synthetic` with

    python scripts/make_synthetic.py FOLDER {options}
"""


def make_synthetic(
    root: str | Path,
    num_train: int = 32,
    num_validation: int = 10,
    seconds: float = 32.0,
    fps: int = 30,
    seed: int = 0,
    num_proc: int = 2,
) -> Path:
    """
    Make the synthetic corpus: a video for each subject, so that no subject is in both splits.

    The files depend on the seed alone, not on `num_proc`. Videos that are complete are not made again.

    Args:
        root: folder that gets the release's folders, a README and the settings.
        seconds: length of each video, at least 1.
        fps: frames a second, a whole number.
        num_proc: processes that share the videos.

    Raises:
        ValueError: if the folder holds a corpus with other settings, or other files, or `seconds` is below 1.
    """
    if seconds < 1:
        raise ValueError(f"seconds={seconds}: a synthetic video lasts 1 s or longer.")
    root = Path(root)
    settings = {"num_train": num_train, "num_validation": num_validation, "seconds": float(seconds)}
    settings = {**settings, "fps": fps, "seed": seed, "design": DESIGN}
    claim(root, settings)
    jobs = [(root, *video, index, seconds, fps, seed) for index, video in enumerate(videos(settings).items())]
    # each process keeps to one thread: nothing in it calls torch or BLAS, and the encoders are told so
    with process_pool(num_proc) as pool:
        list(tqdm(pool.map(_make_video, jobs), total=len(jobs), desc="synthetic videos", disable=None))
    return root


def videos(settings: dict) -> dict[str, str]:
    """The videos of a corpus with these settings, by name, and the split of each."""
    splits = ["train"] * settings["num_train"] + ["validation"] * settings["num_validation"]
    return {f"synthetic-{index:04d}": split for index, split in enumerate(splits)}


def video_files(root: Path, name: str, split: str) -> tuple[Path, Path, Path]:
    """Media, folder of crops and annotation of a video. The annotation is made last: with it the video is complete."""
    annotation = root / ANNOTATIONS / FOLDERS[split] / f"{name}.txt"
    return root / "batch1" / f"{name}.mp4", root / "cropped_aligned" / name, annotation


def read_settings(file: Path) -> dict:
    """
    The settings of a corpus from its `SETTINGS_FILE`, which may be anybody's.

    Raises:
        ValueError: if there is no such file, or it is none that `make_synthetic` wrote.
    """
    if not file.exists():
        raise ValueError(
            f"{file.parent} holds no synthetic corpus: there is no {file.name}. Make one with scripts/make_synthetic.py."
        )
    whole = {"num_train": 9999, "num_validation": 9999, "fps": 1000, "seed": math.inf, "design": math.inf}
    try:
        settings = json.loads(file.read_text())
        right = settings.keys() == {*whole, "seconds"} and 1 <= settings["seconds"] < math.inf
        right = right and all(
            type(settings[name]) is int and 0 <= settings[name] <= most for name, most in whole.items()
        )
    except (ValueError, AttributeError, TypeError):
        right = False
    if not right:
        raise ValueError(f"{file} is not what scripts/make_synthetic.py writes: delete its folder and make it anew.")
    return settings


def claim(root: Path, settings: dict) -> None:
    """
    Write settings and README into an empty folder, or see that the folder has the same settings.

    Raises:
        ValueError: if the folder holds a corpus with other settings, or other files.
    """
    file = root / SETTINGS_FILE
    if file.exists():
        found = read_settings(file)
        if found != settings:
            names = [name for name in settings if found.get(name) != settings[name]]
            there, asked = (", ".join(f"{name}={s.get(name)}" for name in names) for s in (found, settings))
            raise ValueError(
                f"{root} holds a synthetic corpus made with {there}, but {asked} was asked for. "
                "Give those values, choose another folder, or delete this one."
            )
    elif root.exists() and any(root.iterdir()):
        raise ValueError(
            f"{root} holds other files and no {SETTINGS_FILE}: a synthetic corpus is not mixed with them. "
            "Choose another folder."
        )
    root.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=1) + "\n")
    for folder in ("batch1", "cropped_aligned", *(f"{ANNOTATIONS}/{name}" for name in FOLDERS.values())):
        (root / folder).mkdir(parents=True, exist_ok=True)
    options = " ".join(f"--{name} {value}" for name, value in settings.items() if name != "design")
    (root / "README.md").write_text(README.format(options=options))


def _make_video(job: tuple) -> None:
    """Media, crops and annotation of one subject; the annotation comes last and says that it is complete."""
    root, name, split, index, seconds, fps, seed = job
    media, crops, annotation = video_files(root, name, split)
    if annotation.exists():
        return
    _, looks, sounds, moves = _generators(seed, index)
    truth, subject = latents(seed, index, seconds, fps), draw_subject(looks)
    waveform, loudness = speak(subject, truth, fps, sounds)
    frames = film(subject, truth, loudness, fps, moves)
    media_part, crops_part, text_part = (p.with_name(f"{name}.part") for p in (media, crops, annotation))
    for folder in (crops, crops_part):
        shutil.rmtree(folder, ignore_errors=True)
    crops_part.mkdir()
    write_media(media_part, crops_part, frames, waveform, truth.face_present, fps)
    rows = zip(truth.valence, truth.arousal, truth.annotated, strict=True)
    lines = [f"{valence:.4f},{arousal:.4f}" if known else "-5,-5" for valence, arousal, known in rows]
    text_part.write_text("\n".join(["valence,arousal", *lines, ""]))
    media_part.replace(media)
    crops_part.replace(crops)
    text_part.replace(annotation)


# What happens in a video ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Latents:
    """What a synthetic video shows, `(frames,)` each; faults index `VIDEO_FAULTS` and `AUDIO_FAULTS`."""

    valence: np.ndarray  # in [-1, 1]
    arousal: np.ndarray
    annotated: np.ndarray  # bool
    video_fault: np.ndarray  # 0 is none
    audio_fault: np.ndarray

    @property
    def video_spoilt(self) -> np.ndarray:
        """Whether the face says nothing, `(frames,)`."""
        return self.video_fault > 0

    @property
    def audio_spoilt(self) -> np.ndarray:
        """Whether the voice says nothing, `(frames,)`."""
        return self.audio_fault > 0

    @property
    def face_present(self) -> np.ndarray:
        """Whether a face is in the picture, `(frames,)`."""
        return self.video_fault != VIDEO_FAULTS.index("absent")


def latents(seed: int, index: int, seconds: float = 32.0, fps: int = 30) -> Latents:
    """What the `index`-th video of a corpus shows in `seconds` at `fps` frames a second; nothing is rendered."""
    rng = _generators(seed, index)[0]
    time = np.arange(round(seconds * fps)) / fps
    # tanh(0.85 x) is nearly the distribution function of x: the values are spread evenly over [-1, 1]
    valence, arousal = (np.tanh(0.85 * wander(rng, time, 4, 20)) for _ in range(2))
    return Latents(
        valence,
        arousal,
        stretches(rng, len(time), fps, UNANNOTATED_SHARE, UNANNOTATED_SECONDS) == 0,
        stretches(rng, len(time), fps, SPOILT_SHARE, SPOILT_SECONDS, len(VIDEO_FAULTS) - 1),
        stretches(rng, len(time), fps, SPOILT_SHARE, SPOILT_SECONDS, len(AUDIO_FAULTS) - 1),
    )


def _generators(seed: int, index: int) -> list[np.random.Generator]:
    return np.random.default_rng([seed, index]).spawn(4)


def wander(rng: np.random.Generator, time: np.ndarray, shortest: float, longest: float) -> np.ndarray:
    """A smooth random series `(n,)` of variance 1 at `time` `(n,)` (s): waves with periods `shortest` to `longest` (s)."""
    period = np.exp(rng.uniform(np.log(shortest), np.log(longest), 8))
    return 0.5 * np.sin(2 * np.pi * (time[:, None] / period + rng.uniform(size=8))).sum(1)


def stretches(
    rng: np.random.Generator, length: int, rate: int, share: float, seconds: tuple, kinds: int = 1
) -> np.ndarray:
    """`(length,)` int8 at `rate` Hz: stretches as long as `seconds` allow, of a kind in 1..kinds, for `share` of the time;
    else 0."""
    out = np.zeros(length, np.int8)
    gap = sum(seconds) / 2 * (1 - share) / share  # s, mean
    start = rng.uniform(0, gap)
    while round(start * rate) < length:
        stop = start + rng.uniform(*seconds)
        out[round(start * rate) : round(stop * rate)] = rng.integers(1, kinds + 1)
        start = stop + gap * rng.uniform(0.5, 1.5)
    return out


LIGHT_SKIN, DARK_SKIN = np.array([(240, 200, 172), (122, 80, 58)])  # RGB
HAIR = np.array([(30, 24, 22), (70, 46, 30), (120, 80, 45), (205, 165, 95), (150, 65, 35), (150, 148, 145)])
IRIS = np.array([(85, 50, 25), (60, 100, 150), (80, 115, 75), (110, 115, 120)])


def draw_subject(rng: np.random.Generator) -> SimpleNamespace:
    """Looks and voice of one synthetic subject. Lengths in px, colours (3,) RGB of 0..255."""
    hair_length = max(0.0, rng.uniform(-30, 45))
    tone = rng.uniform()  # of the skin, light to dark
    hair = HAIR[rng.integers(len(HAIR) if tone < 0.5 else 2)]
    return SimpleNamespace(
        skin=np.float32((1 - tone) * LIGHT_SKIN + tone * DARK_SKIN + rng.uniform(-8, 8, 3)),
        hair=np.float32(hair * rng.uniform(0.8, 1.2)),
        iris=np.float32(IRIS[rng.integers(len(IRIS))]),
        cloth=np.float32(rng.uniform(40, 210, 3)),
        card=np.float32(rng.uniform(40, 230, 3)),
        background=rng.uniform(70, 190, (2, 1)) + rng.uniform(-30, 30, (2, 3)),
        blobs=rng.uniform(size=(4, 4)),
        light=rng.uniform(-0.18, 0.18),  # from the side
        scale=rng.uniform(0.92, 1.04),
        head=(rng.uniform(36, 41), rng.uniform(46, 51)),  # half axes
        jaw=rng.uniform(0.05, 0.22),
        hairline=rng.uniform(26, 38),
        sides=rng.uniform(10, 40),
        parting=rng.uniform(-8, 8),
        hair_length=hair_length,
        beard=max(0.0, rng.uniform(-0.6, 0.7)) * (hair_length == 0),
        eye_u=rng.uniform(15.5, 19),
        eye_size=rng.uniform(0.9, 1.1),
        brow=rng.uniform(1.3, 2.2),  # half thickness
        brow_offset=rng.normal(0, 0.12),
        lips=rng.uniform(2.2, 3.8),
        mouth_offset=rng.normal(0, 0.12),
        mouth_width=rng.uniform(14, 17),
        pitch=np.exp(rng.uniform(np.log(95), np.log(210))),  # Hz
        tract=rng.uniform(0.9, 1.12),  # factor of the formants
        loudness=rng.normal(0, 1.5),  # dB
        pace=rng.uniform(3.4, 4.6),  # syllables/s
    )


# Voice ------------------------------------------------------------------------------------------------------

VOWELS = np.array(
    [(300, 2200), (420, 1900), (650, 1650), (720, 1200), (500, 950), (330, 850)]
)  # Hz, first two formants
THIRD_FORMANT = 2700  # Hz
FORMANT_WIDTHS = (90, 130, 220)  # Hz
FORMANT_GAINS = (1.0, 0.6, 0.3)
NUM_HARMONICS = 28
NOISE_LEVEL = 0.25  # RMS of the noise that spoils it, of full scale
SPEECH_DB = -24.0  # dB of full scale, in the middle of a syllable at arousal 0


def speak(
    subject: SimpleNamespace, truth: Latents, fps: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """
    The synthetic voice.

    Returns:
        waveform: `(samples,)` float32 in [-1, 1] at `SAMPLING_RATE`, faults included.
        loudness: `(frames,)` amplitude of the voice without them, which the mouth follows.
    """
    frame_time = np.arange(len(truth.valence)) / fps
    num_samples = round(len(frame_time) / fps * SAMPLING_RATE)
    time = np.arange(math.ceil(num_samples / SAMPLING_RATE * CONTROL_RATE) + 1) / CONTROL_RATE
    valence, arousal = np.interp(time, frame_time, truth.valence), np.interp(time, frame_time, truth.arousal)

    speaking = stretches(rng, len(time), CONTROL_RATE, PAUSE_SHARE, PAUSE_SECONDS) == 0
    begins = speaking & ~np.roll(speaking, 1)
    in_phrase = time - np.maximum.accumulate(np.where(begins, time, 0))  # s since the phrase began
    rate = subject.pace * 2 ** (0.5 * arousal + 0.12 * wander(rng, time, 1, 5))
    syllable = np.cumsum(rate) / CONTROL_RATE
    count = int(syllable[-1]) + 2

    def each(values: np.ndarray) -> np.ndarray:  # a value for each syllable, at its middle, gliding in between
        return np.interp(syllable, np.arange(count) + 0.5, values)

    stress, accent = rng.uniform(0.6, 1, count), rng.normal(size=count)
    slope = -0.1 + 0.06 * valence + 0.06 * wander(rng, time, 1, 6)  # octaves/s
    octaves = 0.4 * arousal + (0.07 + 0.04 * arousal) * each(accent) + slope * (in_phrase - 1)
    pitch = subject.pitch * 2 ** (octaves + 0.05 * wander(rng, time, 1, 6))  # Hz
    decibel = SPEECH_DB + subject.loudness + 7 * arousal + 1.5 * wander(rng, time, 1, 6)
    hull = np.convolve(speaking, np.hanning(9) / np.hanning(9).sum(), "same")
    loudness = hull * each(stress) * (0.12 + 0.88 * np.sin(np.pi * syllable) ** 2) * 10 ** (decibel / 20)

    shift = subject.tract * (1 + 0.05 * valence + 0.07 * wander(rng, time, 1, 6))
    first, second = rng.choice(VOWELS, count).T
    formants = [shift * each(first), shift * each(second), shift * THIRD_FORMANT]
    tilt = 1.1 - 0.15 * valence + 0.2 * wander(rng, time, 1, 6)
    order = np.arange(1, NUM_HARMONICS + 1)[:, None]
    harmonics = 0.03 + sum(
        gain / (1 + ((order * pitch - formant) / width) ** 2)
        for gain, formant, width in zip(FORMANT_GAINS, formants, FORMANT_WIDTHS, strict=True)
    )
    harmonics *= order**-tilt
    harmonics *= math.sqrt(2) * loudness / np.sqrt((harmonics**2).sum(0))

    voice = _sing(pitch, harmonics)[:num_samples]
    breath = between(loudness)[:num_samples] * 0.06 + 10 ** (-60 / 20)
    voice += breath * rng.standard_normal(num_samples, np.float32)
    fault = truth.audio_fault[np.minimum((time * fps).astype(int), len(frame_time) - 1)]
    waveform = voice * between(fault == 0)[:num_samples]
    noise = NOISE_LEVEL * rng.standard_normal(num_samples, np.float32)
    for kind, sound in (("noise", noise), ("tones", _chime(rng, num_samples))):
        waveform += sound * between(fault == AUDIO_FAULTS.index(kind))[:num_samples]
    return np.clip(waveform, -1, 1).astype(np.float32), np.interp(frame_time, time, loudness)


def between(values: np.ndarray) -> np.ndarray:
    """`(steps,)` at `CONTROL_RATE` to `(samples,)` float32 at `SAMPLING_RATE`, 441 for each step but the last: straight
    lines."""
    values = np.asarray(values, np.float32)
    ramp = np.arange(SAMPLING_RATE // CONTROL_RATE, dtype=np.float32) / (SAMPLING_RATE // CONTROL_RATE)
    return (values[:-1, None] + np.diff(values)[:, None] * ramp).ravel()


def _sing(pitch: np.ndarray, harmonics: np.ndarray) -> np.ndarray:
    """Samples of a tone of `pitch` `(steps,)` Hz with amplitudes `harmonics` `(NUM_HARMONICS, steps)`."""
    turns = np.cumsum(between(pitch), dtype=np.float64) / SAMPLING_RATE
    fundamental = np.exp(2j * np.pi * (turns % 1)).astype(np.complex64)
    out, steps = np.zeros(len(turns), np.float32), 50  # a piece of this length stays in the processor's cache
    for start in range(0, len(pitch) - 1, steps):
        here = slice(start * len(turns) // (len(pitch) - 1), (start + steps) * len(turns) // (len(pitch) - 1))
        overtone = np.ones_like(fundamental[here])
        for amplitude in harmonics[:, start : start + steps + 1]:
            overtone *= fundamental[here]
            out[here] += between(amplitude) * overtone.imag
    return out


def _chime(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """Two voices of plucked notes, four a second, that have nothing to do with the speaker."""
    time = np.arange(SAMPLING_RATE // 4, dtype=np.float32) / SAMPLING_RATE  # s, of a note
    tones = 220 * 2 ** (rng.integers(0, 25, (math.ceil(num_samples / len(time)), 2, 1)) / 12)  # Hz
    notes = np.sin(2 * np.pi * tones.astype(np.float32) * time).sum(1) * (0.2 * np.exp(-12 * time))
    return notes.ravel()[:num_samples]


# Face -------------------------------------------------------------------------------------------------------

SPOILT_PICTURE = {"noise": (0.5, 80), "dark": (0.08, 6)}  # factor, and deviation of the noise of 0..255
# The face is drawn in its own coordinates: from the middle of the head, u to the right and v down, in px
# before the subject's `scale`. Left and right are the same: |u|.
EYE_V, BROW_V, MOUTH_V = -7.0, -19.0, 25.0


def film(
    subject: SimpleNamespace, truth: Latents, loudness: np.ndarray, fps: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """The frames of the synthetic video, `(HEIGHT, WIDTH, 3)` uint8, faults included; the mouth follows `loudness`
    `(frames,)`."""
    face = express(subject, truth, loudness, fps, rng)
    background = draw_background(subject)
    for start in range(0, len(loudness), BATCH):
        here = slice(start, start + BATCH)
        part = SimpleNamespace(**{name: values[here, None, None] for name, values in face.items()})
        canvas = np.repeat(background[:, None], len(part.x), 1)
        draw_face(canvas, subject, part)
        for picture, fault in zip(canvas.swapaxes(0, 1), truth.video_fault[here], strict=True):
            if VIDEO_FAULTS[fault] in SPOILT_PICTURE:
                gain, noise = SPOILT_PICTURE[VIDEO_FAULTS[fault]]
                picture[:] = gain * picture + noise * rng.standard_normal(picture.shape, np.float32)
        yield from np.ascontiguousarray(canvas.clip(0, 255).astype(np.uint8).transpose(1, 2, 3, 0))


def express(
    subject: SimpleNamespace, truth: Latents, loudness: np.ndarray, fps: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """What the drawing depends on, `(frames,)` float32 each: x to yaw in px, but for the roll in radians."""
    time = np.arange(len(loudness)) / fps
    valence, arousal = truth.valence, truth.arousal

    def noise() -> np.ndarray:
        return wander(rng, time, 1, 6)

    def covered(kind: str) -> np.ndarray:  # 0..1: rises before the stretches of a fault and falls after them
        half = round(MOVING_SECONDS * fps / 2)
        wide = np.convolve(truth.video_fault == VIDEO_FAULTS.index(kind), np.ones(2 * half + 1), "same") > 0.5
        return np.convolve(np.pad(wide, half, "edge"), np.ones(2 * half + 1) / (2 * half + 1), "valid")

    sway = np.maximum(0.4, 1 + 0.45 * arousal + 0.35 * noise())
    turn = 2 * np.pi * np.cumsum(0.3 * 2 ** (0.6 * arousal + 0.4 * noise())) / fps
    away = covered("absent") * rng.choice([-1, 1]) * 1.35 * WIDTH
    blink = np.ones(len(time))
    for moment in np.cumsum(rng.uniform(2, 6, 2 + int(time[-1] / 2))):
        blink *= 1 - np.exp(-(((time - moment) / 0.07) ** 2))
    face = {
        "x": WIDTH / 2 + 2.5 * sway * np.sin(turn) + 1.5 * noise() + away,
        "y": HEIGHT / 2 + 3 + 1.2 * sway * np.sin(1.7 * turn) + noise(),
        "roll": 0.03 * sway * np.sin(0.8 * turn + 1) + 0.03 * noise(),
        "yaw": 1.5 * sway * np.sin(1.1 * turn + 2) + noise(),
        "smile": 0.95 * valence + subject.mouth_offset + 0.12 * noise(),
        "frown": -0.9 * valence + subject.brow_offset + 0.2 * noise(),
        "cheek": np.clip(0.9 * valence + 0.15 * noise(), 0, 1),
        "lid": np.clip(0.85 + 0.13 * arousal + 0.22 * noise(), 0.35, 1.4) * blink,
        "brow": 1.2 * arousal + 2 * noise(),
        "open": loudness / (loudness + 10 ** (SPEECH_DB / 20)) + 0.02 * noise(),
        "hidden": covered("hidden"),
    }
    return {name: values.astype(np.float32) for name, values in face.items()}


def draw_background(subject: SimpleNamespace) -> np.ndarray:
    """`(3, HEIGHT, WIDTH)` float32: a gradient with soft spots."""
    x, y = np.arange(WIDTH) / WIDTH, np.arange(HEIGHT)[:, None] / HEIGHT
    mix = (x + y) / 2
    for left, top, size, weight in subject.blobs:
        mix = mix + (weight - 0.5) * np.exp(-((x - left) ** 2 + (y - top) ** 2) / (0.02 + 0.06 * size))
    first, second = subject.background[:, :, None, None]
    return (first + mix * (second - first)).astype(np.float32)


def draw_face(canvas: np.ndarray, subject: SimpleNamespace, face: SimpleNamespace) -> None:
    """
    Paint the head into `canvas` `(3, batch, HEIGHT, WIDTH)`, back to front.

    Args:
        face: the values of `express`, `(batch, 1, 1)` each.
    """
    a, b = subject.head
    dark, lip = 0.45 * subject.skin, 0.55 * subject.skin + 0.45 * np.float32([185, 50, 60])

    def place(
        u: float, v: float, half_u: float, half_v: float, shift: float | np.ndarray = 0.0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The part of the canvas that holds a box of the face in all frames, and its pixels' u and v."""
        cos, sin = np.cos(face.roll) * subject.scale, np.sin(face.roll) * subject.scale
        x, y = face.x + shift + cos * u - sin * v, face.y + sin * u + cos * v
        half_x, half_y = half_u * cos + half_v * abs(sin) + 1, half_v * cos + half_u * abs(sin) + 1
        left, right = np.clip([int((x - half_x).min()), int((x + half_x).max()) + 2], 0, WIDTH)
        top, bottom = np.clip([int((y - half_y).min()), int((y + half_y).max()) + 2], 0, HEIGHT)
        x = (np.arange(left, right, dtype=np.float32) - face.x - shift) / subject.scale**2
        y = (np.arange(top, bottom, dtype=np.float32)[:, None] - face.y) / subject.scale**2
        return canvas[:, :, top:bottom, left:right], cos * x + sin * y, cos * y - sin * x

    def paint(area: np.ndarray, colour: np.ndarray, coverage: np.ndarray) -> None:
        for layer, value in zip(area, colour, strict=True):
            layer += coverage * (value - layer)

    # shoulders, hair behind the head, neck
    area, u, v = place(0, 85, 75, 42)
    paint(area, subject.cloth, inside(ellipse(u, v - 100, 72, 50)))
    reach = subject.hair_length / 2
    area, u, v = place(0, reach - 4, a + 8, b + reach + 2)
    paint(area, 0.8 * subject.hair, inside(ellipse(u, v - reach + 4, a + 6, b + reach)))
    area, u, v = place(0, b, 18, 18)
    paint(area, 0.82 * subject.skin, inside(box(u, v - b, 15, 15)))

    # head: ears, skin, beard, hair
    area, u, v = place(0, -3, a + 7, 12)
    paint(area, 0.88 * subject.skin, inside(ellipse(abs(u) - a + 1, v + 3, 6, 10)))
    area, u, v = place(0, 0, a + 6, b + 6)
    head = ellipse(u / (1 - subject.jaw * v / b), v, a, b)
    shade = 1 + subject.light * u / a - 0.06 * v / b
    paint(area, [c * shade for c in subject.skin], inside(head))
    if subject.beard:
        chin = inside(head) * np.clip((v - 17 + 0.006 * u**2) / 3, 0, 1)
        paint(area, np.minimum(subject.hair, 0.8 * subject.skin), subject.beard * chin)
    edge = -subject.hairline + subject.sides * ((u / a) ** 2) ** 2 + subject.parting * u / a
    paint(area, [c * shade for c in subject.hair], inside(np.maximum(head - 4, v - edge)))

    # cheeks, nose
    area, u, v = place(0, 10, 34, 12, face.yaw)
    paint(area, (225, 90, 85), 0.3 * face.cheek * np.exp(-(((abs(u) - 22) / 8) ** 2) - ((v - 10) / 6) ** 2))
    area, u, v = place(0, 2, 8, 12, face.yaw)
    paint(area, dark, 0.35 * inside(ellipse(abs(u) - 3.5, v - 10.5, 2.2, 1.4)))
    paint(area, 1.12 * subject.skin, 0.5 * inside(ellipse(u, v - 1, 1.8, 9), 1.5))

    # eyes: white, iris, pupil, lids
    area, u, v = place(0, EYE_V, 31, 12, face.yaw)
    u, v = abs(u) - subject.eye_u, v - EYE_V
    bow = 1 - (u / (8.5 * subject.eye_size)) ** 2
    upper = -5.6 * subject.eye_size * face.lid * bow
    lower = 3.6 * face.lid.clip(0, 1) * (1 - 0.7 * face.cheek) * bow
    eye = band(v, upper, lower)
    paint(area, (244, 242, 238), eye)
    radius = np.sqrt(u**2 + v**2)
    paint(area, subject.iris, eye * inside(radius - 4.5))
    paint(area, (15, 12, 12), eye * inside(radius - 2))
    paint(area, 0.5 * dark, band(v, upper - 1.4, upper) * (bow > -0.1))
    paint(area, dark, 0.5 * band(v, lower, lower + 0.7) * (bow > 0))

    # brows
    area, u, v = place(0, BROW_V, 33, 16, face.yaw)
    u, v = (abs(u) - subject.eye_u) / 11, v - BROW_V
    middle = -1.6 * face.brow + 3 * u**2 - 2 - 5 * face.frown * (u + 0.35)
    ends = np.clip(6 * (1 - abs(u)), 0, 1)
    paint(area, 0.7 * subject.hair, ends * band(v - middle, -subject.brow, subject.brow))

    # mouth: lips, dark inside, teeth
    area, u, v = place(0, MOUTH_V, 24, 22, face.yaw)
    width = subject.mouth_width * (1 + 0.15 * face.smile)
    bow = 1 - (u / width) ** 2
    middle = v - MOUTH_V - (7 + face.smile) * face.smile * (bow - 0.6)
    gap = (9 * face.open.clip(0, 1) + 3 * face.cheek) * bow
    thick = subject.lips * bow
    paint(area, lip, band(middle, -0.4 * gap - thick, 0.6 * gap + 1.2 * thick))
    paint(area, (70, 20, 25), band(middle, -0.4 * gap - 0.5, 0.6 * gap + 0.5) * (bow > 0))
    paint(area, (245, 242, 235), band(middle, -0.4 * gap, -0.1 * gap) * np.clip(gap - 2, 0, 1))

    if face.hidden.any():  # a card in front of it
        area, u, v = place(0, 0, 60, 200)
        v = v - 120 * (1 - face.hidden)
        card = inside(box(u + 0.15 * v, v - 2, 42, 50))
        paint(area, subject.card, card)
        paint(area, 0.6 * subject.card, card * band(v, -30, -22))


def ellipse(u: np.ndarray, v: np.ndarray, half_u: float, half_v: float) -> np.ndarray:
    """Signed distance `(..., rows, columns)` (px, negative inside) of points `u` `(..., rows, columns)`, `v` `(..., rows,
    columns)` (px) to an ellipse around 0 with the half axes `half_u` and `half_v`, nearly."""
    return (np.sqrt((u / half_u) ** 2 + (v / half_v) ** 2) - 1) * min(half_u, half_v)


def box(u: np.ndarray, v: np.ndarray, half_u: float, half_v: float) -> np.ndarray:
    """As [`ellipse`], of a rectangle with the half sides `half_u` and `half_v`."""
    return np.maximum(abs(u) - half_u, abs(v) - half_v)


def inside(distance: np.ndarray, softness: float = 1.0) -> np.ndarray:
    """Coverage 0..1 of pixels, `(..., rows, columns)`, at a signed distance `(..., rows, columns)` (px) to a shape: an edge
    `softness` px wide."""
    return np.clip(0.5 - distance / softness, 0, 1)


def band(v: np.ndarray, top: float | np.ndarray, bottom: float | np.ndarray) -> np.ndarray:
    """Coverage 0..1 of pixels `(..., rows, columns)` at `v` `(..., rows, columns)` between two curves, `top` `(..., 1,
    columns)` and `bottom` `(..., 1, columns)`, all px."""
    return np.clip(0.5 + np.minimum(v - top, bottom - v), 0, 1)


# Files ------------------------------------------------------------------------------------------------------


def write_media(
    media: Path, crops: Path, frames: Iterator[np.ndarray], waveform: np.ndarray, face: np.ndarray, fps: int
) -> None:
    """
    Write an mp4 (h264 and aac, both from time 0), and `00001.jpg` ... of its central square where a face is.

    Args:
        frames: gives `(HEIGHT, WIDTH, 3)` uint8 RGB.
        waveform: `(samples,)` float32 at `SAMPLING_RATE`.
        face: `(frames,)` bool.
    """
    left, bitexact = (WIDTH - CROP) // 2, "+bitexact"  # no version of the muxer in the file
    # x264's macroblock tree gives other bits from run to run at this small width
    h264 = {"preset": "veryfast", "crf": "20", "flags": bitexact, "x264-params": "mbtree=0"}
    with av.open(str(media), "w", format="mp4", options={"fflags": bitexact}) as container:
        video = container.add_stream("libx264", fps, options=h264)
        video.width, video.height, video.pix_fmt, video.thread_count = WIDTH, HEIGHT, "yuv420p", 1
        video.codec_context.gop_size = 2 * fps
        audio = container.add_stream(
            "aac", SAMPLING_RATE, layout="mono", options={"flags": bitexact, "aac_coder": "fast"}
        )
        audio.bit_rate = 96_000
        jpeg = av.CodecContext.create("mjpeg", "w")
        jpeg.width, jpeg.height, jpeg.pix_fmt, jpeg.time_base = CROP, CROP, "yuvj420p", Fraction(1, fps)
        jpeg.options, jpeg.thread_count = {"qmin": "3", "qmax": "3", "flags": bitexact}, 1
        sample = 0
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts = index
            container.mux(video.encode(frame))
            if face[index]:
                crop = np.ascontiguousarray(picture[:, left : left + CROP])
                frame = av.VideoFrame.from_ndarray(crop, "rgb24")
                frame.pts = index
                (packet,) = jpeg.encode(frame)
                (crops / f"{index + 1:05d}.jpg").write_bytes(bytes(packet))
            while sample < min(len(waveform), (index + 1) / fps * SAMPLING_RATE):
                frame = av.AudioFrame.from_ndarray(waveform[None, sample : sample + 1024], "fltp", "mono")
                frame.sample_rate, frame.pts = SAMPLING_RATE, sample
                container.mux(audio.encode(frame))
                sample += 1024
        for stream in (video, audio):
            container.mux(stream.encode(None))
