"""What is said of other widths: orderings at every width, and no forecast that was not tested."""

from dataclasses import replace

import pytest
from test_english import AS_FOUND, OPTION3, PCA_INVERSE, evidence

from stage1.report import scaling

WARM, COLD = (OPTION3, *PCA_INVERSE, 5_000), (OPTION3, *PCA_INVERSE, 0)


def reader(D: int, warm: float, cold: float = 20.0):
    """Return a reader of this width whose recipe reaches these F1 with and without a warm-up."""
    e = evidence({(*WARM, 32): warm, (*COLD, 32): cold})

    def at_width(table):
        return table.assign(compressed_width=table["compressed_width"] * D // 256)

    shape = e.training["shape"] | {"width": D}
    parts = ("runs", "scores", "untrained", "trials")
    tables = {name: at_width(getattr(e, name)) for name in parts}
    return replace(e, training=e.training | {"shape": shape}, **tables)


def test_the_table_has_a_row_per_reader():
    table = scaling.table([reader(128, 20.0), reader(512, 40.0)]).set_index("D")
    assert list(table["K"]) == [16, 64] and list(table["V/K"]) == [512, 128]
    assert table.loc[512, "recipe"].startswith(("39.", "40."))
    assert table.loc[512, "retention"].startswith(("86.", "87.", "88."))


def test_an_ordering_holds_throughout_flips_or_is_not_shown_everywhere():
    same = scaling.orderings([reader(128, 30.0), reader(512, 40.0)]).set_index("pair")
    pair = "warm-up over none, PCA inverse"
    assert same.loc[pair, "at every width"] == "more"
    flipped = scaling.orderings([reader(128, 10.0), reader(512, 40.0)]).set_index("pair")
    assert flipped.loc[pair, "at every width"] == "flips"
    equal = scaling.orderings([reader(128, 20.0), reader(512, 40.0)]).set_index("pair")
    assert equal.loc[pair, "at every width"] == "not everywhere"


def test_a_line_in_log_odds_is_found_again_and_its_interval_grows_with_the_distance():
    widths = [64, 128, 256, 512]
    shares = [scaling.percent(0.5 * i + 0.01 * (-1) ** i) for i in range(4)]
    near, far = (scaling.predicted(widths, shares, D) for D in (1_024, 4_096))
    assert near.mean == pytest.approx(scaling.percent(2.0), abs=0.5)
    assert near.low < near.mean < near.high
    reach = [scaling.logit(x.high) - scaling.logit(x.low) for x in (near, far)]
    assert reach[1] > 1.2 * reach[0]
    with pytest.raises(ValueError, match="2 widths: expected three or more"):
        scaling.predicted(widths[:2], shares[:2], 512)


def test_no_forecast_is_made_before_one_has_been_tested():
    two = [reader(128, 20.0), reader(512, 30.0)]
    assert "no forecast for D = 4,096" in scaling.forecast(two)
    straight = [reader(64 * 2**i, 14.0 + 4 * i) for i in range(4)]
    assert "The line through all of them gives" in scaling.forecast(straight)
    broken = [*straight[:-1], reader(512, 44.0)]
    assert "does not hold: no forecast" in scaling.forecast(broken)


def test_pairs_that_were_not_run_are_left_out():
    e = reader(128, 30.0)
    runs = e.runs[e.runs["initialisation"] != AS_FOUND[0]]
    table = scaling.orderings([replace(e, runs=runs)]).set_index("pair")
    assert table.loc["warm-up over none, adapter as found", "at every width"] == "not measured"
    assert table.loc["warm-up over none, adapter as found", "D = 128"] == "–"
