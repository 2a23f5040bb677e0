"""Frozen chat templates against the strings of the released code."""

import json
from pathlib import Path

import pytest
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from vistoken.core.errors import UsageError
from vistoken.models.templates import IMAGE_MARK, canonical_name, load_template, template_names

GOLDEN = Path(__file__).parents[1] / "golden" / "llava-training"
PROMPTS = json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))["templates"]
LATER = {"default", "v0", "llava_v0", "v0_mmtag", "v1_mmtag", "mpt"}
HERE = sorted(set(PROMPTS) - LATER)


def user(text, images=0):
    return {
        "role": "user",
        "content": [{"type": "image"}] * images + [{"type": "text", "text": text}],
    }


def assistant(text):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def render(template, messages, add_generation_prompt=False, **special):
    texts, _ = render_jinja_template(
        conversations=[messages],
        chat_template=template,
        add_generation_prompt=add_generation_prompt,
        **special,
    )
    return texts[0]


def answers(template, messages):
    texts, spans = render_jinja_template(
        conversations=[messages], chat_template=template, return_assistant_tokens_mask=True
    )
    return [texts[0][start:stop] for start, stop in spans[0]]


@pytest.mark.parametrize("name", HERE)
def test_open_turn_equals_the_released_prompt(name):
    prompt = render(load_template(name), [user("Question?", images=1)], add_generation_prompt=True)
    assert prompt == PROMPTS[name]["prompts"]["gen"]


@pytest.mark.parametrize("name", [name for name in HERE if "plain" not in name])
def test_two_rounds_equal_the_released_prompt(name):
    messages = [user("Question?", 1), assistant("Answer."), user("Again?"), assistant("Done.")]
    assert render(load_template(name), messages) == PROMPTS[name]["prompts"]["two"]


def test_a_tokenizer_renders_the_template_with_its_own_end_token():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(GOLDEN / "tiny_bytebpe_tokenizer.json"), eos_token="<|endoftext|>"
    )
    messages = [user("Q?"), assistant("A.")]
    text = tokenizer.apply_chat_template(
        messages, chat_template=load_template("vicuna-v1"), tokenize=False
    )
    assert text.endswith("USER: Q? ASSISTANT: A.<|endoftext|>")


EXPECTED_ANSWER = {
    "chatml": "A.<|im_end|>",
    "gemma": "A.<end_of_turn>\n",
    "internvl": "A.<|im_end|>",
    "llama-2": " A. </s>",
    "llama-3": "A.<|eot_id|>",
    "mistral": " A. </s>",
    "phi": " A.<|endoftext|>",
    "plain": "A.\n",
    "vicuna-v1": " A.</s>",
}


MARKED = {"internvl": "<img><image></img>"}
"""How a picture is written where that is not its mark alone."""


@pytest.mark.parametrize("name", template_names())
def test_generation_block_holds_answer_and_terminator(name):
    assert answers(load_template(name), [user("Q?", 1), assistant("A.")]) == [EXPECTED_ANSWER[name]]


@pytest.mark.parametrize("name", template_names())
def test_prompt_is_where_the_answer_starts(name):
    template = load_template(name)
    question = (
        [user("Q?", 1)] if name != "plain" else [{**user("", 1), "content": [{"type": "image"}]}]
    )
    prompt = render(template, question, add_generation_prompt=True)
    full = render(template, [*question, assistant("A.")])
    assert full == prompt + EXPECTED_ANSWER[name]


@pytest.mark.parametrize("name", template_names())
def test_string_content_equals_one_text_part(name):
    template = load_template(name)
    parts = [user("Q?", 1), assistant("A.")]
    plain = [{"role": "user", "content": "<image>\nQ?"}, {"role": "assistant", "content": "A."}]
    assert render(template, plain) == render(template, parts)


@pytest.mark.parametrize("name", sorted(set(template_names()) - {"plain"}))
def test_pictures_come_first_each_on_its_line(name):
    content = [{"type": "text", "text": "Compare."}, {"type": "image"}, {"type": "image"}]
    text = render(load_template(name), [{"role": "user", "content": content}])
    mark = MARKED.get(name, IMAGE_MARK)
    assert f"{mark}\n{mark}\nCompare." in text
    alone = render(load_template(name), [{"role": "user", "content": [{"type": "image"}]}])
    assert alone.count(IMAGE_MARK) == 1
    assert f"{IMAGE_MARK}\n\n" not in alone


@pytest.mark.parametrize("name", sorted(set(template_names()) - {"plain"}))
def test_system_message_replaces_the_default(name):
    system = {"role": "system", "content": "Be brief."}
    template = load_template(name)
    text = render(template, [system, user("Q?")])
    assert text.count("Be brief.") == 1
    for default in ("polite answers", "Answer the questions.", "helpful language", "honest"):
        assert default not in text
    silent = render(template, [{"role": "system", "content": ""}, user("Q?")])
    assert "SYS" not in silent
    assert "system" not in silent


@pytest.mark.parametrize("name", sorted(set(template_names()) - {"plain"}))
def test_empty_answers_are_open_turns_and_only_at_the_end(name):
    template = load_template(name)
    assert answers(template, [user("Q?"), assistant("")]) == []
    with pytest.raises(TemplateError, match="empty"):
        render(template, [user("Q?"), assistant(""), user("Q?"), assistant("A.")])


@pytest.mark.parametrize("name", template_names())
def test_wrong_order_is_refused(name):
    with pytest.raises(TemplateError):
        render(load_template(name), [assistant("A."), user("Q?")])


@pytest.mark.parametrize("name", template_names())
def test_unknown_part_is_refused(name):
    with pytest.raises(TemplateError, match="video"):
        render(load_template(name), [{"role": "user", "content": [{"type": "video"}]}])


def test_internvl_writes_prompts_as_released():
    """By hand from the conversation called internlm2-chat and the specification's section 2.2."""
    system = {"role": "system", "content": "Be brief."}
    messages = [system, user("Read it.", 1), assistant("Bus <image>"), user("Sure?")]
    assert render(load_template("internvl"), messages, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>"
        "<|im_start|>user\n<img><image></img>\nRead it.<|im_end|>"
        "<|im_start|>assistant\nBus <image><|im_end|>"
        "<|im_start|>user\nSure?<|im_end|><|im_start|>assistant\n"
    )
    own = render(load_template("internlm2-chat"), [user("Hi")])
    assert own.startswith("<|im_start|>system\n你是由上海人工智能实验室")
    assert own.endswith("<|im_end|><|im_start|>user\nHi<|im_end|>")


def test_plain_refuses_what_has_no_caption():
    template = load_template("plain")
    for messages in (
        [user("Q?"), assistant("A.")],
        [user("Q?", 1), assistant("A."), user("Q?"), assistant("A.")],
        [{"role": "system", "content": "S"}, user("Q?", 1)],
    ):
        with pytest.raises(TemplateError):
            render(template, messages)


def test_plain_leaves_out_the_instruction():
    text = render(load_template("plain"), [user("Describe it.", 1), assistant("A red bus")])
    assert text == "<image>A red bus\n"


def test_the_content_macro_is_the_same_everywhere():
    macros = {
        text[text.index("{%- macro body") : text.index("{%- endmacro -%}")]
        for text in map(load_template, template_names())
    }
    assert len(macros) == 1


@pytest.mark.parametrize(
    ("alias", "name"),
    [("v1", "vicuna-v1"), ("vicuna_v1", "vicuna-v1"), ("Llama_2", "llama-2"), ("phi", "phi")],
)
def test_official_names_are_aliases(alias, name):
    assert canonical_name(alias) == name
    assert load_template(alias) == load_template(name)


@pytest.mark.parametrize("name", sorted(LATER))
def test_wordings_of_released_training_say_what_they_are_for(name):
    with pytest.raises(UsageError, match="exists for training with labels: official only"):
        load_template(name)


def test_unknown_name_suggests_a_near_one():
    with pytest.raises(UsageError, match="did you mean 'vicuna-v1'"):
        load_template("vicuna-v2")
