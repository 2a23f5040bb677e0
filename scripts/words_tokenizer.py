"""Make the tokenizer of the study's reduced language model: every name is one token.

    python scripts/words_tokenizer.py

Its words are those of terse questions (`vistoken.study.terse`) about the things, colours and
numbers of vistoken-scenes, and of the chat template around them.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from vistoken.data.scenes.backgrounds import COLOURS
from vistoken.data.scenes.grammar import NUMBER_WORDS
from vistoken.data.scenes.names import icon_names
from vistoken.study.terse import ASKED, DIRECTIONS, one_word

FOLDER = Path(__file__).parent.parent / "src/vistoken/assets/words-tokenizer"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unk|>")
TEMPLATE = ("system", "user", "assistant", "Answer", "the", "questions.")


def vocabulary() -> list[str]:
    """All words, each once."""
    names = sorted(one_word(name.word) for name in icon_names())
    words = [*SPECIAL, *TEMPLATE, *ASKED, *DIRECTIONS, "yes", "no", *NUMBER_WORDS, *COLOURS, *names]
    return list(dict.fromkeys(words))


def main() -> None:
    """Write the tokenizer's folder."""
    ids = {word: number for number, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<|unk|>"))  # type: ignore[call-arg]
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer.add_special_tokens(list(SPECIAL))
    FOLDER.mkdir(parents=True, exist_ok=True)
    text = tokenizer.to_str(pretty=True) + "\n"
    (FOLDER / "tokenizer.json").write_text(text, encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|unk|>",
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, indent=1) + "\n"
    (FOLDER / "tokenizer_config.json").write_text(text, encoding="utf-8")
    print(f"{len(ids)} words in {FOLDER}")


if __name__ == "__main__":
    main()
