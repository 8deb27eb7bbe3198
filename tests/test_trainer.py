import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, tiny_model, tiny_processor
from datasets import Array2D, Dataset, Features, List, Value
from release import write_release
from transformers import AutoModel, AutoProcessor, pipeline, set_seed

from jca import JCAModel
from jca.affwild2 import load_affwild2
from jca.evaluation import evaluate
from jca.features import extract_features
from jca.preparation import load_prepared, prepare
from jca.recipes import StageArguments, build_model, load_recipe
from jca.training import fit, train_encoder
from jca.windows import WindowDataset
from modeling_jca import ccc_loss


ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))

from trainer import FusionTrainer  # noqa: E402


HOP = 8


def kept_features(seed: int, num_videos: int, num_frames: int = 900) -> Dataset:
    """Rows as of `extract_features`: labels are seen in the features, through noise; some are lacking."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(num_videos):
        labels = np.cumsum(rng.normal(0, 0.05, (num_frames, 2)), axis=0)
        labels = np.tanh(labels - labels.mean(axis=0)).astype(np.float32)
        ends = np.arange(HOP - 1, num_frames, HOP)
        row = {"video_id": f"{seed}-{index}", "end_frames": ends, "times": np.arange(num_frames) / 30, "labels": labels}
        for modality, output in (("video", 0), ("audio", 1)):
            features = rng.normal(0, 0.5, (len(ends), 8)) + labels[ends, output, None]
            row |= {
                f"{modality}_features": features.astype(np.float16),
                f"{modality}_mask": rng.random(len(ends)) < 0.9,
            }
        labels[200:230] = -5
        rows.append(row)
    array = {name: Array2D((None, 8), "float16") for name in ("video_features", "audio_features")}
    masks = {name: List(Value("bool")) for name in ("video_mask", "audio_mask")}
    features = Features(
        video_id=Value("string"),
        end_frames=List(Value("int64")),
        times=List(Value("float64")),
        labels=Array2D((None, 2), "float32"),
        **array,
        **masks,
    )
    return Dataset.from_list(rows, features=features)


def frozen_model(batches: list | None = None) -> JCAModel:
    """Logits and labels, where given, of each batch that is trained on are added to `batches`."""
    model = tiny_model(dropout=0.0)
    model.freeze_encoders()

    def keep(model, _, inputs, out):
        if model.training:
            batches.append((out.logits.detach(), inputs.get("labels")))

    if batches is not None:
        model.register_forward_hook(keep, with_kwargs=True)
    return model


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        ({}, 4),
        ({"gradient_accumulation_steps": 2, "balanced": True}, 4),
        ({"batch_size": 40, "learning_rate": 0.1, "num_epochs": 12, "patience": 1}, 6),  # the last is not the best
    ],
)
def test_trainer_and_fit_are_the_same_training(tmp_path, changes, epochs):
    """Losses, scores, choice of the epoch and weights: this fails for another order of windows, another rate, decay of other
    parameters, and accumulated gradients that are scaled otherwise."""
    train, selected, processor = kept_features(0, 4), kept_features(1, 2), tiny_processor()
    common = {"learning_rate": 0.02, "weight_decay": 0.3, "max_grad_norm": 0.6, "warmup_ratio": 0.25}
    common |= {"batch_size": 8, "num_epochs": 4, "samples_per_epoch": 30}
    stage = StageArguments(**{**common, **changes})
    batches, again = [], []
    result = fit(
        frozen_model(batches),
        WindowDataset(train, processor, HOP, every_phase=True),
        lambda model, _: evaluate(model, selected, processor, HOP),
        stage,
        tmp_path / "fit",
        processor,
        seed=3,
    )
    trainer = FusionTrainer(frozen_model(again), train, selected, processor, HOP, stage, tmp_path / "trainer", seed=3)
    start = {name: tensor.cpu().clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    assert len(result["history"]) == epochs
    assert len(again) == len(batches)
    assert all((x - y).abs().max() <= 1e-4 for (x, _), (y, _) in zip(again, batches, strict=True))
    losses = [ccc_loss(x, labels).item() for (x, _), (_, labels) in zip(batches, again, strict=True)]
    parts = stage.gradient_accumulation_steps
    steps = [
        [np.mean(epoch[i : i + parts]) for i in range(0, len(epoch), parts)]
        for epoch in np.split(np.array(losses), epochs)
    ]
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    np.testing.assert_allclose(logged, np.mean(steps, axis=1), rtol=0, atol=1e-4)
    scores = [entry["eval_ccc"] for entry in trainer.state.log_history if "eval_ccc" in entry]
    np.testing.assert_allclose(scores, [entry["ccc"] for entry in result["history"]], rtol=0, atol=1e-4)
    expected, moved = JCAModel.from_pretrained(tmp_path / "fit").state_dict(), 0
    for name, tensor in trainer.model.state_dict().items():
        assert (tensor.cpu() - expected[name]).abs().max() <= 1e-4, name
        moved = max(moved, (tensor.cpu() - start[name]).abs().max())
    assert moved > 0.01


def test_a_batch_is_augmented_as_the_recipe_says(tmp_path):
    train, processor = kept_features(0, 2), tiny_processor()
    stage = StageArguments(batch_size=8, samples_per_epoch=8, modality_dropout=1.0)
    trainer = FusionTrainer(frozen_model(), train, train, processor, HOP, stage, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    shown = torch.stack([(batch[f"{modality}_mask"] != 0).any(dim=1) for modality in ("video", "audio")])
    assert (shown.sum(dim=0) == 1).all()


@pytest.mark.parametrize("changes", [{"ema_decay": 0.99}, {"whole_batch_gradient": True}])
def test_what_trainer_can_not_do_is_refused(tmp_path, changes):
    train, processor = kept_features(0, 1), tiny_processor()
    with pytest.raises(ValueError, match=r"ema_decay=.*whole_batch_gradient=.*: Trainer has neither, leave them out"):
        FusionTrainer(frozen_model(), train, train, processor, HOP, StageArguments(**changes), tmp_path)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe whose encoders are trained, a little."""
    folder = tmp_path_factory.mktemp("experiment")
    write_release(folder / "corpus", {"Train_Set": ["a", "b"], "Validation_Set": ["x"]}, num_frames=560)
    splits = {split: load_affwild2(folder / "corpus", split) for split in ("train", "validation")}
    prepare(splits, folder / "prepared", tiny_processor(), num_proc=1)
    stage = {"learning_rate": 0.01, "batch_size": 16, "num_epochs": 1}
    content = {
        "data": {"root": str(folder / "prepared"), "hop": HOP},
        "output_dir": str(folder / "run"),
        "model": TINY,
        "processor": {"video_processor": {"size": 16}},
        "video": stage,
        "audio": stage,
        "fusion": {**stage, "num_epochs": 3, "warmup_ratio": 0},  # the best epoch may be the first, and has learnt
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    for modality in ("video", "audio"):
        train_encoder(load_recipe(folder / "recipe.yaml"), modality)
    return folder / "recipe.yaml"


def test_the_example_saves_what_the_pipeline_opens(recipe, tmp_path):
    """Its score is that of the saved model over all labelled frames."""
    command = [sys.executable, str(ROOT / "examples/trainer.py"), str(recipe), "--output", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    metrics = json.loads((tmp_path / "eval_results.json").read_text())
    assert metrics["eval_frames"] == 560 - 10
    model, processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    rows = load_prepared(recipe.parent / "prepared", "validation")
    features = extract_features(rows, model, processor, HOP, recipe.parent / "run/cache")
    assert evaluate(model, features, processor, HOP)["ccc"] == pytest.approx(metrics["eval_ccc"], abs=1e-4)
    set_seed(0)
    untrained = build_model(load_recipe(recipe)).regressors[0].fc2.weight
    assert (model.regressors[0].fc2.weight - untrained).abs().max() > 1e-3
    for modality in ("video", "audio"):
        before = JCAModel.from_pretrained(recipe.parent / f"run/seed-0/{modality}_encoder").state_dict()
        encoder = {name: tensor for name, tensor in before.items() if name.startswith(f"{modality}_encoder.")}
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in encoder.items())
    predictions = pipeline("audio-visual-emotion", model=str(tmp_path))(str(recipe.parent / "corpus/batch1/x.mp4"))
    assert len(predictions) == 560
    assert {"time", "valence", "arousal"} <= predictions[0].keys()
