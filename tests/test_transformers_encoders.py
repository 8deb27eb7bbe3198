"""Every kind of encoder of Transformers in its slot, with tiny sizes and random weights."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import TINY
from media import clapping_video
from test_pipeline import REMOTE
from transformers import (
    ASTFeatureExtractor,
    AutoConfig,
    AutoModel,
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    SeamlessM4TFeatureExtractor,
    ViTForImageClassification,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForPreTraining,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    pipeline,
)

import jca
from jca.corpus import make_dataset, make_row
from jca.features import extract_features
from jca.preparation import load_prepared, prepare
from jca.windows import ClipDataset


BLOCK = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
VIT = {"image_size": 32, "patch_size": 16, **BLOCK}
CNN = {"hidden_sizes": [8, 16], "depths": [1, 1]}
VIDEO = {
    "videomae": {"num_frames": 8, **VIT},
    "vjepa2": {
        "crop_size": 32,
        "frames_per_clip": 8,
        "pred_hidden_size": 16,
        "pred_num_hidden_layers": 1,
        "pred_num_attention_heads": 2,
        **{name: value for name, value in VIT.items() if name not in ("image_size", "intermediate_size")},
    },
    "timesformer": {"num_frames": 8, **VIT},
    "vivit": {"num_frames": 8, "image_size": 32, "tubelet_size": [2, 16, 16], **BLOCK},
    "vit": VIT,
    "dinov2": VIT,
    "dinov3_vit": VIT,
    "clip_vision_model": VIT,
    "siglip_vision_model": VIT,
    "resnet": {"embedding_size": 8, "layer_type": "basic", **CNN},
    "convnext": {"num_stages": 2, **CNN},
    "poolformer": {"num_encoder_blocks": 2, "patch_sizes": [7, 3], "strides": [4, 2], "padding": [2, 1], **CNN},
}
WAV2VEC2 = {
    "conv_dim": [8, 8],
    "conv_stride": [40, 8],
    "conv_kernel": [80, 8],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    **BLOCK,
}
WHISPER = {
    "d_model": 16,
    "num_mel_bins": 16,
    "max_source_positions": 100,
    "vocab_size": 8,
    **{f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in [("layers", 1), ("ffn_dim", 32)]},
    **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
}
AUDIO = {
    **dict.fromkeys(("wav2vec2", "hubert", "wavlm", "data2vec-audio", "unispeech-sat"), WAV2VEC2),
    "wav2vec2-bert": {"feature_projection_input_dim": 32, "conv_depthwise_kernel_size": 3, **BLOCK},
    "audio-spectrogram-transformer": {"patch_size": 16, "num_mel_bins": 32, "max_length": 64, **BLOCK},
    "whisper": WHISPER,
}
SOUNDS = {  # what one clip is to an encoder, for all but those that read waveforms
    "wav2vec2-bert": ("input_features", (20, 32)),
    "audio-spectrogram-transformer": ("input_values", (64, 32)),
    "whisper": ("input_features", (16, 37)),
}
CASES = [*(("video", name) for name in VIDEO), *(("audio", name) for name in AUDIO)]
CLIPS = 2
FUSION = {"projection_size": 8, "attention_size": 4, "regressor_size": 8, "num_clips": CLIPS}


def encoder_config(name, **changes):
    return AutoConfig.for_model(name, **{**VIDEO.get(name, {}), **AUDIO.get(name, {}), **changes})


def build(modality, name):
    """A model of one modality with this encoder, and its inputs."""
    torch.manual_seed(0)
    slot = {f"{modality}_config": {"model_type": name, **(VIDEO if modality == "video" else AUDIO)[name]}}
    config = jca.JCAConfig(**{**TINY, **slot}, modalities=[modality], fusion="concat", num_clips=CLIPS, dropout=0.0)
    argument, shape = (
        ("pixel_values", (8, 3, 32, 32)) if modality == "video" else SOUNDS.get(name, ("input_values", (1600,)))
    )
    return jca.JCAModel(config).eval(), {argument: torch.randn(1, CLIPS, *shape)}


def gradients(model, inputs):
    torch.manual_seed(0)  # of dropout
    model.train().zero_grad()
    model(**inputs, labels=torch.tensor([[[0.5, -0.5], [0.1, 0.9]]])).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


# Each in its slot -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("modality", "name"), CASES)
def test_features_save_and_load_and_half_precision(modality, name, tmp_path):
    model, inputs = build(modality, name)
    (values,) = inputs.values()
    with torch.no_grad():
        features = getattr(model, f"get_{modality}_features")(values)
        assert features.shape == (1, CLIPS, 16)
        torch.testing.assert_close(getattr(model, f"get_{modality}_features")(values[:, 1:]), features[:, 1:])
        logits = model(**inputs).logits
        assert logits.shape == (1, CLIPS, 2)
        model.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path)
        state = loaded.state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
        assert torch.equal(loaded(**inputs).logits, logits)
        half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        halves = getattr(half, f"get_{modality}_features")(values.bfloat16())
        torch.testing.assert_close(halves.float(), features, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(("modality", "name"), CASES)
def test_every_parameter_gets_a_gradient_with_and_without_checkpointing(modality, name):
    model, inputs = build(modality, name)
    expected = gradients(model, inputs)
    assert [key for key, gradient in expected.items() if gradient is None] == []
    if name in ("resnet", "convnext", "poolformer"):  # Transformers has no checkpointing of these
        return
    expected = {key: gradient.clone() for key, gradient in expected.items()}
    model.gradient_checkpointing_enable()
    modules = getattr(model, f"{modality}_encoder").modules()
    assert any(getattr(module, "gradient_checkpointing", False) for module in modules)
    for key, gradient in gradients(model, inputs).items():
        torch.testing.assert_close(gradient, expected[key], msg=key)


# What a feature is made of --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_tokens_are_averaged_without_cls():
    for name in ("vit", "vivit", "timesformer"):
        model, inputs = build("video", name)
        clip = inputs["pixel_values"][0, 1]
        items = clip if name == "vit" else clip[None]
        tokens = model.video_encoder(items).last_hidden_state
        assert tokens.shape[1] == 1 + {"vit": 4, "vivit": 4 * 4, "timesformer": 8 * 4}[name]
        expected = tokens[:, 1:].mean(dim=(0, 1))  # for the image encoder over the frames too
        torch.testing.assert_close(model.get_video_features(inputs["pixel_values"])[0, 1], expected)


@torch.no_grad()
def test_image_encoders_see_frame_by_frame():
    model, inputs = build("video", "dinov2")
    frames = inputs["pixel_values"][0, 0]
    expected = torch.stack([model.video_encoder(frame[None]).pooler_output[0] for frame in frames]).mean(dim=0)
    torch.testing.assert_close(model.get_video_features(inputs["pixel_values"])[0, 0], expected)


@torch.no_grad()
def test_whisper_is_padded_as_its_feature_extractor_pads_and_the_padding_is_not_averaged():
    model, _ = build("audio", "whisper")
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    waveform = np.random.default_rng(0).normal(0, 0.1, 17_067).astype(np.float32)
    waveform[16_700:] = 0  # so that no window reaches over the end of the sound
    clip = jca.JCAProcessor(feature_extractor=extractor).audio_inputs(waveform[None])
    assert clip.shape == (1, 16, 106)
    padded = extractor(waveform, sampling_rate=16_000, return_tensors="pt")["input_features"]
    assert padded.shape == (1, 16, 200)
    expected = model.audio_encoder(padded).last_hidden_state[0, :53].mean(dim=0)
    torch.testing.assert_close(model.get_audio_features(clip[None])[0, 0], expected)


def test_what_a_feature_has_no_use_for_is_left_out():
    names = {name for slot, kind in CASES for name, _ in build(slot, kind)[0].named_parameters()}
    assert not [name for name in names if "decoder" in name or "predictor" in name or "mask" in name]
    config = jca.JCAConfig(audio_config={"model_type": "wav2vec2"})
    assert (config.audio_config.mask_time_prob, config.audio_config.layerdrop) == (0, 0)
    masking = jca.JCAConfig(
        **{**TINY, "audio_config": {"model_type": "unispeech-sat", **WAV2VEC2, "mask_time_prob": 0.5}}
    )
    assert masking.audio_config.mask_time_prob == 0.5
    assert jca.JCAModel(masking).audio_encoder.masked_spec_embed is not None


# Slots ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modality", "config", "message"),
    [
        (
            "video",
            encoder_config("hubert"),
            "video_config is of the type 'hubert', which reads input_values: the video slot takes",
        ),
        (
            "audio",
            encoder_config("videomae"),
            "audio_config is of the type 'videomae', which reads pixel_values.*wav2vec2, hubert",
        ),
        ("audio", encoder_config("vit"), "reads pixel_values: .* or an image encoder with num_channels=1"),
        (
            "video",
            CLIPConfig(vision_config=VIT, text_config=BLOCK),
            "'clip', which .*clip_vision_model",
        ),
        ("audio", AutoConfig.for_model("bert", vocab_size=8, **BLOCK), "'bert', which reads input_ids"),
        ("video", AutoConfig.for_model("mobilenet_v2"), "does not say how wide its features are"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused_when_the_model_is_built(modality, config, message):
    with pytest.raises(ValueError, match=message):
        jca.JCAModel(jca.JCAConfig(**{**TINY, f"{modality}_config": config}))


def test_sound_under_the_wrong_name_is_refused():
    model, inputs = build("audio", "wav2vec2")
    message = r"input_features were given, and the audio encoder of this model \(wav2vec2\) reads input_values"
    with pytest.raises(ValueError, match=message):
        model(input_features=inputs["input_values"])
    with pytest.raises(ValueError, match="audio at 16000 Hz was given: resample it to 44100 Hz"):
        jca.JCAFeatureExtractor()(np.zeros(20_000), sampling_rate=16_000)


def test_each_part_has_its_own_attention(tmp_path):
    config = {"video_config": encoder_config("vit"), "audio_config": encoder_config("wavlm")}
    model = jca.JCAModel(jca.JCAConfig(**{**TINY, **config}))
    # WavLM has no "sdpa"
    assert (model.video_encoder.config._attn_implementation, model.audio_encoder.config._attn_implementation) == (
        "sdpa",
        "eager",
    )
    model.save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, attn_implementation={"video_config": "eager"})
    assert model.video_encoder.config._attn_implementation == "eager"


def test_frozen_encoders_stay_as_they_are():
    torch.manual_seed(0)
    model = jca.JCAModel(jca.JCAConfig(**{**TINY, "video_config": encoder_config("resnet"), "num_clips": CLIPS}))
    model.freeze_encoders()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "_encoder." in name}
    inputs = {"pixel_values": torch.randn(1, CLIPS, 8, 3, 32, 32), "input_features": torch.randn(1, CLIPS, 16, 20)}
    trained = gradients(model, inputs)
    assert trained
    assert not [name for name in trained if "_encoder." in name]
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in before.items())  # statistics of batch norms as well
    assert model.training
    assert not model.video_encoder.training
    model.video_encoder.requires_grad_(True)
    assert model.train().video_encoder.training


# From trained encoders ------------------------------------------------------------------------------------------------


COLOURS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
EXTRACTORS = {
    "wav2vec2": Wav2Vec2FeatureExtractor(),
    "wavlm": Wav2Vec2FeatureExtractor(),
    "whisper": WhisperFeatureExtractor(feature_size=16, chunk_length=2),
    "wav2vec2-bert": SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16),
    "audio-spectrogram-transformer": ASTFeatureExtractor(num_mel_bins=32, max_length=64),
}


def save_encoders(folder, video, audio):
    """Folders of encoders as they are published, and the weights in them by the names that they have in the encoder."""
    torch.manual_seed(1)
    if video == "clip":
        visual, prefix = (
            CLIPModel(CLIPConfig(vision_config=VIT, text_config={"vocab_size": 8, **BLOCK})),
            "vision_model.",
        )
    elif video == "vit":
        visual, prefix = ViTForImageClassification(encoder_config("vit")), "vit."
    else:
        visual, prefix = (
            AutoModel.from_config(encoder_config(video, **({"num_frames": 16} if video == "videomae" else {}))),
            "",
        )
    visual.save_pretrained(folder / "video")
    weights = {"video": {name.removeprefix(prefix): tensor for name, tensor in visual.state_dict().items()}}
    if audio == "whisper":
        sound, prefix = WhisperForConditionalGeneration(encoder_config(audio)), "model.encoder."
    elif audio == "wav2vec2":
        sound, prefix = (
            Wav2Vec2ForPreTraining(encoder_config(audio, codevector_dim=8, num_codevectors_per_group=4)),
            "wav2vec2.",
        )
    else:
        sound, prefix = AutoModel.from_config(encoder_config(audio)), ""
    sound.save_pretrained(folder / "audio")
    EXTRACTORS[audio].save_pretrained(folder / "audio")
    weights["audio"] = {name.removeprefix(prefix): tensor for name, tensor in sound.state_dict().items()}
    return weights


def from_folders(folder):
    model = jca.JCAModel.from_encoders(folder / "video", folder / "audio", **FUSION)
    processor = jca.JCAProcessor.from_encoders(folder / "video", folder / "audio", num_clips=CLIPS)
    processor.video_processor.faces = "center"  # nobody is in these videos
    return model, processor


@pytest.fixture(scope="module")
def short_video(tmp_path_factory):
    return clapping_video(tmp_path_factory.mktemp("short") / "short.mp4", seconds=2.5, claps=(1,))


@pytest.mark.parametrize(
    ("video", "audio"),
    [
        ("clip", "whisper"),
        ("vit", "wav2vec2"),
        ("vjepa2", "wav2vec2-bert"),
        ("timesformer", "audio-spectrogram-transformer"),
        ("convnext", "wavlm"),
    ],
)
@torch.no_grad()
def test_from_encoders(video, audio, tmp_path, short_video):
    weights = save_encoders(tmp_path, video, audio)
    model, processor = from_folders(tmp_path)
    for modality, expected in weights.items():
        state = getattr(model, f"{modality}_encoder").state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    assert type(processor.feature_extractor) is type(EXTRACTORS[audio])
    inputs = processor(videos=short_video)
    assert inputs["pixel_values"].shape[1:4] == (CLIPS, 8, 3)
    assert inputs["video_mask"][0].all()  # or the encoder would see nothing
    logits = model(**inputs).logits
    assert torch.isfinite(logits).all()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    again, saved = AutoModel.from_pretrained(tmp_path / "model"), AutoProcessor.from_pretrained(tmp_path / "model")
    assert type(saved.feature_extractor) is type(EXTRACTORS[audio])
    for name, tensor in saved(videos=short_video).items():
        assert torch.equal(tensor, inputs[name]), name
    assert torch.equal(again(**inputs).logits, logits)


def test_pictures_are_what_the_encoders_own_preprocessor_says(tmp_path):
    def processor(video, content=None, name="preprocessor_config.json", **changes):
        encoder_config(video, **changes).save_pretrained(tmp_path)
        for path in tmp_path.glob("*processor_config.json"):
            path.unlink()
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
        return jca.JCAProcessor.from_encoders(tmp_path)

    videomae = {
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True,
        **COLOURS,
    }
    made = processor("videomae", videomae, num_frames=16)
    assert (made.video_processor.size, made.clip_length, made.clip_stride, made.span) == (32, 16, 2, 32)
    assert made.video_processor.image_mean == pytest.approx(COLOURS["image_mean"])
    assert made.video_processor.image_std == pytest.approx(COLOURS["image_std"])
    assert processor("vjepa2", videomae, "video_preprocessor_config.json").video_processor.size == 32
    nested = {"image_processor": {"size": {"height": 48, "width": 48}, **COLOURS}}
    assert processor("vit", nested, "processor_config.json").video_processor.size == 48
    # ViViT: colours to 1/127.5, less 1, less 0.5, by 0.5: white is 1
    offset = {"rescale_factor": 1 / 127.5, "offset": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    made = processor("vivit", {**offset, "size": {"shortest_edge": 32}}).video_processor
    pixels = made(np.array([0, 255], np.uint8).repeat(3).reshape(1, 2, 3))["pixel_values"]
    assert pixels[0, 0].tolist() == pytest.approx([-3, 1])
    made = processor("dinov2").video_processor  # without a file
    assert (made.size, made.image_mean) == (32, pytest.approx([0.485, 0.456, 0.406]))
    assert processor("clip_vision_model").video_processor.image_mean == pytest.approx([0.481, 0.458, 0.408], abs=1e-3)
    assert processor("resnet").video_processor.size == 224


def test_changes_to_an_encoders_own_config(tmp_path):
    save_encoders(tmp_path, "vit", "wav2vec2")
    changes = {"audio_config": {"mask_time_prob": 0.2}, "video_config": TINY["video_config"]}
    model = jca.JCAModel.from_encoders(audio=tmp_path / "audio", **changes, **FUSION)
    assert model.config.audio_config.mask_time_prob == 0.2
    assert model.audio_encoder.masked_spec_embed is not None
    assert model.config.video_config.model_type == "r2plus1d"


# Through the pipeline -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """VideoMAE and Wav2Vec2 as a saved model."""
    root = tmp_path_factory.mktemp("encoders")
    save_encoders(root, "videomae", "wav2vec2")
    for thing in from_folders(root):
        thing.save_pretrained(root / "model")
    return str(root / "model")


def test_from_a_file_to_rows(folder, short_video):
    pipe = pipeline("audio-visual-emotion", model=folder)
    rows = pipe(short_video, hop=16)
    assert len(rows) == 75
    batched = pipe(short_video, hop=16, batch_size=2)
    assert [row["valence"] for row in batched] == pytest.approx([row["valence"] for row in rows], abs=1e-5)
    model, processor = jca.JCAModel.from_pretrained(folder), jca.JCAProcessor.from_pretrained(folder)
    assert processor.model_input_names == ["pixel_values", "input_values", "video_mask", "audio_mask"]
    inputs = processor(videos=short_video, hop=16)
    assert inputs["pixel_values"].shape == (3, CLIPS, 16, 3, 32, 32)
    assert inputs["input_values"].shape == (3, CLIPS, 17_067)
    with torch.no_grad():
        logits = model(**inputs).logits
    for ends, values in zip(processor.plan(75, 16), logits, strict=True):
        for end, (valence, arousal) in zip(ends, values.clip(-1, 1).tolist(), strict=True):
            if end < 75:
                assert (rows[end]["valence"], rows[end]["arousal"]) == pytest.approx((valence, arousal), abs=1e-5)


def test_clips_and_features_of_a_corpus(folder, short_video, tmp_path):
    model, processor = jca.JCAModel.from_pretrained(folder), jca.JCAProcessor.from_pretrained(folder)
    corpus = make_dataset([make_row("a", short_video, np.zeros((75, 2), np.float32), 30)], [], "made", "raise")
    prepare({"train": corpus}, tmp_path / "prepared", processor)
    clips = ClipDataset(load_prepared(tmp_path / "prepared", "train"), processor, "audio", 32)
    features = extract_features(corpus, model, processor, 32, tmp_path).with_format("numpy")
    inputs = processor(videos=short_video)["input_values"].flatten(0, 1)
    assert len(clips) == 2  # the third ends beyond the last label
    for item, values, feature in zip(clips, inputs, features[0]["audio_features"], strict=False):
        assert item.keys() == {"input_values", "labels"}
        torch.testing.assert_close(item["input_values"][0], values)
        with torch.no_grad():
            expected = model.get_audio_features(values[None, None])[0, 0]
        torch.testing.assert_close(torch.from_numpy(feature).float(), expected, atol=0.01, rtol=0.01)


def test_remote_code(folder, silent_video, tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", REMOTE, folder, silent_video, str(tmp_path / "again")]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    rows = json.loads(run.stdout.split("ROWS")[1])
    local = pipeline("audio-visual-emotion", model=folder)(silent_video)
    np.testing.assert_allclose([row["valence"] for row in rows], [row["valence"] for row in local], atol=1e-5)
