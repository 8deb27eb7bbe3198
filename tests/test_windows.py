import pickle

import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_processor
from release import write_release
from torch.utils.data import DataLoader

from jca.affwild2 import load_affwild2
from jca.features import extract_features
from jca.preparation import load_prepared, prepare
from jca.windows import ClipDataset, EpochSampler, MediaWindowDataset, WindowDataset, labels_at


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = write_release(tmp_path_factory.mktemp("release"), {"Train_Set": ["a", "b"]})
    write_release(root, {"Train_Set": ["short"]}, 150)
    prepare({"train": load_affwild2(root, "train")}, root / "prepared", tiny_processor(), num_proc=2)
    return load_prepared(root / "prepared", "train")


@pytest.fixture(scope="module")
def dense(prepared, tmp_path_factory):
    """Features of a clip for every frame: the paper's protocol."""
    return extract_features(prepared, tiny_model(), tiny_processor(), 1, tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def hopped(prepared, tmp_path_factory):
    return extract_features(prepared, tiny_model(), tiny_processor(), 8, tmp_path_factory.mktemp("hopped"))


def test_labels_are_those_of_the_nearest_frame():
    times = np.arange(100) / 30
    labels = np.stack([np.arange(100), -np.arange(100)], axis=1)
    ends = np.array([99, 0, 31, 100, 131])
    np.testing.assert_array_equal(labels_at(ends, times, labels, 30)[:, 0], [99, 0, 31, -5, -5])
    times = np.arange(50) / 15  # half the grid's rate
    assert labels_at(np.array([40]), times, labels[:50], 30)[0, 0] == 20
    times = np.arange(200) / 60
    assert labels_at(np.array([40]), times, np.repeat(labels, 2, axis=0), 30)[0, 0] == 40


def test_clips_carry_pictures_sound_and_labels_of_one_time(prepared):
    processor = tiny_processor()
    for modality, other in (("video", "input_features"), ("audio", "pixel_values")):
        dataset = ClipDataset(prepared.select([0, 1]), processor, modality, 8)
        # but for one clip of each video that ends in a stretch without labels, and one that shows no face
        assert len(dataset) == 2 * (640 // 8 - 1 - (modality == "video"))
        item = dataset[7]
        assert other not in item
        assert item["labels"].shape == (1, 2)
        assert item.keys() == {"labels", "pixel_values" if modality == "video" else "input_features"}
    # the brightness of the last crop was made from valence, but for the clips that end where there is no face
    dataset = ClipDataset(prepared, processor, "video", 8)
    std, mean = np.mean(processor.video_processor.image_std), np.mean(processor.video_processor.image_mean)
    shown = np.array([dataset[i]["pixel_values"][0, -1].mean().item() * std + mean for i in range(len(dataset))])
    valence = np.array([dataset[i]["labels"][0, 0].item() for i in range(len(dataset))])
    assert np.mean(np.abs((shown * 255 - 128) / 110 - valence) < 0.05) > 0.9
    # and the pitch of its sound from arousal
    dataset = ClipDataset(prepared, processor, "audio", 8)
    loudest = np.array([dataset[i]["input_features"][0, :, -30:].mean(-1).argmax().item() for i in range(len(dataset))])
    assert np.corrcoef(loudest, dataset.labels[:, 1])[0, 1] > 0.8


def test_clips_are_read_by_workers(prepared):
    dataset = ClipDataset(prepared, tiny_processor(), "video", 32)
    dataset[0]
    assert len(pickle.loads(pickle.dumps(dataset))) == len(dataset)  # spawned workers
    alone, shared = (
        torch.cat([batch["pixel_values"] for batch in DataLoader(dataset, 4, num_workers=workers)])
        for workers in (0, 2)
    )
    assert torch.equal(alone, shared)


def test_windows_of_features(hopped):
    processor = tiny_processor()
    plan = WindowDataset(hopped, processor, 8)
    assert plan.ends[plan.rows == 0].tolist() == sorted(processor.plan(640, 8))
    windows = WindowDataset(hopped, processor, 8, every_phase=True)
    first = windows.firsts[windows.rows == 1]
    assert set(range(7, 640 - 480, 8)) < set(first.tolist())  # all that lie in the video
    assert set(plan.firsts[plan.rows == 1]) < set(first.tolist())  # and the plan's, beyond its end too
    row, ends = windows.rows[5], windows.ends[5]
    item, stored = windows[5], hopped.with_format("numpy")[int(row)]
    position = [stored["end_frames"].tolist().index(end) for end in ends]
    np.testing.assert_array_equal(item["video_features"], stored["video_features"][position].astype(np.float32))
    np.testing.assert_array_equal(item["labels"][:, 0], stored["labels"][ends, 0])
    tail = windows[int(np.flatnonzero(windows.rows == 0)[-1])]
    assert not tail["video_mask"].all()
    assert (tail["labels"][~tail["video_mask"] & ~tail["audio_mask"]] == -5).all()


def test_every_phase_of_the_paper_is_reached_from_a_dense_cache(dense):
    processor = tiny_processor()
    windows = WindowDataset(dense, processor, 1, every_phase=True)
    of_first = windows.ends[windows.rows == 0]
    assert {int(ends[0]) % 32 for ends in of_first} == set(range(32))
    assert {tuple(ends) for ends in processor.plan(640, 1)} <= {tuple(ends) for ends in of_first.tolist()}
    # windows that lie in the video, shifted by one frame
    assert {int(ends[0]) for ends in of_first} >= set(range(640 - 480))


def test_what_is_not_annotated_is_masked_and_stays(dense):
    windows = WindowDataset(dense, tiny_processor(), 1, every_phase=True)
    touching = [
        i
        for i in range(len(windows))
        if windows.rows[i] == 0 and ((windows.ends[i] >= 100) & (windows.ends[i] < 110)).any()
    ]
    assert touching
    for index in touching[::7]:
        item, ends = windows[index], windows.ends[index]
        hidden = (ends >= 100) & (ends < 110)
        assert (item["labels"].numpy()[hidden] == -5).all()
        assert item["video_mask"].numpy()[hidden].all()  # it is seen, and not learnt from
        assert (item["labels"].numpy()[~hidden & (ends < 640)] != -5).all()


def test_an_epoch_is_drawn_anew_and_the_same_again(hopped):
    windows = WindowDataset(hopped, tiny_processor(), 8, every_phase=True)

    def draw(epoch, **options):
        sampler = EpochSampler(windows.rows, **options)
        sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler))
        return list(sampler)

    assert sorted(draw(0)) == list(range(len(windows)))
    assert draw(0, num_samples=40) == draw(0, num_samples=40)
    assert len(set(draw(0, num_samples=len(windows)))) == len(windows)  # without replacement
    others = [draw(1, num_samples=40), draw(0, num_samples=40, seed=1)]
    assert draw(0, num_samples=40) not in others
    rows = windows.rows[draw(3, num_samples=3000, balanced=True)]
    share = np.bincount(rows) / 3000
    np.testing.assert_allclose(share, 1 / 3, atol=0.04)  # the short video as often as the long ones
    assert len(set(draw(3, num_samples=3000, balanced=True))) == len(windows)
    assert len(draw(0, num_samples=len(windows) + 5)) == len(windows) + 5


def test_a_selection_of_features_is_what_is_read(hopped):
    """Folds select rows: predictions of one video must not meet another's labels."""
    processor = tiny_processor()
    whole, part = WindowDataset(hopped, processor, 8), WindowDataset(hopped.select([2, 0]), processor, 8)
    assert [len(times) for times in part.times] == [150, 640]
    mine, other = part[len(part) - 1], whole[int(np.flatnonzero(whole.rows == 0)[-1])]
    for name in mine:
        assert torch.equal(mine[name], other[name])


def test_a_clip_that_is_not_there_is_masked(hopped):
    windows = WindowDataset(hopped, tiny_processor(), 8)
    last = windows[int(np.flatnonzero(windows.rows == 2)[-1])]  # of 150 frames: 5 clips of 16
    beyond = windows.ends[np.flatnonzero(windows.rows == 2)[-1]] >= 150 + 32
    for name in ("video_mask", "audio_mask"):
        assert not last[name][beyond].any()
    assert (last["labels"][beyond] == -5).all()


def test_windows_of_media_are_those_of_their_features(prepared, hopped):
    processor, model = tiny_processor(), tiny_model()
    media, kept = MediaWindowDataset(prepared, processor, 8), WindowDataset(hopped, processor, 8)
    assert len(media) == len(kept)
    np.testing.assert_array_equal(media.ends, kept.ends)
    for index in (0, 5, len(kept) - 1):
        item = media[index]
        inputs = {name: x[None] for name, x in item.items() if name != "labels"}
        with torch.no_grad():
            theirs = model(**{name: x[None] for name, x in kept[index].items() if name != "labels"}).logits
            torch.testing.assert_close(model(**inputs).logits, theirs, atol=3e-3, rtol=0)
        assert torch.equal(item["labels"], kept[index]["labels"])
