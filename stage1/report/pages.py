"""Pages to read: one self-contained HTML file per executed notebook, and the index of a report.

    python -m stage1.report.pages index reports/quick quick runs/quick/notebooks/*.ipynb

No page has a script or loads anything: style and images are inside, formulas become MathML when the page is made.
"""

import argparse
import re
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup, Tag
from jinja2 import pass_context
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

from stage1 import store
from stage1.report import formulas

TITLE = (
    "Stage 1: can a small adapter undo an 8x compression of a language model's input embeddings?"
)
START = "05_report"
STEPS = {
    "Index": ("", "index.html"),
    "01": ("data", "01_data_and_pca.html"),
    "02": ("adapters", "index.html#adapters"),
    "03": ("answers", "03_generation_eval.html"),
    "04": ("loss", "04_loss_magnitude.html"),
    "05": ("report", f"{START}.html"),
}
"""What the navigation shows: a step, a word for it, its page."""
ADAPTER = re.compile(r"02_\w+-(?P<objective>\w+)-seed(?P<seed>\d+)")
"""The name of an adapter's page."""
MEDIA = [
    "text/html",
    "text/markdown",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/latex",
    "text/plain",
]
"""What is shown of an output that comes in several forms, the best first; nothing that would need a script."""
NUMBER = re.compile(
    r"[-+−]?\d[\d,]*\.?\d*(e[-+]?\d+)?( ?%| ± [\d.]+| \[[^]]+\])?|nan|–", re.IGNORECASE
)
ACTIVE = ("script", "link", "iframe", "object", "embed")


class Exporter(HTMLExporter):
    """nbconvert with the template in `assets/page/`."""

    def __init__(self):
        super().__init__(template_name="page", extra_template_basedirs=[str(store.ASSETS)])
        self.exclude_input_prompt = self.exclude_output_prompt = True
        self.config.NbConvertBase.display_data_priority = MEDIA
        self.register_preprocessor(
            CoalesceStreamsPreprocessor, enabled=True
        )  # one line per progress bar

    @pass_context
    def markdown2html(self, context, source: str) -> str:
        """The filter of the same name in the template."""
        attachments = context.get("cell", {}).get("attachments", {})
        return formulas.to_html(source, context["resources"]["notebook"], attachments)


def render(executed: Path, page: Path) -> None:
    """A self-contained HTML page of the executed notebook: code folded, outputs shown, formulas as MathML.

    Raises ValueError with the notebook's name for a formula that cannot be converted and for an output with a script or
    with something to load.
    """
    links = [
        {"step": step, "word": word, "target": target, "current": ""}
        for step, (word, target) in STEPS.items()
    ]
    for link in links:
        if page.name.startswith(link["step"]):
            link["current"] = "page" if link["target"] == page.name else "true"
    write(nbformat.read(executed, as_version=4), page, executed.name, links)


def write(notebook: NotebookNode, page: Path, name: str, links: list[dict]) -> None:
    """Write the notebook as a page with the links as its navigation; `name` is the notebook's in messages."""
    title = re.sub(r"[`*$]", "", heading(notebook)) or page.stem
    describe_figures(notebook)
    html, _ = Exporter().from_notebook_node(
        notebook, {"title": title, "navigation": links, "notebook": name}
    )
    soup = BeautifulSoup(html, "html.parser")
    check_self_contained(soup, name)
    for table in soup.find_all("table"):
        mark_columns(table)
    store.write_atomically(page, lambda temporary: temporary.write_text(str(soup), "utf-8"))


def heading(notebook: NotebookNode) -> str:
    """The notebook's first heading, as Markdown; "" where there is none."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = re.search(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", text, re.MULTILINE)
    return found[1] if found else ""


def question(notebook: NotebookNode) -> str:
    """The first paragraph of the first Markdown cell that is no heading, as Markdown; "" where there is none."""
    first = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    paragraphs = re.split(r"\n\s*\n", re.sub(r"^#{1,6}[ \t].*$", "\n", first, flags=re.MULTILINE))
    return next((paragraph.strip() for paragraph in paragraphs if paragraph.strip()), "")


def describe_figures(notebook: NotebookNode) -> None:
    """Give each figure as alternative text the Markdown paragraph below it, its caption."""
    for cell, below in zip(notebook.cells, [*notebook.cells[1:], None], strict=True):
        if cell.cell_type == "code" and below is not None and below.cell_type == "markdown":
            caption = below.source.split("\n\n")[0]
            if not caption.startswith("#"):
                cell.metadata.setdefault("alt", " ".join(re.sub(r"[`*$]", "", caption).split()))


def check_self_contained(soup: BeautifulSoup, name: str) -> None:
    """Raise ValueError with the notebook's name where its page would run a script or load a file."""
    for tag in soup.find_all(True):
        if tag.name in ACTIVE or any(attribute.startswith("on") for attribute in tag.attrs):
            raise ValueError(
                f"{name}: an output has an active <{tag.name}>, which a page does without"
            )
        if not tag.get("src", "data:").startswith("data:"):
            raise ValueError(
                f"{name}: {tag['src']} would have to be loaded; show it as an output instead"
            )
        style = tag.get_text() if tag.name == "style" else tag.get("style", "")
        if found := re.search(r"@import|url\((?!['\"]?data:)", style):
            raise ValueError(f"{name}: a style has {found[0]}, which would have to be loaded")


def mark_columns(table: Tag) -> None:
    """Mark columns of numbers, heads included, for the style to align on the right, and those of long text to widen."""
    rows = [row.find_all(["td", "th"], recursive=False) for row in table.find_all("tr")]
    rows = [cells[::-1] for cells in rows if not any(cell.has_attr("colspan") for cell in cells)]
    for column in zip(
        *rows, strict=False
    ):  # from the right: a head over several rows makes rows shorter on the left
        texts = [cell.get_text(strip=True) for cell in column if cell.name == "td"]
        if any(texts) and all(map(NUMBER.fullmatch, filter(None, texts))):
            mark = "number"
        elif max(map(len, texts), default=0) > 30:
            mark = "long"
        else:
            continue
        for cell in column:
            cell["class"] = [*cell.get("class", []), mark]


def index(folder: Path, executed: list[Path], preset: str) -> None:
    """Write `folder/index.html`: an entry with a link for each executed notebook, whose page is there already.

    Raises ValueError with the page that is missing.
    """
    for path in executed:
        if not (folder / f"{path.stem}.html").is_file():
            raise ValueError(
                f"{folder / path.stem}.html: no such page; {path} has not been rendered"
            )
    pages = {f"{path.stem}.html" for path in executed} | {"index.html"}
    if any(ADAPTER.fullmatch(path.stem) for path in executed):
        pages.add("index.html#adapters")
    links = [
        {"step": step, "word": word, "target": target, "current": "page" if step == "Index" else ""}
        for step, (word, target) in STEPS.items()
        if target in pages
    ]
    text = new_notebook(cells=[new_markdown_cell(contents(executed, preset))])
    write(text, folder / "index.html", "index", links)


def contents(executed: list[Path], preset: str) -> str:
    """The index as Markdown: the report first, then the steps in the order of their names."""
    parts = [
        f"# {TITLE}",
        f"Preset `{preset}`: each page is one executed notebook, its code folded away.",
    ]
    report = [path for path in executed if path.stem == START]
    adapters = [path for path in executed if ADAPTER.fullmatch(path.stem)]
    steps = sorted(
        {path for path in executed if path not in report} - set(adapters[1:]),
        key=lambda path: path.stem,
    )
    if report:
        parts += ["## Start here", entry(report[0]), "## Step by step"]
    for path in steps:
        if path in adapters:
            parts += [
                '<section id="adapters">',
                entry(path, link=False),
                adapter_table(adapters),
                "</section>",
            ]
        else:
            parts.append(entry(path))
    return "\n\n".join(parts) + "\n"


def entry(executed: Path, link: bool = True) -> str:
    """Title and question of a notebook."""
    notebook = nbformat.read(executed, as_version=4)
    title = heading(notebook) or executed.stem
    title = f"[{title}]({executed.stem}.html)" if link else title
    return f"### {title}\n\n{question(notebook)}"


def adapter_table(adapters: list[Path]) -> str:
    """Links to the adapters' pages, objective by seed; objectives in the order given."""
    names = {path: ADAPTER.fullmatch(path.stem).groupdict() for path in adapters}
    seeds = sorted({int(name["seed"]) for name in names.values()})
    pages = {
        (name["objective"], int(name["seed"])): f"[open]({path.stem}.html)"
        for path, name in names.items()
    }
    rows = [["objective", *(f"seed {seed}" for seed in seeds)], ["---"] * (1 + len(seeds))]
    for objective in dict.fromkeys(name["objective"] for name in names.values()):
        rows.append([f"`{objective}`", *(pages.get((objective, seed), "–") for seed in seeds)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stage1.report.pages", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("index", help="write the index of a report")
    command.add_argument("folder", type=Path, help="where the pages are")
    command.add_argument("preset")
    command.add_argument(
        "executed", type=Path, nargs="+", help="the executed notebooks whose pages it lists"
    )
    arguments = parser.parse_args()
    index(arguments.folder, arguments.executed, arguments.preset)


if __name__ == "__main__":
    main()
