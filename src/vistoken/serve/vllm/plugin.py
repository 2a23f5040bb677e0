"""What vLLM loads in each of its processes (entry-point group ``vllm.general_plugins``)."""

from __future__ import annotations

ARCHITECTURE = "VistokenForConditionalGeneration"


def register() -> None:
    """Make configuration, processor and model known; vLLM may call it more than once."""
    from vllm import ModelRegistry

    import vistoken.models  # noqa: F401 - registers with the Auto classes

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        # a string, so that the model's module is imported where it is needed only
        ModelRegistry.register_model(ARCHITECTURE, "vistoken.serve.vllm.model:VistokenForVllm")
