"""Labelled scenes composed from drawings, with questions whose answers are known."""

from vistoken.data.preview import preview_page
from vistoken.data.scenes.compose import Scene, SceneOptions, compose, is_held_out
from vistoken.data.scenes.make import make_scenes, rows_of
from vistoken.data.scenes.questions import KINDS, Question, ask

__all__ = [
    "KINDS",
    "Question",
    "Scene",
    "SceneOptions",
    "ask",
    "compose",
    "is_held_out",
    "make_scenes",
    "preview_page",
    "rows_of",
]
