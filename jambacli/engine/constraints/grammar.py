"""Constrain a reply to a grammar: llguidance says which tokens may come next.

llguidance says in a fraction of a millisecond which of the 65,536 tokens keep the text valid. This module adds three
things: the text ends validly within the token budget (near its end every choice is tried against the shortest way to
finish, and replaced where that no longer fits), numbers end (a schema does not limit their digits), and thoughts before
the answer are unconstrained.
"""

from __future__ import annotations

import copy
import functools
import re
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jambacli.engine.constraints.schema_checks import refused
from jambacli.errors import JambaError

if TYPE_CHECKING:
    from jambacli.text.tokenizer import Tokenizer

#: How JSON is written: as models do, with a space after commas and colons, and no other.
JSON_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# A number of this length ends as soon as it can: no double or 64-bit integer has more digits.
_NUMBER = 17
# The shortest way to finish is searched at every step in the last _NEAR tokens, before that at every _STEP-th.
_NEAR, _STEP = 64, 16
# Limits of the search for a way to finish: tries (the first and the last by rule, the others at random, as a pattern may
# have only one way out); choices in one try; tokens of the longest way; choices within one string, except in the last try.
_TRIES, _CHOICES, _LONGEST, _IN_STRING = 12, 8192, 1 << 16, 256
# Grammars that are kept.
_MATCHERS = 16


class GrammarConstraint:
    """The constraint of a grammar: call ``begin``, then ``allowed`` and ``accept`` in turn."""

    #: Whether it decides the whole reply, so that stop strings do not apply and the reply is complete when it ends.
    whole = True

    def __init__(
        self,
        tokenizer: Tokenizer,
        grammar: str,
        n_vocab: int,
        marks: tuple[int | None, int | None],
    ):
        """``grammar``: in llguidance's form of Lark. ``n_vocab``: the number of logits. ``marks``: the tokens that begin and
        end thoughts.

        Raises UsageError for a grammar that is invalid, unsupported by llguidance or satisfied by nothing; JambaError
        without llguidance, or for a model without a stop token.
        """
        self._vocabulary = vocabulary_of(tokenizer, n_vocab)
        self._matcher: Any = self._vocabulary.matcher(grammar)
        self._stop_ids = tokenizer.stop_ids
        self._begin, self._end = marks
        self._mask = np.zeros((n_vocab + 31) // 32, dtype=np.int32)
        self._n_vocab = n_vocab
        self._thinking = False
        self._left = 1 << 62
        self._closing: list[int] | None = (
            None  # the last way to finish that was found, perhaps from an earlier position
        )
        self._checked = 0
        self._guard = _NEAR
        self._forced: list[int] = []
        self._cut = False  # whether the document was brought to its end for want of tokens
        self._text = _Text()

    def begin(self, budget: int, thinking: bool = False, said: Sequence[int] = ()) -> None:
        """Start a reply of at most ``budget`` tokens, after ``said`` (its tokens so far) if it is continued.

        ``thinking``: the prompt has opened thoughts. Raises JambaError when no document of the schema fits the budget.
        """
        self._thinking, self._left = thinking, 1 << 62
        for token in said:
            self.accept(token)
        self._left = budget
        self._closing = self._way_out(self._matcher, self._text, min(budget, _LONGEST))
        if self._closing is None:
            raise JambaError(
                f"{budget:,} tokens are too few for any document of the schema (or none satisfies it)",
                remedy="raise {max_tokens}",
            )
        self._guard = len(self._closing) + _NEAR

    def join(self, left: int) -> bool:
        """Begin here, where ``left`` tokens may still come, after ``begin`` with a larger budget; returns whether a document
        fits."""
        self._left = left
        return self._closing is not None and len(self._closing) <= left

    @property
    def finished(self) -> bool:
        """Whether the text so far is a complete document."""
        return not self._thinking and bool(self._matcher.is_accepting())

    def check_finished(self, tokens: int, *, at_context: bool = False) -> None:
        """Raise JambaError for a reply of ``tokens`` tokens that has ended before its document.

        ``at_context``: nobody asked for fewer tokens than the context holds, so a document that was cut short is an error too.
        """
        if self._cut and at_context:
            raise JambaError(
                f"the JSON was cut short after {tokens:,} tokens, at the end of the context",
                remedy="use a larger {ctx}, or {max_tokens}, or give strings a maxLength and arrays a maxItems",
            )
        if not self.finished:
            raise JambaError(
                f"the JSON was not finished within {tokens:,} tokens",
                remedy="raise {max_tokens} (or {ctx}), or give the schema's strings a maxLength and its arrays a maxItems",
            )

    def allowed(self) -> np.ndarray | None:
        """Bool [n_vocab]: the tokens that may come next; None within thoughts, where every token may."""
        if self._thinking:
            out_of_room = self._end is not None and self._left <= self._guard
            return self._only([self._end]) if out_of_room and self._end is not None else None
        if self._forced:
            return self._only(self._forced[:1])
        allowed = self._valid(self._matcher)
        too_long = self._text.banned(self._vocabulary)
        if too_long is not None:
            shorter = allowed & ~too_long
            if shorter.any():
                return shorter
        return allowed

    def accept(self, token: int) -> int:
        """Record ``token``; returns it, or another one when no document could be finished in time after it."""
        self._left -= 1
        if self._thinking:
            if token in self._stop_ids and self._end is not None:
                token = self._end  # the document is still due
            self._thinking = token != self._end
            return token
        if token in self._stop_ids:
            return token
        if self._forced:
            self._forced.pop(0)
        elif self._left < 1 << 61 and (self._left <= self._guard or (self._left < 1024 and self._due())):
            token = self._within_reach(token)
            if token in self._stop_ids:
                return token
        self._text.push(self._vocabulary.pieces[token])
        if not self._matcher.consume_token(token):
            raise JambaError(f"the schema's grammar failed: {_first_line(self._matcher.get_error())}")
        return token

    def forced(self) -> list[int]:
        """The tokens that come next: the rest of the way to finish, or those of a text that the grammar leaves no choice in."""
        if self._thinking or self._forced:
            return list(self._forced)
        return list(self._matcher.compute_ff_tokens())

    def _due(self) -> bool:
        self._checked += 1
        return self._checked % _STEP == 0

    def _within_reach(self, token: int) -> int:
        """``token``, or the first token of the shortest way to finish if ``token`` leads too far from the end."""
        known = self._closing or []
        ahead, text = self._matcher.deep_copy(), copy.copy(self._text)
        ahead.consume_token(token)
        text.push(self._vocabulary.pieces[token])
        # The last way to finish often works after this token too (within a string, say): no search then.
        after = known[1:] if known[:1] == [token] else known
        way = after if _leads_out(ahead, after, self._left) else self._way_out(ahead, text, self._left)
        if way is None:
            still = _leads_out(self._matcher, known, self._left + 1)
            way = known if still else self._way_out(self._matcher, self._text, self._left + 1)
            if way:
                self._cut = True
                self._forced = way[1:]
                self._closing = None
                return way[0]
            if way is None:
                return token
            self._cut = True
            return min(self._stop_ids)  # complete already
        self._closing = way
        self._guard = max(self._guard, len(way) + _NEAR)
        return token

    def _way_out(self, matcher: Any, text: _Text, limit: int) -> list[int] | None:
        """At most ``limit`` tokens that finish the document after ``text``; None when none were found."""
        random = np.random.default_rng(0)
        tries = _TRIES if limit <= 256 else 4
        for attempt in range(tries + 1):
            at, seen, way, choices, in_string = matcher.deep_copy(), copy.copy(text), list[int](), 0, 0
            by_rule = attempt in (0, tries)
            while not at.is_accepting():
                if len(way) >= limit or at.is_error():
                    break
                next_ones = at.compute_ff_tokens()
                if not next_ones:
                    choices += 1
                    in_string = in_string + 1 if seen.in_string else 0
                    next_ones = [self._closer(at, seen, None if by_rule else random)]
                if choices > _CHOICES or (in_string > _IN_STRING and attempt < tries):
                    break
                if next_ones[0] is None or not all(t not in self._stop_ids and at.consume_token(t) for t in next_ones):
                    break
                for token in next_ones:
                    seen.push(self._vocabulary.pieces[token])
                way += next_ones
            else:
                if len(way) <= limit:
                    return way
        return None

    def _closer(self, matcher: Any, text: _Text, random: np.random.Generator | None) -> int | None:
        """A valid token that seems to lead to the end soonest, with ``random`` sometimes any; None when there is none.

        A string that may not end yet often needs a punctuation character: the @ of an address, a dash.
        """
        valid = np.flatnonzero(self._valid(matcher))
        if not len(valid):
            return None
        if random is not None and text.in_string and random.random() < 0.5:
            signs = valid[self._vocabulary.signs[valid]]
            if len(signs):
                return int(random.choice(signs))
        ranks = (self._vocabulary.ranks_in_string if text.in_string else self._vocabulary.ranks)[valid]
        best = valid[ranks == ranks.min()] if random is None or random.random() < 0.7 else valid
        return int(best[0] if random is None else random.choice(best))

    def _valid(self, matcher: Any) -> np.ndarray:
        matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if matcher.is_error():
            raise JambaError(f"the schema's grammar failed: {_first_line(matcher.get_error())}")
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")
        allowed = bits[: self._n_vocab].view(np.bool_)
        # llguidance writes marker N as the bytes "\xff[N]". Where one may follow, its mask also has tokens that are such a
        # beginning, other markers among them; its parser then refuses them.
        markers = self._vocabulary.markers
        for token in markers[allowed[markers]].tolist():
            valid = matcher.is_accepting() if token in self._stop_ids else matcher.validate_tokens([token]) == 1
            allowed[token] = valid
        allowed[self._vocabulary.no_text] = False
        return allowed

    def _only(self, tokens: Sequence[int]) -> np.ndarray:
        allowed = np.zeros(self._n_vocab, dtype=np.bool_)
        allowed[list(tokens)] = True
        return allowed


def _leads_out(matcher: Any, way: Sequence[int], limit: int) -> bool:
    """Whether these tokens finish the document and are at most ``limit``."""
    if len(way) > limit:
        return False
    at = matcher.deep_copy()
    return bool(at.consume_tokens(list(way)) and at.is_accepting())


class _Text:
    """Tracks whether the JSON text is within a string, or how long the number is that it is in."""

    def __init__(self) -> None:
        self.in_string = self._escaped = self._exponent = False
        self._length = 0

    def push(self, piece: bytes) -> None:
        for byte in piece:
            c = chr(byte)
            if self.in_string:
                self.in_string = self._escaped or c != '"'
                self._escaped = c == "\\" and not self._escaped
                self._length = 0
            elif c in "0123456789.+-" or (self._length and c in "eE"):
                self._length += not (self._exponent and c in "+-")
                if c in "eE":
                    self._exponent, self._length = True, _NUMBER - 2  # two more digits are allowed
            else:
                self.in_string, self._escaped = c == '"', False
                self._length, self._exponent = 0, False

    def banned(self, vocabulary: Vocabulary) -> np.ndarray | None:
        """The tokens that would make the number too long: bool [n_vocab]; None when it is still short."""
        if self.in_string or not self._length:
            return None
        if self._length >= _NUMBER:
            return vocabulary.numeric
        return vocabulary.long_numeric if self._exponent or self._length > _NUMBER - 4 else None


class Vocabulary:
    """A tokenizer in llguidance's form, and the kinds of its tokens."""

    def __init__(self, tokenizer: Tokenizer, n_vocab: int) -> None:
        llguidance = _llguidance()
        markers = [i for i in range(tokenizer.vocab_size) if tokenizer.is_marker(i)]
        self.pieces = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.pieces += [b""] * (n_vocab - len(self.pieces))
        stops = sorted(tokenizer.stop_ids)
        if not stops:
            raise JambaError("the model's file defines no stop token, which replies that follow a schema need")
        source = _Source(tokenizer, self.pieces, stops[0], sorted({*markers, *stops}))
        #: The tokens that are markup, and those with a byte that no text has: int64 [number of them].
        self.markers = np.array(markers, dtype=np.int64)
        no_text = [i for i, piece in enumerate(self.pieces) if piece.startswith(b"\xff") and i not in markers]
        self.no_text = np.array(no_text, dtype=np.int64)
        self._matchers: dict[str, Any] = {}
        #: Schemas of tools and what is left of them; see ``relaxed``.
        self.relaxed: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
        self.backend: Any = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(source),
            n_vocab=n_vocab,
            eos_token=stops,
            slices=llguidance.LLTokenizer.json_slices(),
        )
        #: How soon a token leads to the document's end (0: soonest), outside and inside strings: uint8 [n_vocab].
        self.ranks = np.array([_rank(p) for p in self.pieces], dtype=np.uint8)
        self.ranks_in_string = np.array([_rank_in_string(p) for p in self.pieces], dtype=np.uint8)
        #: Single punctuation characters, including quotes: bool [n_vocab].
        self.signs = np.array([len(p) == 1 and p in _SIGNS for p in self.pieces])
        #: Tokens that continue a number, and those of more than one character: bool [n_vocab].
        self.numeric = np.array([p[:1] in _NUMERIC for p in self.pieces])
        self.long_numeric = self.numeric & np.array([len(p) > 1 for p in self.pieces])

    def refusal(self, grammar: str) -> str:
        """Why llguidance refuses a grammar, "" if it does not."""
        llguidance = _llguidance()
        form = llguidance.LLMatcher.grammar_from_lark(grammar)
        return str(llguidance.LLMatcher.validate_grammar(form, self.backend))

    def matcher(self, grammar: str) -> Any:
        """A matcher of a grammar at its beginning; the last few grammars are kept. Raises UsageError when it is refused."""
        llguidance = _llguidance()
        known = self._matchers.pop(grammar, None)
        if known is None:
            form = llguidance.LLMatcher.grammar_from_lark(grammar)
            known = llguidance.LLMatcher(self.backend, form, log_level=0)
            if known.is_error():
                raise refused(known.get_error())
        self._matchers[grammar] = known
        while len(self._matchers) > _MATCHERS:
            self._matchers.pop(next(iter(self._matchers)), None)
        return known.deep_copy()


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise JambaError("replies that follow a schema need: pip install 'jambacli[schema]'") from error
    return llguidance


_SIGNS = frozenset(bytes([c]) for c in b" !\"#$%&'()*+,-./:;<=>?@[]^_`{|}~")
_NUMERIC = frozenset(bytes([c]) for c in b"0123456789.eE+-")


class _Source:
    """The interface that llguidance expects of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, pieces: list[bytes], eos: int, special: list[int]) -> None:
        self._tokenizer = weakref.ref(tokenizer)  # the cached tables must not keep the tokenizer alive
        self.eos_token_id, self.bos_token_id = eos, tokenizer.bos_id
        self.tokens, self.special_token_ids = pieces, special

    def __call__(self, text: str | bytes) -> list[int]:
        tokenizer = self._tokenizer()
        return tokenizer.encode(text if isinstance(text, str) else text.decode("utf-8", "replace")) if tokenizer else []


_vocabularies: weakref.WeakKeyDictionary[Tokenizer, dict[int, Vocabulary]] = weakref.WeakKeyDictionary()


def vocabulary_of(tokenizer: Tokenizer, n_vocab: int) -> Vocabulary:
    """The vocabulary of a tokenizer, made once: it takes half a second for 65,536 tokens."""
    known = _vocabularies.setdefault(tokenizer, {})
    if n_vocab not in known:
        known[n_vocab] = Vocabulary(tokenizer, n_vocab)
    return known[n_vocab]


@functools.lru_cache(maxsize=1 << 17)
def _rank(piece: bytes) -> int:
    """Closing brackets first, then quotes, then what makes a value of one character, then the rest."""
    if re.fullmatch(rb'"?[}\]]+', piece):
        return 0 if len(piece) == 1 else 1
    order = [rb'"', rb"[0-9]", rb"[A-Za-z]", rb"[,: ]", rb"[ -~]", rb"\[", rb"\{"]
    plain = next((i for i, pattern in enumerate(order) if re.fullmatch(pattern, piece)), None)
    if piece in (b"[", b"{", b"\\"):
        return 12 + b"[{\\".index(piece)
    if plain is not None:
        return 2 + plain
    return 10 if piece.isascii() and not any(c in b"[{\\" for c in piece) else 20


@functools.lru_cache(maxsize=1 << 17)
def _rank_in_string(piece: bytes) -> int:
    """What ends the string first, then long words (a string may have a shortest length), then the rest."""
    order = [rb'"[}\]]*', rb"[A-Za-z]{4,}", rb"[A-Za-z]{2,3}", rb"[A-Za-z]", rb"[0-9]+", rb"[ !#-\[\]-~]+", rb'"[^\\]*']
    return next((i for i, pattern in enumerate(order) if re.fullmatch(pattern, piece)), 20)


def _first_line(text: str) -> str:
    return " ".join(text.split("\n", maxsplit=1)[0].split())[:300]
