"""Faces in pictures. All of them are drawn: what these tests show of the detector is that it works, not how well."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import joblib
import lz4.frame
import numpy as np
import pytest
import torch
from faces import PEOPLE, draw_face
from transformers.dynamic_module_utils import get_imports

import detection_jca
from detection_jca import MTCNN


ROOT = Path(__file__).parents[1]
WEIGHTS = Path(joblib.__file__).parents[1] / "mtcnn/assets/weights"


@pytest.fixture(scope="module")
def detector() -> MTCNN:
    return MTCNN()


def ground(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture without faces: large soft spots of colours that no skin has, and a little noise."""
    rng = np.random.default_rng(seed)
    spots = torch.from_numpy(rng.uniform(0, 60, (1, 3, 4, 6)) + np.array([50, 90, 90])[:, None, None])
    soft = torch.nn.functional.interpolate(spots, (height, width), mode="bicubic")[0].permute(1, 2, 0).numpy()
    return (soft + rng.normal(0, 4, (height, width, 1))).clip(0, 255).astype(np.uint8)


def error(landmarks: np.ndarray, drawn: np.ndarray) -> float:
    """The largest distance of a landmark from where it was drawn, in distances between the eyes."""
    return np.linalg.norm(landmarks - drawn, axis=1).max() / np.linalg.norm(drawn[1] - drawn[0])


def assert_shapes(found: detection_jca.Detections, faces: int) -> None:
    assert [part.shape for part in found] == [(faces, 4), (faces, 5, 2), (faces,)]
    assert [part.dtype for part in found] == [np.float32] * 3


def python(code: str, path: str | Path = ROOT, *arguments: str) -> subprocess.CompletedProcess:
    """A new interpreter, with warnings as errors; `path` comes first on its `sys.path`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT), str(ROOT / "tests")])}
    return subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)


# A search -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("person", PEOPLE)
@pytest.mark.parametrize(
    ("size", "center", "height", "looks"),
    [
        ((240, 320), (150, 120), 160, {}),
        ((640, 360), (190.0, 250.0), 150, {"smile": 0.7, "open": 0.6, "roll": 0.15}),
        ((1080, 1920), (1500, 500), 420, {"smile": -0.6, "frown": 0.4, "roll": -0.12}),
        ((112, 112), (56, 59), 98, {"yaw": 2.0}),  # as tight as a crop
        ((60, 50), (26, 30), 44, {}),
    ],
)
def test_one_face_where_it_was_drawn(detector, person, size, center, height, looks):
    picture = ground(*size)
    drawn = draw_face(picture, person, center, height, **looks)
    found = detector(picture)
    assert_shapes(found, 1)
    assert 0.85 <= found.scores[0] <= 1
    assert error(found.landmarks[0], drawn) < 0.2
    start, stop = found.boxes.reshape(2, 2)
    assert (drawn > start).all()
    assert (drawn < stop).all()
    assert 0.4 * height < stop[0] - start[0] < 0.9 * height
    assert 0.6 * height < stop[1] - start[1] < 1.2 * height
    assert abs((start + stop) / 2 - drawn.mean(0)).max() < 0.2 * height


def test_landmarks_go_from_the_left_of_the_picture_and_downwards(detector):
    picture = ground(240, 320)
    draw_face(picture, PEOPLE[0], (160, 120), 150, roll=0.2)
    for seen in (picture, picture[:, ::-1]):
        eye_left, eye_right, nose, mouth_left, mouth_right = detector(seen).landmarks[0]
        assert eye_left[0] < nose[0] < eye_right[0]
        assert mouth_left[0] < nose[0] < mouth_right[0]
        assert max(eye_left[1], eye_right[1]) < nose[1] < min(mouth_left[1], mouth_right[1])


def test_several_people_best_first(detector):
    picture = ground(360, 640)
    centers, heights = [(90, 100), (300, 200), (530, 200)], (90, 150, 200)
    drawn = [draw_face(picture, *face) for face in zip(PEOPLE, centers, heights, strict=True)]
    found = detector(picture)
    assert_shapes(found, 3)
    assert (np.diff(found.scores) <= 0).all()
    landmarks = found.landmarks[np.argsort(found.boxes[:, 0])]
    assert max(map(error, landmarks, drawn)) < 0.2


def test_two_faces_that_overlap_are_two(detector):
    picture = ground(240, 320)
    drawn = [draw_face(picture, PEOPLE[0], (110, 120), 150), draw_face(picture, PEOPLE[1], (205, 125), 150)]
    found = detector(picture)
    assert_shapes(found, 2)
    assert max(map(error, found.landmarks[np.argsort(found.boxes[:, 0])], drawn)) < 0.2


@pytest.mark.parametrize("person", PEOPLE)
@pytest.mark.parametrize("center", [(44, 120), (276, 120), (160, 44), (160, 180)])
def test_a_face_that_the_edge_cuts(detector, person, center):
    picture = ground(240, 320)
    drawn = draw_face(picture, person, center, 140)  # of the head, 140 px high and 110 px wide, some is outside
    found = detector(picture)
    assert_shapes(found, 1)
    assert error(found.landmarks[0], drawn) < 0.2


@pytest.mark.parametrize(("size", "height"), [(112, 123), (200, 220)])
def test_a_face_that_is_larger_than_the_picture(detector, size, height):
    picture = ground(size, size)
    drawn = draw_face(picture, PEOPLE[2], (size / 2, size / 2), height)
    found = detector(picture)
    assert_shapes(found, 1)
    assert error(found.landmarks[0], drawn) < 0.2


@pytest.mark.parametrize(
    "picture",
    [
        ground(360, 640),
        np.zeros((240, 320, 3), np.uint8),
        np.full((240, 320, 3), 255, np.uint8),
        np.random.default_rng(0).integers(0, 256, (360, 640, 3), np.uint8),
        *(np.full((*size, 3), 130, np.uint8) for size in [(1, 1), (2, 3), (19, 19), (20, 20), (1, 3000), (3000, 1)]),
    ],
    ids=lambda picture: "x".join(map(str, picture.shape)),
)
def test_no_face(detector, picture):
    assert_shapes(detector(picture), 0)


def test_8k(detector):
    picture = np.full((4320, 7680, 3), 120, np.uint8)
    drawn = draw_face(picture, PEOPLE[2], (5000, 2000), 1500)
    found = detector(picture)
    assert_shapes(found, 1)
    assert error(found.landmarks[0], drawn) < 0.2


@pytest.mark.parametrize("person", PEOPLE)
def test_a_large_picture_is_averaged_before_it_is_searched(detector, person):
    picture = np.full((1080, 1920, 3), 120, np.uint8)
    drawn = draw_face(picture, person, (900, 500), 400)
    noise = np.random.default_rng(0).normal(0, 60, picture.shape)
    found = detector((picture + noise).clip(0, 255).astype(np.uint8))
    assert_shapes(found, 1)
    assert error(found.landmarks[0], drawn) < 0.2


def test_boxes_and_landmarks_depend_little_on_where_the_picture_begins(detector):
    scatter, lopsided = [], []
    for person in PEOPLE:
        picture, landmarks = ground(300, 420), []
        drawn = draw_face(picture, person, (210, 150), 140)
        for step in range(12):
            x, y = 5 * step % 13, 7 * step % 11
            seen = picture[y : y + 260, x : x + 380]
            found, mirrored = detector(seen), detector(seen[:, ::-1])
            landmarks.append(found.landmarks[0] + (x, y))
            (x0, y0, x1, y1), (x1_mirrored, _, x0_mirrored, _) = found.boxes[0], mirrored.boxes[0]
            lopsided.append((x0 + x0_mirrored - 380 + x1 + x1_mirrored - 380) / 2 / (y1 - y0))
        scatter.append(np.std(landmarks, axis=0).mean() / np.linalg.norm(drawn[1] - drawn[0]))
    assert np.mean(scatter) < 0.0065  # of the distance between the eyes
    assert abs(np.mean(lopsided)) < 0.013  # of the height of a face


@pytest.mark.parametrize(("height", "width"), [(180, 320), (175, 97), (31, 20)])
def test_levels_on_one_sheet_are_judged_as_by_themselves(height, width):
    pnet = detection_jca.networks()[0]
    levels = [torch.randint(0, 256, (1, 3, height // n, width // n), dtype=torch.uint8) for n in (1, 2, 3, 4)]
    sheet, places = detection_jca.on_one_sheet(levels, margin=4)
    offsets, scores = pnet(sheet)
    for level, (rows, columns) in zip(levels, places, strict=True):
        # the same window at each place, of a level that has nothing beside it
        alone = torch.zeros(1, 3, rows.stop - rows.start, columns.stop - columns.start, dtype=torch.uint8)
        alone[:, :, 4 : 4 + level.shape[2], 4 : 4 + level.shape[3]] = level
        alone_offsets, alone_scores = pnet(alone)
        rows = slice(rows.start // 2, rows.start // 2 + alone_scores.shape[1])
        columns = slice(columns.start // 2, columns.start // 2 + alone_scores.shape[2])
        torch.testing.assert_close(scores[:, rows, columns], alone_scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(offsets[..., rows, columns], alone_offsets, atol=1e-5, rtol=0)


def test_a_grey_picture(detector):
    picture = ground(240, 320)
    drawn = draw_face(picture, PEOPLE[0], (160, 120), 150)
    picture[:] = picture.mean(2, keepdims=True).round()
    assert error(detector(picture).landmarks[0], drawn) < 0.2


def test_small_faces_are_found_if_asked_for():
    picture = ground(720, 1280)
    drawn = draw_face(picture, PEOPLE[1], (900, 300), 40)
    assert_shapes(MTCNN()(picture), 0)  # 10 px of 320
    assert_shapes(MTCNN(long_side=1280, min_face=80)(picture), 0)
    found = MTCNN(long_side=1280)(picture)
    assert_shapes(found, 1)
    assert error(found.landmarks[0], drawn) < 0.2


def test_each_threshold_counts():
    picture = ground(240, 320)
    draw_face(picture, PEOPLE[0], (160, 120), 150)
    for index in range(3):
        thresholds = [0.6, 0.7, 0.8]
        assert len(MTCNN(thresholds=thresholds)(picture).boxes) == 1
        thresholds[index] = 1.01
        assert len(MTCNN(thresholds=thresholds)(picture).boxes) == 0


def test_of_overlapping_boxes_the_best_stays():
    boxes = torch.tensor([[0, 0, 10, 10], [20, 0, 30, 10], [1, 0, 11, 10], [22, 2, 28, 8], [0, 6, 10, 16]]).float()
    scores = torch.tensor([0.7, 0.6, 0.8, 0.9, 0.5])
    assert detection_jca.select(boxes, scores, 0.5).tolist() == [3, 2, 1, 4]  # 0 and 2 share 9 of 11 columns
    assert detection_jca.select(boxes, scores, 0.9, threshold=0.6).tolist() == [3, 2, 0, 1]
    assert detection_jca.select(boxes, scores, 0.2).tolist() == [3, 2]


@pytest.mark.filterwarnings("error")
def test_the_picture_is_only_read_and_may_lie_in_memory_in_any_way(detector):
    picture = ground(240, 320)
    draw_face(picture, PEOPLE[0], (160, 120), 150)
    before, expected = picture.copy(), detector(picture)
    frozen = picture.copy()
    frozen.setflags(write=False)
    for same in (picture, frozen, np.asfortranarray(picture), picture[::-1].copy()[::-1]):
        for part, value in zip(detector(same), expected, strict=True):
            np.testing.assert_array_equal(part, value)
        np.testing.assert_array_equal(detector.refine(same, expected.boxes).scores > 0.9, True)
    np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize("shape", [(240, 320), (240, 320, 4), (3, 240, 320), (0, 320, 3), (1, 240, 320, 3)])
def test_what_is_no_picture_is_named(detector, shape):
    for call in (detector, lambda picture: detector.refine(picture, np.zeros((1, 4)))):
        with pytest.raises(ValueError, match=r"\(height, width, 3\) uint8 RGB") as raised:
            call(np.zeros(shape, np.uint8))
        assert str(shape) in str(raised.value)


def test_a_picture_of_floats_is_refused(detector):
    with pytest.raises(ValueError, match="float32"):
        detector(np.zeros((24, 24, 3), np.float32))


@pytest.mark.parametrize("size", [{"long_side": 0}, {"min_face": -20}, {"min_face": float("nan")}])
def test_sizes_that_can_not_be(size):
    with pytest.raises(ValueError, match=f"{next(iter(size))}={next(iter(size.values()))}"):
        MTCNN(**size)


# Tracking -------------------------------------------------------------------------------------------------------------


def test_refine_follows_two_moving_faces(detector):
    def film(step):
        picture = ground(360, 640)
        first = draw_face(picture, PEOPLE[0], (120 + 6 * step, 140), 140 + step, roll=0.01 * step)
        second = draw_face(picture, PEOPLE[1], (520 - 2 * step, 220 - step), 170, open=0.4 * (step % 2))
        return picture, [second, first]

    picture, drawn = film(0)
    found = detector(picture)
    boxes = found.boxes[np.argsort(-found.boxes[:, 0])]  # the second first: the order is that of the boxes
    assert len(boxes) == 2
    for step in range(1, 26):  # without a search in between
        picture, drawn = film(step)
        found = detector.refine(picture, boxes)
        assert_shapes(found, 2)
        assert found.scores.min() > 0.8
        assert max(map(error, found.landmarks, drawn)) < 0.2
        boxes = found.boxes


@pytest.mark.parametrize("shift", [(0.25, 0), (0, -0.25), (-0.18, 0.18)])
def test_refine_catches_up(detector, shift):
    picture = ground(240, 320)
    drawn = draw_face(picture, PEOPLE[2], (160, 120), 140)
    (box,) = detector(picture).boxes
    away = box + np.tile(shift, 2) * (box[2] - box[0])
    once = detector.refine(picture, away[None])
    again = detector.refine(picture, once.boxes)
    assert abs(again.boxes - box).max() < 0.4 * abs(away - box).max()
    assert error(again.landmarks[0], drawn) < 0.2


def test_refine_gives_low_scores_where_no_face_is_one_for_each_box(detector):
    picture = ground(360, 640)
    draw_face(picture, PEOPLE[0], (160, 180), 150)
    (face,) = detector(picture).boxes
    far = [
        [400, 100, 500, 220],
        [-300, -300, -200, -200],
        [9000, 0, 9100, 100],
        [0, 100, 40, 140],
        [600, 340, 700, 460],
    ]
    # of no size, turned round, endless, endlessly far
    odd = [[50, 50, 50, 50], [90, 90, 10, 10], [-3e8, -3e8, 3e8, 3e8], [1e9, 0, 2e9, 9], [1e30, 0, 2e30, 9]]
    found = detector.refine(picture, np.array([*far, face, *odd, face], np.float32))
    assert_shapes(found, 12)
    assert found.scores[5] > 0.9
    for part in found:
        np.testing.assert_array_equal(part[5], part[11])
        assert np.isfinite(part).all()
    assert np.delete(found.scores, [5, 11]).max() < 0.3


def test_a_face_that_left(detector):
    picture = ground(240, 320)
    draw_face(picture, PEOPLE[0], (160, 120), 150)
    boxes = detector(picture).boxes
    assert detector.refine(picture, boxes).scores[0] > 0.9
    assert detector.refine(ground(240, 320), boxes).scores[0] < 0.3


def test_refine_no_box(detector):
    assert_shapes(detector.refine(ground(240, 320), np.zeros((0, 4))), 0)


@pytest.mark.parametrize("boxes", [np.zeros(4), np.zeros((2, 5)), np.full((1, 4), np.nan), [[0, 0, np.inf, 9]]])
def test_what_is_no_box_is_named(detector, boxes):
    with pytest.raises(ValueError, match=r"refine takes \(faces, 4\) finite numbers"):
        detector.refine(ground(24, 24), boxes)


# Weights --------------------------------------------------------------------------------------------------------------

AUDITED = """
import sys
seen = []
sys.addaudithook(lambda event, arguments: seen.append((event, arguments)))
import detection_jca
from faces import draw_face  # whatever this imports
import numpy as np

def opened():
    return [arguments[0] for event, arguments in seen if event == "open" and str(arguments[0]).endswith(".lz4")]

assert not opened(), "read on import"
del seen[:]
detectors = [detection_jca.MTCNN(), detection_jca.MTCNN()]
picture = np.full((240, 320, 3), 90, np.uint8)
draw_face(picture, 4, (160, 120), 150)
assert [len(detector(picture).boxes) for detector in detectors] == [1, 1]
assert len(opened()) == 3, "read more than once"
assert not [event for event, _ in seen if event == "pickle.find_class"], "unpickled"
loaded = {"mtcnn", "tensorflow", "joblib", "keras"} & set(sys.modules)
assert not loaded, loaded
"""


def test_weights_are_read_once_at_first_use_without_importing_or_unpickling():
    done = python(AUDITED)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["pnet", "rnet", "onet"])
def test_arrays_are_those_that_joblib_loads(name):
    file = WEIGHTS / f"{name}.lz4"
    arrays = list(detection_jca.read_arrays(lz4.frame.decompress(file.read_bytes())))
    expected = joblib.load(file)
    assert len(arrays) == len(expected) > 12
    for array, value in zip(arrays, expected, strict=True):
        np.testing.assert_array_equal(array, value)


@pytest.mark.parametrize("package", ["mtcnn", "lz4"])
def test_a_missing_package_is_named_when_a_detector_is_made(package):
    done = python(
        f"import sys; sys.modules[{package!r}] = None; import detection_jca; print('here'); detection_jca.MTCNN()"
    )
    assert done.stdout == "here\n"
    message = done.stderr.splitlines()[-1]
    assert message.startswith("ImportError")
    assert "`pip install mtcnn lz4`" in message


class Bomb:
    """What unpickling of would make a folder."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def damaged(name: str, tmp_path: Path) -> bytes:
    data = lz4.frame.decompress((WEIGHTS / "rnet.lz4").read_bytes())
    if name == "empty":
        return b""
    if name == "no lz4":
        return data
    if name == "cut":
        data = data[: len(data) // 2]
    if name == "longer":
        data = data[:-1] + data
    if name == "bomb":
        data = pickle.dumps(Bomb(tmp_path / "exploded"))
    if name == "object":
        data = pickle.dumps(SimpleNamespace(first=1, second=2))
    if name == "another net":
        return (WEIGHTS / "onet.lz4").read_bytes()
    return lz4.frame.compress(data)


@pytest.mark.parametrize("damage", ["absent", "empty", "no lz4", "cut", "longer", "object", "bomb", "another net"])
def test_other_weights_are_refused(tmp_path, monkeypatch, damage):
    folder = tmp_path / "mtcnn/assets/weights"
    folder.mkdir(parents=True)
    (tmp_path / "mtcnn/__init__.py").write_text("raise SystemExit('imported')")
    for name in ("pnet", "rnet", "onet"):
        (folder / f"{name}.lz4").write_bytes((WEIGHTS / f"{name}.lz4").read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(detection_jca, "networks", detection_jca.lru_cache(detection_jca.networks.__wrapped__))
    MTCNN()
    detection_jca.networks.cache_clear()
    if damage == "absent":
        (folder / "rnet.lz4").unlink()
    else:
        (folder / "rnet.lz4").write_bytes(damaged(damage, tmp_path))
    with pytest.raises(ValueError, match=r"weights of mtcnn 1\.0.*pip install --force-reinstall mtcnn") as raised:
        MTCNN()
    assert str(folder / "rnet.lz4") in str(raised.value)
    assert not (tmp_path / "exploded").exists()


def test_a_checkpoint_that_carries_the_module_asks_for_nothing_more():
    assert set(get_imports(ROOT / "detection_jca.py")) <= {*sys.stdlib_module_names, "numpy", "torch"}
