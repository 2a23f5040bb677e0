"""The embedded engine: whoever shares it, an answer is what `generate` writes alone."""

import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vistoken.core.errors import UsageError
from vistoken.serve.asking import ask
from vistoken.serve.engine import Delta, Done, EmbeddedEngine, EngineLimits, Failed
from vistoken.serve.engine.alone import AloneDecoder
from vistoken.serve.engine.embedded import kv_bytes_per_token
from vistoken.serve.engine.features import FeatureCache
from vistoken.serve.engine.job import Job
from vistoken.serve.engine.prepare import Preparer
from vistoken.serve.engine.sampling import Rules
from vistoken.serve.engine.shared import SharedDecoder
from vistoken.serve.engine.worker import Worker
from vistoken.serve.errors import RequestError

from .conftest import asked_together, build_pico, conversation, generated


class ByHand:
    """A worker that is turned by hand, so that a test decides what happens when."""

    def __init__(self, model, processor, decoder=None, rows=4, places=2000, cache=2**20):
        self.decoder = decoder or SharedDecoder(model, rows, 16, places)
        self.prepare = Preparer(processor, 4096, 8, with_text_map=False)
        self.features = FeatureCache(cache)
        self.worker = Worker(
            model,
            processor.tokenizer,
            self.decoder,
            Rules(model.generation_config),
            self.features,
            rows,
            places,
        )

    def add(self, wanted):
        events = []
        job = Job(self.prepare(wanted), events.append, 0.0)
        self.worker.add(job)
        return job, events

    def turn(self, times=1):
        for _ in range(times):
            self.worker.turn()

    def finish(self, most=2000):
        for turns in range(most):
            if self.worker.idle:
                return turns
            self.worker.turn()
        raise AssertionError("the engine does not come to an end")


@pytest.fixture(scope="module")
def own():
    return build_pico()


def tokens_of(events, choice=0):
    deltas = [e for e in events if isinstance(e, Delta) and e.choice == choice]
    return [token for delta in deltas for token in delta.tokens]


def text_of(events, choice=0):
    return "".join(e.text for e in events if isinstance(e, Delta) and e.choice == choice)


QUESTIONS = [
    ("What?", (), 9),
    ("How many cups are there in all, and of which colours?", (), 3),
    ("Where?", ((40, 56, 0),), 12),
    ("Compare.", ((32, 32, 1), (90, 30, 2)), 7),
    ("a", ((40, 56, 0),), 1),
]


@pytest.fixture
def questions(shown):
    return [
        (conversation(text, *(shown(*size) for size in sizes), max_tokens=tokens), tokens)
        for text, sizes, tokens in QUESTIONS
    ]


_singles: dict[int, list[int]] = {}


def single(own, questions, number):
    if number not in _singles:
        wanted, tokens = questions[number]
        _singles[number] = generated(*own, wanted, tokens)
    return _singles[number]


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.integers(0, len(QUESTIONS) - 1)),
        st.tuples(st.just("turn"), st.integers(1, 4)),
        st.tuples(st.just("cancel"), st.integers(0, 7)),
    ),
    min_size=1,
    max_size=14,
)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(actions=ACTIONS, rows=st.integers(1, 4))
def test_in_whatever_order_requests_come_and_go_answers_are_those_of_generate(
    own, questions, actions, rows
):
    hand = ByHand(*own, rows=rows)
    jobs = []
    for what, number in actions:
        if what == "arrive":
            jobs.append((number, *hand.add(questions[number][0])))
        elif what == "turn":
            hand.turn(number)
        elif number < len(jobs):
            jobs[number][1].cancel()
    hand.finish()
    for number, job, events in jobs:
        if job.cancelled and not job.finished:
            continue
        right = single(own, questions, number)
        assert tokens_of(events) == right
        assert isinstance(events[-1], Done)
        text = own[1].tokenizer.decode(right, skip_special_tokens=True)
        assert text_of(events) == text
    assert hand.decoder.stored_bytes() == 0


def test_many_turns_with_shared_slots_reach_far_beyond_the_first_buffer(own, shown):
    hand = ByHand(*own, places=4000)
    long = conversation("Tell.", max_tokens=150, ignore_eos=True)
    late = conversation("What?", shown(), max_tokens=80, ignore_eos=True)
    first, second = hand.add(long), None
    hand.turn(90)
    second = hand.add(late)
    hand.finish()
    free = {"eos_token_id": None, "pad_token_id": 0}
    assert tokens_of(first[1]) == generated(*own, long, 150, **free)
    assert tokens_of(second[1]) == generated(*own, late, 80, **free)


def test_a_long_prompt_does_not_hold_up_those_who_write(own):
    hand = ByHand(*own, places=20_000)
    writing = hand.add(conversation("a", max_tokens=200, ignore_eos=True))
    hand.turn(3)
    before = len(tokens_of(writing[1]))
    huge = hand.add(conversation("word " * 300, max_tokens=2))
    turns = 0
    while not tokens_of(huge[1]):
        hand.turn()
        turns += 1
    assert turns > 10  # it was read in pieces ...
    assert len(tokens_of(writing[1])) - before == turns  # ... and each turn wrote a token


def test_a_short_prompt_is_not_kept_waiting_by_a_long_one(own):
    hand = ByHand(*own, places=20_000)
    huge = hand.add(conversation("word " * 300, max_tokens=2))
    short = hand.add(conversation("a", max_tokens=1))
    hand.turn(8)
    assert isinstance(short[1][-1], Done)
    assert not huge[1]


def test_a_big_request_is_not_passed_for_ever_by_small_ones(own):
    """Everything is in use; small requests go on coming, and the big one gets its turn."""
    hand = ByHand(*own, rows=4)
    small = [hand.add(conversation("a", max_tokens=6, ignore_eos=True)) for _ in range(4)]
    hand.turn(2)
    big = hand.add(conversation("a", n=4, max_tokens=2, ignore_eos=True))
    late = [hand.add(conversation("a", max_tokens=6, ignore_eos=True)) for _ in range(8)]
    for _ in range(30):
        if big[1]:
            break
        hand.turn()
    assert isinstance(big[1][0], Delta)
    assert all(isinstance(events[-1], Done) for _, events in small)
    assert not any(events for _, events in late)
    hand.finish()


def test_a_picture_seen_before_is_not_encoded_again(own, shown, monkeypatch):
    model, processor = own
    calls = []
    encode = model.get_image_features
    monkeypatch.setattr(
        model, "get_image_features", lambda *a, **k: calls.append(1) or encode(*a, **k)
    )
    hand = ByHand(model, processor)
    first = hand.add(conversation("Where?", shown(seed=5), max_tokens=3))
    hand.finish()
    again = hand.add(conversation("Where?", shown(seed=5), shown(seed=6), max_tokens=3))
    hand.finish()
    assert len(calls) == 2
    assert first[0].usage.cached_pictures == 0
    assert again[0].usage.cached_pictures == 1
    assert tokens_of(again[1]) == generated(
        model, processor, conversation("Where?", shown(seed=5), shown(seed=6)), 3
    )


def test_the_feature_cache_forgets_the_longest_unused(own, shown):
    hand = ByHand(*own)
    hand.add(conversation("a", shown(seed=0), max_tokens=1))
    hand.finish()
    one = hand.features.bytes
    assert one > 0
    hand = ByHand(*own, cache=2 * one)
    for seed in (0, 1, 0, 2):  # 1 is the longest unused when 2 comes
        hand.add(conversation("a", shown(seed=seed), max_tokens=1))
        hand.finish()
        assert hand.features.bytes <= 2 * one
    assert [hand.features.get(f"40x56/{seed}") is not None for seed in (0, 1, 2)] == [
        True,
        False,
        True,
    ]


def test_no_cache_at_all(own, shown):
    hand = ByHand(*own, cache=0)
    hand.add(conversation("a", shown(), max_tokens=1))
    hand.finish()
    assert len(hand.features) == 0


def test_an_error_while_a_prompt_is_read_ends_that_request_alone(own, shown, monkeypatch):
    model, processor = own
    hand = ByHand(model, processor)
    fine = hand.add(conversation("What?", max_tokens=8))
    hand.turn(2)

    def broken(*args):
        raise RuntimeError("towers fell")

    monkeypatch.setattr(model, "get_image_features", broken)
    bad = hand.add(conversation("What?", shown(), max_tokens=8))
    hand.finish()
    assert isinstance(bad[1][-1], Failed)
    assert tokens_of(fine[1]) == generated(model, processor, conversation("What?"), 8)


def test_a_step_that_fails_for_one_row_leaves_the_others_whole(own, monkeypatch):
    model, processor = own
    hand = ByHand(model, processor)
    fine = hand.add(conversation("What?", max_tokens=8, ignore_eos=True))
    bad = hand.add(conversation("How?", max_tokens=8, ignore_eos=True))
    hand.turn(4)
    victim = next(row.seat for row in hand.worker.writing.rows if row.job is bad[0])
    step = hand.decoder.step

    def sometimes(seats):
        logits = step(seats)  # it fails after keys and values were written
        if victim in seats:
            raise RuntimeError("this row does not work")
        return logits

    monkeypatch.setattr(hand.decoder, "step", sometimes)
    hand.finish()
    assert isinstance(bad[1][-1], Failed)
    free = {"eos_token_id": None, "pad_token_id": 0}
    assert tokens_of(fine[1]) == generated(model, processor, conversation("What?"), 8, **free)


def test_a_listener_that_raises_does_not_stop_the_others(own):
    hand = ByHand(*own)
    fine = hand.add(conversation("What?", max_tokens=5))

    def gone(event):
        raise ConnectionError

    hand.worker.add(Job(hand.prepare(conversation("What?", max_tokens=5)), gone, 0.0))
    hand.finish()
    assert isinstance(fine[1][-1], Done)


def test_cancelling_frees_the_row_at_the_next_turn(own):
    hand = ByHand(*own, rows=1)
    first, _ = hand.add(conversation("What?", max_tokens=500, ignore_eos=True))
    second = hand.add(conversation("a", max_tokens=2, ignore_eos=True))
    hand.turn(5)
    assert not second[1]
    first.cancel()
    hand.turn(4)
    assert isinstance(second[1][-1], Done)


def test_keys_and_values_stay_within_their_memory(own):
    """Requests that would exceed it together take turns; none is lost."""
    model, processor = own
    places = 120
    hand = ByHand(model, processor, places=places)
    jobs = [hand.add(conversation("a", max_tokens=20, ignore_eos=True)) for _ in range(4)]
    most_rows = 0
    most_bytes = 0
    while not hand.worker.idle:
        hand.turn()
        most_rows = max(most_rows, len(hand.worker.writing.rows))
        most_bytes = max(most_bytes, hand.decoder.stored_bytes())
    assert 1 <= most_rows < 4
    assert most_bytes <= places * kv_bytes_per_token(model)
    assert all(isinstance(events[-1], Done) for _, events in jobs)


def test_kv_bytes_are_those_that_a_cache_really_takes(own):
    model, _ = own
    with torch.inference_mode():
        out = model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True)
    real = sum(
        b.numel() * b.element_size()
        for layer in out.past_key_values.layers
        for b in (layer.keys, layer.values)
    )
    assert kv_bytes_per_token(model) * 3 == real


def test_several_answers_share_one_prompt_and_each_has_its_own_dice(own, shown):
    model, processor = own
    hand = ByHand(model, processor)
    wanted = conversation(
        "What?", shown(), n=3, temperature=1.5, seed=7, max_tokens=12, ignore_eos=True
    )
    _, events = hand.add(wanted)
    hand.finish()
    answers = [tokens_of(events, choice) for choice in range(3)]
    assert all(len(answer) == 12 for answer in answers)
    assert answers[0] != answers[1] != answers[2]
    # choice k is what a request with seed + k says alone, whoever else is there
    for choice in range(3):
        hand = ByHand(model, processor)
        hand.add(conversation("noise", temperature=2.0, max_tokens=12, ignore_eos=True))
        _, alone = hand.add(
            conversation(
                "What?", shown(), temperature=1.5, seed=7 + choice, max_tokens=12, ignore_eos=True
            )
        )
        hand.finish()
        assert tokens_of(alone) == answers[choice]


def test_sampling_follows_the_probabilities_and_top_p_cuts_the_tail():
    from vistoken.serve.engine.sampling import Chooser, Sampling

    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    dice = Chooser(Sampling(temperature=1.0, seed=1), 0)
    drawn = torch.bincount(torch.tensor([dice.draw(logits) for _ in range(2000)]), minlength=4)
    assert torch.allclose(drawn / 2000, logits.exp(), atol=0.04)
    dice = Chooser(Sampling(temperature=1.0, top_p=0.6, seed=1), 0)
    assert {dice.draw(logits) for _ in range(200)} == {0, 1}
    dice = Chooser(Sampling(temperature=1e-300, seed=1), 0)
    assert {dice.draw(logits) for _ in range(20)} == {0}


def test_stop_texts_end_an_answer_before_them(own):
    wanted = conversation("What?", max_tokens=40, ignore_eos=True)
    hand = ByHand(*own)
    _, events = hand.add(wanted)
    hand.finish()
    whole = text_of(events)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    _, events = hand.add(
        conversation("What?", max_tokens=40, ignore_eos=True, stop=(stop, "never to be found"))
    )
    hand.finish()
    assert text_of(events) == whole[: whole.find(stop)]
    assert [e.finish for e in events if isinstance(e, Delta)][-1] == "stop"


def test_what_a_checkpoint_asks_of_its_answers_is_kept(own):
    """A repetition penalty changes what `generate` says, and what the engine says alike."""
    model, processor = build_pico()
    model.generation_config.repetition_penalty = 1.9
    hand = ByHand(model, processor)
    wanted = conversation("What?", max_tokens=12, ignore_eos=True)
    _, events = hand.add(wanted)
    hand.finish()
    free = {"eos_token_id": None, "pad_token_id": 0}
    penalised = generated(model, processor, wanted, 12, **free)
    assert tokens_of(events) == penalised
    assert penalised != generated(*own, wanted, 12, **free)


def test_what_cannot_be_kept_is_refused_by_name():
    model, processor = build_pico()
    model.generation_config.min_new_tokens = 5
    with pytest.raises(UsageError, match="min_new_tokens"):
        EmbeddedEngine("pico", model, processor)


@pytest.mark.parametrize("system", ["saisa", "yopo"])
def test_models_with_mechanisms_are_stepped_row_by_row_and_say_so(system, shown):
    from vistoken.models.build import build
    from vistoken.models.recipe import load_recipe

    recipe = load_recipe("pico")
    options = {"saisa": {"connector": ["mlp"]}, "yopo": {}}[system]
    recipe = recipe.model_copy(update={"mechanisms": [system], **options})
    model, processor = build(recipe)
    model.eval()
    questions = [
        conversation("What?", shown(), max_tokens=6),
        conversation("How many?", max_tokens=9),
        conversation("Where is it?", shown(seed=1), max_tokens=4),
    ]
    right = [generated(model, processor, q, q.sampling.max_tokens) for q in questions]
    engine = EmbeddedEngine("m", model, processor)
    said = engine.describe()["capabilities"]
    assert said["batching"] == "row-by-row"
    assert system in said["batching_reason"]
    answers = asked_together(engine, questions)
    engine.close()
    assert answers == right


def test_rows_stepped_alone_share_a_prompt(own, shown):
    model, processor = own
    hand = ByHand(model, processor, AloneDecoder(model))
    wanted = conversation("What?", shown(), n=2, max_tokens=6)
    _, events = hand.add(wanted)
    hand.finish()
    right = generated(model, processor, wanted, 6)
    assert tokens_of(events, 0) == tokens_of(events, 1) == right


def test_a_full_queue_refuses_and_says_when_to_come_back(own):
    model, processor = build_pico()
    engine = EmbeddedEngine("pico", model, processor, EngineLimits(max_rows=1, max_queue=1))
    held, release = threading.Event(), threading.Event()

    def hold(*_):
        held.set()
        release.wait(30)

    waiting = threading.Thread(target=lambda: engine.run(hold))
    waiting.start()
    held.wait(30)
    events = []
    engine.submit(conversation("a", max_tokens=1), events.append)
    with pytest.raises(RequestError) as caught:
        engine.submit(conversation("a", max_tokens=1), events.append)
    release.set()
    waiting.join()
    engine.close()
    assert caught.value.status == 429
    assert caught.value.retry_after >= 1
    assert isinstance(events[-1], Done)
    with pytest.raises(RequestError) as caught:
        engine.submit(conversation("a"), events.append)
    assert caught.value.status == 503


def test_asking_from_a_thread(engine, shown):
    events = list(ask(engine, conversation("What?", shown(), max_tokens=5, ignore_eos=True)))
    assert sum(len(event.tokens) for event in events[:-1]) == 5
    usage = events[-1].usage
    assert usage.completion_tokens == 5
    assert 0 < usage.visual_tokens < usage.prompt_tokens
    assert 0 < usage.first_token_ms <= usage.total_ms


def test_too_long_a_prompt_is_refused_before_it_is_tokenised(engine):
    with pytest.raises(RequestError) as caught:
        engine.prepare(conversation("x" * 200_000))
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(RequestError, match="4096"):
        engine.prepare(conversation("a b c", max_tokens=4096))
    with pytest.raises(RequestError, match="image mark"):
        engine.prepare(conversation("look: <image>"))
