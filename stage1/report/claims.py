"""The claims of the analysis: for each a rule that turns the records into a verdict.

A rule takes the `Evidence` and returns a `Judgement`. Its docstring says what counts as confirmed,
so other records can turn any verdict that rests on a number.
"""

import pandas as pd

from stage1.report import claims_on_fixes, claims_on_loss
from stage1.report.evidence import Evidence
from stage1.report.verdicts import CLAIMS

RULES = (claims_on_loss, claims_on_fixes)
"""Their import registers the claims, in the order of the letters."""


def table(evidence: Evidence) -> pd.DataFrame:
    """Return one row per claim: letter, claim, verdicts, and the numbers behind the first.

    The first verdict is that of the analysis's own setting, without a warm-up. The second, for
    claims on the trained objectives, is that of the runs with one.
    """
    rows = []
    for letter, (statement, rule, with_warmup) in sorted(CLAIMS.items()):
        found = rule(evidence)
        warmed = str(rule(evidence.warmed)) if with_warmup else "–"
        rows.append((letter, statement, str(found), warmed, found.evidence))
    return pd.DataFrame(rows, columns=["", "claim", "verdict", "after a warm-up", "evidence"])
