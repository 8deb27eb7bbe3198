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


def public_names(module: str) -> list[str]:
    """The names in a module's `__all__`, or else its classes and functions without an underscore, as it orders them."""
    tree = parse(module)
    if (names := assigned(tree, "__all__")) is not None:
        return ast.literal_eval(names)
    kinds = (ast.ClassDef, ast.FunctionDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


PUBLIC = {module: public_names(module) for module in MODULES}
PLACES = {name: f"{module}.{name}" for module, names in PUBLIC.items() for name in names}


def link(text: str) -> str:
    """[`Name`] and [`Class.method`] to links into the reference; a name that is not public there stays a name."""

    def place(match: re.Match) -> str:
        first, _, rest = match[1].partition(".")
        if first not in PLACES:
            return f"`{match[1]}`"
        return f"[`{match[1]}`][{PLACES[first]}{'.' * bool(rest)}{rest}]"

    return re.sub(r"\[`([\w.]+)`\](?![\[(])", place, text)


def to_markdown(docstring: str) -> str:
    """`Args:` and its like with their indented lines to a heading and a list."""

    def section(match: re.Match) -> str:
        lines = re.sub(r"^    ", "", match[2], flags=re.MULTILINE)
        if match[1] in ("Args", "Raises"):
            lines = re.sub(r"^(\w[^:\n]*?)( \(.*?\))?:", r"- **\1**\2:", lines, flags=re.MULTILINE)
        return f"**{match[1]}**\n\n{lines.strip()}\n\n"

    blocks = r"^(Args|Returns|Raises|Yields):\n((?:(?:    .*)?\n)+)"
    return link(re.sub(blocks, section, f"{docstring}\n", flags=re.MULTILINE)).strip()


class MarkdownDocstrings(griffe.Extension):
    """Docstrings for mkdocstrings."""

    def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def index() -> str:
    """The page of what `import jca` gives, and of all modules."""
    tree = parse("jca/__init__")
    lazy = ast.literal_eval(assigned(tree, "_LAZY"))
    names = sorted({*lazy, *(item.value for item in assigned(tree, "__all__").elts if isinstance(item, ast.Constant))})
    lines = ["# Reference", "", "`import jca` gives:", "", *(f"- [`{name}`]" for name in names), ""]
    lines += ["Its modules, and the flat ones that travel with checkpoints:", ""]
    for module in MODULES:
        summary = ast.get_docstring(parse(module)).split("\n\n")[0].replace("\n", " ")
        lines.append(f"- [`{module}`]({module}.md): {summary}")
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
