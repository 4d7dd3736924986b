"""The page shows that a faulty run says so, and that it is refused wherever it must be."""

import pytest

from stage1 import gallery, study
from stage1.faults import current, switch
from stage1.report import fault_refusals, results


def test_a_faulty_run_says_so_in_its_folder_its_record_and_on_its_page():
    told = fault_refusals.says("pad_is_end").set_index("where")["what it says"]
    assert told["the name of its folder"].endswith("-faulty")
    assert told["its record"] == "faults: pad_is_end"
    assert gallery.FAULTS["pad_is_end"].sentence in told["its page, above all else"]


@pytest.mark.parametrize("faults", ["slice_of_generated_ids", "pad_is_end+f1_on_sets"])
def test_every_attempt_is_refused_with_the_faults_named_and_no_place_on_disk(faults):
    table = fault_refusals.refusals(faults)
    field = gallery.canonical(faults)
    assert len(table) == 4 and table["refusal"].str.contains(field, regex=False).all()
    kinds = table["refusal"].str.partition(":")[0].tolist()
    assert kinds == ["FaultError", "FaultError", "RecordError", "RecordError"]
    assert not table["refusal"].str.contains("/").any()
    assert current() == gallery.NONE


@pytest.mark.parametrize(
    "place, name",
    [(switch, "only_its_own"), (results, "check_faults"), (results, "table_at"),
     (study, "prepare")],
)  # fmt: skip
def test_a_page_of_a_package_that_lets_one_pass_fails(monkeypatch, place, name):
    monkeypatch.setattr(place, name, lambda *arguments: arguments[0])
    with pytest.raises(AssertionError, match="was not refused"):
        fault_refusals.refusals("pad_is_end")
