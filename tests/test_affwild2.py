import re
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from quirks import (
    ANNOTATIONS,
    NEW_CROPS,
    NO_CROP,
    NUM_FRAMES,
    OLD_CROPS,
    TEST_LIST,
    quirky_labels,
    write_quirky_release,
    write_timed_video,
)

from jca.affwild2 import load_affwild2, parse_annotation, read_annotation
from jca.corpus import CorpusError, logger


TIMES_HOLD = r"the header says 30\.00 frames a second, the timestamps {}: they hold"
LONGER = "43 rows are annotated, the video has 40 frames: rows beyond the video are left out"
SHORTER = "36 rows are annotated, the video has 40 frames: frames beyond the annotation are not labelled"

# of each split: name, media, frames a second, folder of crops, notes
ROWS = {
    "train": [
        ("1-30-640x360", "batch1/1-30-640x360.mp4", 30, OLD_CROPS, []),
        ("10-60-1280x720", "batch1/10-60-1280x720.mp4", 60, OLD_CROPS, []),
        ("10-60-1280x720_right", "batch1/10-60-1280x720.mp4", 60, OLD_CROPS, []),
        ("132-30-426x240", "batch1/132-30-426x240.avi", 30, OLD_CROPS, []),
        ("313", "batch2/313.mkv", 25, OLD_CROPS, [TIMES_HOLD.format("25.00"), "no audio", SHORTER]),
        (
            "46-30-484x360",
            "batch1/46-30-484x360.mp4",
            17,
            OLD_CROPS,
            [r"named 30 frames a second, the timestamps say 17\.00: they hold"],
        ),
        ("video10_1_left", "batch2/batch2/video10_1.mp4", 25, OLD_CROPS, []),
        ("video10_1_right", "batch2/batch2/video10_1.mp4", 25, OLD_CROPS, []),
        # 20 frames of 33 ms and 19 of 66 ms from the first to the last
        ("video2_left", "batch2/video2.mkv", 39 / 1.914, OLD_CROPS, [TIMES_HOLD.format("20.38"), "no audio"]),
        ("video59", "batch1/video59.avi", 17, OLD_CROPS, [LONGER]),
    ],
    "validation": [
        ("7", "batch1/7.avi", 25, OLD_CROPS, ["no audio"]),
        ("video94", "batch2/batch2/video94.mp4", 30, NEW_CROPS, [r"audio starts 0\.(4[5-9]|50) s after the video"]),
        ("video95", "batch2/batch2/video95.mkv", 30, NEW_CROPS, [r"audio starts 0\.(4[5-9]|50) s after the video"]),
        ("video96", "batch2/batch2/video96.mp4", 30, NEW_CROPS, [r"audio ends 0\.6[4-9] s before the video"]),
    ],
    "test": [
        ("video100", "batch2/video100.mp4", 30, NEW_CROPS, []),
        ("video101_left", "batch2/video101.mp4", 25, OLD_CROPS, []),
        ("video101_right", "batch2/video101.mp4", 25, OLD_CROPS, []),
    ],
}
NUM_ROWS = {place.split("/")[1]: quirk.rows for place, quirk in ANNOTATIONS.items()}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_quirky_release(tmp_path_factory.mktemp("release"))


@pytest.fixture
def copy(release, tmp_path):
    """The release, to be spoilt."""
    return shutil.copytree(release, tmp_path / "release")


def annotation(root, name):
    return root / "VA_Estimation_Challenge/Train_Set" / f"{name}.txt"


def rewrite(path, lines):
    """Line numbers from 1 and what stands there from now on."""
    text = path.read_text().split("\n")
    for number, line in lines.items():
        text[number - 1] = line
    path.write_text("\n".join(text))


def matches(patterns, texts):
    """Each text is what one pattern says, in any order."""
    texts = list(texts)
    for pattern in patterns:
        (found,) = (text for text in texts if re.fullmatch(pattern, text))
        texts.remove(found)
    return not texts


@pytest.mark.parametrize("split", ROWS)
def test_a_row_for_each_annotation_file(release, split):
    dataset = load_affwild2(release, split)
    assert list(dataset["video_id"]) == [name for name, *_ in ROWS[split]]
    for row, (name, media, fps, crops, notes) in zip(dataset, ROWS[split], strict=True):
        assert row["subject"] == name
        assert row["recording"] == Path(media).stem  # both subjects of a video are of one
        assert row["media_path"] == str(release / media)
        assert row["crops_dir"] == str(release / crops / name)
        assert row["fps"] == pytest.approx(fps, rel=1e-3)
        assert len(row["notes"]) == len(notes)
        assert matches(notes, row["notes"]), row["notes"]
        labels = np.full((NUM_FRAMES, 2), -5.0) if split == "test" else quirky_labels(name, NUM_ROWS[name])
        assert row["num_frames"] == len(labels)
        np.testing.assert_allclose(row["valence"], labels[:, 0], atol=1e-6)
        np.testing.assert_allclose(row["arousal"], labels[:, 1], atol=1e-6)
        np.testing.assert_array_equal(row["labelled"], labels[:, 0] != -5)


def test_the_media_are_what_the_rows_say(release):
    for split in ROWS:
        for row in load_affwild2(release, split):
            with av.open(row["media_path"]) as container:
                times = [frame.time for frame in container.decode(video=0)]
            assert len(times) == NUM_FRAMES
            assert row["fps"] == pytest.approx((len(times) - 1) / (times[-1] - times[0]), rel=1e-3)


def test_a_test_video_is_as_long_as_its_media(copy):
    (copy / "batch2/video100.mp4").unlink()
    write_timed_video(copy / "batch2/video100.mkv", range(0, 200 * 40, 40), claimed_fps=25)
    row = load_affwild2(copy, "test")[0]
    assert row["notes"] == ["no audio", f"about {row['num_frames']} frames, by its duration"]
    assert abs(row["num_frames"] - 200) <= 1  # Matroska does not count its frames
    assert len(row["valence"]) == len(row["labelled"]) == row["num_frames"]
    assert not row["labelled"].any()


def test_nothing_is_decoded(release, copy):
    for path in copy.rglob("*.jpg"):
        path.write_bytes(b"no picture")
    for path in copy.rglob("*.mp4"):  # sizes and times stand in the header behind
        data = bytearray(path.read_bytes())
        begin, end = data.index(b"mdat") + 4, data.rindex(b"moov") - 4
        data[begin:end] = np.random.default_rng(0).bytes(end - begin)
        path.write_bytes(data)
    with av.open(str(copy / "batch1/1-30-640x360.mp4")) as container, pytest.raises(av.error.FFmpegError):
        list(container.decode(video=0))
    for split in ROWS:
        for row, whole in zip(load_affwild2(copy, split), load_affwild2(release, split), strict=True):
            for name in ("media_path", "crops_dir"):
                row[name] = row[name].replace(str(copy), str(release))
            np.testing.assert_equal(row, whole)


def test_folders_of_crops(copy):
    """Each video's own, wherever the archives were unpacked; without any the frames are the faces."""
    for folder in (copy / OLD_CROPS).iterdir():
        folder.rename(copy / "cropped_aligned" / folder.name)
    (copy / OLD_CROPS).rmdir()
    nested = copy / NEW_CROPS / NEW_CROPS
    (copy / NEW_CROPS).rename(copy / "new")
    nested.parent.mkdir()
    (copy / "new").rename(nested)
    train, validation = (load_affwild2(copy, split) for split in ("train", "validation"))
    assert train[0]["crops_dir"] == str(copy / "cropped_aligned/1-30-640x360")
    assert [row["crops_dir"] for row in validation][1:] == [str(nested / f"video{n}") for n in (94, 95, 96)]
    assert not any((nested / "video94" / f"{index + 1:05d}.jpg").exists() for index in NO_CROP)
    shutil.rmtree(copy / "cropped_aligned")
    shutil.rmtree(copy / NEW_CROPS)
    assert [row["crops_dir"] for row in load_affwild2(copy, "validation")] == [None] * 4


def test_streaming_has_the_same_rows_in_a_shard_each(release):
    dataset, streamed = load_affwild2(release, "train"), load_affwild2(release, "train", streaming=True)
    assert isinstance(streamed, IterableDataset)
    assert streamed.num_shards == len(dataset)
    np.testing.assert_equal(list(streamed), list(dataset))
    nodes = [[row["video_id"] for row in split_dataset_by_node(streamed, rank, 2)] for rank in range(2)]
    assert min(map(len, nodes)) == len(dataset) // 2
    assert sorted(nodes[0] + nodes[1]) == list(dataset["video_id"])


def test_delay_is_in_seconds_of_each_video(release):
    early = load_affwild2(release, "train")
    for row, late in zip(early, load_affwild2(release, "train", delay={"valence": 0.4, "arousal": 0}), strict=True):
        frames = round(0.4 * row["fps"])
        np.testing.assert_array_equal(late["valence"][:-frames], row["valence"][frames:])
        np.testing.assert_array_equal(late["valence"][-frames:], np.full(frames, -5))
        np.testing.assert_array_equal(late["arousal"], row["arousal"])
        np.testing.assert_array_equal(late["labelled"], (late["valence"] != -5) & (late["arousal"] != -5))
    with pytest.raises(ValueError, match=r"delay=-1 s of valence: annotators react late, give 0 or more"):
        load_affwild2(release, "train", delay=-1)


def spoil(root):
    """One of everything that can be wrong with a release; a pattern of the report for each."""
    rewrite(annotation(root, "1-30-640x360"), {9: "high,0.1", 11: "0.1,1.5", 13: "", 15: "nan,0.1", 17: "0,1,0,2"})
    annotation(root, "video59").write_bytes(b"")
    annotation(root, "video2_left").write_text("valence,arousal\n")
    annotation(root, "10-60-1280x720").write_bytes(np.random.default_rng(0).bytes(3000))
    annotation(root, "10-60-1280x720_right").write_bytes(bytes(3000))
    (root / "batch2/batch2/video10_1.mp4").write_bytes(b"no media" * 100)
    (root / "batch2/313.mkv").unlink()
    shutil.rmtree(root / OLD_CROPS / "132-30-426x240")
    with annotation(root, "46-30-484x360").open("a") as file:
        file.write("0.1,0.2\n" * 35)
    lines = {9: "'high,0.1'", 11: "'0.1,1.5'", 13: "''", 15: "'nan,0.1'", 17: "'0,1,0,2'"}
    return [
        *(
            rf".*/1-30-640x360\.txt, line {line}: {text} is not two numbers `valence,arousal` in \[-1, 1\], or -5"
            for line, text in lines.items()
        ),
        r".*/Train_Set/video59\.txt: is empty",
        r".*/Train_Set/video2_left\.txt: has no row",
        r".*/Train_Set/10-60-1280x720\.txt: can not be read as text .*",
        r".*/10-60-1280x720_right\.txt, line 1: '(\\x00){80}' is not the header `valence,arousal`",
        r"'.*/video10_1\.mp4' can not be opened as media .*: give a file that FFmpeg can play\.",
        r".*/Train_Set/313\.txt has no media file: there is no .*/batch\*/313\.\*",
        r".*/132-30-426x240\.txt has no face crops: there is no .*/cropped_aligned\*/132-30-426x240/",
        r".*/46-30-484x360\.txt: 75 rows are annotated, the video has 40 frames: is it the annotation of another video\?",
    ]


def test_one_report_of_everything_that_is_wrong(copy):
    patterns = spoil(copy)
    with pytest.raises(CorpusError) as error:
        load_affwild2(copy, "train")
    assert matches(patterns, error.value.problems), "\n".join(error.value.problems)
    assert str(error.value).startswith(f"{copy}: {len(patterns)} problems\n")
    assert all(problem in str(error.value) for problem in error.value.problems)
    assert len(load_affwild2(copy, "validation")) == 4  # another split is none the worse


def test_skip_uses_the_rest_and_logs_the_report(release, copy, caplog):
    patterns = spoil(copy)
    whole = {row["video_id"]: row for row in load_affwild2(release, "train")}
    with caplog.at_level("WARNING", logger.name):
        rows = {row["video_id"]: row for row in load_affwild2(copy, "train", on_error="skip")}
    (record,) = caplog.records
    report = [line.strip() for line in record.getMessage().split("\n")]
    assert report[0] == f"{copy}: {len(patterns)} problems"
    assert matches(patterns, report[1:-1])
    assert list(rows) == ["1-30-640x360", "132-30-426x240", "46-30-484x360"]
    assert rows["132-30-426x240"]["notes"] == ["no face crops: no frame has a face"]
    assert any("the annotation of another video?" in note for note in rows["46-30-484x360"]["notes"])
    # a bad line is a frame that is not labelled, and moves none of the others
    bad = np.isin(np.arange(NUM_FRAMES), [7, 9, 11, 13, 15])
    row, before = rows["1-30-640x360"], whole["1-30-640x360"]
    np.testing.assert_array_equal(row["labelled"], before["labelled"] & ~bad)
    np.testing.assert_array_equal(row["valence"], np.where(bad, -5, before["valence"]))
    np.testing.assert_array_equal(row["arousal"], np.where(bad, -5, before["arousal"]))
    with pytest.raises(ValueError, match='on_error=\'ignore\' is not known. Choose "raise" or "skip"'):
        load_affwild2(copy, "train", on_error="ignore")


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_split_without_videos(copy, tmp_path, on_error):
    def problem(root, split):
        with pytest.raises(CorpusError) as error:
            load_affwild2(root, split, on_error=on_error)
        (problem,) = error.value.problems
        return problem

    root_must_be = "root must be the folder that holds VA_Estimation_Challenge/, batch1/ and cropped_aligned/"
    for root in (copy / "batch1", tmp_path / "nowhere"):
        folder = root / "VA_Estimation_Challenge/Train_Set"
        assert problem(root, "train") == f"{folder}: no annotations; {root_must_be}"
        assert "there is no list of the test videos" in problem(root, "test")
    shutil.rmtree(copy / "VA_Estimation_Challenge/Validation_Set")
    assert "Validation_Set: no annotations" in problem(copy, "validation")
    (copy / TEST_LIST).write_text("\n\n")
    assert problem(copy, "test") == f"{copy / TEST_LIST}: names no video"
    for path in copy.glob("batch*/*.mkv"):
        path.unlink()
    for path in annotation(copy, "313").parent.glob("*.txt"):
        if path.stem != "313":
            path.unlink()
    assert "313.txt has no media file" in problem(copy, "train")  # nothing is left to skip to


def test_unknown_split(release):
    with pytest.raises(ValueError, match="split='dev' is not known. Choose one of train, validation, test"):
        load_affwild2(release, "dev")


@pytest.mark.parametrize(
    "text",
    [
        "valence,arousal\n0.1,0.2\n-5,-5\n-5,0.3\n",
        "valence,arousal\r\n0.1,0.2\r\n-5.0,-5\r\n-5,0.3\r\n\r\n",
        "\ufeffValence, Arousal\n0.1, 0.2\n-5,-5.00\n -5 , 0.3 ",
        "AROUSAL,VALENCE\n0.2,0.1\n-5,-5\n0.3,-5.0",
        "0.1,0.2\n-5,-5\n-5,0.3",
        "valence,arousal,\n0.1,0.2,\n-5,-5,\n-5,0.3,\n",
        "valence\tarousal\n0.1\t0.2\n-5\t-5\n-5\t0.3\n",
        "frame,valence,arousal\n1,0.1,0.2\n2,-5,-5\n3,-5,0.3\n",
    ],
)
def test_variants_of_annotations(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text.encode())
    labels = read_annotation(tmp_path / "a.txt")
    assert labels.dtype == np.float32
    np.testing.assert_allclose(labels, [[0.1, 0.2], [-5, -5], [-5, 0.3]], atol=1e-6)


@pytest.mark.parametrize(
    "line", ["", "  ", "high,0.1", "0.1", "0.1,", "0.1;0.2", "0,1,0,2", "1.01,0", "nan,0.1", "-4,0"]
)
def test_one_bad_line_among_good_ones(tmp_path, line):
    path = tmp_path / "a.txt"
    path.write_text(f"valence,arousal\n0.1,0.2\n{line}\n0.3,0.4\n")
    labels, (problem,) = parse_annotation(path)
    assert problem == f"{path}, line 3: {line!r} is not two numbers `valence,arousal` in [-1, 1], or -5"
    np.testing.assert_allclose(labels, [[0.1, 0.2], [-5, -5], [0.3, 0.4]], atol=1e-6)


def test_read_annotation_names_every_bad_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("valence,arousal\n0.1,0.2\n0.1;0.2\n\n-1.01,0\n0.1\n1,-1\n-4,0\ninf,0\n")
    with pytest.raises(CorpusError) as error:
        read_annotation(path)
    assert [re.search(r"line (\d+)", problem)[1] for problem in error.value.problems] == ["3", "4", "5", "6", "8", "9"]
    path.write_text("valence,arousal\n0,1,0,2\n0,3,0,4\n")  # decimal commas throughout
    with pytest.raises(CorpusError, match="2 problems"):
        read_annotation(path)
    path.write_text("valence;arousal\n0.1;0.2\n")
    with pytest.raises(CorpusError, match="line 1: 'valence;arousal' is not the header `valence,arousal`"):
        read_annotation(path)
    with pytest.raises(CorpusError, match="nowhere.txt: can not be read as text"):
        read_annotation(tmp_path / "nowhere.txt")


@pytest.mark.filterwarnings("error")
def test_a_header_alone_has_no_row(tmp_path):
    (tmp_path / "a.txt").write_text("valence,arousal\n")
    assert read_annotation(tmp_path / "a.txt").shape == (0, 2)
