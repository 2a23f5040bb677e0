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


@pytest.fixture
def released(tmp_path):
    """A tokenizer's folder, and what writes its list of added tokens."""
    for file in SOURCE.glob("*token*"):
        shutil.copyfile(file, tmp_path / file.name)

    def write(added, special=()):
        (tmp_path / "added_tokens.json").write_text(json.dumps(added))
        path = tmp_path / "special_tokens_map.json"
        values = json.loads(path.read_text()) | {"additional_special_tokens": list(special)}
        path.write_text(json.dumps(values))
        return tmp_path

    return write


def test_added_tokens_of_old_releases_keep_their_ids(released) -> None:
    plain = read_tokenizer(SOURCE)
    size = len(plain)
    # not in the order of their ids, as a dictionary need not be
    folder = released({"<im_end>": size + 1, "<im_start>": size, "tool": size + 2}, ["<im_end>"])
    read_tokenizer(folder).save_pretrained(folder / "saved")
    for tokenizer in (read_tokenizer(folder), AutoTokenizer.from_pretrained(folder / "saved")):
        assert len(tokenizer) == size + 3
        ids = tokenizer("a<im_start>b<im_end>", add_special_tokens=False)["input_ids"]
        assert [number for number in ids if number >= size] == [size, size + 1]
        assert ids[:1] == plain("a", add_special_tokens=False)["input_ids"][:1]
        assert "<im_end>" not in tokenizer.decode(ids, skip_special_tokens=True)
        assert "<im_start>" in tokenizer.decode(ids, skip_special_tokens=True)


def test_tokens_that_are_there_already_are_not_added_again(released) -> None:
    folder = released({"</s>": 2})
    assert len(read_tokenizer(folder)) == len(read_tokenizer(SOURCE))


@pytest.mark.parametrize(
    ("added", "says"),
    [
        ({"<late>": 9_999}, "'<late>' has id 9999, but"),
        ({"</s>": 7}, "'</s>' has id 7, but 2"),
        ({"<x>": "many"}, "must be a number, not 'many'"),
    ],
)
def test_a_list_that_contradicts_the_tokenizer(released, added, says) -> None:
    with pytest.raises(WeightsError, match=says):
        read_tokenizer(released(added))
