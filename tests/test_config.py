"""The config: its checks, its presets, and the parameters of notebooks."""

import ast
import importlib.util
import inspect
import math
import sys
from dataclasses import FrozenInstanceError, fields
from itertools import pairwise
from typing import get_args

import pytest

from stage1 import config
from stage1.config import CRITERIA, StudyConfig, from_notebook, load_preset, presets

NAN, INF = math.nan, math.inf
RANGES = {
    "zero or more": {
        "seed", "data_seed", "threads", "train_examples", "selection_examples", "weight_decay",
        "reconstruction_weight", "ce_weight", "temperature", "selection_every", "gradients_every",
        "checkpoint_every", "equivalence_margin", "warmup_steps", "warmup_batch",
    },
    "one or more": {
        "seeds", "processes", "test_examples", "max_prompt_tokens", "max_answer_tokens",
        "compressed_width", "epochs", "batch_size", "micro_batch_size", "max_new_tokens",
        "eval_batch_size",
    },
    "0 to 1": {"recomputed", "warmup", "gold_fraction", "warmup_uniform"},
    "a positive number": {"max_grad_norm", "warmup_rate"},
    "a positive number, or None": {"learning_rate"},
}  # fmt: skip
OUTSIDE = {
    "zero or more": [-1, -0.1, NAN, INF],
    "one or more": [0, -8],
    "0 to 1": [-0.1, 1.01, NAN],
    "a positive number": [0, 0.0, -1.0, NAN, INF],
    "a positive number, or None": [0, 0.0, -1.0, NAN, INF],
}
RANGE_OF = {name: allowed for allowed, names in RANGES.items() for name in sorted(names)}
TYPES = {field.name: {field.type, *get_args(field.type)} for field in fields(StudyConfig)}
INTEGERS = {name for name, types in TYPES.items() if int in types}
FLOATS = {name for name, types in TYPES.items() if float in types}


@pytest.fixture(scope="module")
def unchecked():
    """The config module as users import it, without the tests' run-time type checks."""
    spec = importlib.util.spec_from_file_location("unchecked_config", config.__file__)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_a_config_keeps_the_values_it_was_given():
    made = StudyConfig(train_examples=7, dtype="bfloat16")
    assert (made.train_examples, made.dtype) == (7, "bfloat16")
    assert StudyConfig(**made.to_dict()) == made


@pytest.mark.parametrize(
    "given, D, K",
    [(24, 192, 24), (24, 256, 24), ("D/8", 192, 24), ("D/8", 4096, 512), ("D/8", 100, 12),
     ("D/64", 32, 1), ("D/2", 5, 2)],
)  # fmt: skip
def test_the_compressed_width_is_a_number_or_a_share_of_d(given, D, K):
    assert StudyConfig(compressed_width=given).width(D) == K


def test_arguments_are_read_as_yaml(tmp_path):
    pairs = [("warmup_rate", "1.0e-3"), ("compressed_width", "D/4"), ("learning_rate", "null")]
    made = config.from_arguments("quick", pairs)
    assert made == load_preset("quick").replace(warmup_rate=1.0e-3, compressed_width="D/4")


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        StudyConfig().seed = 1


def test_replace_leaves_the_original_and_the_other_fields_unchanged():
    before = StudyConfig(seed=3)
    assert before.replace(test_examples=5).to_dict() == before.to_dict() | {"test_examples": 5}
    assert before.test_examples == StudyConfig().test_examples


def test_every_number_has_a_range():
    assert {*RANGE_OF, *CRITERIA} == INTEGERS | FLOATS


@pytest.mark.parametrize("field, allowed", RANGE_OF.items())
def test_a_number_out_of_range_is_refused_by_name(unchecked, field, allowed):
    for value in OUTSIDE[allowed]:
        if isinstance(value, int) or field in FLOATS:
            with pytest.raises(ValueError) as raised:
                unchecked.StudyConfig().replace(**{field: value})
            assert str(raised.value) == f"{field}={value!r}: expected {allowed}"


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"max_prompt_tokens": "16"}, TypeError, ["max_prompt_tokens='16'", "str", "expected int"]),
        ({"train_examples": True}, TypeError, ["train_examples=True", "bool", "expected int"]),
        ({"train_examples": 100.0}, TypeError, ["train_examples=100.0", "float", "expected int"]),
        ({"seed": None}, TypeError, ["seed=None", "expected int"]),
        ({"data": 3}, TypeError, ["data=3", "expected str"]),
        ({"objective": None}, TypeError, ["objective=None", "expected str"]),
        ({"device": 0}, ValueError, ["device=0", "'auto', 'cpu', 'cuda', 'sharded'"]),
        ({"dtype": "bfloat61"}, ValueError, ["dtype='bfloat61'", "did you mean 'bfloat16'"]),
        ({"initialisation": "pca"}, ValueError, ["='pca'", "'random', 'pca_inverse'"]),
        ({"output_scaling": "callibrated"}, ValueError, ["did you mean 'calibrated'"]),
        ({"prompt_template": "xyz"}, ValueError, ["prompt_template='xyz'", "'plain', 'chat'"]),
        ({"reconstruction_term": "fvv"}, ValueError, ["='fvv'", "'mse', 'fvu'"]),
        ({"balancing": "uncertain"}, ValueError, ["did you mean 'uncertainty'"]),
        ({"padding_layout": "no_gaps"}, ValueError, ["did you mean 'no_gap'"]),
        ({"learning_rate": "1e-3"}, TypeError, ["'1e-3'", "expected float", "1.0e-4, not 1e-4"]),
        ({"learning_rate": True}, TypeError, ["learning_rate=True", "bool", "expected float"]),
        ({"trian_examples": 5}, ValueError, ["'trian_examples'", "did you mean 'train_examples'"]),
    ],
)
def test_a_wrong_value_is_refused_by_name(unchecked, changes, error, words):
    with pytest.raises(error) as raised:
        unchecked.StudyConfig().replace(**changes)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"batch_size": "many"}, TypeError, "batch_size='many' is a str: expected int or 'auto'"),
        ({"batch_size": "64"}, TypeError, "batch_size='64' is a str: expected int or 'auto'"),
        ({"batch_size": True}, TypeError, "batch_size=True is a bool: expected int or 'auto'"),
        ({"batch_size": None}, TypeError, "batch_size=None is a NoneType: expected int or 'auto'"),
        ({"batch_size": 8.0}, TypeError, "batch_size=8.0 is a float: expected int or 'auto'"),
        ({"micro_batch_size": "auto"}, TypeError, "micro_batch_size='auto' is a str: expected int"),
        ({"micro_batch_size": True}, TypeError, "micro_batch_size=True is a bool: expected int"),
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
def test_a_wrong_engine_setting_is_refused_in_these_words(unchecked, changes, error, message):
    with pytest.raises(error) as raised:
        unchecked.StudyConfig(**changes)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"baseline_f1": 100.1}, "baseline_f1=100.1: expected above 0, at most 100"),
        ({"target_f1": 83.0}, "target_f1=83.0: expected above 0, at most 82"),
        ({"baseline_f1": 69.0}, "target_f1=70.0: expected above 0, at most 69"),
        ({"script_f1": 70.5}, "script_f1=70.5: expected above 0, at most 70"),
        ({"failure_f1": 66.0}, "failure_f1=66.0: expected above 0, at most 65"),
        ({"failure_f1": 0.0}, "failure_f1=0.0: expected above 0"),
        ({"target_f1": NAN}, "target_f1=nan: expected above 0"),
    ],
)
def test_criteria_out_of_order_are_refused_by_name(unchecked, changes, words):
    with pytest.raises(ValueError, match=words):
        unchecked.StudyConfig(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": None},
        {"learning_rate": 1},
        {"learning_rate": 1.0e-3},
        {"max_grad_norm": 1.0e-12},
        {"batch_size": 1},
        {"batch_size": "auto"},
        {"micro_batch_size": None},
        {"micro_batch_size": 1},
        {"warmup": 0, "gold_fraction": 0.0, "recomputed": 0.0},
        {"warmup": 1, "gold_fraction": 1.0, "recomputed": 1.0},
        {"device": "sharded", "processes": 1},
        {"device": "auto", "processes": 8},
        {"baseline_f1": 100.0, "target_f1": 100.0, "script_f1": 40, "failure_f1": 40},
    ],
)
def test_allowed_extremes_are_accepted(unchecked, changes):
    assert unchecked.StudyConfig(**changes).to_dict().items() >= changes.items()


def test_no_name_is_suggested_where_none_is_near():
    with pytest.raises(ValueError) as raised:
        StudyConfig().replace(zzzzzz=1)
    assert "'zzzzzz'" in str(raised.value) and "did you mean" not in str(raised.value)


# ---------------------------------------------------------------- presets


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads_under_its_own_name(name):
    assert load_preset(name).preset == name


def test_presets_differ_from_one_another():
    values = [tuple(load_preset(name).replace(preset="").to_dict().values()) for name in presets()]
    assert len(set(values)) == len(values) >= 2


def test_an_unknown_preset_lists_the_known_ones_and_the_nearest():
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
    with pytest.raises(ValueError, match=r"odd\.yaml"):
        load_preset(str(path))


def test_a_preset_runs_no_code(tmp_path):
    path = tmp_path / "code.yaml"
    path.write_text(f"data: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'made'}]\n")
    with pytest.raises(ValueError, match=r"code\.yaml: not YAML"):
        load_preset(str(path))
    assert not (tmp_path / "made").exists()


def test_a_misspelled_field_in_a_preset_is_refused(tmp_path):
    path = tmp_path / "typo.yaml"
    path.write_text("sed: 4\n")
    with pytest.raises(ValueError, match="'sed'; did you mean 'seed'"):
        load_preset(str(path))


# ---------------------------------------------------------------- notebook parameters


def test_notebook_parameters_override_the_preset_unless_they_are_none():
    made = from_notebook({"preset": "smoke", "seed": 5, "train_examples": None})
    assert made == load_preset("smoke").replace(seed=5)


def test_a_misspelled_notebook_parameter_is_refused():
    with pytest.raises(ValueError, match="'trian_examples'; did you mean 'train_examples'"):
        from_notebook({"preset": "smoke", "trian_examples": None})


def test_only_plain_public_values_of_a_namespace_count_as_parameters():
    namespace = {"math": math, "helper": lambda: 0, "StudyConfig": StudyConfig}
    namespace |= {"_i": "x", "__name__": "y", "In": ["..."], "Out": {}, "preset": "smoke"}
    assert from_notebook(namespace) == load_preset("smoke")


def test_a_notebook_may_have_parameters_of_its_own():
    assert from_notebook({"preset": "smoke", "pages": 3}, also=["pages"]) == load_preset("smoke")
    with pytest.raises(ValueError, match="'page'; did you mean 'pages'"):
        from_notebook({"preset": "smoke", "page": 3}, also=["pages"])


@pytest.mark.parametrize("preset", [None, 3, True])
def test_a_preset_that_is_no_name_is_refused(preset):
    with pytest.raises(TypeError, match="preset="):
        from_notebook({"preset": preset})


def test_every_field_is_documented():
    (definition,) = [
        node
        for node in ast.parse(inspect.getsource(config)).body
        if isinstance(node, ast.ClassDef) and node.name == "StudyConfig"
    ]
    documented = {
        before.target.id
        for before, after in pairwise(definition.body)
        if isinstance(before, ast.AnnAssign)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }
    assert {field.name for field in fields(StudyConfig)} == documented
