"""Frames -> face tracks: who is who from picture to picture, aligned crops, how good they are, and who speaks.

The detector knows faces, not people: whose a face is rests on where it is and on the colours of its crop. Both are good for
the length of a shot and no longer, so that a cut, or a second out of sight, ends a track; who comes back is somebody new.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
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
        landmarks (`np.ndarray` of shape `(5, 2)`): px.
        size: of the crop, px.

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
        picture (`np.ndarray` of shape `(height, width, 3)`): uint8 RGB.
        landmarks (`np.ndarray` of shape `(5, 2)`): px, where the first pixel covers 0 to 1.
        size: of the crop, px.

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

    Raises:
        ValueError: see [`similarity`].
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
    grey = crop @ np.full(3, 1 / 3, np.float32)  # a mean over the axis takes twenty times as long
    if grey.shape == (TEMPLATE_SIZE, TEMPLATE_SIZE):
        return grey
    return F.adaptive_avg_pool2d(torch.from_numpy(grey)[None], TEMPLATE_SIZE)[0].numpy()


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
    series, at = np.asarray([motion, loudness], np.float64), np.asarray(times, np.float64)
    known = np.isfinite(series).all(0)
    first = np.searchsorted(at, at - window / 2, "left")
    last = np.searchsorted(at, at + window / 2, "right")
    scores = np.full(len(at), np.nan)
    for index, near in enumerate(map(slice, first, last)):
        pairs = series[:, near][:, known[near]]
        if pairs.shape[1] >= MIN_PAIRS:
            moved, heard = pairs - pairs.mean(1, keepdims=True)
            spread = np.sqrt((moved**2).sum() * (heard**2).sum())
            if spread > 1e-9:
                scores[index] = (moved * heard).sum() / spread
    return scores


# Cuts ----------------------------------------------------------------------------------------------------------------

THUMBNAIL = 18, 32  # cells
FLAT = 6.0  # grey levels: standard deviation under which a thumbnail is black or overexposed and shows nothing


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """A `(height, width, 3)` uint8 picture in `THUMBNAIL` cells, `(18, 32, 3)` float32, from every few of its pixels."""
    step = max(1, min(picture.shape[0] // (2 * THUMBNAIL[0]), picture.shape[1] // (2 * THUMBNAIL[1])))
    return _cells(picture[::step, ::step], THUMBNAIL)


def is_cut(before: np.ndarray, after: np.ndarray) -> bool:
    """
    Whether two thumbnails, none of them flat, are of two shots: they do not correlate, and hardly anything stayed in place.

    Mean and contrast are taken off each, so that fades do not count. In 10 s of streets with traffic close by (its 5 cuts),
    395 pairs of pictures from five films and 12 films' worth of heads that cross the picture: every cut has a correlation
    under 0.5 and under 7 % of the cells in place. Of pictures 0.16 s apart without a cut 4 % of the streets', none of the
    faces', and of heads as high as the picture that move by half of that or more 8 % look like one.
    """
    change = abs(_normal(before) - _normal(after)).mean(2)
    in_place = F.avg_pool2d(torch.from_numpy(change)[None], 3, 1) < 0.25
    if in_place.float().mean() >= 0.1:
        return False
    height, width = THUMBNAIL
    for down in range(-3, 4):
        for right in range(-8, 9):
            part = before[max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
            same = after[max(0, down) : height - max(0, -down), max(0, right) : width - max(0, -right)]
            if _correlation(part, same) >= 0.6:
                return False
    return True


def _correlation(before: np.ndarray, after: np.ndarray) -> float:
    return float((_normal(before) * _normal(after)).mean())


def _normal(cells: np.ndarray) -> np.ndarray:
    return (cells - cells.mean()) / max(cells.std(), 1.0)


def _cells(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """`(height, width, 3)` uint8 to the means of `shape` cells, float32."""
    planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float()
    return F.adaptive_avg_pool2d(planes, shape).permute(1, 2, 0).numpy()


# Looks ---------------------------------------------------------------------------------------------------------------

LOOK = 16, 16  # cells of a crop
BESIDE = np.arange(-1, 17).clip(0, 15)  # the cells and one more on each side, which is again that of the edge
OVAL = np.hypot((np.arange(16) - 7.5) / 16 / 0.38, (np.arange(16)[:, None] - 8.8) / 16 / 0.5) <= 1  # face and hair
APART = 25.0  # levels between two colours from which on they are others


def unlike(first: np.ndarray, second: np.ndarray) -> float:
    """
    How much two looks differ, in [0, 1]: the cells' distances in colour, each up to `APART`, and to the nearest of the 3 x 3
    cells around the same place.

    So a face that is hidden by a third is still nearer to itself than to the face in front of it, and one that turns is not
    another one. After 1.5 s, 95 of 100 faces differ from themselves by under 0.4, and of two people 95 by more than 0.4
    (four films of real faces in the light of one, and twelve drawn ones).

    Args:
        first, second (`np.ndarray` of shape `(16, 16, 3)`): crops in `LOOK` cells; above 255 is as white as 255.
    """
    around = np.minimum(second, 255)[BESIDE[:, None], BESIDE]
    around = np.lib.stride_tricks.sliding_window_view(around, LOOK, (0, 1))  # (3, 3, colours, *LOOK)
    apart = ((around - np.minimum(first, 255).transpose(2, 0, 1)) ** 2).sum(2).min((0, 1))[OVAL] ** 0.5
    return float(np.minimum(apart, APART).mean() / APART)


# Tracks --------------------------------------------------------------------------------------------------------------

# All lengths here are in face sizes: the square root of the area of a face's box.
SAME = 0.35  # between the middles of two boxes, up to which they are of one face
HIDING = 0.5  # the same, up to which one face hides half of the other
NEXT_TO = 1.0  # the same, up to which the crop of one shows something of the other
REACH, SPEED = 0.5, 2.0  # from where a face was, or was going, to where it may turn up; and so much a second more
DOUBT = 0.4  # `unlike` from which on a sight may be of somebody else
STEADY = 0.6  # a step and `unlike` in it, summed, up to which a face that was just seen is taken for the same
LOOK_WEIGHT = 3.0  # face sizes that an `unlike` of 1 weighs when a sight is given to a track

SURE = 0.95  # score with which a face is believed at first sight, if a second look agrees
FLASH_SECONDS = 0.5  # a picture like those before a cut, so soon, says that there was none
COASTING_SECONDS = 0.5  # for which a lost face is thought to go on as it went
LOOK_SECONDS, VELOCITY_SECONDS = 2.0, 0.2  # of the running means


class Face(NamedTuple):
    """
    A face in a picture.

    Attributes:
        face: the id of its track, from 0.
        crop: `(size, size, 3)` uint8 RGB, see [`align`].
        box: x0, y0, x1, y1 in px of the picture; at an edge it may reach beyond.
        landmarks: `(5, 2)` float32, px.
        quality: in [0, 1], see [`quality`].
    """

    face: int
    crop: np.ndarray
    box: list[float]
    landmarks: np.ndarray
    quality: float


class Sight(NamedTuple):
    """A face that was seen, whoever it is: a detection with its crop and that in `LOOK` cells."""

    box: np.ndarray
    landmarks: np.ndarray
    score: float
    crop: np.ndarray
    look: np.ndarray

    @property
    def middle(self) -> np.ndarray:
        """Middle of the box `(2,)`, x and y in px."""
        return (self.box[:2] + self.box[2:]) / 2

    @property
    def size(self) -> float:
        """Side (px) of a square as large as the box."""
        return float(np.sqrt(np.prod(self.box[2:] - self.box[:2])))

    def distance(self, point: np.ndarray) -> float:
        """From its middle to a point, in face sizes."""
        return float(np.linalg.norm(self.middle - point)) / self.size


@dataclass(eq=False)
class Track:
    """
    What is known of a face.

    Args:
        sight: the newest of it, at `seen` (s).
        look, new_look: the running mean and the newest, in the light of the newest picture.
        face: the id; None until the face is confirmed.
        velocity: (2,) px/s, a running mean.
    """

    sight: Sight
    seen: float
    look: np.ndarray
    new_look: np.ndarray
    face: int | None = None
    num_sights: int = 1
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))

    def way(self, seconds: float) -> np.ndarray:
        """How far it went since it was seen, if it went on, `(2,)` px."""
        return self.velocity * min(seconds - self.seen, COASTING_SECONDS)

    def update(self, seconds: float, sight: Sight, clear: bool) -> None:
        """Take a sight; learn what the face looks like only where it is `clear` that the crop shows it."""
        passed = seconds - self.seen
        step = (sight.middle - self.sight.middle) / passed
        self.velocity = self.velocity + (1 - np.exp(-passed / VELOCITY_SECONDS)) * (step - self.velocity)
        self.sight, self.seen, self.new_look, self.num_sights = sight, seconds, sight.look, self.num_sights + 1
        if clear:
            share = max(1 / self.num_sights, 1 - np.exp(-passed / LOOK_SECONDS))
            self.look = self.look + share * (sight.look - self.look)


class FaceTracker:
    """
    Called with the pictures of a film one after the other, it says which faces are in each, and which are the same.

    The detector searches a picture every `detect_seconds`: that long may it take until somebody who comes in is seen. It
    searches at once where a film begins, after a cut and when a face gets lost, and five times as often while one is lost
    or does not look like itself. In between its `refine` follows each face to where it went; without one it searches always.

    A face gets its id when it is seen for the second time, or at first sight where the detector is sure and a second look,
    by `refine` and a little aside, agrees. Ids count up in the order in which they are given, without holes. An id outlives
    a loss of `max_lost_seconds`. After that, or a cut, the person gets a new one: by the colours of a face nobody is
    recognised so surely that an id would never go to somebody else.

    Of two faces of which one hides the other, the hidden one is lost, and found again by its looks. What it holds does not
    grow with the film.

    Args:
        detector ([`Detector`], *optional*): left out, [`MTCNN`].
        size (`int`, defaults to 112): of the crops, px.
        detect_seconds (`float`, defaults to 0.5), max_lost_seconds (`float`, defaults to 1.0): in seconds, see above.
        min_score (`float`, defaults to 0.7): of the detector, in [0, 1], under which a sight is no face.
    """

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
        self.now = self.before = self.searched = -np.inf  # s, of the newest picture, the one before, the newest search
        self.thumbnail = None  # of the newest picture that was not flat
        self.ended = None  # the shot before the newest cut: s of the cut, thumbnail, tracks

    def __call__(self, seconds: float, picture: np.ndarray) -> list[Face]:
        """
        The faces of the next picture, by their ids.

        Args:
            seconds: on the film's clock, after the picture before. Gaps may be uneven, up to 0.3 s or so.
            picture (`np.ndarray` of shape `(height, width, 3)`): uint8 RGB.

        Raises:
            ValueError: if the pictures are not in order, or what the detector raises.
        """
        if not seconds > self.now:
            raise ValueError(
                f"A picture at {seconds} s came after one at {self.now} s: give the pictures of a film in order, and each "
                f"film to a tracker of its own."
            )
        self.before, self.now = self.now, seconds
        flash = self._watch(picture)
        self.tracks = [track for track in self.tracks if seconds - track.seen <= self.max_lost_seconds]
        sights, pairs = self._look(picture)
        new = [sight for index, sight in enumerate(sights) if index not in pairs.values()]
        courses = [track.sight.middle + track.way(seconds) for track in self.tracks]
        for index, sight in ((index, sights[pairs[index]]) for index in pairs):
            track, others = self.tracks[index], courses[:index] + courses[index + 1 :]
            others += [other.middle for other in sights if other is not sight]
            clear = all(sight.distance(other) > NEXT_TO for other in others)
            searched = self.searched == seconds  # and nobody else was found who might be taken for this one
            track.update(seconds, sight, clear and (searched or unlike(track.look, sight.look) <= DOUBT))
        self._reunite()
        for track in self.tracks:
            if track.face is None and self._is_free(track.sight):
                self._name(track)
        for sight in new:
            track = Track(sight, seconds, sight.look, sight.look)
            self.tracks.append(track)
            if not flash and self._is_free(sight) and self._is_sure(picture, sight):
                self._name(track)
        return [
            Face(
                face, sight.crop, sight.box.tolist(), sight.landmarks, quality(sight.crop, sight.landmarks, sight.score)
            )
            for face, sight in sorted(
                (track.face, track.sight) for track in self.tracks if track.face is not None and track.seen == seconds
            )
        ]

    def _watch(self, picture: np.ndarray) -> bool:
        """Begin anew at a cut, keep the looks in the light of the picture; true at a cut that may be a flash."""
        after, before = thumbnail(picture), self.thumbnail
        if after.std() < FLAT:
            return False
        self.thumbnail = after
        if before is None:
            return False
        if self.ended and self.now - self.ended[0] <= FLASH_SECONDS and _correlation(self.ended[1], after) > 0.7:
            _, before, self.tracks = self.ended
            self.ended, self.searched = None, -np.inf
        elif is_cut(before, after):
            self.ended = self.now, before, self.tracks
            self.tracks, self.searched = [], -np.inf
            return bool(after.mean() > 1.2 * before.mean())
        light = np.median((after.mean(2) + 1) / (before.mean(2) + 1))
        for track in self.tracks:
            track.look, track.new_look = light * track.look, light * track.new_look
        return False

    def _look(self, picture: np.ndarray) -> tuple[list[Sight], dict[int, int]]:
        """What is seen, by refining the tracks and, when it is time, by a search; and for tracks their sights, by index."""
        found, sights, pairs = [], [], {}
        if self.refine and self.tracks:
            boxes = np.float32([track.sight.box + np.tile(track.way(self.now), 2) for track in self.tracks])
            found = [self.refine(picture, boxes)]
            sights = self._sights(picture, found)
            pairs = self._match(self.tracks, sights)
        just_lost = unclear = False
        for index, track in enumerate(self.tracks):
            just_lost |= index not in pairs and track.seen == self.before
            unclear |= index not in pairs or unlike(track.look, sights[pairs[index]].look) > DOUBT
        pause = self.detect_seconds / 5 if unclear else self.detect_seconds
        if just_lost or not self.refine or self.now - self.searched >= pause:
            sights = self._sights(picture, [*found, self.detector(picture)])
            pairs = self._match(self.tracks, sights)
            self.searched = self.now
        return sights, pairs

    def _sights(self, picture: np.ndarray, found: list[Detections]) -> list[Sight]:
        """What is believed of detections, each face once."""
        boxes, landmarks, scores = (np.concatenate(part) for part in zip(*found, strict=True))
        usable = (scores >= self.min_score) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        usable &= np.isfinite(boxes).all(1) & (np.ptp(landmarks, 1) > 0).any(1)
        sights = []
        for index in np.argsort(-scores, kind="stable"):
            middle = (boxes[index, :2] + boxes[index, 2:]) / 2
            if usable[index] and all(sight.distance(middle) > SAME for sight in sights):
                crop = align(picture, landmarks[index], self.size)
                sights.append(Sight(boxes[index], landmarks[index], float(scores[index]), crop, _cells(crop, LOOK)))
        return sights

    def _match(self, tracks: list[Track], sights: list[Sight]) -> dict[int, int]:
        """Whose the sights are: for the index of a track that of its sight."""
        costs = np.full((len(tracks), len(sights)), np.inf)
        for i, track in enumerate(tracks):
            was, way = track.sight, track.way(self.now)
            for j, sight in enumerate(sights):
                step = min(was.distance(sight.middle), was.distance(sight.middle - way))
                step += abs(np.log2(sight.size / was.size))
                if step <= REACH + SPEED * (self.now - track.seen):
                    other = unlike(track.look, sight.look)
                    if other <= DOUBT or (
                        track.seen == self.before and step + unlike(track.new_look, sight.look) <= STEADY
                    ):
                        costs[i, j] = step + LOOK_WEIGHT * other
        return match(costs)

    def _reunite(self) -> None:
        """A face that has no id yet may be a lost one that did not look like itself, half hidden as it was."""
        lost = [track for track in self.tracks if track.face is not None and track.seen < self.now]
        new = [track for track in self.tracks if track.face is None and track.seen == self.now]
        for i, j in self._match(lost, [track.sight for track in new]).items():
            lost[i].update(self.now, new[j].sight, clear=False)
            new[j].seen = -np.inf
        self.tracks = [track for track in self.tracks if track.seen == self.now or track in lost]

    def _is_free(self, sight: Sight) -> bool:
        """Whether a sight is of a face that nothing hides or, where no lost one is near, at least not by half."""
        apart = NEXT_TO if self._is_near_lost(sight) else HIDING
        seen = (track.sight for track in self.tracks if track.seen == self.now and track.sight is not sight)
        return all(sight.distance(other.middle) > apart for other in seen)

    def _is_near_lost(self, sight: Sight) -> bool:
        lost = (track for track in self.tracks if track.seen < self.now)
        return any(sight.distance(t.sight.middle) <= REACH + SPEED * (self.now - t.seen) for t in lost)

    def _is_sure(self, picture: np.ndarray, sight: Sight) -> bool:
        """Whether a face is believed at first sight."""
        if not self.refine or sight.score < SURE or self._is_near_lost(sight):
            return False
        boxes, _, scores = self.refine(picture, sight.box[None] + np.float32([0.15, 0, 0.15, 0]) * sight.size)
        return bool(scores[0] >= SURE) and sight.distance((boxes[0, :2] + boxes[0, 2:]) / 2) <= SAME

    def _name(self, track: Track) -> None:
        track.face, self.num_faces = self.num_faces, self.num_faces + 1


def match(costs: np.ndarray) -> dict[int, int]:
    """
    Rows and columns that go together: as many as can and at the least cost, as far as exchanges between two lead to it.

    Args:
        costs (`np.ndarray` of shape `(rows, columns)`): inf for those that do not go together.

    Returns:
        for the row the column.
    """
    rows, columns = costs.shape
    square = np.zeros((rows + columns, columns + rows))  # everybody may also stay alone
    square[:rows, :columns], square[:rows, columns:] = costs, 1e3
    partner = np.r_[columns : columns + rows, :columns]
    while partner.size:
        theirs = square[:, partner]  # what each would pay for the partner of each
        paid = theirs.diagonal()
        saved = paid[:, None] + paid - theirs - theirs.T
        one, other = np.unravel_index(saved.argmax(), saved.shape)
        if saved[one, other] < 1e-9:
            break
        partner[[one, other]] = partner[[other, one]]
    return {row: int(column) for row, column in enumerate(partner[:rows]) if column < columns}


__all__ = ["Face", "FaceTracker", "align", "mouth_motion", "quality", "speaking_scores"]
