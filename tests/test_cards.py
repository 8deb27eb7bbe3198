import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import tiny_config, tiny_processor
from huggingface_hub import EvalResult, ModelCard, parse_eval_result_entries
from huggingface_hub.repocard import metadata_load

from jca import JCAConfig
from jca.cards import (
    corpus_of,
    dataset_card,
    differing_figures,
    eval_results_file,
    is_edited,
    public_metrics,
    recipe_card,
    write_card,
)
from jca.recipes import ROWS, build_processor, load_recipe
from jca.synthetic import make_synthetic


ROOT = Path(__file__).parents[1]
METRICS = json.loads((ROOT / "model_cards/demo_metrics.json").read_text())
AFFWILD2 = {
    "recipe": "/home/zoe/affwild2_mine.yaml",
    "data": "/home/zoe/Aff-Wild2-prepared",
    "corpus": {"train": {"kind": "affwild2"}, "validation": {"kind": "affwild2"}},
}


def make_folder(path: Path, metrics: dict | None = None, config=None, processor=None) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (config or tiny_config()).save_pretrained(path)
    (processor or tiny_processor()).save_pretrained(path)
    if metrics is not None:
        (path / "metrics.json").write_text(json.dumps(metrics))
    return path


def table(card: str) -> dict[str, list[str]]:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line.startswith("| ")
    ]
    return {row[0]: row[1:] for row in rows}


# Figures --------------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_metrics_file_and_no_others(tmp_path):
    reported = {"ccc": 0.123456, "frames": 4321}
    reported |= {f"{kind}_{name}": 0.1 * i for i, kind in enumerate(("ccc", "mse", "pcc"), 2) for name in ("valence",)}
    reported |= {
        f"{kind}_{name}": -0.01 * i for i, kind in enumerate(("ccc", "mse", "pcc"), 2) for name in ("arousal",)
    }
    card = write_card(make_folder(tmp_path / "model", {**METRICS, "reported": reported})).read_text(encoding="utf-8")
    rows = table(card)
    assert rows["valence"] == ["0.200", "0.300", "0.400"]
    assert rows["arousal"] == ["-0.020", "-0.030", "-0.040"]
    assert rows["mean"] == ["0.123", "", ""]
    assert "all 4321 labelled frames" in card
    values = {f"{METRICS['best'][name]:.3f}" for name in METRICS["best"] if name.startswith(("ccc", "mse", "pcc"))}
    assert not [value for value in values if value in card]  # another epoch's, or the split that selects

    (index,) = metadata_load(tmp_path / "model/README.md")["model-index"]
    (result,) = index["results"]
    assert result["dataset"]["split"] == "validation"
    named = {metric["name"]: (metric["type"], metric["value"]) for metric in result["metrics"]}
    assert named == {
        "CCC valence": ("ccc", reported["ccc_valence"]),
        "CCC arousal": ("ccc", reported["ccc_arousal"]),
        "CCC mean": ("ccc", reported["ccc"]),
        "MSE valence": ("mse", reported["mse_valence"]),
        "MSE arousal": ("mse", reported["mse_arousal"]),
        "PCC valence": ("pearsonr", reported["pcc_valence"]),
        "PCC arousal": ("pearsonr", reported["pcc_arousal"]),
    }
    for about in (
        METRICS["commit"],
        "hop 8",
        "0:00:11",
        f"torch {METRICS['versions']['torch']}",
        "1 thread,",
        "seed 0",
    ):
        assert about in card


def test_without_metrics_there_are_no_figures(tmp_path):
    path = write_card(make_folder(tmp_path / "model"))
    card = path.read_text(encoding="utf-8")
    assert "there is no `metrics.json`" in card
    assert "Trained on what is not known" in card
    assert not table(card)
    assert "metrics.json`." not in card.splitlines()[-3]  # nor a claim that figures are from there
    assert not re.search(r"\b[01]\.\d{3}\b", card)
    metadata = metadata_load(path)
    assert not {"model-index", "metrics", "datasets", "model_name"} & set(metadata)
    assert metadata["license"] == "unknown"


def test_a_file_that_training_did_not_leave_is_refused(tmp_path):
    folder = make_folder(tmp_path / "model", {"ccc": 0.9, "ccc_valence": 0.9, "split": "validation"})
    with pytest.raises(ValueError, match=r"metrics\.json has no entry `best`.*Move it"):
        write_card(folder)
    assert not (folder / "README.md").exists()
    with pytest.raises(OSError, match=r"config\.json"):
        write_card(tmp_path)


def test_says_what_was_selected_by_what_and_what_was_scored(tmp_path):
    card = write_card(make_folder(tmp_path / "a", METRICS)).read_text()
    assert "selected by the same data (validation), which flatters" in card
    folds = {"fold": 0, "selected_by": "held-out part of the next fold", "reported_on": "held-out part of fold 0"}
    card = write_card(make_folder(tmp_path / "b", {**METRICS, **folds})).read_text()
    assert "selected by other data than these (held-out part of the next fold)" in card
    assert "| synthetic corpus, held-out part of fold 0 | CCC" in card
    assert "flatters" not in card
    assert ", fold 0" in card

    # a stage that reports nothing has the figures of what it was selected by, of clips
    stage = {name: value for name, value in {**METRICS, **folds, "stage": "video"}.items() if name != "reported"}
    config = tiny_config(**ROWS["video"])
    card = write_card(make_folder(tmp_path / "c", stage, config)).read_text()
    assert "selected by the same data (held-out part of the next fold)" in card
    assert "labelled clips in one series, each clip on its own" in card
    assert card.count("It does not hear.") == 1
    assert "Encoder of the voice" not in card
    assert "- Fusion" not in card
    assert table(card)["mean"][0] == f"{METRICS['best']['ccc']:.3f}"
    tracks = {"model_type": "r2plus1d", "tracks": True, "stem_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
    config = tiny_config(**{**ROWS["video"], "video_config": tracks})
    assert "labelled frames in one series" in write_card(make_folder(tmp_path / "d", stage, config)).read_text()


def test_training_without_a_recipe_has_a_card(tmp_path):
    """`jca.training.fit` knows no recipe of a model of one's own."""
    names = ("best", "history", "settings", "seed", "seconds", "time", "commit", "versions", "hardware")
    metrics = {name: METRICS[name] for name in names}
    path = write_card(make_folder(tmp_path / "model", {**metrics, "commit": None}))
    card = path.read_text()
    assert table(card)["valence"][0] == f"{METRICS['best']['ccc_valence']:.3f}"
    assert "Recipe: none" in card
    assert "None" not in card
    assert "Trained on what is not known" in card
    assert metadata_load(path)["license"] == "unknown"


# What is said of the data ---------------------------------------------------------------------------------------------


def test_synthetic_is_called_so_wherever_it_is_spoken_of(tmp_path):
    path = write_card(make_folder(tmp_path / "model", METRICS))
    card = path.read_text()
    assert "**Of no use on people.**" in card.split("## ")[0]
    sections = {part.split("\n")[0]: part for part in card.split("\n## ")[1:]}
    for name in ("What the numbers mean", "Results", "Training", "Where it fails", "Whom the data shows"):
        assert "synthetic" in sections[name], name
    assert "must not be used on people at all" in sections["What must not be done with it"]
    for line in card.split("---", 2)[2].splitlines():
        if "corpus" in line and "scale of the corpus" not in line:
            assert "synthetic" in line, line
    assert "for research only" not in card
    metadata = metadata_load(path)
    assert metadata["license"] == "apache-2.0"
    assert metadata["datasets"] == ["jca-synthetic"]
    assert "synthetic" in metadata["tags"]


def test_affwild2_is_for_research_and_of_people(tmp_path):
    path = write_card(make_folder(tmp_path / "model", {**METRICS, **AFFWILD2}))
    card = path.read_text()
    assert "synthetic" not in card.lower()
    assert "licensed for research only: ask its authors" in card
    assert "Not outside of research." in card
    assert "zoe" not in card  # a path of the machine
    assert "`affwild2_mine.yaml`" in card
    metadata = metadata_load(path)
    assert metadata["license"] == "other"
    assert metadata["license_name"] == "aff-wild2-research-only"
    assert metadata["license_link"].startswith("https://")


SYNTHETIC = {"kind": "synthetic", "settings": {"num_train": 1, "seed": 0}}


def test_the_record_says_what_is_synthetic_whatever_the_recipe_is_called():
    def kind(recipe, *records):
        return corpus_of({"recipe": recipe, "corpus": dict(zip(("train", "validation"), records, strict=False))})[
            "kind"
        ]

    assert kind("affwild2_jca.yaml", SYNTHETIC, SYNTHETIC) == "synthetic"
    assert kind("demo.yaml", {"kind": "affwild2"}, {"kind": "affwild2"}) == "affwild2"
    assert kind("demo.yaml", SYNTHETIC, {"kind": "affwild2"}) is None
    assert kind("demo.yaml", None, None) == "synthetic"  # as before there were records
    assert kind("mine.yaml") is None
    assert corpus_of({"recipe": "affwild2_jca.yaml"})["kind"] == "affwild2"
    assert corpus_of({})["kind"] is None


def test_a_corpus_of_ones_own_has_its_name(tmp_path):
    records = {"train": {"kind": "csv", "name": "mine | <b>"}, "validation": {"kind": "csv", "name": "theirs"}}
    path = write_card(make_folder(tmp_path / "model", {**METRICS, "corpus": records}))
    card = path.read_text("utf-8")
    assert "| corpus mine _ _b_ and theirs, validation | CCC" in card
    assert "**Trained on a corpus of somebody's own**, the corpus mine _ _b_ and theirs." in card
    assert "synthetic" not in card.lower()
    assert "not known from the files" not in card.split("## Whom")[0]
    metadata = metadata_load(path)
    assert metadata["license"] == "unknown"
    assert "datasets" not in metadata


def test_a_corpus_of_the_hub_is_named_as_there(tmp_path):
    record = {**SYNTHETIC, "hub": "someone/jca-synthetic", "revision": "0123abcd"}
    metrics = {**METRICS, "corpus": {"train": record, "validation": record}}
    path = write_card(make_folder(tmp_path / "model", metrics))
    metadata = metadata_load(path)
    assert metadata["datasets"] == ["someone/jca-synthetic"]
    assert metadata["model-index"][0]["results"][0]["dataset"]["type"] == "someone/jca-synthetic"
    assert "**Of no use on people.**" in path.read_text("utf-8")

    entries = parse_eval_result_entries(yaml.safe_load(eval_results_file(metrics)))
    figures = METRICS["reported"]
    assert {entry.task_id: entry.value for entry in entries} == {
        name: figures[name] for name in ("ccc", "ccc_valence", "ccc_arousal")
    }
    for entry in entries:
        assert (entry.dataset_id, entry.dataset_revision) == ("someone/jca-synthetic", "0123abcd")
        assert entry.date == METRICS["time"]
        assert entry.notes == "synthetic corpus, validation"


def test_what_is_not_on_the_hub_has_no_entry_there():
    record = {**SYNTHETIC, "hub": "someone/jca-synthetic", "revision": "0123abcd"}
    other = {**record, "revision": "4567abcd"}
    for pair in [(SYNTHETIC, SYNTHETIC), (record, SYNTHETIC), (record, other), (record, None)]:
        assert eval_results_file({**METRICS, "corpus": dict(zip(("train", "validation"), pair, strict=True))}) is None
    assert eval_results_file({**METRICS, **AFFWILD2}) is None
    stage = {name: value for name, value in METRICS.items() if name != "reported"}
    assert eval_results_file({**stage, "corpus": {"train": record, "validation": record}}) is None


# Cards that are there -------------------------------------------------------------------------------------------------


def test_a_card_is_written_anew_until_it_is_edited(tmp_path):
    folder = make_folder(tmp_path / "model", METRICS)
    path = write_card(folder)
    first = path.read_bytes()
    assert not is_edited(path)
    changed = {**METRICS, "reported": {**METRICS["reported"], "ccc_valence": 0.123}}
    make_folder(folder, changed)
    assert differing_figures(folder) == [f"CCC valence {METRICS['reported']['ccc_valence']}, not 0.123"]
    assert "| valence | 0.123 |" in write_card(folder, "someone/jca").read_text("utf-8")
    path.write_bytes(first.replace(b"\n", b"\r\n"))  # as Git may give it
    assert not is_edited(path)
    for before, after in [
        (b"| valence | 0.8", b"| valence | 0.9"),
        (b"<!-- As", b"<!-- Not as"),
        (b"\n---\n", b"\nextra: 1\n---\n"),
    ]:
        path.write_bytes(first.replace(before, after))
        assert is_edited(path)
        with pytest.raises(FileExistsError, match=r"README\.md was written or edited by hand: move it elsewhere"):
            write_card(folder)
    path.write_bytes(first + b"More by hand.\n")
    assert is_edited(path)


def test_figures_of_a_card_may_be_rounded_and_of_more(tmp_path):
    folder = make_folder(tmp_path / "model", METRICS)
    card = ModelCard.load(write_card(folder))
    for result in card.data.eval_results:
        result.metric_value = round(result.metric_value, 3)
    other = {
        "task_type": "video-classification",
        "dataset_type": "other",
        "dataset_name": "Other",
        "metric_type": "ccc",
    }
    card.data.eval_results.append(EvalResult(**other, metric_name="CCC valence", metric_value=0.1))
    card.data.eval_results.append(EvalResult(**other, metric_name="F1", metric_value=0.2))
    card.save(folder / "README.md")
    assert differing_figures(folder) == []
    card.data.eval_results[-3].metric_value = "0.9"
    card.save(folder / "README.md")
    assert len(differing_figures(folder)) == 1
    (folder / "README.md").write_text("# By hand, without figures\n")
    assert differing_figures(folder) == []


def test_metrics_for_others_have_no_paths_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    private = {
        "recipe": "/home/zoe/recipes/mine.yaml",
        "data": str(tmp_path / "data/prepared"),
        "settings": {
            "root": "../zoe/prepared",
            "encoders": {"video": "/srv/zoe/videomae", "audio": "facebook/wav2vec2-base"},
        },
        "history": [{"ccc": 0.5, "where": "/srv/zoe"}],
        "fold": None,
    }
    assert public_metrics(private) == {
        "recipe": "mine.yaml",
        "data": "data/prepared",
        "settings": {"root": "prepared", "encoders": {"video": "videomae", "audio": "facebook/wav2vec2-base"}},
        "history": [{"ccc": 0.5, "where": "zoe"}],
        "fold": None,
    }
    assert public_metrics(METRICS) == METRICS


# The Hub --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metrics", [METRICS, {**METRICS, **AFFWILD2}, None])
def test_metadata_is_what_the_hub_reads(tmp_path, metrics):
    path = write_card(make_folder(tmp_path / "model", metrics))
    card = ModelCard.load(path)  # parses the model index too
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "video-classification"
    assert len(card.data.eval_results or []) == (7 if metrics else 0)
    assert all(isinstance(tag, str) for tag in card.data.tags)
    assert card.data.to_dict() == metadata_load(path)
    assert "Undefined" not in card.text
    assert "{{" not in card.text
    assert "{%" not in card.text
    assert "\n\n\n" not in card.text
    assert "2203.14779" in card.text


@pytest.mark.parametrize(
    "name", ["a b ü", "null", "0.5", "x: [y]", "# {{ labels }} {% if %}", "'\"---", "...", "π*π|<b>"]
)
def test_odd_names_of_folders(tmp_path, name):
    folder = make_folder(tmp_path / name, METRICS)
    assert metadata_load(write_card(folder))["model-index"][0]["name"] == name
    plain = write_card(make_folder(tmp_path / "plain", METRICS))
    bodies = [path.read_text(encoding="utf-8").split("\n# ", 1)[1] for path in (folder / "README.md", plain)]
    assert bodies[0].split("\n<!-- ")[0] == bodies[1].split("\n<!-- ")[0]


def test_the_folder_one_stands_in_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(make_folder(tmp_path / "mine", METRICS))
    assert metadata_load(write_card("."))["model-index"][0]["name"] == "mine"


def test_encoders_of_others_are_named(tmp_path):
    local = tmp_path / "encoders" / "wav2vec2"
    local.mkdir(parents=True)
    encoders = {"video": "MCG-NJU/videomae-base", "audio": str(local)}
    metrics = {**METRICS, **AFFWILD2, "settings": {**METRICS["settings"], "encoders": encoders}}
    path = write_card(make_folder(tmp_path / "model", metrics))
    assert metadata_load(path)["base_model"] == ["MCG-NJU/videomae-base"]
    card = path.read_text()
    assert "Encoder of the face: `MCG-NJU/videomae-base`" in card
    assert "Encoder of the voice: `wav2vec2`" in card
    assert "weights of MCG-NJU/videomae-base, whose licences hold too" in card
    assert str(tmp_path) not in card


# Use ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repo_id", [None, "somebody/jca-tiny"])
def test_its_example_runs(model_folder, silent_video, tmp_path, repo_id):
    """As it stands there, in a process of its own, without `import jca`; for a repository the cache holds it."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    card = write_card(folder, repo_id).read_text(encoding="utf-8")
    assert metadata_load(folder / "README.md")["model-index"][0]["name"] == (repo_id or "model")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    lines = [line for line in code.splitlines() if line]
    assert len(lines) == 4
    assert ('revision="COMMIT"' in code) == ("in the place of `COMMIT`" in card) == bool(repo_id)
    commit, cached = "0123456789abcdef0123456789abcdef01234567", tmp_path / "hf/hub/models--somebody--jca-tiny"
    shutil.copytree(folder, cached / "snapshots" / commit)
    code = code.replace("COMMIT", commit)
    here = tmp_path if repo_id else folder
    shutil.copy(silent_video, here / "video.mp4")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment.update(HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="1")
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint('ROWS', len(rows), rows[-1]['frame'])"],
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "'valence': " in run.stdout
    assert "ROWS 40 39" in run.stdout


# The cards of this repository -----------------------------------------------------------------------------------------


def make_card(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "scripts/make_card.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8")


# of the one that is left out the encoders lie on the Hub
RECIPES = sorted(path.stem for path in ROOT.glob("recipes/affwild2_*.yaml") if path.stem != "affwild2_modern")


@pytest.mark.parametrize("name", ["demo", *RECIPES])
def test_cards_of_the_repository_are_written_and_not_edited(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    card = (ROOT / "model_cards" / f"{name}.md").read_text(encoding="utf-8")
    metrics = METRICS if name == "demo" else None
    assert card == f"{recipe_card(f'recipes/{name}.yaml', metrics)}\n"
    options = " --metrics model_cards/demo_metrics.json" if metrics else ""
    command = f"python scripts/make_card.py recipes/{name}.yaml{options} > model_cards/{name}.md"
    assert command in (ROOT / "model_cards/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({"best": [0.8]}, "has something else than figures in `best` or `reported`"),
        ({**METRICS, "reported": "0.8"}, "has something else than figures in `best` or `reported`"),
        ({"best": {"ccc": 0.8, "ccc_valence": 0.8}}, "has no ccc_arousal, mse_valence, .*is of another model"),
        ({**METRICS, "reported": {**METRICS["reported"], "mse_arousal": None}}, "has no mse_arousal, and"),
    ],
)
def test_metrics_of_something_else_are_refused(tmp_path, metrics, reason):
    folder = make_folder(tmp_path / "model", metrics)
    with pytest.raises(ValueError, match=rf"metrics\.json {reason}"):
        write_card(folder)
    assert not (folder / "README.md").exists()


def test_the_script_prints_the_card_of_a_recipe_or_one_sentence():
    run = make_card("recipes/demo.yaml", "--metrics", "model_cards/demo_metrics.json")
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout == (ROOT / "model_cards/demo.md").read_text(encoding="utf-8")
    for arguments, reason in (
        (["recipes/affwild2_modern.yaml"], "facebook/wav2vec2-base"),
        (["recipes/no_such.yaml"], "no_such.yaml"),
        (["recipes/demo.yaml", "--metrics", "model_cards/README.md"], "model_cards/README.md can not be read as JSON"),
    ):
        run = make_card(*arguments)
        assert run.returncode == 1
        assert reason in run.stderr
        assert "Traceback" not in run.stderr


def test_a_folder_and_its_recipe_have_one_card(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    from_recipe = str(recipe_card("recipes/demo.yaml", METRICS))
    recipe = load_recipe("recipes/demo.yaml")
    folder = make_folder(tmp_path / "demo", METRICS, JCAConfig(**recipe.model), build_processor(recipe))
    example = 'model="runs/demo/seed-0/fusion", trust_remote_code=True)  # as training leaves it'
    expected = from_recipe.replace(example, 'model=".", trust_remote_code=True)  # this folder')
    assert write_card(folder).read_text(encoding="utf-8").startswith(f"{expected}\n\n<!-- As jca.cards wrote it")


def test_a_recipe_that_was_not_run_has_no_figures(monkeypatch):
    monkeypatch.chdir(ROOT)
    card = recipe_card("recipes/affwild2_recursive.yaml")
    assert "**Not trained.**" in card.text
    assert "None: the recipe was not run on Aff-Wild2 here." in card.text
    assert "joint cross-attention, applied 3 times" in card.text
    assert "LSTM on the face and the voice and what the fusion gives" in card.text
    assert not table(card.text)
    assert card.data.eval_results is None
    assert "**Of no use on people.**" in recipe_card("recipes/demo.yaml").text
    assert "**Not trained.**" in recipe_card("recipes/demo.yaml").text


# The synthetic corpus -------------------------------------------------------------------------------------------------


def test_card_of_the_corpus(tmp_path):
    corpus = make_synthetic(tmp_path / "corpus", num_train=1, num_validation=1, seconds=1.0, seed=3, num_proc=1)
    card = dataset_card(corpus, "somebody/corpus")
    rows = table(card.text)
    assert rows["train"] == ["1", "1", "1.0 s"]
    assert rows["validation"] == ["1", "1", "1.0 s"]
    assert "30 frames a second" in card.text
    assert "**Synthetic: no person appears in it.**" in card.text
    assert "figure on it must be called one of synthetic data" in card.text
    (command,) = re.findall(r"python scripts/make_synthetic\.py runs/demo/corpus (.+)", card.text)
    assert command == "--num_train 1 --num_validation 1 --seconds 1.0 --fps 30 --seed 3"
    assert "make demo HUB=somebody/corpus\n" in card.text
    metadata = yaml.safe_load(card.data.to_yaml())
    assert metadata["license"] == "apache-2.0"
    assert metadata["annotations_creators"] == "machine-generated"
    with pytest.raises(ValueError, match=r"no synthetic corpus.*Make one"):
        dataset_card(tmp_path, "somebody/corpus")
