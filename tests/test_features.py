import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_processor
from datasets import Dataset
from media import clapping_video
from release import write_release
from transformers import pipeline

import jca
from jca.affwild2 import load_affwild2
from jca.evaluation import evaluate, predict
from jca.features import (
    ClipDataset,
    WindowDataset,
    extract_clips,
    extract_features,
    fingerprint,
    fit_labels,
    labels_at,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("release"), {"Train_Set": ["a", "b"], "Validation_Set": ["c"]})


def test_labels_are_those_of_the_nearest_frame():
    times = np.arange(100) / 30
    labels = np.stack([np.arange(100), -np.arange(100)], axis=1)
    ends = np.array([99, 0, 31, 100, 131])
    np.testing.assert_array_equal(labels_at(ends, times, labels, 30)[:, 0], [99, 0, 31, -5, -5])
    times = np.arange(50) / 15  # half the grid's rate
    assert labels_at(np.array([40]), times, labels[:50], 30)[0, 0] == 20
    times = np.arange(200) / 60
    assert labels_at(np.array([40]), times, np.repeat(labels, 2, axis=0), 30)[0, 0] == 40


def test_annotations_longer_or_shorter_than_the_video():
    labels = np.ones((10, 2), np.float32)
    assert fit_labels(labels, 8).shape == (8, 2)
    assert fit_labels(labels, 12)[:, 0].tolist() == [1] * 10 + [-5] * 2


def test_clips_carry_pictures_sound_and_labels_of_one_time(root, tmp_path):
    processor = tiny_processor()
    clips = extract_clips(load_affwild2(root, "train"), processor, 8, tmp_path)
    assert len(clips) == 2 * 640 // 8 - 2  # but for one clip of each video that ends in a stretch without labels
    for modality, other in (("video", "input_features"), ("audio", "pixel_values")):
        dataset = ClipDataset(clips, processor, modality)
        assert len(dataset) == np.sum(clips[f"{modality}_mask"])
        item = dataset[7]
        assert other not in item
        assert item["labels"].shape == (1, 2)
    # the brightness of the last crop was made from valence, but for the clips that end where there is no face
    dataset = ClipDataset(clips, processor, "video")
    std, mean = np.mean(processor.video_processor.image_std), np.mean(processor.video_processor.image_mean)
    shown = np.array([dataset[i]["pixel_values"][0, -1].mean().item() * std + mean for i in range(len(dataset))])
    valence = np.array([dataset[i]["labels"][0, 0].item() for i in range(len(dataset))])
    assert np.mean(np.abs((shown * 255 - 128) / 110 - valence) < 0.05) > 0.9


@torch.no_grad()
def test_evaluation_is_what_the_pipeline_serves(model_folder, video, silent_video, tmp_path):
    """Over kept features as over media: the same windows, the same timeline."""
    model, processor = jca.JCAModel.from_pretrained(model_folder), jca.JCAProcessor.from_pretrained(model_folder)
    slow = clapping_video(tmp_path / "slow.mp4", seconds=19, claps=(2,), fps=25)
    media = [video, silent_video, slow]
    labels = [np.full((count, 2), 0.5, np.float32) for count in (600, 40, 475)]
    dataset = Dataset.from_list(
        [
            {"video_id": str(i), "media_path": path, "crops_dir": None, "labels": y}
            for i, (path, y) in enumerate(zip(media, labels, strict=True))
        ]
    ).with_format("numpy")
    features = extract_features(dataset, model, processor, 8, tmp_path)
    pipe = pipeline("audio-visual-emotion", model=model_folder)
    for path, values in zip(
        media, predict(model, features, processor, 8, smoothing="paper", batch_size=3), strict=True
    ):
        rows = pipe(path, hop=8, smoothing="paper")
        assert len(rows) == len(values)
        served = np.array([[row["valence"], row["arousal"]] for row in rows])
        np.testing.assert_allclose(values, served, atol=3e-3)  # features are kept in float16
    assert evaluate(model, features, processor, 8)["frames"] == 600 + 40 + 475
    half = jca.JCAModel.from_pretrained(model_folder, dtype=torch.bfloat16)
    features = extract_features(dataset.select([1]), half, processor, 8, tmp_path)
    assert np.isfinite(predict(half, features, processor, 8)[0]).all()


def test_features_are_computed_once_and_never_stale(root, tmp_path, monkeypatch):
    dataset, processor, model = load_affwild2(root, "validation"), tiny_processor(), tiny_model()
    first = extract_features(dataset, model, processor, 8, tmp_path)
    calls = []
    monkeypatch.setattr(jca.JCAProcessor, "windows", lambda *a, **k: calls.append(a) or iter(()))
    again = extract_features(dataset, model, processor, 8, tmp_path)
    assert not calls
    np.testing.assert_array_equal(first["video_features"], again["video_features"])
    changed = dataset.map(lambda row: {"labels": row["labels"] + 0.1})
    prints = [
        fingerprint(dataset, processor, 8, model),
        fingerprint(dataset, processor, 4, model),
        fingerprint(dataset, tiny_processor(faces="given"), 8, model),
        fingerprint(dataset, processor, 8, tiny_model(seed=1)),
        fingerprint(changed, processor, 8, model),
        fingerprint(load_affwild2(root, "train"), processor, 8, model),
    ]
    assert len(set(prints)) == len(prints)


def test_a_run_that_stops_leaves_no_file_that_looks_whole(root, tmp_path):
    model = tiny_model()
    model.get_audio_features = None  # breaks in the first video
    with pytest.raises(TypeError):
        extract_features(load_affwild2(root, "validation"), model, tiny_processor(), 8, tmp_path)
    assert not list(tmp_path.glob("*.arrow"))
    assert len(extract_features(load_affwild2(root, "validation"), tiny_model(), tiny_processor(), 8, tmp_path)) == 1


def test_windows_of_features(root, tmp_path):
    processor = tiny_processor()
    features = extract_features(load_affwild2(root, "train"), tiny_model(), processor, 8, tmp_path)
    plan = WindowDataset(features, processor, 8)
    assert [ends.tolist() for row, ends in plan.windows if row == 0] == sorted(processor.plan(640, 8))
    dense = WindowDataset(features, processor, 8, every_phase=True)
    starts = [ends[0] for row, ends in dense.windows if row == 1]
    assert set(range(7, 640 - 480, 8)) < set(starts)  # all that lie in the video
    assert {ends[0] for row, ends in plan.windows} < set(starts)  # and the plan's, beyond its end too
    row, ends = dense.windows[5]
    item, stored = dense[5], features.with_format("numpy")[row]
    position = [stored["end_frames"].tolist().index(end) for end in ends]
    np.testing.assert_array_equal(item["video_features"], stored["video_features"][position].astype(np.float32))
    np.testing.assert_array_equal(item["labels"][:, 0], stored["labels"][ends, 0])
    tail = dense[len(starts) - 1]
    assert not tail["video_mask"].all()
    assert (tail["labels"][~tail["video_mask"]] == -5).all()
