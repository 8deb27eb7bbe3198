"""What a release rests on: one version, archives that install, documented names, workflows that run, and the promises of
SECURITY.md."""

import ast
import importlib
import inspect
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from conftest import tiny_model, tiny_processor
from faces import PEOPLE, draw_face
from hub import File, Hub, Repository
from media import write_video
from transformers import pipeline

import jca
from jca.cards import write_card
from jca.timeline import Timeline


ROOT = Path(__file__).parents[1]
FLAT = sorted(path.stem for path in ROOT.glob("*_jca.py"))
MODULES = [*FLAT, "jca", *sorted(f"jca.{module.name}" for module in pkgutil.iter_modules(jca.__path__))]
PLACES = ("*_jca.py", "jca/**/*.py", "scripts/*.py", "app/*.py", "metrics/**/*.py", "examples/*.py", "benchmarks/*.py")
CODE = sorted(path for pattern in PLACES for path in ROOT.glob(pattern))
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/*.md", "app/*.md", "model_cards/*.md") for path in ROOT.glob(pattern)
)
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def tracked() -> list[str]:
    """The files of the repository, as a commit of everything would hold them."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted({name for name in names if (ROOT / name).exists()})


def setup_arguments() -> dict[str, Any]:
    """What setup.py says in literals."""
    (call,) = (
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "setup"
    )
    arguments = {}
    for keyword in call.keywords:
        try:
            arguments[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError:  # computed
            continue
    return arguments


SETUP = setup_arguments()


# The version ----------------------------------------------------------------------------------------------------------


def test_the_version_stands_in_one_place():
    said = re.compile(rf"""version(__)?["']?\s*[=:]\s*["']?{re.escape(jca.__version__)}(?![\d.])""", re.IGNORECASE)
    texts = (
        name for name in tracked() if name.endswith((".py", ".toml", ".cff", ".cfg", ".yml", ".yaml", ".json", ".in"))
    )
    holders = [name for name in texts if said.search((ROOT / name).read_text(encoding="utf-8"))]
    assert holders == ["jca/__init__.py"]


def test_the_changelog_begins_with_the_version():
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heading[1] == jca.__version__


# The archives ---------------------------------------------------------------------------------------------------------


class Archives(NamedTuple):
    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> Archives:
    """As `python -m build` makes them of a clean checkout: the wheel from the sdist."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return Archives(sdist, wheel)


@pytest.mark.slow
def test_the_sdist_is_the_repository(archives):
    with tarfile.open(archives.sdist) as archive:
        files = [member.name for member in archive.getmembers() if member.isfile()]
    top = f"jca-{jca.__version__}/"
    assert all(name.startswith(top) for name in files)
    made = {"PKG-INFO", "setup.cfg"}
    names = {name.removeprefix(top) for name in files} - made
    names = {name for name in names if not name.startswith("jca.egg-info/")}
    assert names == {name for name in tracked() if not name.startswith(".")}


@pytest.mark.slow
def test_the_wheel_is_of_this_version_and_any_platform(archives):
    assert archives.wheel.name == f"jca-{jca.__version__}-py3-none-any.whl"
    names = {name for name in zipfile.ZipFile(archives.wheel).namelist() if ".dist-info/" not in name}
    code = {f"{name}.py" for name in FLAT} | {path.relative_to(ROOT).as_posix() for path in (ROOT / "jca").glob("*.py")}
    assert code | {"jca/py.typed"} <= names
    assert not [name for name in names - code if name.endswith(".py")]


@pytest.mark.slow
def test_an_index_takes_the_archives(archives):
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, archives)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("PASSED") == 2


INSTALLED = """
import json, sys, sysconfig
import configuration_jca, jca
for module in (jca, configuration_jca):
    assert module.__file__.startswith(sysconfig.get_path("purelib")), module.__file__
from importlib.metadata import version
from transformers import pipeline
rows = pipeline("audio-visual-emotion", model=sys.argv[1])(sys.argv[2])
print("FOUND" + json.dumps([version("jca"), rows]))
"""


@pytest.mark.slow
def test_the_wheel_works_where_nothing_else_of_the_project_is(archives, model_folder, silent_video, tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(archives.wheel)], check=True)
    where = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip())
    # what jca needs, without what an editable install of it has put there: paths in a .pth file have no .pth files read
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "requirements.pth").write_text("\n".join(paths) + "\n")
    command = [str(python), "-I", "-c", INSTALLED, model_folder, silent_video]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    version, rows = json.loads(run.stdout.split("FOUND")[1])
    assert version == jca.__version__
    expected = pipeline("audio-visual-emotion", model=model_folder)(silent_video)
    assert [row["frame"] for row in rows] == [row["frame"] for row in expected]
    assert [row["valence"] for row in rows] == pytest.approx([row["valence"] for row in expected], abs=1e-5)


# From nothing to a timeline -------------------------------------------------------------------------------------------


@pytest.fixture
def empty_environment(tmp_path) -> Iterator[Path]:
    """A virtual environment with nothing in it, 2 GB of which are not left behind."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    yield venv
    shutil.rmtree(venv)


def published(hub: Hub, name: str, folder: Path) -> None:
    """A folder as a repository of the Hub."""
    hub.repositories[name] = repository = Repository(private=False)
    files = {path.name: File(path.read_bytes(), lfs=False) for path in folder.iterdir()}
    repository.commit("refs/heads/main", None, "model", files)


@pytest.mark.slow
def test_from_nothing_to_a_timeline_by_the_commands_of_the_readme(archives, empty_environment, tmp_path):
    section = re.search(r"^## Your own video, from nothing$(.+?)^## ", README, re.MULTILINE | re.DOTALL)[1]
    (block,) = re.findall(r"^```\n(.+?)^```$", section, re.MULTILINE | re.DOTALL)
    commands = block.splitlines()
    assert {2: "two commands"}[len(commands)] in section
    (repository,) = re.findall(r"--model (\w+/\w+)", block)

    def picture(index: int) -> np.ndarray:
        picture = np.full((360, 640, 3), 90, np.uint8)
        draw_face(picture, PEOPLE[0], (320, 180), 200, smile=np.sin(index / 10))
        return picture

    (home := tmp_path / "home").mkdir()
    sound = np.random.default_rng(0).normal(0, 0.1, 3 * 44100)
    video = write_video(home / "interview.mp4", 90, size=(640, 360), picture=picture, waveform=sound)
    model = tmp_path / "model"
    tiny_model().save_pretrained(model)
    tiny_processor(faces="detect").save_pretrained(model)
    # of the index's packages those of requirements.lock, and this one as if it were there
    constraints = tmp_path / "constraints.txt"
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    constraints.write_text(f"{lock}jca @ {archives.wheel.as_uri()}\n", encoding="utf-8")
    with Hub() as hub:
        published(hub, repository, model)
        given = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
        paths = [str(empty_environment / ("Scripts" if os.name == "nt" else "bin")), given["PATH"]]
        settings = {"PATH": os.pathsep.join(paths), "PIP_CONSTRAINT": str(constraints)}
        settings |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "huggingface")}
        for command in commands:
            start = time.perf_counter()
            run = subprocess.run(
                command, shell=True, cwd=home, env={**given, **settings}, capture_output=True, text=True
            )
            assert run.returncode == 0, run.stdout[-1000:] + run.stderr[-3000:]
            print(f"{time.perf_counter() - start:6.1f} s  {command}")  # noqa: T201  (the README gives its minutes)
    (made,) = re.findall(r"`(timelines/[\w.]+)`", section)
    timeline = Timeline.read_csv(home / made)
    assert timeline.frame.tolist() == list(range(90))
    assert timeline.face_detected.all()  # by the detector, which came with the package
    rows = pipeline("audio-visual-emotion", model=str(model))(video)
    for name in ("valence", "arousal"):
        np.testing.assert_allclose(getattr(timeline, name), [row[name] for row in rows], atol=1e-4)


# Docstrings -----------------------------------------------------------------------------------------------------------


def public_objects(name: str) -> Iterator[tuple[str, Any, bool]]:
    """The public classes, functions, methods and properties that a module defines: name, object, whether it is a class."""
    module = importlib.import_module(name)
    for key, value in vars(module).items():
        if key.startswith("_") or getattr(value, "__module__", None) != name:
            continue
        if inspect.isfunction(value):
            yield key, value, False
        elif inspect.isclass(value):
            yield key, value, True
            own = (m for m in vars(value).items() if not m[0].startswith("_"))
            for member, raw in own:
                function = raw.fget if isinstance(raw, property) else getattr(raw, "__func__", raw)
                if inspect.isfunction(function) and function.__module__ == name:
                    yield f"{key}.{member}", getattr(value, member), False


def document(value: Any, is_class: bool) -> str:
    """A docstring as `help` shows it: a method that overrides another's has its, a class none that was generated."""
    if not is_class:
        return inspect.getdoc(value) or ""
    own = vars(value).get("__doc__") or ""
    return "" if own.startswith((f"{value.__name__}(", f"{value.__name__}[")) else own


def test_all_public_names_are_there():
    for name in jca.__all__:
        assert document(getattr(jca, name), inspect.isclass(getattr(jca, name))), name


@pytest.mark.parametrize("name", MODULES)
def test_public_names_have_docstrings(name):
    assert importlib.import_module(name).__doc__
    assert [key for key, value, is_class in public_objects(name) if not document(value, is_class)] == []


SHAPE = re.compile(r"`+\([^`]*\)`+|\bshape|\d[ x×]\d|\b(one|1|2)-dimensional")


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_that_speak_of_tensors_and_arrays_give_shapes(name):
    texts = ((key, value.__doc__ or "") for key, value, _ in public_objects(name))
    speaking = {key: text for key, text in texts if re.search(r"\b(tensor|array|ndarray)s?\b", text, re.IGNORECASE)}
    assert [key for key, text in speaking.items() if not SHAPE.search(text)] == []


# Security -------------------------------------------------------------------------------------------------------------

UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
RUNNERS = {"eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
OPTIONS = {("shell", True), ("allow_pickle", True), ("weights_only", False), ("trust_remote_code", True)}


def test_nothing_is_unpickled_but_by_the_converter():
    loads, imported = [], []
    for path in CODE:
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported += [(name, alias.name) for alias in node.names if alias.name.split(".")[0] in UNPICKLERS]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                root = node.module.split(".")[0]
                names = {alias.name for alias in node.names}
                imported += [(name, node.module)] if root in UNPICKLERS or (root == "torch" and "load" in names) else []
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                loads.append((name, {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}))
    assert imported == []
    assert [name for name, _ in loads] == ["jca/conversion.py"]
    assert loads[0][1]["weights_only"] == "True"


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_code_is_run_that_came_as_data(path):
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            given = {(k.arg, k.value.value) for k in node.keywords if isinstance(k.value, ast.Constant)}
            if ast.unparse(node.func) in RUNNERS or given & OPTIONS:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
    assert found == []


def test_examples_run_remote_code_of_a_revision_or_of_a_folder(tmp_path):
    example = re.compile(r"(?:pipeline|from_pretrained)\(([^()]*?trust_remote_code=True[^()]*)\)")
    local = re.compile(r"""(?:^|model=)\s*["'](?:\.|\./[^"']*|runs/[^"']*)["']""")
    pinned = re.compile(r"revision=")
    tiny_model().save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    for path in [*DOCUMENTS, write_card(tmp_path, "someone/jca")]:
        for arguments in example.findall(path.read_text(encoding="utf-8")):
            assert local.search(arguments) or pinned.search(arguments), f"{path.name}: {arguments}"


def test_security_speaks_of_limits_that_exist():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "`jca.Limits`" in text
    assert "redirect_hosts" in jca.Limits._fields
    assert {name for target in re.findall(r"`make ([a-z ]+)`", text) for name in target.split()} <= TARGETS
    for name in re.findall(r"`((?:scripts|app)/[\w.]*)`", text):
        assert (ROOT / name).exists(), name


# Workflows ------------------------------------------------------------------------------------------------------------


def steps(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_have_the_least_rights_and_no_secrets(path):
    text = path.read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in text
    assert "secrets." not in text
    assert not re.search(r"\$\{\{\s*(github\.event|github\.head_ref)", text)  # text of strangers in a shell
    assert set(re.findall(r"https?://([^/\s]+)", text)) <= {"download.pytorch.org"}
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 120
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step["uses"]), step
            assert re.search(rf"{step['uses']}  # v\d+\.\d+\.\d+$", text, re.MULTILINE), step
            if step["uses"].startswith("actions/checkout@"):
                assert step["with"] == {"persist-credentials": False}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_what_there_is(path):
    for step in steps(yaml.safe_load(path.read_text())):
        if "run" in step:
            if step["run"].startswith("make "):
                assert set(step["run"].split()[1:]) <= TARGETS, step["run"]
            else:
                assert step["run"].startswith(".venv/bin/python -m pip install "), step["run"]
                for extras in re.findall(r"\.\[([\w,]+)\]", step["run"]):
                    assert set(extras.split(",")) <= set(SETUP["extras_require"])


def test_what_is_promised_is_tested():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    pythons = jobs["test"]["strategy"]["matrix"]["python"]
    assert SETUP["python_requires"] == f">={pythons[0]}"
    assert f"Python {pythons[0]} to {pythons[-1]}" in README
    assert pythons == [f"3.{minor}" for minor in range(int(pythons[0][2:]), int(pythons[-1][2:]) + 1)]
    (bound,) = (need.split(">=")[1] for need in SETUP["install_requires"] if need.startswith("transformers>="))
    (oldest,) = re.findall(r"transformers==(\S+)", " ".join(commands["oldest-transformers"]))
    assert oldest == f"{bound}.0"
    targets = {target for lines in commands.values() for line in lines for target in line.split()[1:]}
    assert {"lint", "test", "browser", "page", "docs", "release", "audit"} <= targets


def test_forms_can_be_read():
    for path in ROOT.glob(".github/ISSUE_TEMPLATE/*.yml"):
        form = yaml.safe_load(path.read_text())
        fields = [field["id"] for field in form.get("body", []) if field["type"] != "markdown"]
        assert len(fields) == len(set(fields))
        assert path.stem == "config" or {"name", "description", "body"} <= set(form)
    assert yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["version"] == 2


# Container and citation -----------------------------------------------------------------------------------------------


def test_the_container_is_made_of_what_there_is():
    text = (ROOT / "Containerfile").read_text()
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        for pattern in line.split()[:-1]:
            assert list(ROOT.glob(pattern)), pattern
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", text)
    assert set(extras.split(",")) <= set(SETUP["extras_require"])
    for name in re.findall(r"(?:scripts|recipes)/[\w/]+\.\w+", text):
        assert (ROOT / name).exists(), name
    assert json.loads(re.search(r"^ENTRYPOINT (.+)$", text, re.MULTILINE)[1]) == ["accelerate", "launch"]
    python = re.search(r"^FROM docker\.io/library/python:(3\.\d+)-\w+$", text, re.MULTILINE)[1]
    assert python in yaml.safe_load(WORKFLOWS[0].read_text())["jobs"]["test"]["strategy"]["matrix"]["python"]
    # a constraint may name no extras
    assert "[" not in "".join(
        line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")
    )


def test_the_citation_is_that_of_the_readme():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "type"} <= set(citation)
    assert citation["license"] == SETUP["license_expression"]
    (paper,) = citation["references"]
    assert f"{{{paper['title']}}}" in README
    assert f"{{{paper['year']}}}" in README
    assert paper["url"] in README
    assert paper["doi"].removeprefix("10.48550/arXiv.") == paper["url"].rsplit("/", 1)[1]
    (authors,) = re.findall(r"author\s*=\s*\{(.+?)\},\n", README, re.DOTALL)
    written = [name.split(",")[0].strip() for name in re.split(r"\s+and\s+", authors)]
    cited = [" ".join(filter(None, (a.get("name-particle"), a["family-names"]))) for a in paper["authors"]]
    assert cited == written
