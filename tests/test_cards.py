import base64
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from conftest import tiny_config, tiny_processor
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load

from jca import JCAConfig, load_affwild2
from jca.cards import corpus_of, dataset_card, recipe_card, write_card
from jca.recipes import ROWS, build_processor, load_recipe
from jca.synthetic import make_synthetic


ROOT = Path(__file__).parents[1]
METRICS = json.loads((ROOT / "model_cards/demo_metrics.json").read_text())
AFFWILD2 = {"recipe": "/home/zoe/affwild2_mine.yaml", "data": "/home/zoe/Aff-Wild2-prepared"}


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
    assert "metrics.json`." not in card.splitlines()[-1]  # nor a claim that figures are from there
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


def test_the_files_say_what_is_synthetic_whatever_the_recipe_is_called(tmp_path):
    metrics = {"recipe": "affwild2_jca.yaml", "data": str(tmp_path)}
    assert corpus_of(metrics) == "affwild2"
    index = {"train": {"train/synthetic-0000.arrow": {}}, "validation": {"validation/synthetic-0001.arrow": {}}}
    (tmp_path / "prepared.json").write_text(json.dumps(index))
    assert corpus_of(metrics) == "synthetic"
    index["train"]["train/1-30-1280x720.arrow"] = {}
    (tmp_path / "prepared.json").write_text(json.dumps(index))
    assert corpus_of(metrics) == "affwild2"
    assert corpus_of({"recipe": "mine.yaml", "data": str(tmp_path)}) is None
    assert corpus_of({"recipe": "mine.yaml"}) is None


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
    assert bodies[0] == bodies[1]


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
    commit, cached = "0123456789abcdef0123456789abcdef01234567", tmp_path / "hf/hub/models--somebody--jca-tiny"
    shutil.copytree(folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
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


@pytest.mark.parametrize(
    "arguments",
    [["recipes/demo.yaml", "--metrics", "model_cards/demo_metrics.json"], ["recipes/affwild2_jca.yaml"]],
)
def test_cards_of_the_repository_are_written_and_not_edited(arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "scripts/make_card.py", *arguments]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr[-3000:]
    card = ROOT / "model_cards" / f"{Path(arguments[0]).stem}.md"
    assert run.stdout == card.read_text(encoding="utf-8")
    assert f"python scripts/make_card.py {' '.join(arguments)} > model_cards/{card.name}" in (
        ROOT / "model_cards/README.md"
    ).read_text(encoding="utf-8")


def test_a_folder_and_its_recipe_have_one_card(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    from_recipe = str(recipe_card("recipes/demo.yaml", METRICS))
    recipe = load_recipe("recipes/demo.yaml")
    folder = make_folder(tmp_path / "demo", METRICS, JCAConfig(**recipe.model), build_processor(recipe))
    example = 'model="runs/demo/seed-0/fusion", trust_remote_code=True)  # as training leaves it'
    expected = from_recipe.replace(example, 'model=".", trust_remote_code=True)  # this folder')
    assert write_card(folder).read_text(encoding="utf-8") == expected + "\n"


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


class Hub(BaseHTTPRequestHandler):
    """What of the Hub's protocol a data set goes through: made, checked, committed, listed and fetched again."""

    files: dict[str, bytes] = {}
    checked: list[str] = []
    made: list[dict] = []
    SHA = "0123456789abcdef0123456789abcdef01234567"

    def log_message(self, *arguments):
        pass

    def answer(self, content=b"", status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), "X-Repo-Commit": self.SHA, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        path, body = urlsplit(self.path).path, self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/repos/create":
            about = json.loads(body)
            self.made.append(about)
            name = f"{about['organization']}/{about['name']}"
            self.answer({"url": f"http://{self.headers['Host']}/{about['type']}s/{name}"})
        elif path == "/api/validate-yaml":
            self.checked.append(json.loads(body)["content"])
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": x, "uploadMode": "regular", "shouldIgnore": False} for x in files]})
        elif "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"http://{self.headers['Host']}/datasets/somebody/corpus/commit/{self.SHA}"
            self.answer({"commitUrl": address, "commitOid": self.SHA})
        else:
            self.answer(status=404)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if "/resolve/" in path:
            name = path.split(f"/resolve/{self.SHA}/")[-1]
            self.answer(self.files[name], ETag=f'"{abs(hash(self.files[name]))}"')
        elif "/tree/" in path:
            self.answer([{"type": "file", "path": x, "size": len(y), "oid": "0"} for x, y in self.files.items()])
        elif path.startswith("/api/datasets/"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer({"id": "somebody/corpus", "sha": self.SHA, "siblings": siblings, "private": False, "tags": []})
        else:
            self.answer(status=404)

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def hub():
    Hub.files, Hub.checked, Hub.made = {}, [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus") / "synthetic"
    return make_synthetic(root, num_train=1, num_validation=1, seconds=1.0, seed=3, num_proc=1)


PUSH = """
import sys
from jca.cards import push_synthetic
print("URL", push_synthetic(sys.argv[1], "somebody/corpus", private=True))
"""


def test_corpus_goes_to_the_hub_and_comes_back(corpus, hub, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub}
    environment.update(HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1", HF_TOKEN="hf_none")
    (corpus / "cropped_aligned/synthetic-0001.part").mkdir()  # one that is being made
    (corpus / "cropped_aligned/synthetic-0001.part/00001.jpg").write_bytes(b"half")
    run = subprocess.run([sys.executable, "-c", PUSH, str(corpus)], env=environment, capture_output=True, text=True)
    shutil.rmtree(corpus / "cropped_aligned/synthetic-0001.part")
    assert run.returncode == 0, run.stderr[-3000:]
    assert f"URL {hub}/datasets/somebody/corpus" in run.stdout
    local = {path.relative_to(corpus).as_posix(): path.read_bytes() for path in corpus.rglob("*") if path.is_file()}
    card = str(dataset_card(corpus, "somebody/corpus"))
    assert {**local, "README.md": card.encode()} == Hub.files
    assert card in Hub.checked  # the Hub was asked before
    (made,) = Hub.made
    assert made["type"] == "dataset"
    assert made.get("private") or made.get("visibility") == "private"

    # the example of the card, which stands in another folder
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code += "\nprint('ROWS', root, rows[0]['video_id'], len(rows[0]['valence']))"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert re.search(r"ROWS \S*runs/demo/corpus synthetic-0000 30", run.stdout)
    again = tmp_path / "runs/demo/corpus"
    before = {path: path.stat().st_mtime_ns for path in again.rglob("*.mp4")}
    make_synthetic(again, num_train=1, num_validation=1, seconds=1.0, seed=3, num_proc=1)  # goes on from there
    assert len(before) == 2
    assert {path: path.stat().st_mtime_ns for path in again.rglob("*.mp4")} == before
    assert list(load_affwild2(again, "validation")["video_id"]) == ["synthetic-0001"]


def test_card_of_the_corpus(corpus, tmp_path):
    card = dataset_card(corpus, "somebody/corpus")
    rows = table(card.text)
    assert rows["train"] == ["1", "1", "1.0 s"]
    assert rows["validation"] == ["1", "1", "1.0 s"]
    assert "30 frames a second" in card.text
    assert "**Synthetic: no person appears in it.**" in card.text
    assert "figure on it must be called one of synthetic data" in card.text
    (command,) = re.findall(r"python scripts/make_synthetic\.py runs/demo/corpus (.+)", card.text)
    assert command == "--num_train 1 --num_validation 1 --seconds 1.0 --fps 30 --seed 3"
    metadata = yaml.safe_load(card.data.to_yaml())
    assert metadata["license"] == "apache-2.0"
    assert metadata["annotations_creators"] == "machine-generated"
    with pytest.raises(ValueError, match=r"no synthetic corpus.*Make one"):
        dataset_card(tmp_path, "somebody/corpus")
