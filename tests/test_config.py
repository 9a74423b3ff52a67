import ast
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from unicoord_atlas.config import RunConfig
from unicoord_atlas.errors import ConfigError
from unicoord_atlas.jobs import cli
from unicoord_atlas.recipes import RECIPES


def test_default_toml_reads_back_to_the_defaults(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(RunConfig().to_toml(comments=True))
    assert RunConfig.load(path) == RunConfig()


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_recipe_survives_its_own_toml(tmp_path, recipe):
    path = tmp_path / "run.toml"
    config = RunConfig.load(None, [f"recipe={recipe}"])
    path.write_text(config.to_toml())
    assert RunConfig.load(path) == config


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_what_config_prints_of_a_recipe_is_that_recipe(tmp_path, recipe):
    printed = CliRunner().invoke(cli.app, ["config", "--recipe", recipe]).stdout
    path = tmp_path / "run.toml"
    path.write_text(printed)
    assert RunConfig.load(path) == RunConfig.of({"recipe": recipe})
    note, line, *_ = printed.splitlines()
    assert note.startswith("#") and "wins over the recipe" in note and "config --recipe" in note
    assert line.startswith(f'recipe = "{recipe}"')


def test_config_prints_the_default_recipe_or_asks_which():
    for words in (["--default"], ["--recipe", "default"]):
        assert CliRunner().invoke(cli.app, ["config", *words]).stdout == RunConfig().to_toml(comments=True)
    asked = CliRunner().invoke(cli.app, ["config"])
    assert "say --default, or --recipe NAME" in str(asked.exception)


def test_what_is_given_beats_the_recipe():
    config = RunConfig.load(None, ["recipe=paper", "loss.beta=0.5"])
    assert config.loss.beta == 0.5
    assert config.model.output_bias == "default"


@pytest.mark.parametrize(
    "override, words",
    [
        ("trane.epochs=3", ["trane", "train", "stream"]),
        ("train.epoch=3", ["train.epoch", "epochs", "batch_size"]),
        ("train.device=tpu", ["train.device", "tpu", "cpu", "cuda"]),
        ("train.batch_size=0", ["train.batch_size", "0"]),
        ("loss.beta=nan", ["loss.beta", "nan"]),
        ("recipe=best", ["recipe", "best", "paper"]),
        ("train.epochs", ["section.key=value"]),
        ("train=3", ["train"]),
        ("recipe.x=3", ["recipe"]),
    ],
)
def test_a_bad_setting_names_its_path_the_value_and_the_way_out(override, words):
    with pytest.raises(ConfigError) as raised:
        RunConfig.load(None, [override])
    assert "\n" not in str(raised.value)
    for word in words:
        assert word in str(raised.value)


def test_a_missing_or_broken_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        RunConfig.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = [")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        RunConfig.load(tmp_path / "bad.toml")


def test_heca_toml_is_valid():
    config = RunConfig.load(Path(__file__).parents[1] / "configs" / "heca.toml")
    assert config.data.max_cells == 50_000
    assert config.data.min_cells == 200


def test_the_ablation_sets_back_each_line_that_is_ours():
    """Those marked *, to what the recipe "paper" has."""
    program = (Path(__file__).parents[1] / "benchmarks" / "bench_ablation.py").read_text()
    (lines,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(program).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PAPER_LINES"
    )
    fields = {section: type(getattr(RunConfig(), section)).model_fields for section in RECIPES["paper"]}
    paper = {(section, key): value for section, keys in RECIPES["paper"].items() for key, value in keys.items()}
    ours = {(section, key) for section, key in paper if (fields[section][key].description or "").startswith("*")}
    # The rule is the same at 256 cells; the others are about rare classes and long runs, which the tasks do not have.
    left_out = {"train.learning_rate_rule", "train.early_stopping_patience", "data.min_cells"}
    assert {".".join(names) for names in ours} - set(lines) == left_out
    for section, key in (names for names in ours if ".".join(names) in lines):
        assert getattr(getattr(RunConfig.load(None, lines[f"{section}.{key}"]), section), key) == paper[section, key]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from([*RunConfig.model_fields, "x"]),
        _VALUES | st.dictionaries(st.sampled_from(["epochs", "beta", "genes"]), _VALUES),
    )
)
def test_any_content_is_a_config_or_a_config_error(given):
    try:
        config = RunConfig.of(given)
    except ConfigError:
        return
    assert tomllib.loads(config.to_toml()) is not None
