"""Search of learning rates, cell by cell: a grid that grows until its best rate lies inside.

    python -m stage1.study.search TRIALS.csv ...

writes these trials to the table that `rates` reads, in place of those of the same presets.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from stage1 import gallery, store
from stage1.config import StudyConfig
from stage1.fields import names_where, require
from stage1.study import rates

RATES = tuple(float(f"{digit}e{power}") for power in range(-5, 0) for digit in (1, 3))
"""The rates a search may add."""


def beyond_edges(scores: Mapping[StudyConfig, float]) -> list[StudyConfig]:
    """Return configs to try next: the rate beyond, in every cell whose best rate is at an edge.

    A cell is all that configs share but the learning rate; `scores` are higher for better ones.
    """
    cells: dict[StudyConfig, dict[float, float]] = defaultdict(dict)
    for config, score in scores.items():
        assert config.learning_rate is not None
        cells[config.replace(learning_rate=None)][config.learning_rate] = score
    more = []
    for cell, found in cells.items():
        best = max(found, key=found.__getitem__)
        lower = [rate for rate in RATES if rate < min(found)]
        higher = [rate for rate in RATES if rate > max(found)]
        if best == min(found) and lower:
            more.append(cell.replace(learning_rate=lower[-1]))
        if best == max(found) and higher:
            more.append(cell.replace(learning_rate=higher[0]))
    return more


def replace_trials(paths: Sequence[Path]) -> None:
    """Write these trials to the table of learning rates, in place of those of the same presets.

    Raises ValueError for a trial that carries a fault: no rate is chosen on one.
    """
    searched = names_where(StudyConfig(), searched=True)
    kept = rates.with_defaults(pd.read_csv(rates.LEARNING_RATES), searched)
    trials = pd.concat([pd.read_csv(path) for path in paths])
    carried = set(trials.get("faults", [gallery.NONE])) - {gallery.NONE}
    require(not carried, "faults", sorted(carried), f"{gallery.NONE!r} in every trial")
    table = pd.concat([kept[~kept["preset"].isin(trials["preset"])], trials])[list(kept)]
    table = rates.with_defaults(table, searched).sort_values(list(kept), ignore_index=True)
    store.write_csv(rates.LEARNING_RATES, table)


if __name__ == "__main__":
    replace_trials([Path(argument) for argument in sys.argv[1:]])
