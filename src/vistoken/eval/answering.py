"""How a model answers a question: greedily, and whether that is the right answer.

Two methods with one result. ``generate`` lets the model write. ``forced`` reads the right answer
in one pass with all other questions about the picture: greedy decoding writes exactly that answer
if and only if every arg-max along it agrees. Where one differs, what the model says up to there is
known, and only if that could still become the right answer (another case, a full stop) it is left
to write on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from vistoken.eval.prompts import Asked
from vistoken.eval.scoring import exact_match, normalise_answer
from vistoken.models.outputs import ImageFeatures
from vistoken.train.masks import decoder_mask
from vistoken.train.packing import IGNORE, Packed, batch_packed, pack, sharable_prefix

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration
    from vistoken.models.processing import VistokenProcessor

Method = Literal["forced", "generate"]
METHODS: tuple[Method, ...] = ("forced", "generate")


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        right: Whether it is the right answer, once both are normalised.
        text: What it said.
        complete: False where ``text`` stops at the first token that makes it wrong.
    """

    right: bool
    text: str
    complete: bool = True


@dataclass(frozen=True)
class Answerer:
    """Answers questions greedily.

    Args:
        model: The model.
        processor: Its processor.
        method: ``forced`` or ``generate``.
        max_new_tokens: Longest answer that is written.
    """

    model: VistokenForConditionalGeneration
    processor: VistokenProcessor
    method: Method = "forced"
    max_new_tokens: int = 64

    @torch.inference_mode()
    def __call__(
        self,
        asked: Sequence[Asked],
        answers: Sequence[str],
        others: Sequence[Sequence[str]] | None = None,
    ) -> list[Answer]:
        """Answer questions about the same pictures.

        Args:
            asked: The questions.
            answers: The right answer of each.
            others: Further answers of each that count as right; none when None.
        """
        rights = [
            (answer, *more)
            for answer, more in zip(answers, others or [()] * len(asked), strict=True)
        ]
        if self.method == "generate":
            return self._written(asked, rights)
        results: list[Answer | None] = [None] * len(asked)
        for members in _sharing(asked):
            tokens = self._forced([asked[number] for number in members])
            for number, said in zip(members, tokens, strict=True):
                results[number] = self._judge(asked[number], said, rights[number])
        open_ones = [number for number, result in enumerate(results) if result is None]
        written = self._written([asked[n] for n in open_ones], [rights[n] for n in open_ones])
        for number, answer in zip(open_ones, written, strict=True):
            results[number] = answer
        return [result for result in results if result is not None]

    def _forced(self, asked: Sequence[Asked]) -> list[list[int]]:
        """Arg-max at every token of every right answer, in one packed pass."""
        packed = pack([question.row for question in asked])
        greedy = self._argmax(packed, asked[0].features).tolist()
        said: list[list[int]] = [[] for _ in asked]
        for row, token in zip(packed.rows.tolist(), greedy, strict=True):
            said[row].append(token)
        return said

    def _argmax(self, packed: Packed, features: ImageFeatures | None) -> Tensor:
        batch = batch_packed([packed], 0)
        core = self.model.model
        embedding: Any = core.get_input_embeddings()
        table: Tensor = embedding.weight
        hidden = core(
            input_ids=batch.input_ids.to(table.device),
            position_ids=batch.position_ids.to(table.device),
            attention_mask=decoder_mask(
                batch.segments, core.language_model.config, table.dtype, table.device
            ),
            mm_encoder_outputs=None if features is None else {"image": features},
            text_map=batch.token_map.to(table.device),
            use_cache=False,
        ).last_hidden_state
        logits = self.model.lm_head(hidden.flatten(0, 1)[batch.sources.to(table.device)])
        logits[:, self.model.generation_config.suppress_tokens or []] = -torch.inf
        return logits.argmax(-1).cpu()

    def _judge(self, asked: Asked, said: Sequence[int], right: Sequence[str]) -> Answer | None:
        """The answer that these arg-maxes mean; None where the model must write on."""
        wanted = [label for label in asked.row.labels if label != IGNORE]
        ends = self._end_tokens()
        for place, (token, forced) in enumerate(zip(said, wanted, strict=True)):
            if token in ends or place == self.max_new_tokens:
                text = self._text(said[:place])
                return Answer(_matches(text, right), text)
            if token != forced:
                text = self._text(said[: place + 1])
                possible = any(could_become(text, answer) for answer in right)
                return None if possible else Answer(False, text, complete=False)
        return None  # the template ends an answer with a token that does not end generation

    def _written(self, asked: Sequence[Asked], rights: Sequence[Sequence[str]]) -> list[Answer]:
        """Let the model write, questions of equal prompt length at a time, so nothing is padded."""
        results: list[Answer | None] = [None] * len(asked)
        lengths: dict[int, list[int]] = {}
        for number, question in enumerate(asked):
            lengths.setdefault(len(question.prompt), []).append(number)
        for members in lengths.values():
            texts = self._generate([asked[number] for number in members])
            for number, text in zip(members, texts, strict=True):
                results[number] = Answer(_matches(text, rights[number]), text)
        return [result for result in results if result is not None]

    def _generate(self, asked: Sequence[Asked]) -> list[str]:
        embedding: Any = self.model.get_input_embeddings()
        ids = torch.tensor([question.prompt for question in asked], device=embedding.weight.device)
        said = torch.stack([question.text_map for question in asked])
        options: dict[str, Any] = {"text_map": said.to(ids.device)}
        shown = [q.features for q in asked if q.features is not None]
        if shown:
            options["mm_encoder_outputs"] = {"image": _side_by_side(shown)}
        written = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            max_new_tokens=self.max_new_tokens,
            **options,
        )
        ends = self._end_tokens()
        texts = []
        for row in written[:, ids.shape[1] :].tolist():
            stop = next((place for place, token in enumerate(row) if token in ends), len(row))
            texts.append(self._text(row[:stop]))
        return texts

    def _end_tokens(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        return set(ends) if isinstance(ends, (list, tuple)) else {ends}

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self.processor.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def _matches(text: str, answers: Sequence[str]) -> bool:
    """Whether a text is one of the right answers."""
    return any(exact_match(text, answer) for answer in answers)


def could_become(beginning: str, answer: str) -> bool:
    """Whether a text that begins like this can still be the right answer once normalised."""
    said = " ".join(beginning.casefold().split())
    if "\ufffd" in said:  # half a character: what it will be is not known yet
        return True
    wanted = normalise_answer(answer)
    return f"{wanted}.".startswith(said) or f"{wanted} .".startswith(said)


def _sharing(asked: Sequence[Asked]) -> list[list[int]]:
    """Numbers of the questions that can share one prefix."""
    groups: dict[object, list[int]] = {}
    for number, question in enumerate(asked):
        prefix = sharable_prefix(question.row)
        groups.setdefault(number if prefix is None else prefix, []).append(number)
    return list(groups.values())


def _side_by_side(features: Sequence[ImageFeatures]) -> ImageFeatures:
    """Pictures of several prompts, in order."""
    maps = [token_map for one in features for token_map in one.token_map or []]
    return ImageFeatures(
        pooler_output=[rows for one in features for rows in one.pooler_output],
        token_map=maps or None,
        side={
            name: [value for one in features for value in (one.side or {})[name]]
            for name in features[0].side or {}
        },
    )
