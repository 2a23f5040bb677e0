"""Labels of a stage: exact ones, and released ones against the golden masks."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from vistoken.core.errors import DataError, UsageError
from vistoken.core.tables import TextRole
from vistoken.data.bad_samples import BadSamples
from vistoken.data.labels import IGNORE_LABEL
from vistoken.data.messages import from_llava
from vistoken.data.official_samples import RELEASED_IMAGE_ID
from vistoken.train.config import parse_config
from vistoken.train.examples import Example
from vistoken.train.labelling import ExactLabels, find_labeller, prefixes_stretches
from vistoken.train.rows import RowMaker

GOLDEN = Path(__file__).parents[1] / "golden" / "llava-training"
PREPROCESS = json.loads((GOLDEN / "preprocess.json").read_text(encoding="utf-8"))
SENTENCEPIECE = "tiny_llama_sp.model legacy="
MAX_LENGTHS = {"sp": 96, "bpe": 160}
MARK = "<image>"


@pytest.fixture(scope="module")
def processors(tmp_path_factory):
    """What a labeller needs of a processor, for each golden tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    shutil.copy(GOLDEN / "tiny_llama_sp.model", folder / "tokenizer.model")
    made = {
        f"{SENTENCEPIECE}{legacy}": LlamaTokenizer.from_pretrained(
            folder, legacy=legacy, add_bos_token=True, pad_token="<unk>"
        )
        for legacy in (True, False)
    }
    made["tiny_bytebpe_tokenizer.json"] = PreTrainedTokenizerFast(
        tokenizer_file=str(GOLDEN / "tiny_bytebpe_tokenizer.json"), pad_token="<|endoftext|>"
    )
    processors = {}
    for name, tokenizer in made.items():
        tokenizer.add_special_tokens({"additional_special_tokens": [MARK]})
        number = tokenizer.convert_tokens_to_ids(MARK)
        processors[name] = SimpleNamespace(
            tokenizer=tokenizer, image_token=MARK, image_token_id=number, chat_template=None
        )
    return processors


def golden_cases():
    """Golden samples that a data file can hold: the schema takes no empty and no odd turns."""
    for case in PREPROCESS["cases"]:
        for name, sample in case["samples"].items():
            source = PREPROCESS["sources"][name]
            text = "".join(turn["value"] for turn in source)
            marked_text = MARK in text and not sample["has_image"]
            whole = all(turn["value"] for turn in source) and source[0]["from"] == "human"
            usual = not case["mm_use_im_start_end"] and "error" not in sample
            if whole and not marked_text and usual:
                yield case["tokenizer"], case["version"], name, sample


CASES = list(golden_cases())


@pytest.mark.parametrize(
    ("tokenizer", "version", "name", "sample"),
    CASES,
    ids=[f"{c[0].split('.')[0]}{c[0][-5:]}-{c[1]}-{c[2]}" for c in CASES],
)
def test_official_labels_are_the_released_ones(processors, tokenizer, version, name, sample):
    processor = processors[tokenizer]
    length = MAX_LENGTHS["sp" if tokenizer.startswith(SENTENCEPIECE) else "bpe"]
    record = {"id": name, "conversations": PREPROCESS["sources"][name]}
    record |= {"image": "x.png"} if sample["has_image"] else {}
    messages = from_llava(record, "golden")["messages"]
    label = find_labeller("official", processor, version, length)
    ignored = all(number == IGNORE_LABEL for number in sample["labels"])
    if ignored:
        says = "official labels ignore it" if sample["warning"] else "no token would be supervised"
        with pytest.raises(DataError, match=f"row 7: {says}"):
            label(messages, [1] * sample["has_image"], "row 7")
        return
    made = label(messages, [1] * sample["has_image"], "row 7")
    ids = [RELEASED_IMAGE_ID if n == processor.image_token_id else n for n in made.input_ids]
    assert ids == sample["input_ids"]
    assert made.labels == sample["labels"]
    learned = [number != IGNORE_LABEL for number in made.labels]
    assert [role == TextRole.ASSISTANT for role in made.role] == learned
    assert len(made.turn) == len(ids)
    assert made.turn == sorted(made.turn)


def test_the_golden_cases_cover_the_styles_and_the_faults():
    kept = {(version, sample["warning"] is None) for _, version, _, sample in CASES}
    assert {("v1", True), ("plain", True), ("llama_2", True), ("v0", True)} <= kept
    assert any(not sample_is_whole for _, sample_is_whole in kept)


def test_how_a_tokenizer_treats_stretches_is_read_off_it(processors):
    assert [prefixes_stretches(p.tokenizer) for p in processors.values()] == [True, False, None]


def test_an_ignored_sample_stops_the_run_or_is_counted(processors):
    processor = processors[f"{SENTENCEPIECE}True"]
    label = find_labeller("official", processor, "v1", 96)
    messages = from_llava(
        {
            "id": "a",
            "conversations": [
                {"from": "human", "value": "Say ASSISTANT: twice"},
                {"from": "gpt", "value": "No"},
            ],
        },
        "golden",
    )["messages"]
    example = Example("row 7: sample 'a'", messages, (), "", "a")
    with pytest.raises(DataError, match="row 7: sample 'a': official labels ignore it"):
        RowMaker(label, 96)(example, [], keep_images=False)
    told = []
    maker = RowMaker(label, 96, bad=BadSamples("skip", told.append))
    assert maker(example, [], keep_images=False) is None
    assert [(one.reason, one.sample) for one in told] == [("bad_samples", "a")]


def test_several_pictures_keep_their_places(processors):
    processor = processors[f"{SENTENCEPIECE}False"]
    label = find_labeller("official", processor, "v1", 96)
    content = [{"type": "image", "path": "x.png"}, {"type": "text", "text": "What?"}]
    round_ = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "A cup."}]},
    ]
    made = label([*round_, *round_], [3, 2], "row 7")
    assert [stop - start for start, stop in made.images] == [3, 2]
    assert [made.turn[start] for start, _ in made.images] == [0, 1]
    decoded = processor.tokenizer.decode([n for n in made.labels if n != IGNORE_LABEL])
    assert decoded.count("A cup.") == 2


def test_settings(pico):
    _, processor = pico
    assert isinstance(find_labeller("exact", processor, None, 96), ExactLabels)
    with pytest.raises(UsageError, match="needs the name of a released template"):
        find_labeller("official", processor, None, 96)
    with pytest.raises(UsageError, match="unknown released template 'v7'"):
        find_labeller("official", processor, "v7", 96)
    stage = {"name": "a", "groups": {"connector": {"train": "full"}}, "steps": 1}
    run = {"recipe": "pico", "data": ["a.jsonl"], "output": "b"}
    assert parse_config({**run, "stages": [stage]}).stages[0].labels == "exact"
    with pytest.raises(UsageError, match="labels"):
        parse_config({**run, "stages": [{**stage, "labels": "officials"}]})
