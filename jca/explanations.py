"""How much of a prediction is owed to the face and how much to the voice."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from modeling_jca import JCAModel, from_windows
from pipeline_jca import timeline_rows
from processing_jca import JCAProcessor


MEDIA = {"video": ("pixel_values",), "audio": ("input_features", "input_values")}


def check_modalities(model: JCAModel) -> None:
    """Raise a ValueError for a model of one modality."""
    if len(model.config.modalities) < 2:
        raise ValueError(
            f"Contributions compare face and voice, and this model has {list(model.config.modalities)} alone."
        )


@torch.no_grad()
def modality_contributions(model: JCAModel, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    r"""
    What each modality adds to the outputs of every clip: Shapley values of the two.

    With `f(S)` the output when the modalities in `S` are there and the others masked in the whole window,
    `φ_video = ((f(va) - f(a)) + (f(v) - f())) / 2`, `φ_audio` likewise, so that `φ_video + φ_audio = f(va) - f()`.
    Encoders run once; the fusion runs four times.

    Args:
        model: with both modalities.
        inputs: those of `JCAModel.forward`, without labels; both modalities.

    Returns:
        `video`, `audio`: `(batch, clips, outputs)`, signed, in units of the output; `audio_share`: the same shape, the share
        of the voice, `|φ_audio| / (|φ_video| + |φ_audio|)` in [0, 1].

    Raises:
        ValueError: if the model has one modality, or the inputs.
    """
    check_modalities(model)
    inputs = dict(inputs)
    for modality, names in MEDIA.items():
        features, mask = inputs.get(f"{modality}_features"), inputs.get(f"{modality}_mask")
        if features is None:
            given = next((inputs.pop(name) for name in names if name in inputs), None)
            if given is None:
                raise ValueError(f"Contributions compare face and voice, and there is no {modality} among the inputs.")
            features = getattr(model, f"get_{modality}_features")(given.to(model.dtype), mask)
        inputs[f"{modality}_features"] = features
        inputs[f"{modality}_mask"] = features.new_ones(features.shape[:2]) if mask is None else mask

    def f(*present: str) -> torch.Tensor:
        masks = {f"{m}_mask": inputs[f"{m}_mask"] * float(m in present) for m in ("video", "audio")}
        return model(**{**inputs, **masks}).logits

    both, video, audio, none = f("video", "audio"), f("video"), f("audio"), f()
    phi_video, phi_audio = (both - audio + video - none) / 2, (both - video + audio - none) / 2
    total = phi_video.abs() + phi_audio.abs()
    share = torch.where(total > 0, phi_audio.abs() / total.clamp(min=1e-12), 0.5)
    return {"video": phi_video, "audio": phi_audio, "audio_share": share}


def audio_share(model: JCAModel, processor: JCAProcessor, source: Any, **options: Any) -> np.ndarray:
    """The share of the voice in each output of each row that the pipeline gives, `(rows, outputs)` in [0, 1]; see
    [`modality_contributions`]. `source` and `options` are those of the pipeline: hop, faces, limits."""
    names = list(model.config.id2label.values())

    @torch.no_grad()
    def shares() -> Iterator[dict[str, Any]]:
        for window in processor.windows(source, **options, tracks=model.reads_tracks):
            inputs, shifts = {name: x.to(model.device) for name, x in processor.inputs(window).items()}, 1
            if model.reads_tracks:
                inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
                sizes = processor.track_sizes(processor.block_length // len(window["end_frames"]))
                inputs, shifts = model.track_windows(sizes=sizes, **inputs)
            share = from_windows(modality_contributions(model, **inputs)["audio_share"], shifts)
            yield {**window, "values": share[0].float().cpu().numpy()}

    return np.array([[row[name] for name in names] for row in timeline_rows(shares(), names, processor.frame_rate)])
