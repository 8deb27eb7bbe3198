import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import tiny_processor
from faces import draw_face
from media import write_video
from transformers import AutoModel, pipeline

import jca
from detection_jca import Detections
from pipeline_jca import clips_to_frames, read_ahead, smooth, timeline
from sources_jca import MediaError


FLAT = sorted(path.stem for path in Path(__file__).parents[1].glob("*_jca.py"))
COLUMNS = ["time", "frame", "face", "valence", "arousal", "box", "face_detected", "audio_present", "face_quality"]


@pytest.fixture(scope="module")
def pipe(model_folder):
    return pipeline("audio-visual-emotion", model=model_folder)


# Rows -----------------------------------------------------------------------------------------------------------------


def test_one_json_row_for_each_frame(pipe, video):
    rows = pipe(video)
    assert len(rows) == 600
    assert [list(row) for row in rows] == [COLUMNS] * 600
    assert [row["frame"] for row in rows] == list(range(600))
    assert rows[45]["time"] == pytest.approx(1.5, abs=1e-3)
    assert rows[0]["box"] == pytest.approx([8, 0, 56, 48], abs=2.5)  # to a pixel of the 16 that a crop has
    assert {row["face_detected"] for row in rows} == {False}  # nobody has looked for one
    assert {row["audio_present"] for row in rows} == {True}
    assert all(-1 <= row["valence"] <= 1 and -1 <= row["arousal"] <= 1 for row in rows)
    assert json.loads(json.dumps(rows)) == rows


@pytest.mark.parametrize("fps", [12, 25, 60])
def test_rows_of_another_frame_rate(pipe, tmp_path, fps):
    rows = pipe(write_video(tmp_path / "video.mp4", 3 * fps, fps=fps))
    assert len(rows) == 3 * fps
    assert rows[-1]["time"] == pytest.approx((3 * fps - 1) / fps, abs=1e-3)
    assert not any(row["audio_present"] for row in rows)


@torch.no_grad()
@pytest.mark.parametrize("hop", [4, 32])
def test_rows_are_the_models_outputs_at_the_ends_of_clips(pipe, model_folder, video, hop):
    model, processor = AutoModel.from_pretrained(model_folder), tiny_processor()
    logits = model(**processor(videos=video, hop=hop)).logits
    rows = pipe(video, hop=hop)
    ends = processor.plan(600, hop)
    checked = 0
    for window, values in zip(ends, logits, strict=True):
        for end, (valence, arousal) in zip(window, values.tolist(), strict=True):
            if end < 600:
                assert rows[end]["valence"] == pytest.approx(np.clip(valence, -1, 1), abs=1e-5)
                assert rows[end]["arousal"] == pytest.approx(np.clip(arousal, -1, 1), abs=1e-5)
                checked += 1
    assert checked == 600 // hop


def test_lists_bytes_and_batches_give_the_same(pipe, video, silent_video):
    expected = [pipe(video), pipe(silent_video)]
    for got in (pipe([video, Path(silent_video).read_bytes()]), pipe([video, silent_video], batch_size=3)):
        for rows, wanted in zip(got, expected, strict=True):
            assert len(rows) == len(wanted)
            np.testing.assert_allclose([r["valence"] for r in rows], [r["valence"] for r in wanted], atol=1e-5)


def test_save_and_load(pipe, tmp_path, silent_video):
    pipe.save_pretrained(tmp_path)
    assert pipeline("audio-visual-emotion", model=str(tmp_path))(silent_video) == pipe(silent_video)


def test_errors(pipe, video):
    with pytest.raises(ValueError, match="Choose one of 1, 2, 4, 8, 16, 32"):
        pipe(video, hop=5)
    with pytest.raises(
        TypeError, match=r"\['window'\] are no arguments of this pipeline: it takes hop, smoothing, faces"
    ):
        pipe(video, window=3)
    with pytest.raises(ValueError, match="smoothing=20 must be an odd number of frames"):
        pipe(video, smoothing=20)
    with pytest.raises(ValueError, match=r"smoothing names \['joy'\]"):
        pipe(video, smoothing={"joy": 3})
    with pytest.raises(FileNotFoundError, match=r"There is no file 'nothing\.mp4'"):
        pipe("nothing.mp4")


# Several faces, and streams -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """22 s: nobody, then one person from second 2, a second one from 8 to 12; a cut at 18 to one of them alone."""

    def picture(index):
        seconds, out = index / 30, np.full((180, 320, 3), (90, 110, 120), np.uint8)
        if seconds >= 18:
            out[:] = (160, 60, 40)
            out[:, ::8] = 20
            draw_face(out, 4, (160, 90), 110)
        elif seconds >= 2:
            draw_face(out, 4, (90 + 10 * np.sin(seconds), 90), 110)
            if 8 <= seconds < 12:
                draw_face(out, 11, (240, 95), 100)
        return out

    waveform = np.random.default_rng(0).normal(0, 0.1, 44100 * 22).astype(np.float32)
    path = tmp_path_factory.mktemp("people") / "people.mp4"
    return write_video(path, 22 * 30, size=(320, 180), picture=picture, waveform=waveform)


@pytest.fixture(scope="module")
def people_rows(pipe, people):
    return pipe(people, faces="detect")


def seconds_of(rows, face):
    times = [row["time"] for row in rows if row["face"] == face]
    return (min(times), max(times), len(times)) if times else None


def test_rows_of_several_faces(people_rows):
    assert sorted({row["frame"] for row in people_rows}) == list(range(660))  # every frame has a row
    order = [(row["frame"], row["face"]) for row in people_rows]
    assert order == sorted(order, key=lambda pair: (pair[0], -1 if pair[1] is None else pair[1]))
    assert len(order) == len(set(order))
    faces = [face for face in dict.fromkeys(row["face"] for row in people_rows) if face is not None]
    assert faces == [0, 1, 2]
    # faces are looked for every half second, and confirmed by a second look
    assert seconds_of([row for row in people_rows if row["time"] < 10], None)[:2] == pytest.approx((0, 2), abs=0.7)
    assert seconds_of(people_rows, 0)[:2] == pytest.approx((2, 18), abs=0.7)
    assert seconds_of(people_rows, 1)[:2] == pytest.approx((8, 12), abs=0.7)
    assert seconds_of(people_rows, 2)[:2] == pytest.approx((18, 22), abs=0.3)  # after the cut
    middle = {row["face"]: row for row in people_rows if row["frame"] == 300}
    for face, center in ((0, 90 + 10 * np.sin(10)), (1, 240)):
        row = middle[face]
        assert row["face_detected"]
        assert 0 < row["face_quality"] <= 1
        assert (row["box"][0] + row["box"][2]) / 2 == pytest.approx(center, abs=8)
    nobody = [row for row in people_rows if row["face"] is None]
    assert {(row["box"], row["face_detected"], row["face_quality"]) for row in nobody} == {(None, False, None)}
    # each is predicted on its own
    both = [row["valence"] for row in people_rows if row["frame"] == 300]
    assert both[0] != both[1]


def test_frames_that_no_clip_uses_are_not_looked_at(pipe, video):
    looked = []

    def detector(picture):
        looked.append(picture.shape)
        return Detections(np.zeros((0, 4), np.float32), np.zeros((0, 5, 2), np.float32), np.zeros(0, np.float32))

    rows = pipe(video, faces=detector)  # it has no `refine` and sees every picture that is looked at
    assert len(rows) == 600
    assert {row["face"] for row in rows} == {None}
    # all of the first span, which the start cuts off, then every fourth
    assert len(looked) == 32 + (600 - 32) // 4
    assert set(looked) == {(48, 64, 3)}


def test_boxes_move_between_the_frames_that_were_looked_at(people_rows):
    centers = np.array([(r["box"][0] + r["box"][2]) / 2 for r in people_rows if r["face"] == 0 and r["box"]][60:300])
    assert np.abs(np.diff(centers)).max() < 3
    assert (np.diff(centers) != 0).mean() > 0.9


@pytest.mark.parametrize("smoothing", [None, "paper"])
def test_a_stream_gives_the_same_rows_before_the_end(pipe, people, people_rows, smoothing):
    expected = people_rows if smoothing is None else pipe(people, faces="detect", smoothing=smoothing)
    rows = pipe.stream(people, faces="detect", smoothing=smoothing)
    first = next(rows)
    assert first == expected[0]
    rest = list(rows)
    assert [list(row) for row in rest[:1]] == [COLUMNS]
    assert [first, *rest] == expected


def test_one_window_is_read_while_another_is_computed():
    """And no more than one, whatever the computation takes; a stream that is left holds nothing."""
    made, closed, before = [threading.Event() for _ in range(3)], threading.Event(), threading.active_count()

    def windows():
        try:
            for event in made:
                event.set()
                yield {}
        finally:
            closed.set()

    ahead = read_ahead(windows())
    next(ahead)
    assert made[1].wait(60)
    assert not made[2].is_set()
    ahead.close()
    del ahead
    assert not made[2].is_set()
    assert closed.is_set()
    assert threading.active_count() == before


def test_reading_takes_one_thread_and_leaves_the_others_theirs():
    before, threads = torch.get_num_threads(), []

    def windows():
        threads.append(torch.get_num_threads())
        yield {}

    torch.set_num_threads(3)
    try:
        assert list(read_ahead(windows())) == [{}]
        assert threads == [1]
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


def test_what_reading_raises_comes_after_what_was_read(pipe, video):
    def windows():
        yield from itertools.islice(pipe.processor.windows(video), 1)
        raise MediaError("the disk was pulled out")

    ahead = read_ahead(windows())
    assert len(next(ahead)["end_frames"]) == 16
    with pytest.raises(MediaError, match="pulled out"):
        next(ahead)


def test_smoothing_of_a_stream_is_that_of_the_whole(pipe, people_rows, people):
    smoothed = pipe(people, faces="detect", smoothing=21)
    for face in (0, 1, None):
        raw, got = ([row for row in rows if row["face"] == face] for rows in (people_rows, smoothed))
        expected = smooth(np.array([row["arousal"] for row in raw]), np.array([row["time"] for row in raw]), 21)
        np.testing.assert_allclose([row["arousal"] for row in got], expected, atol=1e-9)


class Tap:
    """A file that says how far it was read."""

    def __init__(self, data):
        self.data, self.place, self.furthest = data, 0, 0

    def read(self, size):
        piece = self.data[self.place : self.place + size]
        self.place += len(piece)
        self.furthest = max(self.furthest, self.place)
        return piece


def write_beginning(source, target, seconds=float("inf")):
    """The packets of the first seconds in a container that is written and read front to back."""
    with av.open(source) as given, av.open(str(target), "w") as made:
        streams = {stream: made.add_stream_from_template(stream) for stream in given.streams}
        for packet in given.demux():
            if packet.dts is not None and packet.pts * packet.time_base < seconds:
                packet.stream = streams[packet.stream]
                made.mux(packet)
    return target.read_bytes()


def test_live_rows_come_at_once_and_know_nothing_later(pipe, people, tmp_path):
    data = write_beginning(people, tmp_path / "people.mkv")
    tap = Tap(data)
    rows, read = [], []
    for row in pipe.stream(tap, faces="detect", live=True):
        rows.append(row)
        read.append(tap.furthest)
    assert sorted({row["frame"] for row in rows}) == list(range(660))
    # 6 s of the file give the same rows for those 6 s, but for the last hop
    begin = write_beginning(people, tmp_path / "begin.mkv", seconds=6)
    known = [row for row in pipe.stream(begin, faces="detect", live=True) if row["time"] < 5.6]
    assert known == [row for row in rows if row["time"] < 5.6]
    # when the row of second 10 comes, not much more than the file up to there has been read
    at_ten = read[next(i for i, row in enumerate(rows) if row["time"] >= 10)]
    assert at_ten / len(data) < 0.75


def test_sound_that_ends_early_is_not_waited_for(pipe, tmp_path):
    """Nor are the pictures kept until the end of the file: after 10 s the first block comes."""
    rng = np.random.default_rng(0)
    options = {"picture": lambda index: rng.integers(0, 255, (48, 64, 3), np.uint8)}
    path = write_video(tmp_path / "early.mp4", 60 * 30, waveform=np.full(5 * 44100, 0.1, np.float32), **options)
    data = write_beginning(path, tmp_path / "early.mkv")
    tap = Tap(data)
    rows = pipe.stream(tap)
    first = next(rows)
    assert tap.furthest / len(data) < 0.7  # a block of 17 s, and 10 s
    rows = [first, *rows]
    assert len(rows) == 1800
    assert sum(row["audio_present"] for row in rows) == pytest.approx(150, abs=3)


@torch.no_grad()
def test_live_rows_are_those_of_a_window_that_ends_there(pipe, video):
    rows = list(pipe.stream(video, live=True))
    assert [row["frame"] for row in rows] == list(range(600))
    names = ("crops", "waveforms", "video_mask", "audio_mask")
    clips = {}
    for window in pipe.processor.windows(video, hop=8):
        for index, end in enumerate(window["end_frames"].tolist()):
            clips[end] = {name: window[name][index] for name in names}
    nothing = {name: np.zeros_like(values) for name, values in clips[7].items()}
    for end in (7, 255, 543, 599):
        chosen = [clips.get(e, nothing) for e in range(end - 15 * 32, end + 1, 32)]
        window = {name: np.stack([clip[name] for clip in chosen]) for name in names}
        values = pipe.model(**pipe.processor.inputs(window)).logits[0, -1].clamp(-1, 1)
        assert [rows[end]["valence"], rows[end]["arousal"]] == pytest.approx(values.tolist(), abs=1e-5)


@pytest.mark.parametrize(("fps", "num_frames"), [(100, 1705), (120, 2046), (30, 512), (60, 1024), (30, 513)])
def test_no_row_is_lost_where_a_block_ends(pipe, fps, num_frames):
    pictures = np.zeros((num_frames, 8, 8, 3), np.uint8)
    rows = [row for window in pipe.processor.windows(pictures, fps=fps) for row in window["rows"]]
    assert [row["frame"] for row in rows] == list(range(num_frames))


def test_a_stream_is_of_the_pipeline_as_it_was_built(model_folder, video):
    built = pipeline("audio-visual-emotion", model=model_folder, hop=32, faces="given", smoothing=21)
    assert list(built.stream(video)) == built(video)
    assert list(built.stream(video, hop=16)) == built(video, hop=16)
    with pytest.raises(TypeError, match="are no arguments of this pipeline"):
        next(built.stream(video, window=3))
    with pytest.raises(ValueError, match="smoothing='median' must be an odd number"):
        built(video, smoothing="median")


def test_who_speaks(pipe, tmp_path):
    """Two people, of whom the second moves the mouth with the sound."""
    rng = np.random.default_rng(1)
    voice = np.repeat(rng.uniform(size=60) > 0.5, 6).astype(float)  # 12 s, half of it silence, in pieces of 0.2 s
    envelope = np.convolve(voice, np.hanning(5) / 2, "same")
    sound = np.repeat(envelope, 1470) * rng.normal(0, 0.2, 360 * 1470)

    def picture(index):
        out = np.full((180, 320, 3), (90, 110, 120), np.uint8)
        draw_face(out, 4, (90, 90), 110)
        draw_face(out, 11, (230, 95), 110, open=float(envelope[index] * (0.5 + 0.5 * np.sin(index * 2.1))))
        return out

    path = write_video(tmp_path / "talk.mp4", 360, size=(320, 180), picture=picture, waveform=sound)
    rows = pipe(path, faces="detect", speaking=True, hop=4)
    assert [*COLUMNS, "speaking"] == list(rows[0])
    scores = {face: [r["speaking"] for r in rows if r["face"] == face and r["speaking"] is not None] for face in (0, 1)}
    places = {r["face"]: r["box"][0] for r in rows if r["frame"] == 100}
    left, right = sorted(places, key=places.get)
    assert np.mean(scores[right]) > np.mean(scores[left]) + 0.2
    assert all(-1 <= score <= 1 for values in scores.values() for score in values)
    assert not any("speaking" in row for row in pipe(path, faces="detect"))


# Timeline -------------------------------------------------------------------------------------------------------------


def test_interpolation_between_the_ends_of_clips():
    values = np.array([[1.0], [3.0], [2.0]])
    out = clips_to_frames(values, np.array([15, 31, 23]), np.array([0, 0.5, 19 / 30, 23 / 30, 27 / 30, 2.0]), 30)
    np.testing.assert_allclose(out[:, 0], [1, 1, 1.5, 2, 2.5, 3])


def test_smoothing_is_centred_and_keeps_the_ends():
    times = np.arange(100) / 30
    ramp = np.linspace(-1, 1, 100)
    np.testing.assert_allclose(smooth(ramp, times, 21)[10:-10], ramp[10:-10], atol=1e-12)  # an even size would shift it
    np.testing.assert_allclose(smooth(np.ones(100), times, 51), 1)  # zeros beyond the ends would pull it down
    values = np.random.default_rng(0).normal(size=100)
    assert smooth(values, times, 5)[50] == pytest.approx(values[48:53].mean())
    assert smooth(values, times, 5)[0] == pytest.approx(values[:3].mean())
    np.testing.assert_allclose(smooth(values, np.arange(100) / 60, 3)[50], values[48:53].mean())  # by time: 1/10 s


def test_smoothing_sizes_by_name():
    times, ends = np.arange(60) / 30, np.arange(60)
    values = np.random.default_rng(0).uniform(-1, 1, (60, 2))
    out = timeline(values, ends, times, ["valence", "arousal"], smoothing={"valence": 5})
    np.testing.assert_allclose(out[:, 0], smooth(values[:, 0], times, 5))
    np.testing.assert_allclose(out[:, 1], values[:, 1])
    paper = timeline(values, ends, times, ["valence", "arousal"], smoothing="paper")
    np.testing.assert_allclose(paper[:, 0], smooth(values[:, 0], times, 21))
    np.testing.assert_allclose(paper[:, 1], smooth(values[:, 1], times, 51))
    assert timeline(values * 9, ends, times, ["valence", "arousal"]).max() == 1


# Remote code ----------------------------------------------------------------------------------------------------------

REMOTE = """
import importlib.util, json, sys
names = NAMES
class Absent:  # an editable install has a finder of its own
    def find_spec(self, name, path=None, target=None):
        if name in names:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from transformers import AutoModel, AutoProcessor, pipeline
source, video = sys.argv[1:3]
model = AutoModel.from_pretrained(source, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
for thing in (model, processor):
    assert type(thing).__module__.startswith("transformers_modules."), type(thing)
logits = model(**processor(videos=video)).logits
pipe = pipeline("audio-visual-emotion", model=source, trust_remote_code=True)
assert pipeline(model=source, trust_remote_code=True).task == "audio-visual-emotion"
print("ROWS" + json.dumps(pipe(video)))
pipe.save_pretrained(sys.argv[3])
""".replace("NAMES", repr(("jca", *FLAT)))


@pytest.mark.parametrize("kind", ["folder", "hub"])
def test_remote_code_where_the_package_is_not(model_folder, silent_video, tmp_path, kind):
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    source = model_folder
    if kind == "hub":  # as the Hub's cache lays a repository out
        commit, repository = "0123456789abcdef0123456789abcdef01234567", tmp_path / "hf/hub/models--org--jca-tiny"
        shutil.copytree(model_folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs/main").write_text(commit)
        source = "org/jca-tiny"
    # -I: with neither the working directory nor PYTHONPATH on sys.path
    run = subprocess.run(
        [sys.executable, "-I", "-c", REMOTE, source, silent_video, str(tmp_path / "again")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    rows = json.loads(run.stdout.split("ROWS")[1])
    local = pipeline("audio-visual-emotion", model=model_folder)(silent_video)
    assert [row["frame"] for row in rows] == list(range(40))
    np.testing.assert_allclose([r["arousal"] for r in rows], [r["arousal"] for r in local], atol=1e-5)
    again = pipeline("audio-visual-emotion", model=str(tmp_path / "again"))(silent_video)
    np.testing.assert_allclose([r["arousal"] for r in again], [r["arousal"] for r in local], atol=1e-5)


def test_a_saved_folder_is_a_hub_repository(model_folder):
    assert {path.name for path in Path(model_folder).iterdir()} == {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        *(f"{name}.py" for name in FLAT),
    }
    assert jca.JCAConfig.from_pretrained(model_folder).architectures == ["JCAModel"]
