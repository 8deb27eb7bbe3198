"""Tracks of drawn faces in real films, with what is true known for each picture."""

import av
import numpy as np
import pytest
from faces import PEOPLE, draw_face
from media import write_video

from detection_jca import MTCNN, Detections
from faces_jca import TEMPLATE, FaceTracker, align, is_cut, mouth_motion, quality, speaking_scores, thumbnail


HEIGHT = 150  # px, of a head


def ground(place=0):
    """A room: `(360, 640, 3)` of blocks in muted colours, others for each `place`."""
    blocks = np.random.default_rng(place).integers(60, 150, (9, 16, 3), np.uint8)
    return blocks.repeat(40, axis=0).repeat(40, axis=1)


def write_film(path, seconds, place, people=PEOPLE[:2]):
    """A film and the truth of its frames; `place(t, who)` is x, y of a head, or None; the first of `people` is in front."""

    def where(index):
        return {who: at for who in range(len(people)) if (at := place(index / 30, who)) is not None}

    def picture(index):
        out = ground()
        for who, at in reversed(where(index).items()):
            draw_face(out, people[who], at, HEIGHT)
        return out

    return write_video(path, seconds * 30, size=(640, 360), picture=picture), where


def follow(path, tracker, every=4):
    """Frame, picture and faces of every fourth frame of a film."""
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index % every == every - 1:
                yield index, tracker(index / 30, frame.to_ndarray(format="rgb24"))


def middle(face):
    return (face.box[0] + face.box[2]) / 2


# Tracks ---------------------------------------------------------------------------------------------------------------


def test_two_people_cross_leave_and_come_back(tmp_path):
    def place(t, who):
        if 16 <= t < 20:
            return None
        x = np.interp(t, [0, 8, 16], [0.1, 0.5, 1.15]) if t < 16 else np.interp(t, [20, 28, 36], [1.15, 0.5, 0.2])
        return 640 * (x if who == 0 else 1 - x), 180 + (8 if who else -8)

    path, where = write_film(tmp_path / "cross.mp4", 40, place)
    owners, missed, total = {}, 0, 0
    for index, faces in follow(path, FaceTracker()):
        truth = {who: x for who, (x, _) in where(index).items() if 60 < x < 580}
        apart = abs(truth[0] - truth[1]) if len(truth) == 2 else np.inf
        wanted = {who for who in truth if who == 0 or apart > HEIGHT / 2}  # not more than half hidden
        for face in faces:
            if apart < 25:  # either could be meant
                wanted.discard(0)
                continue
            who = min(truth, key=lambda who: abs(truth[who] - middle(face)), default=None)
            if who is not None and abs(truth[who] - middle(face)) < 60:
                wanted.discard(who)
                assert owners.setdefault(face.face, who) == who, f"frame {index}: {face.face} was {owners[face.face]}"
        missed += len(wanted)
        total += sum(who == 0 or apart > HEIGHT / 2 for who in truth)
    assert total > 350
    assert missed / total <= 0.02
    assert len(owners) <= 8


def test_an_id_survives_a_short_loss_and_a_long_one_ends_it(tmp_path):
    def place(t, who):
        hidden = 3 <= t < 3.6 or 6 <= t < 9
        return None if hidden else (250 + 20 * t, 180)

    path, _ = write_film(tmp_path / "loss.mp4", 11, place, PEOPLE[:1])
    seen = {index: [face.face for face in faces] for index, faces in follow(path, FaceTracker())}
    assert {face for index, faces in seen.items() if index < 180 for face in faces} == {0}
    assert not any(faces for index, faces in seen.items() if 91 <= index < 108 or 181 <= index < 270)
    assert {face for index, faces in seen.items() if index > 270 for face in faces} == {1}


def test_a_cut_ends_tracks_and_a_flash_does_not(tmp_path):
    def picture(index):
        out = ground(1) if index >= 120 else ground()
        draw_face(out, PEOPLE[0], (320, 180), HEIGHT)
        return np.full_like(out, 250) if 60 <= index < 63 else out

    path = write_video(tmp_path / "cut.mp4", 210, size=(640, 360), picture=picture)
    for every in (1, 4):
        seen = {index: [face.face for face in faces] for index, faces in follow(path, FaceTracker(), every)}
        assert {face for index, faces in seen.items() if index < 120 for face in faces} == {0}
        assert {face for index, faces in seen.items() if index >= 120 for face in faces} == {1}


def test_light_and_motion_are_no_cut():
    scene = ground(1)
    draw_face(scene, PEOPLE[0], (320, 180), HEIGHT)
    other = ground()
    draw_face(other, PEOPLE[1], (200, 180), 220)
    dark = (scene * 0.5).astype(np.uint8)
    moved = ground(1)
    draw_face(moved, PEOPLE[0], (420, 200), HEIGHT)
    assert not is_cut(thumbnail(scene), thumbnail(dark))
    assert not is_cut(thumbnail(scene), thumbnail(moved))
    assert is_cut(thumbnail(scene), thumbnail(other))


class Squares:
    """A detector of one's own, without `refine`: white squares are faces."""

    def __init__(self):
        self.calls = 0

    def __call__(self, picture):
        self.calls += 1
        rows, columns = np.nonzero(picture.min(2) > 240)
        if not len(rows):
            return Detections(np.zeros((0, 4), np.float32), np.zeros((0, 5, 2), np.float32), np.zeros(0, np.float32))
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
        landmarks = box[:2] + TEMPLATE / 112 * (box[2:] - box[:2])
        return Detections(box[None], landmarks[None].astype(np.float32), np.ones(1, np.float32))


def square(x):
    picture = ground()
    picture[100:160, x : x + 60] = 255
    return picture


def test_a_detector_of_ones_own_is_asked_for_every_picture():
    detector = Squares()
    tracker = FaceTracker(detector)
    found = [tracker(index / 10, square(100 + 3 * index)) for index in range(20)]
    assert detector.calls == 20
    assert [len(faces) for faces in found] == [0, *[1] * 19]  # confirmed by the second sight
    assert {faces[0].face for faces in found[1:]} == {0}
    assert found[10][0].box == [130, 100, 190, 160]


def test_what_is_seen_once_is_no_face():
    tracker = FaceTracker(Squares())
    seen = [tracker(index / 10, square(300) if index == 5 else ground()) for index in range(12)]
    assert not any(seen)
    assert [face.face for face in [*tracker(2.0, square(100)), *tracker(2.1, square(100))]] == [0]  # no id was used up


def test_pictures_come_in_order():
    tracker = FaceTracker(Squares())
    tracker(1.0, ground())
    with pytest.raises(ValueError, match=r"A picture at 0\.5 s came after one at 1\.0 s"):
        tracker(0.5, ground())


# Crops ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "angle"), [(0.4, 0.3), (1.0, 0.0), (3.0, -0.5)])
def test_alignment_puts_the_landmarks_in_their_places(scale, angle):
    turn = scale * np.exp(1j * angle)
    landmarks = (TEMPLATE @ (1, 1j) - 56 - 56j) * turn + 320 + 180j
    landmarks = np.stack([landmarks.real, landmarks.imag], 1)
    picture = np.zeros((360, 640, 3), np.uint8)
    rows, columns = np.mgrid[:360, :640] + 0.5
    for x, y in landmarks:
        picture[np.hypot(columns - x, rows - y) < max(2 * scale, 1)] = 255
    crop = align(picture, landmarks)
    assert crop.shape == (112, 112, 3)
    rows, columns = np.mgrid[:112, :112] + 0.5
    for x, y in TEMPLATE:
        near = crop[..., 0] * (np.hypot(columns - x, rows - y) < 6).astype(float)
        assert np.hypot((near * columns).sum() / near.sum() - x, (near * rows).sum() / near.sum() - y) < 1


def test_quality_is_lower_for_faces_that_are_small_blurred_dark_or_turned():
    def rate(height=200, blur=0, light=1.0, **looks):
        picture = ground()
        draw_face(picture, PEOPLE[0], (320, 180), height, **looks)
        landmarks = MTCNN()(picture).landmarks[0]
        picture = (picture * light).astype(np.uint8)
        for _ in range(blur):
            picture = ((np.roll(picture, 1, 0).astype(int) + np.roll(picture, -1, 1) + picture) // 3).astype(np.uint8)
        return quality(align(picture, landmarks), landmarks)

    best = rate()
    assert 0 < best <= 1
    for worse in (rate(height=60), rate(blur=12), rate(light=0.25), rate(roll=0.6), rate(yaw=12)):
        assert worse < 0.9 * best


# Who speaks -----------------------------------------------------------------------------------------------------------


def test_a_mouth_that_opens_moves_and_a_head_that_moves_does_not():
    def crop(x=320, light=1.0, **looks):
        picture = ground()
        draw_face(picture, PEOPLE[0], (x, 180), 200, **looks)
        landmarks = MTCNN()(picture).landmarks[0]
        return align((picture * light).astype(np.uint8), landmarks)

    opened = mouth_motion(crop(open=0.1), crop(open=0.9))
    assert opened > 2 * mouth_motion(crop(), crop(x=350))
    assert opened > 2 * mouth_motion(crop(), crop(light=0.6))


def test_speaking_is_the_correlation_of_mouth_and_sound_nearby():
    times = np.arange(120) / 7.5
    rng = np.random.default_rng(0)
    loudness = rng.uniform(-60, -20, 120)
    scores = speaking_scores(0.01 * loudness + rng.normal(0, 0.02, 120), loudness, times)
    assert scores.min() > 0.9
    assert abs(speaking_scores(rng.uniform(size=120), loudness, times).mean()) < 0.2
    half = np.where(times < 8, loudness, -loudness)
    assert speaking_scores(half, loudness, times)[[10, -10]] == pytest.approx([1, -1])
    assert np.isnan(speaking_scores(np.ones(120), loudness, times)).all()  # it does not move
    assert np.isnan(speaking_scores([1, 2, 3], [1, 2, 3], [0, 1, 2])).all()  # too few
