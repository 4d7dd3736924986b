"""Pages: code folded, formulas without a script, nothing to load, links that lead somewhere."""

import base64
import html
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup, Tag
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from stage1.config import load_preset
from stage1.report import formulas, pages, scope
from stage1.store import ROOT

BROWSERS = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
BROWSER = next(filter(None, BROWSERS), None)
PNG = base64.b64encode(b"\x89PNG not a real picture").decode()
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle r="4"/></svg>'
WIDE = "".join(f"<td>{'wide' * 5}{column}</td>" for column in range(20))
REPORT = [
    "01_data_and_pca",
    "02_train_adapter-distill-seed0",
    "02_train_adapter-as_found-seed0",
    "02_train_adapter-distill-seed1",
    "03_generation_eval",
    "04_loss_magnitude",
    "05_report",
    "06_fault_gallery",
    "07_english",
]


def save(folder: Path, name: str, *cells) -> Path:
    path = folder / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


def read(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text("utf-8"), "html.parser")


def rendered(folder: Path, *cells, name: str = "01_data_and_pca") -> BeautifulSoup:
    page = folder / f"{name}.html"
    pages.render(save(folder, name, *cells), page)
    return read(page)


def shows(**data) -> nbformat.NotebookNode:
    """Return a code cell with one output, `text_html="<p>"` and the like."""
    forms = {name.replace("_", "/", 1): value for name, value in data.items()}
    return new_code_cell("show", outputs=[new_output("display_data", forms)])


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The page of a notebook with one of everything."""
    bar = "\rtest: {0}%|###| {0}/100"
    steps = [new_output("stream", name="stderr", text=bar.format(n)) for n in (1, 50, 100)]
    picture = shows(image_png=PNG)
    picture.update(source="secret = 1 < 2  # a comment", outputs=[*steps, *picture.outputs])
    question = "**Question.** How *much* is $x^2$?"
    cells = [
        new_markdown_cell(f"# 01 · The `data` & what it costs\n\n{question}\n\nMore."),
        new_code_cell("preset = 'quick'", metadata={"tags": ["parameters"]}),
        new_code_cell("preset = 'smoke'", metadata={"tags": ["injected-parameters"]}),
        picture,
        new_markdown_cell("*Left:* the first.\n\nNo caption."),
        shows(text_html=f"<table><tr>{WIDE}</tr></table>", text_plain="wide"),
        new_code_cell("drawn", outputs=[new_output("display_data", {"image/svg+xml": SVG})]),
        shows(text_markdown="So $$\\frac{a}{b}$$ it is."),
    ]
    folder = tmp_path_factory.mktemp("page")
    rendered(folder, *cells)
    return folder / "01_data_and_pca.html"


@pytest.fixture
def page(written) -> BeautifulSoup:
    return read(written)


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> list[Path]:
    """Executed notebooks with their pages beside them, not in reading order."""
    folder, paths = tmp_path_factory.mktemp("report"), []
    for name in REPORT[::-1]:
        text = f"# {name[:2]} · About `{name}`\n\n**Question.** Why ${name[1]}^2$?\n\nNot this."
        rendered(folder, new_markdown_cell(text), name=name)
        paths.append(folder / f"{name}.ipynb")
    return paths


@pytest.fixture
def folder(executed, tmp_path) -> Path:
    """A copy of the folder of pages, for one test."""
    return shutil.copytree(executed[0].parent, tmp_path / "report")


@pytest.fixture
def index(folder, executed) -> Callable[..., BeautifulSoup]:
    """Write the index of some of the notebooks and return it."""

    def write(chosen: list[Path] = executed) -> BeautifulSoup:
        pages.index(folder, chosen, "smoke")
        return read(folder / "index.html")

    return write


def test_code_is_folded_and_outputs_are_not(page):
    folded = page.select("details.code")
    summaries = [each.summary.get_text() for each in folded]
    assert summaries == ["defaults", "parameters"] + ["code"] * 4
    assert not any(each.has_attr("open") for each in folded)
    assert "secret = 1 < 2" in folded[2].get_text()
    assert folded[2].select_one("span.c1").get_text() == "# a comment"
    for each in folded:
        each.extract()
    left = page.get_text()
    assert "secret" not in left and "preset" not in left
    assert "test: 100%" in left and "wide0" in left and "it is." in left


def test_the_reports_own_page_shows_no_code(tmp_path):
    soup = rendered(
        tmp_path, new_code_cell("secret = 1"), shows(text_plain="seen"), name="05_report"
    )
    assert "secret" not in soup.main.get_text() and "seen" in soup.main.get_text()


def test_cells_on_committed_records_are_set_apart_with_one_label(tmp_path):
    tagged = [new_markdown_cell(text, metadata={"tags": ["records"]}) for text in "ABC"]
    soup = rendered(tmp_path, tagged[0], tagged[1], new_markdown_cell("own"), tagged[2])
    parts = soup.select("section.records")
    texts = [part.get_text(" ", strip=True) for part in parts]
    assert [text.split()[-2:] for text in texts] == [["A", "B"], ["seeds", "C"]]
    assert all(text.startswith("Committed records: language model shipped") for text in texts)
    assert [len(part.select(".label")) for part in parts] == [1, 1]


def test_records_of_the_english_model_have_a_label_of_their_own(tmp_path):
    tags = (["records"], ["records", "english"], ["records", "english"])
    cells = [new_markdown_cell("text", metadata={"tags": tag}) for tag in tags]
    labels = [label.get_text() for label in rendered(tmp_path, *cells).select(".records > .label")]
    assert labels == [scope.records_label(load_preset(name)) for name in ("full", "squad")]


def test_a_line_that_names_the_record_is_small(tmp_path):
    soup = rendered(tmp_path, new_markdown_cell("Record: `records/full/trials.csv`.\n\nMore."))
    assert soup.find("p", class_="source").get_text().startswith("Record:")
    assert len(soup.select(".source")) == 1


def test_a_progress_bar_is_one_line(page):
    (bar,) = page.select("pre.stream.progress")
    assert bar.get_text() == "test: 100%|###| 100/100"


def test_a_page_has_language_width_and_title(page):
    assert page.html["lang"] == "en"
    assert page.find("meta", attrs={"name": "viewport"})["content"].startswith("width=device-width")
    assert page.title.get_text() == "01 · The data & what it costs"


def test_a_page_runs_and_loads_nothing(page):
    assert not page.find(["script", "link", "iframe"])
    assert all(each["src"].startswith("data:") for each in page.find_all(src=True))
    style = "".join(each.get_text() for each in page.find_all("style"))
    assert "url(" not in style and "@import" not in style and len(style) < 10_000
    assert all("://" not in each["href"] for each in page.find_all("a"))


def test_images_are_embedded_and_described_by_their_captions(page):
    picture, drawing = page.find_all("img")
    assert picture["src"] == f"data:image/png;base64,{PNG}" and picture["alt"] == "Left: the first."
    data = drawing["src"].removeprefix("data:image/svg+xml;base64,")
    assert base64.b64decode(data).decode() == SVG


def test_formulas_of_cells_and_outputs_are_mathml(page):
    inline, block = page.find_all("math")
    assert inline["display"] == "inline" and inline.find("msup").get_text() == "x2"
    assert block["display"] == "block" and block.find("mfrac").get_text() == "ab"


WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.mark.parametrize(
    "forms, shown",
    [
        ({"application/javascript": "alert(1)", "text_plain": "plain"}, "plain"),
        ({WIDGET: {"model_id": "a"}, "text_plain": "0%| |"}, "0%| |"),
        ({"text_latex": r"$\displaystyle a_1$"}, "a1"),
    ],
)
def test_outputs_in_several_forms_are_shown_in_one_that_needs_no_script(forms, shown, tmp_path):
    page = rendered(tmp_path, shows(**forms))
    assert page.select_one(".output").get_text().strip() == shown
    assert not page.find("script")


@pytest.mark.parametrize(
    "cell",
    [
        shows(text_html="<script>alert(1)</script>"),
        shows(text_html="<p onclick='alert(1)'>x</p>"),
        shows(text_html="<style>@import 'https://example.org/a.css';</style>"),
        shows(text_html="<p style='background: url(https://example.org/a)'>x</p>"),
        new_markdown_cell("![a picture](https://example.org/a.png)"),
        new_markdown_cell("![a picture](a.png)"),
    ],
)
def test_an_output_that_runs_or_loads_is_refused_with_the_notebooks_name(cell, tmp_path):
    with pytest.raises(ValueError, match=r"^01_data_and_pca\.ipynb: "):
        rendered(tmp_path, cell)
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.parametrize(
    "text",
    [
        "it costs $5 or $10",
        "it costs $5 million, that is $ 5",
        r"it costs \$5 and \$6",
        "the code `$x$` and `$$`, then `$$`",
        "```\n$x$ and\n$$\ny\n$$\n```",
        "    $x$ and $y$",
        "from $5 `a` to 6$",
        "between $100 and 200$5",
    ],
)
def test_dollars_that_mark_no_formula_stay(text):
    shown = BeautifulSoup(formulas.to_html(text, "a.ipynb", {}), "html.parser")
    assert not shown.find("math")
    assert shown.get_text().count("$") == text.count("$") and "\\" not in shown.get_text()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("costs $5, $x$ and $6", ["x"]),
        ("*let $a_1$ be* and $b_1$,", ["a1", "b1"]),
        ("$$\na\n\n= b\n$$", ["a=b"]),
        ("text $$a$$ text $$b$$", ["a", "b"]),
        ("| head |\n| --- |\n| $a_1$ |", ["a1"]),
        ("- an item\n\n  $$a < b$$", ["a<b"]),
        (r"$\text{as\_found}$", ["as_found"]),
        (r"$\mathcal L$ and $\mathcal{L}$", ["ℒ", "ℒ"]),
        (r"$$\begin{aligned} a &= b \\ &= c \end{aligned}$$", ["a=b=c"]),
        (r"\begin{align*} a &= b \end{align*}", ["a=b"]),
    ],
)
def test_formulas_become_mathml(text, expected):
    shown = BeautifulSoup(formulas.to_html(text, "a.ipynb", {}), "html.parser")
    assert ["".join(each.get_text().split()) for each in shown.find_all("math")] == expected


def test_the_bars_of_a_norm_keep_the_height_of_the_line():
    assert formulas.mathml(r"\lVert x \rVert", "inline").count('<mo stretchy="false"') == 2
    assert formulas.mathml(r"\left\| x \right\|", "inline").count('stretchy="true"') == 2


@pytest.mark.parametrize(
    "formula", [r"\frac{a}", r"\nonsense x", "{a", "a}", "x_", r"\left( x", "a & b", r"\sqrt"]
)
def test_a_formula_that_cannot_be_converted_is_named_with_its_notebook(formula, tmp_path):
    message = rf"^01_data_and_pca\.ipynb: .*{re.escape(repr(formula))}"
    with pytest.raises(ValueError, match=message):
        rendered(tmp_path, new_markdown_cell(f"# A title\n\nText ${formula}$ text."))
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.parametrize(
    "name, current",
    [(REPORT[0], "01"), (REPORT[1], "02"), ("05_report", "05"), (REPORT[-2], "06"), ("other", "")],
)
def test_the_navigation_marks_the_step(name, current, tmp_path):
    links = rendered(tmp_path, new_markdown_cell("# A title"), name=name).header.nav.find_all("a")
    assert [link["href"] for link in links] == [target for _, target in pages.STEPS.values()]
    steps = [link.get_text().split()[0] for link in links]
    assert steps == ["Index", "00", "01", "02", "03", "04", "05", "06", "07"]
    marked = [
        step for step, link in zip(steps, links, strict=True) if link.has_attr("aria-current")
    ]
    assert marked == ([current] if current else [])


def test_columns_of_numbers_are_aligned_with_their_heads(tmp_path):
    head = "<tr><th></th><th>f1</th><th>name</th></tr>"
    body = "<tr><th>a</th><td>72.9 ± 0.3</td><td>x</td></tr><tr><th>b</th><td>–</td><td>5</td></tr>"
    table = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
    page = rendered(tmp_path, shows(text_html=table))
    assert [cell.get_text() for cell in page.select(".number")] == ["f1", "72.9 ± 0.3", "–"]


def targets(part: Tag) -> list[str]:
    """Return what the links of a page lead to, other places of the page aside."""
    return [link["href"] for link in part.find_all("a") if not link["href"].startswith("#")]


def test_the_index_lists_orders_and_links_exactly_the_pages(index, folder):
    page = index()
    assert page.h1.get_text().startswith(pages.TITLE) and page.title.get_text() == pages.TITLE
    assert "smoke" in page.p.get_text()
    titles = [each.get_text().split(" · ")[0] for each in page.main.find_all("h3")]
    assert titles == ["05", "01", "02", "03", "04", "06", "07"]
    assert page.main.h2.get_text().startswith("Read on")
    assert "Why" in page.main.get_text() and "Not this" not in page.get_text()
    assert len(page.main.find_all("msup")) == len(titles)
    assert sorted(targets(page.main)) == sorted(f"{name}.html" for name in REPORT)
    assert all((folder / link).is_file() for link in targets(page.main))


def test_the_index_opens_with_the_reports_summary(tmp_path):
    answer = new_output("display_data", {"text/markdown": "Prefer **this** one."})
    cells = [
        new_markdown_cell("# 05 · Report\n\n**Question.** Why?"),
        new_code_cell("a", outputs=[answer], metadata={"tags": ["summary"]}),
        new_code_cell("b", outputs=[new_output("display_data", {"text/markdown": "Not this."})]),
    ]
    rendered(tmp_path, *cells, name="05_report")
    pages.index(tmp_path, [tmp_path / "05_report.ipynb"], "smoke")
    text = read(tmp_path / "index.html").main.get_text(" ", strip=True)
    assert "Prefer this one." in text and "Not this" not in text
    assert text.index("Made on 20") < text.index("Prefer") < text.index("Read on")


def test_a_figure_of_the_summary_keeps_its_caption_as_alternative_text(tmp_path):
    tags = {"tags": ["summary"]}
    picture = shows(image_png=PNG)
    picture.metadata.update(tags)
    caption = new_markdown_cell("F1 of *every* one.\n\nRecord: `a.csv`.", metadata=tags)
    rendered(tmp_path, new_markdown_cell("# 05 · Report"), picture, caption, name="05_report")
    pages.index(tmp_path, [tmp_path / "05_report.ipynb"], "smoke")
    main = read(tmp_path / "index.html").main
    assert main.img["alt"] == "F1 of every one." and main.find(class_="source")


def test_the_index_shows_the_adapters_as_objective_by_seed(index):
    rows = index().find(id="adapters").find_all("tr")
    assert [[cell.get_text() for cell in row.find_all(["td", "th"])] for row in rows] == [
        ["objective", "seed 0", "seed 1"],
        ["distill", "open", "open"],
        ["as_found", "open", "–"],
    ]
    expected = [f"02_train_adapter-distill-seed{seed}.html" for seed in (0, 1)]
    assert targets(rows[1]) == expected


def test_the_index_of_a_part_links_to_nothing_else(index, executed):
    assert set(targets(index(executed[-1:]))) == {"index.html", "01_data_and_pca.html"}


def test_an_index_whose_page_is_missing_is_refused(index, folder):
    (folder / "03_generation_eval.html").unlink()
    with pytest.raises(ValueError, match=r"03_generation_eval\.html: no such page"):
        index()
    assert not (folder / "index.html").exists()


@pytest.mark.slow
def test_the_command_writes_the_index(folder, executed):
    command = [sys.executable, "-m", "stage1.report.pages", "index", folder, "smoke", *executed]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    assert (folder / "index.html").is_file()


def test_a_table_of_sentences_stacks_and_one_of_numbers_does_not(tmp_path):
    sentence = "A sentence of more than seventy characters, which no phone shows in one column."
    head = "<thead><tr><th>letter</th><th>what_it_says</th></tr></thead>"
    tables = [
        f"<table>{head}<tbody><tr><td>a</td><td>{x}</td></tr></tbody></table>"
        for x in (sentence, 1)
    ]
    words, numbers = rendered(tmp_path, *(shows(text_html=each) for each in tables)).find_all(
        "table"
    )
    assert "stack" in words["class"] and "stack" not in numbers.get("class", [])
    assert [cell["data-head"] for cell in words.find_all("td")] == ["letter", "what_it_says"]
    assert (
        len(numbers.thead.find_all("wbr")) == 2 and numbers.thead.get_text() == "letterwhat_it_says"
    )


def test_phone_and_paper_have_rules_of_their_own(page):
    style = "".join(each.get_text() for each in page.find_all("style"))
    screen, paper = style.split("@media print")
    assert re.search(r"table \{[^}]*max-width: 100%; overflow-x: auto", screen)
    assert re.search(r"img, svg \{[^}]*max-width: 100%", screen)
    assert "@media (max-width: 40rem)" in screen
    assert re.search(r"nav, [^}]*details:not\(\[open\]\)[^}]*display: none", paper)
    assert "break-inside: avoid" in paper and "a { color: #000; }" in paper


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_page_on_a_phone_without_scrolling_sideways(tmp_path, page):
    measure = """
        let shown = document.querySelector('iframe').contentDocument;
        document.body.dataset.heading = shown.querySelector('h1').textContent;
        document.body.dataset.width = shown.documentElement.scrollWidth;"""
    style, source = "width: 390px; height: 800px; border: 0", html.escape(str(page))
    frame = f'<iframe style="{style}" srcdoc="{source}"></iframe>'
    (tmp_path / "phone.html").write_text(f'<body onload="{measure}">{frame}</body>', "utf-8")
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --dump-dom"
    command = [BROWSER, *options.split(), "--disable-background-networking"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    command.append((tmp_path / "phone.html").as_uri())
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    body = BeautifulSoup(shown, "html.parser").body
    assert body["data-heading"].startswith("01 · The data & what it costs")
    assert 300 < int(body["data-width"]) <= 390
