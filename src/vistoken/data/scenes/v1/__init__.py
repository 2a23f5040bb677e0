"""The data set vistoken-scenes, version 1."""

from vistoken.data.scenes.v1.make import full_size, make_set
from vistoken.data.scenes.v1.parts import PARTS
from vistoken.data.scenes.v1.splits import SET_NAME, SPLITS

__all__ = ["PARTS", "SET_NAME", "SPLITS", "full_size", "make_set"]
