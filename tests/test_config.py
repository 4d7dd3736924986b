"""The config: its checks, its presets, and the parameters of notebooks."""

import ast
import importlib.util
import inspect
import math
import sys
from dataclasses import FrozenInstanceError, fields
from itertools import pairwise

import pytest

from stage1 import config
from stage1.config import StudyConfig, from_notebook, load_preset, presets
from stage1.fields import check_type, nearest


@pytest.fixture(scope="module")
def unchecked():
    """The config module as users run it: the tests' run-time type checker would be the first to refuse a wrong type."""
    spec = importlib.util.spec_from_file_location("unchecked_config", config.__file__)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_a_config_keeps_what_it_was_given():
    made = StudyConfig(train_examples=7, dtype="bfloat16")
    assert (made.train_examples, made.dtype) == (7, "bfloat16")
    assert StudyConfig(**made.to_dict()) == made


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        StudyConfig().seed = 1


def test_replace_leaves_the_original_and_the_other_fields_alone():
    before = StudyConfig(seed=3)
    after = before.replace(test_examples=5)
    assert (before.test_examples, after.test_examples, after.seed) == (
        StudyConfig().test_examples,
        5,
        3,
    )


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"max_prompt_tokens": "16"}, TypeError, ["max_prompt_tokens='16'", "str", "expected int"]),
        ({"train_examples": True}, TypeError, ["train_examples=True", "bool", "expected int"]),
        ({"train_examples": 100.0}, TypeError, ["train_examples=100.0", "float", "expected int"]),
        ({"seed": None}, TypeError, ["seed=None", "expected int"]),
        ({"data": 3}, TypeError, ["data=3", "expected str"]),
        ({"seed": -1}, ValueError, ["seed=-1", "zero or more"]),
        ({"train_examples": -5}, ValueError, ["train_examples=-5", "zero or more"]),
        ({"test_examples": 0}, ValueError, ["test_examples=0", "one or more"]),
        ({"eval_batch_size": 0}, ValueError, ["eval_batch_size=0", "one or more"]),
        ({"max_prompt_tokens": -160}, ValueError, ["max_prompt_tokens=-160", "one or more"]),
        (
            {"dtype": "bfloat61"},
            ValueError,
            ["dtype='bfloat61'", "'float32', 'bfloat16'", "did you mean 'bfloat16'"],
        ),
        ({"data_seed": -1}, ValueError, ["data_seed=-1", "zero or more"]),
        ({"seeds": 0}, ValueError, ["seeds=0", "one or more"]),
        ({"epochs": 0}, ValueError, ["epochs=0", "one or more"]),
        ({"batch_size": 0}, ValueError, ["batch_size=0", "one or more"]),
        ({"selection_every": -1}, ValueError, ["selection_every=-1", "zero or more"]),
        ({"checkpoint_every": -1}, ValueError, ["checkpoint_every=-1", "zero or more"]),
        ({"warmup": 1.1}, ValueError, ["warmup=1.1", "0 to 1"]),
        ({"warmup": -0.1}, ValueError, ["warmup=-0.1", "0 to 1"]),
        ({"gold_fraction": 1.5}, ValueError, ["gold_fraction=1.5", "0 to 1"]),
        ({"gold_fraction": math.nan}, ValueError, ["gold_fraction=nan", "0 to 1"]),
        ({"weight_decay": -0.1}, ValueError, ["weight_decay=-0.1", "zero or more"]),
        ({"temperature": -1.0}, ValueError, ["temperature=-1.0", "zero or more"]),
        ({"temperature": math.inf}, ValueError, ["temperature=inf", "zero or more"]),
        (
            {"reconstruction_weight": math.nan},
            ValueError,
            ["reconstruction_weight=nan", "zero or more"],
        ),
        ({"ce_weight": -2.0}, ValueError, ["ce_weight=-2.0", "zero or more"]),
        ({"learning_rate": 0.0}, ValueError, ["learning_rate=0.0", "a positive number, or None"]),
        ({"learning_rate": -1.0}, ValueError, ["learning_rate=-1.0", "a positive number, or None"]),
        (
            {"learning_rate": math.nan},
            ValueError,
            ["learning_rate=nan", "a positive number, or None"],
        ),
        (
            {"learning_rate": math.inf},
            ValueError,
            ["learning_rate=inf", "a positive number, or None"],
        ),
        (
            {"learning_rate": "1e-3"},
            TypeError,
            ["learning_rate='1e-3'", "str", "expected float", "1.0e-4, not 1e-4"],
        ),
        ({"learning_rate": True}, TypeError, ["learning_rate=True", "bool", "expected float"]),
        ({"objective": None}, TypeError, ["objective=None", "expected str"]),
        (
            {"initialisation": "pca"},
            ValueError,
            ["initialisation='pca'", "'random', 'pca_inverse'"],
        ),
        (
            {"output_scaling": "callibrated"},
            ValueError,
            ["output_scaling=", "did you mean 'calibrated'"],
        ),
        ({"device": 0}, ValueError, ["device=0", "'auto', 'cpu', 'cuda'"]),
        ({"prompt_template": "xyz"}, ValueError, ["prompt_template='xyz'", "'plain', 'chat'"]),
        ({"gradients_every": -1}, ValueError, ["gradients_every=-1", "zero or more"]),
        ({"equivalence_margin": -0.5}, ValueError, ["equivalence_margin=-0.5", "zero or more"]),
        ({"reconstruction_term": "fvv"}, ValueError, ["reconstruction_term='fvv'", "'mse', 'fvu'"]),
        (
            {"balancing": "uncertain"},
            ValueError,
            ["balancing='uncertain'", "did you mean 'uncertainty'"],
        ),
        ({"trian_examples": 5}, ValueError, ["'trian_examples'", "did you mean 'train_examples'"]),
    ],
)
def test_a_wrong_value_is_refused_by_name(unchecked, changes, error, words):
    with pytest.raises(error) as raised:
        unchecked.StudyConfig().replace(**changes)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"baseline_f1": 100.1}, "baseline_f1=100.1: expected above 0, at most 100"),
        ({"target_f1": 83.0}, "target_f1=83.0: expected above 0, at most 82"),
        ({"baseline_f1": 69.0}, "target_f1=70.0: expected above 0, at most 69"),
        ({"script_f1": 70.5}, "script_f1=70.5: expected above 0, at most 70"),
        ({"failure_f1": 66.0}, "failure_f1=66.0: expected above 0, at most 65"),
        ({"failure_f1": 0.0}, "failure_f1=0.0: expected above 0"),
        ({"target_f1": math.nan}, "target_f1=nan: expected above 0"),
    ],
)
def test_criteria_out_of_order_are_refused_by_name(unchecked, changes, words):
    with pytest.raises(ValueError, match=words):
        unchecked.StudyConfig(**changes)


def test_criteria_may_coincide(unchecked):
    made = unchecked.StudyConfig(baseline_f1=100.0, target_f1=100.0, script_f1=40, failure_f1=40)
    assert (made.target_f1, made.failure_f1) == (100, 40)


@pytest.mark.parametrize("rate", [None, 1.0e-3, 1])
def test_a_learning_rate_may_be_left_open(unchecked, rate):
    assert unchecked.StudyConfig(learning_rate=rate).learning_rate == rate


@pytest.mark.parametrize("size", [1, 64, "auto"])
def test_a_batch_size_is_a_number_or_left_to_the_memory(unchecked, size):
    assert unchecked.StudyConfig(batch_size=size).batch_size == size


@pytest.mark.parametrize("size", [None, 1, 64])
def test_the_size_of_a_pass_is_a_number_or_that_of_the_batch(unchecked, size):
    assert unchecked.StudyConfig(micro_batch_size=size).micro_batch_size == size


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"batch_size": 0}, ValueError, "batch_size=0: expected one or more"),
        ({"batch_size": -8}, ValueError, "batch_size=-8: expected one or more"),
        ({"batch_size": "many"}, TypeError, "batch_size='many' is a str: expected int or 'auto'"),
        ({"batch_size": "64"}, TypeError, "batch_size='64' is a str: expected int or 'auto'"),
        ({"batch_size": True}, TypeError, "batch_size=True is a bool: expected int or 'auto'"),
        ({"batch_size": None}, TypeError, "batch_size=None is a NoneType: expected int or 'auto'"),
        ({"batch_size": 8.0}, TypeError, "batch_size=8.0 is a float: expected int or 'auto'"),
        ({"micro_batch_size": 0}, ValueError, "micro_batch_size=0: expected one or more"),
        ({"micro_batch_size": -1}, ValueError, "micro_batch_size=-1: expected one or more"),
        ({"micro_batch_size": "auto"}, TypeError, "micro_batch_size='auto' is a str: expected int"),
        ({"micro_batch_size": True}, TypeError, "micro_batch_size=True is a bool: expected int"),
        ({"recomputed": 1.01}, ValueError, "recomputed=1.01: expected 0 to 1"),
        ({"recomputed": -0.1}, ValueError, "recomputed=-0.1: expected 0 to 1"),
        ({"recomputed": math.nan}, ValueError, "recomputed=nan: expected 0 to 1"),
        ({"recomputed": True}, TypeError, "recomputed=True is a bool: expected float"),
        ({"processes": 0}, ValueError, "processes=0: expected one or more"),
        (
            {"processes": 2, "device": "sharded"},
            ValueError,
            "processes=2: expected 1 where device='sharded'",
        ),
        (
            {"matmul": "fp9"},
            ValueError,
            "matmul='fp9': expected one of 'native', 'fp8'; did you mean 'fp8'?",
        ),
        ({"packed": 1}, TypeError, "packed=1 is a int: expected bool"),
        (
            {"compiled": "true"},
            TypeError,
            "compiled='true' is a str: expected bool (write True or False, capitalised)",
        ),
    ],
)
def test_what_the_engine_and_the_memory_cannot_take_is_refused_in_these_words(
    unchecked, changes, error, message
):
    with pytest.raises(error) as raised:
        unchecked.StudyConfig(**changes)
    assert str(raised.value) == message


def test_one_process_may_spread_the_model_and_several_may_not_share_one(unchecked):
    assert unchecked.StudyConfig(device="sharded", processes=1).device == "sharded"
    assert unchecked.StudyConfig(device="auto", processes=8).processes == 8


@pytest.mark.parametrize("share", [0, 0.0, 0.5, 1, 1.0])
def test_shares_lie_between_none_and_all(unchecked, share):
    made = unchecked.StudyConfig(warmup=share, gold_fraction=share, recomputed=share)
    assert (made.warmup, made.gold_fraction, made.recomputed) == (share, share, share)


def test_no_suggestion_is_made_where_nothing_is_near():
    with pytest.raises(ValueError) as raised:
        StudyConfig().replace(zzzzzz=1)
    assert "'zzzzzz'" in str(raised.value) and "did you mean" not in str(raised.value)


@pytest.mark.parametrize(
    "value, expected, hint",
    [
        ("false", bool, "True or False, capitalised"),
        ("1e-4", float, "1.0e-4"),
        (0, bool, "expected bool"),
    ],
)
def test_what_yaml_and_papermill_get_wrong_is_explained(value, expected, hint):
    with pytest.raises(TypeError, match=hint) as raised:
        check_type("field", value, expected)
    assert f"field={value!r}" in str(raised.value)


@pytest.mark.parametrize(
    "value, expected", [(1, float), (1.5, float), (False, bool), (0, int), ("1", str)]
)
def test_fitting_types_are_accepted(value, expected):
    check_type("field", value, expected)


def test_true_is_no_float():
    with pytest.raises(TypeError, match="field=True"):
        check_type("field", True, float)


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads_under_its_own_name(name):
    assert load_preset(name).preset == name


def test_presets_differ_from_one_another():
    values = [tuple(load_preset(name).replace(preset="").to_dict().values()) for name in presets()]
    assert len(set(values)) == len(values) >= 2


def test_an_unknown_preset_lists_those_there_are_and_the_nearest():
    with pytest.raises(ValueError) as raised:
        load_preset("smok")
    message = str(raised.value)
    assert "preset='smok'" in message and "did you mean 'smoke'" in message
    assert all(name in message for name in presets())


def test_a_preset_may_be_any_yaml_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 4\ndtype: bfloat16\n")
    loaded = load_preset(str(path))
    assert (loaded.preset, loaded.seed, loaded.dtype) == ("mine", 4, "bfloat16")


def test_an_empty_preset_has_the_defaults(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_preset(str(tmp_path / "empty.yaml")) == StudyConfig(preset="empty")


@pytest.mark.parametrize("text", ["- seed\n- 4\n", "seed\n", "seed: [4\n", "4: 4\n"])
def test_a_preset_that_is_no_mapping_of_fields_is_refused_with_its_path(tmp_path, text):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as raised:
        load_preset(str(path))
    assert "odd.yaml" in str(raised.value)


def test_a_misspelled_field_in_a_preset_is_refused(tmp_path):
    path = tmp_path / "typo.yaml"
    path.write_text("sed: 4\n")
    with pytest.raises(ValueError, match="'sed'; did you mean 'seed'"):
        load_preset(str(path))


def test_notebook_parameters_lie_on_top_of_the_preset():
    made = from_notebook({"preset": "smoke", "seed": 5})
    assert made == load_preset("smoke").replace(seed=5)


def test_none_takes_the_value_of_the_preset():
    assert from_notebook({"preset": "smoke", "train_examples": None}) == load_preset("smoke")


def test_a_misspelled_notebook_parameter_is_refused():
    with pytest.raises(ValueError, match="'trian_examples'; did you mean 'train_examples'"):
        from_notebook({"preset": "smoke", "trian_examples": None})


def test_only_plain_public_values_of_a_namespace_count_as_parameters():
    namespace = {
        "math": math,
        "helper": lambda: 0,
        "StudyConfig": StudyConfig,
        "_i": "x",
        "__name__": "y",
    }
    assert from_notebook(namespace | {"In": ["..."], "Out": {}, "preset": "smoke"}) == load_preset(
        "smoke"
    )


def test_a_notebook_may_have_parameters_of_its_own():
    assert from_notebook({"preset": "smoke", "pages": 3}, also=["pages"]) == load_preset("smoke")
    with pytest.raises(ValueError, match="'page'; did you mean 'pages'"):
        from_notebook({"preset": "smoke", "page": 3}, also=["pages"])


@pytest.mark.parametrize("preset", [None, 3, True])
def test_a_preset_that_is_no_name_is_refused(preset):
    with pytest.raises(TypeError, match="preset="):
        from_notebook({"preset": preset})


def test_every_field_is_documented():
    (studyconfig,) = [
        node
        for node in ast.parse(inspect.getsource(config)).body
        if isinstance(node, ast.ClassDef) and node.name == "StudyConfig"
    ]
    documented = {
        before.target.id
        for before, after in pairwise(studyconfig.body)
        if isinstance(before, ast.AnnAssign)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }
    assert {field.name for field in fields(StudyConfig)} == documented


@pytest.mark.parametrize(
    "begun, meant", [("option3", "option3_teacher_forced"), ("option2", None), ("", None)]
)
def test_the_beginning_of_one_name_is_enough_for_a_hint(begun, meant):
    names = ["option2_prompt_ce", "option2_on_policy", "option3_teacher_forced"]
    assert nearest(begun, names) == (f"; did you mean {meant!r}?" if meant else "")
