"""Runs that carry faults: they say so, share passes where they can, and are no evidence."""

import sys

import pandas as pd
import pytest
import torch

import stage1.study
from stage1 import adapter as adapters
from stage1 import gallery, store, study
from stage1.config import StudyConfig, load_preset
from stage1.evaluation import conditions
from stage1.evaluation.together import evaluate_in_shared_batches
from stage1.faults import FaultError, current, switched_on
from stage1.faults.switch import REPLACEMENTS
from stage1.report import results
from stage1.study import runs, sweep, together

ALL = gallery.JOIN.join(gallery.FAULTS)
TRAINED = ["unit_rms_output", "xavier_start", "bfloat16_weights", "frozen_gains",
           "labels_on_prompt", "no_end_token", "slice_of_generated_ids"]  # fmt: skip
"""Faults of sharing adapters that change a training or an evaluation."""


@pytest.fixture(scope="module")
def config(tiny_config) -> StudyConfig:
    sizes = {"train_examples": 16, "selection_examples": 6, "test_examples": 12, "epochs": 2}
    return tiny_config.replace(**sizes, max_new_tokens=3, checkpoint_every=0, warmup_steps=3)


@pytest.fixture(autouse=True)
def runs_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path))
    return tmp_path


def globals_of_the_package() -> dict[tuple[str, str], int]:
    """Return the identity of every global name of every module of the package."""
    modules = [(n, m) for n, m in sys.modules.items() if n.split(".")[0] == "stage1"]
    return {(name, key): id(value) for name, m in modules for key, value in vars(m).items()}


# ---------------------------------------------------------------- the gallery and its switch


def test_every_fault_has_a_replacement_and_says_where_it_was_found_and_what_gives_it_away():
    for name, fault in gallery.FAULTS.items():
        assert REPLACEMENTS[name], name
        assert fault.sentence.endswith(".") and fault.found and fault.symptom
    assert len(gallery.FAULTS) >= 20


@pytest.mark.parametrize(
    "given, field",
    [
        ("none", "none"), ("", "none"), ([], "none"), (None, "none"),
        ("pad_is_end+no_end_token", "no_end_token+pad_is_end"),
        (["pad_is_end", "pad_is_end"], "pad_is_end"),
        (("oracle_norm",), "oracle_norm"),
    ],
)  # fmt: skip
def test_equal_sets_of_faults_are_equal_fields(given, field):
    assert gallery.canonical(given) == field
    assert gallery.canonical(field) == field


def test_an_unknown_fault_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"faults='pad_is_ed'.*did you mean 'pad_is_end'"):
        StudyConfig(faults="pad_is_ed")
    with pytest.raises(TypeError, match="faults="):
        gallery.canonical([3])


@pytest.mark.parametrize(
    "changes, words",
    [({"objective": "distill"}, "objective='distill'"), ({"packed": True}, "packed=True")],
)
def test_a_fault_that_needs_rows_is_refused_without_them(changes, words):
    with pytest.raises(ValueError, match=f"{words}.*labels_on_padding"):
        StudyConfig(faults="labels_on_padding").replace(**changes)


def test_a_switched_off_fault_leaves_nothing_behind_not_even_after_an_error():
    before = globals_of_the_package()
    with pytest.raises(KeyError), switched_on(ALL):
        assert conditions.generate.__module__ == "stage1.faults.generation"  # an import of it
        raise KeyError
    assert current() == gallery.NONE
    assert globals_of_the_package() == before


def test_a_block_of_the_same_faults_may_be_nested_and_of_others_may_not():
    with switched_on("pad_is_end"):
        with switched_on("pad_is_end"):
            assert current() == "pad_is_end"
        for other in (gallery.NONE, "no_end_token"):
            with pytest.raises(FaultError, match="pad_is_end"), switched_on(other):
                pass
    assert current() == gallery.NONE


def test_a_sound_study_is_not_prepared_while_a_fault_is_on(config):
    with switched_on("pad_is_end"), pytest.raises(FaultError):
        study.prepare(config)


def test_no_record_of_a_sound_run_is_written_while_a_fault_is_on(config, tmp_path):
    path, carrying = tmp_path / "record.json", config.replace(faults="pad_is_end")
    with switched_on("pad_is_end"):
        with pytest.raises(FaultError, match="faults='none'"):
            store.write_record(path, config, {})
        assert not path.exists()
        store.write_record(path, carrying, {})
    assert store.read_json(path)["config"]["faults"] == "pad_is_end"
    store.write_record(path, config, {})


# ---------------------------------------------------------------- what a faulty run says of itself


@pytest.fixture
def faulty(config):
    return config.replace(faults="slice_of_generated_ids")


def test_the_folder_the_record_and_the_page_of_a_run_say_what_it_carries(config, faulty):
    record = study.run(faulty)
    assert store.run_name(faulty).endswith("-faulty") and "-faulty" in str(record)
    assert not store.run_name(config).endswith("-faulty")
    assert store.read_json(record)["config"]["faults"] == "slice_of_generated_ids"
    page = results.config_table(faulty).data
    assert page.index("This run carries faults") < page.index("<details>")
    assert gallery.FAULTS["slice_of_generated_ids"].sentence in page
    assert "carries faults" not in results.config_table(config).data


def test_slicing_generated_ids_gives_empty_answers_and_an_f1_of_exactly_zero(faulty):
    test = store.read_json(study.run(faulty))["results"]["test"]
    assert (test["f1"], test["em"], test["empty"], test["tokens"]) == (0.0, 0.0, 1.0, 0.0)


def test_a_run_with_a_fault_is_not_taken_for_one_without(config, faulty, monkeypatch, runs_folder):
    monkeypatch.setenv("STAGE1_RECORDS", str(runs_folder))
    study.run(faulty)
    assert store.committed_adapter(faulty) and store.committed_adapter(config) is None
    sound, carrying = store.adapter_folder(config), store.adapter_folder(faulty)
    sound.parent.mkdir(parents=True)
    carrying.rename(sound)
    assert store.committed_adapter(config) is None
    with pytest.raises(ValueError, match=r"faults='none'.*'slice_of_generated_ids'"):
        adapters.load(sound, config, study.prepare(config).lm)


def test_a_report_refuses_a_record_with_a_fault(config, faulty, monkeypatch):
    study.run(faulty)
    sound = store.adapter_folder(config)
    sound.parent.mkdir(parents=True)
    store.adapter_folder(faulty).rename(sound)
    monkeypatch.setattr(results, "planned", lambda config: [config])
    with pytest.raises(store.RecordError, match=r"faults are 'slice_of_generated_ids'.*'none'"):
        results.adapter_records(config)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_evidence_refuses_a_table_with_a_faulty_run(tmp_path, monkeypatch, suffix):
    monkeypatch.setenv("STAGE1_RECORDS", str(tmp_path))
    (tmp_path / "full").mkdir()
    table = pd.DataFrame({"f1": [90.0, 0.0], "faults": ["none", "pad_is_end"]})
    path = tmp_path / "full" / f"runs.{suffix}"
    for rows, is_sound in ((table[:1], True), (table, False)):
        rows.to_csv(path, index=False) if suffix == "csv" else rows.to_parquet(path, index=False)
        if is_sound:
            assert len(results.committed("full", path.name)) == 1
        else:
            with pytest.raises(store.RecordError, match="pad_is_end"):
                results.committed("full", path.name)
            assert len(results.committed("full", path.name, may_be_faulty=True)) == 2


# ---------------------------------------------------------------- groups


def test_only_faults_that_can_share_passes_do(config):
    shared = [config.replace(faults="no_end_token", seed=seed) for seed in (0, 1)]
    alone = [config.replace(faults="dropout_in_training", seed=seed) for seed in (0, 1)]
    found = together.groups([*shared, config, *alone], 8)
    assert sorted(map(len, found)) == [1, 1, 1, 2]
    assert shared in found


def test_a_sweep_prepares_a_study_of_its_own_for_every_set_of_faults(config):
    sound, carrying = (
        sweep.shared(config.replace(faults=faults)) for faults in ("none", "begin_token_in_answer")
    )
    begin = sound.lm.tokenizer.bos_token_id
    assert all(answer[0] == begin for answer in carrying.encoded["train"].answers)
    assert not any(begin in answer for answer in sound.encoded["train"].answers)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_fault_does_the_same_to_adapters_that_share_passes(config, name):
    configs = [config.replace(faults=name, seed=seed) for seed in (0, 1)]
    prepared = study.prepare(configs[0])
    grouped, progress = together.train_group(prepared, configs)
    tested = together.test_group(prepared, configs, grouped)
    for i, own in enumerate(configs):
        alone, curve = runs.train_adapter(stage1.study.prepare(own), resumable=False)
        ends = curve.curve[-1], progress[i].curve[-1]
        rounded = name in ("bfloat16_weights", "frozen_gains")
        assert ends[0]["loss"] == pytest.approx(ends[1]["loss"], rel=1e-2 if rounded else 1e-5)
        assert ends[0]["cross_entropy_tokens"] == ends[1]["cross_entropy_tokens"]
        for one, other in zip(alone.parameters(), grouped[i].parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=2e-3 if rounded else 1e-5)
            if name == "bfloat16_weights":
                assert torch.equal(other, other.bfloat16().float())
        scored, _ = runs.test_adapter(stage1.study.prepare(own), grouped[i])
        assert scored["prediction"].tolist() == tested[i][0]["prediction"].tolist()


@pytest.mark.parametrize("name", ["slice_of_generated_ids", "f1_on_sets", "first_gold_only"])
def test_a_fault_of_evaluation_does_the_same_in_shared_batches(config, name):
    own = config.replace(faults=name)
    prepared = study.prepare(own)
    table, test = prepared.lm.embedding_table, prepared.encoded["test"]
    tables = torch.stack([table, table.flip(0)])
    with switched_on(name):
        shared = evaluate_in_shared_batches(prepared.lm, test, ["distill"] * 2, tables, own)
        alone = [conditions.evaluate(prepared.lm, test, "distill", t, own, "") for t in tables]
    for one, other in zip(shared, alone, strict=True):
        assert one["prediction"].tolist() == other["prediction"].tolist()
        assert one["f1"].tolist() == other["f1"].tolist()
        assert (one["empty"] == (name == "slice_of_generated_ids")).all()


# ---------------------------------------------------------------- the original


@pytest.mark.slow
def test_the_original_carries_the_faults_of_the_analysed_code_and_scores_exactly_zero(config):
    original = load_preset("original")
    assert len(gallery.names(original.faults)) >= 12
    assert original.learning_rate == 5.0e-4 and original.warmup == 0
    small = {n: getattr(config, n) for n in ("language_model", "compressed_width", "device")}
    sizes = ("train_examples", "selection_examples", "test_examples", "max_new_tokens")
    small |= {name: getattr(config, name) for name in sizes}
    record = store.read_json(study.run(original.replace(**small, epochs=1, batch_size=8)))
    test, selection = record["results"]["test"], record["results"]["selection"]
    assert (test["f1"], test["empty"], selection["f1"]) == (0.0, 1.0, 0.0)
    assert record["config"]["faults"] == original.faults
