import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_processor
from transformers import pipeline

from jca.explanations import audio_share, modality_contributions
from jca.plots import plot_timeline
from jca.timeline import Timeline


def features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {f"{m}_features": torch.randn(2, 16, 8, generator=generator) for m in ("video", "audio")}


@torch.no_grad()
def test_contributions_add_up_to_what_the_modalities_change():
    model = tiny_model()
    inputs = features()
    result = modality_contributions(model, **inputs)
    nothing = {f"{m}_mask": torch.zeros(2, 16) for m in ("video", "audio")}
    change = model(**inputs).logits - model(**inputs, **nothing).logits
    torch.testing.assert_close(result["video"] + result["audio"], change)
    assert result["audio_share"].shape == (2, 16, 2)
    assert ((result["audio_share"] >= 0) & (result["audio_share"] <= 1)).all()


@torch.no_grad()
def test_a_modality_that_is_not_read_contributes_nothing():
    model = tiny_model(fusion="concat")
    for regressor in model.regressors:
        regressor.fc1.weight[:, 8:] = 0  # video stands first
    result = modality_contributions(model, **features())
    assert not result["audio"].any()
    assert not result["audio_share"].any()
    masked = modality_contributions(tiny_model(), **features(), video_mask=torch.zeros(2, 16))
    assert not masked["video"].any()
    assert (masked["audio_share"] == 1).all()


def test_share_of_a_video_in_a_plot(silent_video, video, model_folder, tmp_path):
    model, processor = tiny_model(), tiny_processor()
    assert audio_share(model, processor, silent_video).max() == 0  # there is no sound
    share = audio_share(model, processor, video)
    assert share.shape == (600, 2)
    timeline = Timeline.from_rows(pipeline("audio-visual-emotion", model=model_folder)(video))
    plot_timeline(timeline, tmp_path / "a.png", audio_share=share)
    assert (tmp_path / "a.png").stat().st_size > np.prod((10, 10))


def test_share_in_bfloat16_is_that_of_float32(video):
    model, processor = tiny_model(), tiny_processor()
    expected = audio_share(model, processor, video, hop=32)
    np.testing.assert_allclose(audio_share(model.bfloat16(), processor, video, hop=32), expected, atol=0.1)


def test_what_can_not_be_compared_is_refused():
    with pytest.raises(ValueError, match="there is no audio among the inputs"):
        modality_contributions(tiny_model(), video_features=torch.randn(1, 16, 8))


def test_unimodal_model_is_refused():
    with pytest.raises(ValueError, match=r"this model has \['video'\] alone"):
        modality_contributions(tiny_model(modalities=["video"], fusion="concat"), video_features=torch.randn(1, 16, 8))
