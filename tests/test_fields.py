"""Fields with rules: every one has a group, and errors say what is allowed."""

import pytest

from stage1.config import StudyConfig
from stage1.fields import GROUPS, RANGES, Option, check_type, names_where, nearest, options

OPTIONS = options(StudyConfig)


def test_every_field_has_an_option_of_a_known_group_in_the_order_of_the_groups():
    assert list(OPTIONS) == list(StudyConfig().to_dict())
    groups = [option.group for option in OPTIONS.values()]
    assert set(groups) == set(GROUPS) and groups == sorted(groups, key=GROUPS.index)


def test_every_allowed_range_is_known_and_used():
    assert {option.allowed for option in OPTIONS.values()} == {None, *RANGES}


def test_a_field_that_changes_no_result_is_in_no_run_name():
    silent = names_where(StudyConfig, changes_results=False)
    assert silent and not set(silent) & set(names_where(StudyConfig, in_run_name=True))


def test_names_where_selects_fields_by_all_the_rules_given():
    assert names_where(StudyConfig, group="compression") == [
        "compressed_width", "weighting", "projection"
    ]  # fmt: skip
    searched = names_where(StudyConfig(), group="compression", searched=True)
    assert searched == ["compressed_width", "projection"]
    assert names_where(StudyConfig) == list(OPTIONS)
    assert names_where(StudyConfig, group="none such") == []


def test_an_option_rejects_a_rule_it_does_not_know():
    with pytest.raises(TypeError, match="recored"):
        Option("run", recored=True)


@pytest.mark.parametrize(
    "value, expected, hint",
    [
        ("false", bool, "True or False, capitalised"),
        ("1e-4", float, "1.0e-4, not 1e-4"),
        (0, bool, "expected bool"),
        (True, float, "expected float"),
    ],
)
def test_an_error_explains_the_common_mistakes_of_yaml_and_papermill(value, expected, hint):
    with pytest.raises(TypeError, match=hint) as raised:
        check_type("field", value, expected)
    assert f"field={value!r}" in str(raised.value)


@pytest.mark.parametrize(
    "value, expected", [(1, float), (1.5, float), (False, bool), (0, int), ("1", str)]
)
def test_fitting_types_are_accepted(value, expected):
    check_type("field", value, expected)


@pytest.mark.parametrize(
    "prefix, suggestion", [("option3", "option3_teacher_forced"), ("option2", None), ("", None)]
)
def test_an_unambiguous_prefix_is_enough_for_a_hint(prefix, suggestion):
    names = ["option2_prompt_ce", "option2_on_policy", "option3_teacher_forced"]
    assert nearest(prefix, names) == (f"; did you mean {suggestion!r}?" if suggestion else "")
