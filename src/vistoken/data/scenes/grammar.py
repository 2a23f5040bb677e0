"""The little English that questions and captions need: articles, plurals, number words, lists."""

from __future__ import annotations

from vistoken.data.scenes.names import Name

NUMBER_WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
)

_IRREGULAR_LAST_WORDS = {
    "mouse": "mice",
    "goose": "geese",
    "ox": "oxen",
    "knife": "knives",
    "wolf": "wolves",
    "tooth": "teeth",
    "leaf": "leaves",
}
_UNCHANGED_LAST_WORDS = frozenset(
    {"sheep", "deer", "moose", "bison", "fish", "blowfish", "squid", "shrimp", "dice"}
)
_OES_LAST_WORDS = frozenset({"tomato", "potato", "mango", "volcano", "mosquito", "tornado"})
_SOUNDS_LIKE_A_CONSONANT = ("uni", "ufo", "euro")


def with_article(name: Name) -> str:
    """Say "a cat", "an owl" or "some bread"."""
    if not name.takes_article:
        return name.word if name.category in ("letter", "digit") else f"some {name.word}"
    vowel = name.word[0] in "aeiou" and not name.word.startswith(_SOUNDS_LIKE_A_CONSONANT)
    return f"{'an' if vowel else 'a'} {name.word}"


def with_definite_article(name: Name) -> str:
    """Say "the cat"; every drawing in a picture is a definite one."""
    return f"the {name.word}"


def is_countable(name: Name) -> bool:
    """Tell whether "how many" can be asked of it."""
    return name.takes_article


def plural(word: str) -> str:
    """Form the plural by changing the last word.

    Args:
        word: One to three lower-case words.

    Returns:
        The plural, in the same case.
    """
    head, space, last = word.rpartition(" ")
    return f"{head}{space}{_plural_of_one_word(last)}"


def joined(parts: list[str]) -> str:
    """Join with commas and a final "and"."""
    if len(parts) == 1:
        return parts[0]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _plural_of_one_word(word: str) -> str:
    if word in _IRREGULAR_LAST_WORDS:
        return _IRREGULAR_LAST_WORDS[word]
    if word in _UNCHANGED_LAST_WORDS:
        return word
    if word.endswith(("s", "x", "z", "ch", "sh")) or word in _OES_LAST_WORDS:
        return f"{word}es"
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return f"{word[:-1]}ies"
    return f"{word}s"
