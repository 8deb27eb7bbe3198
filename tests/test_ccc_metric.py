import doctest
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import evaluate
import numpy as np
import pytest
from huggingface_hub import SpaceCard

from jca.metrics import ccc, score


ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "metrics/ccc"


@pytest.fixture
def metric(tmp_path):
    return evaluate.load(str(FOLDER), cache_dir=str(tmp_path))


def exact(predictions, references):
    """CCC of the very numbers, in rational arithmetic; rounded once, at the end."""
    x, y = [Fraction(float(v)) for v in predictions], [Fraction(float(v)) for v in references]
    n = len(x)
    mean_x, mean_y = sum(x) / n, sum(y) / n
    s_xy = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / n
    s_xx, s_yy = sum((a - mean_x) ** 2 for a in x) / n, sum((b - mean_y) ** 2 for b in y) / n
    denominator = s_xx + s_yy + (mean_x - mean_y) ** 2
    return float(2 * s_xy / denominator) if denominator else 0.0


def test_ccc_is_that_of_exact_arithmetic(metric):
    rng = np.random.default_rng(0)
    for _ in range(60):
        dtype = rng.choice([np.float16, np.float32, np.float64])
        size = rng.integers(1, 40)
        x = (rng.normal(size=size) * 10 ** rng.uniform(-2, 2) + rng.normal()).astype(dtype)
        y = (rng.uniform(-1, 1) * x + rng.normal(size=size) * 10 ** rng.uniform(-2, 2)).astype(dtype)
        assert metric.compute(predictions=x, references=y)["ccc"] == pytest.approx(exact(x, y), rel=1e-9, abs=1e-12)


def test_ccc_is_that_of_other_software(metric):
    concordance_cc = pytest.importorskip("audmetric").concordance_cc
    rng = np.random.default_rng(0)
    for _ in range(20):
        x = rng.normal(rng.normal(), 1, size=rng.integers(2, 500))
        y = rng.uniform(-1, 1) * x + rng.normal(size=len(x))
        value = metric.compute(predictions=x, references=y)["ccc"]
        assert value == pytest.approx(concordance_cc(y, x), abs=1e-12)


@pytest.mark.parametrize(
    ("predictions", "references"),
    [
        ([0.1, 0.1, 0.1], [0.1, 0.1, 0.1]),  # 0 / 0, and the mean of three 0.1 in float64 is not 0.1
        ([0.1, 0.1, 0.1], [0.3, 0.3, 0.3]),
        ([0.1, 0.1, 0.1], [0.1, 0.7, 0.3]),
        ([0.1, 0.7, 0.3], [0.1, 0.1, 0.1]),
        ([0.3], [0.3]),
        ([0.3], [0.4]),
        ([0.3, 0.1], [0.3, 0.1]),
        ([0.3, 0.1], [0.1, 0.3]),
        ([0.3, 0.1], [-0.2, 0.6]),
        ([0, 1, 1], [0, 1, 2]),  # integers
        ([1e200, 2e200, 4e200], [2e200, 2e200, 3e200]),  # their squares are no float64
        ([1e-200, 2e-200, 4e-200], [2e-200, 2e-200, 3e-200]),
        ([1e200, 2e200, 4e200], [0.1, 0.2, 0.4]),
    ],
)
def test_degenerate_series(metric, predictions, references):
    value = metric.compute(predictions=predictions, references=references)["ccc"]
    assert value == pytest.approx(exact(predictions, references), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_offset_that_is_large_beside_the_noise(metric, dtype):
    rng = np.random.default_rng(0)
    common = rng.normal(0, 0.01, 300)
    x, y = ((1e4 + common + rng.normal(0, 0.01, 300)).astype(dtype) for _ in range(2))
    assert metric.compute(predictions=x, references=y)["ccc"] == pytest.approx(exact(x, y), abs=1e-9)
    assert 0.4 < exact(x, y) < 0.6


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, list])
def test_what_is_not_annotated_is_left_out(metric, dtype):
    x, y = [0.1, np.nan, 0.5, 0.3, np.nan, 0.2], [0.0, -5, 0.25, 0.5, np.nan, 0.75]
    x, y = (list(v) if dtype is list else np.array(v, dtype) for v in (x, y))
    keep = [0, 2, 3, 5]
    kept = [x[i] for i in keep], [y[i] for i in keep]
    assert metric.compute(predictions=x, references=y)["ccc"] == pytest.approx(exact(*kept), abs=1e-12)
    value = metric.compute(predictions=[*kept[0], 9], references=[*kept[1], 7], ignored_label=7)["ccc"]
    assert value == pytest.approx(exact(*kept), abs=1e-12)
    # another label is ignored, then -5 is a value like any other
    value = metric.compute(predictions=[0.1, 0.2], references=[0.5, -5], ignored_label=7)["ccc"]
    assert value == pytest.approx(exact([0.1, 0.2], [0.5, -5]), abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, list])
@pytest.mark.parametrize("references", [[0.0, 0.5, 0.25], [0.5, 0.5, 0.5]])
@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_prediction_that_is_no_number_gives_nan(metric, dtype, references, position, value):
    predictions = [0.5, 0.5, 0.5]
    predictions[position] = value
    predictions = predictions if dtype is list else np.array(predictions, dtype)
    assert np.isnan(metric.compute(predictions=predictions, references=references)["ccc"])


@pytest.mark.parametrize("references", [[-5.0, np.nan], []])
def test_nothing_annotated_is_refused(metric, references):
    message = f"None of the {len(references)} references is annotated.*Pass references that are annotated"
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=[0.1] * len(references), references=references)
    assert metric.compute(predictions=[0, 1], references=[0, 1]) == {"ccc": 1}  # nothing is left of the refused


def test_two_outputs_in_one_call_are_refused(metric):
    with pytest.raises(ValueError, match="don't match the expected format"):
        metric.compute(predictions=np.zeros((4, 2)), references=np.zeros((4, 2)))


def test_score_of_a_split_is_this_metric(metric):
    rng = np.random.default_rng(0)
    predictions = [rng.normal(i, 1, (50, 2)).astype(np.float32) for i in range(3)]
    labels = [(p + rng.normal(size=p.shape)).astype(np.float32) for p in predictions]
    labels[1][10:20] = -5
    labels[2][5] = np.nan
    result = score(predictions, labels)
    for index, name in enumerate(("valence", "arousal")):
        for predicted, labelled in zip(predictions, labels, strict=True):
            metric.add_batch(predictions=predicted[:, index], references=labelled[:, index])
        assert metric.compute()["ccc"] == pytest.approx(result[f"ccc_{name}"], abs=1e-12)
    x, y = rng.normal(size=(2, 100))
    assert metric.compute(predictions=x, references=y)["ccc"] == pytest.approx(ccc(x, y), abs=1e-12)


def test_batches_are_one_series(metric):
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=6), 5) + rng.normal(0, 0.1, 30)
    y = x + rng.normal(0, 0.3, 30)
    expected = metric.compute(predictions=x, references=y)
    for begin, end in [(0, 1), (1, 12), (12, 12), (12, 30)]:
        metric.add_batch(predictions=x[begin:end], references=y[begin:end])
    assert metric.compute() == expected
    for predicted, labelled in zip(x, y, strict=True):
        metric.add(prediction=predicted, reference=labelled)
    assert metric.compute() == expected
    each = np.mean([exact(x[i : i + 5], y[i : i + 5]) for i in range(0, 30, 5)])
    assert abs(expected["ccc"] - each) > 0.05


@pytest.mark.parametrize("path", [FOLDER, FOLDER / "ccc.py"])
@pytest.mark.parametrize("keep_in_memory", [False, True])
def test_folder_and_file_are_loaded(tmp_path, path, keep_in_memory):
    metric = evaluate.load(str(path), cache_dir=str(tmp_path), keep_in_memory=keep_in_memory)
    assert metric.name == "ccc"
    assert metric.compute(predictions=[0.0, 1, 1], references=[0.0, 1, 2])["ccc"] == pytest.approx(2 / 3)


def run(*arguments, tmp_path):
    """A Python that was started elsewhere, without the variables of this one."""
    environment = {"HF_HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", *map(str, arguments)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


ALONE = """
import socket, sys

def refuse(*arguments, **options):
    raise AssertionError(f"the network was asked for {arguments}")

socket.getaddrinfo = socket.socket.connect = refuse
import evaluate

print(evaluate.load(sys.argv[1]).compute(predictions=[0.0, 1, 1], references=[0.0, 1, 2])["ccc"])
assert not [name for name in sys.modules if name == "jca" or name.endswith("_jca")]
"""


def test_folder_stands_alone(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "ccc")
    process = run(ALONE, "./ccc", tmp_path=tmp_path)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert float(output) == pytest.approx(2 / 3)


SHARE = """
import json, sys

import evaluate

folder, rank, cache, batches = sys.argv[1], int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
metric = evaluate.load(folder, num_process=2, process_id=rank, experiment_id="uneven", cache_dir=cache)
for predictions, references in batches:
    metric.add_batch(predictions=predictions, references=references)
print(json.dumps(metric.compute()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("split", [7, 30])
def test_two_processes_give_the_value_of_all_samples(tmp_path, split):
    rng = np.random.default_rng(0)
    x = np.repeat([-1.0, 1.0], [7, 23]) + rng.normal(0, 0.3, 30)
    y = x + rng.normal(0, 0.3, 30)
    y[[3, 20]] = -5
    shares = [[[x[:3], y[:3]], [x[3:split], y[3:split]]], [[x[split:], y[split:]]]]
    processes = [
        run(SHARE, FOLDER, rank, tmp_path / "cache", json.dumps(share, default=list), tmp_path=tmp_path)
        for rank, share in enumerate(shares)
    ]
    results = []
    for process in processes:
        output, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        results.append(json.loads(output))
    keep = y != -5
    assert results[0]["ccc"] == pytest.approx(exact(x[keep], y[keep]), abs=1e-12)
    assert results[1] is None


def test_readme_is_right(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    (usage,) = re.findall(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    names = {}
    for text in (usage, evaluate.load("./metrics/ccc").inputs_description):
        example = doctest.DocTestParser().get_doctest(text, names, "usage", "README.md", 0)
        assert example.examples
        assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, clear_globs=False).failed == 0
        names = example.globs


def test_folder_is_a_space(tmp_path, monkeypatch):
    card = SpaceCard.load(FOLDER / "README.md").data
    assert (card.sdk, card.app_file, card.title) == ("gradio", "app.py", "CCC")
    assert {"evaluate", "metric"} <= set(card.tags)
    assert card.sdk_version.startswith("3.")  # the widget of evaluate uses what Gradio 4 has no more
    # Gradio is on the Space only: what the application hands to the widget is this metric
    shown = []
    monkeypatch.setattr(evaluate.utils, "launch_gradio_widget", shown.append)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    runpy.run_path(str(FOLDER / card.app_file))
    assert shown[0].compute(predictions=[0, 1], references=[0, 1]) == {"ccc": 1}
