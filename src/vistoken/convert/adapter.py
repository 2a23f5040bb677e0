"""A release's LoRA adapter in this model's names.

Official adapters reach into the vision tower too, wherever the trainer wrapped its attention;
those tensors count like all others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from vistoken.convert.pickles import TensorStore
from vistoken.convert.release import normalise
from vistoken.convert.report import Row
from vistoken.core.errors import WeightsError

_MATRICES = ("lora_A", "lora_B")


@dataclass(frozen=True)
class AdapterPlan:
    """Where every tensor of an adapter goes.

    Args:
        config: PEFT's config for our module names.
        targets: The release's key -> our name of the LoRA tensor, without an adapter's name.
        rows: One table row per tensor.
    """

    config: LoraConfig
    targets: dict[str, str]
    rows: list[Row]

    def save(self, store: TensorStore, out: Path) -> None:
        """Write the adapter in PEFT's format, for our module names."""
        out.mkdir(parents=True, exist_ok=True)
        state = {
            f"base_model.model.{target}": store[key].contiguous()
            for key, target in self.targets.items()
        }
        save_file(state, out / "adapter_model.safetensors", metadata={"format": "pt"})
        self.config.save_pretrained(str(out))


def plan_adapter(
    store: TensorStore,
    settings: dict[str, Any],
    modules: Mapping[str, tuple[int, int]],
    where: Path,
) -> AdapterPlan:
    """Account for every tensor of an adapter.

    Args:
        store: The adapter's tensors.
        settings: Its ``adapter_config.json``.
        modules: Our linear modules by name, (outputs, inputs) of each.
        where: The release, for errors.

    Raises:
        WeightsError: An unknown, missing or misshapen tensor, or an adapter that is not plain LoRA.
    """
    refuse_unusual(settings, where)
    rank = settings["r"]
    by_short_name = {short: name for name in modules for short in [shorten(name)]}
    targets: dict[str, str] = {}
    rows: list[Row] = []
    problems: list[str] = []
    for key, tensor in store.items():
        file = store.files[key].name
        short, matrix = _split(key)
        module = by_short_name.get(short)
        if module is None or matrix not in _MATRICES:
            problems.append(f"{key} in {file} fits no module of the model")
            continue
        outputs, inputs = modules[module]
        needed = (rank, inputs) if matrix == "lora_A" else (outputs, rank)
        if tuple(tensor.shape) != needed:
            problems.append(f"{key} in {file} is {tuple(tensor.shape)} where {needed} is needed")
        targets[key] = f"{module}.{matrix}.weight"
        rows.append(Row(file, key, tuple(tensor.shape), "lora", targets[key]))
    problems += _missing(set(targets.values()), settings, modules, next(iter(store.files.values())))
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise WeightsError(
            f"the LoRA adapter of {where} does not fit its language model and vision tower: "
            f"{'; '.join(problems[:5])}{more}; check --base and --vision-tower"
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=settings["lora_alpha"],
        lora_dropout=settings.get("lora_dropout", 0.0),
        use_rslora=bool(settings.get("use_rslora", False)),
        target_modules=sorted({target.rpartition(".lora_")[0] for target in targets.values()}),
    )
    return AdapterPlan(config, targets, rows)


def lora_deltas(plan: AdapterPlan, store: TensorStore) -> dict[str, Tensor]:
    """What LoRA adds to each weight, in float32: our weight's name -> (outputs, inputs)."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, target in plan.targets.items():
        module, _, matrix = target.removesuffix(".weight").rpartition(".")
        pairs.setdefault(module, {})[matrix] = store[key].float()
    root = plan.config.r**0.5 if plan.config.use_rslora else plan.config.r
    scale = plan.config.lora_alpha / root
    return {f"{m}.weight": scale * (p["lora_B"] @ p["lora_A"]) for m, p in pairs.items()}


def shorten(name: str) -> str:
    """A module's name without the wrappers in which official and our names differ."""
    name = name.removeprefix("model.")
    if name.startswith("language_model."):
        return name.removeprefix("language_model.")
    while name.startswith("vision_tower."):
        name = name.removeprefix("vision_tower.")
    return "vision_tower." + name.removeprefix("vision_model.") if "encoder." in name else name


def _split(key: str) -> tuple[str, str]:
    name = normalise(key).removesuffix(".weight").removesuffix(".default")
    module, _, matrix = name.rpartition(".")
    return shorten(module), matrix


def _missing(
    found: Collection[str],
    settings: dict[str, Any],
    modules: Mapping[str, tuple[int, int]],
    file: Path,
) -> list[str]:
    """LoRA tensors that the adapter's own target modules call for, in every part it touches."""
    leaves = settings["target_modules"]
    if not isinstance(leaves, list):
        leaves = []  # a pattern; then the pairs alone are checked
    touched = {_part(name) for name in found}
    wanted = {
        f"{module}.{matrix}.weight"
        for module in modules
        if module.rpartition(".")[2] in leaves and _part(module) in touched
        for matrix in _MATRICES
    }
    wanted |= {
        f"{name.rpartition('.lora_')[0]}.{matrix}.weight" for name in found for matrix in _MATRICES
    }
    return [f"{name} is missing from {file.name}" for name in sorted(wanted.difference(found))]


def _part(name: str) -> str:
    return ".".join(name.split(".")[:2])


def refuse_unusual(settings: dict[str, Any], where: Path) -> None:
    """Raise WeightsError for an adapter that is more than plain LoRA."""
    path = where / "adapter_config.json"
    for name in ("r", "lora_alpha", "target_modules"):
        if name not in settings:
            raise WeightsError(f"{path} lacks {name!r}; fetch it again")
    if settings.get("peft_type", "LORA") != "LORA":
        raise WeightsError(f"{path}: only LoRA adapters can be converted")
    for name, plain in (("bias", "none"), ("use_dora", False), ("fan_in_fan_out", False)):
        if settings.get(name, plain) not in (plain, None):
            raise WeightsError(f"{path}: {name} {settings[name]!r} cannot be converted")
    for name in ("rank_pattern", "alpha_pattern", "modules_to_save"):
        if settings.get(name):
            raise WeightsError(f"{path}: {name} cannot be converted; merge the adapter first")
