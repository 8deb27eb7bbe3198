"""What the site has beyond its Markdown files: a page for each module, and docstrings as the Markdown that they are."""

import ast
import re
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


ROOT = Path(__file__).parents[1]
FLAT = sorted(path.stem for path in ROOT.glob("*_jca.py"))
MODULES = [*FLAT, *(f"jca.{path.stem}" for path in sorted((ROOT / "jca").glob("[!_]*.py")))]


def parse(module: str) -> ast.Module:
    return ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))


def assigned(tree: ast.Module, name: str) -> ast.expr | None:
    """What a module assigns to a name."""
    values = [node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name]
    return values[0] if values else None


REFERENCE = re.compile(r"\[`([\w.]+)`\](?![\[(])")
GIVEN = ast.literal_eval(assigned(parse("jca/__init__"), "_LAZY"))  # names of the package and their modules


def public_names(module: str) -> list[str]:
    """The names in a module's `__all__`, with what of the module their docstrings refer to and the classes of its tables; or
    else its classes and functions without an underscore. Constants come first, the others as the module orders them."""
    tree = parse(module)
    own = {node.name: node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    if (listed := assigned(tree, "__all__")) is None:
        return [name for name in own if not name.startswith("_")]
    names = ast.literal_eval(listed)
    for name in names:  # which grows
        table = assigned(tree, name)
        said = [ast.unparse(value) for value in table.values] if isinstance(table, ast.Dict) else []
        for node in ast.walk(own[name]) if name in own else ():
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                said += [text.partition(".")[0] for text in REFERENCE.findall(ast.get_docstring(node) or "")]
        known = (text for text in dict.fromkeys(said) if text in own or assigned(tree, text) is not None)
        names += [text for text in known if text not in names]
    return [name for name in names if name not in own] + [name for name in own if name in names]


PUBLIC = {module: public_names(module) for module in MODULES}
PLACES = {name: f"{module}.{name}" for module, names in PUBLIC.items() for name in names}
PLACES |= {name: f"{module}.{name}" for name, module in GIVEN.items()}


def link(text: str, module: str = "") -> str:
    """[`Name`], [`Class.method`] and [`module.name`] to links into the reference. A name that several modules have is that
    of `module`, or else of the package; one that is not public there stays as it is, which the tests see."""
    places = PLACES | {name: f"{module}.{name}" for name in PUBLIC.get(module, ())}

    def place(match: re.Match) -> str:
        first, dot, rest = match[1].partition(".")
        target = match[1] if match[1] in PLACES.values() else places[first] + dot + rest if first in places else None
        return f"[`{match[1]}`][{target}]" if target else match[0]

    return REFERENCE.sub(place, text)


def to_markdown(docstring: str, module: str) -> str:
    """`Args:` and its like with their indented lines to a heading and a list."""

    def section(match: re.Match) -> str:
        lines = re.sub(r"^    ", "", match[2], flags=re.MULTILINE)
        if match[1] not in ("Returns", "Yields"):
            lines = re.sub(r"^(\w+(?:, \w+)*)", r"- **\1**", lines, flags=re.MULTILINE)
            lines = re.sub(r"(?<=\), )(\w+)(?= \()", r"**\1**", lines)  # a (`int`), b (`int`): both of a line
        return f"**{match[1]}**\n\n{lines.strip()}\n\n"

    blocks = r"^(Args|Attributes|Returns|Raises|Warns|Yields):\n((?:(?:    .*)?\n)+)"
    return link(re.sub(blocks, section, f"{docstring}\n", flags=re.MULTILINE), module).strip()


class MarkdownDocstrings(griffe.Extension):
    """Docstrings for mkdocstrings."""

    def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value, obj.module.path)


def summary(node: ast.AST) -> str:
    """The first sentence of a docstring."""
    return re.split(r"\n\n|(?<=\.)\s(?=[A-Z])", ast.get_docstring(node))[0].replace("\n", " ")


def index() -> str:
    """The page of what `import jca` gives, and of all modules."""
    listed = assigned(parse("jca/__init__"), "__all__").elts
    names = sorted({*GIVEN, *(item.value for item in listed if isinstance(item, ast.Constant))})
    lines = ["# Reference", "", "`import jca` gives:", ""]
    for name in names:
        module = PLACES[name].rpartition(".")[0]
        (node,) = (node for node in parse(module).body if getattr(node, "name", None) == name)
        lines.append(f"- [`{name}`]: {summary(node)}")
    lines += ["", "Its modules, and the flat ones that travel with checkpoints:", ""]
    lines += [f"- [`{module}`]({module}.md): {summary(parse(module))}" for module in MODULES]
    return "\n".join(lines) + "\n"


def on_config(config: MkDocsConfig) -> None:
    config.nav.append({"Reference": ["reference/index.md", *({m: f"reference/{m}.md"} for m in MODULES)]})


def on_files(files: Files, config: MkDocsConfig) -> None:
    pages = {"index": index()}
    for module, names in PUBLIC.items():
        members = "".join(f"        - {name}\n" for name in names)
        pages[module] = f"# `{module}`\n\n::: {module}\n    options:\n      members:\n{members}"
    for name, content in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))


def on_page_markdown(markdown: str, **kwargs) -> str:
    return link(markdown)
