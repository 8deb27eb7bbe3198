import math
from importlib.util import find_spec

import pytest
from conftest import tiny_model, tiny_processor
from test_training import toy

from jca.training import StageArguments, fit


STEPS = [5, 10, 15]  # the last of each epoch: 40 windows in batches of 8


def train(folder, log_with):
    scores = iter([0.1, 0.3, 0.2])
    arguments = StageArguments(learning_rate=0.01, batch_size=8, num_epochs=3, warmup_ratio=0)
    return fit(
        tiny_model(),
        toy(),
        lambda model, pictures: {"ccc": next(scores)},
        arguments,
        folder,
        tiny_processor(),
        log_with=log_with,
    )


def assert_logged(series):
    """`{name: [(step, value), ...]}` is what the training was."""
    assert {name: [step for step, _ in points] for name, points in series.items()} == dict.fromkeys(series, STEPS)
    values = {name: [value for _, value in points] for name, points in series.items()}
    assert values["validation/ccc"] == pytest.approx([0.1, 0.3, 0.2])
    assert values["learning_rate"] == pytest.approx(
        [0.005 * (1 + math.cos(math.pi * step / 15)) for step in STEPS], abs=1e-9
    )
    assert values["ccc"] == pytest.approx([1 - loss for loss in values["loss"]])
    assert 2 > values["loss"][0] > values["loss"][-1] > 0


def test_tensorboard_reads_what_was_logged(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path, "tensorboard")
    events = event_accumulator.EventAccumulator(str(tmp_path / "logs/jca")).Reload()
    names = ("loss", "ccc", "learning_rate", "validation/ccc")
    assert_logged({name: [(event.step, event.value) for event in events.Scalars(name)] for name in names})


def test_trackio_reads_what_was_logged(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read once, when it is imported
    trackio = pytest.importorskip("trackio")
    train(tmp_path / "run", "trackio")
    (run,) = trackio.Api().runs("jca")
    assert run.config["learning_rate"] == 0.01
    series = {}
    for row in trackio.SQLiteStorage.get_logs("jca", run.name):
        for name, value in row.items():
            if isinstance(value, float):
                series.setdefault(name, []).append((row["step"], value))
    assert series.keys() == {"loss", "ccc", "learning_rate", "validation/ccc"}
    assert_logged(series)


def test_trackers_that_are_known_are_named(tmp_path):
    with pytest.raises(
        ValueError, match="log_with='tensorbord' is no tracker. Give one of .*tensorboard, trackio, wandb"
    ):
        train(tmp_path, "tensorbord")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_that_is_not_installed_is_refused(tmp_path):
    """Accelerate would go on without it, and keep no curve."""
    with pytest.raises(ValueError, match="log_with='wandb', and wandb is not installed: pip install wandb"):
        train(tmp_path, "wandb")
