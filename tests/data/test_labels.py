"""Labels built from generation spans: against the released masks, and by their own properties."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from vistoken.core.errors import DataError, UsageError
from vistoken.data.labels import (
    IGNORE_LABEL,
    ROLE_ASSISTANT,
    ROLE_SYSTEM,
    ROLE_TEMPLATE,
    ROLE_USER,
    encode_conversation,
)
from vistoken.data.messages import from_llava
from vistoken.models.prompt_tokens import tokenize_prompt
from vistoken.models.templates import load_template, template_names

GOLDEN = Path(__file__).parents[1] / "golden" / "llava-training"
PREPROCESS = json.loads((GOLDEN / "preprocess.json").read_text(encoding="utf-8"))
MARK = "<image>"
RELEASED_IMAGE_ID = -200
RELEASED_MAX_LENGTH = 96  # text-only records of the golden data are cut here
STOPS = {
    "chatml": "<|im_end|>",
    "gemma": "<end_of_turn>\n",
    "internvl": "<|im_end|>",
    "llama-2": " </s>",
    "llama-3": "<|eot_id|>",
    "mistral": " </s>",
    "phi": "<|endoftext|>",
    "plain": "\n",
    "vicuna-v1": "</s>",
}
SPACE_BEFORE = {"llama-2", "mistral", "phi", "vicuna-v1"}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    shutil.copy(GOLDEN / "tiny_llama_sp.model", folder / "tokenizer.model")
    made = {
        f"tiny_llama_sp.model legacy={legacy}": LlamaTokenizer.from_pretrained(
            folder, legacy=legacy, add_bos_token=True
        )
        for legacy in (True, False)
    }
    made["tiny_bytebpe_tokenizer.json"] = PreTrainedTokenizerFast(
        tokenizer_file=str(GOLDEN / "tiny_bytebpe_tokenizer.json")
    )
    for tokenizer in made.values():
        tokenizer.add_special_tokens({"additional_special_tokens": [MARK]})
    return made


def message(role, text, images=0):
    parts = [{"type": "image", "path": "x.png"}] * images
    return {"role": role, "content": [*parts, {"type": "text", "text": text}] if text else parts}


def golden_messages(source, has_image):
    """A golden conversation in our schema; an empty answer, which the schema refuses, by hand."""
    if source[-1]["value"] == "":
        question = source[0]["value"].replace(MARK, "").strip()
        return [message("user", question, images=1), message("assistant", "")]
    record = {"id": 0, "conversations": source}
    return from_llava(record | {"image": "x.png"} if has_image else record, "golden")["messages"]


CASES = [
    (case["tokenizer"], case["version"], name, sample)
    for case in PREPROCESS["cases"]
    for name, sample in case["samples"].items()
    if case["version"]
    in ("v1", "plain", "llama_2", "llava_llama_2", "mistral_instruct", "chatml_direct")
    and not case["mm_use_im_start_end"]
    and "error" not in sample
]


@pytest.mark.parametrize(
    ("tokenizer_name", "version", "name", "sample"),
    CASES,
    ids=[f"{c[0].split('.')[0]}{c[0][-5:]}-{c[1]}-{c[2]}" for c in CASES],
)
def test_agrees_with_the_released_code(tokenizers, tokenizer_name, version, name, sample):
    tokenizer = tokenizers[tokenizer_name]
    template = load_template(version)
    messages = golden_messages(PREPROCESS["sources"][name], sample["has_image"])
    counts = [1] * sample["has_image"]
    if name == "empty_answer" and version != "plain":
        with pytest.raises(DataError, match="no token would be supervised"):
            encode_conversation(tokenizer, template, messages, counts, MARK)
        return
    encoded = encode_conversation(tokenizer, template, messages, counts, MARK)
    image_id = tokenizer.convert_tokens_to_ids(MARK)
    ids = [RELEASED_IMAGE_ID if token == image_id else token for token in encoded.input_ids]
    length = None if sample["has_image"] else RELEASED_MAX_LENGTH
    assert ids[:length] == sample["input_ids"]
    if sample["warning"] is None:
        assert encoded.labels[:length] == sample["labels"]
    else:
        assert any(label != IGNORE_LABEL for label in encoded.labels)


def test_golden_covers_what_it_should():
    kept = {(version, sample["warning"] is None) for _, version, _, sample in CASES}
    assert {("v1", True), ("plain", True), ("llama_2", True), ("chatml_direct", False)} <= kept


def supervised_texts(tokenizer, encoded):
    """Decoded runs of supervised tokens, one per answer."""
    runs, run = [], []
    for token, label in [*zip(encoded.input_ids, encoded.labels, strict=True), (0, IGNORE_LABEL)]:
        if label != IGNORE_LABEL:
            assert label == token
            run.append(token)
        elif run:
            runs.append(tokenizer.decode(run, clean_up_tokenization_spaces=False))
            run = []
    return runs


# No surrogates (not text) and no "<" (could spell a token of a template, which then is that token).
WORDS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1, max_size=12
).filter(str.strip)
ANSWERS = st.one_of(
    WORDS, st.sampled_from(["3", "\nNo", "B", "USER: x ASSISTANT: y", "[/INST] a", "\ue000", " x "])
)
LLAMA = ("tiny_llama_sp.model legacy=True", "tiny_llama_sp.model legacy=False")
PAIRS = [
    *((name, template) for name in LLAMA for template in template_names()),
    *(("tiny_bytebpe_tokenizer.json", template) for template in template_names()),
]


@pytest.mark.parametrize(("tokenizer_name", "template"), PAIRS)
@given(data=st.data())
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_supervised_tokens_are_the_answers(tokenizers, tokenizer_name, template, data):
    tokenizer = tokenizers[tokenizer_name]
    rounds = 1 if template == "plain" else data.draw(st.integers(1, 20), "rounds")
    least = 1 if template == "plain" else 0
    counts = data.draw(st.lists(st.integers(1, 7), min_size=least, max_size=3), "image_counts")
    answers = data.draw(st.lists(ANSWERS, min_size=rounds, max_size=rounds), "answers")
    messages = []
    if template != "plain" and data.draw(st.booleans(), "system"):
        messages.append(message("system", data.draw(WORDS, "system text")))
    for number, answer in enumerate(answers):
        images = len(counts) if number == rounds - 1 else 0
        messages += [
            message("user", data.draw(WORDS, "question"), images),
            message("assistant", answer),
        ]
    encoded = encode_conversation(tokenizer, load_template(template), messages, counts, MARK)

    byte_bpe = tokenizer_name not in LLAMA
    lead = " " if byte_bpe and template in SPACE_BEFORE else ""
    expected = [lead + answer + STOPS[template] for answer in answers]
    texts = supervised_texts(tokenizer, encoded)
    if not byte_bpe and template not in SPACE_BEFORE:
        # Decoding takes one leading space for the tokenizer's own.
        expected = [text.removeprefix(" ") for text in expected]
    if not byte_bpe and template == "plain":
        texts = [text.removeprefix(" ") for text in texts]
    assert texts == expected

    lengths = {len(encoded.input_ids), len(encoded.labels), len(encoded.role), len(encoded.turn)}
    assert len(lengths) == 1
    image_id = tokenizer.convert_tokens_to_ids(MARK)
    assert [stop - start for start, stop in encoded.images] == counts
    assert sum(token == image_id for token in encoded.input_ids) == sum(counts)
    assert all(
        (code == ROLE_ASSISTANT) == (label != IGNORE_LABEL)
        for code, label in zip(encoded.role, encoded.labels, strict=True)
    )
    assert encoded.turn == sorted(encoded.turn)
    assert set(encoded.turn) == set(range(rounds))
    assert [encoded.text[start:stop].strip() for start, stop in encoded.supervised] == [
        (answer + STOPS[template]).strip() for answer in answers
    ]


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("images", [(), (2,), (3, 1, 2)])
@pytest.mark.parametrize("template", template_names())
def test_every_template_with_and_without_pictures_and_system_text(
    tokenizers, template, images, system
):
    """No case is left to chance: none, one, several pictures; one and several rounds."""
    if template == "plain" and (system or not images):
        pytest.skip("plain is one caption of pictures, nothing else")
    for name, tokenizer in tokenizers.items():
        for rounds in (1,) if template == "plain" else (1, 3):
            answers = ["A cup.", "Two", "3 cups\nof tea"][:rounds]
            opening = [message("system", "Be brief.")] if system else []
            messages = list(opening)
            for number, answer in enumerate(answers):
                # pictures lie in the rounds in turn, those left over in the last one
                last = number == rounds - 1
                shown = len(images) - min(number, len(images)) if last else number < len(images)
                messages += [
                    message("user", f"Question {number}?", int(shown)),
                    message("assistant", answer),
                ]
            encoded = encode_conversation(
                tokenizer, load_template(template), messages, images, MARK
            )
            texts = supervised_texts(tokenizer, encoded)
            assert [text.strip() for text in texts] == [
                (answer + STOPS[template]).strip() for answer in answers
            ], name
            assert len(encoded.images) == len(images)
            assert (ROLE_SYSTEM in encoded.role) == system


@pytest.mark.parametrize("tokenizer_name", ["tiny_bytebpe_tokenizer.json", *LLAMA])
def test_roles_tell_who_said_what(tokenizers, tokenizer_name):
    tokenizer = tokenizers[tokenizer_name]
    messages = [
        message("system", "USER"),
        # Words that the template's header and the system text hold too must not confuse it.
        message("user", "USER: ASSISTANT", images=1),
        message("assistant", "Yes"),
        message("user", "s"),
        message("assistant", "No"),
    ]
    encoded = encode_conversation(tokenizer, load_template("vicuna-v1"), messages, [3], MARK)

    def said(code, turn):
        wanted = zip(encoded.input_ids, encoded.role, encoded.turn, strict=True)
        ids = [token for token, role, number in wanted if (role, number) == (code, turn)]
        return tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip()

    assert said(ROLE_SYSTEM, 0) == "USER"
    assert said(ROLE_USER, 0).replace(MARK, "").strip() == "USER: ASSISTANT"
    assert said(ROLE_USER, 0).count(MARK) == 3
    assert said(ROLE_ASSISTANT, 0) == "Yes</s>"
    assert said(ROLE_USER, 1) == "s"
    assert said(ROLE_ASSISTANT, 1) == "No</s>"
    assert said(ROLE_TEMPLATE, 1).replace(" ", "") == "USER:ASSISTANT:"


def test_an_open_turn_supervises_nothing_and_ends_with_the_header(tokenizers):
    tokenizer = tokenizers["tiny_bytebpe_tokenizer.json"]
    messages = [message("user", "Hi")]
    template = load_template("chatml")
    encoded = encode_conversation(
        tokenizer, template, messages, [], MARK, add_generation_prompt=True
    )
    assert set(encoded.labels) == {IGNORE_LABEL}
    full = encode_conversation(
        tokenizer, template, [*messages, message("assistant", "Yo")], [], MARK
    )
    assert full.input_ids[: len(encoded.input_ids)] == encoded.input_ids
    assert full.labels[len(encoded.input_ids) :] == full.input_ids[len(encoded.input_ids) :]


def test_a_conversation_without_an_answer_names_the_sample(tokenizers):
    tokenizer = tokenizers["tiny_bytebpe_tokenizer.json"]
    with pytest.raises(DataError, match="row 7: no token would be supervised"):
        encode_conversation(
            tokenizer, load_template("chatml"), [message("user", "Hi")], [], MARK, where="row 7"
        )


@pytest.mark.parametrize("counts", [[], [1, 1]])
def test_marks_and_images_must_match(tokenizers, counts):
    messages = [message("user", "Hi", images=1), message("assistant", "Yo")]
    with pytest.raises(DataError, match="row 7: the text has 1 <image> marks for"):
        encode_conversation(
            tokenizers[LLAMA[0]], load_template("v1"), messages, counts, MARK, where="row 7"
        )


def test_the_templates_refusal_names_the_sample(tokenizers):
    messages = [message("user", "Hi"), message("assistant", "Yo")]
    with pytest.raises(DataError, match="row 7: .*captions pictures"):
        encode_conversation(
            tokenizers[LLAMA[0]], load_template("plain"), messages, [], MARK, where="row 7"
        )


def test_templates_that_cannot_be_labelled_are_refused(tokenizers):
    tokenizer = tokenizers[LLAMA[0]]
    messages = [message("user", "Hi"), message("assistant", "Yo")]
    with pytest.raises(UsageError, match="generation"):
        encode_conversation(tokenizer, "{{ messages[0].content[0].text }}", messages, [], MARK)
    counting = (
        "{{ messages[0].content[0].text | length }}"
        "{% generation %}{{ messages[1].content[0].text }}{% endgeneration %}"
    )
    with pytest.raises(UsageError, match="changes the texts"):
        encode_conversation(tokenizer, counting, messages, [], MARK)


def test_a_tokenizer_without_the_image_token_is_refused():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(GOLDEN / "tiny_bytebpe_tokenizer.json"), unk_token="<|unk|>"
    )
    with pytest.raises(UsageError, match="has no token '<image>'"):
        tokenize_prompt(tokenizer, "Hi", [], MARK)


def test_one_call_over_the_expanded_prompt_is_the_same_but_for_the_space_after_a_picture(
    tokenizers,
):
    text = "USER: <image>\nWho?<image><image> It. ASSISTANT:"
    counts = [2, 1, 3]
    for name, tokenizer in tokenizers.items():
        pieces = tokenize_prompt(tokenizer, text, counts, MARK).input_ids
        marks = iter(counts)
        expanded = "".join(
            MARK * next(marks) if piece == MARK else piece
            for piece in text.replace(MARK, f"\0{MARK}\0").split("\0")
        )
        ids = tokenizer(expanded)["input_ids"]
        if name == LLAMA[1]:
            # Without `legacy`, one call gives its own space only to the start of the whole text.
            space = tokenizer.convert_tokens_to_ids("▁")
            after = pieces.index(tokenizer.convert_tokens_to_ids(MARK)) + counts[0]
            assert pieces[after] == space
            ids.insert(after, space)
        assert ids == pieces


def test_offsets_point_into_the_prompt(tokenizers):
    text = "USER: <image>\nWho? ASSISTANT:"
    for tokenizer in tokenizers.values():
        tokens = tokenize_prompt(tokenizer, text, [2], MARK)
        start, stop = tokens.images[0]
        assert [text[left:right] for left, right in tokens.offsets[start:stop]] == [MARK, MARK]
        assert text[slice(*tokens.offsets[-1])] == ":"
        assert (tokens.input_ids[0] == tokenizer.bos_token_id) == (tokens.offsets[0] == (-1, -1))
