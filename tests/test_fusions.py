import numpy as np
import pytest
import torch
from conftest import TINY, TINY_VIDEO, tiny_model
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel

import jca
from configuration_jca import TEMPORAL_LAYERS
from fusions_jca import SpatialAttention


MAP = {"video_config": {**TINY_VIDEO, "spatial_size": 4}}
VARIANTS = {
    "concat": {"fusion": "concat"},
    "cross_attention": {"fusion": "cross_attention"},
    "joint_cross_attention": {},
    "dense_co_attention": {"fusion": "dense_co_attention"},
    "transformer": {"fusion": "transformer"},
    "recursive": {"num_recursions": 3},
    "gated": {"gated": True, "num_recursions": 2},
    "raw video": {"head_input": "raw_video"},
}
TEMPORAL = {
    "temporal": {"temporal": ["video", "audio", "joint"]},
    "spatial": {**MAP, "fusion": "dense_co_attention", "normalize_features": True, "temporal": ["joint"]},
    "unimodal temporal": {"modalities": ["audio"], "fusion": "concat", "temporal": ["audio", "joint"]},
}
for layer in TEMPORAL_LAYERS:
    VARIANTS |= {f"{name} {layer}": {**changes, "temporal_layer": layer} for name, changes in TEMPORAL.items()}
every_temporal_layer = pytest.mark.parametrize("layer", TEMPORAL_LAYERS)


def features(model, batch=3, clips=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{modality}_features": torch.randn(batch, clips, getattr(model, f"{modality}_size"), generator=generator)
        for modality in model.config.modalities
    }


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def model(request):
    return tiny_model(**request.param)


def test_every_parameter_learns_and_none_is_lost(model, tmp_path):
    inputs = features(model)
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("_encoder." not in name)
    model(**inputs, labels=torch.rand(3, 16, 2)).loss.backward()
    unused = {name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    if model.config.head_input == "raw_video":  # the authors' head does not read the attended audio
        unused = {name for name in unused if not name.startswith("fusion.audio_attention")}
    assert unused == set()
    model.eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
def test_windows_and_masked_clips_do_not_leak(model):
    inputs = features(model)
    alone = torch.cat([model(**{name: x[i : i + 1] for name, x in inputs.items()}).logits for i in range(3)])
    torch.testing.assert_close(model(**inputs).logits, alone, atol=1e-5, rtol=1e-4)
    mask = torch.ones(3, 16)
    mask[:, 10:] = 0
    for modality in model.config.modalities:
        masked = {**inputs, f"{modality}_mask": mask}
        expected = model(**masked).logits
        masked[f"{modality}_features"] = inputs[f"{modality}_features"].clone()
        masked[f"{modality}_features"][:, 10:] = torch.nan
        torch.testing.assert_close(model(**masked).logits, expected)
        with torch.enable_grad():
            model(**masked, labels=torch.rand(3, 16, 2)).loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    nothing = {f"{m}_mask": torch.zeros(3, 16) for m in model.config.modalities}
    assert torch.isfinite(model(**features(model), **nothing).logits).all()


@torch.no_grad()
def test_evaluation_is_deterministic_and_half_precision_close(model, tmp_path):
    inputs = features(model)
    expected = model(**inputs).logits
    assert torch.equal(model(**inputs).logits, expected)
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    logits = half(**{name: x.bfloat16() for name, x in inputs.items()}).logits
    assert logits.dtype is torch.bfloat16
    assert (logits.float() - expected).abs().mean() < 0.05 * expected.std()


# One by one -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_recursion_feeds_the_fusion_its_own_output():
    once, twice = tiny_model(), tiny_model(num_recursions=2)
    twice.load_state_dict(once.state_dict())  # the weights are shared: no more of them
    inputs = features(once)
    first = once(**inputs)
    ones = torch.ones(3, 16, 1)
    video, audio, *_ = once.fusion(first.video_hidden_state, first.audio_hidden_state, ones, ones)
    output = twice(**inputs, output_attentions=True)
    torch.testing.assert_close(output.video_hidden_state, video)
    torch.testing.assert_close(output.audio_hidden_state, audio)
    assert [m.shape for m in output.video_attentions] == [(3, 8, 16)] * 2


@torch.no_grad()
def test_gate_weighs_attended_against_unattended():
    model = tiny_model(gated=True)
    inputs = features(model)
    open_, plain = model(**inputs), tiny_model()
    plain.load_state_dict(model.state_dict(), strict=False)
    for gate in (model.video_gate.gate, model.audio_gate.gate):
        gate.weight.zero_()
        gate.bias.copy_(torch.tensor([-100.0, 100.0]))  # all attended
    attended = plain(**inputs).video_hidden_state
    torch.testing.assert_close(model(**inputs).video_hidden_state, attended.relu())
    assert not torch.allclose(open_.video_hidden_state, attended.relu())
    for gate in (model.video_gate.gate, model.audio_gate.gate):
        gate.bias.neg_()  # none
    projected = model.video_projection(inputs["video_features"])
    torch.testing.assert_close(model(**inputs).video_hidden_state, projected.relu())


@every_temporal_layer
@torch.no_grad()
def test_temporal_layers_read_zeros_where_a_clip_is_masked(layer):
    model = tiny_model(fusion="concat", temporal=["video", "audio"], temporal_layer=layer)
    inputs, mask = features(model), torch.ones(3, 16)
    mask[:, 4:9] = 0
    for modality in ("video", "audio"):
        projection, temporal = getattr(model, f"{modality}_projection"), getattr(model, f"{modality}_temporal")
        projection.bias.fill_(1)
        expected = temporal(projection(inputs[f"{modality}_features"]) * mask[..., None])
        hidden = model(**inputs, **{f"{modality}_mask": mask})[f"{modality}_hidden_state"]
        torch.testing.assert_close(hidden, expected)


@every_temporal_layer
@torch.no_grad()
def test_joint_temporal_layer_gives_the_width_of_one_modality(layer):
    for changes in ({}, {"head_input": "raw_video", "projection_size": 6}, {"modalities": ["audio"]}):
        model = tiny_model(**{"fusion": "concat", **changes}, temporal=["joint"], temporal_layer=layer)
        assert {regressor.fc1.in_features for regressor in model.regressors} == {model.config.projection_size}
        assert model(**features(model)).logits.shape == (3, 16, 2)


@torch.no_grad()
def test_joint_lstm_sees_both_directions():
    model = tiny_model(fusion="concat", temporal=["joint"])
    inputs = features(model)
    expected = model(**inputs).logits
    inputs["audio_features"][:, 8] += 1
    changed = (model(**inputs).logits - expected).abs().amax(dim=(0, 2))
    assert (changed > 0).all()


@pytest.mark.parametrize("places", [["video"], ["audio"], ["joint"], ["video", "audio", "joint"]], ids="+".join)
@torch.no_grad()
def test_tcn_sees_the_past_alone(places):
    model = tiny_model(fusion="concat", temporal=places, temporal_layer="tcn")
    inputs = features(model)
    expected = model(**inputs).logits
    for x in inputs.values():
        x[:, 8] += 1
    changed = (model(**inputs).logits - expected).abs().amax(dim=(0, 2))
    assert not changed[:8].any()
    assert (changed[8:] > 0).all()


@torch.no_grad()
def test_tcn_reaches_as_far_as_its_levels_dilate():
    """1 + 2 (5 - 1) (1 + 2 + 4 + 8) = 121 clips: two convolutions of kernel 5 on each of four levels."""
    model = tiny_model(
        modalities=["audio"], fusion="concat", temporal=["audio", "joint"], temporal_layer="tcn"
    ).double()
    x = features(model, clips=140)["audio_features"].double()
    expected = model(audio_features=x).audio_hidden_state
    x[:, 0] += 1
    changed = (model(audio_features=x).audio_hidden_state - expected).abs().amax(dim=(0, 2))
    assert (changed[:121] > 0).all()
    assert not changed[121:].any()
    levels = [*model.audio_temporal, *model.joint_temporal]
    assert {module.p for level in levels for module in level.modules() if isinstance(module, nn.Dropout)} == {0.1}


@torch.no_grad()
def test_spatial_attention_is_its_equations():
    torch.manual_seed(0)
    attention = SpatialAttention(channels=6, positions=4, audio_size=5, scrambled=False)
    video, audio = torch.randn(6, 4), torch.randn(5)  # channels x places
    places = video.T
    seen = F.relu(attention.video(places))
    scores = torch.tanh(attention.video_score(seen) + attention.audio_score(F.relu(attention.audio(audio)))[:, None])
    alpha = (attention.score.weight @ scores.T)[0].softmax(0)
    expected = attention.out(alpha @ places)
    torch.testing.assert_close(attention(video.reshape(1, 1, -1), audio.view(1, 1, -1))[0, 0], expected)
    # exchanging two places changes nothing about what is seen at each, only where the scores stand
    scrambled = SpatialAttention(6, 4, 5, scrambled=True)
    scrambled.load_state_dict(attention.state_dict())
    same = places.reshape(1, 1, -1)  # flattened places first: what the scrambled view takes for granted
    torch.testing.assert_close(scrambled(same, audio.view(1, 1, -1))[0, 0], expected)
    assert not torch.allclose(scrambled(video.reshape(1, 1, -1), audio.view(1, 1, -1))[0, 0], expected)


@torch.no_grad()
def test_transformer_attention_implementations_agree(tmp_path):
    model = tiny_model(fusion="transformer")
    model.save_pretrained(tmp_path)
    inputs = features(model)
    mask = torch.ones(3, 16)
    mask[0] = 0
    mask[1, 5:] = 0
    eager, sdpa = (AutoModel.from_pretrained(tmp_path, attn_implementation={"": name}) for name in ("eager", "sdpa"))
    torch.testing.assert_close(
        eager(**inputs, audio_mask=mask).logits, sdpa(**inputs, audio_mask=mask).logits, atol=1e-5, rtol=1e-4
    )
    maps = eager(**inputs, audio_mask=mask, output_attentions=True).video_attentions[0]
    assert maps.shape == (3, 4, 16, 16)
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, 4, 16))
    assert not maps[1, ..., 5:].any()  # a clip without audio is not attended to


def test_parameters_are_those_of_the_authors():
    """231,041 (cam.py, L = 8), 314,626 (cam.py, L = 16, two heads), 8,586,323 (orig_cam.py)."""

    def count(**changes):
        with torch.device("meta"):
            model = jca.JCAModel(jca.JCAConfig(**changes))
        return sum(p.numel() for name, p in model.named_parameters() if "_encoder." not in name)

    raw = {"head_input": "raw_video", "regressor_act": "linear"}
    assert count(num_clips=8, id2label={0: "valence"}, **raw) == 231_041
    assert count(num_clips=16, **raw) == 314_626
    dense = {"fusion": "dense_co_attention", "projection_size": None, "temporal": ["joint"]}
    assert count(video_config={"model_type": "r2plus1d", "spatial_size": 7}, **dense) == 8_586_323


def test_errors_name_what_would_fit():
    for changes, message in [
        ({"temporal": ["text"]}, r"temporal names \['text'\]: choose among"),
        ({"modalities": ["audio"], "fusion": "concat", "head_input": "raw_video"}, "needs video and audio"),
        ({"fusion": "transformer", "num_attention_heads": 3}, "choose a number of heads that divides it"),
        ({"num_recursions": 0}, "num_recursions=0 must be at least 1"),
    ]:
        with pytest.raises(Exception, match=message):
            tiny_model(**{**TINY, **changes})
    for fusion in ("joint_cross_attention", "dense_co_attention"):
        model = tiny_model(fusion=fusion)
        with pytest.raises(ValueError, match=f"12 clips, and the weights of {fusion} mix 16"):
            model(**features(model, clips=12))
    assert np.isfinite(tiny_model(fusion="transformer")(**features(tiny_model(), clips=12)).logits.detach()).all()
