"""Llama tokenizers: the ids of sentencepiece itself, also after saving and loading."""

import json
import re
import shutil
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from vistoken.convert.tokenizers import read_tokenizer
from vistoken.core.errors import WeightsError

SOURCE = Path(__file__).parents[1] / "golden" / "llava-sp" / "release_pooling" / "tiny-vicuna"
SPECIAL = {"<s>": 1, "</s>": 2}


@pytest.fixture(scope="module")
def legacy(tmp_path_factory):
    """A tokenizer with `legacy` on, saved and loaded again; and sentencepiece's own."""
    folder = tmp_path_factory.mktemp("tokenizer")
    for file in SOURCE.glob("*token*"):
        shutil.copyfile(file, folder / file.name)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"legacy": True}))
    read_tokenizer(folder).save_pretrained(folder / "saved")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(SOURCE / "tokenizer.model"))
    return AutoTokenizer.from_pretrained(folder / "saved"), pieces


def expected(pieces, text: str) -> list[int]:
    """Every stretch between special tokens on its own, behind the start token."""
    ids = [SPECIAL["<s>"]]
    for stretch in re.split(r"(</?s>)", text):
        ids += [SPECIAL[stretch]] if stretch in SPECIAL else pieces.encode(stretch)
    return ids


@settings(deadline=None)
@given(text=st.lists(st.sampled_from(["</s>", "<s>", " ", "\n", "USER: ", "a", "é", "▁"])))
def test_legacy_gives_the_ids_of_sentencepiece(legacy, text) -> None:
    tokenizer, pieces = legacy
    assert tokenizer("".join(text))["input_ids"] == expected(pieces, "".join(text))


def test_no_entry_means_legacy(legacy, tmp_path) -> None:
    for file in SOURCE.glob("*token*"):
        shutil.copyfile(file, tmp_path / file.name)
    path = tmp_path / "tokenizer_config.json"
    values = json.loads(path.read_text())
    del values["legacy"]
    path.write_text(json.dumps(values))
    text = "hi</s>USER: you"
    assert read_tokenizer(tmp_path)(text)["input_ids"] == legacy[0](text)["input_ids"]
    modern = read_tokenizer(SOURCE)(text)["input_ids"]
    assert modern != legacy[0](text)["input_ids"]


def test_a_broken_model_file_is_one_sentence(tmp_path) -> None:
    for file in SOURCE.glob("*token*"):
        shutil.copyfile(file, tmp_path / file.name)
    (tmp_path / "tokenizer.model").write_bytes(b"noise")
    with pytest.raises(WeightsError, match="tokenizer in") as caught:
        read_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
