"""A model goes to a Hub and comes back, over real sockets; what goes wrong on the way is said in a sentence."""

import json
import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from conftest import tiny_model, tiny_processor
from hub import TOKEN, Fault, File, Hub
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor, pipeline

from jca.publishing import PublishingError, find_files, is_large, publish


ROOT = Path(__file__).parents[1]
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
    publish(folder, "jca", message="Another seed")
    files = files_at(hub)
    assert sorted(files) == sorted(
        [name for name in PUBLISHED if name != "model.safetensors"] + shards + ["model.safetensors.index.json"]
    )
    changed = [*shards, "model.safetensors.index.json", "metrics.json"]
    assert hub.received == {files[name].oid: len(files[name].content) for name in changed}
    assert hub.repositories["someone/jca"].at("main").message == "Another seed"


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


def script(capsys, monkeypatch, *arguments: object) -> tuple[int, str, str]:
    """Exit code, output and errors of scripts/publish.py, here."""
    monkeypatch.setattr(sys, "argv", ["publish.py", *map(str, arguments)])
    code, message = 0, ""
    try:
        runpy.run_path(str(ROOT / "scripts/publish.py"), run_name="__main__")
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


def test_large_files_are_large(tmp_path):
    for size, large in ((10_000_000, False), (10_000_001, True)):
        (tmp_path / "metrics.json").write_bytes(b" " * size)
        assert is_large(tmp_path / "metrics.json") == large


def test_a_card_is_written_once(hub, folder):
    (folder / "README.md").unlink()
    (folder / "metrics.json").unlink()
    publish(folder, "someone/jca")
    card = files_at(hub)["README.md"].content
    assert card == (folder / "README.md").read_bytes()
    assert b"someone/jca" in card
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# By hand\n")
    publish(folder, "someone/jca")
    assert files_at(hub)["README.md"].content.endswith(b"# By hand\n")
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(PublishingError, match="was not published: Invalid metadata in README.md"):
        publish(folder, "someone/jca")
    (folder / "README.md").unlink()
    (folder / "metrics.json").write_text("[]")
    with pytest.raises(PublishingError, match=r"No card could be written: .* Or write .*README.md yourself"):
        publish(folder, "someone/jca")


def test_exported_graphs_are_published(folder):
    (folder / "video_encoder.onnx").write_bytes(PICTURE)
    save_file({}, folder / "check.safetensors")
    names = {path.name for path in find_files(folder)}
    assert {"video_encoder.onnx", "check.safetensors"} < names


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


def test_a_token_that_is_wrong_is_not_shown(hub, folder, tmp_path):
    path = ROOT / "scripts/publish.py"
    run = process(hub, tmp_path / "home", path, folder, "jca", HF_TOKEN="hf_anotherSecret", PYTHONPATH=str(ROOT))
    assert (run.returncode, run.stdout) == (1, "")
    assert re.search(
        r"does not know you .*: run `hf auth login`, or set HF_TOKEN to a token that may write\.\n$", run.stderr
    )
    assert "Traceback" not in run.stderr
    assert "hf_anotherSecret" not in run.stderr


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
    with pytest.raises(PublishingError, match="The connection to .* broke"):
        publish(folder, "jca")


def test_offline(hub, folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PublishingError, match="HF_HUB_OFFLINE is set"):
        publish(folder, "jca")
