"""Official label masks and the released templates they are cut from, against the golden cases."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from vistoken.core.errors import DataError, UsageError
from vistoken.data.labels import IGNORE_LABEL, encode_conversation
from vistoken.data.messages import from_llava
from vistoken.data.official_masks import OfficialMasks
from vistoken.data.official_samples import (
    RELEASED_IMAGE_ID,
    OfficialSample,
    expand_images,
    released_turns,
)
from vistoken.data.released_templates import Turn, released_template, released_template_names
from vistoken.models.templates import load_template

GOLDEN = Path(__file__).parents[1] / "golden" / "llava-training"
PREPROCESS = json.loads((GOLDEN / "preprocess.json").read_text(encoding="utf-8"))
PROMPTS = json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))["templates"]
SENTENCEPIECE = "tiny_llama_sp.model legacy="
MAX_LENGTHS = {"sp": 96, "bpe": 160}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    shutil.copy(GOLDEN / "tiny_llama_sp.model", folder / "tokenizer.model")
    made = {}
    for legacy in (True, False):
        made[f"{SENTENCEPIECE}{legacy}"] = LlamaTokenizer.from_pretrained(
            folder, legacy=legacy, add_bos_token=True, pad_token="<unk>"
        )
    made["tiny_bytebpe_tokenizer.json"] = PreTrainedTokenizerFast(
        tokenizer_file=str(GOLDEN / "tiny_bytebpe_tokenizer.json"), pad_token="<|endoftext|>"
    )
    return made


def masks_for(tokenizers, name, version, mark_ends=False):
    legacy = {f"{SENTENCEPIECE}True": True, f"{SENTENCEPIECE}False": False}.get(name)
    length = MAX_LENGTHS["bpe" if legacy is None else "sp"]
    return OfficialMasks(tokenizers[name], version, length, legacy, mark_ends)


def turns_of(source):
    return [Turn(turn["from"], turn["value"]) for turn in source]


CASES = [
    (case["tokenizer"], case["version"], case["mm_use_im_start_end"], name, sample)
    for case in PREPROCESS["cases"]
    for name, sample in case["samples"].items()
]


@pytest.mark.parametrize(
    ("tokenizer", "version", "mark_ends", "name", "sample"),
    CASES,
    ids=[f"{c[0].split('.')[0]}{c[0][-5:]}-{c[1]}-{c[2]}-{c[3]}" for c in CASES],
)
def test_golden_masks(tokenizers, tokenizer, version, mark_ends, name, sample):
    masks = masks_for(tokenizers, tokenizer, version, mark_ends)
    turns = turns_of(PREPROCESS["sources"][name])
    if "error" in sample:
        with pytest.raises(DataError, match="golden: "):
            masks(turns, sample["has_image"], "golden")
        return
    made = masks(turns, sample["has_image"])
    assert made.input_ids == sample["input_ids"]
    assert made.labels == sample["labels"]
    if sample["warning"] is None:
        assert made.mismatch is None
    else:
        counted, total = made.mismatch
        assert f"{counted} vs. {total}." in sample["warning"]


def test_golden_covers_all_pairs():
    assert len(CASES) == 86
    assert sum("error" in case[-1] for case in CASES) == 6
    assert sum(case[-1].get("warning") is not None for case in CASES) >= 16


def test_released_templates_are_all_there():
    assert set(PROMPTS) <= set(released_template_names())


@pytest.mark.parametrize("name", sorted(PROMPTS))
def test_golden_prompts(name):
    template = released_template(name)
    golden = PROMPTS[name]["prompts"]
    question, again = Turn("human", "<image>\nQuestion?"), Turn("human", "Again?")
    assert template.render([question, Turn("gpt", "")]) == golden["gen"]
    two = [question, Turn("gpt", "Answer."), again, Turn("gpt", "Done.")]
    if golden["two"].startswith("ERROR"):
        with pytest.raises(DataError):
            template.render(two)
    else:
        assert template.render(two) == golden["two"]


def test_an_unknown_template_is_never_replaced():
    with pytest.raises(UsageError, match="did you mean 'vicuna_v1'"):
        released_template("vicuna_v2")


def test_tags_stand_around_the_picture(tokenizers):
    name = f"{SENTENCEPIECE}True"
    masks = masks_for(tokenizers, name, "v1_mmtag")
    made = masks([Turn("human", "Hi <image>"), Turn("gpt", "Yes")], has_image=True)
    before = made.input_ids.index(RELEASED_IMAGE_ID)
    tokenizer = tokenizers[name]
    assert tokenizer.decode(made.input_ids[:before]).endswith("USER: <Image>")
    assert tokenizer.decode(made.input_ids[before + 1 :]).lstrip().startswith("</Image>\nHi")


@pytest.mark.parametrize(("version", "text"), [("v1", "a ASSISTANT: b"), ("llama_2", "[/INST] b")])
def test_a_header_inside_a_question_costs_the_sample(tokenizers, version, text):
    masks = masks_for(tokenizers, f"{SENTENCEPIECE}True", version)
    made = masks([Turn("human", f"<image> {text}"), Turn("gpt", "Yes")], has_image=True)
    assert made.mismatch is not None
    assert set(made.labels) == {IGNORE_LABEL}


def test_a_sample_at_the_limit_is_not_checked(tokenizers):
    name = "tiny_bytebpe_tokenizer.json"
    tokenizer = tokenizers[name]
    turns = [Turn("human", "Hi"), Turn("gpt", "Yes")]
    length = len(masks_for(tokenizers, name, "chatml_direct")(turns, False).input_ids)
    short = OfficialMasks(tokenizer, "chatml_direct", length - 1, None)(turns, False)
    assert short.mismatch is None
    assert len(short.input_ids) == length - 1
    assert any(label != IGNORE_LABEL for label in short.labels)
    assert OfficialMasks(tokenizer, "chatml_direct", length, None)(turns, False).mismatch


def test_what_the_masks_need_is_asked_for_at_once(tokenizers):
    bare = PreTrainedTokenizerFast(tokenizer_file=str(GOLDEN / "tiny_bytebpe_tokenizer.json"))
    with pytest.raises(UsageError, match="padding token"):
        OfficialMasks(bare, "mpt", 96, None)
    with pytest.raises(UsageError, match="'legacy'"):
        OfficialMasks(tokenizers["tiny_bytebpe_tokenizer.json"], "v1", 96, None)


@pytest.mark.parametrize(
    ("turns", "says"),
    [
        ([], "no question"),
        ([Turn("gpt", "a")], "no question"),
        ([Turn("human", "a"), Turn("human", "b")], "two turns of human"),
    ],
)
def test_turns_out_of_order(tokenizers, turns, says):
    with pytest.raises(DataError, match=f"row 3: .*{says}"):
        masks_for(tokenizers, f"{SENTENCEPIECE}True", "v1")(turns, False, "row 3")


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("version", ["v1", "llama_2", "plain"])
def test_agrees_with_exact_labels_through_the_schema(tokenizers, tmp_path, version, legacy):
    tokenizer = LlamaTokenizer.from_pretrained(
        Path(tokenizers[f"{SENTENCEPIECE}{legacy}"].name_or_path),
        legacy=legacy,
        add_bos_token=True,
        pad_token="<unk>",
    )
    masks = OfficialMasks(tokenizer, version, 2048, legacy)
    record = {"id": 1, "image": "x.png", "conversations": PREPROCESS["sources"]["one_turn_image"]}
    messages = from_llava(record, "a.json")["messages"]
    made = masks(released_turns(messages), has_image=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    expanded = expand_images(made, [7], image_id, "a.json")
    exact = encode_conversation(tokenizer, load_template(version), messages, [7], "<image>")
    assert expanded.input_ids == exact.input_ids
    assert expanded.labels == exact.labels
    assert expanded.images == exact.images


def test_schema_rows_that_released_code_has_no_form_for():
    image = {"type": "image", "path": "x.png"}
    words = {"type": "text", "text": "Hi"}
    with pytest.raises(DataError, match="row 1, message 1: .*one picture"):
        released_turns([{"role": "user", "content": [image, image, words]}], "row 1")
    with pytest.raises(DataError, match="system message"):
        released_turns([{"role": "system", "content": [words]}], "row 1")
    with pytest.raises(DataError, match="row 1: 1 <image> marks for 2 pictures"):
        expand_images(OfficialSample([RELEASED_IMAGE_ID], [IGNORE_LABEL], None), [1, 2], 9, "row 1")
