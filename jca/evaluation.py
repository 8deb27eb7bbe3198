"""A model's predictions for a corpus, frame by frame, and their score."""

from collections.abc import Mapping

import numpy as np
import torch
from datasets import Dataset

from jca.metrics import score
from jca.windows import WindowDataset
from modeling_jca import JCAModel
from pipeline_jca import timeline
from processing_jca import JCAProcessor


@torch.no_grad()
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
    pipeline gives for the same files, with the same windows and the same `timeline`.
    """
    model.eval()
    dataset = WindowDataset(features, processor, hop)
    logits = []
    for batch in torch.utils.data.DataLoader(dataset, batch_size):
        inputs = {name: values.to(model.device) for name, values in batch.items() if name != "labels"}
        inputs = {name: x.to(model.dtype) if x.is_floating_point() else x for name, x in inputs.items()}
        logits.append(model(**inputs).logits.float().cpu().numpy())
    logits = np.concatenate(logits)
    rows, ends = dataset.rows, dataset.ends
    names = list(model.config.id2label.values())
    return [
        timeline(
            logits[rows == row].reshape(-1, logits.shape[-1]),
            ends[rows == row].ravel(),
            times,
            names,
            processor.frame_rate,
            smoothing,
        )
        for row, times in enumerate(dataset.times)
    ]


def evaluate(
    model: JCAModel,
    features: Dataset,
    processor: JCAProcessor,
    hop: int,
    smoothing: int | str | Mapping[str, int] | None = None,
) -> dict[str, float]:
    """The [`score`] of a model over all labelled frames of the rows of `extract_features`."""
    predictions = predict(model, features, processor, hop, smoothing)
    labels = features.with_format("numpy")["labels"]
    return score(predictions, list(labels), list(model.config.id2label.values()))
