"""Pages: code folded, formulas without a script, nothing to load, links that lead somewhere, phone and paper."""

import base64
import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from stage1.report import formulas, pages

ROOT = Path(__file__).resolve().parents[2]
BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
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
]


def save(folder: Path, name: str, *cells) -> Path:
    path = folder / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


def rendered(folder: Path, *cells, name: str = "01_data_and_pca") -> BeautifulSoup:
    page = folder / f"{name}.html"
    pages.render(save(folder, name, *cells), page)
    return BeautifulSoup(page.read_text("utf-8"), "html.parser")


def display(**data) -> nbformat.NotebookNode:
    return new_output(
        "display_data", {name.replace("_", "/", 1): value for name, value in data.items()}
    )


@pytest.fixture
def course(tmp_path) -> nbformat.NotebookNode:
    """The cells of a notebook with one of everything."""
    bar = [
        new_output("stream", name="stderr", text=f"\rtest: {n}%|###| {n}/100") for n in (1, 50, 100)
    ]
    return [
        new_markdown_cell(
            "# 01 · The `data` & what it costs\n\n**Question.** How *much* is $x^2$?\n\nMore."
        ),
        new_code_cell("preset = 'quick'", metadata={"tags": ["parameters"]}),
        new_code_cell("preset = 'smoke'", metadata={"tags": ["injected-parameters"]}),
        new_code_cell("secret = 1 < 2  # a comment", outputs=[*bar, display(image_png=PNG)]),
        new_markdown_cell("*Left:* the first.\n\nNo caption."),
        new_code_cell(
            "wide",
            outputs=[display(text_html=f"<table><tr>{WIDE}</tr></table>", text_plain="wide")],
        ),
        new_code_cell("drawn", outputs=[new_output("display_data", {"image/svg+xml": SVG})]),
        new_code_cell("told", outputs=[display(text_markdown="So $$\\frac{a}{b}$$ it is.")]),
    ]


@pytest.fixture
def page(tmp_path, course) -> BeautifulSoup:
    return rendered(tmp_path, *course)


@pytest.fixture
def report(tmp_path) -> tuple[Path, list[Path]]:
    """A folder of pages and the executed notebooks they show, in an order that is not that of reading."""
    (tmp_path / "report").mkdir()
    executed = []
    for name in REPORT[::-1]:
        text = f"# {name[:2]} · About `{name}`\n\n**Question.** Why ${name[1]}^2$?\n\nNot this."
        executed.append(save(tmp_path, name, new_markdown_cell(text)))
        pages.render(executed[-1], tmp_path / "report" / f"{name}.html")
    return tmp_path / "report", executed


def test_code_is_folded_and_outputs_are_not(page):
    folded = page.select("details.code")
    assert [each.summary.get_text() for each in folded] == [
        "parameters",
        "parameters",
        *["code"] * 4,
    ]
    assert not any(each.has_attr("open") for each in folded)
    assert "secret = 1 < 2" in folded[2].get_text()
    assert folded[2].select_one("span.c1").get_text() == "# a comment"
    for each in folded:
        each.extract()
    left = page.get_text()
    assert "secret" not in left and "preset" not in left
    assert "test: 100%" in left and "wide0" in left and "it is." in left


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
    assert (
        base64.b64decode(drawing["src"].removeprefix("data:image/svg+xml;base64,")).decode() == SVG
    )


def test_formulas_of_cells_and_outputs_are_mathml(page):
    inline, block = page.find_all("math")
    assert inline["display"] == "inline" and inline.find("msup").get_text() == "x2"
    assert block["display"] == "block" and block.find("mfrac").get_text() == "ab"


@pytest.mark.parametrize(
    "output, shown",
    [
        ({"application/javascript": "alert(1)", "text/plain": "plain"}, "plain"),
        (
            {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "0%| |"},
            "0%| |",
        ),
        ({"text/latex": r"$\displaystyle a_1$"}, "a1"),
    ],
)
def test_outputs_in_several_forms_are_shown_in_one_that_needs_no_script(output, shown, tmp_path):
    page = rendered(tmp_path, new_code_cell("show", outputs=[new_output("display_data", output)]))
    assert page.select_one(".output").get_text().strip() == shown
    assert not page.find("script")


@pytest.mark.parametrize(
    "cell",
    [
        new_code_cell("x", outputs=[display(text_html="<script>alert(1)</script>")]),
        new_code_cell("x", outputs=[display(text_html="<p onclick='alert(1)'>x</p>")]),
        new_code_cell(
            "x", outputs=[display(text_html="<style>@import 'https://example.org/a.css';</style>")]
        ),
        new_code_cell(
            "x",
            outputs=[display(text_html="<p style='background: url(https://example.org/a)'>x</p>")],
        ),
        new_markdown_cell("![a picture](https://example.org/a.png)"),
        new_markdown_cell("![a picture](a.png)"),
    ],
)
def test_what_a_page_would_run_or_load_is_refused_with_the_notebooks_name(cell, tmp_path):
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
def test_dollars_that_are_no_formula_stay(text):
    shown = BeautifulSoup(formulas.to_html(text, "a.ipynb", {}), "html.parser")
    assert not shown.find("math")
    assert shown.get_text().count("$") == text.count("$") and "\\" not in shown.get_text()


@pytest.mark.parametrize(
    "text, formulas_in_it",
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
def test_formulas(text, formulas_in_it):
    shown = BeautifulSoup(formulas.to_html(text, "a.ipynb", {}), "html.parser")
    found = ["".join(each.get_text().split()) for each in shown.find_all("math")]
    assert found == formulas_in_it


def test_the_bars_of_a_norm_keep_the_height_of_the_line():
    assert formulas.mathml(r"\lVert x \rVert", "inline").count('<mo stretchy="false"') == 2
    assert formulas.mathml(r"\left\| x \right\|", "inline").count('stretchy="true"') == 2


@pytest.mark.parametrize(
    "formula", [r"\frac{a}", r"\nonsense x", "{a", "a}", "x_", r"\left( x", "a & b", r"\sqrt"]
)
def test_a_formula_that_cannot_be_converted_is_named_with_its_notebook(formula, tmp_path):
    with pytest.raises(ValueError) as error:
        rendered(tmp_path, new_markdown_cell(f"# A title\n\nText ${formula}$ text."))
    assert str(error.value).startswith("01_data_and_pca.ipynb: ") and repr(formula) in str(
        error.value
    )
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.parametrize(
    "name, current", [(REPORT[0], "01"), (REPORT[1], "02"), (REPORT[-1], "05"), ("other", "")]
)
def test_the_navigation_marks_the_step(name, current, tmp_path):
    top = rendered(tmp_path, new_markdown_cell("# A title"), name=name).header.nav
    assert [link["href"] for link in top.find_all("a")] == [
        target for _, target in pages.STEPS.values()
    ]
    assert [link.get_text().split()[0] for link in top.find_all("a")] == [
        "Index",
        "01",
        "02",
        "03",
        "04",
        "05",
    ]
    marked = [
        link.get_text().split()[0] for link in top.find_all("a", attrs={"aria-current": True})
    ]
    assert marked == ([current] if current else [])


def test_columns_of_numbers_are_aligned_with_their_heads(tmp_path):
    head = "<tr><th></th><th>f1</th><th>name</th></tr>"
    body = "<tr><th>a</th><td>72.9 ± 0.3</td><td>x</td></tr><tr><th>b</th><td>–</td><td>5</td></tr>"
    table = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
    page = rendered(tmp_path, new_code_cell("x", outputs=[display(text_html=table)]))
    assert [cell.get_text() for cell in page.select(".number")] == ["f1", "72.9 ± 0.3", "–"]


def test_the_index_lists_orders_and_links_exactly_the_pages(report):
    folder, executed = report
    pages.index(folder, executed, "smoke")
    index = BeautifulSoup((folder / "index.html").read_text("utf-8"), "html.parser")
    assert index.h1.get_text().startswith(pages.TITLE) and index.title.get_text() == pages.TITLE
    assert "smoke" in index.p.get_text()
    titles = [each.get_text().split(" · ")[0] for each in index.main.find_all("h3")]
    assert titles == ["05", "01", "02", "03", "04"]
    assert index.main.h2.get_text().startswith("Start here")
    assert "Why" in index.main.get_text() and "Not this" not in index.get_text()
    assert len(index.main.find_all("msup")) == 5
    links = [each["href"] for each in index.main.find_all("a") if not each["href"].startswith("#")]
    assert sorted(links) == sorted(f"{name}.html" for name in REPORT)
    assert all((folder / link).is_file() for link in links)


def test_the_index_shows_the_adapters_as_objective_by_seed(report):
    folder, executed = report
    pages.index(folder, executed, "smoke")
    adapters = BeautifulSoup((folder / "index.html").read_text("utf-8"), "html.parser").find(
        id="adapters"
    )
    rows = [
        [cell.get_text() for cell in row.find_all(["td", "th"])] for row in adapters.find_all("tr")
    ]
    assert rows == [
        ["objective", "seed 0", "seed 1"],
        ["distill", "open", "open"],
        ["as_found", "open", "–"],
    ]
    cells = adapters.find_all("tr")[1].find_all("a")
    assert [link["href"] for link in cells] == [
        f"02_train_adapter-distill-seed{seed}.html" for seed in (0, 1)
    ]


def test_the_index_of_a_part_links_to_nothing_else(report):
    folder, executed = report
    pages.index(folder, executed[-1:], "smoke")
    index = BeautifulSoup((folder / "index.html").read_text("utf-8"), "html.parser")
    assert {link["href"] for link in index.find_all("a") if link["href"][0] != "#"} == {
        "index.html",
        "01_data_and_pca.html",
    }


def test_an_index_whose_page_is_missing_is_refused(report):
    folder, executed = report
    (folder / "03_generation_eval.html").unlink()
    with pytest.raises(ValueError, match=r"03_generation_eval\.html: no such page"):
        pages.index(folder, executed, "smoke")
    assert not (folder / "index.html").exists()


def test_the_command_writes_the_index(report):
    folder, executed = report
    command = [sys.executable, "-m", "stage1.pages", "index", folder, "smoke", *executed]
    subprocess.run(command, cwd=ROOT, check=True)
    assert (folder / "index.html").is_file()


def test_phone_and_paper_have_rules_of_their_own(page):
    style = "".join(each.get_text() for each in page.find_all("style"))
    screen, paper = style.split("@media print")
    assert re.search(r"table \{[^}]*max-width: 100%; overflow-x: auto", screen)
    assert (
        re.search(r"img, svg \{[^}]*max-width: 100%", screen)
        and "@media (max-width: 40rem)" in screen
    )
    assert re.search(r"nav, [^}]*details:not\(\[open\]\)[^}]*display: none", paper)
    assert "break-inside: avoid" in paper and "a { color: #000; }" in paper


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_page_on_a_phone_without_scrolling_sideways(tmp_path, page):
    measure = "let shown = document.querySelector('iframe').contentDocument; document.body.dataset.heading = "
    measure += "shown.querySelector('h1').textContent; document.body.dataset.width = shown.documentElement.scrollWidth;"
    frame = f'<iframe style="width: 390px; height: 800px; border: 0" srcdoc="{html.escape(str(page))}"></iframe>'
    (tmp_path / "phone.html").write_text(f'<body onload="{measure}">{frame}</body>', "utf-8")
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
    ]
    command += [
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--dump-dom",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "phone.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    body = BeautifulSoup(shown, "html.parser").body
    assert body["data-heading"].startswith("01 · The data & what it costs")
    assert 300 < int(body["data-width"]) <= 390
