import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from media import write_video

from jca.submission import HEADER, last_frames, read_submission, validate_submission, write_submission


ROOT = Path(__file__).parents[1]


def predict(**num_frames):
    rng = np.random.default_rng(0)
    return {video: rng.uniform(-1, 1, (count, 2)).astype(np.float32) for video, count in num_frames.items()}


def rows(video, *frames, values="0.1,-0.2"):
    return [f"{video}/{frame:05d}.jpg,{values}" for frame in frames]


def write(path, *lines, header=HEADER):
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "submission.txt"


@pytest.fixture
def sample(tmp_path):
    """Videos in another order than the alphabet's, and no values, as the organisers leave them."""
    return write(tmp_path / "sample.txt", *rows("b", 1, 2, 3, values=","), *rows("a", 1, 2, values=","))


def test_round_trip(file):
    predictions = predict(**{"6-30-1920x1080_left": 3, "video10_1": 120})
    predictions["video10_1"][7] = [-1, 1]
    assert write_submission(predictions, file) == []
    lines = file.read_text().split("\n")
    valence, arousal = predictions["video10_1"][119]
    assert lines[0] == "image_location,valence,arousal"
    assert lines[-2:] == [f"video10_1/00120.jpg,{valence:.6f},{arousal:.6f}", ""]
    assert lines[4 + 7] == "video10_1/00008.jpg,-1.000000,1.000000"
    assert b"\r" not in file.read_bytes()
    assert validate_submission(file) == []
    again = read_submission(file)
    assert list(again) == list(predictions)
    for video, values in predictions.items():
        assert again[video].shape == values.shape
        np.testing.assert_allclose(again[video], values, atol=6e-7)
    assert last_frames(file) == {"6-30-1920x1080_left": 3, "video10_1": 120}


def test_frames_beyond_five_digits(file):
    predictions = {"a": np.linspace(-1, 1, 2 * 100_001).reshape(-1, 2)}
    write_submission(predictions, file)
    assert file.read_text().splitlines()[-2:] == ["a/100000.jpg,0.999970,0.999980", "a/100001.jpg,0.999990,1.000000"]
    assert validate_submission(file, num_frames={"a": 100_001}) == []


def test_frames_are_read_in_their_order(file):
    write(file, *rows("b", 1, values="0,0"), *rows("a", 2, values="0.2,0"), *rows("a", 1, values="0.1,0"))
    again = read_submission(file)
    np.testing.assert_allclose(again["a"], [[0.1, 0], [0.2, 0]])
    np.testing.assert_allclose(again["b"], [[0, 0]])


def test_the_sample_decides_rows_and_order(file, sample):
    predictions = predict(a=2, b=3)
    assert write_submission(predictions, file, sample) == []
    locations = [line.split(",")[0] for line in file.read_text().splitlines()]
    assert locations == [line.split(",")[0] for line in sample.read_text().splitlines()]
    again = read_submission(file)
    for video, values in predictions.items():
        np.testing.assert_allclose(again[video], values, atol=6e-7)
    assert validate_submission(file, sample) == []

    mixed = write(sample, *rows("b", 2), *rows("a", 1), *rows("b", 1))  # rows of two videos in turns, a hole in neither
    assert write_submission({"a": predictions["a"][:1], "b": predictions["b"][:2]}, file, mixed) == []
    assert [line[:9] for line in file.read_text().splitlines()[1:]] == ["b/00002.j", "a/00001.j", "b/00001.j"]
    np.testing.assert_allclose(read_submission(file)["b"], predictions["b"][:2], atol=6e-7)
    assert validate_submission(file, mixed) == []


def test_counts_that_are_off_by_one(file, sample):
    predictions = predict(a=3, b=2, c=4)  # the sample asks for 2 and 3
    notes = write_submission(predictions, file, sample)
    assert notes == [
        "b: 1 row beyond the 2 predicted frames, the last one is repeated",
        f"a: 1 row left out of 3 predicted frames, {sample} does not ask for them",
        f"c: all 4 rows left out, {sample} does not ask for this video",
    ]
    again = read_submission(file)
    assert list(again) == ["b", "a"]
    np.testing.assert_allclose(again["b"], predictions["b"][[0, 1, 1]], atol=6e-7)
    np.testing.assert_allclose(again["a"], predictions["a"][:2], atol=6e-7)
    assert validate_submission(file, sample) == []


def test_all_that_can_not_be_written_is_one_error(file, sample):
    predictions = predict(a=40, d=5, e=5)
    predictions["a"][3:20, 1] = np.nan
    predictions["a"][30, 1] = np.inf
    predictions["d"][4, 0] = 1.5
    predictions["e"] = predictions["e"].T
    predictions["f/g"] = predictions["d"][:2]
    with pytest.raises(ValueError, match="submission.txt: 5 problems") as caught:
        write_submission(predictions, file, sample)
    assert caught.value.problems == [
        "a: arousal must be in [-1, 1]: nan, ... in frames 4 to 20, 31",
        "d: valence must be in [-1, 1]: 1.5 in frame 5",
        "e: predictions have the shape (2, 5), they must be (frames, 2)",
        "'f/g' can not be a video of a submission: a name has no slash, comma or line break",
        f"b has no predictions, {sample} asks for it",
    ]
    assert not file.exists()
    with pytest.raises(ValueError, match="there are no predictions"):
        write_submission({}, file)
    with pytest.raises(ValueError, match=r"a: predictions have the shape \(\), they must be \(frames, 2\)"):
        write_submission({"a": np.float32(0.5)}, file)
    with pytest.raises(ValueError, match="sample.txt, line 3: a location must be"):
        write_submission(predict(a=2), file, write(sample, *rows("a", 1), "a/2.jpg,,"))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("a/00002.jpg,0.1", "a row must have three fields `<video>/<number>.jpg,valence,arousal`: 'a/00002.jpg,0.1'"),
        ("a/00002.jpg,0,0,0", "a row must have three fields"),
        ("a/00002.jpg,0.1,x", "arousal must be a number: 'x'"),
        ("a/00002.jpg,,0.1", "valence must be a number: ''"),
        ("a/00002.jpg,nan,0.1", "valence must be a number in [-1, 1]: 'nan'"),
        ("a/00002.jpg,0.1,-inf", "arousal must be a number in [-1, 1]: '-inf'"),
        ("a/00002.jpg,1.000001,0.1", "valence must be a number in [-1, 1]: '1.000001'"),
        ("a/00002.jpg,0.1,-5", "arousal must be a number in [-1, 1]: '-5'"),
    ],
)
def test_a_row_that_is_wrong(file, line, problem):
    write(file, *rows("a", 1), line, *rows("a", 3))
    (found,) = validate_submission(file)  # and the frame does not count as missing
    assert found.startswith(f"{file}, line 3: {problem}")
    with pytest.raises(ValueError, match="submission.txt: 1 problem") as caught:
        read_submission(file)
    assert caught.value.problems == [found]


@pytest.mark.parametrize(
    "location", ["a/2.jpg", "a/000002.jpg", "a/00000.jpg", "a/00002.png", "00002.jpg", "a/b/00002.jpg"]
)
def test_a_location_that_is_wrong(file, location):
    write(file, *rows("a", 1), f"{location},0.1,0.1")
    assert validate_submission(file) == [
        f"{file}, line 3: a location must be `<video>/<number>.jpg`, `a/00001.jpg` for the first frame: {location!r}"
    ]


def test_a_header_that_is_wrong(file):
    problem = f"{file}, line 1: the first line must be the header `image_location,valence,arousal`: "
    write(file, *rows("a", 1, 2), header="image_location,arousal,valence")
    assert validate_submission(file) == [f"{problem}'image_location,arousal,valence'"]
    file.write_text("\n".join(rows("a", 1, 2)))  # none at all: its first line is a row
    assert validate_submission(file) == [f"{problem}'a/00001.jpg,0.1,-0.2'"]


def test_files_that_are_no_submission(file):
    file.write_text("")
    (problem,) = validate_submission(file)
    assert "has no row: it must hold the header `image_location,valence,arousal`" in problem
    file.write_bytes(b"\x89PNG\r\n\xff\xfe")
    (problem,) = validate_submission(file)
    assert problem.startswith(f"{file}: can not be read as text")
    (problem,) = validate_submission(file.with_name("none.txt"))
    assert "can not be read as text" in problem
    write(file, *rows("a", 1))
    (problem,) = validate_submission(file, sample=file.with_name("none.txt"))
    assert "none.txt: can not be read as text" in problem


def test_blank_lines_crlf_and_a_byte_order_mark_are_nothing(file):
    text = "\r\n".join(["", HEADER, "", *rows("a", 1, 2), "", *rows("b", 1), "", ""])
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert validate_submission(file, num_frames={"a": 2, "b": 1}) == []
    assert {video: len(values) for video, values in read_submission(file).items()} == {"a": 2, "b": 1}
    file.write_bytes(b"\xef\xbb\xbf" + text.replace("b/00001.jpg,0.1", "b/00001.jpg,2").encode())
    (problem,) = validate_submission(file)
    assert problem.startswith(f"{file}, line 7: ")  # as an editor counts them


def test_a_row_that_stands_twice(file):
    write(file, *rows("a", 1, 2, 1, 3), *rows("b", 1, 2, 3), *rows("b", 1, 2, 3))
    assert validate_submission(file) == [
        f"{file}, line 4: a/00001.jpg already on line 2",
        f"{file}, lines 9 to 11: b/00001.jpg to b/00003.jpg already on lines 6 to 8",
    ]
    with pytest.raises(ValueError, match="already on line 2"):
        read_submission(file)


def test_frames_that_are_missing_in_a_video(file):
    write(file, *rows("a", 1, 2, 1003, 1005), *rows("b", 2), *rows("c", 1, 2))
    rule = "the frames of a video must be 1, 2, ..., none left out"
    assert validate_submission(file) == [
        f"{file}: frames 3 to 1002, 1004 of a missing: {rule}",
        f"{file}: frame 1 of b missing: {rule}",
    ]
    with pytest.raises(ValueError, match="2 problems"):
        read_submission(file)


def test_alike_problems_in_a_row_are_one(file):
    bad = [*rows("a", *range(1, 501), values="nan,2"), *rows("a", 501), *rows("a", 502, 503, values="nan,0")]
    assert validate_submission(write(file, *bad)) == [
        f"{file}, lines 2 to 501: arousal must be a number in [-1, 1]: '2', ...",
        f"{file}, lines 2 to 501: valence must be a number in [-1, 1]: 'nan', ...",
        f"{file}, lines 503 to 504: valence must be a number in [-1, 1]: 'nan', ...",
    ]


@pytest.mark.parametrize("by_sample", [True, False])
def test_rows_that_are_asked_for_and_others(file, sample, by_sample):
    write(file, *rows("b", 1, 2), *rows("a", 1, 2, 3, 4), *rows("c", 1))
    options, asker = (
        ({"sample": sample}, sample) if by_sample else ({"num_frames": {"b": 3, "a": 2}}, "the count of frames")
    )
    assert validate_submission(file, **options) == [
        f"{file}: frame 3 of b missing: {asker} asks for 1 row",
        f"{file}, lines 6 to 7: a/00003.jpg to a/00004.jpg not asked for by {asker}",
        f"{file}, line 8: c/00001.jpg not asked for by {asker}",
    ]
    write(file, *rows("a", 1, 2))
    assert validate_submission(file, **options) == [f"{file}: no row of b: {asker} asks for 3 rows"]


def test_the_order_of_the_sample(file, sample):
    write(file, *rows("a", 1, 2), *rows("b", 1, 2, 3))
    assert validate_submission(file) == []
    assert validate_submission(file, sample) == [
        f"{file}, line 4: b/00001.jpg after a/00002.jpg, {sample} has them the other way round"
    ]


def test_holes_that_the_sample_has_are_none(file, sample):
    write(sample, *rows("a", 1, 3))
    assert write_submission(predict(a=3), file, sample) == [
        f"a: 1 row left out of 3 predicted frames, {sample} does not ask for them"
    ]
    assert validate_submission(file, sample) == []


def script(*arguments):
    command = [sys.executable, str(ROOT / "scripts" / "validate_submission.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_the_script(file, sample):
    write_submission(predict(a=2, b=3), file, sample)
    run = script(file, "--sample", sample)
    assert (run.returncode, run.stdout) == (0, f"{file}: 2 videos, 5 rows, no problem\n"), run.stderr[-2000:]
    write(file, *rows("a", 1, 3), *rows("b", 1, values="0,7"))
    run = script(file, "--sample", sample)
    assert run.returncode == 1, run.stderr[-2000:]
    assert run.stdout.splitlines() == validate_submission(file, sample)
    assert f"frames 2 to 3 of b missing: {sample} asks for 2 rows" in run.stdout


def test_the_script_knows_the_lengths_of_a_release(file, tmp_path):
    (tmp_path / "batch1").mkdir()
    names = tmp_path / "names_of_videos_in_each_test_set"
    names.mkdir()
    (names / "Valence_Arousal_Estimation_Challenge_test_set_release.txt").write_text("a\nb\nc\n")
    for video in "abc":
        write_video(tmp_path / "batch1" / f"{video}.mp4", num_frames=12)
    write_submission(predict(a=12, b=13, c=11), file)
    run = script(file, "--root", tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert run.stdout.splitlines() == [
        "remark: b ends with frame 13, the header of its media file says 12 frames",
        "remark: c ends with frame 11, the header of its media file says 12 frames",
        f"{file}: 3 videos, 36 rows, no problem",
    ]
    write_submission(predict(a=12, b=10), file)
    run = script(file, "--root", tmp_path)
    assert run.returncode == 1, run.stderr[-2000:]
    assert run.stdout.splitlines() == [
        f"{file}: frames 11 to 12 of b missing: the count of frames asks for 2 rows",
        f"{file}: no row of c: the count of frames asks for 12 rows",
    ]
