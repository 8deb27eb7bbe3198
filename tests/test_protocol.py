import json

import numpy as np
import pytest
from scipy.ndimage import uniform_filter1d

from jca.corpus import frame_labels, make_dataset, make_row
from jca.metrics import ccc, score
from jca.protocol import authors_score, choose_smoothing, cross_validation, report
from pipeline_jca import smooth


UP = np.array([-0.5, 0.5], np.float32)  # shifted by d, its CCC with itself is 0.5 / (0.5 + d²)


def pair(valence, arousal) -> np.ndarray:
    return np.stack([valence, arousal], axis=1).astype(np.float32)


def test_report_is_of_each_video_and_each_subject():
    tenth = np.full(2, 0.1)
    labels = [pair(UP, UP), pair(UP, UP), pair(UP, UP), pair(tenth, UP), pair([0.3, -5], [0.3, -5])]
    predictions = [pair(UP, UP + 1), pair(-UP, UP + 1), pair(UP + 0.5, -UP), pair(tenth, UP), pair([0, 0], [0, 0])]
    labels[0] = np.concatenate([labels[0], [[-5, -5], [0.9, np.nan]]])  # not annotated: predictions there do not matter
    predictions[0] = np.concatenate([predictions[0], np.ones((2, 2))])
    result = report(predictions, labels, ["a", "a", "b", "c", "d"])

    assert result.items() >= score(predictions, labels).items()
    assert result["frames"] == 9
    videos = [1, -1, 2 / 3]  # the fourth has constant labels, the fifth a single one
    assert result["video_ccc_valence_mean"] == pytest.approx(np.mean(videos))
    assert result["video_ccc_valence_std"] == pytest.approx(np.std(videos))
    assert (result["video_ccc_valence_count"], result["video_ccc_valence_left_out"]) == (3, 2)
    videos = [1 / 3, 1 / 3, -1, 1]  # constant valence leaves the arousal of the fourth as it is
    assert result["video_ccc_arousal_mean"] == pytest.approx(np.mean(videos))
    assert result["video_ccc_arousal_std"] == pytest.approx(np.std(videos))
    assert (result["video_ccc_arousal_count"], result["video_ccc_arousal_left_out"]) == (4, 1)
    subjects = [0, 2 / 3]  # the two videos of the first one as one series
    assert result["subject_ccc_valence_mean"] == pytest.approx(np.mean(subjects), abs=1e-7)
    assert result["subject_ccc_valence_std"] == pytest.approx(np.std(subjects), abs=1e-7)
    assert (result["subject_ccc_valence_count"], result["subject_ccc_valence_left_out"]) == (2, 2)
    assert (result["subject_ccc_arousal_count"], result["subject_ccc_arousal_left_out"]) == (3, 1)
    json.dumps(result)


def test_report_without_a_video_that_has_a_ccc():
    labels = [pair([0.1] * 3, [0.2] * 3), pair([0.5] * 3, [0.6] * 3), np.full((3, 2), -5.0)]
    result = report(labels, labels, ["one", "one", "two"])
    assert result["ccc"] == pytest.approx(1)
    assert np.isnan(result["video_ccc_valence_mean"])
    assert np.isnan(result["video_ccc_valence_std"])
    assert (result["video_ccc_valence_count"], result["video_ccc_valence_left_out"]) == (0, 3)
    assert result["subject_ccc_valence_mean"] == pytest.approx(1)
    assert (result["subject_ccc_valence_count"], result["subject_ccc_valence_left_out"]) == (1, 1)


def noisy_videos(lengths, seed=0):
    rng = np.random.default_rng(seed)
    labels = [np.cumsum(rng.normal(0, 0.05, (length, 2)), axis=0).clip(-1, 1) for length in lengths]
    return [y + rng.normal(0, 0.4, y.shape) for y in labels], labels


def test_authors_score_is_their_evaluation_step_by_step():
    predictions, labels = noisy_videos([400, 150, 21, 7])  # the last two are shorter than the filters
    labels[0][100:180] = -5
    labels[1][:30] = -5
    labels[2][5, 1] = -5
    result = authors_score(predictions, labels)
    for index, (name, size) in enumerate([("valence", 20), ("arousal", 50)]):
        everything = [], []
        for predicted, labelled in zip(predictions, labels, strict=True):
            x, y = np.zeros(len(labelled)), np.zeros(len(labelled))
            for frame, row in enumerate(labelled):
                if row[0] != -5 and row[1] != -5:
                    x[frame], y[frame] = min(max(predicted[frame, index], -1), 1), row[index]
            everything[0].extend(uniform_filter1d(x, size, mode="constant"))
            everything[1].extend(y)
        x, y = map(np.array, everything)
        expected = 2 * np.corrcoef(x, y)[0, 1] * np.std(x) * np.std(y)
        expected /= np.std(x) ** 2 + np.std(y) ** 2 + (np.mean(x) - np.mean(y)) ** 2
        assert result[f"ccc_{name}"] == pytest.approx(expected, abs=1e-12)
    assert result["ccc"] == pytest.approx((result["ccc_valence"] + result["ccc_arousal"]) / 2)
    assert result["frames"] == 400 + 150 + 21 + 7
    # outputs are known by name: exchanged with their names they have the same scores
    exchanged = authors_score([p[:, ::-1] for p in predictions], [y[:, ::-1] for y in labels], ("arousal", "valence"))
    assert exchanged == pytest.approx(result)


def test_frames_without_a_label_raise_the_authors_score_and_not_ours():
    rng = np.random.default_rng(0)
    labels, predictions = [rng.normal(0.5, 0.1, (2000, 2))], [rng.normal(0.5, 0.1, (2000, 2))]  # unrelated
    assert abs(score(predictions, labels)["ccc"]) < 0.1
    assert abs(authors_score(predictions, labels)["ccc"]) < 0.1
    labels[0][500:1500] = -5
    assert abs(score(predictions, labels)["ccc"]) < 0.1
    assert authors_score(predictions, labels)["ccc"] > 0.8


@pytest.mark.parametrize(
    "function", [authors_score, lambda *x: report(*x, ["a"]), lambda *x: choose_smoothing(*x, [np.arange(3) / 30])]
)
def test_what_can_not_be_scored_is_refused(function):
    with pytest.raises(ValueError, match="No frame of these videos is labelled"):
        function([np.zeros((3, 2))], [np.full((3, 2), -5.0)])
    with pytest.raises(ValueError, match=r"Video 0 has predictions of shape \(3, 2\) and labels of shape \(4, 2\)"):
        function([np.zeros((3, 2))], [np.zeros((4, 2))])


def waves(num_frames=3000):
    """Two videos of slow valence and much faster arousal, and predictions of them with noise on every frame."""
    rng = np.random.default_rng(0)
    frames = np.arange(num_frames)
    labels = [0.5 * np.sin(frames[:, None] / [40, 6] + start) for start in (0, 1)]
    predictions = [y + rng.normal(0, 0.4, y.shape) for y in labels]
    return predictions, labels, [frames / 30] * 2


def test_smoothing_is_chosen_for_each_output():
    predictions, labels, times = waves()
    best = choose_smoothing(predictions, labels, times)
    assert best == {"valence": 51, "arousal": 11}
    assert choose_smoothing(predictions, labels, times, sizes=(201, 51, 11, 1)) == best
    for index, name in enumerate(best):  # as the one who looks at each size would choose
        y = np.concatenate(labels)[:, index]
        scores = {
            size: ccc(
                np.concatenate([smooth(p[:, index], t, size) for p, t in zip(predictions, times, strict=True)]), y
            )
            for size in (1, 11, 21, 51, 101, 201)
        }
        assert best[name] == max(scores, key=scores.get)
    exchanged = [p[:, ::-1] for p in predictions], [y[:, ::-1] for y in labels]
    assert choose_smoothing(*exchanged, times, names=("arousal", "valence")) == best
    # at 15 frames a second the same series needs twice the time
    slower = [2 * seconds for seconds in times]
    assert choose_smoothing(predictions, labels, slower) == {"valence": 101, "arousal": 21}
    assert choose_smoothing(predictions, labels, slower, frame_rate=15.0) == best


def test_smoothing_looks_at_labelled_frames_only():
    predictions, labels, times = waves()
    clean = [y.copy() for y in labels]
    for x, y, noisy in zip(clean, labels, predictions, strict=True):
        x[1000:] = noisy[1000:]
        y[990:] = -5  # nothing of the noise is within 5 frames of a label
    assert choose_smoothing(clean, labels, times, sizes=(1, 11)) == {"valence": 1, "arousal": 1}


def test_predictions_without_noise_are_not_smoothed():
    _, labels, times = waves()
    assert choose_smoothing(labels, labels, times) == {"valence": 1, "arousal": 1}
    flat = [np.full_like(y, value) for y, value in zip(labels, (0.1, 0.7), strict=True)]  # no size changes these
    assert choose_smoothing(flat, labels, times) == {"valence": 1, "arousal": 1}
    assert choose_smoothing(flat, labels, times, sizes=(21, 11)) == {"valence": 11, "arousal": 11}


def test_smoothing_refuses_what_it_can_not_use():
    predictions, labels, times = waves(30)
    with pytest.raises(ValueError, match="must be an odd number of frames"):
        choose_smoothing(predictions, labels, times, sizes=(1, 20))
    with pytest.raises(ValueError, match="Video 1 has 30 predictions and 31 times"):
        choose_smoothing(predictions, labels, [times[0], np.arange(31) / 30])


def rows(*descriptions):
    """A dataset of `(subject, media, frames)` each."""
    rng = np.random.default_rng(0)
    made = [
        make_row(f"{subject}-{media}", f"{media}.mp4", rng.uniform(-1, 1, (frames, 2)), 30.0, subject=subject)
        for subject, media, frames in descriptions
    ]
    return make_dataset(made, [], "test", "raise")


def by_subject_and_media(dataset):
    return set(zip(dataset["subject"], dataset["recording"], strict=True))


def test_folds_keep_subjects_and_media_together():
    train = rows(
        *[(f"alone-{index}", f"alone-{index}", 20 + index) for index in range(12)],
        *[("actor", f"film-{index}", 15) for index in range(4)],
        *[(f"guest-{index}", "talk", 25) for index in range(3)],
        ("first", "one", 10),  # first and third share nothing, but the second the subject of the one and the media of
        ("third", "two", 10),  # the other, and comes after both
        ("first", "two", 10),
    )
    validation = rows(("held out", "held-out", 40), ("held out too", "held-out", 40))
    folds = cross_validation(train, validation)
    assert len(folds) == 6
    assert folds[0] == (train, validation)
    everything = by_subject_and_media(train) | by_subject_and_media(validation)
    held_out = [pair for _, side in folds for pair in by_subject_and_media(side)]
    assert len(held_out) == len(everything)
    assert set(held_out) == everything
    for training, held_out in folds:
        assert len(held_out) > 0
        assert by_subject_and_media(training) | by_subject_and_media(held_out) == everything
        assert len(training) + len(held_out) == len(train) + len(validation)
        for name in ("subject", "recording"):
            assert not set(training[name]) & set(held_out[name])
    together = {("first", "one"), ("third", "two"), ("first", "two")}
    assert sum(bool(together & by_subject_and_media(held_out)) for _, held_out in folds) == 1
    again = cross_validation(train, validation)
    assert [list(side["video_id"]) for fold in folds for side in fold] == [
        list(side["video_id"]) for fold in again for side in fold
    ]


def test_folds_are_rows_as_before():
    train, validation = rows(("a", "a", 3), ("b", "b", 4), ("c", "c", 5)), rows(("d", "d", 6))
    before = {row["video_id"]: frame_labels(row) for dataset in (train, validation) for row in dataset}
    for fold in cross_validation(train, validation, num_folds=4):
        for side in fold:
            assert side.features == train.features
            assert side.format["type"] == "numpy"
            for row in side:
                np.testing.assert_array_equal(frame_labels(row), before[row["video_id"]])
                assert row["num_frames"] == len(before[row["video_id"]])


def test_folds_have_as_many_frames_as_each_other():
    short = [(f"short-{index}", f"short-{index}", 10) for index in range(10)]
    train = rows(("long", "long", 100), *short, ("left", "both", 50), ("right", "both", 50))
    folds = cross_validation(train, rows(("d", "d", 6)), num_folds=4)
    assert [sum(held_out["num_frames"]) for _, held_out in folds] == [6, 100, 100, 100]
    assert sorted(len(held_out) for _, held_out in folds[1:]) == [1, 2, 10]


def test_folds_refuse_what_would_leak_or_can_not_be_split():
    train = rows(("a", "x", 3), ("a", "y", 3), ("b", "y", 3), ("c", "z", 3))
    with pytest.raises(ValueError, match=r"share subject \['c'\] and recording \['y'\]: take these rows out"):
        cross_validation(train, rows(("c", "w", 3), ("d", "y", 3)))
    with pytest.raises(ValueError, match=r"share subject \['c'\]: take"):
        cross_validation(train, rows(("c", "w", 3)))
    with pytest.raises(ValueError, match=r"share recording \['y'\]: take"):
        cross_validation(train, rows(("d", "y", 3)))
    other = rows(("e", "e", 3))
    with pytest.raises(ValueError, match="4 rows are only 2 groups .*: give num_folds=3 or less"):
        cross_validation(train, other, num_folds=4)
    assert len(cross_validation(train, other, num_folds=3)) == 3
    with pytest.raises(ValueError, match="num_folds=1 must be at least 2"):
        cross_validation(train, other, num_folds=1)
