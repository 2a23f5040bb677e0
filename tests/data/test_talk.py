"""A language model's conversations with itself, by a tiny random one."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from vistoken.core.errors import DataError, UsageError
from vistoken.data.talk import Writer, talk

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def folder(pico, tmp_path_factory):
    """A folder with a language model of pico's vocabulary."""
    path = tmp_path_factory.mktemp("writer")
    tokenizer = pico[1].tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    template, tokenizer.chat_template = tokenizer.chat_template, TEMPLATE
    tokenizer.save_pretrained(path)
    tokenizer.chat_template = template
    return path


def short(folder):
    writer = Writer.read(folder)
    return Writer(writer.model, writer.tokenizer, writer.opening, writer.between, 6, 8)


def test_turns_are_marked_as_the_template_marks_them(folder):
    writer = Writer.read(folder)
    assert (writer.opening, writer.between) == ("<user>", "<assistant>")


def test_rows_depend_on_the_seed_and_leave_the_generator_alone(folder):
    writer = short(folder)
    state = torch.random.get_rng_state()
    rows = list(talk(writer, 40, seed=1))  # more than one batch
    assert torch.equal(torch.random.get_rng_state(), state)
    assert rows == list(talk(writer, 40, seed=1))
    assert rows != list(talk(writer, 40, seed=2))
    assert len({row["id"] for row in rows}) == len(rows) == 40
    assert all(message["content"][0]["text"] for row in rows for message in row["messages"])


def test_a_folder_without_a_model_and_one_without_a_template_are_refused(folder, tmp_path):
    with pytest.raises(UsageError, match=r"has no config\.json"):
        Writer.read(tmp_path)
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UsageError, match="has no chat template"):
        Writer.read(tmp_path)


class Silent(Writer):
    """Asks, and has no answer."""

    def go_on(self, prompts, longest, temperature):
        return ["A long request"] * len(prompts) if longest == self.request_tokens else [""]


def test_a_model_that_writes_nothing_is_given_up(folder):
    writer = short(folder)
    fields = (writer.model, writer.tokenizer, writer.opening, writer.between, 6, 8)
    with pytest.raises(DataError, match="wrote 0 of 1 conversations"):
        list(talk(Silent(*fields), 1))


def test_a_template_s_own_first_token_is_not_written_twice(folder):
    writer = short(folder)
    seen = []

    def generate(input_ids, **others):
        seen.append(input_ids)
        return input_ids

    class Model:
        pass

    model = Model()
    model.generate = generate
    Writer(model, writer.tokenizer, "", "", 6, 8).go_on(["one two"], 4, 1.0)
    wanted = writer.tokenizer("one two", add_special_tokens=False)["input_ids"]
    assert seen[0].tolist() == [wanted]
