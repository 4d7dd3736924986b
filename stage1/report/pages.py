"""Render executed notebooks as self-contained HTML pages, and write the index of a report.

    python -m stage1.report.pages index reports/quick quick runs/quick/notebooks/*.ipynb

No page runs a script or loads anything: style and images are embedded, formulas become MathML.
"""

import argparse
import re
from datetime import date
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from jinja2 import pass_context
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

from stage1 import store
from stage1.report import formulas, markup

TITLE = (
    "Stage 1: can a small adapter undo an 8x compression of a language model's input embeddings?"
)
START = "05_report"
STEPS = {
    "Index": ("", "index.html"),
    "00": ("explore", "00_explore.html"),
    "01": ("data", "01_data_and_pca.html"),
    "02": ("adapters", "index.html#adapters"),
    "03": ("answers", "03_generation_eval.html"),
    "04": ("loss", "04_loss_magnitude.html"),
    "05": ("report", f"{START}.html"),
    "06": ("faults", "06_fault_gallery.html"),
    "07": ("English", "07_english.html"),
}
"""The entries of the navigation: a step, a word for it, its page."""
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
"""The form in which an output is shown, the best first; none needs a script."""


class Exporter(HTMLExporter):
    """nbconvert with the template in `assets/page/`."""

    def __init__(self):
        super().__init__(template_name="page", extra_template_basedirs=[str(store.ASSETS)])
        self.exclude_input_prompt = self.exclude_output_prompt = True
        self.config.NbConvertBase.display_data_priority = MEDIA
        # one line per progress bar
        self.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)

    @pass_context
    def markdown2html(self, context, source: str) -> str:
        """Override the template filter of the same name."""
        attachments = context.get("cell", {}).get("attachments", {})
        return formulas.to_html(source, context["resources"]["notebook"], attachments)


def navigation_link(step: str, current: str = "") -> dict:
    word, target = STEPS[step]
    return {"step": step, "word": word, "target": target, "current": current}


def render(executed: Path, page: Path) -> None:
    """Write the executed notebook as a page: outputs shown, code folded, formulas as MathML.

    The report's page shows no code: it is for readers who want the answer.

    Raises ValueError with the notebook's name for a formula that cannot be converted and for an
    output that runs a script or loads a file.
    """
    links = [navigation_link(step) for step in STEPS]
    for link in links:
        if page.name.startswith(link["step"]):
            link["current"] = "page" if link["target"] == page.name else "true"
    write(nbformat.read(executed, as_version=4), page, executed.name, links)


def write(notebook: NotebookNode, page: Path, name: str, links: list[dict]) -> None:
    """Write a page with the navigation links; `name` is the notebook's in error messages."""
    title = re.sub(r"[`*$]", "", heading(notebook)) or page.stem
    describe_figures(notebook)
    shows_code = not page.name.startswith((START, "index"))  # those two are for leads
    resources = {"title": title, "navigation": links, "notebook": name, "shows_code": shows_code}
    html, _ = Exporter().from_notebook_node(notebook, resources)
    soup = BeautifulSoup(html, "html.parser")
    markup.check_self_contained(soup, name)
    markup.mark(soup)
    store.write_text(page, str(soup))


def heading(notebook: NotebookNode) -> str:
    """Return the notebook's first heading as Markdown, or ""."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    match = re.search(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", text, re.MULTILINE)
    return match[1] if match else ""


def question(notebook: NotebookNode) -> str:
    """Return the first paragraph of the first Markdown cell as Markdown, or ""."""
    first = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    body = re.sub(r"^#{1,6}[ \t].*$", "\n", first, flags=re.MULTILINE)
    return re.split(r"\n\s*\n", body.strip())[0].strip()


def describe_figures(notebook: NotebookNode) -> None:
    """Give each figure its caption, the paragraph below it, as alternative text."""
    for cell, below in zip(notebook.cells, notebook.cells[1:], strict=False):
        if cell.cell_type == "code" and below.cell_type == "markdown":
            caption = below.source.split("\n\n")[0]
            if not caption.startswith("#"):
                cell.metadata.setdefault("alt", " ".join(re.sub(r"[`*$]", "", caption).split()))


def index(folder: Path, executed: list[Path], preset: str) -> None:
    """Write `<folder>/index.html`, which links to the page of each executed notebook.

    Raises ValueError with the page that is missing.
    """
    pages = {"index.html"}
    for path in executed:
        page = f"{path.stem}.html"
        if not (folder / page).is_file():
            raise ValueError(f"{folder / page}: no such page; {path} has not been rendered")
        pages.add("index.html#adapters" if ADAPTER.fullmatch(path.stem) else page)
    links = [
        navigation_link(step, "page" if step == "Index" else "")
        for step, (_, target) in STEPS.items()
        if target in pages
    ]
    cells = [new_markdown_cell(f"# {TITLE}\n\n{about(preset)}"), *summary(executed)]
    cells.append(new_markdown_cell(contents(executed)))
    write(new_notebook(cells=cells), folder / "index.html", "index", links)


def about(preset: str) -> str:
    commit = store.git("rev-parse", "--short", "HEAD")
    made = f"Made on {date.today()}" + (f" from commit {commit}" if commit else "")
    return f"{made}, preset `{preset}`. Each page is one executed notebook."


def summary(executed: list[Path]) -> list[NotebookNode]:
    """Return the report's cells tagged `summary`, without code: what the index opens with."""
    report = [path for path in executed if path.stem == START]
    cells = [cell for path in report for cell in nbformat.read(path, as_version=4).cells]
    shown = [cell for cell in cells if "summary" in cell.metadata.get("tags", [])]
    for cell in shown:
        if cell.cell_type == "code":
            cell.source = ""
    return shown


def contents(executed: list[Path]) -> str:
    """Return the list of pages as Markdown: the report first, then the steps by name."""
    parts = []
    adapters = [path for path in executed if ADAPTER.fullmatch(path.stem)]
    if report := [path for path in executed if path.stem == START]:
        parts += ["## Read on", entry(report[0]), "## Step by step"]
    for path in sorted({*executed} - {*report, *adapters[1:]}, key=lambda path: path.stem):
        if path in adapters:
            first = [entry(path, link=False), adapter_table(adapters)]
            parts += ['<section id="adapters">', *first, "</section>"]
        else:
            parts.append(entry(path))
    return "\n\n".join(parts) + "\n"


def entry(executed: Path, link: bool = True) -> str:
    """Return the title and the question of a notebook."""
    notebook = nbformat.read(executed, as_version=4)
    title = heading(notebook) or executed.stem
    title = f"[{title}]({executed.stem}.html)" if link else title
    return f"### {title}\n\n{question(notebook)}"


def adapter_table(adapters: list[Path]) -> str:
    """Return links to the adapters' pages: objectives, in the order given, by seeds."""
    links: dict[str, dict[int, str]] = {}
    for path in adapters:
        match = ADAPTER.fullmatch(path.stem)
        assert match, path
        links.setdefault(match["objective"], {})[int(match["seed"])] = f"[open]({path.stem}.html)"
    seeds = sorted({seed for by_seed in links.values() for seed in by_seed})
    rows = [["objective", *(f"seed {seed}" for seed in seeds)], ["---"] * (1 + len(seeds))]
    for objective, by_seed in links.items():
        rows.append([f"`{objective}`", *(by_seed.get(seed, "–") for seed in seeds)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    first = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m stage1.report.pages", description=first)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("index", help="write the index of a report")
    command.add_argument("folder", type=Path, help="where the pages are")
    command.add_argument("preset")
    command.add_argument("executed", type=Path, nargs="+", help="the executed notebooks to list")
    arguments = parser.parse_args()
    index(arguments.folder, arguments.executed, arguments.preset)


if __name__ == "__main__":
    main()
