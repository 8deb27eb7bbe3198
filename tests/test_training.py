import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from conftest import TINY, tiny_model, tiny_processor
from processes import run
from release import write_release
from safetensors.torch import load_file

from jca.affwild2 import load_affwild2
from jca.checkpoints import CheckpointError, latest_checkpoint
from jca.corpus import make_dataset
from jca.preparation import prepare
from jca.recipes import ROWS, StageArguments, build_model, load_recipe, load_splits
from jca.training import backward, fit, parameter_groups, train_encoder, train_end_to_end, train_fusion


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
        "end_to_end": {"learning_rate": 1e-4, "batch_size": 4, "num_epochs": 1, "samples_per_epoch": 8},
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
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["reported"]["ccc"] == pytest.approx(metrics["best"]["ccc"], abs=1e-6)
    assert metrics["selected_by"] == metrics["reported_on"] == "validation"  # and it says so
    assert len(list((folder / "pictures").glob("epoch-*.png"))) == 10
    assert train_end_to_end(recipe) == folder.parent / "end_to_end"
    whole = json.loads((folder.parent / "end_to_end/metrics.json").read_text())
    assert whole["reported"]["ccc"] > metrics["reported"]["ccc"] - 0.05
    before, after = weights(folder), weights(folder.parent / "end_to_end")
    assert any(
        not torch.equal(before[name], after[name]) for name in before if "video_encoder" in name and "conv" in name
    )
    with pytest.raises(
        ValueError,
        match="fusion was trained with num_epochs=10, and now num_epochs=3 is asked for: remove the folder or name",
    ):
        train_fusion(replace(recipe, fusion=replace(recipe.fusion, num_epochs=3)))


def toy(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, mask = torch.randn(40, 16, 8, generator=generator), torch.ones(16, dtype=torch.bool)
    masks = {"video_mask": mask, "audio_mask": mask}
    return [{"video_features": v, "audio_features": v.flip(1), "labels": v[:, :2].tanh(), **masks} for v in x]


def train_toy(folder, validate=None, **changes):
    """Epochs of five steps with dropout; what they score is a function of the weights."""
    arguments = StageArguments(**{"learning_rate": 0.01, "batch_size": 8, "num_epochs": 4, **changes})
    model = tiny_model(dropout=0.3)
    model.freeze_encoders()
    return fit(model, toy(), validate or moved, arguments, folder, tiny_processor(), seed=3)


def moved(model, pictures):
    """How far the weights are from the first ones: the last epoch is the best."""
    start = tiny_model().state_dict()
    return {"ccc": sum(float((p.detach() - start[name]).abs().sum()) for name, p in model.named_parameters())}


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


HARD = {
    "gradient_accumulation_steps": 2,
    "save_steps": 1,
    "ema_decay": 0.9,
    "modality_dropout": 0.3,
    "feature_noise": 0.1,
}


def newest(folder):
    return max([int(path.name[5:]) for path in (folder / "checkpoints").glob("step-????????")], default=0)


@pytest.mark.parametrize("world", [1, 2])
def test_killed_at_any_step_it_ends_with_the_same_weights(world, tmp_path):
    """In the middle of an epoch, with accumulation, dropout and augmentation, while a checkpoint is written: bit for bit."""
    settings = {**HARD, "batch_size": 4 // world, "num_epochs": 3}  # five steps an epoch
    train = partial(train_toy, **settings)
    assert run(train, tmp_path / "whole", world=world) == [0] * world
    rng, killed, folder = np.random.default_rng(world), 0, tmp_path / "killed"
    while True:
        target, delay = newest(folder) + int(rng.integers(1, 4)), rng.uniform(0, 0.03)

        def reached(target=target, delay=delay):
            time.sleep(delay)
            return newest(folder) >= target

        codes = run(train, folder, world=world, kill_when=reached)
        if codes == [0] * world:
            break
        killed += 1
    assert killed >= 3
    assert equal(weights(folder), weights(tmp_path / "whole"))
    whole, stopped = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "killed"))
    assert stopped["history"] == whole["history"]
    assert not (folder / "checkpoints").exists()


def test_another_seed_ends_elsewhere(tmp_path):
    """The comparison above is not one of weights that nothing moves."""
    train_toy(tmp_path / "a", num_epochs=1)
    fit(
        tiny_model(dropout=0.3),
        toy(),
        lambda model, pictures: {"ccc": 0.0},
        StageArguments(learning_rate=0.01, batch_size=8, num_epochs=1),
        tmp_path / "b",
        tiny_processor(),
        seed=4,
    )
    assert not equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


def stop_at(count):
    calls = itertools.count(1)

    def validate(model, pictures):
        if next(calls) == count:
            raise KeyboardInterrupt
        return moved(model, pictures)

    return validate


def test_a_torn_checkpoint_is_passed_over(tmp_path, caplog):
    train_toy(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path / "torn", stop_at(4))
    checkpoints = tmp_path / "torn/checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000010", "step-00000015"]
    (checkpoints / "step-00000015/model.safetensors").write_bytes(b"")
    (checkpoints / "step-00000020.part").mkdir()
    assert latest_checkpoint(checkpoints).name == "step-00000010"
    assert "step-00000015 is not complete (model.safetensors is missing or cut off)" in caplog.text
    assert "step-00000020.part was not written to its end" in caplog.text
    train_toy(tmp_path / "torn")
    assert equal(weights(tmp_path / "torn"), weights(tmp_path / "whole"))


def test_checkpoints_of_another_recipe_are_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path, stop_at(2))
    with pytest.raises(
        ValueError, match=r"was trained with learning_rate=0\.01, and now learning_rate=0\.1 is asked for"
    ):
        train_toy(tmp_path, learning_rate=0.1)
    arguments = StageArguments(learning_rate=0.1, batch_size=8, num_epochs=1)
    result = fit(
        tiny_model(), toy(), lambda model, pictures: {"ccc": 0.0}, arguments, tmp_path, tiny_processor(), resume=False
    )
    assert len(result["history"]) == 1


def train_on_a_full_disk(folder):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # what the system says is that of a full disk
    try:
        train_toy(folder)
    except CheckpointError as error:
        (folder / "said.txt").write_text(str(error))


def test_a_full_disk_ends_with_a_message_and_the_last_good_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path, stop_at(2))
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()}
    assert run(train_on_a_full_disk, tmp_path) == [0]
    said = (tmp_path / "said.txt").read_text()
    assert "could not be written ([Errno 27] File too large" in said
    assert "the last good checkpoint is" in said
    assert "step-00000005. Make room or see to the rights, and start the same command again" in said
    assert {path: path.read_bytes() for path in before} == before
    train_toy(tmp_path)
    train_toy(tmp_path / "whole")
    assert equal(weights(tmp_path), weights(tmp_path / "whole"))


def train_without_rights(folder):
    if os.getuid() == 0:
        os.setuid(65534)  # root may write everywhere
    try:
        train_toy(folder / "run")
    except CheckpointError as error:
        os.write(1, str(error).encode())
        os._exit(7)


def test_a_folder_that_can_not_be_written_is_said_at_once(tmp_path, capfd):
    for path in (tmp_path, *list(tmp_path.parents)[:2]):
        path.chmod(0o555)
    assert run(train_without_rights, tmp_path) == [7]
    for path in (tmp_path, *list(tmp_path.parents)[:2]):
        path.chmod(0o755)
    said = capfd.readouterr().out
    assert "run can not be written" in said
    assert "name another output_dir, or see to its rights" in said


def test_ctrl_c_ends_with_a_word_and_a_checkpoint(recipe, tmp_path):
    content = yaml.safe_load(recipe.read_text())
    content["output_dir"], content["video"]["num_epochs"] = str(tmp_path / "run"), 1000
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    script = Path(__file__).parents[1] / "scripts/train.py"
    command = [sys.executable, str(script), str(tmp_path / "recipe.yaml"), "--stage", "video"]
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    checkpoints = tmp_path / "run/seed-0/video_encoder/checkpoints"
    while process.poll() is None and not list(checkpoints.glob("step-????????")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors[-2000:]
    assert "Stopped. The same command goes on from the newest checkpoint." in errors
    assert "Traceback" not in errors
    assert latest_checkpoint(checkpoints) is not None


def test_the_best_epoch_is_kept(tmp_path):
    scores, seen = iter([0.1, 0.5, 0.3]), []

    def validate(model, pictures):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"ccc": next(scores)}

    result = train_toy(tmp_path, validate, num_epochs=3)
    assert result["best"]["epoch"] == 1
    assert all(torch.equal(tensor, seen[1][name]) for name, tensor in weights(tmp_path).items())


def test_early_stopping(tmp_path):
    scores = iter([0.1, 0.5, 0.3, 0.4, 0.2, 0.9])
    result = train_toy(tmp_path, lambda model, pictures: {"ccc": next(scores)}, num_epochs=6, patience=3)
    assert [entry["ccc"] for entry in result["history"]] == [0.1, 0.5, 0.3, 0.4, 0.2]


def test_the_average_of_the_weights_is_what_is_kept(tmp_path):
    rising = itertools.count()
    train_toy(tmp_path / "plain", lambda model, pictures: {"ccc": float(next(rising))}, num_epochs=2)
    train_toy(tmp_path / "slow", lambda model, pictures: {"ccc": float(next(rising))}, num_epochs=2, ema_decay=0.99)
    start = dict(tiny_model().state_dict())
    distance = {
        name: sum(float((tensor - start[key]).abs().sum()) for key, tensor in weights(tmp_path / name).items())
        for name in ("plain", "slow")
    }
    assert 0 < distance["slow"] < 0.6 * distance["plain"]


def test_the_metrics_file_says_where_its_numbers_come_from(tmp_path):
    result = train_toy(tmp_path, num_epochs=1)
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(json.dumps(result))
    assert {"time", "commit", "versions", "hardware", "seed", "seconds", "settings"} <= set(result)
    installed, said = torch.__version__, result["versions"]["torch"]
    assert said.partition("+")[0] == installed.partition("+")[0]  # of the name of the build, one may know nothing


def test_gradient_of_a_whole_accumulated_batch():
    """Of two passes over its parts as of one pass over all of it; what the mean of the parts' losses gives is another."""
    batches = [torch.utils.data.default_collate(toy()[i : i + 4]) for i in (0, 4, 8)]
    batches[1]["labels"][:] = -5  # a part without any label
    batches[2]["labels"][1, 3:] = -5
    together = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    accelerator, gradients = Accelerator(), {}
    for name, parts, whole in (("one", [together], False), ("whole", batches, True), ("mean", batches, False)):
        model = tiny_model()
        loss = backward(accelerator, model, parts, whole)
        gradients[name] = [loss, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    assert len(gradients["one"]) == len(gradients["whole"]) > 5
    assert all((a - b).abs().max() <= 1e-6 for a, b in zip(gradients["one"], gradients["whole"], strict=True))
    assert abs(gradients["one"][0] - gradients["mean"][0]) > 0.01
    model = tiny_model(dropout=0.5).train()
    torch.manual_seed(0)
    first = backward(accelerator, model, batches, True)
    noise = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    torch.manual_seed(0)
    assert torch.equal(first, backward(accelerator, model, batches, True))
    assert all(
        torch.equal(a, b)
        for a, b in zip(noise, [p.grad for p in model.parameters() if p.grad is not None], strict=True)
    )


def test_blocks_of_the_encoders_are_released_one_after_the_other(tmp_path):
    arguments = StageArguments(
        learning_rate=0.1, encoder_learning_rate=0.01, unfreeze_every=1, num_epochs=3, batch_size=4
    )
    groups = parameter_groups(tiny_model(), arguments)
    assert {group["lr"] for group in groups[:-1]} == {0.01}
    assert groups[-1]["lr"] == 0.1
    assert sum(len(group["params"]) for group in groups) == len(list(tiny_model().parameters()))
    model = tiny_model()
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, arguments)
    released = {names[id(p)]: group["release"] for group in groups for p in group["params"]}
    assert max(released.values()) > 1
    batch = {
        "pixel_values": torch.randn(8, 16, 8, 3, 16, 16),
        "input_features": torch.randn(8, 16, 64, 30),
        "labels": torch.rand(8, 16, 2),
    }
    data, seen = [{name: x[i] for name, x in batch.items()} for i in range(8)], []
    start = {name: p.detach().clone() for name, p in model.named_parameters()}

    def validate(model, pictures):
        seen.append({name for name, p in model.named_parameters() if not torch.equal(p, start[name])})
        return {"ccc": 0.0}

    fit(model, data, validate, arguments, tmp_path, tiny_processor())
    for epoch, moved in enumerate(seen):
        assert {name for name in moved if released[name] > epoch} == set()
        assert {name for name, release in released.items() if release == epoch} & moved
    assert len(seen[0]) < len(seen[1]) < len(seen[2])


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
    folder = tmp_path / "run/seed-0/fusion"
    assert f"fusion: {folder}" in run.stdout
    assert json.loads((folder / "metrics.json").read_text())["settings"]["mixed_precision"] == "bf16"


def test_a_loss_that_is_no_number_stops_the_run_and_is_not_kept(tmp_path):
    data = toy()
    data[30]["labels"] = data[30]["labels"] * float("inf")
    arguments = StageArguments(batch_size=8, save_steps=1, num_epochs=2)
    with pytest.raises(FloatingPointError, match=r"step \d: the loss is nan. Lower the learning rate \(0\.001\)"):
        fit(tiny_model(), data, moved, arguments, tmp_path, tiny_processor())
    for path in (tmp_path / "checkpoints").glob("step-????????/model.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())


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


def test_options_of_other_stages_are_refused(recipe, tmp_path):
    content = yaml.safe_load(recipe.read_text())
    for section, name in (("fusion", "augment_crops"), ("video", "modality_dropout"), ("audio", "unfreeze_every")):
        changed = {**content, section: {**content[section], name: 1}}
        (tmp_path / "bad.yaml").write_text(yaml.safe_dump(changed))
        with pytest.raises(ValueError, match=rf"bad\.yaml, section {section}: {name} is an option of"):
            load_recipe(tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({**content, "fusion": {"learning_rate": "1e-3"}}))
    with pytest.raises(
        ValueError, match=r"section fusion: learning_rate is '1e-3' and must be a number, such as 0\.001"
    ):
        load_recipe(tmp_path / "bad.yaml")


def test_splits_that_share_a_subject_are_refused(recipe, tmp_path):
    content = yaml.safe_load(recipe.read_text())
    corpus = Path(content["data"]["root"]).parent / "corpus"
    rows = {split: load_affwild2(corpus, split).select([0]) for split in ("train", "validation")}
    shared = {
        split: make_dataset([{**row, "subject": "the same"} for row in part], [], "made", "raise")
        for split, part in rows.items()
    }
    prepare(shared, tmp_path / "prepared", tiny_processor())
    content["data"]["root"] = str(tmp_path / "prepared")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"recipe\.yaml, section data, key root, .* share subject \['the same'\]"):
        load_splits(load_recipe(tmp_path / "recipe.yaml"))


def test_folds_select_by_other_rows_than_they_report(recipe):
    recipe = load_recipe(recipe)
    recipe = replace(recipe, data=replace(recipe.data, num_folds=3))
    reported = []
    for fold in range(3):
        train, selected, held_out = (set(rows["video_id"]) for rows in load_splits(recipe, fold))
        assert not train & selected
        assert not train & held_out
        assert not selected & held_out
        assert len(train | selected | held_out) == 8
        reported.append(held_out)
    assert reported[0] == {"x", "yy"}  # the official split
    assert set.union(*reported) == {"a", "b", "c", "dd", "ee", "ff", "x", "yy"}
    with pytest.raises(ValueError, match="fold=3: .* has num_folds=3, give 0 to 2"):
        load_splits(recipe, 3)


def test_recipes_name_encoders_that_are_trained(recipe, tmp_path):
    content = yaml.safe_load(recipe.read_text())
    trained = tiny_model(seed=7)
    trained.video_encoder.save_pretrained(tmp_path / "video")
    content["encoders"] = {"video": str(tmp_path / "video")}
    del content["processor"]  # it is what the encoders expect
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    model = build_model(load_recipe(tmp_path / "recipe.yaml"))
    theirs = trained.video_encoder.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.video_encoder.state_dict().items())


def test_fusion_before_its_encoders_is_refused(recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no trained video encoder, .* train the stage 'video' first"):
        train_fusion(replace(load_recipe(recipe), output_dir=str(tmp_path)))


@pytest.mark.parametrize("name", [p.name for p in sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))])
def test_every_stage_and_row_of_a_recipe_can_be_built(name):
    recipe = load_recipe(Path(__file__).parents[1] / "recipes" / name)
    recipe = replace(recipe, encoders={})  # those are downloaded
    with torch.device("meta"):
        for row, changes in {"fusion": {}, **ROWS}.items():
            assert build_model(recipe, **changes).regressors, row


def test_a_face_that_is_all_there_is_is_not_dropped(tmp_path):
    """Modality dropout of a recipe is no handicap of its unimodal rows."""
    for share in (0.0, 0.9):
        model = tiny_model(modalities=["video"], fusion="concat")
        arguments = StageArguments(learning_rate=0.01, batch_size=8, num_epochs=1, modality_dropout=share)
        fit(model, toy(), lambda model, pictures: {"ccc": 0.0}, arguments, tmp_path / str(share), tiny_processor())
    assert equal(weights(tmp_path / "0.0"), weights(tmp_path / "0.9"))


def test_a_run_does_not_go_on_with_other_processes_or_settings(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path, stop_at(2))
    checkpoint = latest_checkpoint(tmp_path / "checkpoints")
    settings = json.loads((checkpoint / "settings.json").read_text())
    (checkpoint / "settings.json").write_text(json.dumps({**settings, "processes": 3}, indent=1))
    with pytest.raises(ValueError, match=r"was trained with processes=3, and now processes=1 is asked for"):
        train_toy(tmp_path)


def test_damaged_checkpoints_that_lie_ahead_do_not_push_out_good_ones(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path, stop_at(4))
    checkpoints = tmp_path / "checkpoints"
    for path in checkpoints.glob("step-????????"):
        (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path, stop_at(2))
    assert latest_checkpoint(checkpoints).name == "step-00000005"


def test_fewer_samples_than_processes_take_still_train(tmp_path):
    codes = run(partial(train_toy, tmp_path, batch_size=30, num_epochs=1), world=2)
    assert codes == [0, 0]
    assert json.loads((tmp_path / "metrics.json").read_text())["best"] is not None


def track_twice(folder):
    for name in ("a", "b"):
        model = tiny_model()
        model.freeze_encoders()
        arguments = StageArguments(batch_size=8, num_epochs=1)
        fit(model, toy(), moved, arguments, folder / name, tiny_processor(), log_with="tensorboard")


def test_stages_that_follow_each_other_are_tracked_on_two_processes(tmp_path):
    assert run(track_twice, tmp_path, world=2) == [0, 0]
    assert all(list((tmp_path / name / "logs").rglob("events.*")) for name in ("a", "b"))


def test_keys_that_would_be_passed_over_are_refused(recipe, tmp_path):
    content = yaml.safe_load(recipe.read_text())
    for change, message in (
        (
            {"processor": {"video_processor": {"width": 16}}},
            "section processor, video_processor: there is no key width",
        ),
        ({"processor": {"fps": 25}}, "section processor: there is no key fps"),
        ({"model": {"video_config": {"model_type": "r2plus1d", "spatial_width": 7}}}, "video_config: there is no key"),
        ({"fusion": {"patience": 0}}, r"section fusion: patience=0 must be a whole number of at least 1"),
        ({"fusion": {"batch_size": 16.5}}, "section fusion: batch_size=16.5 must be a whole number"),
    ):
        (tmp_path / "bad.yaml").write_text(yaml.safe_dump({**content, **change}))
        with pytest.raises(ValueError, match=message):
            load_recipe(tmp_path / "bad.yaml")
    for text in ("", "a: [1"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.yaml"):
            load_recipe(tmp_path / "bad.yaml")
