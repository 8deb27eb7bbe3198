"""A model's predictions for a corpus, frame by frame, and their score."""

from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset

from jca.metrics import score
from jca.windows import PlacedWindows, WindowBatch, WindowDataset
from modeling_jca import JCAModel
from pipeline_jca import timeline
from processing_jca import JCAProcessor


def parse_smoothing(text: str) -> int | str:
    """What the scripts take as `--smoothing`, for `argparse`: an odd number of frames, or `"paper"`. Raises an
    ArgumentTypeError for what is neither."""
    if text == "paper":
        return text
    if text.isdecimal() and int(text) % 2:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is no odd number of frames, such as 21: an even one shifts the series")


@torch.no_grad()
def outputs(
    model: JCAModel, dataset: torch.utils.data.Dataset, batch_size: int = 64, num_workers: int = 0
) -> np.ndarray:
    """The logits of every item of a data set in its order, `(items, clips, outputs)`; all processes share the work, and each
    gets all."""
    accelerator = Accelerator()
    loader = accelerator.prepare_data_loader(
        torch.utils.data.DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=WindowBatch.collate),
        device_placement=True,
    )
    model.to(accelerator.device).eval()
    logits = []
    for batch in loader:
        inputs = {name: x.to(model.device) for name, x in batch.items() if name != "labels"}
        inputs = {name: x.to(model.dtype) if x.is_floating_point() else x for name, x in inputs.items()}
        logits.append(accelerator.gather_for_metrics(model(**inputs).logits.float()).cpu())
    return torch.cat(logits).numpy()


def predict_windows(
    model: JCAModel,
    windows: PlacedWindows,
    frame_rate: float,
    smoothing: int | str | Mapping[str, int] | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
) -> list[np.ndarray]:
    """
    Outputs of every frame of every row of `windows`, `(frames, outputs)` each, by the pipeline's [`pipeline_jca.timeline`].

    Args:
        frame_rate, smoothing: frames a second of the grid, and frames of the moving average, see there.
        batch_size, num_workers: windows that go through the model together, and processes that read them.

    Raises:
        ValueError: for what is no smoothing.
    """
    logits, ends = outputs(model, windows, batch_size, num_workers), windows.ends
    names = list(model.config.id2label.values())
    return [
        timeline(
            logits[windows.rows == row].reshape(-1, logits.shape[-1]),
            ends[windows.rows == row].ravel(),
            times,
            names,
            frame_rate,
            smoothing,
        )
        for row, times in enumerate(windows.times)
    ]


def predict(
    model: JCAModel,
    features: Dataset,
    processor: JCAProcessor,
    hop: int,
    smoothing: int | str | Mapping[str, int] | None = None,
    batch_size: int = 64,
) -> list[np.ndarray]:
    """
    Valence and arousal of every frame of every video, `(frames, outputs)` each, from rows of `extract_features`: what the
    pipeline gives for the same files, with the same windows and the same [`pipeline_jca.timeline`].

    Args:
        features: rows of [`extract_features`].
        hop: grid frames between the ends of the clips, of which the features are.
        smoothing: frames of the moving average, see [`pipeline_jca.timeline`].
        batch_size: windows that go through the model together.

    Raises:
        ValueError: for what is no smoothing.
    """
    windows = WindowDataset(features, processor, hop)
    return predict_windows(model, windows, processor.frame_rate, smoothing, batch_size)


def score_windows(
    model: JCAModel,
    windows: PlacedWindows,
    labels: Sequence[np.ndarray],
    frame_rate: float,
    names: Sequence[str],
    pictures: Path | None = None,
    num_workers: int = 0,
) -> dict[str, float]:
    """
    The [`score`] of a model over all labelled frames.

    Args:
        labels: `(frames, outputs)` of each row.
        frame_rate: frames a second of the grid.
        names: of the outputs.
        num_workers: processes that read windows.
        pictures: file for a picture of predictions beside labels; without Matplotlib there is none.
    """
    batch_size = 64 if isinstance(windows, WindowDataset) else 1
    predictions = predict_windows(model, windows, frame_rate, None, batch_size, num_workers)
    if pictures is not None:
        try:
            from jca.plots import plot_predictions

            plot_predictions(predictions, labels, windows.times, pictures, names)
        except ImportError:  # it belongs to an extra, and the run needs it not
            pass
    return score(predictions, labels, names)


def evaluate(
    model: JCAModel, features: Dataset, processor: JCAProcessor, hop: int, pictures: Path | None = None
) -> dict[str, float]:
    """The [`score`] of a model over all labelled frames of the rows of `extract_features`, see [`score_windows`]."""
    labels = list(features.with_format("numpy")["labels"])
    windows, names = WindowDataset(features, processor, hop), list(model.config.id2label.values())
    return score_windows(model, windows, labels, processor.frame_rate, names, pictures)
