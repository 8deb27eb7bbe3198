"""The authors' checkpoints through the converter, against what their code computes."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import model_input, output, state_dict, weight
from transformers import AutoModel, AutoProcessor, pipeline

import jca
from jca.conversion import convert, read_checkpoint


ROOT = Path(__file__).parents[1]
AUDIO, VIDEO_MAP = (2, 16, 512), (2, 16, 25_088)


@pytest.fixture
def folder(tmp_path):
    """For converted models, which are large: removed after the test."""
    yield tmp_path / "model"
    shutil.rmtree(tmp_path, ignore_errors=True)


def save(folder, content, name="checkpoint.pt"):
    folder.parent.mkdir(exist_ok=True)
    torch.save(content, folder.parent / name)
    return folder.parent / name


def converted(folder, *contents, labels=()):
    files = [save(folder, content, f"{i}.pt") for i, content in enumerate(contents)]
    convert(files, folder, labels)
    return AutoModel.from_pretrained(folder)


def assert_equal(ours, key, relative=0.0, absolute=0.0):
    theirs = output(key)
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs().max().item()
    assert difference <= absolute + relative * theirs.abs().max().item(), f"{key}: {difference:.1e}"


def tcn_checkpoint():
    """Each convolution is one module under two names, of which PyTorch loads the second last."""
    state = state_dict("tcn")
    for key in state:
        second = key.replace(".conv1.", ".net.0.").replace(".conv2.", ".net.4.")
        state[key] = state[second]
    return state


# Golden cases ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_two_stream_encoders(folder):
    container = {"state_dict": {f"module.{key}": tensor for key, tensor in state_dict("tsav").items()}, "epoch": 3}
    model = converted(folder, container)
    clips = model_input("clip", (2, 3, 8, 112, 112)).transpose(1, 2)
    assert_equal(model.get_video_features(clips[None])[0], "tsav.video_pooled", relative=1e-4)
    spectrogram = model_input("spectrogram", (2, 1, 64, 107)).transpose(0, 1)
    assert_equal(model.get_audio_features(spectrogram)[0], "tsav.audio", relative=1e-4)


@torch.no_grad()
def test_two_stream_encoders_with_dense_co_attention(folder):
    model = converted(folder, state_dict("tsav"), {"net": state_dict("orig_cam"), "best_Val_accV": 0.7})
    clips = model_input("clip", (2, 3, 8, 112, 112)).transpose(1, 2)
    features = model.get_video_features(clips[None])[0]
    assert features.shape == (2, 25_088)
    assert_equal(features[:, ::49], "tsav.video_flat_head", relative=1e-4)
    features = {"audio_features": model_input("audio", AUDIO), "video_features": model_input("video", VIDEO_MAP)}
    valence, arousal = model(**features).logits.unbind(-1)
    assert_equal(valence, "orig_cam.valence", absolute=1e-5)
    assert_equal(arousal, "orig_cam.arousal", absolute=1e-5)
    assert "random weights" not in (folder / "README.md").read_text()


@torch.no_grad()
def test_i3d(folder):
    model = converted(folder, state_dict("i3d"))
    assert list(model.config.modalities) == ["video"]
    clip = model_input("clip224", (1, 3, 8, 224, 224)).transpose(1, 2)
    assert_equal(model.video_encoder(clip).last_hidden_state.mT, "i3d.features", relative=1e-4)
    assert AutoProcessor.from_pretrained(folder).video_processor.size == 224


@torch.no_grad()
def test_i3d_with_tcn_in_one_checkpoint(folder):
    state = {f"module.i3d_WSDDA.{key}": tensor for key, tensor in state_dict("i3d").items()}
    state |= {f"module.temporal.{key}": tensor for key, tensor in tcn_checkpoint().items()}
    state |= {"module.regressor.0.weight": torch.ones(1, 512), "module.predictions.weight": torch.ones(1, 512)}
    model = converted(folder, {"net": state, "best_Val_acc": np.float64(0.4), "best_Val_acc_epoch": 5})
    assert model.config.video_config.tcn_channels == [512] * 4
    clip = model_input("clip224", (1, 3, 8, 224, 224)).transpose(1, 2)
    assert_equal(model.get_video_features(clip[None])[0], "i3d_tcn.max", relative=1e-4)
    card = (folder / "README.md").read_text()
    assert "Left out: `regressor.0.weight`, `predictions.weight` (head of the encoder)" in card


@torch.no_grad()
def test_joint_cross_attention_that_reads_the_visual_feature(folder):
    model = converted(folder, state_dict("cam_l16"))
    assert model.config.id2label == {0: "valence", 1: "arousal"}
    features = {name: model_input(name.split("_")[0], (2, 16, 512)) for name in ("audio_features", "video_features")}
    logits = model(**features).logits
    assert_equal(logits[..., :1], "cam_l16.valence", absolute=1e-5)
    assert_equal(logits[..., 1:], "cam_l16.arousal", absolute=1e-5)


@torch.no_grad()
def test_joint_cross_attention_of_the_paper(folder):
    model = converted(folder, state_dict("cam_l8_paper"), labels=["arousal"])
    assert model.config.id2label == {0: "arousal"}
    features = {name: model_input(name.split("_")[0], (2, 8, 512)) for name in ("audio_features", "video_features")}
    assert_equal(model(**features).logits, "cam_l8_paper.out", absolute=1e-5)


# What else is recognised ----------------------------------------------------------------------------------------------


def test_torchvisions_names_give_the_same_encoders(folder):
    both = {
        name: tensor
        for name, tensor in converted(folder, state_dict("tsav")).state_dict().items()
        if "_encoder." in name
    }
    for prefix, modality in (("video_model.r2plus1d.", "video"), ("audio_model.resnet.", "audio")):
        state = {key.removeprefix(prefix): t for key, t in state_dict("tsav").items() if key.startswith(prefix)}
        state = {key: t[:, :3] if key == "stem.0.weight" else t for key, t in state.items()}
        state |= {"fc.weight": torch.ones(400, 512), "fc.bias": torch.ones(400)}
        model = converted(folder.with_name(modality), state)
        assert list(model.config.modalities) == [modality]
        encoder = getattr(model, f"{modality}_encoder").state_dict()
        assert len(encoder) == sum(name.startswith(modality) for name in both)
        assert all(torch.equal(tensor, both[f"{modality}_encoder.{name}"]) for name, tensor in encoder.items())


def test_checkpoints_of_before_batches_were_counted(folder):
    state = {key: tensor for key, tensor in state_dict("i3d").items() if not key.endswith("num_batches_tracked")}
    model = converted(folder, state, tcn_checkpoint())  # and a TCN in a file of its own
    torch.testing.assert_close(model.video_encoder.stem[0][1].weight, state["Conv3d_1a_7x7.conv3d.weight"])
    torch.testing.assert_close(model.video_encoder.tcn[3].conv2.length, tcn_checkpoint()["network.3.conv2.weight_g"])
    assert model.video_encoder.stem[0][2].num_batches_tracked == 0


@torch.no_grad()
def test_dense_co_attention_of_other_dates(folder):
    """Without the LSTM on the joint features, and with one on each modality."""
    state = {key: tensor for key, tensor in state_dict("orig_cam").items() if not key.startswith("Joint.")}
    state |= {f"{head}.0.weight": weight(f"{head}.0.weight", [128, 1024]) for head in ("vregressor", "aregressor")}
    for name in ("audio_extract", "video_extract"):
        for key, tensor in state_dict("orig_cam").items():
            if key.startswith("Joint."):
                width = {
                    "Joint.rnn.weight_ih_l0": 512,
                    "Joint.rnn.weight_ih_l0_reverse": 512,
                    "Joint.linear.weight": 1024,
                }
                shape = [tensor.shape[0], width[key]] if key in width else list(tensor.shape)
                key = key.replace("Joint", name)
                state[key] = weight(key, shape)
    model = converted(folder, state)
    assert model.config.temporal == ["video", "audio"]
    assert torch.equal(model.video_temporal.linear.weight, state["video_extract.linear.weight"])
    assert torch.equal(model.audio_temporal.rnn.weight_hh_l1, state["audio_extract.rnn.weight_hh_l1"])
    assert torch.equal(model.regressors[1].fc2.bias, state["aregressor.3.bias"])
    features = {"audio_features": model_input("audio", AUDIO), "video_features": model_input("video", VIDEO_MAP)}
    assert torch.isfinite(model(**features).logits).all()


@torch.no_grad()
def test_valence_and_arousal_models_with_one_fusion_are_joined(folder):
    valence, arousal = state_dict("cam_l8_paper"), state_dict("cam_l8_paper")
    arousal["regressor.2.bias"] = valence["regressor.2.bias"] + 1
    model = converted(folder, arousal, valence, labels=["arousal", "valence"])
    assert model.config.id2label == {0: "valence", 1: "arousal"}
    features = {name: model_input(name.split("_")[0], (2, 8, 512)) for name in ("audio_features", "video_features")}
    logits = model(**features).logits
    assert_equal(logits[..., :1], "cam_l8_paper.out", absolute=1e-5)
    torch.testing.assert_close(logits[..., 1], logits[..., 0] + 1)


def test_scores_of_numpy_1_are_read(tmp_path):
    content = {"net": {"a.weight": torch.ones(2)}, "best": np.float64(0.5), "other": np.float32(0.5)}
    torch.save(content, tmp_path / "new.pt")
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)  # one pickle, which can be edited
    old = (tmp_path / "old.pt").read_bytes()
    assert b"numpy._core.multiarray" in old
    (tmp_path / "old.pt").write_bytes(old.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    for name in ("new.pt", "old.pt"):
        assert torch.equal(read_checkpoint(tmp_path / name)["a.weight"], torch.ones(2))


def test_command_line_and_model_card(folder):
    file = save(folder, state_dict("cam_l8_paper"), "cam.t7")
    command = [sys.executable, str(ROOT / "scripts/convert.py"), file, "--output", folder, "--label", "valence"]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert run.returncode == 0, run.stderr[-2000:]
    card = (folder / "README.md").read_text()
    report = [line for line in run.stdout.splitlines() if not line.startswith("model: ")]
    assert report == [
        "cam.t7 became joint cross-attention with its regressors (the authors' cam.py).",
        "The audio encoder is configured and has random weights: no file holds it.",
        "The video encoder is configured and has random weights: no file holds it.",
    ]
    assert all(f"- {line}\n" in card for line in report)
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: video-classification\ntags:\n")
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card
    assert "no licence" in card
    processor = AutoProcessor.from_pretrained(folder)
    assert (processor.num_clips, processor.video_processor.size) == (8, 112)
    model = AutoModel.from_pretrained(folder)
    assert type(model) is jca.JCAModel
    assert model.config.video_config.hidden_size == 512
    assert model.config.audio_config.num_channels == 1


@pytest.mark.slow
def test_pipeline_of_a_converted_model(folder, silent_video):
    converted(folder, state_dict("tsav"), state_dict("cam_l16"))
    rows = pipeline("audio-visual-emotion", model=str(folder))(silent_video, faces="center")
    assert len(rows) == 40
    assert all(np.isfinite([row["valence"], row["arousal"]]).all() for row in rows)


# Bad input ------------------------------------------------------------------------------------------------------------


def without(case, *keys):
    return {key: tensor for key, tensor in state_dict(case).items() if key not in keys}


BAD = {
    "another family": (
        lambda: [{"bert.embeddings.weight": torch.ones(2)}],
        {},
        r"is of no family that is known here. It has `bert.embeddings.weight`. Known are:\n- the two-stream encoders",
    ),
    "a key too many": (
        lambda: [{**state_dict("cam_l16"), "extra.weight": torch.ones(2)}],
        {},
        "is joint cross-attention .*, and has what can not be placed there: `extra.weight`",
    ),
    "a second layer": (
        lambda: [{**state_dict("orig_cam"), "coattn.dcn_layers.1.linears.0.0.bias": torch.ones(512)}],
        {},
        "can not be placed there: `coattn.dcn_layers.1.linears.0.0.bias`",
    ),
    "a layer of a deeper network": (
        lambda: [{**state_dict("tsav"), "audio_model.resnet.layer1.0.downsample.0.weight": torch.ones(64, 64, 1, 1)}],
        {},
        "has no place for `audio_model.resnet.layer1.0.downsample.0.weight`",
    ),
    "a key too few": (
        lambda: [without("cam_l16", "W_ha.weight")],
        {},
        "hold a part of the model without `W_ha.weight`",
    ),
    "no projection": (
        lambda: [without("cam_l16", "encoder2.weight")],
        {},
        r"is joint cross-attention .*, and lacks what is video_projection\.weight here",
    ),
    "an encoder cut short": (
        lambda: [without("tsav", "video_model.r2plus1d.layer4.1.conv2.0.3.weight")],
        {},
        "without `video_model.r2plus1d.layer4.1.conv2.0.3.weight`",
    ),
    "another shape": (
        lambda: [{**state_dict("cam_l16"), "W_ha.weight": torch.ones(16, 31)}],
        {},
        r"Shapes are not .*: `W_ha.weight \(16, 31\) instead of \(16, 32\)`",
    ),
    "an audio encoder that sees colours": (
        lambda: [{**state_dict("tsav"), "audio_model.resnet.conv1.weight": torch.ones(64, 3, 7, 7)}],
        {},
        r"audio_model.resnet.conv1.weight \(64, 3, 7, 7\) instead of \(64, 1, 7, 7\)",
    ),
    "a TCN alone": (lambda: [tcn_checkpoint()], {}, "without `Conv3d_1a_7x7.conv3d.weight`"),
    "two names, two tensors": (
        lambda: [state_dict("tcn")],
        {},
        "conv1.bias and network.0.net.0.bias are two names of one tensor",
    ),
    "two visual encoders": (
        lambda: [state_dict("tsav"), state_dict("i3d")],
        {},
        "0.pt asks for video_config.model_type='r2plus1d' and .*1.pt for video_config.model_type='i3d'",
    ),
    "one output": (
        lambda: [state_dict("cam_l8_paper")],
        {},
        "0.pt has one output .* add --label valence or --label arousal",
    ),
    "a label too many": (
        lambda: [state_dict("cam_l16")],
        {"labels": ["valence"]},
        "no file with one output for the label valence",
    ),
    "another label": (
        lambda: [state_dict("cam_l8_paper")],
        {"labels": ["joy"]},
        "labels has joy: choose among valence, arousal",
    ),
    "two fusions": (
        lambda: [state_dict("cam_l8_paper"), {**state_dict("cam_l8_paper"), "W_ha.weight": torch.ones(8, 32)}],
        {"labels": ["valence", "arousal"]},
        "0.pt and .*1.pt both hold joint cross-attention .*, trained separately: they differ in `W_ha.weight`. One model",
    ),
    "no tensors": (lambda: [{"net": {"a": 1}}], {}, "holds a dict with the keys `a`; give a state dict"),
    "no dict": (lambda: [[torch.ones(2)]], {}, "holds a list; give a state dict"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_checkpoints_are_refused(name, folder):
    make, options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        converted(folder, *make(), **options)
    assert not folder.exists()


class Payload:
    def __reduce__(self):
        return os.mkdir, (str(Path(os.environ["PAYLOAD_FOLDER"])),)


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PAYLOAD_FOLDER", str(tmp_path / "executed"))
    file = save(tmp_path / "model", {"net": state_dict("cam_l8_paper"), "args": Payload()})
    message = (
        r"holds the object posix.mkdir beside tensors, .* save the tensors alone .*: torch.save\(model.state_dict\(\)"
    )
    with pytest.raises(ValueError, match=message):
        convert([file], tmp_path / "model")
    assert not (tmp_path / "executed").exists()


def test_files_that_are_none_of_pytorch(tmp_path):
    (tmp_path / "a.pt").write_text("a page that says: sign in")
    save(tmp_path / "model", state_dict("cam_l16"), "b.pt")
    (tmp_path / "b.pt").write_bytes((tmp_path / "b.pt").read_bytes()[:1000])
    (tmp_path / "c.pt").write_bytes(b"")
    for name in "abc":
        with pytest.raises(ValueError, match="can not be read as a file of PyTorch: was it downloaded completely?"):
            convert([tmp_path / f"{name}.pt"], tmp_path / "model")
    with pytest.raises(FileNotFoundError):
        convert([tmp_path / "d.pt"], tmp_path / "model")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    file = save(tmp_path / "model", state_dict("cam_l16"))
    with pytest.raises(FileExistsError, match="model is not empty: name a new folder"):
        convert([file], tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == "{}"
