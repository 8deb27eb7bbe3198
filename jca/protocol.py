"""Beyond the official score: its spread over videos and subjects, the authors' convention, smoothing and folds."""

from collections.abc import Hashable, Sequence

import numpy as np
from datasets import Dataset, concatenate_datasets

from jca.corpus import split_by_length, with_arrays
from jca.metrics import ccc, is_labelled, score
from pipeline_jca import smooth


AUTHORS_SMOOTHING = {"valence": 20, "arousal": 50}  # frames; ours are in `pipeline_jca.PAPER_SMOOTHING`


def report(
    predictions: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    subjects: Sequence[Hashable],
    names: Sequence[str] = ("valence", "arousal"),
) -> dict[str, float]:
    """
    The official [`score`] of a split, and how the CCC of single videos and of single subjects spreads around it.

    A video's or subject's own CCC is over its labelled frames in one series. Those with fewer than 2 of them or with
    constant labels have none and are left out of mean and standard deviation.

    Args:
        predictions (list of `np.ndarray` of shape `(frames, outputs)`), labels (the same): one entry for each video; a
            label of -5 or NaN means that the frame is not annotated.
        subjects (`list[str]`): whom each video shows.

    Returns:
        What [`score`] returns, and for each output and for `video` and `subject` alike `video_ccc_valence_mean`,
        `video_ccc_valence_std` (population; both NaN where no video has a CCC), `video_ccc_valence_count` (of the videos
        that are in them) and `video_ccc_valence_left_out` (of those that are not).

    Raises:
        ValueError: if shapes or numbers of videos differ or no frame is labelled.
    """
    result = score(predictions, labels, names)
    for unit, owners in (("video", range(len(labels))), ("subject", subjects)):
        parts = {}
        for owner, predicted, labelled in zip(owners, predictions, labels, strict=True):
            valid = is_labelled(labelled)
            parts.setdefault(owner, []).append((predicted[valid], labelled[valid]))
        series = [[np.concatenate(side) for side in zip(*part, strict=True)] for part in parts.values()]
        for index, name in enumerate(names):
            own = [ccc(x[:, index], y[:, index]) for x, y in series if len(np.unique(y[:, index])) > 1]
            key = f"{unit}_ccc_{name}"
            result[f"{key}_mean"] = float(np.mean(own)) if own else float("nan")
            result[f"{key}_std"] = float(np.std(own)) if own else float("nan")
            result[f"{key}_count"] = len(own)
            result[f"{key}_left_out"] = len(series) - len(own)
    return result


def authors_score(
    predictions: Sequence[np.ndarray], labels: Sequence[np.ndarray], names: Sequence[str] = ("valence", "arousal")
) -> dict[str, float]:
    """
    The score as the authors' evaluation code computes it, to print its effect beside [`score`]; not to be reported alone.

    Frames that are not annotated stay in the series with 0 for both prediction and label. Predictions are clipped to
    [-1, 1] and then smoothed over those zeros, video by video, by a moving average of 20 frames for valence and 50 for
    arousal (and none for any other output), which shifts them by half a frame and pulls the ends of a video to 0.

    Args:
        predictions, labels: see [`report`]; predictions not smoothed.

    Returns:
        What [`score`] returns, over all frames.

    Raises:
        ValueError: if shapes differ or no frame is labelled.
    """
    score(predictions, labels, names)  # refuses what can not be scored
    valid = [is_labelled(labelled)[:, None] for labelled in labels]
    smoothed = [
        np.stack(
            [
                _uniform_filter(column, AUTHORS_SMOOTHING.get(name, 1))
                for name, column in zip(names, np.where(keep, predicted.clip(-1, 1), 0).T, strict=True)
            ],
            axis=-1,
        )
        for predicted, keep in zip(predictions, valid, strict=True)
    ]
    return score(smoothed, [np.where(keep, y, 0) for y, keep in zip(labels, valid, strict=True)], names)


def _uniform_filter(values: np.ndarray, size: int) -> np.ndarray:
    """`scipy.ndimage.uniform_filter1d(values, size, mode="constant")`, of `(frames,)`."""
    first = (size - 1) // 2
    return np.convolve(values, np.full(size, 1 / size))[first : first + len(values)]


def choose_smoothing(
    predictions: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    times: Sequence[np.ndarray],
    sizes: Sequence[int] = (1, 11, 21, 51, 101, 201),
    names: Sequence[str] = ("valence", "arousal"),
    frame_rate: float = 30.0,
) -> dict[str, int]:
    """
    The moving average of [`pipeline_jca.smooth`] that gives each output the best CCC over these videos; of equal ones the
    smallest. What the pipeline, [`pipeline_jca.timeline`] and [`jca.evaluation.predict`] take as `smoothing`.

    Give it videos of training folds, predicted by a model that was not trained on them, and never the split that is
    reported: a size chosen on that split flatters its score.

    Args:
        predictions, labels: see [`report`]; predictions not smoothed.
        times (list of `np.ndarray` of shape `(frames,)`): seconds from the first frame of each video, rising.
        sizes (`list[int]`): odd numbers of frames at `frame_rate`.

    Raises:
        ValueError: if shapes differ, no frame is labelled or a size is not odd.
    """
    for index, (predicted, seconds) in enumerate(zip(predictions, times, strict=True)):
        if len(predicted) != len(seconds):
            raise ValueError(
                f"Video {index} has {len(predicted)} predictions and {len(seconds)} times: give one a frame."
            )
    scores = {}
    for size in sorted(sizes):
        smoothed = [
            np.stack([smooth(column, seconds, size, frame_rate) for column in predicted.T], axis=-1)
            for predicted, seconds in zip(predictions, times, strict=True)
        ]
        scores[size] = score(smoothed, labels, names)
    # rounded, as what a cumulative sum leaves behind does not make a size better
    return {name: max(scores, key=lambda size: round(scores[size][f"ccc_{name}"], 9)) for name in names}


def cross_validation(train: Dataset, validation: Dataset, num_folds: int = 6) -> list[tuple[Dataset, Dataset]]:
    """
    Folds for a cross-validation with the official split as fold 0, as the six of RJCMA (CVPRW 2024).

    Each other fold takes its part of the official training set for validation and trains on everything else, the official
    validation set included: every row is in the validation set of one fold. A subject is never on both sides of a fold,
    nor is a recording, whose sound two subjects share; the parts are of nearly the same number of frames and always the
    same for the same rows.

    Args:
        train, validation: rows of `jca.corpus.ROW`.

    Returns:
        `num_folds` pairs of training and validation set.

    Raises:
        ValueError: if the official split shares a subject or recording, or there are too few to make folds of.
    """
    if num_folds < 2:
        raise ValueError(f"num_folds={num_folds} must be at least 2: fold 0 is the official split.")
    check_disjoint(train, validation)
    groups, frames = _groups(train), np.array(train.with_format(None)["num_frames"])
    if len(groups) < num_folds - 1:
        raise ValueError(
            f"num_folds={num_folds} takes {num_folds - 1} parts of the training set, whose {len(train)} rows are only "
            f"{len(groups)} groups that share no subject or recording: give num_folds={len(groups) + 1} or less."
        )
    folds = [(train, validation)]
    for part in split_by_length([int(frames[rows].sum()) for rows in groups], num_folds - 1):
        held_out = sorted(row for index in part for row in groups[index])
        kept = sorted(set(range(len(train))) - set(held_out))
        folds.append((with_arrays(concatenate_datasets([train.select(kept), validation])), train.select(held_out)))
    return folds


def nested_folds(train: Dataset, validation: Dataset, num_folds: int = 6) -> list[tuple[Dataset, Dataset, Dataset]]:
    """
    [`cross_validation`] in which nothing is selected by what is reported: for each fold the rows to train on, those to
    select by, which are the held-out part of the next fold, and those to report.

    Raises:
        ValueError: if there are fewer than 3 folds.
    """
    if num_folds < 3:
        raise ValueError(
            f"num_folds={num_folds} must be at least 3: one part to train on, one to select by, one to report."
        )
    folds = cross_validation(train, validation, num_folds)
    nested = []
    for index, (training, reported) in enumerate(folds):
        selected = folds[(index + 1) % num_folds][1]
        names = set(selected["video_id"])
        kept = [row for row, name in enumerate(training["video_id"]) if name not in names]
        nested.append((training.select(kept), selected, reported))
    return nested


def check_disjoint(train: Dataset, validation: Dataset, where: str = "Training and validation set") -> None:
    """
    Raises:
        ValueError: if a subject or recording is in both, naming them.
    """
    shared = {
        name: sorted(set(train.with_format(None)[name]) & set(validation.with_format(None)[name]))
        for name in ("subject", "recording")
    }
    if any(shared.values()):
        what = " and ".join(f"{name} {values}" for name, values in shared.items() if values)
        raise ValueError(f"{where}: training and validation share {what}: take these rows out of one of the two.")


def _groups(dataset: Dataset) -> list[list[int]]:
    """Rows that share a subject or a recording, be it through other rows: the trees of a union-find."""
    parents = list(range(len(dataset)))

    def root(row: int) -> int:
        while parents[row] != row:
            row = parents[row]
        return row

    for name in ("subject", "recording"):
        first = {}
        for row, value in enumerate(dataset.with_format(None)[name]):
            parents[root(row)] = root(first.setdefault(value, row))
    groups = {}
    for row in range(len(dataset)):
        groups.setdefault(root(row), []).append(row)
    return list(groups.values())
