"""Write pages from the code: commands, public names, decisions and the examples."""

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import typer
from markdown.extensions.toc import slugify
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import mest_fed
import mest_fed.catalogue as catalogue
from mest_fed.cli.app import app, register_commands
from mest_fed.references import resolve
from mest_fed.registry import Registry

DOCS = Path(__file__).parents[1]
ADRS = DOCS / "adr"
ROOT = DOCS.parent
EXAMPLES = ROOT / "examples"
#: Pages with examples of things of one's own, and their headings; where the table of all goes.
PAGES = (
    "models.md",
    "data.md",
    "tasks.md",
    "methods.md",
    "server.md",
    "clients.md",
    "fleet.md",
    "lean-nodes.md",
)
HEADING = re.compile(r"^## (.*)$", re.MULTILINE)
TABLE = "<!-- catalogue -->"
#: The name of an example in the table of its README, and the file or folder that it links to.
EXAMPLE = re.compile(r"^\| \[(\w+)\]\(([\w.]+)/?.*?\)", re.MULTILINE)
ROLE = re.compile(r":(?:class|meth|func|mod|data|attr):<code>~?")
CODE = re.compile(r"(?<=<code>)[^<\n]+(?=</code>)")
#: What the style sheet keeps on one line: short code without a space, an option within a command.
WORD = re.compile(r"^\S{1,32}$|(?<!\S)-\S{1,32}")


def commands() -> Iterator[str]:
    """Yield the page of all commands with their options."""
    register_commands()
    group = typer.main.get_command(app)
    yield "# Commands\n"
    for name, command in sorted(leaves(group)):
        yield f"## mest-fed {name}\n"
        yield f"{inspect.cleandoc(command.help or '')}\n"
        yield "| argument | meaning | default |\n|---|---|---|"
        for each in command.params:
            if getattr(each, "hidden", False) or each.name == "help":
                continue
            yield f"| {argument(each)} | {meaning_of(each)} | {default_of(each)} |"
        yield ""


def leaves(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    """Yield the commands of a group, and those of the groups in it by their whole names."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from ((f"{name} {below}", each) for below, each in leaves(command))
        else:
            yield name, command


def argument(parameter: click.Parameter) -> str:
    """Return how an argument or option is typed."""
    if parameter.param_type_name == "argument":
        return f"`{parameter.human_readable_name}`"
    value = (
        "" if parameter.is_flag else f" {parameter.make_metavar(click.Context(click.Command('')))}"
    )
    return ", ".join(f"`{name}{value}`" for name in parameter.opts)


def default_of(parameter: click.Parameter) -> str:
    """Return a default that is worth saying."""
    default = parameter.default
    return "" if default is None or callable(default) or default is False else f"`{default}`"


def meaning_of(parameter: click.Parameter) -> str:
    """Return the help text as one cell."""
    return " ".join((getattr(parameter, "help", "") or "").split()).replace("|", "\\|")


def library() -> Iterator[str]:
    """Yield the page of the public names."""
    yield "# Library\n"
    yield "All public names are attributes of `mest_fed`, each imported at its first use.\n"
    for name in sorted(mest_fed.__all__, key=str.lower):
        thing = getattr(mest_fed, name)
        if getattr(thing, "__module__", "").startswith("mest_fed"):
            yield f"::: {_path(thing)}\n"
    yield "## Base classes\n"
    yield "What [things of your own](../own.md) derive from, beside the public names.\n"
    for each in base_classes():
        yield f"::: {_path(each)}\n"


def _path(thing: Any) -> str:
    return f"{thing.__module__}.{getattr(thing, '__qualname__', '')}"


def base_classes() -> list[type]:
    """Return our classes that named things make, and abstract ones that public ones derive from."""
    public = [getattr(mest_fed, name) for name in mest_fed.__all__]
    made: list[Any] = [resolve(registry.makes) for registry in registries() if registry.makes]
    made += [
        base
        for thing in public
        for base in getattr(thing, "__bases__", ())
        if inspect.isabstract(base)
    ]
    ours = [each for each in made if each.__module__.startswith("mest_fed.") and each not in public]
    return sorted(dict.fromkeys(ours), key=lambda each: each.__name__.lower())


def registries() -> list[Registry[Any]]:
    """Return all kinds of things that a configuration or an option names, in their order."""
    return [each for each in vars(catalogue).values() if isinstance(each, Registry)]


def catalogue_table() -> Iterator[str]:
    """Yield a table of everything that can be named, with where its example is."""
    yield "| named by | how to write one | is called as | makes |\n|---|---|---|---|"
    linked: set[str] = set()
    for registry in registries():
        keys = [f"`{key}`" for key in registry.key.split(" or ")]
        made = registry.makes.replace(":", ".")
        makes = f"`{made}`" if made else ""
        if made.startswith("mest_fed"):
            made_class: Any = resolve(registry.makes)
            makes = f"[`{made_class.__name__}`][{_path(made_class)}]"
        example = example_of(registry)
        if example is None or example in linked:
            example = built_in(registry)
        linked.add(example)
        yield f"| {', '.join(keys)} | {example} | `{registry.called}` | {makes} |"


def example_of(registry: Registry[Any]) -> str | None:
    """Return a link to the first section whose heading names a registry's key."""
    key = registry.key.split(" or ")[0]
    for page in PAGES:
        for heading in HEADING.findall((DOCS / page).read_text(encoding="utf-8")):
            if f"{key}`" in heading:
                anchor = slugify(heading.replace("`", ""), "-")
                return f"[{heading.partition(':')[0]}]({page}#{anchor})"
    return None


def built_in(registry: Registry[Any]) -> str:
    """Return where the first built-in thing of a registry is."""
    place = next(iter(registry.references.values())).partition(":")[0].replace(".", "/<wbr>")
    return f"built-in: <code>{place}.py</code>"


def decisions() -> Iterator[str]:
    """Yield the list of design decisions by their titles."""
    yield "# Decisions\n"
    yield "Design decisions that were worth an argument, with what was measured.\n"
    for path in sorted(ADRS.glob("*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        yield f"- [{title}](../adr/{path.name})"


def examples() -> Iterator[str]:
    """Yield the page of the examples: their README, and below it each with its files."""
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    yield EXAMPLE.sub(r"| [\1](#\1)", readme)
    for name, place in EXAMPLE.findall(readme):
        yield f"## {name}\n"
        for file in files_of(EXAMPLES / place):
            yield f"`{file.relative_to(ROOT)}`\n"
            yield from shown(file)


def files_of(place: Path) -> list[Path]:
    """Return the files of an example, which is a file or a folder."""
    if place.is_file():
        return [place]
    return [file for kind in ("*.toml", "*.py") for file in sorted(place.rglob(kind))]


def shown(file: Path) -> Iterator[str]:
    """Yield the content of a file as Markdown; a notebook cell by cell."""
    text = file.read_text(encoding="utf-8")
    language = {".py": "python", ".toml": "toml"}
    if file.suffix in language:
        yield f"```{language[file.suffix]}\n{text}```\n"
        return
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":  # its headings go below the example's own
            yield re.sub("^#", "###", source, flags=re.MULTILINE) + "\n"
        else:
            yield f"```python\n{source}\n```\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages (called by mkdocs)."""
    for page in (commands, library, decisions):
        content = "\n".join(page())
        uri = f"reference/{page.__name__}.md"
        files.append(File.generated(config, uri, content=content))
    files.append(File.generated(config, "examples.md", content="\n".join(examples())))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the table of everything that can be named into its place (called by mkdocs)."""
    return markdown.replace(TABLE, "\n".join(catalogue_table()))


def on_page_content(html: str, **_: object) -> str:
    """Edit a page's HTML (called by mkdocs).

    The roles of docstrings, such as ``:class:``, are left out before code, and words in code are
    marked, which the style sheet keeps on one line.
    """
    return CODE.sub(lambda code: WORD.sub(_marked, code[0]), ROLE.sub("<code>", html))


def _marked(word: re.Match[str]) -> str:
    return f'<span class="word">{word[0]}</span>'
