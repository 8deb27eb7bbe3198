import csv
import json
import math
import subprocess
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import av
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from praatio import textgrid
from rows import row
from scipy import signal

from jca.timeline import FORMATS, QUADRANTS, Timeline, maxima, quadrant
from pipeline_jca import smooth


ROOT = Path(__file__).parents[1]
NAME = "Gespräch, größer 会話.mp4"
QUADRANT_OF_SIGNS = {(True, True): "excited", (False, True): "tense", (False, False): "sad", (True, False): "calm"}


def film(fps=30, seconds=12):
    """Nobody is seen for 2 s; face 3 is from 2 s to 8 s, lost from 4 s to 4.3 s; face 1 from 5 s to 10 s; then nobody again.
    The voice breaks off at 11 s."""
    rng = np.random.default_rng(0)
    for frame in range(round(fps * seconds)):
        time = frame / fps
        faces = [face for face, start, stop in ((1, 5, 10), (3, 2, 8)) if start <= time < stop]
        for face in faces or [None]:
            lost = {"face_detected": False, "box": None, "face_quality": None} if face == 3 and 4 <= time < 4.3 else {}
            valence, arousal = rng.uniform(-0.3, 0.3, 2).tolist()
            valence, arousal = valence + 0.5 * math.sin(time), arousal + 0.5 * math.cos(time)
            yield row(frame, face, valence, arousal, fps, audio_present=time < 11, **lost)


@pytest.fixture(scope="module")
def rows():
    return list(film())


@pytest.fixture
def timeline(rows):
    return Timeline.from_rows(iter(rows), NAME)


def series(values, fps=30, face=0, arousal=0.0, start=0):
    return [row(start + index, face, float(value), arousal, fps) for index, value in enumerate(values)]


def assert_same(one, other, decimals=None):
    """Two timelines have the same rows, exactly or to some decimals (boxes to two)."""
    assert len(one) == len(other)
    for name in ("frame", "face", "face_detected", "audio_present"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ("time", "valence", "arousal", "box", "face_quality"):
        digits = decimals if decimals is None or name != "box" else 2
        tolerance = 0 if digits is None else 0.51 * 10**-digits
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=0, atol=tolerance, err_msg=name)


# rows


def test_rows_come_back(rows, timeline):
    again = list(timeline)
    assert len(timeline) == len(again) == len(rows)
    for before, after in zip(rows, again, strict=True):
        assert list(after) == list(before)
        for name, value in before.items():
            if isinstance(value, float) and name != "time":
                assert type(after[name]) is float
                assert np.float32(after[name]) == np.float32(value)
            else:
                assert after[name] == value
                assert type(after[name]) is type(value)
    assert list(Timeline.from_rows(again)) == again
    assert pd.DataFrame(timeline)["valence"].tolist() == [row["valence"] for row in again]


def test_numbers_are_as_short_as_they_came():
    (again,) = Timeline.from_rows([row(0, valence=0.31, arousal=-0.1, box=[0.1, 1.7, 20.3, 30.0])])
    assert (again["valence"], again["arousal"], again["box"]) == (0.31, -0.1, [0.1, 1.7, 20.3, 30.0])


def test_columns(timeline):
    assert timeline.time.dtype == np.float64
    assert timeline.frame.dtype == timeline.face.dtype == np.int64
    assert {getattr(timeline, name).dtype for name in ("valence", "arousal", "box", "face_quality")} == {
        np.dtype("float32")
    }
    assert timeline.face_detected.dtype == timeline.audio_present.dtype == bool
    assert timeline.box.shape == (len(timeline), 4)
    assert timeline.speaking is None
    nobody = timeline.face == -1
    assert nobody.sum() == 4 * 30
    assert np.isnan(timeline.box[nobody]).all()
    assert np.isnan(timeline.face_quality[nobody]).all()
    assert timeline.name == NAME
    assert timeline.fps == 30
    assert repr(timeline) == f"Timeline({NAME!r}, 450 rows, 360 frames at 30 a second, 0.00 to 11.97 s, faces 3, 1)"


def test_speaking_is_kept_if_it_was_asked_for():
    rows = [row(0, speaking=0.5), row(1, None, speaking=None), row(2, speaking=-0.25)]
    timeline = Timeline.from_rows(rows)
    np.testing.assert_array_equal(timeline.speaking, np.array([0.5, np.nan, -0.25], np.float32))
    assert [row["speaking"] for row in timeline] == [0.5, None, -0.25]
    assert timeline.of_face(0).speaking.tolist() == [0.5, -0.25]


def test_rows_without_quality_are_rows():
    (again,) = Timeline.from_rows([{k: v for k, v in row(0, valence=0.5).items() if k != "face_quality"}])
    assert again == row(0, valence=0.5, face_quality=None)


def test_faces(timeline, rows):
    assert timeline.faces == [3, 1]
    for face in (3, 1, None):
        part = timeline.of_face(face)
        assert [row["frame"] for row in part] == [row["frame"] for row in rows if row["face"] == face]
        assert {row["face"] for row in part} == {face}
        assert (part.name, part.fps) == (timeline.name, timeline.fps)
    with pytest.raises(ValueError, match=r"No row is of face 0: this timeline has \[3, 1, None\]"):
        timeline.of_face(0)
    with pytest.raises(ValueError, match=r"No row is of face None: this timeline has \[3\]"):
        timeline.of_face(3).of_face(None)


@pytest.mark.parametrize(
    ("fps", "digits"), [(30, 6), (30000 / 1001, 6), (25, 6), (30, 3), (60000 / 1001, 3), (12.5, 3), (0.5, 3)]
)
def test_frame_rate(fps, digits):
    rows = [row(frame, time=round(frame / fps, digits)) for frame in range(400)]
    del rows[100:140], rows[7]
    assert Timeline.from_rows(rows).fps == pytest.approx(fps, rel=2e-4)


def test_a_single_frame_has_a_rate():
    assert Timeline.from_rows([row(0), row(0, 1)]).fps == 30
    assert Timeline.from_rows([row(0)]).summary()["seconds"] == pytest.approx(1 / 30)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "needs rows, and there is none"),
        ([row(0), {"time": 0.1, "frame": 1}], "Row 1 lacks arousal, audio_present, box, face, face_detected, valence:"),
        ([[row(0)]], "Row 0 lacks .*: a timeline is made of the dicts that the pipeline gives for one file"),
        ([row(0), row(1, valence=float("nan"))], r"Row 1 \(frame 1\) has the valence nan: it must be a number"),
        ([row(0), row(1, arousal=None)], r"Row 1 \(frame 1\) has the arousal nan"),
        ([row(0, valence="high")], "The valence of one of the rows 0 to 0 is no number.*'high'"),
        ([row(0), row(1) | {"frame": None}], "The frame of one of the rows 0 to 1 is no number.*NoneType"),
        ([row(0), row(1, box=[1.0, 2.0])], "The box of one of the rows 0 to 1 is no number, or not four"),
        ([row(0, box=[1.0, 2.0])], "The box of one of the rows 0 to 0 is no number, or not four"),
        ([row(0), row(1), row(0), row(1)], "Frame 0 has two rows of face 0: the rows of each file are a timeline"),
        ([row(0), row(1), row(2, time=0.01)], "Frame 2 is at 0.01 s, before the frame that it follows"),
    ],
)
def test_rows_that_are_no_timeline(rows, message):
    with pytest.raises(ValueError, match=message):
        Timeline.from_rows(rows)


def test_an_iterator_is_read_with_little_memory():
    def many():
        for frame in range(100_000):
            yield row(frame, valence=math.sin(frame), arousal=math.cos(frame))

    tracemalloc.start()
    timeline = Timeline.from_rows(many())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    assert sum(1 for _ in timeline) == 100_000
    _, again = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6
    assert again < 40e6


# smoothing


def test_smoothing_is_the_pipelines(timeline):
    smoothed = timeline.smooth("paper")
    for face in (3, 1):
        raw, part = timeline.of_face(face), smoothed.of_face(face)
        np.testing.assert_allclose(part.valence, smooth(raw.valence, raw.time, 21), atol=1e-6)
        np.testing.assert_allclose(part.arousal, smooth(raw.arousal, raw.time, 51), atol=1e-6)
    assert_same(timeline.smooth(1), timeline)
    np.testing.assert_array_equal(timeline.smooth(21).valence, smoothed.valence)
    only = timeline.smooth({"arousal": 51})
    np.testing.assert_array_equal(only.valence, timeline.valence)
    np.testing.assert_array_equal(only.arousal, smoothed.arousal)
    assert not np.array_equal(timeline.valence, smoothed.valence)
    assert list(timeline) == list(Timeline.from_rows(film()))  # left as it was


def test_smoothing_goes_neither_over_faces_nor_over_gaps():
    levels = {0: 0.9, 1: -0.9, None: 0.1}
    seen = [row(frame, face, levels[face]) for frame in range(60) for face in (0, 1)]
    nobody = [row(frame, None, 0.1) for frame in range(60, 62)]  # shorter than a gap in seconds
    later = [row(frame, face, -levels[face]) for frame in range(62, 120) for face in (0, 1)]
    cut = [row(frame, None, 0.5) for frame in range(200, 240)]
    timeline = Timeline.from_rows(seen + nobody + later + cut)
    np.testing.assert_array_equal(timeline.smooth(51).valence, timeline.valence)
    one_after_the_other = Timeline.from_rows(series(np.full(60, 0.9)) + series(np.full(60, -0.9), face=1, start=60))
    np.testing.assert_array_equal(one_after_the_other.smooth(51).valence, one_after_the_other.valence)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (20, "must be an odd number"),
        (0, "must be an odd number"),
        ("papers", "must be an odd number"),
        ({"dominance": 3}, r"names \['dominance'\], and what can be smoothed is \['valence', 'arousal'\]"),
    ],
)
def test_sizes_that_can_not_be(timeline, size, message):
    with pytest.raises(ValueError, match=message):
        timeline.smooth(size)


# resampling and slices


@pytest.mark.parametrize("fps", [5, 10, 24, 60, 100 / 3])
def test_resampled_lines_stay_lines(fps):
    rows = [
        row(frame, face, valence=0.004 * frame - 0.5 * face, arousal=-0.002 * frame)
        for frame in range(200)
        for face in (0, 1)
    ]
    timeline = Timeline.from_rows(rows).resample(fps)
    assert timeline.fps == fps
    for face in (0, 1):
        part = timeline.of_face(face)
        np.testing.assert_array_equal(part.frame, np.arange(len(part)))
        np.testing.assert_allclose(part.time, part.frame / fps, rtol=1e-15)
        assert abs(len(part) - 200 / 30 * fps) <= 1
        inside = part.time <= 199 / 30
        np.testing.assert_allclose(part.valence[inside], 0.12 * part.time[inside] - 0.5 * face, atol=1e-5)
        np.testing.assert_allclose(part.arousal[inside], -0.06 * part.time[inside], atol=1e-5)
        np.testing.assert_allclose(part.box[inside, 0], 10 + 30 * part.time[inside], atol=1e-3)
        np.testing.assert_allclose(part.box[:, 1], 20)
        np.testing.assert_array_equal(part.valence[~inside], timeline.of_face(face).valence.max())  # held, not drawn on


def test_at_its_own_rate_it_stays_as_it_is(timeline):
    again = timeline.resample(30)
    np.testing.assert_array_equal(again.frame, timeline.frame)
    assert_same(again, timeline, 4)


def test_faces_and_flags_are_those_of_the_nearest_frame(timeline, rows):
    by_frame = {}
    for row_ in rows:
        by_frame.setdefault(row_["frame"], {})[row_["face"]] = row_
    again = timeline.resample(47)
    for row_ in again:
        nearest = by_frame[min(round(row_["time"] * 30), 359)]
        assert row_["face"] in nearest
        source = nearest[row_["face"]]
        for name in ("face_detected", "audio_present"):
            assert row_[name] == source[name]
        assert (row_["box"] is None) == (source["box"] is None)
        assert (row_["face_quality"] is None) == (source["face_quality"] is None)
    counts = pd.Series(again.frame).value_counts()
    assert [counts[frame] for frame in range(len(counts))] == [
        len(by_frame[min(round(frame / 47 * 30), 359)]) for frame in range(len(counts))
    ]


def test_where_one_end_has_no_box_it_is_that_of_the_nearest():
    timeline = Timeline.from_rows(
        [row(0, box=[0.0, 0.0, 10.0, 10.0], fps=10), row(1, fps=10, box=None, face_detected=False, face_quality=None)]
    )
    again = timeline.resample(40)
    assert [row["box"] for row in again] == [[0.0, 0.0, 10.0, 10.0]] * 3 + [None] * 4  # 0.05 s is as near to both
    assert again.face_detected.tolist() == [True] * 3 + [False] * 4


def test_gaps_stay_gaps():
    early, late = series(np.full(31, -0.5)), series(np.full(31, 0.5), start=120)
    timeline = Timeline.from_rows(early + late)
    for fps in (10, 30, 50):
        again = timeline.resample(fps)
        assert set(np.unique(again.valence)) == {-0.5, 0.5}
        assert not ((again.time > 1 + 1 / 59) & (again.time < 4 - 1 / 59)).any()
        assert {1.0, 4.0} <= set(again.time.tolist())
    short = Timeline.from_rows(series([0.0, 0.1]) + series([1.0, 1.0], start=11)).resample(30)  # 1/3 s
    np.testing.assert_allclose(short.valence, [0, *np.linspace(0.1, 1, 11), 1], atol=1e-5)


def test_resample_then_slice_is_slice_then_resample(timeline):
    one = timeline.resample(8).slice(3, 7)
    other = timeline.slice(3 - 0.1, 7 + 0.1).resample(8).slice(3, 7)
    assert_same(one, other)
    assert one.time.min() == 3
    assert one.time.max() == 7 - 1 / 8
    assert len(one.of_face(3)) == 32
    assert len(one.of_face(1)) == 16
    assert one.fps == 8


def test_slice(timeline, rows):
    part = timeline.slice(4.5, 6)
    assert list(part) == [row for row in timeline if 4.5 <= row["time"] < 6]
    assert part.fps == timeline.fps
    assert list(timeline.slice()) == list(timeline)
    with pytest.raises(ValueError, match=r"No row is in 12 <= time < 20: this timeline is of 0.0 to 11.9\d+ s"):
        timeline.slice(12, 20)


def test_rates_that_can_not_be(timeline):
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be a positive number of rows a second"):
            timeline.resample(fps)
    with pytest.raises(ValueError, match=r"fps=0.1 leaves no row of 2.0 to 5.\d+ s: take a higher one"):
        timeline.slice(2, 6).resample(0.1)


# in short


def test_summary(timeline, rows):
    summary = timeline.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert (summary["name"], summary["frames"]) == (NAME, 360)
    assert summary["seconds"] == pytest.approx(12)
    assert summary["share_audio_present"] == pytest.approx(11 / 12)
    assert [face["face"] for face in summary["faces"]] == [3, 1, None]
    seconds = {3: 6, 1: 5, None: 4}
    for entry in summary["faces"]:
        own = [row for row in rows if row["face"] == entry["face"]]
        assert entry["seconds"] == pytest.approx(seconds[entry["face"]])
        assert entry["start"] == own[0]["time"]
        assert entry["share_detected"] == pytest.approx(np.mean([row["face_detected"] for row in own]), abs=1e-5)
        names = [QUADRANT_OF_SIGNS[row["valence"] >= 0, row["arousal"] >= 0] for row in own]
        assert list(entry["quadrants"]) == list(QUADRANTS)
        assert sum(entry["quadrants"].values()) == pytest.approx(1)
        for name, share in entry["quadrants"].items():
            assert share == pytest.approx(names.count(name) / len(names), abs=1e-5)
        for name in ("valence", "arousal"):
            values = np.array([row[name] for row in own])
            measured = [entry[name][key] for key in ("mean", "std", "min", "max")]
            assert measured == pytest.approx([values.mean(), values.std(), values.min(), values.max()], abs=1e-5)
            assert len(entry[name]["peaks"]) == 5
    assert summary["faces"][0]["share_detected"] == pytest.approx(0.95)


def test_shares_are_of_time_not_of_frames():
    rows = [row(0, time=0.0, valence=1.0, arousal=1.0), row(1, time=0.1, valence=-1.0, arousal=-1.0)]
    rows += [row(frame, time=0.1 * frame - 0.1 + 0.3, valence=-1.0, arousal=-1.0) for frame in range(2, 7)]
    (entry,) = Timeline.from_rows(rows).summary()["faces"]  # the second frame stands for 0.3 s
    assert entry["seconds"] == pytest.approx(0.9)
    assert entry["quadrants"]["excited"] == pytest.approx(0.1 / 0.9)
    assert entry["valence"]["mean"] == pytest.approx(-0.7 / 0.9)


def test_a_gap_is_nobodys_time():
    (entry,) = Timeline.from_rows(series(np.zeros(30)) + series(np.zeros(30), start=90)).summary()["faces"]
    assert entry["seconds"] == pytest.approx(2)


def test_peaks_are_the_turns_of_a_wave():
    times = np.arange(300) / 30
    rows = [
        row(frame, valence=float(0.3 * np.sin(2 * np.pi * time / 4) + 0.02 * time)) for frame, time in enumerate(times)
    ]
    (entry,) = Timeline.from_rows(rows).summary()["faces"]
    peaks = entry["valence"]["peaks"]
    assert [peak["type"] for peak in peaks] == ["maximum", "minimum", "maximum", "minimum", "maximum"]
    assert [peak["time"] for peak in peaks] == pytest.approx([1, 3, 5, 7, 9], abs=0.05)
    assert peaks[0]["value"] == pytest.approx(0.32, abs=1e-3)
    assert peaks[0]["prominence"] == pytest.approx(0.32, abs=5e-3)
    assert entry["arousal"]["peaks"] == []
    (entry,) = Timeline.from_rows(rows).summary(num_peaks=3)[
        "faces"
    ]  # the turns at 1 s and 9 s end in the series' ends
    assert [round(peak["time"]) for peak in entry["valence"]["peaks"]] == [3, 5, 7]


def test_there_is_no_peak_at_a_gap():
    rows = series(np.linspace(0, 0.9, 30)) + series(np.linspace(-0.9, 0, 30), start=90)
    (entry,) = Timeline.from_rows(rows).summary()["faces"]
    assert entry["valence"]["peaks"] == []


@pytest.mark.parametrize("seed", range(20))
def test_maxima_are_scipys(seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 6, rng.integers(1, 60)) if seed % 2 else rng.normal(size=200).cumsum()
    found = maxima(values)
    expected, properties = signal.find_peaks(values, prominence=0)
    assert [index for index, _ in found] == expected.tolist()
    np.testing.assert_allclose([prominence for _, prominence in found], properties["prominences"])


def test_quadrants():
    assert [QUADRANTS[quadrant(*point)] for point in ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5), (0, 0))] == [
        "excited", "tense", "sad", "calm", "excited",
    ]  # fmt: skip
    assert quadrant(np.array([1, -1]), np.array([-1, 1])).tolist() == [3, 1]


# files


def test_csv(timeline, rows, tmp_path):
    timeline.to_csv(tmp_path / "a.csv")
    assert b"\r" not in (tmp_path / "a.csv").read_bytes()
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == [
        "time", "frame", "face", "valence", "arousal", "x0", "y0", "x1", "y1", "face_detected", "audio_present",
        "face_quality",
    ]  # fmt: skip
    assert len(lines) == len(rows)
    for line, row_ in zip(lines, rows, strict=True):
        assert line["frame"] == str(row_["frame"])
        assert float(line["time"]) == row_["time"]
        assert line["face"] == ("" if row_["face"] is None else str(row_["face"]))
        for name in ("valence", "arousal"):
            assert float(line[name]) == pytest.approx(row_[name], abs=1e-6)
            assert len(line[name]) <= len("-0.123456")
        assert [line[name] for name in ("x0", "y0", "x1", "y1")] == (
            [""] * 4 if row_["box"] is None else [str(corner) for corner in row_["box"]]
        )
        assert line["face_detected"] == str(int(row_["face_detected"]))
        assert line["audio_present"] == str(int(row_["audio_present"]))
        assert line["face_quality"] == ("" if row_["face_quality"] is None else "0.75")
    again = Timeline.read_csv(tmp_path / "a.csv")
    assert_same(again, timeline, 6)
    assert (again.name, again.fps) == ("a", timeline.fps)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.csv"]


def test_csv_of_others(tmp_path):
    path = tmp_path / "a.csv"
    header = "time,frame,face,valence,arousal,x0,y0,x1,y1,face_detected,audio_present"
    path.write_text(f"{header},remark\n0.0,0,,0.5,-0.5,,,,,0,1,a laugh\n", encoding="utf-8-sig")
    assert list(Timeline.read_csv(path)) == [row(0, None, 0.5, -0.5)]
    path.write_text(f"{header}\n0,0,0,0.5,0,,,,,0,1\n1,1,0,high,0,,,,,0,1\n")
    with pytest.raises(ValueError, match=r"a.csv, line 3: .*'high'. Cells hold numbers, or nothing"):
        Timeline.read_csv(path)
    path.write_text("time,valence\n0,0.5\n")
    with pytest.raises(ValueError, match="Row 0 lacks arousal, audio_present, face, face_detected, frame"):
        Timeline.read_csv(path)


def test_pandas(timeline, rows):
    table = timeline.to_pandas()
    assert table["face"].dtype == "Int64"
    assert [None if face is pd.NA else face for face in table["face"]] == [row["face"] for row in rows]
    assert table["face_detected"].dtype == bool
    mean = table.groupby("face")["valence"].mean()
    assert mean[3] == pytest.approx(np.mean([row["valence"] for row in rows if row["face"] == 3]), abs=1e-6)
    assert table["x0"].isna().sum() == sum(row["box"] is None for row in rows)


def test_jsonl(timeline, tmp_path):
    timeline.to_jsonl(tmp_path / "ä.jsonl")
    lines = (tmp_path / "ä.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == list(timeline)
    again = Timeline.read_jsonl(tmp_path / "ä.jsonl")
    assert_same(again, timeline)
    assert again.name == "ä"
    with open(tmp_path / "ä.jsonl", "a") as file:
        file.write("nonsense\n")
    with pytest.raises(ValueError, match=r"ä.jsonl, line 451 is no JSON: Expecting value"):
        Timeline.read_jsonl(tmp_path / "ä.jsonl")


def test_parquet(timeline, rows, tmp_path):
    timeline = timeline.resample(10)
    timeline.to_parquet(tmp_path / "a.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert table.to_pylist() == [
        row
        | {
            name: row[name] and pytest.approx(row[name], rel=1e-7)
            for name in ("valence", "arousal", "box", "face_quality")
        }
        for row in timeline
    ]
    assert table.schema.metadata == {b"name": NAME.encode(), b"fps": b"10.0"}
    assert str(table.schema.field("box").type) == "list<element: float>"
    assert table["face"].null_count == (timeline.face == -1).sum()
    again = Timeline.read_parquet(tmp_path / "a.parquet")
    assert_same(again, timeline)
    assert (again.name, again.fps) == (NAME, 10.0)
    assert len(pd.read_parquet(tmp_path / "a.parquet")) == len(timeline)
    timeline.slice(0, 0.05).to_parquet(tmp_path / "a.parquet")  # a frame says nothing of its rate
    assert Timeline.read_parquet(tmp_path / "a.parquet").fps == 10.0


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_speaking_goes_with_it(suffix, tmp_path):
    timeline = Timeline.from_rows([row(0, speaking=0.5), row(1, None, speaking=None)])
    timeline.save(tmp_path / f"a{suffix}")
    again = getattr(Timeline, f"read_{suffix[1:]}")(tmp_path / f"a{suffix}")
    assert list(again) == list(timeline)


def expected_cells(rows, interval, fps=30):
    """By cell of `interval` seconds: the mean valence and arousal of each face."""
    cells = {}
    for row_ in rows:
        cell = cells.setdefault(int((row_["frame"] + 1e-6) / fps / interval), {})
        cell.setdefault(row_["face"], []).append((row_["valence"], row_["arousal"]))
    return {cell: {face: np.mean(values, axis=0) for face, values in faces.items()} for cell, faces in cells.items()}


def cues(path):
    """Start and end in seconds and text of subtitles, as FFmpeg reads them."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(container.streams.subtitles[0]) if packet.size]
        return [
            (float(p.pts * p.time_base), float((p.pts + p.duration) * p.time_base), bytes(p).decode()) for p in packets
        ]


@pytest.mark.parametrize("interval", [1.0, 0.5])
@pytest.mark.parametrize("suffix", [".vtt", ".srt"])
def test_subtitles(timeline, rows, suffix, interval, tmp_path):
    path = tmp_path / f"ü{suffix}"
    timeline.save(path, interval=interval)
    found = cues(path)
    expected = expected_cells(rows, interval)
    assert len(found) == len(expected) == 12 / interval
    for (start, end, text), (cell, faces) in zip(found, expected.items(), strict=True):
        assert (start, end) == (cell * interval, (cell + 1) * interval)
        lines = text.split("\n")
        assert len(lines) == len(faces)
        for line, face in zip(lines, sorted(faces, key=str), strict=True):
            valence, arousal = faces[face]
            name = "voice only" if face is None else f"face {face}"
            words = line.split()
            assert line.startswith(f"{name}  valence ")
            assert float(words[3]) == pytest.approx(valence, abs=0.00501)
            assert float(words[5]) == pytest.approx(arousal, abs=0.00501)
            assert words[6] == f"({QUADRANT_OF_SIGNS[valence >= 0, arousal >= 0]})"
    assert found[0][2].startswith("voice only  valence ")


def test_a_cue_says_what_is_promised(tmp_path):
    Timeline.from_rows(series(np.full(30, 0.31), arousal=-0.12)).to_webvtt(tmp_path / "a.vtt")
    text = (tmp_path / "a.vtt").read_text()
    assert text.startswith("WEBVTT\n\n")
    assert "\n00:00:00.000 --> 00:00:01.000\nface 0  valence +0.31  arousal -0.12  (calm)\n" in text
    Timeline.from_rows([*series([-0.5] * 20, face=None), *series([0.5] * 40, face=2, start=20)]).to_srt(
        tmp_path / "a.srt"
    )
    assert [text.split("  ")[:2] for _, _, text in cues(tmp_path / "a.srt")] == [["face 2", "valence +0.50"]] * 2


@pytest.mark.parametrize("fps", [30000 / 1001, 24, 7])
@pytest.mark.parametrize("interval", [1.0, 0.1, 3.7])
def test_cues_never_overlap(fps, interval, tmp_path):
    rows = [row_ for row_ in film(fps, 40) if not 20 <= row_["time"] < 25]
    Timeline.from_rows(rows).to_srt(tmp_path / "a.srt", interval)
    found = cues(tmp_path / "a.srt")
    for (start, end, _), (following, _, _) in zip(found, [*found[1:], (math.inf, 0, "")], strict=True):
        assert start < end <= following
    starts = [start for start, _, _ in found]
    assert not any(20.1 + 1 / fps < start < 24.99 for start in starts)  # nothing is said in the gap
    assert max(end for _, end, _ in found) == pytest.approx(40, abs=1.01 / fps)


def tiers_of_eaf(path):
    """Tiers of an ELAN document as [(start ms, end ms, text)], and its checks: order of elements, ids, references."""
    document = ElementTree.parse(path).getroot()
    assert document.tag == "ANNOTATION_DOCUMENT"
    assert {"AUTHOR", "DATE", "FORMAT", "VERSION"} <= set(document.attrib)
    order = ["HEADER", "TIME_ORDER", "TIER", "LINGUISTIC_TYPE", "CONSTRAINT"]
    places = [order.index(element.tag) for element in document]
    assert places == sorted(places)
    assert document.find("HEADER").get("TIME_UNITS") == "milliseconds"
    slots = {slot.get("TIME_SLOT_ID"): int(slot.get("TIME_VALUE")) for slot in document.iter("TIME_SLOT")}
    assert len(slots) == len(document.findall("TIME_ORDER/TIME_SLOT"))
    ids = [annotation.get("ANNOTATION_ID") for annotation in document.iter("ALIGNABLE_ANNOTATION")]
    assert len(set(ids) | set(slots)) == len(ids) + len(slots)
    types = {kind.get("LINGUISTIC_TYPE_ID") for kind in document.iter("LINGUISTIC_TYPE")}
    tiers = {}
    for tier in document.iter("TIER"):
        assert tier.get("LINGUISTIC_TYPE_REF") in types
        tiers[tier.get("TIER_ID")] = [
            (slots[a.get("TIME_SLOT_REF1")], slots[a.get("TIME_SLOT_REF2")], a.findtext("ANNOTATION_VALUE"))
            for a in tier.iterfind("ANNOTATION/ALIGNABLE_ANNOTATION")
        ]
    return document, tiers


def tiers_of_textgrid(path):
    """Tiers of a TextGrid as [(start ms, end ms, text)], as praatio reads them, without the empty intervals."""
    grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=False, reportingMode="error")
    return grid, {
        name: [(round(1000 * start), round(1000 * end), text) for start, end, text in grid.getTier(name).entries]
        for name in grid.tierNames
    }


@pytest.mark.parametrize("interval", [1.0, 0.5])
@pytest.mark.parametrize(("suffix", "read"), [(".eaf", tiers_of_eaf), (".TextGrid", tiers_of_textgrid)])
def test_tiers(timeline, rows, suffix, read, interval, tmp_path):
    timeline.save(tmp_path / f"ü{suffix}", interval=interval)
    _, tiers = read(tmp_path / f"ü{suffix}")
    labels = {3: "face 3", 1: "face 1", None: "voice only"}
    assert list(tiers) == [
        f"{label} {name}" for label in labels.values() for name in ("valence", "arousal", "quadrant")
    ]
    cells = expected_cells(rows, interval)
    for face, label in labels.items():
        own = {cell: faces[face] for cell, faces in cells.items() if face in faces}
        spans = [(1000 * cell * interval, 1000 * (cell + 1) * interval) for cell in own]
        for name in ("valence", "arousal", "quadrant"):
            assert [entry[:2] for entry in tiers[f"{label} {name}"]] == spans
        for index, name in enumerate(("valence", "arousal")):
            texts = [text for _, _, text in tiers[f"{label} {name}"]]
            assert [float(text) for text in texts] == pytest.approx(
                [mean[index] for mean in own.values()], abs=0.000501
            )
            assert all(text[0] in "+-" for text in texts)
        assert [text for _, _, text in tiers[f"{label} quadrant"]] == [
            QUADRANT_OF_SIGNS[valence >= 0, arousal >= 0] for valence, arousal in own.values()
        ]
    assert list(tmp_path.iterdir()) == [tmp_path / f"ü{suffix}"]


def test_elan_is_linked_to_the_video(timeline, tmp_path):
    timeline.to_elan(tmp_path / "a.eaf")
    document, _ = tiers_of_eaf(tmp_path / "a.eaf")
    (media,) = document.iter("MEDIA_DESCRIPTOR")
    assert media.attrib == {"MEDIA_URL": NAME, "RELATIVE_MEDIA_URL": f"./{NAME}", "MIME_TYPE": "video/mp4"}
    assert [tier.get("PARTICIPANT") for tier in document.iter("TIER")] == ["face 3"] * 3 + ["face 1"] * 3 + [
        "voice only"
    ] * 3
    Timeline.from_rows(series([0.5] * 3)).to_elan(tmp_path / "a.eaf")  # over the one that is there
    document, tiers = tiers_of_eaf(tmp_path / "a.eaf")
    assert list(document.iter("MEDIA_DESCRIPTOR")) == []
    assert tiers["face 0 valence"] == [(0, 100, "+0.500")]
    assert list(tmp_path.iterdir()) == [tmp_path / "a.eaf"]


@pytest.mark.parametrize(("suffix", "read"), [(".eaf", tiers_of_eaf), (".TextGrid", tiers_of_textgrid)])
@pytest.mark.parametrize("fps", [30000 / 1001, 24])
def test_annotations_end_with_the_face(suffix, read, fps, tmp_path):
    timeline = Timeline.from_rows(film(fps))
    timeline.save(tmp_path / f"a{suffix}", interval=0.7)
    _, tiers = read(tmp_path / f"a{suffix}")
    for face in (3, 1, None):
        part = timeline.of_face(face)
        found = tiers[f"{'voice only' if face is None else f'face {face}'} valence"]
        assert found[0][0] == round(1000 * part.time[0])
        assert found[-1][1] == round(1000 * (part.time[-1] + 1 / fps))
        assert sum(end - start for start, end, _ in found) == pytest.approx(len(part) / fps * 1000, abs=3)
        assert all(start < end for start, end, _ in found)
        assert all(end <= start for (_, end, _), (start, _, _) in pairwise(found))


def test_a_textgrid_is_filled_with_empty_intervals(timeline, tmp_path):
    timeline.to_textgrid(tmp_path / "a.TextGrid")
    grid = textgrid.openTextgrid(str(tmp_path / "a.TextGrid"), includeEmptyIntervals=True, reportingMode="error")
    assert (grid.minTimestamp, grid.maxTimestamp) == (0, pytest.approx(12))
    for name in grid.tierNames:
        entries = grid.getTier(name).entries
        assert entries[0].start == 0
        assert entries[-1].end == pytest.approx(12)
        assert all(one.end == other.start for one, other in pairwise(entries))
    assert grid.getTier("face 3 valence").entries[0].label == ""


def test_an_interval_has_length_in_milliseconds(tmp_path):
    """A face that comes a fraction of a millisecond before a second is full."""
    rows = [
        row(frame, None if frame < 30 else 0, time=round(frame / 30 - 0.0003 * (frame > 0), 6)) for frame in range(60)
    ]
    for suffix, read in ((".eaf", tiers_of_eaf), (".TextGrid", tiers_of_textgrid)):
        Timeline.from_rows(rows).save(tmp_path / f"a{suffix}")
        _, tiers = read(tmp_path / f"a{suffix}")
        assert [entry[:2] for entry in tiers["face 0 valence"]] == [(1000, 2000)]


@pytest.mark.parametrize("suffix", [".vtt", ".srt", ".eaf", ".TextGrid"])
def test_intervals_that_can_not_be(timeline, suffix, tmp_path):
    for interval in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="must be a positive number of seconds"):
            timeline.save(tmp_path / f"a{suffix}", interval=interval)
    assert list(tmp_path.iterdir()) == []


def test_save_chooses_by_suffix(timeline, tmp_path):
    for suffix, writer in FORMATS.items():
        timeline.save(tmp_path / f"a{suffix.upper()}")
        getattr(timeline, writer)(tmp_path / "b")
        one, other = (tmp_path / f"a{suffix.upper()}").read_bytes(), (tmp_path / "b").read_bytes()
        if suffix == ".eaf":  # has the time of writing
            one, other = (data[data.index(b"<HEADER") :] for data in (one, other))
        assert one == other
    for path in ("a.xlsx", "a", tmp_path / "csv"):
        with pytest.raises(ValueError, match=r"choose of .csv, .jsonl, .parquet, .vtt, .srt, .eaf, .TextGrid"):
            timeline.save(path)
    with pytest.raises(TypeError, match="interval"):
        timeline.save(tmp_path / "a.csv", interval=1.0)


@pytest.mark.parametrize(
    ("suffix", "module"), [(".vtt", "pysubs2"), (".srt", "pysubs2"), (".eaf", "pympi"), (".TextGrid", "pympi")]
)
def test_what_is_not_installed_is_named(timeline, suffix, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # what `import` finds is as if it were not there
    with pytest.raises(ImportError, match=r"pip install 'jca\[formats\]'"):
        timeline.save(tmp_path / f"a{suffix}")


FULL = """
import resource, signal, sys
from pathlib import Path

sys.path.append("tests")
from test_timeline import FORMATS, Timeline, film

timeline = Timeline.from_rows(film())
folder = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
for suffix in FORMATS:
    path = folder / f"a{suffix}"
    path.write_text("what was there")
    try:
        timeline.save(path)
    except OSError as error:
        assert str(path) in str(error), error
    else:
        raise AssertionError(f"{path} was written")
"""


def test_a_file_is_whole_or_not_there(tmp_path):
    """With files that can not grow, as on a full disk, what was there stays, and no part of the new one is left."""
    subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], check=True, cwd=ROOT, timeout=120)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"a{suffix}" for suffix in FORMATS)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"what was there"}
