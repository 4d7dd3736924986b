"""The sentences on the sweeps over the gallery follow from the records, whatever these say."""

import made_up_faults
import pytest

from stage1.report import fault_takeaways


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE1_RECORDS", str(tmp_path))
    return tmp_path


def test_the_first_sentence_says_what_alone_explains_a_zero_a_failure_and_a_loss(folder):
    made_up_faults.write_all(folder)
    zero, failures, losses, rest = (
        fault_takeaways.explains().split("F1 90.0")[1].split(" from ")[1:]
    )
    assert zero.startswith("`slice_of_generated_ids`,")
    assert failures.startswith("`mask_of_ones` (20.0 [")
    assert "`gap_before_answer` (30.0" in failures and "`labels_on_padding` (40.0" in failures
    assert losses.startswith("`no_end_token` (-30.0) and `bfloat16_weights` (-20.0), and no loss")
    assert rest.startswith("the other 22; runs diverged with `xavier_start` (1)")


def test_another_fault_is_named_where_the_records_say_so(folder):
    alone = {"pad_is_end": 0.0, "oracle_norm": 96.0}
    made_up_faults.write(folder, "added", alone, default=90.0)
    sentence = fault_takeaways.explains()
    assert "exactly 0 follows from `pad_is_end`, an F1 below 50 from none" in sentence
    assert "slice_of_generated_ids" not in sentence and "oracle_norm" not in sentence
    made_up_faults.write(folder, "removed", {"pad_is_end": 30.0}, default=0.0)
    made_up_faults.write(folder, "unsliced", {}, default=5.0)
    sentence = fault_takeaways.hides()
    assert "taking out `pad_is_end` (30.0 [" in sentence
    assert "taking out none helps, while `pad_is_end`, harmful alone" in sentence
    assert "what flatters is `oracle_norm` (+6.0)" in sentence


def test_the_second_sentence_says_what_hides_and_what_flatters(folder):
    made_up_faults.write_all(folder)
    sentence = fault_takeaways.hides()
    assert "The original scores F1 0.0 [0.0, 0.0]" in sentence
    assert "taking out `slice_of_generated_ids` (2.0 [" in sentence and "other 15" in sentence
    assert "taking out `labels_on_padding` (+8.0) and `gap_before_answer` (+5.0) helps" in sentence
    assert "while `no_end_token` and `bfloat16_weights`, harmful alone, stay hidden" in sentence
    assert sentence.endswith("what flatters is `f1_on_sets` (+5.0).")


def test_a_fault_that_taking_out_lowers_f1_flatters(folder):
    made_up_faults.write(folder, "added", {}, default=90.0)
    made_up_faults.write(folder, "removed", {"slice_of_generated_ids": 20.0}, default=0.0)
    made_up_faults.write(folder, "unsliced", {"f1_on_sets": 14.0}, default=20.0)
    assert "what flatters is `f1_on_sets` (+6.0)." in fault_takeaways.hides()


def test_the_third_says_what_a_pad_token_that_ends_changes(folder):
    made_up_faults.write_all(folder)
    assert fault_takeaways.pads().endswith("end token's: `labels_on_padding` (40.0 to 5.0).")


def test_sentences_without_their_records_are_missing_and_their_tables_are_named(folder):
    made_up_faults.write(folder, "added", {}, default=90.0)
    explained, missing = fault_takeaways.sentences()
    assert "exactly 0 follows from none" in explained
    assert missing.startswith("Not measured yet")
    for name in ("ladder", "removed", "unsliced", "added_pad_is_end"):
        assert f"`{name}.csv`" in missing
    assert "`added.csv`" not in missing


def test_the_ladder_says_what_all_repairs_and_then_the_recipe_are_worth(folder):
    made_up_faults.write_all(folder)
    sentence = fault_takeaways.climbs()
    assert "The original scores F1 0.0 [0.0, 0.0]" in sentence
    assert "Repairing `slice_of_generated_ids` leads to" in sentence
    assert "With all 16 faults repaired" in sentence
    for step in ("learning rate", "start", "reconstruction warm-up"):
        assert f"its {step} leads to" in sentence
