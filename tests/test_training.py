import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY, tiny_model, tiny_processor
from release import write_release
from safetensors.torch import load_file

from jca.affwild2 import load_affwild2
from jca.preparation import prepare
from jca.training import StageArguments, fit, load_recipe, train_encoder, train_fusion


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    write_release(folder / "corpus", {"Train_Set": ["a", "b", "c", "dd", "ee", "ff"], "Validation_Set": ["x", "yy"]})
    splits = {split: load_affwild2(folder / "corpus", split) for split in ("train", "validation")}
    prepare(splits, folder / "prepared", tiny_processor(), num_proc=2)
    content = {
        "data": {"root": str(folder / "prepared"), "hop": 8},
        "output_dir": str(folder / "run"),
        "model": {**TINY, "dropout": 0.0},
        "processor": {"video_processor": {"size": 16}},
        "video": {"learning_rate": 0.01, "batch_size": 16, "num_epochs": 6},
        "audio": {"learning_rate": 0.01, "batch_size": 16, "num_epochs": 14},
        "fusion": {"learning_rate": 0.01, "batch_size": 16, "num_epochs": 10, "samples_per_epoch": 150},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder / "recipe.yaml"


def test_three_stages_learn_what_face_and_voice_carry(recipe):
    """Valence is in the picture alone and arousal in the sound alone, drawn anew within 1.2 s: this fails when labels are
    shuffled or the sound is shifted by a second."""
    recipe = load_recipe(recipe)
    best = {}
    for modality in ("video", "audio"):
        best[modality] = json.loads((train_encoder(recipe, modality) / "metrics.json").read_text())["best"]
    folder = train_fusion(recipe)
    best["fusion"] = json.loads((folder / "metrics.json").read_text())["best"]
    assert best["video"]["ccc_valence"] > 0.85
    assert abs(best["video"]["ccc_arousal"]) < 0.4
    assert best["audio"]["ccc_arousal"] > 0.75
    assert best["fusion"]["ccc"] > 0.8
    before = (folder / "metrics.json").stat().st_mtime_ns
    assert train_fusion(recipe) == folder  # what has ended is not trained again
    assert (folder / "metrics.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="joint_cross_attention was trained with .* remove the folder or name another"):
        train_fusion(replace(recipe, fusion=replace(recipe.fusion, num_epochs=3)))


def toy(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 16, 8, generator=generator)
    return [{"video_features": v, "audio_features": v.flip(1), "labels": v[:, :2].tanh()} for v in x]


def train_toy(folder, stop_after=None):
    calls = 0

    def validate(model):
        nonlocal calls
        calls += 1
        if calls == stop_after:
            raise KeyboardInterrupt
        return {"ccc": -model.regressors[0].fc2.weight.abs().sum().item()}

    arguments = StageArguments(learning_rate=0.01, batch_size=8, num_epochs=4)
    return fit(tiny_model(dropout=0.3), toy(), validate, arguments, folder, tiny_processor(), seed=3)


def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path):
    train_toy(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path / "stopped", stop_after=3)
    assert not (tmp_path / "stopped/metrics.json").exists()
    result = train_toy(tmp_path / "stopped")
    assert [entry["epoch"] for entry in result["history"]] == [0, 1, 2, 3]
    whole, stopped = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(tensor, stopped[name]) for name, tensor in whole.items())
    assert not (tmp_path / "stopped/state").exists()


def test_the_best_epoch_is_kept(tmp_path):
    scores = iter([0.1, 0.5, 0.3])
    weights = []

    def validate(model):
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"ccc": next(scores)}

    arguments = StageArguments(learning_rate=0.01, batch_size=8, num_epochs=3)
    result = fit(tiny_model(), toy(), validate, arguments, tmp_path, tiny_processor())
    assert result["best"]["epoch"] == 1
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in saved.items())


def test_command_line_under_accelerate_in_bf16(recipe, tmp_path):
    """Two of the stages through `accelerate launch`; what it says ends on the folder."""
    content = yaml.safe_load(recipe.read_text())
    content["output_dir"] = str(tmp_path / "run")
    content["video"]["num_epochs"] = content["audio"]["num_epochs"] = content["fusion"]["num_epochs"] = 1
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    launch = ["-m", "accelerate.commands.launch", "--num_processes=1", "--num_machines=1", "--dynamo_backend=no"]
    script = Path(__file__).parents[1] / "scripts/train.py"
    command = [sys.executable, *launch, "--mixed_precision=bf16", "--cpu", str(script), str(tmp_path / "recipe.yaml")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    folder = tmp_path / "run/seed-0/joint_cross_attention"
    assert f"fusion: {folder}" in run.stdout
    assert json.loads((folder / "metrics.json").read_text())["mixed_precision"] == "bf16"


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    arguments = StageArguments(learning_rate=1e30, batch_size=8, warmup_ratio=0)
    with pytest.raises(FloatingPointError, match="the loss is nan. Lower the learning rate"):
        fit(tiny_model(), toy(), lambda model: {"ccc": 0.0}, arguments, tmp_path, tiny_processor())


LOSS = """
import os, sys
sys.path[:0] = sys.argv[1].split(os.pathsep)
import torch
from torch.nn.parallel import DistributedDataParallel
from conftest import tiny_model
torch.distributed.init_process_group("gloo")
rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
generator = torch.Generator().manual_seed(0)
x, y = torch.randn(6, 16, 8, generator=generator), torch.rand(6, 16, 2, generator=generator) * 2 - 1
y[:2] = -5  # the first of three processes has no label at all
y[3, 4:] = -5
model = tiny_model()
for name, parameter in model.named_parameters():
    parameter.requires_grad_("encoder" not in name)
if world > 1:
    model = DistributedDataParallel(model)
part = slice(rank * 6 // world, (rank + 1) * 6 // world)
loss = model(video_features=x[part], audio_features=x[part].flip(1), labels=y[part]).loss
loss.backward()
if rank == 0:
    gradients = {n.removeprefix("module."): p.grad for n, p in model.named_parameters() if p.grad is not None}
    torch.save({"loss": loss.detach(), **gradients}, sys.argv[2])
torch.distributed.barrier()  # none leaves while another still talks to it
os._exit(0)  # gloo's threads may still let go of the last collective, and abort where the interpreter is ending
"""


def test_loss_and_gradient_are_those_of_the_global_batch(tmp_path):
    """Real processes with uneven masks against one process on the whole batch."""
    script = tmp_path / "loss.py"
    script.write_text(LOSS)
    paths = f"{Path(__file__).parents[1]}:{Path(__file__).parent}"
    results = []
    for world in (1, 2, 3):
        command = ["-m", "torch.distributed.run", f"--nproc_per_node={world}", "--master_port=0", "--standalone"]
        run = subprocess.run(
            [sys.executable, *command, str(script), paths, str(tmp_path / f"{world}.pt")],
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr[-2000:]
        results.append(torch.load(tmp_path / f"{world}.pt", weights_only=True))
    for result in results[1:]:
        assert result.keys() == results[0].keys()
        for name, tensor in result.items():
            assert (tensor - results[0][name]).abs().max() <= 1e-6, name


def test_recipes_in_the_repository_are_valid():
    for path in (Path(__file__).parents[1] / "recipes").glob("*.yaml"):
        load_recipe(path)


def test_bad_recipes_name_file_section_and_key(recipe, tmp_path):
    good = yaml.safe_load(recipe.read_text())

    def write(**changes):
        path = tmp_path / "bad.yaml"
        path.write_text(yaml.safe_dump({**good, **changes}))
        return path

    with pytest.raises(ValueError, match=r"bad\.yaml has the unknown key colour\. A recipe has"):
        load_recipe(write(colour=1))
    with pytest.raises(ValueError, match=r"bad\.yaml, section fusion: there is no key rate\. It takes augment_crops"):
        load_recipe(write(fusion={"rate": 1}))
    with pytest.raises(ValueError, match=r"section model: JCAConfig does not know fusions"):
        load_recipe(write(model={"fusions": "concat"}))
    with pytest.raises(ValueError, match=r"section data: the key root is needed"):
        load_recipe(write(data={}))


def test_fusion_before_its_encoders_is_refused(recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no trained video encoder: train the stage 'video' first"):
        train_fusion(replace(load_recipe(recipe), output_dir=str(tmp_path)))
