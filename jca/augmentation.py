"""Augmentation of batches in training: of crops by Kornia (extra `augment`), of features by dropping and noise."""

from collections.abc import Callable

import torch

from processing_jca import JCAVideoProcessor


Batch = dict[str, torch.Tensor]

BRIGHTNESS, CONTRAST = (
    0.2,
    0.2,
)  # the authors' code, T-BIOM repository: each by up to so much, the same for a whole clip
CROP_SCALE = (0.6, 1.0)  # share of the area that a random square crop keeps; ours, none is published


def augment_crops(video_processor: JCAVideoProcessor, tracks: bool = False) -> Callable[[Batch], Batch]:
    """
    A function that changes `pixel_values` `(batch, clips, frames, 3, height, width)` of a batch: colour jitter (authors'
    code), mirror image, and a random square crop of any scale, resized. All frames of a clip, or with `tracks` of a window,
    are changed alike.

    Raises:
        ImportError: if Kornia is not installed.
    """
    try:
        from kornia import augmentation
    except ImportError as error:
        raise ImportError("Augmentation of crops needs Kornia: pip install 'jca[augment]'") from error

    size = video_processor.size
    change = augmentation.VideoSequential(
        augmentation.ColorJitter(brightness=BRIGHTNESS, contrast=CONTRAST, p=1.0),
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.RandomResizedCrop((size, size), scale=CROP_SCALE, ratio=(1.0, 1.0), p=1.0),
        data_format="BTCHW",
        same_on_frame=True,
    )

    def apply(batch: Batch) -> Batch:
        pixels = batch["pixel_values"]
        mean, std = (
            pixels.new_tensor(x).view(-1, 1, 1) for x in (video_processor.image_mean, video_processor.image_std)
        )
        alike = int(tracks)
        # jitter is of colours in [0, 1]
        colours = (pixels * std + mean).clamp(0, 1).flatten(alike, alike + 1)
        return {**batch, "pixel_values": ((change(colours) - mean) / std).view(pixels.shape)}

    return apply


def drop_modality(batch: Batch, probability: float) -> Batch:
    """
    With `probability`, each window of a batch loses its face or its voice, as likely the one as the other: the mask `(batch,
    clips)` of that modality becomes 0. A window that has only one of the two keeps it.
    """
    masks = {name: batch[name] for name in ("video_mask", "audio_mask")}
    both = torch.stack([(mask != 0).any(dim=1) for mask in masks.values()]).all(dim=0)
    device = both.device
    dropped = both & (torch.rand(len(both), device=device) < probability)
    which = torch.rand(len(both), device=device) < 0.5
    return {
        **batch,
        "video_mask": masks["video_mask"] * ~(dropped & which).unsqueeze(1),
        "audio_mask": masks["audio_mask"] * ~(dropped & ~which).unsqueeze(1),
    }


def add_feature_noise(batch: Batch, level: float) -> Batch:
    """Normal noise on `video_features` and `audio_features` `(batch, clips, size)`, `level` times the standard deviation of
    those in the batch that are present."""
    out = dict(batch)
    for modality in ("video", "audio"):
        if (features := batch.get(f"{modality}_features")) is not None:
            present = features[batch[f"{modality}_mask"] != 0]
            if len(present) > 1:
                out[f"{modality}_features"] = features + level * present.std() * torch.randn_like(features)
    return out


def make_augmentation(
    video_processor: JCAVideoProcessor,
    crops: bool = False,
    modality_dropout: float = 0.0,
    feature_noise: float = 0.0,
    tracks: bool = False,
) -> Callable[[Batch], Batch]:
    """
    What training does to each batch.

    Args:
        video_processor, tracks: of [`augment_crops`].
        crops: whether [`augment_crops`] is done.
        modality_dropout: probability of [`drop_modality`], in [0, 1].
        feature_noise: level of [`add_feature_noise`], a factor on the standard deviation.

    Raises:
        ImportError: see [`augment_crops`].
    """
    change_crops = augment_crops(video_processor, tracks) if crops else None

    def apply(batch: Batch) -> Batch:
        if change_crops is not None:
            batch = change_crops(batch)
        if modality_dropout:
            batch = drop_modality(batch, modality_dropout)
        return add_feature_noise(batch, feature_noise) if feature_noise else batch

    return apply
