"""How a session is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from jambacli.engine.sampling import Sampling


class SessionKeywords(TypedDict, total=False):
    """The fields of SessionOptions, as keyword arguments of ``Jamba.session``."""

    ctx: int | None
    kv_type: str | None
    system: str | None
    sampling: Sampling | None
    store: bool
    name: str | None
    resume: str | None
    read_only: bool
    reread: bool


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """The options of a session.

    ``ctx``: maximum number of tokens, by default the model's context length; memory grows with use. ``kv_type``: f16 (the
    default), bf16, f32, q8_0, q5_1 or q4_0 for keys and values. ``system``: a system message. ``sampling``: how tokens are
    chosen, by default as the model's file says. ``store``: keep prefixes on disk, so that no process computes them twice.
    ``name``: start a session that is saved under that name after every turn. ``resume``: continue the session of that name,
    and save it unless ``read_only``; with ``system`` its system message is replaced. ``reread``: go on with a session that
    was made with another model: its text is read again, and from the next reply on it is this model's.
    """

    ctx: int | None = None
    kv_type: str | None = None
    system: str | None = None
    sampling: Sampling | None = None
    store: bool = True
    name: str | None = None
    resume: str | None = None
    read_only: bool = False
    reread: bool = False
