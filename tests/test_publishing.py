"""A model goes to a Hub and comes back, over real sockets, and so does the synthetic corpus; what goes wrong on the way is
said in a sentence."""

import hashlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import yaml
from conftest import tiny_model, tiny_processor
from hub import TOKEN, Fault, File, Hub
from huggingface_hub import CommitOperationAdd, parse_eval_result_entries
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor, pipeline

from jca import load_affwild2
from jca.fetching import FetchingError, fetch_synthetic
from jca.publishing import PublishingError, is_large, publish
from jca.synthetic import make_synthetic


ROOT = Path(__file__).parents[1]
METRICS = json.loads((ROOT / "model_cards/demo_metrics.json").read_text())
FLAT = sorted(path.stem for path in ROOT.glob("*_jca.py"))
PICTURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
LEFT_OVERS = (
    "checkpoints/step-00000002/model.safetensors",
    "checkpoints/step-00000002/optimizer.bin",
    "logs/events.out.tfevents.1",
    "best.part/model.safetensors",
    "model.safetensors.part",
    "optimizer.pt",
    ".writable",
    "._config.json",
    ".cache/config.json",
    "pictures/.hidden.png",
    "cache/features.arrow",
    "__pycache__/modeling_jca.cpython-311.pyc",
    "somebody.mp4",
    "token.txt",
)


@pytest.fixture
def folder(tmp_path) -> Path:
    """What a run of training leaves."""
    folder = tmp_path / "run"
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    (folder / "metrics.json").write_text('{"ccc": 0.5}')
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# By hand\n")
    for name, content in {".eval_results/demo.yaml": b"[]\n", "pictures/epoch-000.png": PICTURE}.items():
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(content)
    for name in LEFT_OVERS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("not for others")
    return folder


PUBLISHED = sorted(
    [
        *(f"{name}.py" for name in FLAT),
        *("config.json", "processor_config.json", "model.safetensors", "metrics.json", "README.md"),
        *(".eval_results/demo.yaml", "pictures/epoch-000.png"),
    ]
)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub, and this process set up for it as HF_ENDPOINT, HF_TOKEN and HF_HUB_DISABLE_XET would."""
    with Hub() as hub:
        settings = {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
        settings["HF_HUB_CACHE"] = str(tmp_path / "cache")
        settings["HUGGINGFACE_CO_URL_TEMPLATE"] = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for name, value in {**settings, "HF_TOKEN_PATH": str(tmp_path / "no token")}.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the library's attempts
        yield hub


def process(hub: Hub, home: Path, *arguments: object, **changes: str | None) -> subprocess.CompletedProcess:
    """A process with an empty cache that knows no Hub but this."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", **changes}
    environment = {**environment, **settings}
    environment = {name: value for name, value in environment.items() if value is not None}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=home.parent, env=environment, capture_output=True, text=True)


def files_at(hub: Hub, name: str = "someone/jca", revision: str = "main") -> dict[str, File]:
    """Of a repository, without what the Hub made itself."""
    files = dict(hub.repositories[name].at(revision).files)
    del files[".gitattributes"]
    return files


# There and back -------------------------------------------------------------------------------------------------------

LOAD = """
import json, sys
source, revision, video = sys.argv[1:4]
known = not sys.flags.isolated
if known:
    import jca
else:
    class Absent:  # an editable install has a finder of its own
        def find_spec(self, name, path=None, target=None):
            if name in NAMES:
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Absent())
from transformers import AutoModel, AutoProcessor, pipeline
options = {"revision": revision, "trust_remote_code": not known}
model, processor = (kind.from_pretrained(source, **options) for kind in (AutoModel, AutoProcessor))
assert type(model).__module__.startswith("transformers_modules.") != known, type(model)
pipe = pipeline("audio-visual-emotion", model=source, **options)
print("FOUND" + json.dumps([model(**processor(videos=video, return_tensors="pt")).logits.tolist(), pipe(video)]))
""".replace("NAMES", repr(("jca", *FLAT)))


def test_a_published_model_is_the_same_model(hub, folder, silent_video, tmp_path):
    script = ROOT / "scripts/publish.py"
    run = process(hub, tmp_path / "sender", script, folder, "someone/jca", "--tag", "v1.0", PYTHONPATH=str(ROOT))
    assert run.returncode == 0, run.stderr[-3000:]
    commit = hub.repositories["someone/jca"].at("v1.0").oid
    assert run.stdout == f"published: {hub.url}/someone/jca/commit/{commit}\n"
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    logits = model(**processor(videos=silent_video, return_tensors="pt")).logits.tolist()
    rows = pipeline("audio-visual-emotion", model=model, processor=processor)(silent_video)

    def load(name: str, revision: str, *options: str, **changes: str) -> None:
        arguments = (*options, "-c", LOAD, "someone/jca", revision, silent_video)
        run = process(hub, tmp_path / name, *arguments, HF_TOKEN=None, **changes)
        assert run.returncode == 0, run.stderr[-3000:]
        found_logits, found_rows = json.loads(run.stdout.split("FOUND")[1])
        np.testing.assert_allclose(found_logits, logits, atol=1e-6)
        assert [row["frame"] for row in found_rows] == list(range(40))
        for name in ("valence", "arousal"):
            np.testing.assert_allclose([row[name] for row in found_rows], [row[name] for row in rows], atol=1e-6)

    load("with the package", "v1.0", PYTHONPATH=str(ROOT))
    load("without it", commit, "-I")  # without the working directory and PYTHONPATH on sys.path


def test_each_byte_is_sent_once_and_never_again(hub, folder):
    publication = publish(folder, "someone/jca")
    files = files_at(hub)
    assert sorted(files) == PUBLISHED
    assert all(file.content == (folder / name).read_bytes() for name, file in files.items())
    assert hub.received == {file.oid: len(file.content) for file in files.values()}
    assert {name for name, file in files.items() if file.lfs} == {"model.safetensors", "pictures/epoch-000.png"}
    repository = hub.repositories["someone/jca"]
    assert [commit.message for commit in repository.commits.values()] == ["initial commit", "Publish the model"]
    assert publication == (f"{hub.url}/someone/jca/commit/{publication.commit}", repository.at("main").oid, True)
    hub.received.clear()
    again = publish(folder, "jca")  # of whoever has the token
    assert again == publication._replace(changed=False)
    assert not hub.received
    assert len(repository.commits) == 2


def test_what_changed_is_sent_and_weights_of_before_go(hub, folder):
    publish(folder, "jca")
    hub.received.clear()
    model = tiny_model(seed=1)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    shards = [path.name for path in folder.glob("model-*.safetensors")]
    assert len(shards) > 1
    (folder / "metrics.json").write_text("{}")
    (folder / "pictures/epoch-000.png").rename(folder / "pictures/epoch-001.png")
    publish(folder, "jca", message="Another seed")
    files = files_at(hub)
    kept = [name for name in PUBLISHED if name not in ("model.safetensors", "pictures/epoch-000.png")]
    assert sorted(files) == sorted([*kept, *shards, "model.safetensors.index.json", "pictures/epoch-001.png"])
    changed = [*shards, "model.safetensors.index.json", "metrics.json"]
    assert hub.received == {files[name].oid: len(files[name].content) for name in changed}
    assert hub.repositories["someone/jca"].at("main").message == "Another seed"


def test_figures_and_code_of_the_model_before_go(hub, folder):
    (folder / "README.md").unlink()
    (folder / "older_jca.py").write_text("")
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    publish(folder, "jca")
    (folder / "metrics.json").unlink()
    (folder / "older_jca.py").unlink()
    publish(folder, "jca", revision="")
    assert sorted(files_at(hub)) == [name for name in PUBLISHED if name != "metrics.json"]


def test_push_to_hub_of_transformers(hub, model_folder, silent_video, tmp_path):
    code = """
import sys
from pathlib import Path
import jca
from transformers import AutoModel, AutoProcessor, pipeline
folder, video = sys.argv[1:]
for kind in (AutoModel, AutoProcessor):
    kind.from_pretrained(folder).push_to_hub("someone/pushed")
rows = [pipeline("audio-visual-emotion", model=model)(video) for model in (folder, "someone/pushed")]
assert rows[0] == rows[1] and len(rows[0]) == 40
"""
    run = process(hub, tmp_path / "home", "-c", code, model_folder, silent_video, PYTHONPATH=str(ROOT))
    assert run.returncode == 0, run.stderr[-3000:]
    files = files_at(hub, "someone/pushed")
    assert {name for name in files if name != "README.md"} == {path.name for path in Path(model_folder).iterdir()}
    assert files["model.safetensors"].content == (Path(model_folder) / "model.safetensors").read_bytes()


# What is published, and how -------------------------------------------------------------------------------------------


def script(capsys, monkeypatch, *arguments: object, name: str = "publish.py") -> tuple[int, str, str]:
    """Exit code, output and errors of a script, here."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    code, message = 0, ""
    try:
        runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
    except SystemExit as stop:  # its text is what the interpreter would print
        code, message = (stop.code, "") if isinstance(stop.code, int) else (1, f"{stop.code}\n")
    output = capsys.readouterr()
    return code, output.out, output.err + message


def test_a_dry_run_lists_what_would_be_sent(hub, folder, capsys, monkeypatch):
    code, output, errors = script(capsys, monkeypatch, folder, "jca", "--dry-run")
    assert (code, errors) == (0, "")
    assert not hub.requests
    rows = [line.split() for line in output.splitlines()]
    publish(folder, "jca")
    sizes = {name: (len(file.content), file.lfs) for name, file in files_at(hub).items()}  # as the Hub decided
    assert {row[1]: (int(row[0].replace(",", "")), row[2:] == ["LFS"]) for row in rows} == sizes
    assert sorted(sizes) == PUBLISHED


def test_large_files_are_large():
    for size, large in ((10_000_000, False), (10_000_001, True)):
        assert is_large(CommitOperationAdd("metrics.json", b" " * size)) == large


def test_a_card_is_of_these_figures_or_of_a_hand(hub, folder):
    (folder / "README.md").unlink()
    (folder / "metrics.json").unlink()
    publish(folder, "jca")
    card = files_at(hub)["README.md"].content
    assert card == (folder / "README.md").read_bytes()
    assert b"someone/jca" in card
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    publish(folder, "someone/jca")
    card = files_at(hub)["README.md"].content
    assert f"| valence | {METRICS['reported']['ccc_valence']:.3f} |".encode() in card
    better = {**METRICS, "reported": {**METRICS["reported"], "ccc_valence": 0.9}}
    (folder / "metrics.json").write_text(json.dumps(better))  # of another training, into the same folder
    publish(folder, "someone/jca")
    assert b"| valence | 0.900 |" in files_at(hub)["README.md"].content
    assert not publish(folder, "someone/jca").changed

    edited = card.decode().replace("# Valence and arousal", "# My model")
    (folder / "README.md").write_text(edited)
    with pytest.raises(PublishingError, match=r"edited by hand, .*: CCC valence 0\.\d{5,}, not 0\.900\. Write those"):
        publish(folder, "someone/jca")
    assert (folder / "README.md").read_text() == edited
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    publish(folder, "someone/jca")
    assert files_at(hub)["README.md"].content == edited.encode()


def test_what_is_no_card_or_no_metrics(hub, folder):
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(PublishingError, match=r"The metadata of .*README\.md can not be read.*: .*Correct it, or move"):
        publish(folder, "someone/jca")
    (folder / "README.md").unlink()
    (folder / "metrics.json").write_text("[]")
    with pytest.raises(PublishingError, match=r"No card could be written: .* Or write .*README.md yourself"):
        publish(folder, "someone/jca")
    (folder / "README.md").write_text("# By hand\n")
    (folder / "metrics.json").write_text("{")
    with pytest.raises(PublishingError, match=r"metrics\.json is no JSON .*: correct it, or take it away"):
        publish(folder, "someone/jca")
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "README.md").write_bytes("# Von Hand geprüft\n".encode("latin-1"))
    with pytest.raises(PublishingError, match=r"README\.md is no text in UTF-8 .*: save it as that"):
        publish(folder, "someone/jca")
    (folder / "README.md").write_text("---\ntags: 7\n---\n")
    with pytest.raises(PublishingError, match=r"The metadata of .*README\.md can not be read"):
        publish(folder, "someone/jca")
    (folder / "README.md").unlink()
    for change in ({"corpus": 5}, {"settings": 5}, {"seconds": "x"}, {"time": 5}, {"recipe": 5}):
        (folder / "metrics.json").write_text(json.dumps({**METRICS, **change}))
        with pytest.raises(
            PublishingError, match=r"metrics\.json lacks what training leaves in it, or has something else"
        ):
            publish(folder, "someone/jca")
    for name in ("README.md", "metrics.json"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()
        with pytest.raises(PublishingError, match=name.replace(".", r"\.")):
            publish(folder, "someone/jca")
        (folder / name).rmdir()
    (folder / "modeling_jca.py").write_bytes(b"# \xfc\n")
    with pytest.raises(PublishingError, match=r"modeling_jca\.py is no text in UTF-8"):
        publish(folder, "someone/jca")
    (folder / "a_config.json").symlink_to(folder / "a_config.json")
    if sys.version_info < (3, 13):  # where it is passed over
        with pytest.raises(PublishingError, match=r"a_config\.json can not be followed .*: take the link away"):
            publish(folder, "someone/jca")
    assert not hub.requests


def test_paths_of_the_machine_stay_there(hub, folder, capsys, monkeypatch):
    private = {
        **METRICS,
        "recipe": "/home/zoe/demo.yaml",
        "settings": {**METRICS["settings"], "root": "/home/zoe/prepared"},
    }
    (folder / "metrics.json").write_text(json.dumps(private))
    publish(folder, "jca")
    sent = files_at(hub)
    assert not [name for name, file in sent.items() if b"zoe" in file.content]
    assert json.loads(sent["metrics.json"].content) == {
        **METRICS,
        "recipe": "demo.yaml",
        "settings": {**METRICS["settings"], "root": "prepared"},
    }
    assert json.loads((folder / "metrics.json").read_text()) == private  # by which training goes on
    _, output, _ = script(capsys, monkeypatch, folder, "jca", "--dry-run")
    sizes = {row.split()[1]: int(row.split()[0].replace(",", "")) for row in output.splitlines()}
    assert sizes == {name: len(file.content) for name, file in sent.items()}


def test_scores_on_a_data_set_of_the_hub(hub, folder):
    record = {"kind": "synthetic", "settings": {}, "hub": "someone/jca-synthetic", "revision": "0123abcd"}
    metrics = {**METRICS, "corpus": {"train": record, "validation": record}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    publish(folder, "jca")
    (commit,) = list(hub.repositories["someone/jca"].commits.values())[1:]
    entries = parse_eval_result_entries(yaml.safe_load(commit.files[".eval_results/jca.yaml"].content))
    assert {(entry.dataset_id, entry.task_id, entry.value) for entry in entries} == {
        ("someone/jca-synthetic", name, METRICS["reported"][name]) for name in ("ccc", "ccc_valence", "ccc_arousal")
    }
    (folder / "metrics.json").write_text(json.dumps(METRICS))  # of a corpus that is not there
    publish(folder, "jca")
    assert sorted(files_at(hub)) == PUBLISHED
    (folder / ".eval_results/jca.yaml").write_text("[]\n")
    (folder / "metrics.json").write_text(json.dumps(metrics))
    publish(folder, "jca")
    assert files_at(hub)[".eval_results/jca.yaml"].content == b"[]\n"


@pytest.mark.parametrize("name", ["model.safetensors", "pictures", "pictures/other.png", "README.md"])
def test_links_out_of_the_folder_are_refused(hub, folder, tmp_path, name):
    path, outside = folder / name, tmp_path / "outside"
    if path.exists():
        path.rename(outside)
    else:
        outside.write_text("somebody's")
    path.symlink_to(outside, target_is_directory=outside.is_dir())
    with pytest.raises(PublishingError, match=r"leads out of the folder, to .*outside.*: put the file itself there"):
        publish(folder, "jca")
    assert not hub.requests
    path.unlink()
    outside.rename(folder / "inside")
    if (folder / "inside").is_file():
        path.symlink_to(folder / "inside")
        publish(folder, "jca")
        assert files_at(hub)[name].content == (folder / "inside").read_bytes()


@pytest.mark.parametrize(
    "name", ["modeling_jca.py", "pipeline_jca.py", "processing_jca.py", "encoders_jca.py", "sources_jca.py"]
)
def test_a_model_without_its_code_is_refused(hub, folder, name):
    (folder / name).unlink()
    with pytest.raises(PublishingError, match=rf"lacks {name}, without which nobody opens the model: save it again"):
        publish(folder, "jca")
    assert not hub.requests


ELSEWHERE = {
    "AutoConfig": "someone/code--configuration_jca.JCAConfig",
    "AutoModel": "someone/code--modeling_jca.JCAModel",
}


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("config.json", [], r"config\.json is not as `save_pretrained` writes it: save it again"),
        ("config.json", {"auto_map": None}, r"config\.json is not as `save_pretrained` writes it: save it again"),
        ("config.json", {"auto_map": {}}, r"config\.json is not as `save_pretrained` writes it: save it again"),
        ("config.json", {"auto_map": {"AutoConfig": "../a.B", "AutoModel": "a.B"}}, r"config\.json is not as"),
        ("config.json", {"custom_pipelines": {"audio-visual-emotion": {}}}, r"config\.json is not as"),
        (
            "config.json",
            {"auto_map": ELSEWHERE},
            "is in another repository, someone/code, of which no revision is pinned",
        ),
        ("processor_config.json", {"auto_map": {}}, r"processor_config\.json is not as"),
        ("processor_config.json", None, r"lacks processor_config\.json, without which nobody opens the model"),
        ("model.safetensors", None, r"lacks model\.safetensors, without which"),
    ],
)
def test_a_model_that_nobody_could_open_is_refused(hub, folder, name, change, sentence):
    save_file({}, folder / "adapter.safetensors")
    if change is None:
        (folder / name).unlink()
    else:
        whole = {**json.loads((folder / name).read_text()), **change} if change else []
        (folder / name).write_text(json.dumps(whole))
    with pytest.raises(PublishingError, match=sentence):
        publish(folder, "jca")
    assert not hub.requests


def test_weights_in_parts_are_all_there(hub, folder):
    tiny_model().save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(PublishingError, match=f"lacks {shard.name}, without which"):
        publish(folder, "jca")
    assert not hub.requests


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_without_a_model_is_refused(hub, folder, name):
    (folder / name).unlink()
    (folder / "README.md").unlink()
    with pytest.raises(PublishingError, match="holds no model"):
        publish(folder, "jca")
    assert not hub.requests
    assert not (folder / "README.md").exists()


def test_private_and_public(hub, folder):
    publish(folder, "hidden", private=True)
    assert hub.repositories["someone/hidden"].private
    publish(folder, "shown")
    assert not hub.repositories["someone/shown"].private
    (folder / "metrics.json").write_text("{}")
    hub.received.clear()
    with pytest.raises(PublishingError, match="someone/shown is there already and public"):
        publish(folder, "shown", private=True, revision="trial")
    assert not hub.received
    assert set(hub.repositories["someone/shown"].refs) == {"refs/heads/main"}
    publish(folder, "hidden")
    assert hub.repositories["someone/hidden"].private


def test_branch_and_tag(hub, folder):
    publication = publish(folder, "jca", revision="trial", tag="v1")
    repository = hub.repositories["someone/jca"]
    assert repository.refs["refs/heads/trial"] == repository.refs["refs/tags/v1"] == publication.commit
    assert not files_at(hub)
    assert publish(folder, "jca", revision="trial", tag="v1") == publication._replace(changed=False)
    (folder / "metrics.json").write_text("{}")
    with pytest.raises(PublishingError, match=f"without a tag, since v1 is the name of {publication.commit}"):
        publish(folder, "jca", revision="trial", tag="v1")
    assert repository.refs["refs/tags/v1"] == publication.commit
    publish(folder, "jca", revision="trial", tag="v2")
    for revision in ("v1", publication.commit):
        with pytest.raises(
            PublishingError, match=f"{revision} is a tag or a commit of someone/jca, and no branch: name one"
        ):
            publish(folder, "jca", revision=revision)
    assert repository.refs["refs/heads/trial"] == repository.refs["refs/tags/v2"] != publication.commit


def test_a_pull_request_and_more_to_it(hub, folder):
    publication = publish(folder, "jca", create_pr=True)
    assert publication.url == f"{hub.url}/someone/jca/discussions/1"
    assert not files_at(hub)
    assert sorted(files_at(hub, revision="refs/pr/1")) == PUBLISHED
    (folder / "metrics.json").write_text("{}")
    publish(folder, "jca", revision="refs/pr/1")
    assert files_at(hub, revision="refs/pr/1")["metrics.json"].content == b"{}"
    with pytest.raises(PublishingError, match="someone/jca has no such revision: name a branch that exists"):
        publish(folder, "someone/jca", revision="trial", create_pr=True)
    assert set(hub.repositories["someone/jca"].refs) == {"refs/heads/main", "refs/pr/1"}


# What goes wrong ------------------------------------------------------------------------------------------------------


def test_an_upload_that_is_cut_off_goes_on(hub, folder):
    hub.faults = [Fault("PUT", "drop"), Fault("PUT", 503)]
    assert publish(folder, "jca").changed
    assert sorted(files_at(hub)) == PUBLISHED
    assert sum(request.startswith("PUT") for request in hub.requests) == 4  # of two files


def test_a_run_that_is_cut_off_is_completed_by_the_next(hub, folder):
    hub.faults = [Fault("PUT", "drop")] * 12  # six attempts at each of two files
    with pytest.raises(PublishingError, match="The connection to .* broke .*run the same command again"):
        publish(folder, "jca")
    hub.faults = [Fault("POST .*/commit/", "drop")]
    with pytest.raises(PublishingError, match="The connection to .* broke .*run the same command again"):
        publish(folder, "jca")
    assert not files_at(hub)
    hub.received.clear()
    assert publish(folder, "jca").changed
    files = files_at(hub)
    assert sorted(files) == PUBLISHED
    assert hub.received == {file.oid: len(file.content) for file in files.values() if not file.lfs}


def test_a_commit_of_somebody_else_meanwhile_is_kept(hub, folder):
    publish(folder, "jca")
    repository = hub.repositories["someone/jca"]

    def other() -> None:
        before = repository.at("main")
        repository.commit("refs/heads/main", before.oid, "Theirs", {**before.files, "LICENSE": File(b"theirs", False)})

    (folder / "metrics.json").write_text("{}")
    hub.faults = [Fault("POST .*/commit/", other)]
    with pytest.raises(PublishingError, match="Somebody wrote to jca meanwhile, and nothing was published"):
        publish(folder, "jca")
    assert repository.at("main").message == "Theirs"
    publish(folder, "jca")
    files = files_at(hub)
    assert (files["LICENSE"].content, files["metrics.json"].content) == (b"theirs", b"{}")


@pytest.mark.parametrize(
    ("request_", "status", "sentence"),
    [
        (
            "POST .*/create",
            401,
            "does not know you .*: run `hf auth login`, or set HF_TOKEN to a token that may write.",
        ),
        ("POST .*/preupload/", 403, "Your token may not write to someone/jca .*: take one that may"),
        ("GET .*/models/", 404, "shows no someone/jca to your token"),
        ("POST .*/commit/", 409, "Somebody wrote to someone/jca meanwhile, and nothing was published"),
        ("POST .*/commit/", 413, "does not take so much at once .*max_shard_size"),
        ("PUT", 413, "does not take so much at once .*max_shard_size"),
        ("POST .*/commit/", 500, "answered 500 .*wait and run the same command again"),
    ],
)
def test_an_error_is_one_sentence(hub, folder, capsys, monkeypatch, request_, status, sentence):
    hub.faults = [Fault(request_, status)]
    code, output, errors = script(capsys, monkeypatch, folder, "someone/jca")
    assert (code, output) == (1, "")
    assert re.search(sentence, errors)
    assert errors.count("\n") == 1
    assert errors.endswith(".\n")
    assert TOKEN not in errors
    assert script(capsys, monkeypatch, folder, "someone/jca")[0] == 0
    assert sorted(files_at(hub)) == PUBLISHED


def test_a_namespace_of_others_is_refused(hub, folder):
    with pytest.raises(PublishingError, match="Your token may not write to others/jca .*take one that may"):
        publish(folder, "others/jca")


def test_a_name_that_is_none_is_refused(hub, folder):
    with pytest.raises(PublishingError, match="a//b was not published: .*a//b"):
        publish(folder, "a//b")
    assert not hub.requests


def test_a_password_in_the_address_is_not_shown(hub, folder, tmp_path):
    address = hub.url.replace("://", "://zoe:secret@")
    settings = {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": address}
    commands = (["publish.py", folder, "jca"], ["make_synthetic.py", tmp_path / "new", "--hub", "someone/corpus"])
    for reason in ("does not know you|shows no data set", "HF_ENDPOINT and run the same command"):
        for name, *arguments in commands:
            run = process(hub, tmp_path / "home", ROOT / "scripts" / name, *arguments, **settings)
            assert run.returncode == 1
            assert re.search(rf"{hub.url}\b.*({reason})", run.stderr), run.stderr[-3000:]
            assert "secret" not in run.stdout + run.stderr
        hub.shutdown()
        hub.server_close()


def test_a_token_that_is_wrong_is_not_shown(hub, folder, tmp_path):
    path = ROOT / "scripts/publish.py"
    run = process(hub, tmp_path / "home", path, folder, "jca", HF_TOKEN="hf_anotherSecret", PYTHONPATH=str(ROOT))
    assert (run.returncode, run.stdout) == (1, "")
    assert re.search(
        r"does not know you .*: run `hf auth login`, or set HF_TOKEN to a token that may write\.\n$", run.stderr
    )
    assert "Traceback" not in run.stderr
    assert "hf_anotherSecret" not in run.stderr


def test_what_is_no_token(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_schlüssel")
    with pytest.raises(
        PublishingError, match=r"HF_TOKEN, .*, is no token: it holds letters that none has\.$"
    ) as caught:
        publish(folder, "jca")
    assert "schl" not in str(caught.value)


def test_without_a_token(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PublishingError, match="does not know you .*: run `hf auth login`, or set HF_TOKEN"):
        publish(folder, "jca")
    assert not hub.repositories


def test_a_place_without_xet_says_what_to_do(hub, folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    with pytest.raises(PublishingError, match=r"takes no uploads by Xet .*: set HF_HUB_DISABLE_XET=1 and run"):
        publish(folder, "jca")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    assert publish(folder, "jca").changed


def test_a_place_that_is_no_hub(hub, folder):
    hub.faults = [Fault("POST .*/create", 200)]
    with pytest.raises(PublishingError, match="does not answer as a Hub does .*: see to HF_ENDPOINT"):
        publish(folder, "jca")
    hub.shutdown()
    hub.server_close()
    with pytest.raises(
        PublishingError, match="The connection to .* broke .*see to the network and to HF_ENDPOINT and run"
    ):
        publish(folder, "jca")


def test_offline(hub, folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PublishingError, match="HF_HUB_OFFLINE is set"):
        publish(folder, "jca")


# The synthetic corpus -------------------------------------------------------------------------------------------------

SETTINGS = {"num_train": 2, "num_validation": 1, "seconds": 1.0, "seed": 3}
DATASET = "datasets/someone/jca-synthetic"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("drawn") / "corpus", **SETTINGS, num_proc=1)


@pytest.fixture
def corpus(drawn, tmp_path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "drawn"))


def contents(root: Path) -> dict[str, bytes]:
    """Of all files, without the record of where they were fetched."""
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if name != "hub.json"}


def downloads(hub: Hub) -> int:
    return sum(bool(re.match(r"GET (/lfs/|.*/resolve/)", request)) for request in hub.requests)


def test_a_demo_begins_with_a_corpus_of_the_hub(hub, corpus, tmp_path, capsys, monkeypatch):
    """By the command lines, in processes with empty caches."""

    def call(name: str, *arguments: object, **changes: str | None) -> str:
        run = process(hub, tmp_path / "home", ROOT / "scripts" / name, *arguments, PYTHONPATH=str(ROOT), **changes)
        assert run.returncode == 0, run.stderr[-3000:]
        return run.stdout

    (corpus / "cropped_aligned/synthetic-0002.part").mkdir()  # nothing else of the folder goes along
    (corpus / "notes.txt").write_text("not for others")
    _, listed, _ = script(capsys, monkeypatch, corpus, "jca-synthetic", "--dry-run")
    assert not hub.requests
    assert call("publish.py", corpus, "jca-synthetic").startswith(f"published: {hub.url}/{DATASET}/commit/")
    files = files_at(hub, DATASET)
    names = [f"synthetic-000{index}" for index in range(3)]
    assert sorted(files) == sorted(
        [
            *("README.md", "synthetic.json"),
            *(f"batch1/{name}.mp4" for name in names),
            *(f"cropped_aligned/{name}.tar" for name in names),
            *(f"VA_Estimation_Challenge/Train_Set/{name}.txt" for name in names[:2]),
            "VA_Estimation_Challenge/Validation_Set/synthetic-0002.txt",
        ]
    )
    assert sorted(line.split()[1] for line in listed.splitlines()) == sorted(files)
    card = files["README.md"].content.decode()
    assert "make demo HUB=someone/jca-synthetic\n" in card
    assert "**Synthetic: no person appears in it.**" in card
    hub.received.clear()
    assert not publish(corpus, "jca-synthetic").changed  # archives are made the same again
    assert not hub.received

    shutil.rmtree(corpus / "cropped_aligned/synthetic-0002.part")
    (corpus / "notes.txt").unlink()
    fetched, prepared = tmp_path / "runs/demo/corpus", tmp_path / "runs/demo/prepared"
    arguments = (fetched, "--hub", "someone/jca-synthetic")
    assert call("make_synthetic.py", *arguments, HF_TOKEN=None) == f"{fetched}: a synthetic corpus of 2 + 1 videos\n"
    assert contents(fetched) == contents(corpus)
    commit = hub.repositories[DATASET].at("main").oid
    assert "| validation | 1 | 30 |" in call("prepare_affwild2.py", fetched, prepared, "--num_proc", 1)
    record = json.loads((prepared / "prepared.json").read_text())["corpus"]["train"]
    assert record["kind"] == "synthetic"
    assert record["settings"] == json.loads((corpus / "synthetic.json").read_text())
    assert (record["hub"], record["revision"]) == ("someone/jca-synthetic", commit)
    hub.requests.clear()
    fetch_synthetic("someone/jca-synthetic", fetched)
    assert not hub.requests  # what is there is not asked for
    make_synthetic(fetched, **SETTINGS)  # nor made again
    assert contents(fetched) == contents(corpus)


def test_the_example_of_its_card_runs(hub, corpus, tmp_path):
    publish(corpus, "jca-synthetic")
    (code,) = re.findall(r"```python\n(.*?)```", files_at(hub, DATASET)["README.md"].content.decode(), re.DOTALL)
    code += "\nprint(rows[0]['video_id'], len(rows[0]['valence']))"
    run = process(hub, tmp_path / "home", "-c", code, PYTHONPATH=str(ROOT))
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.splitlines()[-1] == "synthetic-0000 30"
    assert contents(tmp_path / "runs/demo/corpus") == contents(corpus)


def test_a_download_that_is_cut_off_goes_on(hub, corpus, tmp_path):
    publish(corpus, "jca-synthetic")
    archive = files_at(hub, DATASET)["cropped_aligned/synthetic-0001.tar"].oid
    hub.faults = [Fault(f"GET /lfs/{archive}", "drop")] * 20
    with pytest.raises(
        FetchingError, match=r"could not be fetched from .*: see to the network and to HF_ENDPOINT and run the same"
    ):
        fetch_synthetic("someone/jca-synthetic", tmp_path / "fetched")
    there = len([*(tmp_path / "fetched/.hub").rglob("*.mp4"), *(tmp_path / "fetched/.hub").rglob("*.tar")])
    hub.faults.clear()
    hub.requests.clear()
    fetch_synthetic("someone/jca-synthetic", tmp_path / "fetched")
    assert contents(tmp_path / "fetched") == contents(corpus)
    large = [request for request in hub.requests if request.startswith("GET /lfs/")]
    assert 1 <= len(large) <= 6 - there


def test_what_is_missing_is_fetched_and_nothing_else(hub, corpus, tmp_path):
    publish(corpus, "jca-synthetic")
    here = Path(shutil.copytree(corpus, tmp_path / "here"))  # drawn here, and stopped
    (here / "VA_Estimation_Challenge/Train_Set/synthetic-0001.txt").unlink()
    (here / "batch1/synthetic-0001.mp4").write_bytes(b"half a file")
    (here / "cropped_aligned/synthetic-0001/99999.jpg").write_bytes(b"left over")
    before = (here / "batch1/synthetic-0000.mp4").stat().st_mtime_ns
    fetch_synthetic("someone/jca-synthetic", here)
    assert contents(here) == contents(corpus)
    assert (here / "batch1/synthetic-0000.mp4").stat().st_mtime_ns == before
    assert downloads(hub) <= 2 * 4  # its three files and the settings, some by a detour


def test_a_smaller_corpus_replaces_a_larger_one(hub, corpus, tmp_path):
    publish(corpus, "jca-synthetic")
    smaller = make_synthetic(tmp_path / "smaller", **{**SETTINGS, "num_train": 1}, num_proc=1)
    publish(smaller, "jca-synthetic", tag="v2")
    assert not [name for name in files_at(hub, DATASET) if "synthetic-0002" in name]
    with pytest.raises(ValueError, match=r"made with num_train=2, but num_train=1 was asked for"):
        fetch_synthetic("someone/jca-synthetic", corpus)
    assert contents(fetch_synthetic("someone/jca-synthetic", tmp_path / "fetched")) == contents(smaller)


def test_other_files_are_left_alone(hub, corpus, tmp_path):
    publish(corpus, "jca-synthetic")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").touch()
    with pytest.raises(ValueError, match="other files"):
        fetch_synthetic("someone/jca-synthetic", tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


def archive_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "content",
    [
        archive_of((member("../../../evil.jpg"), b"evil")),
        archive_of((member("/tmp/00001.jpg"), b"evil")),
        archive_of((member("00001.jpg", tarfile.SYMTYPE, "../../../evil.jpg"), b""), (member("00001.jpg"), b"evil")),
        archive_of((member("00001.jpg", tarfile.LNKTYPE, "../../../evil.jpg"), b"")),
        archive_of((member("00001.jpg", tarfile.CHRTYPE), b"")),
        archive_of((member("00001.py"), b"evil")),
        b"no archive" * 100,
        None,
    ],
)
def test_an_archive_of_others_stays_in_its_folder(hub, corpus, tmp_path, content):
    publish(corpus, "jca-synthetic")
    repository = hub.repositories[DATASET]
    files = dict(repository.at("main").files)
    name = "cropped_aligned/synthetic-0000.tar"
    if content is None:
        del files[name]
    else:
        files[name] = File(content, True)
        hub.objects[hashlib.sha256(content).hexdigest()] = content
    repository.commit("refs/heads/main", repository.at("main").oid, "Theirs", files)
    with pytest.raises(FetchingError, match=r"is not complete, or damaged, at synthetic-0000 .*publish\.py again"):
        fetch_synthetic("someone/jca-synthetic", tmp_path / "deep/fetched")
    assert not list(tmp_path.rglob("evil*"))
    assert not (tmp_path / "deep/fetched/VA_Estimation_Challenge/Train_Set/synthetic-0000.txt").exists()
    publish(corpus, "jca-synthetic")
    fetch_synthetic("someone/jca-synthetic", tmp_path / "deep/fetched")
    assert contents(tmp_path / "deep/fetched") == contents(corpus)


@pytest.mark.parametrize(
    "settings",
    [
        None,
        b"[]",
        b"{",
        b'{"num_train": 2}',
        b'{"num_train": 1000000000, "num_validation": 1, "seconds": 1.0, "fps": 30, "seed": 3, "design": 1}',
        b'{"num_train": "../x", "num_validation": 1, "seconds": 1.0, "fps": 30, "seed": 3, "design": 1}',
        b'{"num_train": 2, "num_validation": 1, "seconds": "1; rm", "fps": 30, "seed": 3, "design": 1}',
    ],
)
def test_what_is_no_synthetic_corpus_is_refused(hub, corpus, tmp_path, settings):
    publish(corpus, "jca-synthetic")
    repository = hub.repositories[DATASET]
    files = {**repository.at("main").files, "synthetic.json": File(settings, False)}
    if settings is None:
        del files["synthetic.json"]
    repository.commit("refs/heads/main", repository.at("main").oid, "Theirs", files)
    with pytest.raises(
        FetchingError, match=r"is no synthetic corpus: .*synthetic\.json .*Name a data set that scripts"
    ):
        fetch_synthetic("someone/jca-synthetic", tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_a_corpus_that_can_not_be_reached(hub, corpus, tmp_path, monkeypatch):
    publish(corpus, "jca-synthetic", private=True)
    with pytest.raises(FetchingError, match="shows no data set someone/other: see to its name"):
        fetch_synthetic("someone/other", tmp_path / "fetched")
    with pytest.raises(ValueError, match="a//b"):
        fetch_synthetic("a//b", tmp_path / "fetched")
    with monkeypatch.context() as patch:
        patch.delenv("HF_TOKEN")
        with pytest.raises(FetchingError, match="if it is private, run `hf auth login` or set HF_TOKEN"):
            fetch_synthetic("someone/jca-synthetic", tmp_path / "fetched")
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(FetchingError, match="HF_HUB_OFFLINE is set"):
            fetch_synthetic("someone/jca-synthetic", tmp_path / "fetched")
    hub.faults = [Fault("GET", 500)] * 20
    with pytest.raises(FetchingError, match="could not be fetched from"):
        fetch_synthetic("someone/jca-synthetic", tmp_path / "fetched")
    hub.faults.clear()
    assert not (tmp_path / "fetched").exists()
    fetch_synthetic("someone/jca-synthetic", tmp_path / "fetched")
    assert len(load_affwild2(tmp_path / "fetched", "train")) == 2


def test_settings_beside_a_corpus_of_the_hub_are_refused(hub, tmp_path, capsys, monkeypatch):
    arguments = (tmp_path / "corpus", "--hub", "someone/jca-synthetic", "--seed", 4)
    code, _, errors = script(capsys, monkeypatch, *arguments, name="make_synthetic.py")
    assert code == 2
    assert "someone/jca-synthetic has its own settings: leave out --seed" in errors
    code, _, errors = script(capsys, monkeypatch, *arguments[:3], name="make_synthetic.py")
    assert code == 1
    assert re.search(r"shows no data set someone/jca-synthetic: .*\.\n$", errors)
    assert not (tmp_path / "corpus").exists()


def test_a_corpus_that_is_not_whole_is_not_published(hub, corpus):
    annotation = corpus / "VA_Estimation_Challenge/Train_Set/synthetic-0001.txt"
    annotation.rename(corpus / "elsewhere.txt")
    with pytest.raises(
        PublishingError, match=r"is not complete, synthetic-0001 is missing: .*make_synthetic\.py goes on"
    ):
        publish(corpus, "jca-synthetic")
    annotation.symlink_to(ROOT / "README.md")
    with pytest.raises(PublishingError, match="leads out of the folder"):
        publish(corpus, "jca-synthetic")
    annotation.unlink()
    (corpus / "elsewhere.txt").rename(annotation)
    (corpus / "synthetic.json").write_text("{}")
    with pytest.raises(PublishingError, match=r"synthetic\.json is not what scripts/make_synthetic\.py writes"):
        publish(corpus, "jca-synthetic")
    assert not hub.requests
