import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_model

from jca.augmentation import add_feature_noise, augment_crops, drop_modality, make_augmentation
from processing_jca import JCAVideoProcessor


def crops(seed=0):
    """A batch of pictures with a bright left half: where it goes tells what was done."""
    torch.manual_seed(seed)
    video_processor = JCAVideoProcessor(size=32)
    pictures = torch.randint(40, 90, (6, 2, 4, 32, 32, 3), dtype=torch.uint8)
    pictures[:, :, :, :, :16] += 120
    pictures[:, :, 1:] = pictures[:, :, :1]  # nothing moves
    return video_processor, video_processor(pictures.numpy(), return_tensors="pt")


def test_crops_of_a_clip_are_changed_alike_and_clips_differently():
    video_processor, batch = crops()
    batch = {**batch, "labels": torch.zeros(6, 2, 2)}
    torch.manual_seed(1)
    out = augment_crops(video_processor)(batch)["pixel_values"]
    assert out.shape == batch["pixel_values"].shape
    assert (out - out[:, :, :1]).abs().max() < 1e-5
    flat = out[:, :, 0].flatten(0, 1)
    assert all((a - b).abs().max() > 0.05 for i, a in enumerate(flat) for b in flat[:i])
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (video_processor.image_mean, video_processor.image_std))
    colours = flat * std + mean
    assert colours.min() > -1e-4
    assert colours.max() < 1 + 1e-4
    mirrored = colours[..., 16:].mean((1, 2, 3)) > colours[..., :16].mean((1, 2, 3))
    assert 0 < mirrored.sum() < len(mirrored)
    change = colours.mean((1, 2, 3)) - (batch["pixel_values"][:, :, 0].flatten(0, 1) * std + mean).mean((1, 2, 3))
    assert change.abs().max() < 0.4
    torch.manual_seed(1)
    assert torch.equal(augment_crops(video_processor)(batch)["pixel_values"], out)  # a run can be repeated


def masks(count=400):
    return {
        "video_mask": torch.ones(count, 16, dtype=torch.bool),
        "audio_mask": torch.ones(count, 16, dtype=torch.bool),
    }


def test_a_window_loses_one_modality_never_both():
    torch.manual_seed(0)
    out = drop_modality(masks(), 0.5)
    face, voice = out["video_mask"].any(1), out["audio_mask"].any(1)
    assert (face | voice).all()
    assert 0.15 < (~face).float().mean() < 0.35
    assert 0.15 < (~voice).float().mean() < 0.35
    assert out["video_mask"].dtype == torch.bool
    assert torch.equal(out["video_mask"].any(1), out["video_mask"].all(1))  # the whole window
    only_face = {**masks(), "audio_mask": torch.zeros(400, 16, dtype=torch.bool)}
    assert drop_modality(only_face, 1.0)["video_mask"].all()


def test_noise_is_scaled_by_what_is_there():
    torch.manual_seed(0)
    features = torch.randn(64, 16, 8) * 3 + 50
    mask = torch.ones(64, 16, dtype=torch.bool)
    mask[:, 8:] = False
    features[:, 8:] = 1e6  # what stands in a clip that is not there says nothing of the scale
    batch = {"video_features": features, "video_mask": mask, "labels": torch.zeros(64, 16, 2)}
    out = add_feature_noise(batch, 0.1)
    noise = (out["video_features"] - features)[:, :8]
    assert noise.std().item() == pytest.approx(0.3, rel=0.05)
    assert torch.equal(batch["video_features"], features)


def test_all_in_one_is_what_the_model_takes():
    augment = make_augmentation(JCAVideoProcessor(size=32), modality_dropout=0.5, feature_noise=0.1)
    batch = {
        "video_features": torch.randn(4, 16, 8),
        "audio_features": torch.randn(4, 16, 8),
        "labels": torch.rand(4, 16, 2),
        "video_mask": torch.ones(4, 16, dtype=torch.bool),
        "audio_mask": torch.ones(4, 16, dtype=torch.bool),
    }
    assert torch.isfinite(tiny_model()(**augment(batch)).loss)
    unchanged = make_augmentation(JCAVideoProcessor(size=32))(batch)
    assert all(torch.equal(unchanged[name], batch[name]) for name in batch)


def test_without_kornia_the_remedy_is_named():
    code = "import sys; sys.modules['kornia'] = None; import jca.augmentation as a; a.augment_crops(None)"
    root = Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert "pip install 'jca[augment]'" in run.stderr
