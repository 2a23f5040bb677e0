"""The decoder loop and the contract of the mechanisms that act in it."""

from vistoken.models.decoder.asym import project_kv
from vistoken.models.decoder.build import build_stack
from vistoken.models.decoder.cache import SparseCache
from vistoken.models.decoder.call_rows import row_positions, valid_rows
from vistoken.models.decoder.chunks import refuse_split_media
from vistoken.models.decoder.drop import drop_rows, restore_rows, shifted_labels
from vistoken.models.decoder.keys import KeyTable
from vistoken.models.decoder.loop import make_cache, run_decoder
from vistoken.models.decoder.mechanism import (
    BaseMechanism,
    Mechanism,
    MechanismContext,
    NoOp,
    PromptScorer,
)
from vistoken.models.decoder.merge import merge_plans
from vistoken.models.decoder.plan import (
    STOCK_LAYER,
    FfnChannels,
    Inject,
    LayerPlan,
    ReadyKV,
    Rotary,
    RowHeads,
    ScoreRequest,
)
from vistoken.models.decoder.restart import kept_positions, prompt_rows, refuse_pieces, restarted
from vistoken.models.decoder.stack import MechanismStack, aux_loss, check_generation
from vistoken.models.decoder.state import SequenceState

__all__ = [
    "STOCK_LAYER",
    "BaseMechanism",
    "FfnChannels",
    "Inject",
    "KeyTable",
    "LayerPlan",
    "Mechanism",
    "MechanismContext",
    "MechanismStack",
    "NoOp",
    "PromptScorer",
    "ReadyKV",
    "Rotary",
    "RowHeads",
    "ScoreRequest",
    "SequenceState",
    "SparseCache",
    "aux_loss",
    "build_stack",
    "check_generation",
    "drop_rows",
    "kept_positions",
    "make_cache",
    "merge_plans",
    "project_kv",
    "prompt_rows",
    "refuse_pieces",
    "refuse_split_media",
    "restarted",
    "restore_rows",
    "row_positions",
    "run_decoder",
    "shifted_labels",
    "valid_rows",
]
