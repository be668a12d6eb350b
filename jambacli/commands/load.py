"""The model that a command uses: by its name, the user's default, the last used or the demo model."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jambacli import settings, ui
from jambacli.errors import JambaError, UsageError
from jambacli.startup import importing

if TYPE_CHECKING:
    from jambacli.api import Jamba
    from jambacli.runtime.options import DeviceOptions


def model_path(name: str | None) -> Path:
    """The file or directory of that name; without a name, that of the last used or the demo model, with a note."""
    from jambacli.hub.resolve import resolve_model

    return _default_model() if name is None else resolve_model(name)


def one_model(argument: str | None, option: str | None) -> str | None:
    """The model that a command line names as its argument or with ``--model``. Raises UsageError for two of them."""
    if argument is not None and option is not None and argument != option:
        raise UsageError(f"contradicts the argument {argument}: name one model", field="model", value=option)
    return option if argument is None else argument


def is_path(name: str) -> bool:
    """Whether ``name`` is the path of a file or directory rather than a model's name."""
    from jambacli.files import path_of

    try:
        return path_of(name).exists()
    except (OSError, ValueError):
        return False


def chosen_model(name: str | None) -> str | None:
    """``name``, or without one the user's default; None where there is none either.

    Raises JambaError for a default that is no model, naming where it is set.
    """
    from jambacli.hub.resolve import resolve_model

    chosen = settings.find("model") if name is None else None
    if chosen is None:
        return name
    try:
        resolve_model(chosen.value)
    except JambaError as error:
        raise JambaError(f"the default model ({chosen.where}): {error.worded()}") from None
    return str(chosen.value)


def _default_model() -> Path:
    from jambacli.hub.demo import demo_model_path
    from jambacli.hub.resolve import last_used

    path = last_used()
    if path:
        ui.note(f"no model given: using {path}, the last used")
        return path
    ui.note(
        "no model given and none used yet: using jamba:tiny, a demo model that can only read short reports "
        "(jamba pull jamba:3b gets a real one)"
    )
    return demo_model_path()


def load_model(
    name: str | None,
    options: DeviceOptions,
    *,
    ctx: int | None = None,
    kv_type: str | None = None,
    chat_template: str | None = None,
    loras: Sequence[str] = (),
) -> Jamba:
    """Load the model of that name; for None the user's default, the last used or the demo model, with a note that says
    which."""
    began = time.perf_counter()
    with importing():
        from jambacli.api import Jamba

    from jambacli.documents.given_texts import read_chat_template
    from jambacli.hub.converted_cache import converted_gguf

    name = chosen_model(name)
    path = model_path(name)
    if chat_template is not None:
        read_chat_template(chat_template)  # what is wrong with it is reported before a checkpoint is converted
    if path.is_dir():  # convert it here, with progress; Jamba.load then finds the result
        converted_gguf(path, ui.progress)
        began = time.perf_counter()
    model = Jamba.load(
        name, options, ctx=ctx, kv_type=kv_type, chat_template=chat_template, loras=loras, progress=ui.loading
    )
    with contextlib.suppress(JambaError):  # who needs it will say what is wrong with it
        model.tokenizer  # noqa: B018 - it takes longer than the weights, which are mapped
    model.load_seconds = time.perf_counter() - began
    return model
