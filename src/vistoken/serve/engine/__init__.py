"""The embedded engine: requests join and leave a running batch between decode steps."""

from vistoken.serve.engine.embedded import EmbeddedEngine
from vistoken.serve.engine.limits import EngineLimits
from vistoken.serve.engine.protocol import (
    Conversation,
    Delta,
    Done,
    Engine,
    Event,
    Failed,
    Picture,
    Sampling,
    Ticket,
    Usage,
)

__all__ = [
    "Conversation",
    "Delta",
    "Done",
    "EmbeddedEngine",
    "Engine",
    "EngineLimits",
    "Event",
    "Failed",
    "Picture",
    "Sampling",
    "Ticket",
    "Usage",
]
