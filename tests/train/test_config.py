import pytest
import yaml

from vistoken.core.errors import UsageError
from vistoken.models.recipe import load_recipe, recipe_names
from vistoken.train.config import (
    apply_overrides,
    dump_config,
    load_config,
    parse_config,
    recipe_config,
)


def values(**stage):
    return {
        "recipe": "pico",
        "data": ["train.jsonl"],
        "output": "runs/a",
        "stages": [
            {"name": "joint", "steps": 3, "groups": {"spatial": {"train": "full"}}, **stage}
        ],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v | {"outptu": "x"}, "unknown field 'outptu'; did you mean 'output'"),
        (lambda v: {k: x for k, x in v.items() if k != "data"}, "field 'data' is missing"),
        (lambda v: v | {"seed": "one"}, "field 'seed'"),
        (lambda v: v | {"stages": []}, "field 'stages'"),
        (lambda v: v | {"stages": v["stages"] * 2}, "two stages have one name"),
    ],
)
def test_faults_are_named(change, message):
    with pytest.raises(UsageError, match=message):
        parse_config(change(values()))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"stpes": 3}, "did you mean 'steps'"),
        ({"steps": None}, "exactly one of steps and epochs"),
        ({"epochs": 1}, "exactly one of steps and epochs"),
        ({"groups": {"spatial": {}}}, "every part is frozen"),
        ({"groups": {"spatail": {}}}, "groups.spatail"),
        ({"groups": {"mechanisms": {"train": "lora"}}}, "mechanisms have no lora"),
        ({"groups": {"spatial": {"train": "full", "rate": 1}}}, "unknown field .*rate"),
        (
            {"objective": "name-alignment", "groups": {"language": {"train": "full"}}},
            "never runs the language model",
        ),
    ],
)
def test_faults_of_a_stage_are_named(stage, message):
    with pytest.raises(UsageError, match=message):
        parse_config(values(**stage))


def test_overrides_reach_stages_by_name_and_number():
    changed = apply_overrides(
        values(),
        ["seed=3", "stages.joint.groups.spatial.lr=5e-4", "stages.0.steps=7", "cache=null"],
    )
    config = parse_config(changed)
    assert (config.seed, config.stages[0].steps, config.cache) == (3, 7, None)
    assert config.stages[0].group("spatial").lr == 5e-4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "must look like"),
        ("stages.jiont.steps=1", "did you mean 'joint'"),
        ("seed.x=1", "'seed' is a value"),
    ],
)
def test_faulty_overrides_are_named(override, message):
    with pytest.raises(UsageError, match=message):
        apply_overrides(values() | {"seed": 1}, [override])


def test_resolved_configuration_reads_back(tmp_path):
    config = parse_config(values())
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
    assert load_config(path, ["seed=9"]).seed == 9


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        load_config(tmp_path / "gone.yaml")
    path = tmp_path / "run.yaml"
    path.write_text("a: [", encoding="utf-8")
    with pytest.raises(UsageError, match="not valid YAML"):
        load_config(path)
    path.write_text(yaml.safe_dump([1]), encoding="utf-8")
    with pytest.raises(UsageError, match="must be a mapping"):
        load_config(path)


@pytest.mark.parametrize("name", [n for n in recipe_names() if load_recipe(n).train])
def test_every_recipes_training_is_valid(name):
    config = recipe_config(name, load_recipe(name).train, {"data": ["a.jsonl"], "output": "o"})
    names = [stage.name for stage in config.stages]
    assert all(stage.needs in (None, *names) for stage in config.stages)


@pytest.mark.parametrize("name", [n for n in recipe_names() if load_recipe(n).train])
def test_the_released_mix_holds_conversations_over_the_limit(name):
    """Recipes for it shorten them, as released code does, rather than stop after some hours."""
    config = recipe_config(name, load_recipe(name).train, {"data": ["a.jsonl"], "output": "o"})
    mixed = [stage for stage in config.stages if stage.order == "modality-length"]
    assert [stage.name for stage in mixed if stage.too_long == "error"] == []


def test_recipe_without_training_is_refused():
    with pytest.raises(UsageError, match="has no train section"):
        recipe_config("pico", None, {"data": ["a.jsonl"], "output": "o"})


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("stages.tune.lr=1e-4", r"'stages\.tune\.lr'; .*'stages\.tune\.groups\.<part>\.lr'\?"),
        ("stages.0.lr=1e-4", r"'stages\.tune\.lr'; .*'stages\.tune\.groups\.<part>\.lr'\?"),
        ("stages.tune.r=8", r"'stages\.tune\.groups\.<part>\.lora\.r'\?"),
        ("stages.tune.groups.language.r=8", r"'stages\.tune\.groups\.language\.lora\.r'\?"),
        ("stages.tune.groups.language.lora.lr=1", r"'stages\.tune\.groups\.language\.lr'\?"),
        ("stages.tune.seed=3", r"did you mean 'seed'\?"),
        ("steps=5", r"unknown field 'steps'; did you mean 'stages\.tune\.steps'\?"),
        ("stages.tune.stpes=3", r"'stages\.tune\.stpes'; did you mean 'steps'"),
        ("stages.tune.steps=many", r"field 'stages\.tune\.steps': "),
    ],
)
def test_a_misplaced_override_is_told_its_place(tmp_path, override, advice):
    path = tmp_path / "run.yaml"
    groups = {"language": {"train": "lora"}}
    stage = {"name": "tune", "steps": 2, "groups": groups}
    path.write_text(yaml.safe_dump(values() | {"stages": [stage]}))
    with pytest.raises(UsageError, match=advice) as caught:
        load_config(path, [override])
    assert "stages.0" not in str(caught.value)
