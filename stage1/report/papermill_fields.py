"""Tell papermill which parameters a notebook takes: its own and every field of StudyConfig.

papermill knows the names that the parameters cell assigns and warns about all others. It loads this
module by its entry point in pyproject.toml. For a cell that mentions StudyConfig it then knows the
fields as well: no warning, and `papermill --help-notebook` lists them. A name that is neither still
warns, and stops the notebook's second cell.
"""

import dataclasses

from nbformat import NotebookNode
from papermill.engines import NBClientEngine
from papermill.models import Parameter
from papermill.translators import PythonTranslator, papermill_translators

from stage1.config import StudyConfig


class Translator(PythonTranslator):
    """papermill's own translator, with the fields of the config added to what it finds."""

    @classmethod
    def inspect(cls, parameters_cell: NotebookNode) -> list[Parameter]:
        found = super().inspect(parameters_cell)
        if StudyConfig.__name__ not in parameters_cell["source"]:
            return found
        known = {parameter.name for parameter in found}
        fields = [field for field in dataclasses.fields(StudyConfig) if field.name not in known]
        return found + [
            Parameter(field.name, type_name(field.type), "None", "a field of StudyConfig")
            for field in fields
        ]


def type_name(kind: object) -> str:
    """Return `int` for a class, and an annotation such as `int | None` as it is written."""
    return kind.__name__ if isinstance(kind, type) else str(kind)


class Engine(NBClientEngine):
    """papermill's default engine, unchanged: engines are what papermill loads entry points for."""


papermill_translators.register("python", Translator)
