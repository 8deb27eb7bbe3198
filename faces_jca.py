"""Frames -> face tracks: who is who from picture to picture, aligned crops, how good they are, and who speaks.

Lengths are in face sizes where it says so: the square root of the area of a face's box.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F


try:  # copied next to the weights: part of a `transformers_modules.*` package
    from .detection_jca import MTCNN, Detections, Detector
except ImportError:  # installed or on sys.path: a top-level module
    from detection_jca import MTCNN, Detections, Detector


# Crops ---------------------------------------------------------------------------------------------------------------

# the five points of ArcFace (1801.07698) in a crop of 112 px: eyes, nose, corners of the mouth
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
TEMPLATE_SIZE = 112


def similarity(landmarks: np.ndarray, size: int = TEMPLATE_SIZE) -> tuple[complex, complex]:
    """
    The similarity that takes landmarks to the template, by least squares in the crop: as complex numbers `scale`, `shift`
    with crop = scale * picture + shift, the complex x + i y in px. `abs(scale)` is crop px for each px of the picture.

    Args:
        landmarks (`np.ndarray` of shape `(5, 2)`): px; size: of the crop, px.

    Raises:
        ValueError: if the landmarks are not finite or all in one point.
    """
    points = np.asarray(landmarks, np.float64) @ (1, 1j)
    template = TEMPLATE @ (1, 1j) * (size / TEMPLATE_SIZE)
    middle = points.mean()
    spread = (abs(points - middle) ** 2).sum()
    if not 0 < spread < np.inf:
        raise ValueError(
            f"The landmarks {np.asarray(landmarks).tolist()} place no face: five different points are needed."
        )
    scale = ((template - template.mean()) * (points - middle).conj()).sum() / spread
    return scale, template.mean() - scale * middle


def align(picture: np.ndarray, landmarks: np.ndarray, size: int = TEMPLATE_SIZE) -> np.ndarray:
    """
    The face of `(height, width, 3)` uint8 upright and in its place: `(size, size, 3)` uint8, black outside of the picture.

    Bilinear, from the face's region alone; where that is larger than the crop it is averaged first, so that nothing aliases.

    Args:
        landmarks (`np.ndarray` of shape `(5, 2)`): px, where the first pixel covers 0 to 1; size: of the crop, px.

    Raises:
        ValueError: see [`similarity`].
    """
    scale, shift = similarity(landmarks, size)
    height, width = picture.shape[:2]
    corners = (np.array([0, size, 1j * size, size + 1j * size]) - shift) / scale
    step = max(1, int(1 / abs(scale)))  # px of the picture that become one before the bilinear pass
    left, right = _span(corners.real, step, width)
    top, bottom = _span(corners.imag, step, height)
    if left >= right or top >= bottom:
        return np.zeros((size, size, 3), np.uint8)
    region = torch.from_numpy(np.ascontiguousarray(picture[top:bottom, left:right])).permute(2, 0, 1)[None].float()
    if step > 1:
        region = F.avg_pool2d(region, step, ceil_mode=True)
    centres = np.arange(size) + 0.5
    at = (centres + 1j * centres[:, None] - shift) / scale - (left + 1j * top)
    extent = step * region.shape[3], step * region.shape[2]  # grid_sample counts from -1 to 1
    grid = np.stack([at.real / extent[0], at.imag / extent[1]], -1) * 2 - 1
    crop = F.grid_sample(region, torch.from_numpy(grid).float()[None], align_corners=False)
    return crop[0].permute(1, 2, 0).round().byte().numpy()


def _span(values: np.ndarray, margin: int, stop: int) -> tuple[int, int]:
    return max(0, int(values.min()) - margin), min(stop, int(values.max()) + 1 + margin)


# Quality -------------------------------------------------------------------------------------------------------------

SHARP = 10.0  # grey levels: standard deviation of the Laplacian of sharp crops of real films is 9 to 16, blurred by 2 px 2.3


def quality(crop: np.ndarray, landmarks: np.ndarray, score: float = 1.0) -> float:
    """
    How much of a face a crop shows, in [0, 1]: the product of five factors, each 1 where there is nothing to complain of.

    The detector's score. Size: px of the picture under a side of the crop, up to 112. Sharpness: the standard deviation of
    the Laplacian, up to `SHARP`; darkness lowers it as blur does. Yaw: 1 with the nose midway between the eyes along their
    line, 0 with it over one of them. Roll: `(1 + cos) / 2` of the angle of the eyes' line.

    Args:
        crop (`np.ndarray` of shape `(size, size, 3)`): uint8, as [`align`] gives it.
        landmarks (`np.ndarray` of shape `(5, 2)`): px of the picture.
        score: of the detector, in [0, 1].
    """
    left, right, nose = (np.asarray(landmarks, np.float64) @ (1, 1j))[:3]
    eyes = right - left
    if not abs(eyes):
        return 0.0
    size = 1 / abs(similarity(landmarks)[0])
    grey = _grey(crop)
    laplacian = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    yaw = abs(((nose - (left + right) / 2) / eyes).real)
    factors = [score, size, laplacian.std() / SHARP, 1 - 2 * yaw, (1 + eyes.real / abs(eyes)) / 2]
    return float(np.prod(np.clip(factors, 0, 1)))


def _grey(crop: np.ndarray) -> np.ndarray:
    """`(size, size, 3)` to `(112, 112)`, float32."""
    grey = torch.from_numpy(crop.mean(2, dtype=np.float32))
    return F.adaptive_avg_pool2d(grey[None], TEMPLATE_SIZE)[0].numpy()


# Who speaks ----------------------------------------------------------------------------------------------------------

MIN_PAIRS = 6  # moments of which a correlation says something
MOUTH = slice(78, 110), slice(34, 78)  # rows and columns of a crop of 112 px
REST = slice(40, 74), slice(30, 82)  # eyes and nose: what moves here as well is the head, or the light


def mouth_motion(previous: np.ndarray, crop: np.ndarray) -> float:
    """
    How much the mouth moved from one aligned crop of a face to the next: the mean absolute difference there less that around
    eyes and nose, in standard deviations of the face's grey levels, each crop less its mean and by its own deviation.

    Args:
        previous, crop (`np.ndarray` of shape `(size, size, 3)`): uint8.
    """
    change = abs(_standardised(crop) - _standardised(previous))
    return float(change[MOUTH].mean() - change[REST].mean())


def _standardised(crop: np.ndarray) -> np.ndarray:
    grey = _grey(crop)
    face = grey[REST[0].start : MOUTH[0].stop, REST[1]]
    return (grey - face.mean()) / max(float(face.std()), 1.0)


def speaking_scores(
    motion: Sequence[float], loudness: Sequence[float], times: Sequence[float], window: float = 2.0
) -> np.ndarray:
    """
    Whether a face moves its mouth with the sound: the correlation of the two over `window` seconds around each moment.

    Args:
        motion (of shape `(n,)`): by [`mouth_motion`]; NaN where the face was not seen.
        loudness (of shape `(n,)`): level of the sound, such as its RMS in dB; NaN where there is none.
        times (of shape `(n,)`): seconds, rising.

    Returns:
        `np.ndarray` of shape `(n,)`, in [-1, 1]; NaN where it can not be said: under `MIN_PAIRS` moments, or one of the two
        does not change.
    """
    motion, loudness, times = (np.asarray(values, np.float64) for values in (motion, loudness, times))
    known, scores = np.isfinite(motion) & np.isfinite(loudness), np.full(len(times), np.nan)
    for index, moment in enumerate(times):
        near = known & (np.abs(times - moment) <= window / 2)
        if near.sum() >= MIN_PAIRS:
            moved, heard = motion[near] - motion[near].mean(), loudness[near] - loudness[near].mean()
            spread = np.sqrt((moved**2).sum() * (heard**2).sum())
            if spread > 1e-9:
                scores[index] = (moved * heard).sum() / spread
    return scores


# Cuts ----------------------------------------------------------------------------------------------------------------

THUMBNAIL = 18, 32  # cells
FLAT = 6.0  # grey levels: standard deviation under which a picture is black or overexposed and says nothing


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """A `(height, width, 3)` uint8 picture in `THUMBNAIL` cells, `(18, 32, 3)` float32, from every few of its pixels."""
    step = max(1, min(picture.shape[0] // (2 * THUMBNAIL[0]), picture.shape[1] // (2 * THUMBNAIL[1])))
    pixels = torch.from_numpy(np.ascontiguousarray(picture[::step, ::step])).permute(2, 0, 1).float()
    return F.adaptive_avg_pool2d(pixels, THUMBNAIL).permute(1, 2, 0).numpy()


def is_cut(before: np.ndarray, after: np.ndarray) -> bool:
    """
    Whether two thumbnails are of two shots: they do not correlate, and next to nothing stayed where it was.

    The mean and the contrast of each are taken off, so that light and fades do not count. Of 5 cuts in 10 s of streets and
    395 made between films of faces, all have a correlation under 0.5 and under 7 % of the cells still.
    """
    before, after = ((t - t.mean()) / t.std() for t in (before, after))
    still = F.avg_pool2d(torch.from_numpy(abs(before - after).mean(2))[None], 3, 1) < 0.25
    return bool((before * after).mean() < 0.5 and still.float().mean() < 0.1)


# Tracks --------------------------------------------------------------------------------------------------------------

SURE = 0.95  # score with which a face is believed at once, if a second look agrees
SAME = 0.35  # distance of two centres, in face sizes, under which they are one face
CLOSE = 0.5  # the same, under which one face hides so much of another that neither looks like itself
REACH, SPEED = 0.5, 2.0  # face sizes, and face sizes a second: how far off its course a face may turn up
DOUBT = 0.4  # distance of looks from which on a face may be half hidden, or another
STEADY = 0.6  # distance of looks up to which a sight may be of a track that was just seen, or lost
LOOK_WEIGHT = 3.0  # face sizes that a distance of looks of 1 is worth
LOOK_SECONDS, VELOCITY_SECONDS = 2.0, 0.2  # of the running means
COASTING = 0.5  # s that a lost face is thought to go on as it went
FLASH_SECONDS = 0.5  # within which a picture like that before a cut means that there was no cut


class Face(NamedTuple):
    """
    A face in a picture.

    face: the id of its track, from 0.
    crop: (size, size, 3) uint8 RGB, see [`align`].
    box: x0, y0, x1, y1, px of the picture.
    landmarks: (5, 2) float32, px.
    quality: in [0, 1], see [`quality`].
    """

    face: int
    crop: np.ndarray
    box: list[float]
    landmarks: np.ndarray
    quality: float


class Sight(NamedTuple):
    """A face that was seen, and not yet whose."""

    box: np.ndarray
    landmarks: np.ndarray
    score: float
    crop: np.ndarray
    look: np.ndarray

    @property
    def centre(self) -> np.ndarray:
        return (self.box[:2] + self.box[2:]) / 2

    @property
    def size(self) -> float:
        return float(np.sqrt(np.prod(self.box[2:] - self.box[:2])))


@dataclass(eq=False)
class Track:
    """What is known of a face: its last sight and when that was (s), its looks, where it was going."""

    sight: Sight
    seen: float
    look: np.ndarray
    newest: np.ndarray
    face: int | None = None  # its id, once it is confirmed
    sights: int = 1
    velocity: np.ndarray = (0.0, 0.0)  # px/s

    def ahead(self, seconds: float) -> np.ndarray:
        """How far it should have come by now, `(2,)` px."""
        return np.asarray(self.velocity) * min(seconds - self.seen, COASTING)

    def unlike(self, sight: Sight) -> float:
        return difference(self.look, sight.look)

    def update(self, seconds: float, sight: Sight, clear: bool) -> None:
        passed = seconds - self.seen
        turn = 1 - np.exp(-passed / VELOCITY_SECONDS)
        self.velocity = self.velocity + turn * ((sight.centre - self.sight.centre) / passed - self.velocity)
        self.sight, self.seen, self.sights = sight, seconds, self.sights + 1
        self.newest = sight.look
        if clear:
            share = max(1 / self.sights, 1 - np.exp(-passed / LOOK_SECONDS))
            self.look = self.look + share * (sight.look - self.look)


class FaceTracker:
    def __init__(
        self,
        detector: Detector | None = None,
        size: int = TEMPLATE_SIZE,
        detect_seconds: float = 0.5,
        max_lost_seconds: float = 1.0,
        min_score: float = 0.7,
    ):
        self.detector = MTCNN() if detector is None else detector
        self.refine = getattr(self.detector, "refine", None)
        self.size, self.min_score = size, min_score
        self.detect_seconds, self.max_lost_seconds = detect_seconds, max_lost_seconds
        self.tracks: list[Track] = []
        self.num_faces = 0
        self.now = self.previous = self.searched = -np.inf  # s of the newest picture, of the newest search
        self.thumbnail = None  # of the newest picture that was not flat
        self.ended = None  # the shot before the newest cut: s of the cut, thumbnail, tracks

    def __call__(self, seconds: float, picture: np.ndarray) -> list[Face]:
        if not seconds > self.now:
            raise ValueError(
                f"A picture at {seconds} s came after one at {self.now} s: give the pictures of a film in order."
            )
        self.previous, self.now = self.now, seconds
        bright = self._watch(picture)
        self.tracks = [track for track in self.tracks if seconds - track.seen <= self.max_lost_seconds]

        found, sights, pairs = [], [], {}
        if self.refine and self.tracks:
            boxes = [track.sight.box + np.tile(track.ahead(seconds), 2) for track in self.tracks]
            found = [self.refine(picture, np.array(boxes, np.float32))]
            sights = self._sights(picture, found)
            pairs = self._match(self.tracks, sights)
        lost = any(track.seen == self.previous and index not in pairs for index, track in enumerate(self.tracks))
        unclear = any(i not in pairs or t.unlike(sights[pairs[i]]) > DOUBT for i, t in enumerate(self.tracks))
        pause = self.detect_seconds / 5 if unclear else self.detect_seconds
        if lost or not self.refine or seconds - self.searched >= pause:
            sights = self._sights(picture, [*found, self.detector(picture)])
            pairs = self._match(self.tracks, sights)
            self.searched = seconds

        news = [sight for index, sight in enumerate(sights) if index not in pairs.values()]
        for index, track in enumerate(self.tracks):
            if index in pairs:
                others = [t.sight.centre + t.ahead(seconds) for t in self.tracks if t is not track]
                sight = sights[pairs[index]]
                clear = all(distance(sight, other) > 1 for other in others) and all(
                    distance(sight, o.centre) > 1 for o in sights if o is not sight
                )
                clear &= track.unlike(sight) < DOUBT or self.searched == seconds
                track.update(seconds, sight, clear)
        self.tracks = [track for track in self.tracks if track.seen == seconds or track.face is not None]
        lost = [t for t in self.tracks if t.seen < seconds]
        new = [t for t in self.tracks if t.face is None]
        for i, j in self._match(lost, [t.sight for t in new]).items():
            lost[i].update(seconds, new[j].sight, False)
            self.tracks.remove(new[j])
        for track in [t for t in self.tracks if t.seen == seconds and t.face is None]:
            if self._alone(track.sight, self.tracks):
                self._name(track)
        for sight in news:
            track = Track(sight, seconds, sight.look, sight.look)
            self.tracks.append(track)
            if not bright and self._alone(sight, self.tracks) and self._sure(picture, sight):
                self._name(track)
        return [
            Face(
                t.face,
                t.sight.crop,
                t.sight.box.tolist(),
                t.sight.landmarks,
                quality(t.sight.crop, t.sight.landmarks, t.sight.score),
            )
            for t in sorted(self.tracks, key=lambda t: (t.face is None, t.face))
            if t.seen == seconds and t.face is not None
        ]

    def _alone(self, sight, tracks):
        lost = any(
            t.seen < self.now and distance(sight, t.sight.centre) < REACH + SPEED * (self.now - t.seen)
            for t in self.tracks
        )
        return all(
            t.sight is sight or distance(sight, t.sight.centre) > (1 if lost else CLOSE)
            for t in tracks
            if t.seen == self.now
        )

    def _name(self, track: Track) -> None:
        track.face = self.num_faces
        self.num_faces += 1

    def _sure(self, picture, sight) -> bool:
        if not self.refine or sight.score < SURE:
            return False
        aside = sight.box + np.float32([0.15, 0, 0.15, 0]) * sight.size
        again = self.refine(picture, aside[None])
        return again.scores[0] >= SURE and distance(sight, again.boxes[0].reshape(2, 2).mean(0)) < SAME

    def _watch(self, picture) -> bool:
        """True if brighter"""
        after, before = thumbnail(picture), self.thumbnail
        if after.std() < FLAT:
            return False
        self.thumbnail = after
        if before is None:
            return False
        if self.ended and self.now - self.ended[0] <= FLASH_SECONDS and alike(self.ended[1], after):
            self.tracks, self.ended, self.searched = self.ended[2], None, -np.inf
            return False
        light = np.median((after.mean(2) + 1) / (before.mean(2) + 1))
        for track in self.tracks:
            track.look, track.newest = track.look * light, track.newest * light
        if is_cut(before, after):
            self.ended = self.now, before, self.tracks
            self.tracks, self.searched = [], -np.inf
            return after.mean() > 1.2 * before.mean()
        return False

    def _sights(self, picture, found: list[Detections]) -> list[Sight]:
        boxes, landmarks, scores = (np.concatenate(part) for part in zip(*found, strict=True))
        sights = []
        for index in np.argsort(-scores, kind="stable"):
            if not scores[index] >= self.min_score:
                break
            centre = boxes[index].reshape(2, 2).mean(0)
            if all(distance(s, centre) > SAME for s in sights):
                try:
                    crop = align(picture, landmarks[index], self.size)
                except ValueError:
                    continue
                sights.append(Sight(boxes[index], landmarks[index], float(scores[index]), crop, look(crop)))
        return sights

    def _match(self, tracks, sights: list[Sight]) -> dict[int, int]:
        costs = np.full((len(tracks), len(sights)), np.inf)
        for i, track in enumerate(tracks):
            ahead, passed = track.ahead(self.now), self.now - track.seen
            for j, sight in enumerate(sights):
                off = min(distance(track.sight, sight.centre), distance(track.sight, sight.centre - ahead))
                off += abs(np.log2(sight.size / track.sight.size))
                unlike = track.unlike(sight)
                steady = track.seen == self.previous and off + difference(track.newest, sight.look) <= STEADY
                if off <= REACH + SPEED * passed and (unlike <= DOUBT or steady):
                    costs[i, j] = off + LOOK_WEIGHT * unlike
        return match(costs)


def distance(sight: Sight, centre: np.ndarray) -> float:
    return float(np.linalg.norm(sight.centre - centre)) / sight.size


LOOK_CELLS = 16
_rows, _columns = (np.mgrid[:LOOK_CELLS, :LOOK_CELLS] + 0.5) / LOOK_CELLS
OVAL = ((_columns - 0.5) / 0.38) ** 2 + ((_rows - 0.58) / 0.5) ** 2 <= 1
APART = 25.0


def look(crop):
    cells = F.adaptive_avg_pool2d(torch.from_numpy(crop).permute(2, 0, 1).float(), LOOK_CELLS)
    return cells.permute(1, 2, 0).numpy()


def difference(look, other):
    look, other = np.minimum(look, 255), np.pad(np.minimum(other, 255), ((1, 1), (1, 1), (0, 0)), mode="edge")
    shifted = np.lib.stride_tricks.sliding_window_view(
        other, (LOOK_CELLS, LOOK_CELLS), (0, 1)
    )  # (3, 3, colours, cells, cells)
    apart = ((shifted - look.transpose(2, 0, 1)) ** 2).sum(2).min((0, 1)) ** 0.5
    return float(np.minimum(apart[OVAL], APART).mean() / APART)


def match(costs: np.ndarray, unmatched: float = 1e3) -> dict[int, int]:
    tracks, sights = costs.shape
    full = np.zeros((tracks + sights, sights + tracks))
    full[:tracks, :sights], full[:tracks, sights:] = costs, unmatched
    order = np.r_[sights : sights + tracks, :sights]  # nobody has anything
    rows = np.arange(len(order))
    while len(order):
        own = full[rows, order]
        swapped = full[:, order]  # what row i pays for what row k has
        gain = own[:, None] + own - swapped - swapped.T
        i, k = np.unravel_index(gain.argmax(), gain.shape)
        if gain[i, k] < 1e-9:
            break
        order[[i, k]] = order[[k, i]]
    return {i: int(j) for i, j in enumerate(order[:tracks]) if j < sights}


def alike(before, after):
    before, after = ((t - t.mean()) / t.std() for t in (before, after))
    return bool((before * after).mean() > 0.7)
