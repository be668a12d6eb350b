"""Finds the quantized tensors of a checkpoint: groups what is stored for each, and checks shapes and dtypes.

Which tensors are quantized is told by what is stored, not by ``ignore`` or ``modules_to_not_convert``: a weight with
scales is, a weight in a float type without them is not. Names: the weight ``M.weight`` or a stack of experts
(``M.experts.gate_up_proj``), and beside it the parts that each format's table lists.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from jambacli.convert.hf_checkpoint import Checkpoint, StoredTensor
from jambacli.convert.quantized import bnb, scheme
from jambacli.convert.quantized.gptq import AWQ_BITS, Transposed
from jambacli.convert.quantized.matrices import (
    FLOATS,
    FP8_DTYPES,
    DequantizedTensor,
    Opened,
    dequantized,
    require_dtype,
    require_shape,
    wrong,
)
from jambacli.convert.quantized.packing import packed_words, split_words
from jambacli.convert.quantized.scaled import Grid, Scaled, find_grid, zero_shapes
from jambacli.convert.quantized.scheme import Scheme
from jambacli.errors import BadFileError, UnsupportedError

# The parts of a weight by the end of their names; the weight itself is "".
_PARTS: Mapping[str, tuple[str, ...]] = {
    scheme.COMPRESSED: ("_packed", "_scale", "_zero_point", "_shape", "_g_idx", "_global_scale"),
    scheme.FP8: ("_scale_inv", "_scale"),
    scheme.FBGEMM: ("_scale",),
    scheme.MODELOPT: ("_scale",),
    scheme.GPTQ: (".qweight", ".qzeros", ".scales", ".g_idx"),
    scheme.AWQ: (".qweight", ".qzeros", ".scales"),
    scheme.BITSANDBYTES: (
        ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", *(bnb.STATE + kind for kind in bnb.TYPES),
        ".SCB", ".weight_format",
    ),
}  # fmt: skip
# Parts that belong to a module, M.qweight, and not to its weight, M.weight_scale.
_OF_MODULE = (".qweight", ".qzeros", ".scales", ".g_idx", ".SCB", ".weight_format")
_STACK = r"experts\.(?:gate_up_proj|down_proj)"
_WEIGHT = re.compile(rf"(?:.*\.)?(?:weight|{_STACK})")
# Of activations, and of keys and values, which this program does not quantize as the checkpoint's authors did.
_ACTIVATIONS = re.compile(
    r".*[._](?:(?:input|output|activation|[qkv])_(?:scale|zero_point|global_scale)|input_scale_ub|input_activation_scale)"
)
# The bias of dt_proj is a part of Jamba; other modules have none, but older GPTQ tools wrote zeros.
_OWN_BIAS = ".dt_proj"


@dataclass
class _Group:
    """What is stored for one weight, by the end of the name."""

    name: str
    parts: dict[str, StoredTensor] = field(default_factory=dict)

    def need(self, part: str) -> StoredTensor:
        """The part, which must be there; BadFileError names a part that is."""
        if part not in self.parts:
            known = next(iter(self.parts.values()))
            raise BadFileError(
                known.path, f"tensor {_part_name(self.name, part)} is missing, although {known.name} requires it"
            )
        return self.parts[part]


@dataclass(frozen=True)
class _Finder:
    """Makes the DequantizedTensor of each group; None where the weight is not quantized."""

    checkpoint: Checkpoint
    scheme: Scheme
    opened: Opened

    def compressed(self, group: _Group) -> DequantizedTensor | None:
        if "_global_scale" in group.parts:
            raise scheme.refused(group.parts["_global_scale"].path, "compressed-tensors in a 4-bit float type")
        packed, weight = group.parts.get("_packed"), group.parts.get("")
        if packed is not None:
            return self._packed(group, packed)
        if weight is None or (weight.dtype in FLOATS and "_scale" not in group.parts):
            return None
        if weight.dtype in FLOATS:
            raise UnsupportedError(
                f"{weight.path}: tensor {weight.name} has a scale but is stored as {weight.dtype}: the checkpoint was saved "
                "before it was compressed; convert the original one"
            )
        require_dtype(weight, "I8", *FP8_DTYPES)
        scale, zero = group.need("_scale"), group.parts.get("_zero_point")
        require_dtype(scale, *FLOATS, *(("U8",) if "mxfp8-quantized" in self.scheme.formats else ()))
        grid = find_grid(scale, weight.shape, self.scheme.blocks, self.scheme.group_sizes - {-1})
        kind = "int8" if weight.dtype == "I8" else "fp8"
        if zero is not None:
            require_shape(zero, scale.shape)
            require_dtype(zero, "I8", *FLOATS, *FP8_DTYPES)
        columns = self._columns(group, grid, weight.shape)
        layout = Scaled(kind, weight.shape, weight, scale, grid, zero=zero, columns=columns)
        return self._made(group, weight, weight.shape, _float_of(scale), layout)

    def _packed(self, group: _Group, packed: StoredTensor) -> DequantizedTensor:
        if packed.dtype == "U8":
            raise scheme.refused(packed.path, "compressed-tensors in a 4-bit float type")
        require_dtype(packed, "I32")
        if "" in group.parts:
            raise wrong(packed, f"is stored beside {group.parts[''].name}")
        shape = self._stored_shape(group.need("_shape"), packed)
        scale, zero = group.need("_scale"), group.parts.get("_zero_point")
        require_dtype(scale, *FLOATS)
        bits, whole = self._bits(packed, shape[-1])
        grid = find_grid(scale, shape, groups=self.scheme.group_sizes - {-1})
        if zero is not None and zero.dtype == "I32":
            require_shape(zero, *zero_shapes(grid, shape, bits, whole))
        elif zero is not None:
            require_dtype(zero, "I8")
            require_shape(zero, scale.shape)
        layout = Scaled(f"int{bits}", shape, packed, scale, grid, bits, whole, zero, self._columns(group, grid, shape))
        return self._made(group, packed, shape, scale.dtype, layout)

    def _stored_shape(self, tensor: StoredTensor, packed: StoredTensor) -> tuple[int, ...]:
        require_dtype(tensor, "I64", "I32")
        if math.prod(tensor.shape) != len(packed.shape) or len(packed.shape) not in (2, 3):
            raise wrong(tensor, f"is {list(tensor.shape)} for the packed weight {list(packed.shape)}")
        size, data = tensor.nbytes // len(packed.shape), _bytes(self.checkpoint, tensor)
        shape = tuple(int.from_bytes(data[i : i + size], "little", signed=True) for i in range(0, len(data), size))
        if shape[:-1] != packed.shape[:-1] or not 0 < shape[-1] <= packed.shape[-1] * 32:
            raise wrong(tensor, f"says {list(shape)}, but the packed weight is {list(packed.shape)}")
        return shape

    def _bits(self, packed: StoredTensor, width: int) -> tuple[int, bool]:
        """The bits of the packed values, and whether words hold whole ones; BadFileError where the widths do not tell."""
        known = self.scheme.bits or frozenset(range(1, 9))
        fits = [
            (bits, whole)
            for bits in sorted(known & set(range(1, 9)))
            for whole, words in ((False, packed_words(width, bits)), (True, split_words(width, bits)))
            if words == packed.shape[-1] and not (whole and (32 % bits == 0 or width <= 32 // bits))
        ]
        if len(fits) != 1:
            found = "no number of bits" if not fits else "several numbers of bits"
            raise wrong(packed, f"is {list(packed.shape)}: {found} of the quantization packs {width} values so")
        return fits[0]

    def _columns(self, group: _Group, grid: Grid, shape: tuple[int, ...]) -> StoredTensor | None:
        columns = group.parts.get("_g_idx")
        if columns is None:
            return None
        require_dtype(columns, "I32", "I64")
        require_shape(columns, (shape[-1],))
        return columns if grid.across > 1 else None

    def fp8(self, group: _Group) -> DequantizedTensor | None:
        weight = group.parts.get("")
        scales = [part for part in ("_scale_inv", "_scale") if part in group.parts]
        if weight is None or (weight.dtype in FLOATS and not scales):
            return None
        require_dtype(weight, *FP8_DTYPES)
        if len(scales) == 2:
            raise wrong(group.parts["_scale"], f"is stored beside {group.parts['_scale_inv'].name}")
        scale = group.need(scales[0] if scales else _PARTS[self.scheme.method][0])
        require_dtype(scale, *FLOATS, "U8", "F8_E8M0")
        grid = find_grid(scale, weight.shape, self.scheme.blocks)
        # transformers multiplies in float32, whatever the scale's type.
        return self._made(group, weight, weight.shape, "F32", Scaled("fp8", weight.shape, weight, scale, grid))

    def gptq(self, group: _Group) -> DequantizedTensor | None:
        if ".qweight" not in group.parts:
            raise BadFileError(
                next(iter(group.parts.values())).path, f"tensor {_part_name(group.name, '.qweight')} is missing"
            )
        weight, zeros, scale = (group.need(part) for part in (".qweight", ".qzeros", ".scales"))
        if "" in group.parts:
            raise wrong(weight, f"is stored beside {group.parts[''].name}")
        awq = self.scheme.method == scheme.AWQ
        columns = group.parts.get(".g_idx")
        for tensor in (weight, zeros, scale):
            if len(tensor.shape) != 2 or 0 in tensor.shape:
                raise wrong(tensor, f"is {list(tensor.shape)}, not a matrix")
        require_dtype(weight, "I32")
        require_dtype(zeros, "I32")
        require_dtype(scale, *FLOATS)
        groups, out = scale.shape
        bits = self._transposed_bits(zeros, out)
        width = weight.shape[0] if awq else weight.shape[0] * 32 // bits
        require_shape(weight, (width, packed_words(out, bits)) if awq else (packed_words(width, bits), out))
        require_shape(zeros, (groups, packed_words(out, bits)))
        size = self._group_size(scale, width, groups)
        if columns is not None:
            require_dtype(columns, "I32", "I64")
            require_shape(columns, (width,))
        layout = Transposed((out, width), weight, zeros, scale, bits, size, self.scheme.zero_offset, columns, awq)
        return self._made(group, weight, (out, width), scale.dtype, layout)

    def _transposed_bits(self, zeros: StoredTensor, out: int) -> int:
        if self.scheme.method == scheme.AWQ:
            return AWQ_BITS
        known = frozenset((2, 3, 4, 8)) if self.scheme.mixed else self.scheme.bits
        fits = [bits for bits in known if packed_words(out, bits) == zeros.shape[1]]
        if len(fits) != 1:
            raise wrong(zeros, f"is {list(zeros.shape)}, which the quantization's bits do not give for {out} features")
        return fits[0]

    def _group_size(self, scale: StoredTensor, width: int, groups: int) -> int:
        named = next(iter(self.scheme.group_sizes))
        size = width if named == -1 else named
        if -(-width // size) == groups:
            return size
        if self.scheme.mixed and width % groups == 0:
            return width // groups
        raise wrong(scale, f"has {groups} groups over {width} features, but the quantization's group_size is {named}")

    def bitsandbytes(self, group: _Group) -> DequantizedTensor | None:
        parts, weight = group.parts, group.parts.get("")
        state = next((parts[bnb.STATE + kind] for kind in bnb.TYPES if bnb.STATE + kind in parts), None)
        if state is None and ".SCB" not in parts:
            if weight is None or weight.dtype in FLOATS:
                return None
            raise wrong(weight, f"is stored as {weight.dtype}, but its SCB or quant_state is missing")
        weight = group.need("")
        if state is None:
            return self._int8(group, weight)
        layout = bnb.FourBit(
            bnb.read_state(self.checkpoint, state), weight, group.need(".absmax"),
            parts.get(".nested_absmax"), parts.get(".nested_quant_map"),
        )  # fmt: skip
        bnb.check_four_bit(layout)
        return self._made(group, weight, layout.state.shape, layout.state.dtype, layout)

    def _int8(self, group: _Group, weight: StoredTensor) -> DequantizedTensor:
        scale, form = group.parts[".SCB"], group.parts.get(".weight_format")
        require_dtype(weight, "I8")
        require_dtype(scale, "F32", "F16", "BF16")
        if len(weight.shape) != 2:
            raise wrong(weight, f"is {list(weight.shape)}, not a matrix")
        require_shape(scale, (weight.shape[0],))
        if form is not None and any(_bytes(self.checkpoint, form)):
            raise UnsupportedError(
                f"{form.path}: tensor {weight.name} is in an order of an old GPU (weight_format); save it again with a "
                "current bitsandbytes"
            )
        return self._made(group, weight, weight.shape, "F32", bnb.Int8(weight, scale))

    def _made(
        self, group: _Group, weight: StoredTensor, shape: tuple[int, ...], dtype: str,
        layout: Scaled | Transposed | bnb.Int8 | bnb.FourBit,
    ) -> DequantizedTensor:  # fmt: skip
        return dequantized(group.name, weight, shape, dtype, layout, list(group.parts.values()), self.opened)


def _float_of(scale: StoredTensor) -> str:
    """The type of the values that ``scale`` gives; powers of two give float32."""
    return scale.dtype if scale.dtype in FLOATS else "F32"


def dequantized_tensors(checkpoint: Checkpoint, found: Scheme) -> dict[str, StoredTensor]:
    """The checkpoint's tensors with those that ``found`` quantized as DequantizedTensors, and without their parts.

    Only headers and a few bytes are read. Raises BadFileError, naming the tensor and its file, for parts that are missing
    or do not fit together, and UnsupportedError for a layout that cannot be read.
    """
    tensors = dict(checkpoint.tensors)
    groups: dict[str, _Group] = {}
    for name, tensor in checkpoint.tensors.items():
        if found.method not in (scheme.GPTQ, scheme.AWQ, scheme.BITSANDBYTES) and _ACTIVATIONS.fullmatch(name):
            del tensors[name]
        elif place := _place(name, _PARTS[found.method]):
            groups.setdefault(place[0], _Group(place[0])).parts[place[1]] = tensor
    finder = _Finder(checkpoint, found, Opened())
    make: Callable[[_Group], DequantizedTensor | None] = {
        scheme.COMPRESSED: finder.compressed, scheme.GPTQ: finder.gptq, scheme.AWQ: finder.gptq,
        scheme.BITSANDBYTES: finder.bitsandbytes,
    }.get(found.method, finder.fp8)  # fmt: skip
    for group in groups.values():
        if list(group.parts) == [""] and found.method in (scheme.GPTQ, scheme.AWQ):
            continue
        made = make(group)
        if made is None:
            continue
        for part in made.parts:
            del tensors[part.name]
        tensors[made.name] = made
    return _without_zero_biases(checkpoint, tensors)


def _place(name: str, parts: tuple[str, ...]) -> tuple[str, str] | None:
    """The weight that tensor ``name`` belongs to, and the end of its name: "" for the weight itself."""
    for part in parts:
        if name.endswith(part):
            base = name.removesuffix(part)
            if part in _OF_MODULE and not re.fullmatch(rf".*\.{_STACK}", base):
                base += ".weight"
            if _WEIGHT.fullmatch(base):
                return base, part
    return (name, "") if _WEIGHT.fullmatch(name) else None


def _bytes(checkpoint: Checkpoint, tensor: StoredTensor) -> bytearray:
    """The bytes of a small tensor, without torch: ``jamba show`` gets here."""
    data = bytearray(tensor.nbytes)
    checkpoint.read_into(tensor, 0, data)
    return data


def _part_name(name: str, part: str) -> str:
    return (name.removesuffix(".weight") if part in _OF_MODULE else name) + part


def _without_zero_biases(checkpoint: Checkpoint, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    for name in [name for name, tensor in tensors.items() if isinstance(tensor, DequantizedTensor)]:
        module = name.removesuffix(".weight")
        bias = tensors.get(f"{module}.bias")
        if bias is None or module.endswith(_OWN_BIAS) or bias.dtype not in FLOATS:
            continue
        if not any(_bytes(checkpoint, bias)):
            del tensors[bias.name]
    return tensors
