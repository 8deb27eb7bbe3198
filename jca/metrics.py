"""CCC and the challenge protocol: every labelled frame of a split in one series."""

from collections.abc import Sequence

import numpy as np


def ccc(predictions: np.ndarray, labels: np.ndarray) -> float:
    """
    Concordance correlation coefficient of predictions `(samples,)` and labels `(samples,)`, in [-1, 1].

    `2 s_xy / (s_x² + s_y² + (x̄ - ȳ)²)` with population variances, as the authors' evaluation (Lin, Biometrics 1989).
    0 where both series are one and the same constant, for which the formula is 0 / 0.
    """
    x, y = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    x, y = x - y[0], y - y[0]  # the mean of equal numbers is not always that number: 0 / 0 would be missed
    denominator = x.var() + y.var() + (x.mean() - y.mean()) ** 2
    return 0.0 if denominator == 0 else float(2 * ((x - x.mean()) * (y - y.mean())).mean() / denominator)


def pcc(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Pearson's correlation coefficient of predictions `(samples,)` and labels `(samples,)`, in [-1, 1]; 0 where one of them
    is constant."""
    x, y = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    scale = x.std() * y.std()
    return 0.0 if scale == 0 else float(((x - x.mean()) * (y - y.mean())).mean() / scale)


def score(
    predictions: Sequence[np.ndarray], labels: Sequence[np.ndarray], names: Sequence[str] = ("valence", "arousal")
) -> dict[str, float]:
    """
    The score of a split: CCC, MSE and PCC of each output over all labelled frames of all videos, and the mean CCC.

    Args:
        predictions, labels (lists of `np.ndarray` of shape `(frames, outputs)`): one entry for each video; a label of -5 or
            NaN means that the frame is not annotated.
        names: of the outputs.

    Returns:
        `{"ccc": mean over the outputs, "ccc_valence": ..., "mse_valence": ..., "pcc_valence": ..., ..., "frames": n}`.

    Raises:
        ValueError: if shapes differ, a prediction is no number or no frame is labelled.
    """
    for index, (predicted, labelled) in enumerate(zip(predictions, labels, strict=True)):
        if predicted.shape != labelled.shape:
            raise ValueError(
                f"Video {index} has predictions of shape {predicted.shape} and labels of shape {labelled.shape}."
            )
        if not np.isfinite(predicted).all():
            frame = int(np.flatnonzero(~np.isfinite(predicted).all(axis=1))[0])
            raise ValueError(f"Video {index} has a prediction that is no number, first at frame {frame}.")
    x, y = np.concatenate(predictions), np.concatenate(labels)
    valid = is_labelled(y)
    if not valid.any():
        raise ValueError("No frame of these videos is labelled in every output: there is nothing to score.")
    x, y = x[valid].astype(np.float64), y[valid].astype(np.float64)
    result = {"frames": int(valid.sum())}
    for index, name in enumerate(names):
        result[f"ccc_{name}"] = ccc(x[:, index], y[:, index])
        result[f"mse_{name}"] = float(((x[:, index] - y[:, index]) ** 2).mean())
        result[f"pcc_{name}"] = pcc(x[:, index], y[:, index])
    return {"ccc": float(np.mean([result[f"ccc_{name}"] for name in names])), **result}


def is_labelled(labels: np.ndarray) -> np.ndarray:
    """Which frames `(frames,)` of `labels` `(frames, outputs)` are annotated in every output."""
    return ((labels != -5) & ~np.isnan(labels)).all(axis=-1)
