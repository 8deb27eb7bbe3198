import json
import multiprocessing
import shutil
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import tiny_processor
from datasets import Dataset
from media import clapping_video, write_video
from release import write_crop, write_release

from jca.affwild2 import load_affwild2
from jca.corpus import ROW, CorpusError, load_corpus, make_dataset, make_row, probe_media
from jca.preparation import PreparedVideo, check_prepared, load_prepared, open_prepared, prepare, video_windows
from media_jca import decode_picture
from processing_jca import JCAFeatureExtractor, JCAProcessor, JCAVideoProcessor


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("release"), {"Train_Set": ["a", "b"], "Validation_Set": ["c"]}, 100)


@pytest.fixture(scope="module")
def folder(release, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare({split: load_affwild2(release, split) for split in ("train", "validation")}, folder, tiny_processor())
    return folder


def corpus_of(path, **columns):
    labels = np.zeros((probe_media(path).num_frames, 2), np.float32)
    return make_dataset([make_row(Path(path).stem, path, labels, 30, **columns)], [], "made", "raise")


def test_one_file_for_each_row_and_an_index(release, folder):
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == ["prepared.json", "train/a.arrow", "train/b.arrow", "validation/c.arrow"]
    rows, before = load_prepared(folder, "train"), load_affwild2(release, "train")
    assert rows.features == before.features == ROW
    for row, source in zip(rows, before, strict=True):
        assert row["media_path"] == str(folder / "train" / f"{row['video_id']}.arrow")
        assert row["crops_dir"] is None
        for name in ("video_id", "subject", "recording", "num_frames", "valence", "arousal", "labelled"):
            np.testing.assert_array_equal(row[name], source[name])
        assert row["fps"] == pytest.approx(30, abs=0.01)
    assert load_corpus(folder, "validation")["video_id"][:] == ["c"]
    table = Dataset.from_file(str(folder / "train/a.arrow"))  # whoever likes opens them as any Arrow file
    crop = release / "cropped_aligned/a/00005.jpg"
    assert table[4]["crop"] == crop.read_bytes()  # the release's own picture
    entry = json.loads((folder / "prepared.json").read_text())["train"]["train/a.arrow"]
    assert (entry["frames"], entry["labelled"], entry["missing_crops"]) == (100, 100, 0)
    assert entry["seconds"] == pytest.approx(100 / 30, abs=0.01)


def windows_equal(ours, theirs):
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        for name in ("crops", "waveforms", "video_mask", "audio_mask", "end_frames"):
            np.testing.assert_array_equal(mine[name], other[name])
        assert mine["rows"] == other["rows"]


@pytest.mark.parametrize(
    "media", ["late", "early", "gap of frames", "17 fps", "60 fps", "without sound", "audio before video"]
)
def test_windows_are_those_of_the_media(media, tmp_path):
    """Of whatever was recorded: every crop, sample, mask and time."""
    path, frames = tmp_path / "a.mp4", 130
    fps = int(media.split()[0]) if media.endswith("fps") else 30
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 44100 * frames // fps).astype(np.float32)
    options = {"waveform": None if media == "without sound" else sound, "fps": fps}
    if media == "late":
        options["audio_start"] = 1.3
    if media == "early":
        options["waveform"] = sound[: len(sound) // 3]
    write_video(path, frames, size=(32, 32), **options)
    if media == "audio before video":
        path = without_first_frames(path, tmp_path / "b.mkv", 20)
    crops = tmp_path / "crops"
    crops.mkdir()
    for number in range(1, frames):
        if media != "gap of frames" or not 30 < number < 80:
            write_crop(crops / f"{number:05d}.jpg", np.full((20, 20, 3), number * 3 % 256, np.uint8))
    dataset = corpus_of(path, crops_dir=crops)
    processor = tiny_processor()
    prepare({"train": dataset}, tmp_path / "prepared", processor)
    (row,) = load_prepared(tmp_path / "prepared", "train")
    windows_equal(video_windows(row, processor, 8), video_windows(dataset[0], processor, 8))


def without_first_frames(path, target, count):
    """The same sound, the video from frame `count` on."""
    with av.open(str(path)) as source, av.open(str(target), "w") as out:
        streams = {stream: out.add_stream_from_template(stream) for stream in source.streams}
        seen = 0
        for packet in source.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "video":
                seen += 1
                if seen <= count:
                    continue
            packet.stream = streams[packet.stream]
            out.mux(packet)
    return target


def test_any_clip_is_that_of_the_stream(folder):
    processor = tiny_processor()
    (row,) = load_prepared(folder, "validation")
    video = PreparedVideo(row["media_path"], processor)
    for window in video_windows(row, processor, 4):
        for clip, end in enumerate(window["end_frames"]):
            if end >= video.num_grid_frames:
                continue
            buffer = video.buffer(int(end), int(end), 4)
            crops, face = buffer.clip_crops(0, int(end))
            waveform, sound = buffer.clip_waveform(int(end))
            np.testing.assert_array_equal(crops, window["crops"][clip])
            np.testing.assert_array_equal(waveform, window["waveforms"][clip])
            assert (face, sound) == (window["video_mask"][clip], window["audio_mask"][clip])
            assert video.shows("video", np.array([end])) == face
            assert video.shows("audio", np.array([end])) == sound


def test_frames_are_cropped_where_the_corpus_has_no_crops(tmp_path):
    path = clapping_video(tmp_path / "clap.mp4", seconds=3, claps=(1,))
    processor = JCAProcessor(video_processor=JCAVideoProcessor(size=40, faces="center"))
    prepare({"train": corpus_of(path)}, tmp_path / "prepared", processor)
    table, facts = open_prepared(tmp_path / "prepared/train/clap.arrow")
    brightness = [decode_picture(crop, 40).mean() for crop in table["crop"].to_pylist()]
    assert np.argmax(brightness) == 30
    assert brightness[30] > 200
    assert facts["sampling_rate"] == 44100
    windows = list(video_windows(load_prepared(tmp_path / "prepared", "train")[0], processor, 1))
    end = [w["end_frames"].tolist() for w in windows]
    clip = next((i, ends.index(30)) for i, ends in enumerate(end) if 30 in ends)
    assert windows[clip[0]]["crops"][clip[1]][-1].mean() > 200


def test_what_is_there_is_kept_and_what_changed_is_made_anew(release, tmp_path):
    copy = shutil.copytree(release, tmp_path / "release")
    folder, dataset = tmp_path / "prepared", load_affwild2(copy, "train")
    prepare({"train": dataset}, folder, tiny_processor())
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("train/*")}
    (folder / "prepared.json").unlink()  # stopped before its end
    with pytest.raises(CorpusError, match=r"there is no prepared\.json: let scripts/prepare_affwild2\.py end"):
        load_prepared(folder, "train")
    annotation = copy / "VA_Estimation_Challenge/Train_Set/b.txt"
    lines = annotation.read_text().splitlines()
    annotation.write_text("\n".join([*lines[:5], "0.5,0.5", *lines[6:]]))
    (folder / "train/b.part").write_bytes(b"half a file")
    prepare({"train": load_affwild2(copy, "train")}, folder, tiny_processor())
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("train/*.arrow")}
    assert after["a.arrow"] == before["a.arrow"]
    assert after["b.arrow"] != before["b.arrow"]
    prepare({"validation": load_affwild2(copy, "validation")}, folder, tiny_processor())
    assert len(load_prepared(folder, "train")) == 2  # another split is added to the index
    (folder / "train/a.arrow").write_bytes(b"")
    prepare({"train": dataset}, folder, tiny_processor())
    assert not check_prepared(folder)


def test_corrupt_crops_and_media_are_one_report(release, tmp_path):
    copy = shutil.copytree(release, tmp_path / "release")
    whole = (copy / "cropped_aligned/a/00007.jpg").read_bytes()
    (copy / "cropped_aligned/a/00007.jpg").write_bytes(whole[: len(whole) // 2])
    (copy / "cropped_aligned/b/00008.jpg").write_bytes(b"")
    dataset = load_affwild2(copy, "train")
    (copy / "batch1/b.mp4").write_bytes(b"nothing")
    for _ in range(2):  # a second run does not pass over what the first has found
        with pytest.raises(CorpusError) as error:
            prepare({"train": dataset}, tmp_path / "prepared", tiny_processor())
        crop, media = sorted(error.value.problems, key=lambda problem: "b.mp4" in problem)
        assert "a/00007.jpg' can not be read as a picture" in crop
        assert "b.mp4' can not be opened as media" in media
    prepare({"train": dataset}, tmp_path / "prepared", tiny_processor(), on_error="skip")
    rows = load_prepared(tmp_path / "prepared", "train")
    assert rows["video_id"][:] == ["a"]
    video = PreparedVideo(rows[0]["media_path"], tiny_processor())
    assert np.flatnonzero(~video.has_crop).tolist() == [6]


def test_check_finds_what_is_damaged_missing_or_strange(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "prepared")
    assert check_prepared(copy) == []
    data = bytearray((copy / "train/a.arrow").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "train/a.arrow").write_bytes(data)
    (copy / "train/b.arrow").rename(copy / "train/d.arrow")
    missing, strange, damaged = check_prepared(copy)
    assert "b.arrow: is missing" in missing
    assert "d.arrow: is not in prepared.json" in strange
    assert "a.arrow: differs from its hash" in damaged


def test_another_sampling_rate_and_split_are_refused(folder):
    other = JCAProcessor(JCAFeatureExtractor(sampling_rate=16000))
    path = load_prepared(folder, "train")[0]["media_path"]
    with pytest.raises(ValueError, match=r"at 44100 Hz, and the processor reads 16000 Hz: .* --sampling_rate 16000"):
        PreparedVideo(path, other)
    with pytest.raises(CorpusError, match="has no split 'test'; it has train, validation"):
        load_prepared(folder, "test")
    with pytest.raises(CorpusError, match=r"video_id '\.\./a' can not be the name of a file"):
        prepare(
            {"train": make_dataset([make_row("../a", "a.mp4", np.zeros((3, 2)), 30)], [], "x", "raise")}, folder, other
        )


def test_rows_stay_with_their_frames_whatever_the_lengths(tmp_path):
    path = write_video(tmp_path / "a.mp4", 60)
    for rows in (57, 60, 64):
        labels = np.stack([np.arange(rows) / 100, -np.arange(rows) / 100], axis=1).astype(np.float32)
        dataset = make_dataset([make_row("a", path, labels, 30)], [], "made", "raise")
        prepare({"train": dataset}, tmp_path / "prepared", tiny_processor())
        (row,) = load_prepared(tmp_path / "prepared", "train")
        known = min(rows, 60)
        assert row["num_frames"] == 60
        np.testing.assert_array_equal(row["valence"][:known], labels[:known, 0])
        np.testing.assert_array_equal(row["labelled"], np.arange(60) < rows)
        assert [note.split(":")[0] for note in row["notes"]] == (
            [] if rows == 60 else [f"{rows} rows are annotated, the video has 60 frames"]
        )


def test_a_video_that_is_cut_off_is_a_problem(tmp_path):
    path = write_video(tmp_path / "a.mp4", 60)
    dataset = make_dataset([make_row("a", path, np.zeros((600, 2), np.float32), 30)], [], "made", "raise")
    with pytest.raises(CorpusError, match="600 rows are annotated, the video has 60 frames: .* cut off"):
        prepare({"train": dataset}, tmp_path / "prepared", tiny_processor())


def test_a_picture_that_is_damaged_keeps_its_place(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 48, 64, 3)).astype(np.uint8)
    path = Path(write_video(tmp_path / "a.mp4", 60, picture=lambda index: noise[index]))
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for position, size in (packets[20], packets[59]):
        data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
    processor = JCAProcessor(video_processor=JCAVideoProcessor(size=40, faces="center"))
    prepare({"train": corpus_of(path)}, tmp_path / "prepared", processor)
    video = PreparedVideo(tmp_path / "prepared/train/a.arrow", processor)
    lost = np.flatnonzero(~video.has_crop).tolist()
    assert lost in ([20, 59], [20, 58, 59])  # PyAV 17, the last for Python 3.10, loses 58 with what follows it
    np.testing.assert_allclose(video.times, np.arange(60) / 30, atol=1e-3)


@pytest.mark.parametrize("start", [0.083, 1.37])
def test_grid_of_a_video_that_starts_late(start, tmp_path):
    """What training cuts shows the pictures that serving shows, also where frames lie between two of the grid."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(75):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 3 * index, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(1000 * start) + 40 * index, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    processor = tiny_processor()
    prepare({"train": corpus_of(tmp_path / "a.mkv")}, tmp_path / "prepared", processor)
    video = PreparedVideo(tmp_path / "prepared/train/a.arrow", processor)
    for window in processor.windows_of(video.events(), 1, "a"):
        inside = [end for end in window["end_frames"] if end < video.num_grid_frames]
        ours = video.window(inside, 1)
        np.testing.assert_array_equal(ours["crops"], window["crops"][: len(inside)])
        np.testing.assert_array_equal(ours["waveforms"], window["waveforms"][: len(inside)])


def test_what_was_skipped_is_logged(release, tmp_path, caplog):
    copy = shutil.copytree(release, tmp_path / "release")
    (copy / "cropped_aligned/a/00007.jpg").write_bytes(b"")
    prepare({"train": load_affwild2(copy, "train")}, tmp_path / "prepared", tiny_processor(), on_error="skip")
    assert "a/00007.jpg' can not be read as a picture" in caplog.text


def test_a_damaged_file_is_made_again_and_other_subjects_too(release, tmp_path):
    folder, dataset = tmp_path / "prepared", load_affwild2(release, "train")
    prepare({"train": dataset}, folder, tiny_processor())
    whole = (folder / "train/a.arrow").read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    (folder / "train/a.arrow").write_bytes(damaged)
    prepare({"train": dataset}, folder, tiny_processor())
    assert (folder / "train/a.arrow").read_bytes() == whole
    renamed = make_dataset([{**row, "subject": "one and the same"} for row in dataset], [], "made", "raise")
    prepare({"train": renamed}, folder, tiny_processor())
    assert set(load_prepared(folder, "train")["subject"]) == {"one and the same"}


def test_killed_while_it_prepares_no_file_is_half(release, tmp_path):
    dataset, whole, folder = load_affwild2(release, "train"), tmp_path / "whole", tmp_path / "killed"
    prepare({"train": dataset}, whole, tiny_processor())
    context, rng = multiprocessing.get_context("fork"), np.random.default_rng(0)
    for _ in range(5):
        process = context.Process(target=prepare, args=({"train": dataset}, folder, tiny_processor()))
        process.start()
        time.sleep(rng.uniform(0.02, 0.15))
        process.kill()
        process.join()
        for path in folder.glob("train/*.arrow"):
            assert path.read_bytes() == (whole / "train" / path.name).read_bytes()
    prepare({"train": dataset}, folder, tiny_processor())
    assert (folder / "prepared.json").read_bytes() == (whole / "prepared.json").read_bytes()
