"""A modality that is missing, noisy, blurred, of another video or late: how a model holds when its input does not.

`missing`, `wrong` and `shift` change kept features; `noise` and `blur` change what the encoders read. All that is drawn
depends on a seed and the video alone, so that two models meet the same.
"""

import hashlib
import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, Features, concatenate_datasets

from jca.evaluation import evaluate
from modeling_jca import JCAModel
from processing_jca import JCAProcessor


# what the amount of each kind is, the least and the most; the last two are done before the encoders
KINDS = {
    "missing": ("a share of clips from 0 to 1", 0.0, 1.0),
    "wrong": ("a share of clips from 0 to 1", 0.0, 1.0),
    "shift": ("seconds, positive where the modality comes late", -math.inf, math.inf),
    "noise": ("a signal-to-noise ratio in dB", -math.inf, math.inf),
    "blur": ("a standard deviation in pixels of a 112-pixel crop, 0 or more", 0.0, math.inf),
}
BEFORE_ENCODERS = ("noise", "blur")
INPUTS = {"audio": "waveforms", "video": "crops"}  # of a window
STRETCH_SECONDS = 4.0  # faces and voices go for a while, not for a clip
BLUR_SIZE = 112  # pixels of the crop in which a blur is measured
SHARES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)  # missing, of a curve


@dataclass(frozen=True)
class Corruption:
    """
    What happens to one modality; `str` gives it as [`parse_corruption`] reads it.

    Args:
        modality: `"audio"` or `"video"`.
        kind: `"missing"` and `"wrong"` (the clip of another recording at the same time): `amount` is a share of the clips of
            each video, in stretches of about 4 s; a smaller share is part of a larger one. `"shift"`: seconds by which the
            modality comes late. `"noise"`: white, at a signal-to-noise ratio in dB. `"blur"`: of video alone, a Gaussian
            whose standard deviation is given in pixels of a 112-pixel crop.
        seed: of all that is drawn.

    Raises:
        ValueError: if there is no such modality or kind, or the amount is not possible.
    """

    modality: str
    kind: str
    amount: float
    seed: int = 0

    def __post_init__(self) -> None:
        def refuse(rule: str) -> None:
            raise ValueError(f"The corruption {str(self)!r} is not possible: {rule}")

        if self.modality not in INPUTS:
            refuse(f"{self.modality!r} is no modality. Choose one of {', '.join(INPUTS)}.")
        kinds = [kind for kind in KINDS if kind != "blur" or self.modality == "video"]
        if self.kind not in kinds:
            refuse(f"{self.modality} has no {self.kind!r}. Choose one of {', '.join(kinds)}.")
        rule, low, high = KINDS[self.kind]
        if not (math.isfinite(self.amount) and low <= self.amount <= high):
            refuse(f"{self.kind} must be {rule}. Give such a number.")

    def __str__(self) -> str:
        return f"{self.modality}:{self.kind}={self.amount}"


def parse_corruption(text: str, seed: int = 0) -> Corruption:
    """
    `"audio=0.5"` (half of the clips without sound), `"audio:noise=10"` or `"video:blur=2"` as a [`Corruption`].

    Raises:
        ValueError: if it is none.
    """
    target, _, amount = text.partition("=")
    modality, _, kind = target.partition(":")
    try:
        number = float(amount)
    except ValueError:
        raise ValueError(
            f"The corruption {text!r} is not possible: {amount!r} is no number. Write MODALITY=SHARE or "
            "MODALITY:KIND=AMOUNT, such as audio=0.5 or audio:noise=10."
        ) from None
    return Corruption(modality, kind or "missing", number, seed)


def check_corruptions(
    corruptions: Sequence[Corruption], modalities: Collection[str], processor: JCAProcessor, hop: int
) -> None:
    """
    Whether features of `modalities` with a clip at every `hop`-th frame can be corrupted so.

    Raises:
        ValueError: if a modality is none of them, or a shift is no multiple of `hop`.
    """
    for corruption in corruptions:
        if corruption.modality not in modalities:
            raise ValueError(
                f"The corruption '{corruption}' is not possible: the model reads {' and '.join(modalities)} alone. "
                "Leave it out."
            )
        if corruption.kind == "shift":
            frames = round(corruption.amount * processor.frame_rate)
            if frames % hop:
                near = [round(step * hop / processor.frame_rate, 3) for step in (frames // hop, frames // hop + 1)]
                raise ValueError(
                    f"The corruption '{corruption}' is not possible: it is {frames} frames, and there is a clip at every "
                    f"{hop}th. Give {near[0]} or {near[1]}, or a hop that divides {frames}."
                )


# Before the encoders -------------------------------------------------------------------------------------------------


def _generator(corruption: Corruption, *place: Hashable) -> np.random.Generator:
    key = f"{corruption.seed} {corruption.modality} {corruption.kind} {place}"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little"))


def add_noise(signal: np.ndarray, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """White normal noise on a signal `(...,)` of any shape, `ratio` dB below its power, the mean of its squares: `(...,)`
    float32, the same, and not clipped: the ratio would not hold in bright pictures."""
    signal = np.asarray(signal, np.float32)
    level = math.sqrt(np.mean(np.square(signal), dtype=np.float64) / 10 ** (ratio / 10))
    return signal + np.float32(level) * rng.standard_normal(signal.shape, np.float32)


def blur_crops(crops: np.ndarray, sigma: float) -> np.ndarray:
    """
    Crops `(..., size, size, 3)` after a Gaussian blur of `sigma` of their pixels, `(..., size, size, 3)` float32.

    The edges are mirrored, by which the blur is a gain for each wave of the discrete cosine transform: exp(-(sigma w)² / 2)
    at w radians a pixel. The mean stays.
    """
    index = np.arange(crops.shape[-2])
    waves = np.cos(np.pi / len(index) * index[:, None] * (index + 0.5))
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    gains = np.exp(-np.square(sigma * np.pi / len(index) * index) / 2)
    matrix = ((waves.T * gains) @ waves).astype(np.float32)
    return np.einsum("ij,...jkc,lk->...ilc", matrix, crops.astype(np.float32), matrix, optimize=True)


def corrupt_window(window: Mapping[str, Any], corruptions: Sequence[Corruption], video_id: str) -> dict[str, Any]:
    """
    A window or track of `JCAProcessor.windows` with `noise` and `blur`: other `crops` or `waveforms`, float32. Noise is
    drawn anew for each clip; frames that the clips of a track share are spoilt once.

    Args:
        corruptions: those of other kinds are passed over.
        video_id: of the row, for what is drawn.
    """
    out = dict(window)
    for corruption in corruptions:
        name = INPUTS[corruption.modality]
        if corruption.kind == "noise" and name == "crops" and "frame_mask" in window:
            generator = _generator(corruption, video_id, int(window["end_frames"][0]))
            out[name] = add_noise(out[name], corruption.amount, generator)
        elif corruption.kind == "noise":
            out[name] = np.stack(
                [
                    add_noise(clip, corruption.amount, _generator(corruption, video_id, int(end)))
                    for clip, end in zip(out[name], window["end_frames"], strict=True)
                ]
            )
        elif corruption.kind == "blur":
            out[name] = blur_crops(out[name], corruption.amount * out[name].shape[-2] / BLUR_SIZE)
    return out


# After the encoders --------------------------------------------------------------------------------------------------


def draw_stretches(end_frames: np.ndarray, share: float, frame_rate: float, rng: np.random.Generator) -> np.ndarray:
    """
    Which of the clips that end with `end_frames` `(clips,)` are drawn, `(clips,)` bool: `share` of them, in stretches of
    4 s (at `frame_rate` frames a second) and one that is shorter. With the same generator a larger share has all those of a
    smaller one.
    """
    length = STRETCH_SECONDS * frame_rate
    stretch = ((end_frames + rng.uniform(0, length)) // length).astype(int)
    rank = rng.permutation(stretch[-1] + 1)[stretch]
    drawn = np.zeros(len(end_frames), bool)
    drawn[np.lexsort((end_frames, rank))[: round(share * len(end_frames))]] = True
    return drawn


def corrupt_features(
    features: Dataset,
    corruptions: Sequence[Corruption],
    processor: JCAProcessor,
    hop: int,
    recordings: Sequence[Hashable],
) -> Dataset:
    """
    Rows of `extract_features` with a modality `missing`, `wrong` or shifted in time, one corruption after the other. In
    memory; the files stay as they are.

    Args:
        corruptions: those of other kinds are passed over.
        hop: frames between the ends of the clips, as of the features.
        recordings: of each row: a wrong track is of another one, and from its beginning again where it is too short.

    Returns:
        `datasets.Dataset` of the same columns. Of `missing` the mask alone changes: what stands in a clip that it leaves out
        is not read. A clip without the modality stays without.

    Raises:
        ValueError: see [`check_corruptions`]; or if a wrong track is asked for and there is none.
    """
    modalities = [name.removesuffix("_mask") for name in features.column_names if name.endswith("_mask")]
    check_corruptions(corruptions, modalities, processor, hop)
    for corruption in corruptions:
        if corruption.kind not in BEFORE_ENCODERS:
            features = _corrupt_modality(features, corruption, processor.frame_rate, recordings)
    return features


def _corrupt_modality(
    features: Dataset, corruption: Corruption, frame_rate: float, recordings: Sequence[Hashable]
) -> Dataset:
    table = features.with_format("numpy")
    ends, masks = list(table["end_frames"]), list(table[f"{corruption.modality}_mask"])
    clips = table[f"{corruption.modality}_features"]  # read row by row
    # ends beyond the video count for no share: they go with the last in it
    inside = [
        max(1, int(np.searchsorted(own, round(times[-1] * frame_rate), side="right")))
        for own, times in zip(ends, table["times"], strict=True)
    ]
    new_masks, new_clips = [], []
    for row, video_id in enumerate(features["video_id"]):
        rng = _generator(corruption, video_id)
        if corruption.kind == "shift":
            wanted = ends[row] - round(corruption.amount * frame_rate)
            position = np.minimum(np.searchsorted(ends[row], wanted), len(wanted) - 1)
            new_masks.append(masks[row][position] & (ends[row][position] == wanted))
            new_clips.append(clips[row][position])
            continue
        drawn = draw_stretches(ends[row][: inside[row]], corruption.amount, frame_rate, rng)
        drawn = np.pad(drawn, (0, len(ends[row]) - inside[row]), mode="edge")
        if corruption.kind == "missing":
            new_masks.append(masks[row] & ~drawn)
            continue
        others = [i for i, mask in enumerate(masks) if recordings[i] != recordings[row] and mask.any()]
        if not others:
            raise ValueError(
                f"The corruption '{corruption}' is not possible: no other recording has {corruption.modality}. Use a split "
                "of several."
            )
        other = rng.choice(others)
        position = np.searchsorted(ends[other], ends[row] % (ends[other][inside[other] - 1] + 1))
        new_masks.append(masks[row] & (masks[other][position] | ~drawn))
        new_clips.append(np.where(drawn[:, None], clips[other][position], clips[row]))
    columns = {f"{corruption.modality}_mask": new_masks}
    if new_clips:
        columns[f"{corruption.modality}_features"] = new_clips
    kinds = Features({name: features.features[name] for name in columns})
    rest = features.remove_columns(list(columns))
    changed = concatenate_datasets([rest, Dataset.from_dict(columns, features=kinds)], axis=1)
    return changed.select_columns(features.column_names)


# Curves --------------------------------------------------------------------------------------------------------------


def missing_curve(
    model: JCAModel,
    features: Dataset,
    processor: JCAProcessor,
    hop: int,
    modality: str,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> list[dict[str, float]]:
    """The [`jca.evaluation.evaluate`] of a model for each of `shares`, in [0, 1], of clips that lack a modality, and `share`
    beside it."""
    curve = []
    for share in shares:
        missing = Corruption(modality, "missing", share, seed)
        corrupted = corrupt_features(features, [missing], processor, hop, features["video_id"])
        curve.append({"share": share, **evaluate(model, corrupted, processor, hop)})
    return curve


def curve_table(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """CCC over the share missing as a Markdown table; `curves` are a [`missing_curve`] for each modality, by its name."""
    names = [name for name in next(iter(curves.values()))[0] if name.startswith("ccc_")] + ["ccc"]
    titles = [name.removeprefix("ccc_") if name != "ccc" else "mean" for name in names]
    heads = [f"{title} without {modality}" for modality in curves for title in titles]
    lines = ["| missing | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for points in zip(*curves.values(), strict=True):
        values = [f"{point[name]:.3f}" for point in points for name in names]
        lines.append(f"| {points[0]['share']:.0%} | " + " | ".join(values) + " |")
    return "\n".join(lines)
