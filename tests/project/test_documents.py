"""README and docs show what the records say; their links and commands exist."""

import dataclasses
import importlib.util
import re
import shutil

import nbformat
import pandas as pd
import pytest

from stage1 import names, store
from stage1.config import StudyConfig, load_preset
from stage1.model.loading import SHIPPED
from stage1.pretrain import model_card
from stage1.report import documents, evidence
from stage1.scoring.tables import markdown_table
from stage1.store import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OF_NOTEBOOKS = {"fractions", "questions", "fault", "context", "question", "condition", "ratio"}
"""Parameters of notebooks that are no fields of the config."""


@pytest.fixture(scope="module")
def full() -> evidence.Evidence:
    """Return the records of the analysis's budget."""
    return evidence.load(load_preset("full"))


def flat(text: str) -> str:
    return " ".join(text.split())


def check_shown(page: str, *parts: str | pd.DataFrame) -> None:
    """Check that a page contains these sentences and tables, whatever its line breaks."""
    text = flat((ROOT / page).read_text())
    for part in parts:
        expected = part if isinstance(part, str) else markdown_table(part)
        assert flat(expected) in text, f"{page} lacks:\n{expected}"


def benchmark(name: str, **options) -> pd.DataFrame:
    return pd.read_csv(ROOT / f"benchmarks/results/{name}.csv", **options)


# ---------------------------------------------------------------- README and analysis


@pytest.mark.parametrize("page", documents.PAGES)
def test_the_blocks_of_a_page_are_those_the_records_give(page):
    text = (ROOT / page).read_text()
    assert documents.BLOCK.findall(text)
    assert documents.written(text, documents.load()) == text, "python -m stage1.report.documents"


def test_every_block_has_a_place():
    found = [documents.BLOCK.findall((ROOT / page).read_text()) for page in documents.PAGES]
    assert sorted(name for names in found for _, name, _ in names) == sorted(documents.BLOCKS)


def test_the_map_has_every_package():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for path in ROOT.glob("stage1/*/__init__.py"):
        assert f"    stage1/{path.parent.name}/ " in text


def test_the_headline_follows_from_the_committed_scores_of_every_answer(full):
    """The headline table again, computed from the scores of the answers without the package."""
    full = full.warmed
    scores = pd.read_parquet(ROOT / "records/full/runs_warmup.parquet")
    start, scaling = full.adapter
    chosen = scores[(scores["initialisation"] == start) & (scores["output_scaling"] == scaling)]
    seeds = chosen.groupby(["objective", "seed"], observed=True)["f1"].mean().unstack()
    table = full.table.set_index("objective")
    for objective, row in seeds.iterrows():
        assert table.loc[objective, "f1"] == pytest.approx(row.mean(), abs=1e-3)
        assert table.loc[objective, "f1_sd"] == pytest.approx(row.std(), abs=1e-3)
        assert table.loc[objective, "f1_low"] < row.mean() < table.loc[objective, "f1_high"]
    untrained = pd.read_csv(ROOT / "records/full/untrained.csv", index_col="condition")["f1"]
    floor = untrained[["question_only", "shuffled_context"]].max()
    expected = 100 * (table["f1"] - floor) / (untrained["embeddings"] - floor)
    assert table["retention"].to_dict() == pytest.approx(expected.to_dict())


def test_the_weight_of_the_reconstruction_term_has_the_effect_that_the_analysis_page_states(full):
    keys = ["objective", "initialisation", "output_scaling", "term"]
    share = full.step_shares.set_index(keys)["step_share"]
    assert share["option3_teacher_forced", "pca_inverse", "calibrated", "reconstruction"] < 0.01
    random = full.weight_table[full.weight_table["initialisation"] == "random"]
    assert random.loc[random["reconstruction_weight"] <= 1, "f1"].max() < 4
    assert random.loc[random["reconstruction_weight"] >= 1_000, "f1"].min() > 18


def test_the_gap_and_the_labels_of_padding_each_lower_f1():
    f1 = benchmark("as_found_padding", index_col="objective")["f1"]
    assert f1["as_found"] + 20 < min(f1["no_labels_on_padding"], f1["no_gap"])
    assert max(f1["no_labels_on_padding"], f1["no_gap"]) + 20 < f1["no_padding"]


def test_the_figures_are_drawn_from_the_committed_records(full):
    drawn, full = pd.read_csv(ROOT / "figures/answer.csv"), full.warmed
    assert drawn["objective"].tolist() == full.table["objective"].tolist()
    for column in ("f1", "f1_low", "f1_high"):
        assert drawn[column].tolist() == pytest.approx(full.table[column].tolist(), rel=1e-4)
    for csv in (ROOT / "figures").glob("*.csv"):
        assert csv.with_suffix(".svg").exists() and csv.with_suffix(".png").exists()


# ---------------------------------------------------------------- objectives


def glossary() -> list[pd.DataFrame]:
    """Return objectives, loss terms and conditions as tables."""
    objectives = [
        (f"`{name}`", entry.label, "fix" if entry.is_fix else "", entry.sentence)
        for name, entry in names.OBJECTIVES.items()
    ]
    terms = [(f"`{name}`", entry.unit, entry.sentence) for name, entry in names.TERMS.items()]
    conditions = [(f"`{name}`", entry.sentence) for name, entry in names.CONDITIONS.items()]
    return [
        pd.DataFrame(objectives, columns=["name", "in prose", "fix", "what it is"]),
        pd.DataFrame(terms, columns=["term", "unit", "what it is"]),
        pd.DataFrame(conditions, columns=["name", "what the frozen model reads"]),
    ]


def test_the_objectives_page_lists_every_name():
    check_shown("docs/objectives.md", *glossary())


# ---------------------------------------------------------------- benchmarks


def training_step_tables() -> list[pd.DataFrame]:
    """Return the training step and the largest batches, rounded."""
    step, largest = benchmark("train_step"), benchmark("train_step_largest")
    step = step[["step", "batch", "passes", "examples_per_s", "peak_GB", "of_matmul_rate"]]
    step = step.astype({"passes": "Int64"})
    step = step.round({"examples_per_s": 1, "peak_GB": 1, "of_matmul_rate": 2}).astype(object)
    largest = largest.drop(columns="card_GB").round({"base_GB": 1, "GB_per_example": 2})
    counts = dict.fromkeys([name for name in largest.columns if name.startswith("largest")], int)
    return [step.where(step.notna(), "out of memory"), largest.astype(counts)]


def generation_table() -> pd.DataFrame:
    rates = ["examples_per_s", "times_one_at_a_time", "times_batch_32", "peak_GB"]
    return benchmark("generate")[["path", "batch", "questions", *rates]].round(1)


def speedup_sentences() -> str:
    step = benchmark("train_step").dropna(subset="examples_per_s")
    rate = step.set_index(["step", "batch"])["examples_per_s"]
    as_found = rate["as found"].iloc[-1]
    error = benchmark("train_step_agreement", index_col="path")["gradient_error"]
    return (
        f"At batch 64 a step is {rate['packed, compiled', 64] / as_found:.2f} times as fast as the "
        "analysed one at its largest batch that fits, and "
        f"{rate['packed, compiled, fp8', 64] / as_found:.2f} times with the decoder layers in fp8, "
        "which is off by default: the gradient's relative error against float32 is then "
        f"{error['packed, compiled, fp8']:.2f}, compared with {error['packed, compiled']:.3f} in "
        f"bfloat16 with packed rows and {error['padded rows']:.3f} with padded rows"
    )


def fp8_sentence() -> str:
    table = benchmark("fp8").dropna(subset="trained_under")
    f1 = table.set_index(["trained_under", "answered_by"])["f1"]
    return (
        f"{f1['fp8', 'fp8']:.1f} when trained and evaluated in fp8, against "
        f"{f1['native', 'native']:.1f} in native arithmetic"
    )


def agreement_sentence() -> str:
    table = benchmark("generate", index_col="path").loc[lambda t: t["compared"].notna()]
    same, gap = 100 * table["same_answers_as_plain"], table["largest_gap"].max()
    alone = "generate, one at a time"
    return (
        f"one prompt at a time agrees with plain batches of 32 on {same[alone]:.0f} % of "
        f"{table.loc[alone, 'compared']:.0f} answers of 20 tokens, the greedy decoder on "
        f"{same['greedy, nothing shared']:.0f} % and, with shared prefixes, on "
        f"{same['greedy, sharing']:.0f} % of {table.loc['greedy, sharing', 'compared']:.0f}. Where "
        f"answers differ, a plain pass separates the two tokens by {gap:.1f} nats at most"
    )


def option1_sentence() -> str:
    table = benchmark("option1", index_col=["path", "precision"])
    counts = table.loc["from counts"]
    return (
        "Three epochs' worth of tokens of 10,000 prompts train in "
        f"{counts.loc['tf32', 'seconds']:.1f} s in TF32. That is "
        f"{counts.loc['tf32', 'times_per_prompt']:.1f} times as fast as the same objective prompt "
        f"by prompt, or {counts.loc['float32', 'times_per_prompt']:.1f} times in float32, with "
        f"fvu within {100 * counts['fvu_difference'].abs().max():.1f} %"
    )


def test_the_benchmark_page_shows_the_results():
    scores = model_card.score_table(store.read_json(SHIPPED / "training.json"))
    check_shown("docs/benchmarks.md", scores, *training_step_tables(), generation_table())
    check_shown("docs/benchmarks.md", benchmark("language_model_size"), speedup_sentences())
    check_shown("docs/benchmarks.md", fp8_sentence(), agreement_sentence(), option1_sentence())


def test_the_model_card_is_the_one_its_records_give(tmp_path):
    for name in ("training.json", "training_curve.csv"):
        shutil.copy(SHIPPED / name, tmp_path)
    assert model_card.write_card(tmp_path).read_text() == (SHIPPED / "README.md").read_text()


# ---------------------------------------------------------------- links and commands


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_relative_links_point_to_files(path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        assert target.startswith("http") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
def test_commands_name_what_exists(path):
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = nbformat.reads(text, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    fields = {field.name for field in dataclasses.fields(StudyConfig)}
    for module in re.findall(r"python -m (stage1[\w.]*)", text):
        assert importlib.util.find_spec(module), module
    assert set(re.findall(r"(?:--vary| -p) (\w+)", text)) <= fields | OF_NOTEBOOKS
    for program in re.findall(r"(?:notebooks|benchmarks|tests|stage1|configs)/[\w/.-]+\w", text):
        assert (ROOT / program).exists(), program
    for target in re.findall(r"^ *make (\w+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
