"""The site, whose code runs, whose reference is complete and whose links lead somewhere; and the README's code."""

import argparse
import ast
import builtins
import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from conftest import tiny_model, tiny_processor
from golden_cases import state_dict
from media import clapping_video
from nbclient import NotebookClient
from processes import run
from release import write_release
from test_transformers_encoders import encoder_config
from transformers import AutoModel, VideoMAEImageProcessor, Wav2Vec2FeatureExtractor

import jca
from jca.recipes import load_recipe


ROOT = Path(__file__).parents[1]
PAGES = {page.relative_to(ROOT).as_posix(): page for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]}
NOT_RUN = "Not run by the tests: "  # begins the title of a block, which the site shows above it
BLOCK = re.compile(r'^```(\w*)(?: title="([^"\n]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
MODULES = [
    *sorted(path.stem for path in ROOT.glob("*_jca.py")),
    *sorted(f"jca.{path.stem}" for path in (ROOT / "jca").glob("[!_]*.py")),
]


class Block(NamedTuple):
    """What stands between two fences."""

    language: str
    title: str
    code: str
    line: int  # of the page, of its first line of code


def blocks(page: str) -> list[Block]:
    text = PAGES[page].read_text(encoding="utf-8")
    return [Block(m[1], m[2] or "", m[3], text[: m.start(3)].count("\n") + 1) for m in BLOCK.finditer(text)]


def is_run(page: str, block: Block) -> bool:
    """The README's commands have placeholders."""
    return not block.title.startswith(NOT_RUN) and (page != "README.md" or block.language == "python")


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of a shell block."""
    for line in block.code.replace("\\\n", " ").splitlines():
        for command in line.split(" && "):
            if words := shlex.split(command, comments=True):
                yield words


def script_of(words: list[str]) -> list[str] | None:
    """The script of a command and its arguments, if it runs one; what Accelerate is told must be known to it."""
    if words[:2] == ["accelerate", "launch"]:
        launch, _ = launch_command_parser().parse_known_args(words[2:])
        assert launch.config_file is None or (ROOT / launch.config_file).exists(), words
        return [launch.training_script, *launch.training_script_args]
    return words[1:] if words[0] == "python" else None


# Files that the pages name ---------------------------------------------------------------------------------------------


def make_model(folder: Path) -> None:
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)


def make_corpus(folder: Path) -> None:
    write_release(folder, {"Train_Set": ["a", "b"], "Validation_Set": ["c", "d"]}, num_frames=90)
    write_release(folder, {"Test_Set": ["e"]}, num_frames=90)
    (folder / "names_of_videos_in_each_test_set").mkdir()
    names = folder / "names_of_videos_in_each_test_set/Valence_Arousal_Estimation_Challenge_test_set_release.txt"
    names.write_text("e\n")


def make_demo_corpus(folder: Path) -> None:
    write_release(folder, {"Train_Set": ["synthetic-0000"], "Validation_Set": ["synthetic-0032"]}, num_frames=90)


def make_videos(folder: Path) -> None:
    folder.mkdir()
    for name in ("P16", "P17", "P18"):
        clapping_video(folder / f"{name}.mp4", seconds=3, claps=(1,))


def make_encoder(name: str, preprocessor: Callable) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        AutoModel.from_config(encoder_config(name)).save_pretrained(folder)
        preprocessor().save_pretrained(folder)

    return make


MAKE = {
    "model": make_model,
    "interview.mp4": lambda path: clapping_video(path, seconds=6, claps=(2, 5)),
    "videos": make_videos,
    "data/Aff-Wild2": make_corpus,
    "runs/demo/seed-0/fusion": make_model,
    "runs/demo/corpus": make_demo_corpus,
    "MCG-NJU/videomae-base": make_encoder("videomae", lambda: VideoMAEImageProcessor(size=32, crop_size=32)),
    "facebook/wav2vec2-base": make_encoder("wav2vec2", Wav2Vec2FeatureExtractor),
    "TSAV_Sub4_544k.pth.tar": lambda path: torch.save({"state_dict": state_dict("tsav")}, path),
    "jointcam_model.pt": lambda path: torch.save({"net": state_dict("cam_l16")}, path),
}


def follow(page: str, folder: str) -> None:
    """Do what a page says, from top to bottom, as a reader would."""
    os.chdir(folder)
    text = "".join(block.code for block in blocks(page) if is_run(page, block))
    for name, make in MAKE.items():
        if re.search(rf"(?<![\w./-]){re.escape(name)}(?![\w.-])", text):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            make(Path(name))
    sys.modules["page"] = module = types.ModuleType("page")
    for block in blocks(page):
        if not is_run(page, block):
            continue
        if block.language == "python":
            code = block.code.replace("rtsp://camera/1", "interview.mp4")  # which plays the camera
            exec(compile("\n" * (block.line - 1) + code, page, "exec"), module.__dict__)
        elif block.language == "bash":
            for words in commands(block):
                script, *arguments = script_of(words)
                sys.argv = [script, *arguments]
                try:
                    runpy.run_path(str(ROOT / script), run_name="__main__")
                except SystemExit as ended:
                    if ended.code:
                        raise RuntimeError(f"{page}, line {block.line}: {shlex.join(words)}: {ended.code}") from ended
        elif re.fullmatch(r"[\w-]+\.\w+", block.title):
            Path(block.title).write_text(block.code)


RUN = [page for page in PAGES if any(is_run(page, b) for b in blocks(page) if b.language in ("python", "bash"))]
SLOW = {"docs/convert.md": [pytest.mark.slow]}  # full-size encoders


@pytest.mark.parametrize("page", [pytest.param(page, marks=SLOW.get(page, [])) for page in RUN])
def test_blocks_run(page, tmp_path):
    assert run(follow, page, str(tmp_path)) == [0]  # a process of its own: pages register fusions and encoders


def test_pages_that_can_not_run_are_few():
    assert set(PAGES) - set(RUN) == {"docs/index.md", "docs/several_gpus.md"}


@pytest.mark.parametrize("page", PAGES)
def test_blocks_parse(page, monkeypatch):
    """Commands with the options that their scripts have, whether they are run or not."""
    parse_args = argparse.ArgumentParser.parse_args
    makefile = (ROOT / "Makefile").read_text()

    class ParsedError(Exception):
        pass

    def parse(self, args=None, namespace=None):
        parse_args(self, args, namespace)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    for block in blocks(page):
        if block.language == "python":
            compile(block.code, page, "exec")
        elif block.language == "yaml":
            assert isinstance(yaml.safe_load(block.code), dict)
        elif block.language in ("bash", ""):
            for words in commands(block):
                if script := script_of(words):
                    monkeypatch.setattr(sys, "argv", script)
                    with pytest.raises(ParsedError):
                        runpy.run_path(str(ROOT / script[0]), run_name="__main__")
                elif words[0] == "make":
                    assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
        else:
            assert block.language in ("text", "bibtex", "dockerfile"), block


@pytest.mark.parametrize("page", PAGES)
def test_what_is_named_is_there(page):
    """Paths of the repository and extras of the package, wherever the text names them; recipes can be read."""
    text = PAGES[page].read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w./-])((?:app|examples|jca|recipes|scripts|tests)/[\w/.*-]*\w)", text))
    for name in named:
        found = list(ROOT.glob(name))
        assert found, name
        for path in found:
            if path.suffix == ".yaml" and path.parent.name == "recipes":
                load_recipe(path)
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for extra in ",".join(re.findall(r"'(?:jca|\.)\[([\w,]+)\]'", text)).split(","):
        assert f'"{extra}": [' in setup or not extra, extra


# The site --------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Ids, links and what is loaded of a page, and its text outside of code."""

    def __init__(self, file: Path):
        super().__init__()
        self.ids, self.links, self.loaded, self.text, self._code = set(), [], [], [], 0
        self.html = file.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if found.get("src") or (tag == "link" and found.get("href")):
            self.loaded.append(found.get("src") or found["href"])
        self._code += tag in ("code", "script")

    def handle_endtag(self, tag):
        self._code -= tag in ("code", "script")

    def handle_data(self, data):
        if not self._code:
            self.text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[str, Page]:
    """The pages of the built site by their path. Warnings are errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    offline = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env={**os.environ, **offline}, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return {
        path.relative_to(folder).as_posix(): Page(path) for path in folder.rglob("*.html") if path.name != "404.html"
    } | {path.relative_to(folder).as_posix(): None for path in folder.rglob("*") if path.suffix != ".html"}


def resolve(page: str, link: str) -> tuple[str, str]:
    path, _, anchor = link.partition("#")
    return os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page, anchor


def test_links_lead_somewhere(site):
    count = 0
    for name, page in site.items():
        for link in [*page.links, *page.loaded] if page else []:
            if re.match(r"\w+:", link):
                continue
            target, anchor = resolve(name, link)
            assert target in site, f"{name}: {link}"
            assert not anchor or anchor in site[target].ids | {"__top"}, f"{name}: {link}"
            count += 1
    assert count > 1000


def test_nothing_is_loaded_from_elsewhere(site):
    for name, page in site.items():
        assert not page or not [link for link in page.loaded if "//" in link], name


@pytest.mark.parametrize("name", MODULES)
def test_reference_has_every_public_name(name, site):
    module = importlib.import_module(name)
    own = [key for key, value in vars(module).items() if callable(value) and value.__module__ == name]
    public = getattr(module, "__all__", None) or [key for key in own if not key.startswith("_")]
    page = site[f"reference/{name}.html"]
    missing = [key for key in public if f"{name}.{key}" not in page.ids]
    assert public
    assert not missing
    sources = sum("Source code in" in text for text in page.text)
    assert sources >= sum(callable(getattr(module, key)) for key in public)


def test_reference_begins_with_what_the_package_gives(site):
    links = {resolve("reference/index.html", link)[1] for link in site["reference/index.html"].links}
    assert {f"{getattr(jca, name).__module__}.{name}" for name in jca.__all__} <= links


def test_docstrings_are_read_as_markdown(site):
    """Sections as lists and cross-references as links; none is left as it stands in the source."""
    for name, page in site.items():
        if page and name.startswith("reference/"):
            text = "".join(page.text)
            assert not re.search(r"^\s*(Args|Attributes|Returns|Raises|Warns|Yields):|\[`|\]\[", text, re.MULTILINE), (
                name
            )
            assert "[<code>" not in page.html, name  # a reference to what has no place here
    page = site["reference/pipeline_jca.html"]
    assert "<li><strong>hop</strong> (<code>int</code>, defaults to 8): grid frames (30 a second" in page.html
    links = {resolve("reference/pipeline_jca.html", link) for link in page.links}
    assert ("reference/sources_jca.html", "sources_jca.Limits") in links


# The docstrings of the reference ---------------------------------------------------------------------------------------

HOOKS = runpy.run_path(str(ROOT / "docs/hooks.py"))
ARRAY = re.compile(r"(np\.|torch\.)?(ndarray|(Float|Long)?Tensor)")
SHAPE = re.compile(r"`\((|[^()`]*,[^()`]*)\)`")
SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Warns):\n((?:(?: {4}.*)?\n)+)", re.MULTILINE)


class Function(NamedTuple):
    """A function or method of the reference, with what is written of it."""

    module: str
    name: str
    node: ast.FunctionDef
    owner: ast.ClassDef | None

    def text(self) -> str:
        """Its docstring, and that of its class where it has none or is how the class is made or called."""
        own = ast.get_docstring(self.node) or ""
        if self.owner and (not own or self.node.name in ("__init__", "__call__")):
            own = f"{own}\n\n{ast.get_docstring(self.owner) or ''}"
        return own + "\n"

    def section(self, *headings: str) -> str:
        return "".join(match[2] for match in SECTION.finditer(self.text()) if match[1] in headings)

    def prose(self) -> str:
        return SECTION.sub("", self.text())

    def entry(self, name: str) -> str | None:
        """What `Args` says of a parameter: of its own, or together with others."""
        for entry in re.split(r"^ {4}(?=\S)", self.section("Args", "Attributes"), flags=re.MULTILINE):
            if re.match(rf"(\w+, |\w+ \(.*?\), )*{name}\b(, \w+)*( \(|:)", " ".join(entry.split())):
                return entry
        return None

    def parameters(self) -> dict[str, ast.expr | None]:
        given = self.node.args
        found = {one.arg: one.annotation for one in [*given.posonlyargs, *given.args, *given.kwonlyargs]}
        return {name: annotation for name, annotation in found.items() if name not in ("self", "cls")}


def reference_functions() -> dict[str, Function]:
    """By their places in the reference."""
    found = {}
    for module, names in HOOKS["PUBLIC"].items():
        for node in HOOKS["parse"](module).body:
            if getattr(node, "name", None) not in names:
                continue
            if isinstance(node, ast.FunctionDef):
                found[f"{module}.{node.name}"] = Function(module, node.name, node, None)
            for member in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(member, ast.FunctionDef) and re.fullmatch(r"[^_].*|__(init|call)__", member.name):
                    name = f"{node.name}.{member.name}"
                    found[f"{module}.{name}"] = Function(module, name, member, node)
    return found


FUNCTIONS = reference_functions()


def count_arrays(annotation: ast.expr | None) -> int:
    """How many arrays a type stands for. Those of a dict have names, which its docstring says in other ways."""
    if isinstance(annotation, ast.BinOp):  # A | None
        return max(count_arrays(annotation.left), count_arrays(annotation.right))
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in (
        "tuple",
        "list",
        "Sequence",
        "Iterator",
    ):
        parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        return sum(map(count_arrays, parts))
    return int(annotation is not None and ARRAY.fullmatch(ast.unparse(annotation)) is not None)


def referred(function: Function, text: str) -> Iterator[Function]:
    """The functions to which a part of its docstring refers."""
    for place in re.findall(r"\]\[([\w.]+)\]", HOOKS["link"](text, function.module)):
        if place in FUNCTIONS and FUNCTIONS[place] != function:
            yield FUNCTIONS[place]


def arrays_without_shape(function: Function) -> list[str]:
    """
    Arrays that it takes or gives ("return") and of which it does not say the shape: in the entry of `Args`, in `Returns`, or
    else in its sentences, which must have as many shapes as arrays that they speak of. What a text says, a function that it
    refers to may say for it, of arguments of the same name.
    """
    missing, spoken = [], []
    for name, annotation in function.parameters().items():
        if not count_arrays(annotation):
            continue
        if (entry := function.entry(name)) is None:
            spoken.append(name)
        elif not SHAPE.search(entry):
            others = [other for other in referred(function, entry) if name in other.parameters()]
            missing += [name] if not others or any(name in arrays_without_shape(other) for other in others) else []
    if given := count_arrays(function.node.returns):
        if returns := function.section("Returns", "Yields"):
            missing += [] if SHAPE.search(returns) else ["return"]
        else:
            spoken += ["return"] * given
    for other in referred(function, function.prose()):
        if len(SHAPE.findall(function.prose())) < len(spoken):
            said = {"return", *other.parameters()} - set(arrays_without_shape(other))
            spoken = [name for name in spoken if name not in said]
    return missing + spoken * (len(SHAPE.findall(function.prose())) < len(spoken))


def raised(function: Function) -> set[str]:
    """The errors that it raises, or what it calls of its module that has no place in the reference; a caught one is none."""
    module = HOOKS["parse"](function.module)
    helpers = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
    helpers = {name: node for name, node in helpers.items() if name not in HOOKS["PUBLIC"][function.module]}
    members = function.owner.body if function.owner else []
    helpers |= {f"self.{node.name}": node for node in members if getattr(node, "name", "").startswith("_")}
    names = {**vars(builtins), **vars(importlib.import_module(function.module))}
    found, seen = set(), set()

    def error(node: ast.expr) -> type:
        return getattr(error(node.value), node.attr) if isinstance(node, ast.Attribute) else names[node.id]

    def walk(node: ast.AST, caught: tuple[type, ...]) -> None:
        if isinstance(node, ast.Try):
            handlers = [
                h for h in node.handlers if not any(isinstance(n, ast.Raise) and not n.exc for n in ast.walk(h))
            ]
            these = [error(one) for h in handlers if h.type for one in getattr(h.type, "elts", [h.type])]
            for child in node.body:
                walk(child, (*caught, *these))
            for child in [*node.handlers, *node.orelse, *node.finalbody]:
                walk(child, caught)
            return
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            one = error(node.exc.func)
            found.update({one.__name__} if isinstance(one, type) and not issubclass(one, caught) else ())
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in helpers and name not in seen:
            seen.add(name)
            walk(helpers[name], caught)
        for child in ast.iter_child_nodes(node):
            walk(child, caught)

    walk(function.node, ())
    return found


def errors_not_told(function: Function) -> set[str]:
    told = function.section("Raises") + " ".join(re.findall(r"[Rr]aises? [^.]*", " ".join(function.prose().split())))
    return {error for error in raised(function) if not re.search(rf"\b{error}\b", told)}


def of_module(name: str) -> dict[str, Function]:
    return {place: function for place, function in FUNCTIONS.items() if function.module == name}


@pytest.mark.parametrize("name", MODULES)
def test_every_array_has_its_shape(name):
    missing = {place: arrays_without_shape(function) for place, function in of_module(name).items()}
    assert {place: arrays for place, arrays in missing.items() if arrays} == {}


@pytest.mark.parametrize("name", MODULES)
def test_every_error_is_told(name):
    missing = {place: errors_not_told(function) for place, function in of_module(name).items()}
    assert {place: errors for place, errors in missing.items() if errors} == {}


@pytest.mark.parametrize("name", MODULES)
def test_what_is_told_of_arguments_is_of_arguments(name):
    """A parameter that was renamed leaves its old name in `Args`."""
    for place, function in of_module(name).items():
        own = SECTION.search((ast.get_docstring(function.node) or "") + "\n")
        if own and own[1] == "Args" and not function.node.args.kwarg:
            told = re.findall(r"^ {4}(\w+(?:, \w+)*)", own[2], re.MULTILINE)
            assert {one for names in told for one in names.split(", ")} <= {*function.parameters()}, place


def arguments_not_told(function: Function) -> list[str]:
    text = "".join(one.text() for one in (function, *referred(function, function.prose())))
    return [name for name in function.parameters() if not re.search(rf"\b{name}\b", text)]


def test_every_argument_of_what_the_package_gives_is_told():
    given = {f"{value.__module__}.{name}" for name in jca.__all__ if callable(value := getattr(jca, name))}
    told = {}
    for place, function in FUNCTIONS.items():
        written = ast.get_docstring(function.node) or function.node.name == "__init__"  # else it is Transformers'
        if written and {place, place.rpartition(".")[0]} & given:
            told[place] = arguments_not_told(function)
    assert {place: missing for place, missing in told.items() if missing} == {}
    assert len(told) > 60


@pytest.mark.parametrize("name", MODULES)
def test_every_argument_that_has_a_unit_is_told(name):
    """Where a float is spoken of, its unit is a word away; no word at all is a certain gap."""
    told = {}
    for place, function in of_module(name).items():
        floats = {one for one, type_ in function.parameters().items() if type_ and "float" in ast.unparse(type_)}
        told[place] = floats & {*arguments_not_told(function)}
    assert {place: missing for place, missing in told.items() if missing} == {}


# The notebook ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_notebook_runs_from_a_clean_kernel(tmp_path):
    notebook = nbformat.read(ROOT / "examples/quick_start.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in cells)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output["data"] for cell in cells for output in cell.outputs if "data" in output]
    assert [("image/png" in data, "text/html" in data) for data in shown].count((True, False)) == 1  # the plot
    assert "[1, 16, 2]" in shown[-1]["text/plain"]  # the shape of the outputs of a window
