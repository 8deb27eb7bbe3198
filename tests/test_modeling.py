import math

import numpy as np
import pytest
import torch
from conftest import TINY, tiny_model
from torch.nn import functional as F
from transformers import AutoModel

import jca


FUSIONS = ["concat", "cross_attention", "joint_cross_attention", "dense_co_attention", "transformer"]


def features(model, batch=3, clips=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "video_features": torch.randn(batch, clips, model.video_size, generator=generator),
        "audio_features": torch.randn(batch, clips, model.audio_size, generator=generator),
    }


def media(batch=2, clips=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.randn(batch, clips, 8, 3, 16, 16, generator=generator),
        "input_features": torch.randn(batch, clips, 64, 107, generator=generator),
    }


# Fusions against their equations, written out one window and one clip at a time ----------------------------------------


def regressors(model, joint):
    out = []
    for regressor in model.regressors:
        hidden = np.maximum(joint @ regressor.fc1.weight.T.numpy() + regressor.fc1.bias.numpy(), 0)
        out.append(hidden @ regressor.fc2.weight.T.numpy() + regressor.fc2.bias.numpy())
    return np.concatenate(out, axis=1)


def projected(model, inputs, window):
    video = inputs["video_features"][window].numpy() @ model.video_projection.weight.T.numpy()
    audio = inputs["audio_features"][window].numpy() @ model.audio_projection.weight.T.numpy()
    return video + model.video_projection.bias.numpy(), audio + model.audio_projection.bias.numpy()


def concat(model, video, audio):
    return video, audio, None


def cross_attention(model, video, audio):
    z = audio @ model.fusion.correlation.weight.numpy() @ video.T  # X_aᵀ W X_v
    z = z / model.fusion.temperature
    attended = []
    for x, scores in ((video, z.T), (audio, z)):
        weights = np.exp(scores) / np.exp(scores).sum(axis=0)  # column-wise
        attended.append(np.tanh(x + (x.T @ weights).T))
    return *attended, None


def joint_cross_attention(model, video, audio):
    joint = np.concatenate([video, audio], axis=1)  # (L, d)
    attended, maps = [], []
    for x, part in ((video, model.fusion.video_attention), (audio, model.fusion.audio_attention)):
        w_j, w, w_c, w_h = (getattr(part, n).weight.numpy() for n in ("joint", "own", "correlated", "out"))
        c = np.tanh(x.T @ (w_j @ joint) / math.sqrt(joint.shape[1]))
        h = np.maximum(w @ x + w_c @ c.T, 0)
        attended.append(w_h @ h + x)
        maps.append(c)
    return *attended, maps


@pytest.mark.parametrize("equations", [concat, cross_attention, joint_cross_attention], ids=lambda f: f.__name__)
@torch.no_grad()
def test_fusion_is_its_equations(equations):
    model = tiny_model(fusion=equations.__name__, temperature=0.7)
    inputs = features(model)
    output = model(**inputs, output_attentions=True)
    for window in range(3):
        video, audio, maps = equations(model, *projected(model, inputs, window))
        np.testing.assert_allclose(output.video_hidden_state[window], video, atol=1e-5)
        np.testing.assert_allclose(output.audio_hidden_state[window], audio, atol=1e-5)
        logits = regressors(model, np.concatenate([video, audio], axis=1))
        np.testing.assert_allclose(output.logits[window], logits, atol=1e-5)
        if maps:
            np.testing.assert_allclose(output.video_attentions[0][window], maps[0], atol=1e-5)
            np.testing.assert_allclose(output.audio_attentions[0][window], maps[1], atol=1e-5)


def test_correlation_maps_are_returned_on_request_alone():
    model = tiny_model()
    assert model(**features(model)).video_attentions is None
    output = model(**features(model), output_attentions=True)
    assert output.video_attentions[0].shape == output.audio_attentions[0].shape == (3, 8, 16)
    model = tiny_model(fusion="cross_attention")
    output = model(**features(model), output_attentions=True)
    assert output.video_attentions[0].shape == (3, 16, 16)
    torch.testing.assert_close(output.video_attentions[0].sum(1), torch.ones(3, 16))


# Sizes ----------------------------------------------------------------------------------------------------------------


def test_default_model_has_the_sizes_of_the_authors():
    with torch.device("meta"):
        model = jca.JCAModel(jca.JCAConfig())

    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert count(model.video_encoder) == 31_300_125  # torchvision's r2plus1d_18 without its classifier
    assert count(model.audio_encoder) == 11_170_240  # torchvision's resnet18 with one channel, without its classifier
    # the authors' cam.py with L = 16 but for its two heads of 82,177, which read another 640 features
    assert count(model.fusion) + count(model.video_projection) + count(model.audio_projection) == 314_626 - 2 * 82_177
    assert [tuple(r.fc1.weight.shape) for r in model.regressors] == [(128, 256), (128, 256)]


def test_r2plus1d_shapes():
    model = jca.R2Plus1DModel(jca.R2Plus1DConfig(hidden_sizes=[4, 8, 8, 16], depths=[1, 1, 2, 1], stem_size=4)).eval()
    output = model(torch.randn(2, 8, 3, 112, 112))
    assert output.last_hidden_state.shape == (2, 16, 1, 7, 7)
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state.mean(dim=(2, 3, 4)))


# Inputs and masks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_features_in_place_of_media(fusion):
    model, inputs = tiny_model(fusion=fusion), media()
    expected = model(**inputs).logits
    assert expected.shape == (2, 16, 2)
    logits = model(
        video_features=model.get_video_features(inputs["pixel_values"]),
        audio_features=model.get_audio_features(inputs["input_features"]),
    ).logits
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_windows_do_not_see_each_other(fusion):
    model = tiny_model(fusion=fusion)
    inputs = features(model, batch=5)
    alone = torch.cat([model(**{k: v[i : i + 1] for k, v in inputs.items()}).logits for i in range(5)])
    torch.testing.assert_close(model(**inputs).logits, alone)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("modality", ["video", "audio"])
@torch.no_grad()
def test_what_is_masked_is_not_read(fusion, modality):
    model = tiny_model(fusion=fusion)
    inputs = features(model)
    mask = torch.ones(3, 16, dtype=torch.bool)
    mask[:, 5:9] = False
    expected = model(**inputs, **{f"{modality}_mask": mask}).logits
    assert not torch.allclose(expected, model(**inputs).logits)
    inputs[f"{modality}_features"][:, 5:9] = float("nan")
    torch.testing.assert_close(model(**inputs, **{f"{modality}_mask": mask}).logits, expected)


def test_clips_that_are_masked_are_not_encoded():
    model, inputs = tiny_model(), media()
    mask = torch.ones(2, 16)
    mask[1, 4:] = 0
    seen = []
    model.video_encoder.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    features = model.get_video_features(inputs["pixel_values"], mask)
    assert len(seen[0]["pixel_values"]) == 20
    torch.testing.assert_close(features[mask == 1], model.get_video_features(inputs["pixel_values"])[mask == 1])
    assert not features[1, 4:].any()
    features.sum().backward()
    assert model.video_encoder.stem[0].weight.grad.any()
    assert not model.get_audio_features(inputs["input_features"], torch.zeros(2, 16)).any()


@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_a_modality_left_out_is_masked_everywhere(fusion):
    model = tiny_model(fusion=fusion, audio_config={**TINY["audio_config"], "hidden_sizes": [4, 12]})
    inputs = features(model)
    expected = model(**inputs, audio_mask=torch.zeros(3, 16)).logits
    torch.testing.assert_close(model(video_features=inputs["video_features"]).logits, expected)
    assert torch.isfinite(expected).all()


@pytest.mark.parametrize("modality", ["video", "audio"])
@torch.no_grad()
def test_unimodal_model(modality, tmp_path):
    model = tiny_model(modalities=[modality], fusion="concat")
    assert not hasattr(model, {"video": "audio", "audio": "video"}[modality] + "_encoder")
    logits = model(**media()).logits  # the other modality's input is passed over
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(AutoModel.from_pretrained(tmp_path)(**media()).logits, logits)


def test_without_projection_the_widths_of_the_encoders_are_kept():
    model = tiny_model(projection_size=None)
    assert model(**features(model)).video_hidden_state.shape == (3, 16, 8)
    wide = {**TINY["audio_config"], "hidden_sizes": [4, 12]}
    model = tiny_model(projection_size=None, audio_config=wide, fusion="concat")
    assert model(video_features=torch.randn(1, 16, 8)).logits.shape == (1, 16, 2)
    with pytest.raises(ValueError, match=r"needs features of one width.*set projection_size"):
        tiny_model(projection_size=None, audio_config=wide)


# Loss -----------------------------------------------------------------------------------------------------------------


def test_loss_is_one_minus_the_mean_ccc():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 16, 2)), rng.normal(0.3, 2, size=(4, 16, 2))
    expected = []
    for i in range(2):
        a, b = x[..., i].ravel(), y[..., i].ravel()
        covariance = np.cov(a, b, bias=True)
        expected.append(2 * covariance[0, 1] / (covariance[0, 0] + covariance[1, 1] + (a.mean() - b.mean()) ** 2))
    loss = jca.ccc_loss(torch.tensor(x), torch.tensor(y))
    assert loss.item() == pytest.approx(1 - np.mean(expected), abs=1e-6)


def test_loss_leaves_out_what_is_not_annotated():
    x, y = torch.randn(4, 16, 2), torch.randn(4, 16, 2)
    y[1:] = torch.tensor([-5.0, float("nan"), -5.0]).view(3, 1, 1)
    x.requires_grad_()
    loss = jca.ccc_loss(x, y)
    assert loss.item() == pytest.approx(jca.ccc_loss(x[:1], y[:1]).item(), abs=1e-6)
    loss.backward()
    assert (x.grad[1:] == 0).all()
    assert (x.grad[0] != 0).any()


def test_loss_without_any_label_is_zero_with_a_gradient():
    x = torch.randn(2, 16, 2, requires_grad=True)
    loss = jca.ccc_loss(x, torch.full_like(x, -5))
    loss.backward()
    assert loss.item() == 0
    assert (x.grad == 0).all()


def test_loss_is_computed_in_float32():
    x, y = torch.randn(64, 16, 2) * 0.01 + 1, torch.randn(64, 16, 2) * 0.01 + 1
    half = jca.ccc_loss(x.bfloat16(), y.bfloat16())
    assert half.dtype is torch.float32
    torch.testing.assert_close(half, jca.ccc_loss(x.bfloat16().float(), y.bfloat16().float()))
    # numbers far from zero: the sums are of deviations from the mean
    torch.testing.assert_close(jca.ccc_loss(x + 100, y + 100), jca.ccc_loss(x, y), atol=1e-3, rtol=0)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_training_reaches_every_parameter(fusion):
    model = tiny_model(fusion=fusion).train()
    model(**media(), labels=torch.rand(2, 16, 2)).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == []


def test_loss_falls():
    model = tiny_model(dropout=0.0).train()
    inputs, labels = features(model), torch.rand(3, 16, 2) * 2 - 1
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# Saving ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_save_and_load(fusion, tmp_path):
    model = tiny_model(fusion=fusion)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is jca.JCAModel
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(loaded(**media()).logits, model(**media()).logits)


def test_half_precision_and_checkpointing(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    inputs = {name: tensor.bfloat16() for name, tensor in media().items()}
    assert half(**inputs).logits.dtype is torch.bfloat16
    torch.testing.assert_close(half(**inputs).logits.float(), model(**media()).logits, atol=0.05, rtol=0.1)
    model.train()
    model(**media(), labels=torch.ones(2, 16, 2)).loss.backward()
    expected = model.video_encoder.stem[0].weight.grad.clone()
    model = tiny_model().train()
    model.gradient_checkpointing_enable()
    model(**media(), labels=torch.ones(2, 16, 2)).loss.backward()
    torch.testing.assert_close(model.video_encoder.stem[0].weight.grad, expected)


# Bad input ------------------------------------------------------------------------------------------------------------


def test_errors_name_the_value_and_the_remedy():
    model = tiny_model()
    good = features(model)
    cases = [
        ({}, "reads video and audio, and none was given: pass pixel_values"),
        ({"video_features": torch.randn(1, 16, 9)}, r"shape \(1, 16, 9\) and must be \(batch, clips, 8\)"),
        (features(model, clips=8), "8 clips, and the weights of joint_cross_attention mix 16.*take any length"),
        ({**good, "labels": torch.rand(3, 16)}, r"labels have shape \(3, 16\) and predictions \(3, 16, 2\)"),
        ({**good, "audio_mask": torch.ones(3, 15)}, r"audio_mask has shape \(3, 15\) and must be .* \(3, 16\)"),
        ({**good, "audio_features": torch.randn(3, 15, 8)}, "must have the same"),
    ]
    for inputs, message in cases:
        with pytest.raises(ValueError, match=message):
            model(**inputs)


def test_features_that_are_not_finite_are_named():
    model = tiny_model()
    inputs = features(model)
    inputs["audio_features"][1, 4, 0] = torch.nan
    with pytest.raises(ValueError, match="audio_features are not finite in window 1, clip 4: mend the clip or set its"):
        model(**inputs)
    mask = torch.ones(3, 16)
    mask[1, 4] = 0
    assert torch.isfinite(model(**inputs, audio_mask=mask).logits).all()


def test_device_map_and_retained_gradients(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, device_map="cpu")
    inputs = features(model)
    output = model(**inputs, labels=torch.rand(3, 16, 2))
    output.video_hidden_state.retain_grad()
    output.loss.backward()
    assert output.video_hidden_state.grad.abs().sum() > 0


def test_other_fusions_take_any_length():
    for fusion in ("concat", "cross_attention"):
        model = tiny_model(fusion=fusion)
        assert model(**features(model, clips=5)).logits.shape == (3, 5, 2)


def test_linear_regressor_is_one_matrix():
    """The authors' regressor has no activation: `regressor_act="linear"`."""
    model = tiny_model(regressor_act="linear")
    inputs = features(model)
    output = model(**inputs)
    joint = torch.cat([output.video_hidden_state, output.audio_hidden_state], dim=-1)
    first = model.regressors[0]
    expected = F.linear(F.linear(joint, first.fc1.weight, first.fc1.bias), first.fc2.weight, first.fc2.bias)
    torch.testing.assert_close(output.logits[..., :1], expected)
