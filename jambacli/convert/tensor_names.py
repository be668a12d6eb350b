"""Which HF checkpoint tensor becomes which GGUF tensor, for every set of names that Jamba checkpoints have used.

``plan`` checks that the checkpoint has every tensor of the config, with the right shape, and no others.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from jambacli.convert.hf_checkpoint import Checkpoint, StoredTensor
from jambacli.errors import BadFileError, UnsupportedError
from jambacli.gguf.jamba_metadata import expected_tensors
from jambacli.gguf.values import shown
from jambacli.model.config import JambaConfig

logger = logging.getLogger(__name__)
MAX_LISTED_MISSING = 1000
READABLE_DTYPES = ("BF16", "F16", "F32", "F64")

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_TOP = {"token_embd.weight": EMBEDDING, "output_norm.weight": "model.final_layernorm.weight", "output.weight": HEAD}
_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "pre_ff_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ssm_in.weight": "mamba.in_proj.weight",
    "ssm_conv1d.weight": "mamba.conv1d.weight",
    "ssm_conv1d.bias": "mamba.conv1d.bias",
    "ssm_x.weight": "mamba.x_proj.weight",
    "ssm_dt.weight": "mamba.dt_proj.weight",
    "ssm_dt.bias": "mamba.dt_proj.bias",
    "ssm_a": "mamba.A_log",
    "ssm_d": "mamba.D",
    "ssm_dt_norm.weight": "mamba.dt_layernorm.weight",
    "ssm_b_norm.weight": "mamba.b_layernorm.weight",
    "ssm_c_norm.weight": "mamba.c_layernorm.weight",
    "ssm_out.weight": "mamba.out_proj.weight",
    "ffn_gate_inp.weight": "feed_forward.router.weight",
    "ffn_gate.weight": "feed_forward.gate_proj.weight",
    "ffn_up.weight": "feed_forward.up_proj.weight",
    "ffn_down.weight": "feed_forward.down_proj.weight",
}
_EXPERTS = {"ffn_gate_exps.weight": "gate", "ffn_up_exps.weight": "up", "ffn_down_exps.weight": "down"}
_OLDER = (
    (".moe.", ".feed_forward."),
    (".pre_moe_layernorm.", ".pre_ff_layernorm."),
    (".mamba.B_layernorm.", ".mamba.b_layernorm."),
    (".mamba.C_layernorm.", ".mamba.c_layernorm."),
)
# Parts of names that wrappers leave, which transformers does not load either: who leaves them, and what to save instead.
_WRAPPERS = {
    "_orig_mod.": ("torch.compile", "save the model's _orig_mod"),
    "base_model.model.": ("PEFT", "merge the adapter and save the result (merge_and_unload)"),
    "_fsdp_wrapped_module.": ("FSDP", "save the full state dict"),
    "_checkpoint_wrapped_module.": ("activation checkpointing", "save the model without its wrapper"),
    "module.": ("DataParallel or DistributedDataParallel", "save the model's module"),
}
_LAYER_NAME = re.compile(r"model\.layers\.(\d{1,5})\..+")


@dataclass(frozen=True)
class SourcePiece:
    """A run of bytes of a stored tensor: a whole matrix, or one expert's part of a stack."""

    tensor: StoredTensor
    start: int
    nbytes: int


@dataclass(frozen=True)
class Planned:
    """One tensor to write: its ``pieces`` in order along the first dimensions of ``shape``; without pieces it is zero.

    ``keep_f32``: always stored in f32, as llama.cpp expects it. ``negated_exp``: stored as -exp(x).
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[SourcePiece, ...]
    keep_f32: bool
    negated_exp: bool = False


def keeps_f32(name: str, shape: tuple[int, ...]) -> bool:
    """Whether llama.cpp's converter stores GGUF tensor ``name`` in f32 for every output type."""
    return (
        len(shape) == 1
        or not name.endswith(".weight")
        or name.endswith(("_norm.weight", ".ssm_conv1d.weight", ".ffn_gate_inp.weight"))
    )


def hub_names(name: str, shape: tuple[int, ...]) -> list[str]:
    """The checkpoint's names for GGUF tensor ``name``: one, or one for each expert of a stack of ``shape``."""
    if name in _TOP:
        return [_TOP[name]]
    _, layer, rest = name.split(".", 2)
    prefix = f"model.layers.{layer}."
    if rest in _EXPERTS:
        return [f"{prefix}feed_forward.experts.{e}.{_EXPERTS[rest]}_proj.weight" for e in range(shape[0])]
    return [prefix + _LAYER[rest]]


def plan(config: JambaConfig, tensors: Mapping[str, StoredTensor], source: object) -> list[Planned]:
    """Every GGUF tensor of ``config`` in file order, with the stored bytes that it is made of.

    Raises BadFileError, naming ``source`` and the checkpoint's tensor, for one that is missing, has another shape, occurs
    twice or is not Jamba's, and UnsupportedError for a dtype that is not a float.
    """
    found = _Found(_current_names(config, tensors, source), source)
    planned = []
    for name, shape in expected_tensors(config).items():
        pieces = tuple(_pieces(found, config, name, shape))
        planned.append(Planned(name, shape, pieces, keeps_f32(name, shape), name.endswith(".ssm_a")))
    found.refuse_missing()
    for name, tensor in found.tensors.items():
        if name not in found.used and not _is_redundant(config, name):
            raise BadFileError(source, f"tensor {tensor.name} is not part of a Jamba model with this config.json")
    return planned


def _current_names(config: JambaConfig, tensors: Mapping[str, StoredTensor], source: object) -> dict[str, StoredTensor]:
    """The tensors by their current names; the only expert of a dense layer becomes its MLP."""
    _refuse_wrappers(tensors, source)
    current: dict[str, StoredTensor] = {}
    # Saved from a model that holds the whole model as ``model``; transformers takes that away too.
    if tensors and all(name.startswith("model.") for name in tensors):
        inner = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        if HEAD in inner or EMBEDDING in inner:
            tensors = inner
    # Saved from the model without its head, JambaModel.
    prefix = "" if any(name.startswith("model.") for name in tensors) else "model."
    for name, tensor in tensors.items():
        new = name if name == HEAD else prefix + name
        for old, current_part in _OLDER:
            new = new.replace(old, current_part)
        match = _LAYER_NAME.fullmatch(new)
        if match and (i := int(match[1])) < config.n_layers and not config.layer_is_moe[i]:
            new = new.replace(".feed_forward.experts.0.", ".feed_forward.")
        if new in current:
            raise BadFileError(source, f"tensors {current[new].name} and {name} are the same tensor")
        current[new] = tensor
    if config.tied_embeddings and EMBEDDING not in current and HEAD in current:
        current[EMBEDDING] = current.pop(HEAD)
    return current


def _refuse_wrappers(tensors: Mapping[str, StoredTensor], source: object) -> None:
    """Raise BadFileError where the names show that a wrapper was saved instead of the model."""
    for part, (wrapper, remedy) in _WRAPPERS.items():
        name = next((name for name in tensors if name.startswith(part) or f".{part}" in name), None)
        if name is not None:
            raise BadFileError(source, f"names such as {shown(name)} contain {part!r}, which {wrapper} adds; {remedy}")


def used_tensors(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """The tensors that transformers would use: without the biases of convolutions that config.json says have none."""
    bias = ".mamba.conv1d.bias"
    if checkpoint.config.get("mamba_conv_bias", True) or not any(name.endswith(bias) for name in checkpoint.tensors):
        return checkpoint.tensors
    logger.warning("%s: mamba_conv_bias is false; the biases of convolutions are left out", checkpoint.folder)
    return {name: tensor for name, tensor in checkpoint.tensors.items() if not name.endswith(bias)}


def with_own_head(config: JambaConfig, checkpoint: Checkpoint, source: object) -> JambaConfig:
    """``config``, not tied where the checkpoint holds a head that differs from the embedding: transformers keeps it."""
    if not config.tied_embeddings:
        return config
    current = _current_names(config, checkpoint.tensors, source)
    head, embedding = current.get(HEAD), current.get(EMBEDDING)
    if head is None or embedding is None or head.shape != embedding.shape or checkpoint.same_bytes(head, embedding):
        return config
    logger.warning("%s: tie_word_embeddings is true, but lm_head.weight is another matrix; it is kept", source)
    return replace(config, tied_embeddings=False)


@dataclass
class _Found:
    """The checkpoint's tensors, and which of them the plan has used or missed."""

    tensors: Mapping[str, StoredTensor]
    source: object
    used: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)

    def take(self, name: str, *shapes: tuple[int, ...]) -> StoredTensor | None:
        """The tensor, which must have one of ``shapes``; None where it is missing, which ``refuse_missing`` reports."""
        tensor = self.tensors.get(name)
        if tensor is None:
            self.missing.append(name)
            if len(self.missing) >= MAX_LISTED_MISSING:
                self.refuse_missing()  # a config may claim a billion experts
            return None
        self.used.add(name)
        if tensor.shape not in shapes:
            raise BadFileError(
                tensor.path,
                f"tensor {tensor.name} is {list(tensor.shape)}, but config.json requires {list(shapes[0])}",
            )
        if tensor.dtype not in READABLE_DTYPES:
            raise UnsupportedError(
                f"{tensor.path}: tensor {tensor.name} is stored as {tensor.dtype}, and config.json does not say how it is "
                "quantized; convert the original checkpoint (bf16, f16 or f32)"
            )
        return tensor

    def refuse_missing(self) -> None:
        """Raise BadFileError naming the first missing tensor and the number of others, if any is missing."""
        if self.missing:
            others = len(self.missing) - 1
            more = "" if not others else f" and {others} more" if others < MAX_LISTED_MISSING - 1 else " and many more"
            verb, what = ("are", "them") if more else ("is", "it")
            raise BadFileError(
                self.source, f"tensor {self.missing[0]}{more} {verb} missing, although config.json requires {what}"
            )


def _pieces(found: _Found, config: JambaConfig, name: str, shape: tuple[int, ...]) -> list[SourcePiece]:
    if name in _TOP:
        return _whole(found.take(_TOP[name], shape))
    _, layer, rest = name.split(".", 2)
    prefix = f"model.layers.{layer}."
    if rest in _EXPERTS:
        return _experts(found, prefix + "feed_forward.experts.", _EXPERTS[rest], shape)
    stored = prefix + _LAYER[rest]
    if rest == "ssm_conv1d.bias" and stored not in found.tensors:
        return []
    if rest == "ssm_conv1d.weight":
        return _whole(found.take(stored, (shape[0], 1, shape[1]), shape))
    return _whole(found.take(stored, shape))


def _experts(found: _Found, prefix: str, kind: str, shape: tuple[int, ...]) -> list[SourcePiece]:
    """One piece per expert, from separate matrices or from transformers' stacked gate_up_proj and down_proj."""
    experts, rows, width = shape
    stacked = prefix + ("down_proj" if kind == "down" else "gate_up_proj")
    if stacked not in found.tensors:
        matrices = [found.take(f"{prefix}{e}.{kind}_proj.weight", (rows, width)) for e in range(experts)]
        return [piece for matrix in matrices for piece in _whole(matrix)]
    both = 1 if kind == "down" else 2
    tensor = found.take(stacked, (experts, both * rows, width))
    if tensor is None:
        return []
    nbytes = tensor.nbytes // (experts * both)
    first = 1 if kind == "up" else 0
    return [SourcePiece(tensor, (e * both + first) * nbytes, nbytes) for e in range(experts)]


def _whole(tensor: StoredTensor | None) -> list[SourcePiece]:
    return [] if tensor is None else [SourcePiece(tensor, 0, tensor.nbytes)]


def _is_redundant(config: JambaConfig, name: str) -> bool:
    """Whether a tensor is redundant: the copy of a tied embedding, or the router of a layer with one expert."""
    if name == HEAD:
        return config.tied_embeddings
    match = _LAYER_NAME.fullmatch(name)
    if match is None or not name.endswith(".feed_forward.router.weight"):
        return False
    layer = int(match[1])
    return layer < config.n_layers and not config.layer_is_moe[layer]
