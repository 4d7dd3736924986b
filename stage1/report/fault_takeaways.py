"""What a team lead should take away from the sweeps over the gallery, in words made of the records.

`climbs` says what the repairs of the original are worth one after another; `explains` which faults
alone explain the zero; `hides` which hide others and which flatter; `pads` what a pad token that is
the end token changes. No fault is named in advance.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import pandas as pd

from stage1 import store
from stage1.config import StudyConfig
from stage1.report import fault_records
from stage1.report.fault_records import FaultRecords
from stage1.scoring.comparison import Finding
from stage1.study.fault_sweep import CHANGED, TABLES

REAL = (Finding.DIFFERENT, Finding.SLIGHTLY_DIFFERENT)
FAILURE = StudyConfig().failure_f1


def harmful(effects: pd.DataFrame) -> list[str]:
    """Return the settings that are found to be below the first one, the lowest first."""
    return list(found(effects, effects["mean"] < 0).sort_values("mean").index)


def higher(effects: pd.DataFrame) -> list[str]:
    """Return the settings that are found to be above the first one, the highest first."""
    return list(found(effects, effects["mean"] > 0).sort_values("mean", ascending=False).index)


def found(effects: pd.DataFrame, where: pd.Series) -> pd.DataFrame:
    return effects[where & effects["finding"].isin(REAL)]


def code(name: str) -> str:
    return f"`{name}`"


def series(words: Sequence[str]) -> str:
    """Join words as `a`, `a and b`, or `a, b and c`; "none" for no word."""
    if len(words) < 2:
        return words[0] if words else "none"
    return f"{', '.join(words[:-1])} and {words[-1]}"


def valued(names: Iterable[str], value: Callable[[str], object]) -> str:
    return series([f"{code(name)} ({value(name)})" for name in names])


def changes(names: Iterable[str], effects: pd.DataFrame) -> str:
    """Return the names, each with the points of F1 that it adds or costs."""
    return valued(names, lambda name: f"{effects.loc[name, 'mean']:+.1f}")


def climbs() -> str:
    """Say what the faults of the original explain together, and what the recipe adds to that."""
    ladder = fault_records.load("ladder")
    steps = ladder.settings
    faults = [name for name in steps[1:] if name not in CHANGED]
    first = next((name for name in steps if not ladder.is_zero(name)), steps[-1])
    zeros = [code(name) for name in steps[steps.index(first) :] if ladder.is_zero(name)]
    again = f", and with {series(zeros)} repaired it is exactly 0 again" if zeros else ""
    repaired = ladder.f1(faults[-1])
    rest = valued_steps(ladder, [name for name in steps if name in CHANGED])
    still = "still a failure" if repaired.mean < FAILURE else "no longer a failure"
    return (
        f"**From the original to the recipe.** The original scores F1 {ladder.f1(steps[0])}. "
        f"Repairing {code(first)} leads to {ladder.f1(first)}{again}. With all {len(faults)} "
        f"faults repaired one after another F1 is {repaired}, {still}. What the recipe changes "
        f"besides does the rest: {rest}."
    )


def valued_steps(ladder: FaultRecords, names: Iterable[str]) -> str:
    return series([f"its {name} leads to {ladder.f1(name)}" for name in names])


def explains() -> str:
    """Say which faults, each alone on the sound recipe, give an F1 of 0, a failure, or a loss."""
    added = fault_records.load("added")
    effects = added.effects().dropna(subset="mean")  # no mean: all runs diverged
    worse, count = harmful(effects), len(effects)
    zeros = [name for name in worse if added.is_zero(name)]
    failures = [name for name in worse if name not in zeros and added.f1(name).mean < FAILURE]
    milder = [name for name in worse if name not in [*zeros, *failures]]
    return (
        f"**What explains the zero.** Each of {count} faults was added alone to the sound recipe, "
        f"which reaches F1 {added.f1(added.settings[0])}: exactly 0 follows from "
        f"{series([code(name) for name in zeros])}, an F1 below {FAILURE:g} from "
        f"{valued(failures, added.f1)}, a smaller loss from {changes(milder, effects)}, and no "
        f"loss that {seeds(added)} can show from the other {count - len(worse)}{lost(added)}."
    )


def hides() -> str:
    """Say what the original's faults hide, alone and without the slice, and what flatters."""
    removed, unsliced, added = map(fault_records.load, ("removed", "unsliced", "added"))
    rest, alone = unsliced.effects(), added.effects()
    whole = removed.settings[0]
    opening = [name for name in removed.settings[1:] if not removed.is_zero(name)]
    others = len(removed.settings) - 1 - len(opening)
    known = [name for name in unsliced.settings[1:] if name in harmful(alone)]
    hidden = [name for name in known if name not in higher(rest)]
    return (
        f"**What hides, and what flatters.** The original scores F1 {removed.f1(whole)}; taking "
        f"out {valued(opening, removed.f1)} ends the zero, and taking out any of the other "
        f"{others} changes nothing. Without the slice it scores {unsliced.f1(unsliced.settings[0])}"
        f": there, taking out {changes(higher(rest), rest)} helps, while "
        f"{series([code(name) for name in hidden])}, harmful alone, stay hidden behind the rest; "
        f"what flatters is {flatterers(alone, rest)}."
    )


def flatterers(alone: pd.DataFrame, rest: pd.DataFrame) -> str:
    """Name the faults that raise F1: added to the recipe, or where taking them out lowers it."""
    gains = alone["mean"].loc[higher(alone)].to_dict()
    for name in harmful(rest):
        gains.setdefault(name, -rest.loc[name, "mean"])
    return valued(gains, lambda name: f"{gains[name]:+.1f}")


def pads() -> str:
    """Say which faults do something else to a model whose pad token is its end token."""
    own, ends = fault_records.load("added"), fault_records.load("added_pad_is_end")
    both = [name for name in ends.settings[1:] if name in own.settings]
    effects = fault_records.compared({name: (ends.own(name), own.own(name)) for name in both})
    differ = [name for name in both if effects.loc[name, "finding"] in REAL]
    pairs = valued(differ, lambda name: f"{own.f1(name).mean:.1f} to {ends.f1(name).mean:.1f}")
    return (
        f"**Where the end token pads.** The recipe reaches F1 {ends.f1(ends.settings[0])} with it, "
        f"and of {len(both)} faults these differ, from the trained pad token's F1 to the end "
        f"token's: {pairs}."
    )


def seeds(records: FaultRecords) -> str:
    count = records.runs["seed"].nunique()
    return f"{count} seed{'s' if count != 1 else ''}"


def lost(records: FaultRecords) -> str:
    """Say how many runs of which settings diverged, or nothing."""
    table = records.table().set_index("setting")["diverged"]
    diverged = table[table > 0]
    return f"; runs diverged with {valued(diverged.index, diverged.get)}" if len(diverged) else ""


def sentences() -> list[str]:
    """Return the sentences, and at the end which tables are missing for others."""
    folder, said = store.records_folder() / "faults", []
    for sentence in (climbs, explains, hides, pads):
        with suppress(store.RecordError):
            said.append(sentence())
    missing = [code(f"{name}.csv") for name in TABLES if not (folder / f"{name}.csv").is_file()]
    if missing:
        said.append(
            f"Not measured yet, of `records/faults/`: {series(missing)}; `docs/original.md` lists "
            "the commands."
        )
    return said
