"""Recipes: which format each tensor of a Jamba takes for a type such as Q4_K_M.

llama-quantize does not give every tensor the type that the file is named after: value projections, down projections, the
first layers and the output get more bits, and a row that a block length does not divide takes a smaller block. ``plan``
makes the same choices for the Jamba architecture, so that the files are equal, with these peculiarities:

- Tensors are visited by layer, then by name, in any source file (in file order where its split is kept).
- "The i-th attn_v" counts visited tensors, not layers. ``ffn_down`` is counted the same way in a dense model; in a model
  with experts it goes by its layer number.
- A tensor whose format the user chose with a pattern is not counted, and under ``pure`` none is.
- Query heads per KV head are those of layer 0, which in published Jambas is a Mamba layer without heads: 0.
- Models of exactly eight experts have extra bits in other places.

Source: behaviour of llama.cpp's ``llama_model_quantize`` (build 11434), observed tensor by tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from quant.formats import FLOATS, FORMATS, get_format

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Facts:
    """The parts of the model's configuration that the mixture depends on."""

    n_layers: int
    n_experts: int
    """1 (or 0) for a dense model."""
    gqa: int
    """Query heads per KV head **of layer 0**; 0 where layer 0 has no attention."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of the source: its GGUF name, shape in torch order (the row last) and the name of its format."""

    name: str
    shape: Shape
    format: str

    @property
    def row(self) -> int:
        return self.shape[-1]


@dataclass(frozen=True)
class RecipeOptions:
    """The user's choices, which take precedence over the mixture."""

    tensor_types: Sequence[tuple[re.Pattern[str], str]] = ()
    """(pattern searched for in the name, format); the first match decides."""
    output: str | None = None
    """Format of ``output.weight``, or of ``token_embd.weight`` in a model with tied embeddings."""
    embedding: str | None = None
    """Format of ``token_embd.weight``."""
    pure: bool = False
    """The base format everywhere, without the mixture; fallbacks still apply."""
    has_imatrix: bool = False


@dataclass(frozen=True)
class Choice:
    """The format of one tensor. ``kept``: it is never quantized. ``fallback_from``: the format that its row did not fit."""

    tensor: Tensor
    format: str
    kept: bool = False
    fallback_from: str | None = None

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in its new format, including ExpertsInt8's scale of four bytes per row."""
        rows = 1
        for n in self.tensor.shape[:-1]:
            rows *= n
        return rows * (FORMATS[self.format].row_bytes(self.tensor.row) + (4 if self.format == "i8" else 0))


@dataclass(frozen=True)
class _Position:
    """The position of a tensor, the i-th of n, and other facts that the rules depend on."""

    i: int
    n: int
    gqa: int
    has_imatrix: bool

    @property
    def outer(self) -> bool:
        """In the first or last eighth, or every third in between: the positions that K_M mixtures raise."""
        eighth = self.n // 8
        return self.i < eighth or self.i >= 7 * self.n // 8 or (self.i - eighth) % 3 == 2

    def first(self, part: int) -> bool:
        """Within the first 1/part of the model."""
        return self.i < self.n // part


_Rule = Callable[[_Position], str | None]
"""The format for a tensor at a position, or None for the base format."""


@dataclass(frozen=True)
class Recipe:
    """One type: its name, llama.cpp's number for general.file_type, the base format, and the exceptions from it."""

    name: str
    file_type: int
    base: str
    attn_v: _Rule | None = None
    ffn_down: _Rule | None = None
    attn_output: str | None = None
    eight_experts_output: str | None = None
    """The format of attn_output in a model of exactly eight experts, instead of ``attn_output``."""
    experts: str | None = None
    """Format of the expert stacks; all other tensors take ``base``, without the mixture."""
    aliases: tuple[str, ...] = field(default=())
    allocated: bool = False
    """The formats are those of the least divergence at the size that the mixture would have: see ``allocate``."""

    @property
    def label(self) -> str:
        """The name as used in file names: ``Q4_K_M``; lower case for names that llama.cpp does not know."""
        return self.name if self.experts or self.allocated else self.name.upper()


def _always(fmt: str) -> _Rule:
    return lambda position: fmt


def _where(test: Callable[[_Position], bool], fmt: str, otherwise: str | None = None) -> _Rule:
    return lambda position: fmt if test(position) else otherwise


_GROUPED = 4  # with this many query heads per KV head, more bits for the value projection cost little
_raise_iq4_v = _where(lambda s: s.gqa >= _GROUPED, "q5_k")
_raise_iq4_down = _where(lambda s: s.first(8) and not s.has_imatrix, "q5_k")
_raise_outer = _where(lambda s: s.outer, "q6_k")

_RECIPES = [
    Recipe("f16", 1, "f16"),
    Recipe("bf16", 32, "bf16"),
    Recipe("q8_0", 7, "q8_0"),
    # With an imatrix, llama-quantize gives the first down projections the format that has a minimum in each block.
    Recipe("q4_0", 2, "q4_0", ffn_down=_where(lambda s: s.has_imatrix and s.first(8), "q4_1")),
    Recipe("q4_1", 3, "q4_1"),
    Recipe("q5_0", 8, "q5_0", ffn_down=_where(lambda s: s.has_imatrix and s.first(8), "q5_1")),
    Recipe("q5_1", 9, "q5_1"),
    Recipe(
        "q2_k",
        10,
        "q2_k",
        attn_v=_where(lambda s: s.gqa >= _GROUPED, "q4_k", "q3_k"),
        ffn_down=_always("q3_k"),
        attn_output="q3_k",
        eight_experts_output="q5_k",
    ),
    Recipe("q3_k_s", 11, "q3_k", eight_experts_output="q5_k"),
    Recipe(
        "q3_k_m",
        12,
        "q3_k",
        attn_v=_where(lambda s: s.i < 2, "q5_k", "q4_k"),
        ffn_down=_where(lambda s: s.first(16), "q5_k", "q4_k"),
        attn_output="q4_k",
        eight_experts_output="q5_k",
        aliases=("q3_k",),
    ),
    Recipe("q3_k_l", 13, "q3_k", attn_v=_always("q5_k"), ffn_down=_always("q5_k"), attn_output="q5_k"),
    Recipe(
        "q4_k_s",
        14,
        "q4_k",
        attn_v=_where(lambda s: s.i < 4, "q5_k"),
        ffn_down=_where(lambda s: s.first(8), "q5_k"),
        eight_experts_output="q5_k",
    ),
    Recipe(
        "q4_k_m",
        15,
        "q4_k",
        attn_v=_raise_outer,
        ffn_down=_raise_outer,
        eight_experts_output="q5_k",
        aliases=("q4_k",),
    ),
    Recipe("q5_k_s", 16, "q5_k"),
    Recipe("q5_k_m", 17, "q5_k", attn_v=_raise_outer, ffn_down=_raise_outer, aliases=("q5_k",)),
    Recipe("q6_k", 18, "q6_k"),
    Recipe("iq4_nl", 25, "iq4_nl", attn_v=_raise_iq4_v, ffn_down=_raise_iq4_down, eight_experts_output="q5_k"),
    Recipe("iq4_xs", 30, "iq4_xs", attn_v=_raise_iq4_v, ffn_down=_raise_iq4_down, eight_experts_output="q5_k"),
    # llama.cpp has no number for these two. The first takes the number of Q8_0 (most of its bytes), the second BF16's.
    Recipe("experts_q8_0", 7, "bf16", experts="q8_0"),
    Recipe("experts_int8", 32, "bf16", experts="i8"),
]
_RECIPES += [
    replace(recipe, name=recipe.name.replace("_k_m", "_k_x"), aliases=(), allocated=True)
    for recipe in _RECIPES
    if recipe.name in ("q3_k_m", "q4_k_m", "q5_k_m")
]

RECIPES: dict[str, Recipe] = {r.name: r for r in _RECIPES}
_BY_ALIAS = RECIPES | {alias: r for r in _RECIPES for alias in r.aliases}

# Stand-ins for rows that the format's block length does not divide; f16 where 32 does not divide them either.
_FALLBACK = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "iq4_xs": "iq4_nl"}


def get_recipe(name: str) -> Recipe:
    """The recipe called ``name``, any case (``Q4_K`` is Q4_K_M, as in llama-quantize); ValueError, listing them, for others."""
    try:
        return _BY_ALIAS[name.strip().lower().replace("-", "_")]
    except KeyError:
        raise ValueError(f"unknown type {name!r}; known: {', '.join(RECIPES)}") from None


def parse_tensor_type(text: str) -> tuple[re.Pattern[str], str]:
    """``PATTERN=FORMAT`` as a compiled pattern, case ignored, and a format's name; ValueError for anything else."""
    pattern, sep, fmt = text.rpartition("=")
    if not sep or not pattern or not fmt:
        raise ValueError(f"{text!r} is not PATTERN=TYPE; write it like 'attn_v=q6_k' or 'blk.[0-3].ffn_down=q5_k'")
    try:
        return re.compile(pattern, re.IGNORECASE), parse_format(fmt)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None


def parse_format(name: str) -> str:
    """The lower-case name of a format that can be written; ValueError for others. i8 needs the recipe experts_int8."""
    fmt = get_format(name.strip())
    if not fmt.writable or fmt.name == "i8":
        known = ", ".join(f.name for f in FORMATS.values() if f.writable and f.name != "i8")
        raise ValueError(f"cannot write {fmt.name}; known: {known}")
    return fmt.name


def visiting_order(names: Iterable[str]) -> list[str]:
    """Names in llama-quantize's order: those outside the layers first, then by layer number, then by name."""
    return sorted(names, key=lambda name: (layer_of(name), name.encode("utf-8", "surrogateescape")))


def layer_of(name: str) -> int:
    """The N of ``blk.N.…``, or -1."""
    match = re.match(r"blk\.(\d{1,9})", name)
    return int(match[1]) if match else -1


def is_expert_stack(tensor: Tensor) -> bool:
    """Whether a tensor is a stack of expert matrices [experts, out, in]."""
    return len(tensor.shape) == 3 and re.search(r"\.ffn_(gate|up|down)_exps\.weight$", tensor.name) is not None


def may_quantize(tensor: Tensor) -> bool:
    """Whether a tensor may be quantized: matrices, except norms, routers and the convolution.

    As in ggml, a matrix of one row is a vector: leading dimensions of 1 do not count.
    """
    leading = [i for i, n in enumerate(tensor.shape[:-1]) if n > 1]
    name = tensor.name
    return (
        bool(leading)
        and name.endswith("weight")
        and "_norm.weight" not in name
        and "ffn_gate_inp.weight" not in name
        and "ssm_conv1d" not in name
    )


def plan(tensors: Sequence[Tensor], facts: Facts, recipe: Recipe, options: RecipeOptions | None = None) -> list[Choice]:
    """The format of every tensor, as llama-quantize chooses it, in the order of ``tensors`` (see ``visiting_order``).

    Unlike llama-quantize, patterns and the output's format also apply under a float recipe (f16, bf16, experts_*).
    ValueError names a tensor whose row does not fit the format that the user chose for it.
    """
    if recipe.experts and not any(is_expert_stack(t) for t in tensors):
        raise ValueError(f"{recipe.name} is for models with experts, and this one has none; use bf16 or q8_0")
    options = options or RecipeOptions()
    planner = _Planner(facts, recipe, options, tensors)
    return [planner.choose(t) if may_quantize(t) else Choice(t, t.format, kept=True) for t in tensors]


class _Planner:
    """Chooses formats tensor by tensor; counts those that the rules count."""

    def __init__(self, facts: Facts, recipe: Recipe, options: RecipeOptions, tensors: Sequence[Tensor]) -> None:
        self.facts, self.recipe, self.options = facts, recipe, options
        self.n_attn_v = sum("attn_v.weight" in t.name for t in tensors)
        self.i_attn_v = self.i_ffn_down = 0
        self.tied = not any(t.name == "output.weight" for t in tensors)
        self.mixes = recipe.base not in FLOATS and not options.pure

    def choose(self, tensor: Tensor) -> Choice:
        option, exact = self._user_choice(tensor)
        if option and exact:
            return Choice(tensor, _fits_or_raise(tensor, option))
        preferred = option or (self._mixture(tensor) if self.mixes else self._base(tensor))
        fmt = fall_back(tensor, preferred)
        return Choice(tensor, fmt, fallback_from=preferred if fmt != preferred else None)

    def _user_choice(self, tensor: Tensor) -> tuple[str | None, bool]:
        """The format that the user chose, if any, and whether it names this tensor: then there is no fallback."""
        options = self.options
        by_name = {"token_embd.weight": options.embedding, "output.weight": options.output}.get(tensor.name)
        if by_name:
            return by_name, True
        for pattern, fmt in options.tensor_types:
            if pattern.search(tensor.name):
                return fmt, False
        if tensor.name == "token_embd.weight" and self.tied and self.recipe.base in FLOATS:
            return options.output, False
        return None, False

    def _base(self, tensor: Tensor) -> str:
        recipe = self.recipe
        return recipe.experts if recipe.experts and is_expert_stack(tensor) else recipe.base

    def _mixture(self, tensor: Tensor) -> str:
        name, recipe = tensor.name, self.recipe
        eight = self.facts.n_experts == 8
        chosen: str | None = None
        if name == "output.weight" or (name == "token_embd.weight" and self.tied):
            chosen = self.options.output or _output_format(tensor, recipe.base)
        elif "attn_v.weight" in name:
            if recipe.attn_v:
                chosen = recipe.attn_v(self._position(self.i_attn_v, self.n_attn_v))
            self.i_attn_v += 1
            chosen = "q8_0" if eight else chosen
        elif "attn_k.weight" in name:
            chosen = "q8_0" if eight else None
        elif "attn_output.weight" in name:
            chosen = recipe.eight_experts_output if eight else recipe.attn_output
        elif "ffn_down" in name:
            i = self._layer(tensor) if self.facts.n_experts > 1 else self.i_ffn_down
            if recipe.ffn_down:
                chosen = recipe.ffn_down(self._position(i, self.facts.n_layers))
            self.i_ffn_down += 1
        return chosen or recipe.base

    def _position(self, i: int, n: int) -> _Position:
        return _Position(i, n, self.facts.gqa, self.options.has_imatrix)

    def _layer(self, tensor: Tensor) -> int:
        layer = layer_of(tensor.name)
        if not 0 <= layer < self.facts.n_layers:
            raise ValueError(f"{tensor.name}: layer {layer} is not one of the model's {self.facts.n_layers}")
        return layer


def _output_format(tensor: Tensor, base: str) -> str:
    """The output matrix takes 6 bits, or 8 where its row does not fit the base format."""
    if base == "q8_0" or tensor.row % FORMATS[base].block:
        return "q8_0"
    return "q6_k"


def _fits_or_raise(tensor: Tensor, fmt: str) -> str:
    block = FORMATS[fmt].block
    if tensor.row % block:
        raise ValueError(f"{tensor.name}: a row of {tensor.row} values is not a multiple of {fmt}'s block of {block}")
    return fmt


def fall_back(tensor: Tensor, preferred: str) -> str:
    """``preferred`` where its block divides the row, else the format with smaller blocks, else f16."""
    for fmt in (preferred, _FALLBACK.get(preferred, "f16")):
        if tensor.row % FORMATS[fmt].block == 0:
            return fmt
    return "f16"
