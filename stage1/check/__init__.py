"""Check a model, its data and a budget before anything is trained: OK, warning or stop per line."""

from collections.abc import Iterator

from stage1.check import lines
from stage1.check.findings import Level, Line, Preflight, PreflightError, StoppedError, stopping
from stage1.config import StudyConfig
from stage1.model import loading
from stage1.study.preparation import Study, prepare

__all__ = ["Level", "Line", "Preflight", "PreflightError", "preflight"]


def preflight(given: StudyConfig | Study, stop: bool = True, timing: bool = True) -> Preflight:
    """Check a config, or a study that is prepared already, and return the findings.

    Without `timing`, no training step is measured. Raises PreflightError if a line says stop,
    unless `stop` is False.
    """
    found = Preflight([])
    try:
        for line in checks(given, timing):
            found.lines.append(line)
            if stop and found.stops:
                break
    except StoppedError as error:
        found.lines.append(error.line)
    if stop and found.stops:
        raise PreflightError(f"the study would give no result (stop=False goes on):\n{found}")
    return found


def checks(given: StudyConfig | Study, timing: bool) -> Iterator[Line]:
    """Yield a line per check. Raises StoppedError where later checks lack what they need."""
    config = given if isinstance(given, StudyConfig) else given.config
    with stopping("language model"):
        lm = loading.load(given) if isinstance(given, StudyConfig) else given.lm
    yield lines.model(lm, config)
    yield lines.tokenizer(lm)
    with stopping("data"):
        study = prepare(given, lm) if isinstance(given, StudyConfig) else given
    yield lines.text(study)
    yield lines.questions(study)
    yield lines.prompts(study)
    yield lines.answers(study)
    yield lines.compression(study)
    yield lines.learning_rate(study)
    with stopping("task"):
        yield lines.task(study)
    if timing:
        with stopping("time"):
            yield from lines.time_and_memory(study)
