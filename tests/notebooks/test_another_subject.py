"""The whole report on a language model and a corpus that the project does not know.

Its pages are about them. What is said of the committed records stands in a part labelled so.
"""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import own_model
import pytest
from bs4 import BeautifulSoup

from stage1 import store, study
from stage1.config import load_preset
from stage1.report import evidence, pages, results, scope

SIZES = """
compressed_width: D/8
train_examples: 40
selection_examples: 20
test_examples: 20
batch_size: 8
epochs: 1
warmup_steps: 4
selection_every: 2
gradients_every: 2
device: cpu
"""
CHAINS = [
    ["02_train_adapter-distill-seed0", "03_generation_eval", "05_report"],
    ["00_explore", "01_data_and_pca", "04_loss_magnitude"],
]
"""Pages of the report, by what can run side by side; a step reads records of those before it."""
PAGES = [*CHAINS[0], *CHAINS[1], "index"]
OF_ANOTHER = re.compile(
    r"shipped|3\.3M|almanac|generated text|invented corpus|names that no training|grammar"
)
"""What is true of the project's own language model or corpus only."""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> Path:
    """Return the preset of a study of the local model and the local questions."""
    folder = tmp_path_factory.mktemp("own")
    model = own_model.write_model(folder / "colour-lm")
    questions = own_model.write_questions(folder / "colours.json")
    path = folder / "own.yaml"
    path.write_text(f"language_model: {model}\ndata: {questions}\n{SIZES}")
    return path


def step(preset: Path, page: Path) -> None:
    """Run a step of the report as the Snakefile does."""
    notebook = store.ROOT / "notebooks" / f"{page.stem.partition('-')[0]}.ipynb"
    command = [sys.executable, "-m", "stage1.report.notebooks", notebook, preset, page]
    if page.stem.startswith("02"):
        command += ["-p", "objective", "distill", "-p", "seed", "0"]
    done = subprocess.run(command, cwd=store.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-4_000:]


@pytest.fixture(scope="module")
def report(preset) -> Path:
    """Return the folder of the pages. Adapters whose page is not looked at train here."""
    config, folder = load_preset(str(preset)), preset.parent / "report"
    folder.mkdir()
    prepared = study.prepare(config)
    for run in results.planned(config):
        if run.objective != "distill":
            study.run(run, prepared)

    def run_chain(chain: list[str]) -> None:
        for name in chain:
            step(preset, folder / f"{name}.html")

    with ThreadPoolExecutor(len(CHAINS)) as side_by_side:
        list(side_by_side.map(run_chain, CHAINS))
    executed = store.run_folder(config) / "notebooks"
    pages.index(folder, sorted(executed.glob("*.ipynb")), preset.name)
    return folder


def read(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text("utf-8"), "html.parser")


def prose(page: Path) -> str:
    """Return what the page says of its own run: without code, config and committed records."""
    soup = read(page)
    for apart in soup.select("section.records, details, style, nav"):
        apart.decompose()
    return soup.main.get_text(" ", strip=True)


def records(page: Path) -> str:
    return " ".join(part.get_text(" ") for part in read(page).select("section.records"))


@pytest.mark.parametrize("name", PAGES)
def test_no_sentence_of_a_page_is_about_another_model_or_corpus(report, name):
    text = prose(report / f"{name}.html")
    found = OF_ANOTHER.search(text)
    assert not found, f"{name}: ...{text[max(0, found.start() - 150) : found.end() + 150]}..."


def test_no_f1_of_the_committed_records_stands_outside_their_part(report):
    warmed = evidence.load(load_preset("full")).warmed
    intervals = [str(warmed.f1(name)) for name in warmed.table["objective"]]
    pages_on_records = [report / f"{name}.html" for name in ("05_report", "index")]
    for page in pages_on_records:
        text = prose(page)
        assert not [f1 for f1 in intervals if f1 in text]
        assert str(warmed.f1(warmed.recommended)) in records(page), "shown in their part"


@pytest.mark.parametrize("name", ["04_loss_magnitude", "05_report", "index"])
def test_the_part_on_committed_records_says_of_what_they_are(report, name):
    labels = [
        label.get_text() for label in read(report / f"{name}.html").select(".records > .label")
    ]
    of = {scope.records_label(load_preset(name)) for name in ("full", "squad")}
    assert labels and set(labels) <= of and scope.records_label(load_preset("full")) in labels
    assert "Nothing below was measured on it" in records(report / f"{name}.html")


@pytest.mark.parametrize("name", ["05_report", "index"])
def test_the_conclusion_names_the_local_model_and_data(report, preset, name):
    config, text = load_preset(str(preset)), prose(report / f"{name}.html")
    assert f"language model {config.language_model} on data {config.data}" in text
    assert "This run names no winner" in text and "40 questions x 1" in text


def test_the_ceiling_is_that_of_the_local_model(report, preset):
    run = store.run_folder(load_preset(str(preset)))
    ceiling = store.read_json(run / "01_data_and_pca.json")["results"]["ceiling"]["f1"]
    assert f"reaches F1 {ceiling:.1f}" in prose(report / "01_data_and_pca.html")
    table = store.read_json(run / "03_generation_eval.json")["results"]["table"]
    assert {row["condition"]: row["f1"] for row in table}["embeddings"] > 90
