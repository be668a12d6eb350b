"""Reads LoRA adapters as PEFT saves them: adapter_config.json and adapter_model.safetensors.

Every pair of matrices becomes the pair of one GGUF tensor (``Pair``), whatever modules the model had when it was trained:
experts as modules of their own, or as the stacked parameters gate_up_proj and down_proj of newer transformers.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jambacli.convert.hf_checkpoint import Checkpoint, StoredTensor, read_header, read_json
from jambacli.errors import BadFileError, JambaError, UnsupportedError
from jambacli.gguf.values import shown

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
#: Modules by what they become; a router and a dense layer's network keep their names.
_MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mamba.in_proj": "ssm_in",
    "mamba.x_proj": "ssm_x",
    "mamba.dt_proj": "ssm_dt",
    "mamba.out_proj": "ssm_out",
    "feed_forward.router": "ffn_gate_inp",
    "feed_forward.gate_proj": "ffn_gate",
    "feed_forward.up_proj": "ffn_up",
    "feed_forward.down_proj": "ffn_down",
}
# Modules whose input has the hidden size, and those whose output has: with one of them the layout of stacks is certain.
_FROM_HIDDEN = ("q_proj", "k_proj", "v_proj", "in_proj", "gate_proj", "up_proj", "router")
_TO_HIDDEN = ("o_proj", "out_proj", "down_proj")
_LAYER = re.compile(r"model\.layers\.(\d{1,5})\.(.+)")
_EXPERT = re.compile(r"feed_forward\.experts\.(\d{1,5})\.(gate|up|down)_proj")
_STACK = re.compile(r"feed_forward\.experts((?:\.base_layer)?)")
_PAIR = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(?:\.[\w-]+)?\.weight")
MAX_RANK, MAX_EXPERTS = 1 << 14, 1 << 14
# What adapter_config.json may ask for beyond plain LoRA, and how to say it.
_OTHER_METHODS = {
    "use_dora": "DoRA",
    "lora_bias": "an adapter with biases (lora_bias)",
    "modules_to_save": "an adapter with modules of its own (modules_to_save)",
    "trainable_token_indices": "an adapter with trained tokens (trainable_token_indices)",
    "layer_replication": "an adapter that repeats layers (layer_replication)",
    "fan_in_fan_out": "an adapter of transposed layers (fan_in_fan_out)",
    "alora_invocation_tokens": "an activated adapter (aLoRA)",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
}
# Initializations that change the model's weights: the adapter alone is not what was trained.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Pair:
    """The pair of one GGUF weight: ``a`` [rank, in] and ``b`` [out, rank], with [experts] in front for a stack.

    ``read`` returns both as float32. ``scale``: what their product is multiplied by; the same for all experts.
    """

    name: str
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    scale: float
    read: Callable[[], tuple[torch.Tensor, torch.Tensor]]

    @property
    def rank(self) -> int:
        """The rank of each matrix."""
        return self.b_shape[-1]


class PeftAdapter:
    """An opened adapter directory: ``config`` (adapter_config.json), ``pairs`` in the order of the layers.

    A context manager. ``open`` raises JambaError for a directory that is no adapter, BadFileError for a damaged one, and
    UnsupportedError, with its name, for what is more than LoRA.
    """

    def __init__(self, folder: Path, config: dict[str, Any], tensors: dict[str, StoredTensor]) -> None:
        self.folder, self.config = folder, config
        self.dtypes = {tensor.dtype for tensor in tensors.values()}
        self._files = Checkpoint(folder, config, tensors)
        self._settings = _Settings(folder, config)
        self.pairs = sorted(self._planned(self._modules(tensors)), key=_order)

    @classmethod
    def open(cls, folder: str | Path) -> PeftAdapter:
        """Open ``folder``."""
        folder = Path(folder)
        if not folder.is_dir():
            raise JambaError(f"{folder}: no such directory")
        if not (folder / CONFIG).is_file():
            what = "a model, not an adapter" if (folder / "config.json").is_file() else "not a PEFT adapter"
            raise JambaError(f"{folder}: there is no {CONFIG}, so this is {what}")
        config = read_json(folder / CONFIG)
        check_config(folder / CONFIG, config)
        if not (folder / WEIGHTS).is_file():
            if (folder / PICKLED).exists():
                raise UnsupportedError(
                    f"{folder}: the weights are pickled ({PICKLED}), and reading a pickle runs any code in it; if you trust "
                    "it, load it with PEFT and save_pretrained(DIR) writes safetensors"
                )
            raise JambaError(f"{folder}: {WEIGHTS} is missing")
        return cls(folder, config, read_header(folder / WEIGHTS))

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def __enter__(self) -> PeftAdapter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _modules(self, tensors: Mapping[str, StoredTensor]) -> dict[str, tuple[StoredTensor, StoredTensor]]:
        """The pairs of matrices by the module's name in today's transformers."""
        found: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            match = _PAIR.fullmatch(name)
            if match is None:
                if name.endswith(".base_layer.weight"):
                    continue  # the model's own matrix, which PEFT adds for embeddings and heads
                raise self._unsupported(name)
            if len(tensor.shape) != 2 or 0 in tensor.shape:
                raise BadFileError(tensor.path, f"tensor {shown(name)} is {list(tensor.shape)}, not a matrix")
            if tensor.dtype not in ("F32", "F16", "BF16", "F64"):
                raise UnsupportedError(f"{tensor.path}: tensor {shown(name)} is stored as {tensor.dtype}")
            module = _current(match["module"])
            if match["part"] in found[module]:
                raise BadFileError(
                    tensor.path, f"there are two tensors for {shown(name)}: several adapters in one file"
                )
            found[module][match["part"]] = tensor
        pairs = {}
        for module, both in found.items():
            if len(both) < 2:
                have = next(iter(both.values()))
                raise BadFileError(have.path, f"{shown(have.name)} is alone: its other matrix is missing")
            pairs[module] = both["A"], both["B"]
        if not pairs:
            raise BadFileError(self.folder / WEIGHTS, "it holds no LoRA matrices")
        return pairs

    def _unsupported(self, name: str) -> UnsupportedError:
        kinds = {
            ".lora_magnitude_vector": "DoRA",
            ".lora_embedding_": "an adapter of the token embedding",
            ".modules_to_save.": "an adapter with modules of its own (modules_to_save)",
            ".bias": "an adapter with biases",
            ".lora_B.bias": "an adapter with biases",
        }
        kind = next((kind for part, kind in kinds.items() if part in name), None)
        what = f"{kind} is not supported" if kind else "it is no part of a LoRA pair"
        return UnsupportedError(f"{self.folder / WEIGHTS}: tensor {shown(name)}: {what}")

    def _planned(self, modules: Mapping[str, tuple[StoredTensor, StoredTensor]]) -> Iterable[Pair]:
        experts: dict[str, dict[int, tuple[str, StoredTensor, StoredTensor]]] = defaultdict(dict)
        stacks: dict[str, list[tuple[str, StoredTensor, StoredTensor]]] = defaultdict(list)
        hidden = _hidden_size(modules)
        for module, (a, b) in modules.items():
            layer = _LAYER.fullmatch(module)
            inside = layer[2] if layer else ""
            if module == "lm_head":
                yield self._matrix("output.weight", module, a, b)
            elif layer and inside in _MODULES:
                yield self._matrix(f"blk.{int(layer[1])}.{_MODULES[inside]}.weight", module, a, b)
            elif layer and (one := _EXPERT.fullmatch(inside)):
                experts[f"blk.{int(layer[1])}.ffn_{one[2]}_exps.weight"][int(one[1])] = module, a, b
            elif layer and _STACK.fullmatch(inside):
                stacks[layer[1]].append((module, a, b))
            else:
                raise UnsupportedError(
                    f"{self.folder / WEIGHTS}: an adapter of {shown(module)} is not supported; only the linear layers of a "
                    "Jamba model have adapters"
                )
        for name, found in experts.items():
            yield self._separate_experts(name, found)
        for layer_number, parts in stacks.items():
            yield from self._stacked_experts(int(layer_number), parts, hidden)

    def _matrix(self, name: str, module: str, a: StoredTensor, b: StoredTensor) -> Pair:
        _check_fit(a, b)

        def read() -> tuple[torch.Tensor, torch.Tensor]:
            return self._values(a), self._values(b)

        return Pair(name, a.shape, b.shape, self._settings.scale(module, a.shape[0], a), read)

    def _separate_experts(self, name: str, found: Mapping[int, tuple[str, StoredTensor, StoredTensor]]) -> Pair:
        """One pair from those of single experts. Experts without one get zeros, lower ranks are filled up with zeros."""
        count = max(found) + 1
        if count > MAX_EXPERTS:
            raise BadFileError(self.folder / WEIGHTS, f"{name} would have {count:,} experts")
        first_a, first_b = next(iter(found.values()))[1:]
        for _, a, b in found.values():
            _check_fit(a, b)
            if a.shape[1] != first_a.shape[1] or b.shape[0] != first_b.shape[0]:
                raise BadFileError(a.path, f"{shown(a.name)} and {shown(first_a.name)} have different sizes")
        rank = max(a.shape[0] for _, a, _ in found.values())
        scales = {e: self._settings.scale(module, a.shape[0], a) for e, (module, a, _) in found.items()}
        scale = scales[min(scales)] or 1.0
        a_shape, b_shape = (count, rank, first_a.shape[1]), (count, first_b.shape[0], rank)

        def read() -> tuple[torch.Tensor, torch.Tensor]:
            import torch

            a_all, b_all = torch.zeros(a_shape), torch.zeros(b_shape)
            for e, (_, a, b) in found.items():
                a_all[e, : a.shape[0]] = self._values(a)
                b_all[e, :, : a.shape[0]] = self._values(b) * (scales[e] / scale)
            return a_all, b_all

        return Pair(name, a_shape, b_shape, scale, read)

    def _stacked_experts(
        self, layer: int, parts: list[tuple[str, StoredTensor, StoredTensor]], hidden: int | None
    ) -> Iterable[Pair]:
        """The pairs from those of gate_up_proj and down_proj. PEFT names both after the module that holds them; their sizes
        tell them apart. Older versions of PEFT saved them transposed."""
        for module, a, b in parts:
            others = [other for other in parts if other[0] != module]
            kind, transposed = self._kind_of_stack(a, b, hidden, others)
            rank = self._settings.rank(f"model.layers.{layer}.feed_forward.experts.{kind}", a)
            if a.shape[0] != b.shape[1] or a.shape[0] % rank:
                raise BadFileError(
                    a.path, f"{shown(a.name)} has {a.shape[0]} rows, which are not experts of rank {rank}"
                )
            experts = a.shape[0] // rank
            if experts > MAX_EXPERTS:
                raise BadFileError(a.path, f"{shown(a.name)} would have {experts:,} experts")
            scale = self._settings.scale(f"model.layers.{layer}.feed_forward.experts.{kind}", rank, a)
            n_in, n_out = (b.shape[0], a.shape[1]) if transposed else (a.shape[1], b.shape[0])
            halves = ("gate", "up") if kind == "gate_up_proj" else ("down",)
            if n_out % len(halves):
                raise BadFileError(b.path, f"{shown(b.name)} has {n_out} rows, which are not gate and up")
            rows = n_out // len(halves)
            for i, half in enumerate(halves):
                yield Pair(
                    f"blk.{layer}.ffn_{half}_exps.weight",
                    (experts, rank, n_in),
                    (experts, rows, rank),
                    scale,
                    self._stack_reader(a, b, (experts, rank), transposed, slice(i * rows, (i + 1) * rows)),
                )

    def _stack_reader(
        self, a: StoredTensor, b: StoredTensor, sizes: tuple[int, int], transposed: bool, rows: slice
    ) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        experts, rank = sizes

        def read() -> tuple[torch.Tensor, torch.Tensor]:
            down = self._values(a).reshape(experts, rank, -1)
            up = self._values(b).reshape(b.shape[0], rank, experts).permute(2, 0, 1)
            if transposed:
                down, up = up.transpose(1, 2), down.transpose(1, 2)
            return down.contiguous(), up[:, rows].contiguous()

        return read

    def _kind_of_stack(
        self, a: StoredTensor, b: StoredTensor, hidden: int | None, others: list[tuple[str, StoredTensor, StoredTensor]]
    ) -> tuple[str, bool]:
        """Which parameter a pair is for, and whether it is transposed."""
        targets = self.config.get("target_parameters")
        named = {str(t).rpartition(".")[2] for t in targets} if isinstance(targets, list) else set()
        known = [kind for kind in ("gate_up_proj", "down_proj") if kind in named]
        n_in, n_out = a.shape[1], b.shape[0]
        if len(known) == 1 and not others:
            kind = known[0]
            transposed = hidden is not None and hidden != (n_in if kind == "gate_up_proj" else n_out)
            return kind, transposed
        if len(others) == 1:
            other_in, other_out = others[0][1].shape[1], others[0][2].shape[0]
            # gate_up_proj takes [hidden] to [2 * ffn], down_proj [ffn] to [hidden].
            if n_in == other_out and n_out == 2 * other_in:
                return "gate_up_proj", False
            if other_in == n_out and other_out == 2 * n_in:
                return "down_proj", False
            if n_out == other_in and n_in == 2 * other_out:
                return "gate_up_proj", True
            if other_out == n_in and other_in == 2 * n_out:
                return "down_proj", True
        raise BadFileError(a.path, f"{shown(a.name)}: its sizes do not tell for which stack of experts it is")

    def _values(self, tensor: StoredTensor) -> torch.Tensor:
        """A matrix as float32."""
        import torch

        data = bytearray(tensor.nbytes)
        self._files.read_into(tensor, 0, data)
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}[tensor.dtype]
        values = torch.frombuffer(data, dtype=dtype).view(tensor.shape).float()
        if not values.isfinite().all():
            raise BadFileError(tensor.path, f"tensor {shown(tensor.name)} holds a NaN or an infinity")
        return values


class _Settings:
    """Ranks and scales of modules, from adapter_config.json."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._path = folder / CONFIG
        self._rank, self._alpha = _number(self._path, config, "r", 8), _number(self._path, config, "lora_alpha", 8)
        self._ranks = _patterns(self._path, config, "rank_pattern")
        self._alphas = _patterns(self._path, config, "alpha_pattern")
        self._rslora = config.get("use_rslora") is True

    def rank(self, module: str, a: StoredTensor) -> int:
        """The configured rank of a module whose matrices do not tell it."""
        rank = next((value for pattern, value in self._ranks if pattern.fullmatch(module)), self._rank)
        if rank != int(rank) or not 1 <= rank <= MAX_RANK:
            raise BadFileError(self._path, f"the rank of {module} is {rank:g}")
        return int(rank)

    def scale(self, module: str, rank: int, a: StoredTensor) -> float:
        """What the product of a module's pair of this rank is multiplied by."""
        if rank > MAX_RANK:
            raise BadFileError(a.path, f"{shown(a.name)} has a rank of {rank:,}; at most {MAX_RANK:,} are supported")
        alpha = next((value for pattern, value in self._alphas if pattern.fullmatch(module)), self._alpha)
        return alpha / math.sqrt(rank) if self._rslora else alpha / rank


def check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for an adapter_config.json that asks for more than LoRA, naming it."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedError(f"{path}: peft_type is {shown(str(kind))}; only LORA is supported")
    for key, what in _OTHER_METHODS.items():
        if config.get(key):
            raise UnsupportedError(f"{path}: {what} is not supported")
    if config.get("bias", "none") not in ("none", None):
        raise UnsupportedError(f"{path}: an adapter with biases (bias {shown(str(config['bias']))}) is not supported")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
        raise UnsupportedError(
            f"{path}: an adapter of the kind {shown(start)} belongs to changed weights of the model; save it as plain LoRA "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )


def _number(path: Path, config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 < value < 1e6:
        found = shown(value) if isinstance(value, str) else str(value)[:40]
        raise BadFileError(path, f"{shown(key)} is {found}; it must be a positive number")
    return float(value)


def _patterns(path: Path, config: Mapping[str, Any], key: str) -> list[tuple[re.Pattern[str], float]]:
    """A pattern of module names and its value for each entry, in the order in which PEFT looks for one."""
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise BadFileError(path, f"{key} is not an object")
    return [(_pattern(path, key, name), _number(path, value, name, 0)) for name in value]


def _pattern(path: Path, key: str, text: str) -> re.Pattern[str]:
    """A name, or the little of a regular expression that is used for names: others' patterns may take forever."""
    pieces = re.findall(r"\\\.|\.\*|\\d\+|[\w-]+|\.|(.)", text.removeprefix("^").removesuffix("$"), re.DOTALL)
    if any(pieces) or text.count("*") > 4 or len(text) > 300:
        raise UnsupportedError(f"{path}: the pattern {shown(text)} in {key} is not supported; name the modules")
    tokens = re.findall(r"\\\.|\.\*|\\d\+|[\w-]+|\.", text.removeprefix("^").removesuffix("$"))
    own = {"\\.": r"\.", ".": r"\.", ".*": ".*", "\\d+": r"\d+"}
    start = "" if text.startswith("^") else r"(?:.*\.)?"
    return re.compile(start + "".join(own.get(token, token) for token in tokens))


def _current(module: str) -> str:
    """A module's name in today's transformers, without what PEFT puts before it."""
    name = module.removeprefix("base_model.model.")
    if not name.startswith(("model.", "lm_head")):
        name = f"model.{name}"
    return name.replace(".moe.", ".feed_forward.")


def _hidden_size(modules: Mapping[str, tuple[StoredTensor, StoredTensor]]) -> int | None:
    """The model's hidden size, as an adapter of another module shows it; None where there is none."""
    for module, (a, b) in modules.items():
        last = module.rpartition(".")[2]
        if last in _FROM_HIDDEN:
            return a.shape[1]
        if last in _TO_HIDDEN:
            return b.shape[0]
    return None


def _check_fit(a: StoredTensor, b: StoredTensor) -> None:
    if a.shape[0] != b.shape[1]:
        raise BadFileError(a.path, f"{shown(a.name)} has the rank {a.shape[0]}, {shown(b.name)} {b.shape[1]}")


def _order(pair: Pair) -> tuple[int, str]:
    match = re.match(r"blk\.(\d+)\.", pair.name)
    return (int(match[1]) if match else 1 << 30, pair.name)
