"""`vistoken chat`: questions, conversations, and every kind of bad input."""

import pickle
import struct
import zlib

import pytest
import torch
from PIL import Image

from vistoken.cli.chat import looks_like_picture, split_words

PICO = ("chat", "--model", "pico", "--max-new-tokens", "4")


def png_header(width, height):
    """A PNG that claims a size and holds nothing."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b""))


@pytest.fixture
def images(tmp_path, picture):
    paths = [tmp_path / "wide.png", tmp_path / "tall.jpg"]
    picture(40, 60).save(paths[0])
    picture(90, 30, seed=1).save(paths[1])
    return paths


@pytest.mark.parametrize("count", [0, 1, 2])
def test_answers_about_pictures(vistoken, images, count):
    options = [word for path in images[:count] for word in ("--image", path)]
    outcome = vistoken(*PICO, *options, "--json", "What is this?")
    assert outcome.code == 0, outcome
    # 4x4 patches and two spatial tokens a picture
    assert outcome.data["visual_tokens"] == 18 * count
    assert outcome.data["prompt_tokens"] > 18 * count
    assert 1 <= outcome.data["tokens"] <= 4
    assert outcome.data["first_token_s"] > 0
    assert set(outcome.data) == {
        "model",
        "question",
        "answer",
        "tokens",
        "prompt_tokens",
        "visual_tokens",
        "first_token_s",
        "tokens_per_s",
    }


def test_answer_is_that_of_generate(vistoken, images, pico):
    model, processor = pico
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(text=prompt, images=[Image.open(images[0])], return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    expected = processor.decode(
        output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    ).strip()
    assert vistoken(*PICO, images[0], "--json", "What is this?").data["answer"] == expected
    assert vistoken(*PICO, images[0], "What is this?").out.strip() == expected


def test_pictures_stand_before_the_question_or_after_an_option(vistoken, images):
    bare = vistoken(*PICO, *images, "--json", "Which?")
    named = vistoken(*PICO, "-i", images[0], "-i", images[1], "--json", "Which?")
    assert bare.data["answer"] == named.data["answer"]
    assert bare.data["visual_tokens"] == named.data["visual_tokens"] == 36


def test_sampling_depends_on_the_seed_alone(vistoken, images):
    hot = ("chat", "-m", "pico", "--max-new-tokens", "12", "--temperature", "5", "--json")
    first, again, other = (
        vistoken(*hot, "--seed", seed, images[0], "Hi").data["answer"] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_conversation_goes_on_after_mistakes(vistoken, images):
    lines = ["hello", f"/image {images[0]}", "and this?", "/image gone.png", "/what", "/image"]
    outcome = vistoken(*PICO, stdin="\n".join([*lines, "/reset", "again", "/quit", "unheard"]))
    assert outcome.code == 0
    answers = outcome.out.splitlines()
    assert len(answers) == 3
    assert answers[0] == vistoken(*PICO, "hello").out.strip("\n")
    assert answers[2] == vistoken(*PICO, "again").out.strip("\n")
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    assert "gone.png" in errors[0]
    assert "/what" in errors[1]
    assert "/image" in errors[2]


def test_conversation_remembers(pico, picture):
    from vistoken.cli.conversation import Conversation

    conversation = Conversation(*pico, system="Be brief.", max_new_tokens=3)
    first = conversation.ask("hello", lambda _: None)
    conversation.show(picture(40, 60))
    pieces = []
    second = conversation.ask("and this?", pieces.append)
    assert second.prompt_tokens > first.prompt_tokens + 18
    assert [m["role"] for m in conversation.messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert "".join(pieces).strip() == second.text
    third = conversation.ask("still?", lambda _: None)
    assert third.visual_tokens == 18
    conversation.reset()
    assert [m["role"] for m in conversation.messages] == ["system"]
    assert conversation.ask("hello", lambda _: None).text == first.text


def test_failed_question_is_not_remembered(pico):
    from vistoken.cli.conversation import Conversation
    from vistoken.core.errors import UsageError

    conversation = Conversation(*pico, max_new_tokens=5000)
    with pytest.raises(UsageError, match="4096"):
        conversation.ask("hello", lambda _: None)
    assert conversation.messages == []


def say_nothing(self, input_ids, streamer, **_):
    """Stands in for `generate`: the answer is an end-of-text token alone."""
    end = input_ids.new_tensor([[self.config.text_config.eos_token_id]])
    streamer.put(input_ids)
    streamer.put(end[0])
    return torch.cat((input_ids, end), dim=1)


def test_empty_answer_is_not_remembered(pico, picture, monkeypatch):
    from vistoken.cli.conversation import Conversation

    conversation = Conversation(*pico, system="Be brief.", max_new_tokens=3)
    conversation.show(picture(40, 60))
    with monkeypatch.context() as patch:
        patch.setattr(type(pico[0]), "generate", say_nothing)
        assert conversation.ask("hello", lambda _: None).text == ""
    assert [m["role"] for m in conversation.messages] == ["system"]
    assert conversation.pictures == []
    # the picture was not seen by any answer: it goes with the next question
    assert conversation.ask("and now?", lambda _: None).visual_tokens == 18


def test_conversation_goes_on_after_empty_answers(vistoken, monkeypatch):
    from vistoken.models import VistokenForConditionalGeneration

    monkeypatch.setattr(VistokenForConditionalGeneration, "generate", say_nothing)
    outcome = vistoken(*PICO, stdin="hello\nstill there?\n/quit\n")
    assert outcome.code == 0
    assert "error" not in outcome.err
    assert outcome.err.count("answer is empty") == 2


@pytest.fixture
def recipe_file(tmp_path):
    """Writes pico's recipe to a file, with some of its text replaced."""
    from importlib import resources

    text = (resources.files("vistoken") / "recipes" / "pico.yaml").read_text("utf-8")

    def write(old="", new=""):
        assert old in text
        path = tmp_path / "mine.yaml"
        path.write_text(text.replace(old, new) if old else text, "utf-8")
        return path

    return write


def test_template_that_takes_no_system_message(vistoken, recipe_file):
    model = recipe_file("template: chatml", "template: plain")
    asked = ("chat", "-m", model, "--max-new-tokens", "4", "--system", "Be brief.", "Hi")
    vistoken(*asked).failed(2, "without a system text", "--system")


def test_template_that_takes_one_turn(vistoken, recipe_file):
    model = recipe_file("template: chatml", "template: plain")
    lines = "hello\nand now?\n/reset\nagain\n"
    outcome = vistoken("chat", "-m", model, "--max-new-tokens", "4", stdin=lines)
    assert outcome.code == 0
    assert len(outcome.out.splitlines()) == 2
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "one user turn" in errors[0]
    assert "/reset" in errors[0]


def test_recipe_file_as_model(vistoken, recipe_file):
    theirs = vistoken("chat", "-m", recipe_file(), "--max-new-tokens", "4", "Hi")
    assert theirs.code == 0, theirs
    assert theirs.out == vistoken(*PICO, "Hi").out


def test_recipe_file_without_trained_weights(vistoken, recipe_file):
    model = recipe_file("    source: random", "    source: openai/clip-vit-base-patch32")
    vistoken("chat", "-m", model, "Hi").failed(2, "no trained weights", "mine.yaml", "checkpoint")


def test_recipe_file_that_is_not_there(vistoken, tmp_path):
    vistoken("chat", "-m", tmp_path / "gone.yaml", "Hi").failed(2, "gone.yaml", "does not exist")


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("cpu:x", 2, ["'cpu:x'", "cpu:0"]),
        ("cuda:", 2, ["'cuda:'", "cuda:0"]),
        ("cuda:-1", 2, ["'cuda:-1'"]),
        ("cpu:7", 5, ["cpu:7", "finds 1"]),
    ],
)
def test_device_numbers(vistoken, name, code, words):
    vistoken(*PICO, "--device", name, "Hi").failed(code, *words)


def test_more_gpus_than_there_are(vistoken, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    vistoken(*PICO, "--device", "cuda:9", "Hi").failed(5, "cuda:9", "finds 2")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_runs_out(vistoken, monkeypatch, error):
    from vistoken.models import VistokenForConditionalGeneration

    def exhausted(self, **_):
        raise error

    monkeypatch.setattr(VistokenForConditionalGeneration, "generate", exhausted)
    line = vistoken(*PICO, "Hi").failed(5, "memory", "--dtype", "--quantization", "tokens")
    assert "bug" not in line


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.png", None, ["does not exist"]),
        ("text.jpg", b"this is no picture", ["not a picture"]),
        ("empty.png", b"", ["not a picture"]),
        ("bomb.png", png_header(60_000, 60_000), ["more pixels"]),
        ("flat.png", png_header(0, 5), []),
        ("broken.png", png_header(40, 40), ["truncated or corrupt"]),
    ],
)
def test_bad_pictures(vistoken, tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    vistoken(*PICO, path, "What is this?").failed(3, name, *words)


def test_truncated_picture(vistoken, images):
    images[1].write_bytes(images[1].read_bytes()[:-200])
    vistoken(*PICO, images[1], "What is this?").failed(3, "tall.jpg", "truncated")


def test_animated_picture(vistoken, tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    vistoken(*PICO, tmp_path / "moves.gif", "What?").failed(3, "moves.gif", "2 frames")


def test_folder_as_picture(vistoken, tmp_path):
    vistoken(*PICO, "--image", tmp_path, "What?").failed(3, "is a folder")


@pytest.mark.parametrize(
    ("mode", "suffix"), [("CMYK", "jpg"), ("I;16", "png"), ("RGBA", "png"), ("P", "gif")]
)
def test_unusual_pictures_are_taken(vistoken, tmp_path, mode, suffix):
    path = tmp_path / f"odd.{suffix}"
    Image.new(mode, (30, 20)).save(path)
    assert vistoken(*PICO, path, "--json", "What?").data["visual_tokens"] == 18


@pytest.mark.parametrize("question", ["", "   "])
def test_empty_question(vistoken, question):
    vistoken(*PICO, question).failed(3, "empty")


def test_image_marks_in_the_question(vistoken, images):
    vistoken(*PICO, images[0], "What is <image>?").failed(3, "1 <image> marks")


def test_unreachable_address(vistoken):
    vistoken(*PICO, "http://127.0.0.1:9/x.png", "What?").failed(3, "cannot be fetched")


def test_directory_that_is_no_checkpoint(vistoken, tmp_path):
    vistoken("chat", "--model", tmp_path, "Hi").failed(4, "config.json")


def test_file_as_model(vistoken, images):
    vistoken("chat", "--model", images[0], "Hi").failed(2, "is a file")


def test_device_that_is_not_there(vistoken):
    if torch.backends.mps.is_available():
        pytest.skip("this machine has MPS")
    vistoken(*PICO, "--device", "mps", "Hi").failed(5, "mps")


def test_full_checkpoint_answers_like_the_recipe(vistoken, full_checkpoint, images):
    ours = vistoken(*PICO, images[0], "--json", "What?").data["answer"]
    theirs = vistoken(
        "chat", "-m", full_checkpoint, "--max-new-tokens", "4", images[0], "--json", "What?"
    )
    assert theirs.data["answer"] == ours


@pytest.fixture
def damaged(full_checkpoint, tmp_path):
    """A copy of a checkpoint to be damaged."""
    import shutil

    return shutil.copytree(full_checkpoint, tmp_path / "damaged")


def test_checkpoint_without_a_chat_template(vistoken, damaged):
    (damaged / "chat_template.jinja").unlink()
    vistoken("chat", "-m", damaged, "Hi").failed(2, "no chat template")


def test_checkpoint_without_weights(vistoken, damaged):
    (damaged / "model.safetensors").unlink()
    vistoken("chat", "-m", damaged, "Hi").failed(4, "damaged")


def test_checkpoint_without_a_tensor(vistoken, damaged):
    from safetensors.torch import load_file, save_file

    state = load_file(damaged / "model.safetensors")
    del state["model.multi_modal_projector.llava-sp.spatial_projector.weight"]
    save_file(state, damaged / "model.safetensors", metadata={"format": "pt"})
    vistoken("chat", "-m", damaged, "Hi").failed(4, "spatial_projector.weight", "missing")


def test_checkpoint_with_a_wrong_shape(vistoken, damaged):
    from safetensors.torch import load_file, save_file

    state = load_file(damaged / "model.safetensors")
    name = "model.multi_modal_projector.llava-sp.spatial_projector.weight"
    state[name] = state[name][:5].clone()
    save_file(state, damaged / "model.safetensors", metadata={"format": "pt"})
    vistoken("chat", "-m", damaged, "Hi").failed(4, "damaged")


def test_truncated_checkpoint(vistoken, damaged):
    path = damaged / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    vistoken("chat", "-m", damaged, "Hi").failed(4, "damaged")


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickled_code_is_not_run(vistoken, damaged, tmp_path):
    (damaged / "model.safetensors").unlink()
    with (damaged / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"weight": Trap(tmp_path / "sprung")}, file)
    vistoken("chat", "-m", damaged, "Hi").failed(4, "damaged")
    assert not (tmp_path / "sprung").exists()


def test_words_are_told_apart(images):
    assert split_words([str(images[0]), "What is it?"]) == ([str(images[0])], "What is it?")
    assert split_words(["gone.png"]) == (["gone.png"], None)
    assert split_words(["What is in photo.jpg"])[1] is None  # ends like a picture's name
    assert looks_like_picture("https://example.com/x")
    assert not looks_like_picture("What is on https://example.com/x?")
    assert not looks_like_picture("")
