"""What the model is handed to: torch.compile, torch.export, ONNX Runtime, Trainer."""

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import TINY_VIDEO, tiny_model
from torch import nn
from transformers import Trainer, TrainingArguments


VARIANTS = {
    "concat": {"fusion": "concat"},
    "cross_attention": {"fusion": "cross_attention"},
    "joint_cross_attention": {"num_recursions": 2, "gated": True},
    "dense_co_attention": {
        "fusion": "dense_co_attention",
        "video_config": {**TINY_VIDEO, "spatial_size": 4},
        "normalize_features": True,
        "temporal": ["joint"],
    },
    "transformer": {"fusion": "transformer"},
    "tcn": {"temporal": ["video", "audio", "joint"], "temporal_layer": "tcn"},
}


class FeaturesToOutputs(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, video_features, audio_features, video_mask, audio_mask):
        return self.model(
            video_features=video_features, audio_features=audio_features, video_mask=video_mask, audio_mask=audio_mask
        ).logits


class ClipsToFeatures(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values, input_features):
        return self.model.get_video_features(pixel_values), self.model.get_audio_features(input_features)


def features(model, batch=2):
    mask = torch.ones(batch, 16)
    mask[:, 12:] = 0
    video, audio = torch.randn(batch, 16, model.video_size), torch.randn(batch, 16, model.audio_size)
    return video, audio, mask, torch.ones(batch, 16)


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def model(request):
    return tiny_model(**request.param)


@torch.no_grad()
def test_compiles_without_a_graph_break(model):
    module, inputs = FeaturesToOutputs(model).eval(), features(model)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(allow_rnn=True):  # torch asks for this switch where there is an LSTM
        torch.testing.assert_close(compiled(*inputs), module(*inputs), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_onnx_of_features_to_outputs(model, tmp_path):
    module, inputs = FeaturesToOutputs(model).eval(), features(model)
    exported = torch.export.export(module, inputs)
    torch.testing.assert_close(exported.module()(*inputs), module(*inputs), atol=1e-5, rtol=1e-4)
    names = ["video_features", "audio_features", "video_mask", "audio_mask"]
    torch.onnx.export(module, inputs, tmp_path / "a.onnx", input_names=names, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    fresh = features(model)
    (logits,) = session.run(None, {name: x.numpy() for name, x in zip(names, fresh, strict=True)})
    np.testing.assert_allclose(logits, module(*fresh).numpy(), atol=1e-4)


@torch.no_grad()
def test_onnx_of_clips_to_features(tmp_path):
    module = ClipsToFeatures(tiny_model()).eval()
    inputs = torch.randn(1, 16, 8, 3, 16, 16), torch.randn(1, 16, 64, 107)
    torch.onnx.export(
        module, inputs, tmp_path / "a.onnx", input_names=["pixel_values", "input_features"], dynamo=True, verbose=False
    )
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    outputs = session.run(None, {"pixel_values": inputs[0].numpy(), "input_features": inputs[1].numpy()})
    for got, expected in zip(outputs, module(*inputs), strict=True):
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-4)


def test_trainer_with_accumulation_reports_the_loss_of_a_batch(tmp_path):
    """`accepts_loss_kwargs` tells Trainer that the loss is a mean: otherwise it is doubled by accumulation over 2."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 16, 8, generator=generator)
    rows = [{"video_features": v, "audio_features": v.flip(0), "labels": v[:, :2].tanh()} for v in x]
    losses = {}
    for accumulation in (1, 2):
        arguments = TrainingArguments(
            output_dir=str(tmp_path / str(accumulation)),
            per_device_train_batch_size=4,
            gradient_accumulation_steps=accumulation,
            max_steps=2,
            learning_rate=0.0,
            report_to=[],
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(tiny_model(dropout=0.0), arguments, train_dataset=rows)
        trainer.train()
        losses[accumulation] = np.mean([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[2] == pytest.approx(losses[1], rel=0.25)
    assert losses[1] > 0.5
