from fractions import Fraction

import av
import numpy as np
import pytest
from media import write_video

from jca.corpus import ROW, CorpusError, frame_labels
from jca.csv_corpus import frame_times, interpolate, load_csv


def write_frames(path, milliseconds):
    """A video with B-frames of which each frame is shown at a given time."""
    pattern = np.random.default_rng(0).integers(0, 40, (48, 64, 3), np.uint8)  # moves little: B-frames pay
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.max_b_frames = 2
        video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        for index, time in enumerate(milliseconds):
            frame = av.VideoFrame.from_ndarray(pattern + np.uint8(index), format="rgb24")
            frame.pts, frame.time_base = int(time), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return str(path)


def write_csv(path, lines, header="media,time,valence,arousal"):
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def ramp(media, seconds, rate=10, extra=""):
    """Lines of a valence that rises by 0.2 a second from -0.9, and an arousal that falls."""
    return [
        f"{media},{k / rate:.2f},{-0.9 + 0.2 * k / rate:.6f},{0.9 - 0.2 * k / rate:.6f}{extra}"
        for k in range(round(seconds * rate) + 1)
    ]


def problems_of(path, **options):
    with pytest.raises(CorpusError) as raised:
        load_csv(path, **options)
    return [problem.removeprefix(f"{path}, ") for problem in raised.value.problems]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Media at 25 and 30 frames a second and at none that is constant, 3 s each."""
    folder = tmp_path_factory.mktemp("corpus")
    write_video(folder / "a.mp4", 75, 25)
    write_video(folder / "b.mp4", 90, 30)
    steps = np.random.default_rng(0).integers(15, 80, 60)
    write_frames(folder / "vfr.mp4", 700 + np.cumsum(steps))  # starts late, too
    return folder


@pytest.fixture
def corpus(folder, tmp_path):
    """A folder of its own with the media of `folder`."""
    for media in folder.glob("*.mp4"):
        (tmp_path / media.name).symlink_to(media)
    return tmp_path


# Frame times ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_frame_times_are_those_at_which_frames_are_shown(tmp_path, suffix):
    shown = 1480 + 40 * np.arange(50) + np.random.default_rng(0).integers(0, 30, 50)
    path = write_frames(tmp_path / f"video.{suffix}", shown)
    with av.open(path) as container:
        stored = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert stored != sorted(stored)
    assert min(stored) > 0
    np.testing.assert_allclose(frame_times(path), (shown - shown[0]) / 1000, atol=1e-6)


def test_what_an_edit_list_cuts_away_is_no_frame(tmp_path):
    source, cut = write_frames(tmp_path / "source.mp4", 40 * np.arange(50)), tmp_path / "cut.mp4"
    with av.open(source) as old, av.open(str(cut), "w", options={"avoid_negative_ts": "disabled"}) as new:
        video = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                earlier = int(Fraction(40 * 10, 1000) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - earlier, packet.dts - earlier, video
                new.mux(packet)
    with av.open(str(cut)) as container:
        decoded = [frame.time for frame in container.decode(video=0)]
    assert len(decoded) == 40
    np.testing.assert_allclose(frame_times(cut), np.array(decoded) - decoded[0], atol=1e-9)


def test_frames_without_a_clock_are_refused(tmp_path):
    path = write_frames(tmp_path / "raw.h264", 40 * np.arange(10))
    with pytest.raises(ValueError, match="raw.h264' has no timestamps: store it in a container that has them"):
        frame_times(path)


# Labels of frames ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.mp4", "b.mp4", "vfr.mp4"])
def test_a_ramp_at_10_hz_is_the_ramp_at_the_frames(corpus, name):
    (row,) = load_csv(write_csv(corpus / "c.csv", ramp(name, 3)))
    with av.open(str(corpus / name)) as container:
        times = np.array([frame.time for frame in container.decode(video=0)])
    times -= times[0]
    labels = frame_labels(row)
    assert len(labels) == row["num_frames"] == len(times) >= 60
    annotated = times <= 3.0
    np.testing.assert_allclose(labels[annotated, 0], -0.9 + 0.2 * times[annotated], atol=1e-6)
    np.testing.assert_allclose(labels[annotated, 1], 0.9 - 0.2 * times[annotated], atol=1e-6)
    assert (row["labelled"] == annotated).mean() > 0.98  # half a frame beyond 3 s may be labelled


def test_annotation_at_the_frames_themselves_is_kept_as_it_is(corpus):
    values = np.random.default_rng(0).uniform(-1, 1, (75, 2)).round(3)
    lines = [f"a.mp4,{0.04 * k:.2f},{valence},{arousal}" for k, (valence, arousal) in enumerate(values)]
    lines[30] = "a.mp4,1.20,-5,-5.0"
    labels = frame_labels(load_csv(write_csv(corpus / "c.csv", lines))[0])
    values[30] = -5
    np.testing.assert_allclose(labels, values, atol=1e-6)


def test_only_between_two_annotated_neighbours():
    times = np.arange(60) / 10
    moments = np.array([1.0, 1.5, 2.0, 2.5, 3.5, 4.6, 5.0])
    values = np.array([0.1, 0.6, -5.0, 0.4, 0.2, 0.5, 0.3])
    expected = np.full(60, -5.0)
    expected[10:16] = np.linspace(0.1, 0.6, 6)  # to the last before the moment that is not annotated
    expected[25:36] = np.linspace(0.4, 0.2, 11)  # over 1.0 s, and not over the 1.1 s after it
    expected[46:51] = np.linspace(0.5, 0.3, 5)
    np.testing.assert_allclose(interpolate(times, moments, values, slack=0.05), expected, atol=1e-9)
    # beyond the ends by the slack and no more
    beyond = interpolate(np.array([0.94, 0.96, 5.04, 5.06]), moments, values, slack=0.05)
    np.testing.assert_allclose(beyond, [-5, 0.1, 0.3, -5])
    np.testing.assert_allclose(interpolate(times[:3], np.array([0.1]), np.array([0.7]), 0.05), [-5, 0.7, -5])


def test_half_a_frame_beyond_the_annotation_is_labelled(corpus):
    (row,) = load_csv(write_csv(corpus / "c.csv", ["a.mp4,0.052,0.5,0.5", "a.mp4,1.028,0.5,0.5"]))
    np.testing.assert_array_equal(np.flatnonzero(row["labelled"]), np.arange(1, 27))  # 0.04 s to 1.04 s


@pytest.mark.parametrize("empty", ["", "-5", "nan", "-5.0", "NaN"])
def test_valence_may_be_annotated_where_arousal_is_not(corpus, empty):
    lines = ramp("b.mp4", 2.9)
    lines[10] = f"b.mp4,1.0,-0.7,{empty}"
    (row,) = load_csv(write_csv(corpus / "c.csv", lines))
    missing = np.arange(90)[28:33]  # between 0.9 s and 1.1 s
    np.testing.assert_array_equal(np.flatnonzero(row["arousal"][:88] == -5), missing)
    np.testing.assert_array_equal(np.flatnonzero(~row["labelled"][:88]), missing)
    assert (row["valence"][:88] != -5).all()


def test_annotators_are_late_in_each_output_by_its_own(corpus):
    path = write_csv(corpus / "c.csv", ramp("a.mp4", 3))
    now, late = frame_labels(load_csv(path)[0]), frame_labels(load_csv(path, delay={"valence": 0.4, "arousal": 1.2})[0])
    np.testing.assert_array_equal(late[:65, 0], now[10:, 0])
    np.testing.assert_array_equal(late[:45, 1], now[30:, 1])
    assert (late[65:, 0] == -5).all()
    assert (late[45:, 1] == -5).all()


# Rows ----------------------------------------------------------------------------------------------------------------


def test_a_row_for_each_subject_of_a_media_file(corpus):
    for name in ("crops/left", "crops/right"):
        (corpus / name).mkdir(parents=True)
    header = "comment,media,subject,split,crops_dir,recording,time,valence,arousal"
    lines = [  # the two subjects' lines in turn
        f"x,./a.mp4,{who},{split},crops/{who},,{time},{value},{value}"
        for time in (0, 0.5, 1)
        for who, split, value in (("left", "train", 0.25), ("right", "dev", -0.5))
    ]
    lines += [f"x,{corpus / 'b.mp4'},,Train,,talk,0,0.1,0.2"]
    path = write_csv(corpus / "c.csv", lines, header)
    dataset = load_csv(path)
    assert dataset.features == ROW
    left, right, alone = dataset
    assert [row["video_id"] for row in dataset] == ["a_left", "a_right", "b"]
    assert [row["subject"] for row in dataset] == ["left", "right", "b"]
    assert [row["media_path"] for row in dataset] == [str(corpus / n) for n in ("a.mp4", "a.mp4", "b.mp4")]
    assert [row["crops_dir"] for row in dataset] == [str(corpus / "crops/left"), str(corpus / "crops/right"), None]
    assert [row["recording"] for row in dataset] == ["a.mp4", "a.mp4", "talk"]
    assert [row["fps"] for row in dataset] == pytest.approx([25, 25, 30])
    assert (left["valence"][:26] == 0.25).all()
    assert (right["valence"][:26] == -0.5).all()
    assert alone["labelled"].sum() == 1
    assert list(alone["notes"]) == ["no audio"]
    # ids do not change with the split
    assert list(load_csv(path, "train")["video_id"]) == ["a_left", "b"]
    assert list(load_csv(path, "dev")["video_id"]) == ["a_right"]
    assert "the split 'test': choose one of dev, train" in problems_of(path, split="test")[0]


def test_a_split_needs_its_column(corpus):
    path = write_csv(corpus / "c.csv", ramp("a.mp4", 3))
    assert problems_of(path, split="train", on_error="skip") == [
        f"{path}: no line is of the split 'train': add the column `split` with its name"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "media,time,valence,arousal\nü b.mp4,0,0.5,-0.25\nü b.mp4,1,0.5,-0.25\n",
        '\ufeffmedia;time;valence;arousal\r\n"ü b.mp4";0;0,5;-0,25\r\n"ü b.mp4";1,0;0,5;-0,25\r\n',
        "Arousal\tTIME\t Valence \t media\tmedia type\n-0.25\t0\t 0.5\tü b.mp4 \tx\n\n-0.25\t1e0\t.5\tü b.mp4\tx\n\n\n",
        '"media", "time", "valence", "arousal"\r"ü b.mp4",0,0.5,-0.25\r"ü b.mp4",1,0.5,-0.25',
    ],
)
def test_variants_of_csv(corpus, text):
    folder = corpus / "größe; a,b"
    folder.mkdir()
    (folder / "ü b.mp4").symlink_to(corpus / "b.mp4")
    (folder / "é.csv").write_bytes(text.encode())
    (row,) = load_csv(str(folder / "é.csv"))
    assert row["video_id"] == "ü b"
    np.testing.assert_array_equal(frame_labels(row)[:31], [[0.5, -0.25]] * 31)
    assert not row["labelled"][31:].any()


# What is wrong -------------------------------------------------------------------------------------------------------


def test_all_problems_are_in_one_report_with_their_lines(corpus):
    (corpus / "no.mp4").write_text("no media")
    (corpus / "other").mkdir()
    (corpus / "other/a.mp4").symlink_to(corpus / "a.mp4")
    lines = [
        "a.mp4,0.0,0.1,high",  # 2
        "a.mp4,0.1,35,0.1",
        "a.mp4,0.3,0.1,-1.01",
        "a.mp4,0.2,0.1,0.1",
        "a.mp4,0.2,0.1,0.1",
        "",  # 7
        "b.mp4,-0.1,0.1,0.1",
        "b.mp4,,0.1,0.1",
        "b.mp4,0.1,0.1",
        ",0.1,0.1,0.2",
        "b.mp4,inf,,",  # 12
        "missing.mp4,0,0.1,0.1",
        "no.mp4,0,0.1,x",
        "other/a.mp4,0,0.1,0.1",
        "vfr.mp4,0,-5,0.1",
        "vfr.mp4,3000,-5,0.1",
    ]
    path = write_csv(corpus / "c.csv", lines)
    expected = [
        "line 2: arousal 'high' is not a number",
        "line 3: valence '35' is outside [-1, 1] and not -5: rescale valence to [-1, 1]",
        "line 4: arousal '-1.01' is outside [-1, 1] and not -5: rescale arousal to [-1, 1]",
        "line 5: time 0.2 s, and line 4 before it has 0.3 s: sort the lines of a subject by time, each time once",
        "line 6: time 0.2 s, and line 5 before it stands there too: sort",
        "line 8: time '-0.1': give seconds from the first video frame, 0 or more",
        "line 9: time '': give seconds",
        "line 10: 'b.mp4,0.1,0.1' has 3 cells, the header 4",
        "line 11: media is empty",
        "line 12: time 'inf': give seconds",
        f"line 13: There is no file '{corpus / 'missing.mp4'}'",
        "line 14: '",
        "line 14: arousal 'x' is not a number",
        f"line 15: the video_id 'a' of {corpus / 'other/a.mp4'} and 'a' is taken by line 2: give each its own",
        f"line 16: {corpus / 'vfr.mp4'} is annotated up to 3000 s and ends at ",
    ]
    found = problems_of(path)
    assert [problem[: len(start)] for problem, start in zip(found, expected, strict=False)] == expected
    assert len(found) == len(expected)
    assert "no.mp4' can not be opened as media" in found[11]
    assert "are the times in seconds" in found[14]


def test_one_id_and_one_folder_of_crops_for_a_subject(corpus):
    lines = ["a.mp4,0,0,0,one,", "b.mp4,0,0,0,one,", "vfr.mp4,0,0,0,two,", "vfr.mp4,1,0,0,three,crops"]
    found = problems_of(write_csv(corpus / "c.csv", lines, "media,time,valence,arousal,video_id,crops_dir"))
    assert len(found) == 3
    assert found[0].startswith(f"line 3: the video_id 'one' of {corpus / 'b.mp4'} and 'b' is taken by line 2")
    assert found[1].startswith("line 5: crops_dir 'crops' is not the '' of line 4: give one for a subject")
    assert found[2].startswith("line 5: video_id 'three' is not the 'two' of line 4: give one for a subject")


def test_a_folder_of_crops_must_be_there(corpus):
    path = write_csv(corpus / "c.csv", ["a.mp4,0,0,0,faces"], "media,time,valence,arousal,crops_dir")
    assert problems_of(path) == [f"line 2: there is no folder of face crops {corpus / 'faces'}"]


def test_a_file_that_is_no_such_csv(corpus):
    found = problems_of(write_csv(corpus / "c.csv", ["a.mp4,1,2,3"], "file,Time,valence,valence"))
    assert found == [
        "line 1: the column `media` is missing",
        "line 1: the column `arousal` is missing",
        "line 1: there are two columns `valence`",
        "line 1: the columns are file, time, valence, valence",
    ]
    for name, content in {
        "empty": b"",
        "latin": b"media,time,valence,arousal\n\xfc.mp4,0,0,0\n",
        "binary": b"\xff\xfe\0",
    }.items():
        (corpus / name).write_bytes(content)
    assert problems_of(corpus / "empty")[-1] == "line 1: the columns are none"
    for name in ("latin", "binary", "missing"):
        (problem,) = problems_of(corpus / name)
        assert "can not be read" in problem
        assert "give a CSV file in UTF-8" in problem
    assert problems_of(write_csv(corpus / "c.csv", [])) == ["no video was found"]
    with pytest.raises(ValueError, match="on_error='ignore' is not known"):
        load_csv(write_csv(corpus / "c.csv", ramp("a.mp4", 3)), on_error="ignore")


@pytest.mark.parametrize(
    "bad",
    [
        "a.mp4,1.00,x,0.7",
        "a.mp4,1.00,35,0.7",
        "a.mp4,x,0.1,0.7",
        "a.mp4,0.5,0.1,0.7",
        "a.mp4,1.00,0.1",
        ",1.00,0.1,0.7",
    ],
)
def test_what_is_left_of_a_bad_corpus(corpus, bad):
    lines = [*ramp("missing.mp4", 1), *ramp("a.mp4", 2.9), *ramp("b.mp4", 2.9)]
    lines[11 + 10] = bad  # in place of 1.0 s
    path = write_csv(corpus / "c.csv", lines)
    with pytest.raises(CorpusError):
        load_csv(path)
    rows = load_csv(path, on_error="skip")
    assert list(rows["video_id"]) == ["a", "b"]
    unknown = np.flatnonzero(~rows[0]["labelled"][:73])
    np.testing.assert_array_equal(unknown, [23, 24, 25, 26, 27])  # 0.92 s to 1.08 s
    times = np.delete(np.arange(73), unknown) / 25
    np.testing.assert_allclose(np.delete(rows[0]["valence"][:73], unknown), -0.9 + 0.2 * times, atol=1e-6)
    assert rows[1]["labelled"][:88].all()
