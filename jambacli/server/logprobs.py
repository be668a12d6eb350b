"""Log-probabilities as requests ask for them, and in the forms of each API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jambacli.server.errors import bad_request
from jambacli.server.request import read_count, read_flag
from jambacli.text.markup import CITATIONS, CITATIONS_END
from jambacli.text.streaming import StreamDecoder

if TYPE_CHECKING:
    from jambacli.engine.logprobs import TokenLogprob
    from jambacli.text.tokenizer import Tokenizer

#: The most alternatives beside a token, as in OpenAI's API.
MAX_TOP = 20


def read_chat_logprobs(body: Mapping[str, Any]) -> int | None:
    """How many alternatives a chat's body asks for beside each token, None for no log-probabilities. Raises ApiError."""
    top = read_count(body, "top_logprobs", 0, MAX_TOP, 0)
    if read_flag(body, "logprobs"):
        return top
    if top:
        raise bad_request("the field 'top_logprobs' needs 'logprobs': true", "top_logprobs")
    return None


def read_text_logprobs(body: Mapping[str, Any]) -> int | None:
    """The same for a text completion, whose ``logprobs`` is the number itself. Raises ApiError."""
    value = body.get("logprobs")
    if value is None or value is False:
        return None
    return read_count(body, "logprobs", 0, MAX_TOP, 0)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _entry(tokenizer: Tokenizer, token: int, logprob: float | None) -> dict[str, Any]:
    data = tokenizer.token_bytes(token, True)
    return {"token": _text(data), "bytes": list(data), "logprob": logprob}


def content_logprobs(scores: Sequence[TokenLogprob], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The tokens of a text in the form of OpenAI's chats and responses, and of Ollama; thoughts are left out."""
    return [
        {
            **_entry(tokenizer, score.token, score.logprob),
            "top_logprobs": [_entry(tokenizer, token, value) for token, value in score.top],
        }
        for score in scores
        if not score.thought
    ]


class TextLogprobs:
    """The tokens of one text completion, piece by piece, in the form of OpenAI's text completions."""

    def __init__(self, tokenizer: Tokenizer, unseen: int = 0) -> None:
        """``unseen``: how many tokens at the beginning are not in the text: the bos that was added to a prompt."""
        self._tokenizer, self._unseen, self._at, self._whole = tokenizer, unseen, 0, False
        citations = {tokenizer.marker_id(CITATIONS), tokenizer.marker_id(CITATIONS_END)}

        def shown(token: int, _: bool) -> bytes:
            return tokenizer.token_bytes(token, self._whole or token in citations)

        self._decoder = StreamDecoder(shown)

    def add(self, scores: Sequence[TokenLogprob], *, prompt: bool = False) -> dict[str, Any]:
        """The next tokens; ``text_offset`` counts the characters before each in the choice's text. ``prompt``: they are the
        prompt's, whose markers are part of its text."""
        tokens: list[str] = []
        offsets: list[int] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        self._whole = prompt
        for score in scores:
            if score.thought:
                continue
            tokens.append(self._name(score.token))
            offsets.append(self._at)
            values.append(score.logprob)
            tops.append(None if score.logprob is None else self._top(score))
            if self._unseen:
                self._unseen -= 1
            else:
                self._at += len(self._decoder.push(score.token))
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}

    def _name(self, token: int) -> str:
        return _text(self._tokenizer.token_bytes(token, True))

    def _top(self, score: TokenLogprob) -> dict[str, float]:
        """The most probable tokens and the one that is there. Of several with the same text (parts of characters) the most
        probable counts."""
        assert score.logprob is not None
        best: dict[str, float] = {}
        for token, value in (*score.top, (score.token, score.logprob)):
            best.setdefault(self._name(token), value)
        return best


def mean_logprob(scores: Sequence[TokenLogprob]) -> float:
    """The mean over the tokens of a reply, by which the best of several is chosen; 0 for no tokens."""
    values = [score.logprob for score in scores if score.logprob is not None]
    return sum(values) / len(values) if values else 0.0
