import json

import numpy as np
import pytest
import yaml
from conftest import TINY, tiny_processor
from huggingface_hub.repocard import metadata_load
from media import write_video
from quirks import SLOWING, write_timed_video
from release import RATE, write_release

import jca
from jca.cards import write_card
from jca.corpus import (
    ROW,
    CorpusError,
    compare_lengths,
    frame_labels,
    load_corpus,
    logger,
    make_dataset,
    make_row,
    probe_media,
    shift_labels,
    split_by_length,
)
from jca.preparation import check_prepared, corpus_record, prepare
from jca.recipes import load_recipe
from jca.synthetic import make_synthetic
from jca.training import train_encoder


def sound(seconds):
    return 0.5 * np.sin(np.arange(round(seconds * RATE)) * 2 * np.pi * 440 / RATE)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
@pytest.mark.parametrize("fps", [17, 25, 30, 60])
def test_rate_and_frames_of_media(tmp_path, suffix, fps):
    media = probe_media(write_video(tmp_path / f"a{suffix}", 40, fps, (32, 32), waveform=sound(40 / fps)))
    assert media.fps == pytest.approx(fps, rel=1e-3)
    assert (media.num_frames, media.exact, media.notes) == (40, True, [])


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_are_stored_in_another_order_than_shown(tmp_path, suffix):
    """Of a long video only the first timestamps are read, and what is shown between them may be stored behind."""
    path = write_timed_video(tmp_path / f"a{suffix}", range(0, 400 * 40, 40), claimed_fps=25, b_frames=6)
    media = probe_media(path)
    assert media.fps == pytest.approx(25, rel=1e-6)
    assert abs(media.num_frames - 400) <= 1
    assert media.exact == (suffix == ".mp4")  # Matroska does not count its frames


def test_timestamps_hold_where_the_header_is_wrong(tmp_path):
    wrong = probe_media(write_timed_video(tmp_path / "a.mkv", range(0, 60 * 40, 40), claimed_fps=30))
    assert wrong.fps == pytest.approx(25)
    assert wrong.notes[0] == "the header says 30.00 frames a second, the timestamps 25.00: they hold"
    slowing = probe_media(write_timed_video(tmp_path / "b.mkv", SLOWING))
    assert slowing.fps == pytest.approx((len(SLOWING) - 1) / (SLOWING[-1] / 1000))
    # 15 of 40 frames were dropped at recording: an AVI keeps their places and counts them
    dropped = [time for time in range(40) if time not in range(10, 40, 2)]
    avi = probe_media(write_timed_video(tmp_path / "c.avi", [time * 1000 // 25 for time in dropped]))
    assert (avi.num_frames, avi.exact) == (25, True)


def test_notes_on_audio(tmp_path):
    def notes(name, seconds=2.0, **options):
        waveform = sound(seconds) if seconds else None
        return probe_media(write_video(tmp_path / name, 60, 30, (32, 32), waveform=waveform, **options)).notes

    assert notes("whole.mp4") == []
    assert notes("none.mp4", seconds=0) == ["no audio"]
    (late,) = notes("late.mkv", seconds=1.0, audio_start=1.0)
    assert late == "audio starts 1.00 s after the video"
    (early,) = notes("early.mp4", seconds=1.0)
    assert early.startswith("audio ends 0.9") or early.startswith("audio ends 1.0")
    assert len(notes("both.mp4", seconds=1.0, audio_start=0.5)) == 2


def test_one_picture_has_the_rate_of_the_header(tmp_path):
    media = probe_media(write_video(tmp_path / "a.mp4", 1, 17, (32, 32)))
    assert (media.fps, media.num_frames) == (17, 1)


def test_media_that_can_not_be_used(tmp_path):
    whole = write_timed_video(tmp_path / "a.mkv", range(0, 2400, 40))
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: data.index(b"\x1f\x43\xb6\x75") + 16])  # where the pictures begin
    with pytest.raises(ValueError, match="a.mkv' has no picture: was it cut off after its header"):
        probe_media(whole)
    write_video(tmp_path / "b.mp4", 40, 30, (32, 32))
    data = bytearray((tmp_path / "b.mp4").read_bytes())
    sizes = data.index(b"stsz") + 16
    data[sizes : sizes + 4] = (0x30000000).to_bytes(4, "big")  # FFmpeg has no memory for a picture of 800 MB
    (tmp_path / "b.mp4").write_bytes(data)
    with pytest.raises(ValueError, match="b.mp4' is damaged"):
        probe_media(tmp_path / "b.mp4")
    (tmp_path / "c.mp4").write_bytes(b"no media" * 100)
    with pytest.raises(ValueError, match="can not be opened as media"):
        probe_media(tmp_path / "c.mp4")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        probe_media(tmp_path / "d.mp4")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        probe_media(tmp_path)


def test_lengths_that_differ(tmp_path):
    media = probe_media(write_video(tmp_path / "a.mp4", 300, 30, (32, 32)))
    assert compare_lengths(300, media) == ([], [])
    for annotated, done in ((301, "rows beyond the video"), (299, "frames beyond the annotation"), (240, "frames")):
        (note,), problems = compare_lengths(annotated, media)
        assert f"{annotated} rows are annotated, the video has 300 frames: {done}" in note
        assert not problems
    for annotated in (239, 361):  # by more than 2 s
        notes, (problem,) = compare_lengths(annotated, media)
        assert not notes
        assert "is it the annotation of another video?" in problem
    hour = media._replace(num_frames=108_000)
    assert not compare_lengths(108_000 - 5_400, hour)[1]  # and more than 5 %
    assert compare_lengths(108_000 - 5_401, hour)[1]
    about = media._replace(exact=False)  # a duration tells the frames to a second
    assert compare_lengths(329, about) == ([], [])
    assert "the video has about 300 frames" in compare_lengths(330, about)[0][0]
    assert compare_lengths(300, media._replace(num_frames=0, exact=False)) == ([], [])


def labels(*rows):
    return np.array(rows, np.float32).reshape(-1, 2)


def test_shifted_labels_are_those_of_a_delay_later():
    before = labels([0.1, 0.2], [-5, -5], [0.3, 0.4], [0.5, -5])
    np.testing.assert_array_equal(shift_labels(before, 25, 0.0), before)
    expected = labels([0.3, 0.4], [0.5, -5], [-5, -5], [-5, -5])
    np.testing.assert_array_equal(shift_labels(before, 25, 0.08), expected)
    np.testing.assert_array_equal(shift_labels(before, 50, 0.04), expected)
    expected = labels([-5, 0.4], [0.3, -5], [0.5, -5], [-5, -5])
    np.testing.assert_array_equal(shift_labels(before, 25, {"valence": 0.04, "arousal": 0.08}), expected)
    np.testing.assert_array_equal(shift_labels(before, 25, {"arousal": 0.08})[:, 0], before[:, 0])
    np.testing.assert_array_equal(shift_labels(before, 25, 10.0), np.full((4, 2), -5))
    with pytest.raises(ValueError, match=r"delay=-0.1 s of arousal: annotators react late, give 0 or more"):
        shift_labels(before, 25, {"arousal": -0.1})
    with pytest.raises(ValueError, match=r"delay names \['joy'\]: give seconds for valence and arousal"):
        shift_labels(before, 25, {"joy": 1.0})


def test_rows_become_a_dataset(tmp_path):
    one = labels([0.1, 0.2], [-5, -5], [-5, 0.4])
    rows = [
        make_row("a", tmp_path / "a.mp4", one, 25, notes=["no audio"]),
        make_row("b_left", tmp_path / "b.mp4", one[:1], 29.97, crops_dir=tmp_path / "b_left", subject="Ü"),
    ]
    dataset = make_dataset(rows, [], tmp_path, "raise")
    assert dataset.features == ROW
    assert list(dataset["video_id"]) == ["a", "b_left"]
    assert list(dataset["subject"]) == ["a", "Ü"]
    assert list(dataset["recording"]) == ["a", "b"]
    assert list(dataset["media_path"]) == [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]
    assert list(dataset["crops_dir"]) == [None, str(tmp_path / "b_left")]
    assert list(dataset["fps"]) == [25, 29.97]
    assert list(dataset["num_frames"]) == [3, 1]
    assert [row["notes"] for row in dataset] == [["no audio"], []]
    np.testing.assert_array_equal(dataset[0]["labelled"], [True, False, False])
    np.testing.assert_array_equal(dataset[1]["labelled"], [True])
    for row, expected in zip(dataset, (one, one[:1]), strict=True):
        assert row["valence"].dtype == np.float32
        np.testing.assert_array_equal(frame_labels(row), expected)


def test_problems_are_raised_or_logged_together(tmp_path, caplog):
    rows = [make_row("a", "a.mp4", labels([0.1, 0.2]), 25)]
    with pytest.raises(CorpusError) as error:
        make_dataset(rows, ["x.txt: is empty", "y.txt: is empty"], tmp_path, "raise")
    assert str(error.value) == f"{tmp_path}: 2 problems\n  x.txt: is empty\n  y.txt: is empty"
    assert isinstance(error.value, ValueError)
    with caplog.at_level("WARNING", logger.name):
        assert len(make_dataset(rows, ["x.txt: is empty"], tmp_path, "skip")) == 1
    assert f"{tmp_path}: 1 problem\n  x.txt: is empty\n" in caplog.text
    for on_error in ("raise", "skip"):
        with pytest.raises(CorpusError, match="x.txt: is empty"):
            make_dataset([], ["x.txt: is empty"], tmp_path, on_error)
        with pytest.raises(CorpusError, match="no video was found"):
            make_dataset([], [], tmp_path, on_error)
    with pytest.raises(ValueError, match='on_error=\'log\' is not known. Choose "raise" or "skip"'):
        make_dataset(rows, [], tmp_path, "log")


def test_parts_of_nearly_the_same_length():
    lengths = np.random.default_rng(0).integers(100, 20_000, 75).tolist()
    for num_parts in (1, 2, 7):
        parts = split_by_length(lengths, num_parts)
        assert sorted(index for part in parts for index in part) == list(range(75))
        assert parts == [sorted(part) for part in parts]
        totals = [sum(lengths[index] for index in part) for part in parts]
        assert max(totals) - min(totals) < 0.02 * sum(lengths) / num_parts
    assert split_by_length([5, 1, 1, 1, 1, 1], 2) == [[0], [1, 2, 3, 4, 5]]
    assert split_by_length([3, 3, 3], 2) == [[0, 2], [1]]  # the same on every machine
    assert split_by_length([4], 3) == [[0], [], []]
    assert split_by_length([], 2) == [[], []]


def test_what_reads_data_is_found_in_the_package():
    for name in ("load_affwild2", "load_corpus", "load_csv", "load_prepared", "prepare", "extract_features"):
        assert callable(getattr(jca, name))
        assert name in jca.__all__
    with pytest.raises(AttributeError, match="no attribute 'load_everything'"):
        jca.load_everything  # noqa: B018


# Which corpus it is ---------------------------------------------------------------------------------------------------


def prepared(source, folder, *splits):
    rows = {split: load_corpus(source, split) for split in splits}
    prepare(rows, folder, tiny_processor(), corpus={split: corpus_record(source, split) for split in splits})
    return folder


def test_a_prepared_folder_says_of_what_it_is(tmp_path):
    release = write_release(tmp_path / "release", {"Train_Set": ["a"], "Validation_Set": ["b"]}, 60)
    table = tmp_path / "mine.csv"
    moments = [f"release/batch1/a.mp4,{index / 10},0.1,0.2,train" for index in range(20)]
    table.write_text("\n".join(["media,time,valence,arousal,split", *moments, ""]))
    assert corpus_record(release, "train") == {"kind": "affwild2"}
    assert corpus_record(table, "train") == {"kind": "csv", "name": "mine"}

    folder = prepared(release, tmp_path / "prepared", "train", "validation")
    assert corpus_record(folder, "train") == corpus_record(folder, "validation") == {"kind": "affwild2"}
    prepared(table, folder, "train")  # one split of another corpus
    assert corpus_record(folder, "train") == {"kind": "csv", "name": "mine"}
    assert corpus_record(folder, "validation") == {"kind": "affwild2"}
    assert check_prepared(folder) == []
    with pytest.raises(CorpusError, match="has no split 'test'; it has train, validation: let"):
        load_corpus(folder, "test")
    prepare({"train": load_corpus(release, "train")}, folder, tiny_processor())  # by who does not say
    assert corpus_record(folder, "train") is None

    index = json.loads((folder / "prepared.json").read_text())
    del index["corpus"]  # as it was before there were records
    (folder / "prepared.json").write_text(json.dumps(index))
    assert corpus_record(folder, "validation") is None
    assert len(load_corpus(folder, "validation")) == 1
    assert check_prepared(folder) == []
    prepared(release, folder, "validation")
    assert corpus_record(folder, "validation") == {"kind": "affwild2"}


def test_what_was_trained_on_synthetic_data_says_so_whatever_its_recipe_is_called(tmp_path):
    corpus = make_synthetic(tmp_path / "corpus", num_train=2, num_validation=1, seconds=3.0, num_proc=1)
    settings = json.loads((corpus / "synthetic.json").read_text())
    content = {
        "data": {"root": str(prepared(corpus, tmp_path / "prepared", "train", "validation"))},
        "output_dir": str(tmp_path / "run"),
        "model": TINY,
        "processor": {"video_processor": {"size": 16, "faces": "center"}},
        "audio": {"num_epochs": 1, "batch_size": 8},
    }
    (tmp_path / "affwild2_jca.yaml").write_text(yaml.safe_dump(content))
    folder = train_encoder(load_recipe(tmp_path / "affwild2_jca.yaml"), "audio")
    record = {"kind": "synthetic", "settings": settings}
    assert json.loads((folder / "metrics.json").read_text())["corpus"] == {"train": record, "validation": record}
    (tmp_path / "prepared").rename(tmp_path / "elsewhere")  # the card needs the data no more
    card = write_card(folder)
    assert metadata_load(card)["license"] == "apache-2.0"
    assert "**Of no use on people.**" in card.read_text("utf-8")


def test_settings_that_are_damaged_are_refused(tmp_path):
    corpus = make_synthetic(tmp_path / "corpus", num_train=1, num_validation=0, seconds=1.0, num_proc=1)
    (corpus / "synthetic.json").write_text('{"num_train": 1')
    for action in (lambda: corpus_record(corpus, "train"), lambda: make_synthetic(corpus)):
        with pytest.raises(
            ValueError, match=r"synthetic\.json is not what .* writes: delete its folder and make it anew"
        ):
            action()
