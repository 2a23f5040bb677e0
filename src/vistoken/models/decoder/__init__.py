"""The decoder loop and the contract of the mechanisms that act in it."""

from vistoken.models.decoder.build import build_stack
from vistoken.models.decoder.loop import run_decoder
from vistoken.models.decoder.mechanism import Mechanism, MechanismStack, NoOp
from vistoken.models.decoder.plan import LayerPlan, merge_plans
from vistoken.models.decoder.state import SequenceState

__all__ = [
    "LayerPlan",
    "Mechanism",
    "MechanismStack",
    "NoOp",
    "SequenceState",
    "build_stack",
    "merge_plans",
    "run_decoder",
]
