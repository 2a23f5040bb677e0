"""The data set vistoken-scenes, version 1."""

from vistoken.data.scenes.v1.make import make_set
from vistoken.data.scenes.v1.splits import SET_NAME, SPLITS

__all__ = ["SET_NAME", "SPLITS", "make_set"]
