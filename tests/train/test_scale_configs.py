"""The accelerate configurations in the package are what accelerate reads."""

from importlib import resources

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from vistoken.models.recipe import recipe_names

FOLDER = resources.files("vistoken") / "recipes" / "accelerate"
TYPES = {
    "cpu": DistributedType.MULTI_CPU,
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
}


@pytest.mark.parametrize("name", TYPES)
def test_accelerate_reads_it(name, tmp_path) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    path = tmp_path / f"{name}.yaml"
    path.write_text(text)
    config = load_config_from_file(str(path))  # refuses unknown keys
    assert config.distributed_type == TYPES[name]
    if name.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
    if name == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2


def test_all_of_them_are_tested_and_none_is_a_recipe() -> None:
    files = {entry.name for entry in FOLDER.iterdir() if entry.name.endswith(".yaml")}
    assert files == {f"{name}.yaml" for name in TYPES}
    assert not set(TYPES) & set(recipe_names())
    for name in files:
        assert yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))["mixed_precision"]
