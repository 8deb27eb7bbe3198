"""Training in several processes. Started as a script, this file is what each of the processes runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser, prepare_multi_gpu_env
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from conftest import tiny_model, tiny_processor
from safetensors.torch import load_file
from test_training import toy

from jca.evaluation import outputs
from jca.metrics import score
from jca.training import StageArguments, _check_backend, fit
from modeling_jca import JCAModel


ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "recipes/accelerate"
WINDOWS = 8  # of a global batch
CASES = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    "whole_and_averaged": {"gradient_accumulation_steps": 2, "whole_batch_gradient": True, "ema_decay": 0.5},
}


def train(folder, stop_after=None, **changes):
    """Two epochs of the toy model with frozen encoders; the global batch is the same for any number of processes."""
    epochs = 0

    def validate(model, pictures):
        nonlocal epochs
        epochs += 1
        if epochs == stop_after:
            raise KeyboardInterrupt
        return score(list(outputs(model, toy(), batch_size=7)), [row["labels"].numpy() for row in toy()])

    model = tiny_model(dropout=0.0)
    model.freeze_encoders()
    batch_size = WINDOWS // Accelerator().num_processes
    arguments = StageArguments(learning_rate=0.01, batch_size=batch_size, num_epochs=2, **changes)
    return fit(model, toy(), validate, arguments, folder, tiny_processor(), seed=3)


def work(mode, folder):
    """What one of the processes does."""
    if mode == "ddp":
        for name, changes in CASES.items():
            train(folder / name, **changes)
    elif mode == "compiled":
        train(folder)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    elif mode == "fsdp":
        # Accelerate makes FSDP of processes with GPUs alone; all that follows is the same on the CPU
        PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
        with pytest.raises(KeyboardInterrupt):
            train(folder, stop_after=2, **CASES["accumulated"])
        assert [path.name for path in folder.glob("checkpoints/step-*/pytorch_model_fsdp_0")], "nothing is sharded"
        train(folder, stop_after=2, **CASES["accumulated"])  # goes on: a run from the start would stop here again
        with pytest.raises(ValueError, match="ema_decay=0.5: an average needs whole weights .* FSDP"):
            train(folder.with_name("refused"), ema_decay=0.5)


def launch(mode, folder, config, *flags):
    """Two processes on the CPU through `accelerate launch` with one of the example files."""
    flags = ["--num_processes=2", "--main_process_port=0", "--mixed_precision=no", *flags]
    command = ["-m", "accelerate.commands.launch", f"--config_file={EXAMPLES / config}", *flags, __file__]
    run = subprocess.run(
        [sys.executable, *command, mode, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-3000:]


def assert_same_training(folder, reference):
    """Weights, their names and the history of validation."""
    weights, expected = (load_file(path / "model.safetensors") for path in (folder, reference))
    assert weights.keys() == expected.keys()
    assert max((weights[name] - tensor).abs().max() for name, tensor in expected.items()) <= 1e-5
    said, before = (json.loads((path / "metrics.json").read_text()) for path in (folder, reference))
    assert (said["settings"]["processes"], before["settings"]["processes"]) == (2, 1)
    for ours, theirs in zip(said["history"], before["history"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert before["best"]["epoch"] == 1  # what is compared has seen every step


def test_two_processes_train_as_one_on_their_joint_batches(tmp_path):
    """Accelerate gives batch i to process i % 2, so that what two processes with 4 windows see in a step are 8 in a row."""
    launch("ddp", tmp_path / "two", "ddp_2gpu.yaml")
    for name, changes in CASES.items():
        train(tmp_path / "one" / name, **changes)
        assert_same_training(tmp_path / "two" / name, tmp_path / "one" / name)


@pytest.mark.slow
def test_a_compiled_model_is_saved_under_the_plain_names(tmp_path):
    launch("compiled", tmp_path / "two", "ddp_2gpu.yaml", "--dynamo_backend=eager")
    train(tmp_path / "one")
    assert_same_training(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_sharded_training_resumes_and_leaves_a_whole_model(tmp_path):
    launch("fsdp", tmp_path / "two", "fsdp2.yaml")
    train(tmp_path / "one", **CASES["accumulated"])
    assert_same_training(tmp_path / "two", tmp_path / "one")
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
    model, reference = (JCAModel.from_pretrained(tmp_path / name) for name in ("two", "one"))
    assert (tmp_path / "two/config.json").read_text() == (tmp_path / "one/config.json").read_text()
    torch.testing.assert_close(outputs(model, toy()), outputs(reference, toy()), rtol=0, atol=1e-5)


def parse(config):
    """The arguments of `accelerate launch`, as it reads them from one of the example files."""
    return _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", str(EXAMPLES / config), "train.py"])
    )[0]


def test_example_configurations_are_what_accelerate_takes(monkeypatch):
    two, nodes, sharded = (parse(config) for config in ("ddp_2gpu.yaml", "multi_node.yaml", "fsdp2.yaml"))
    assert {arguments.mixed_precision for arguments in (two, nodes, sharded)} == {"bf16"}
    assert two.multi_gpu
    assert two.num_processes == 2
    assert nodes.multi_gpu
    assert (nodes.num_machines, nodes.num_processes, nodes.machine_rank) == (2, 8, 0)
    assert sharded.use_fsdp
    for name, value in prepare_multi_gpu_env(sharded).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert "SHARDED_STATE_DICT" in str(plugin.state_dict_type)


def test_what_deepspeed_can_not_do_is_refused(monkeypatch):
    monkeypatch.chdir(ROOT)
    deepspeed = parse("deepspeed_zero2.yaml")
    assert deepspeed.use_deepspeed
    plugin = DeepSpeedPlugin(hf_ds_config=deepspeed.deepspeed_config_file)
    assert plugin.zero_stage == 2
    assert plugin.deepspeed_config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    # DeepSpeed is not installed for the tests, and this is all that is asked of it
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED, state=SimpleNamespace(deepspeed_plugin=plugin)
    )
    _check_backend(accelerator, StageArguments())  # the example fits a recipe as it comes
    with pytest.raises(ValueError, match="gradient_accumulation_steps=4.*DeepSpeed counts .*fsdp2.yaml"):
        _check_backend(accelerator, StageArguments(gradient_accumulation_steps=4))
    with pytest.raises(ValueError, match="whole_batch_gradient=True: DeepSpeed counts"):
        _check_backend(accelerator, StageArguments(whole_batch_gradient=True))
    with pytest.raises(ValueError, match="ema_decay=0.9: .*DEEPSPEED.* Leave ema_decay out"):
        _check_backend(accelerator, StageArguments(ema_decay=0.9))
    with pytest.raises(
        ValueError, match="max_grad_norm=0.5: DeepSpeed clips by its own gradient_clipping, which is 1.0"
    ):
        _check_backend(accelerator, StageArguments(max_grad_norm=0.5))


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]))
    torch.distributed.barrier()  # none leaves while another still talks to it
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may still let go of the last collective, and abort where the interpreter is ending
