"""Triton's CPU interpreter, made exact in bfloat16 and usable beside the compiler in one process.

Triton's own interpreter (3.6 to 3.9) multiplies the raw bits of bf16 operands in `tl.dot`, cuts bits off when it casts
fp32 to bf16, and computes nonsense, silently, when bf16 numbers are added or multiplied. `make_exact` has casts round
to the nearest even, converts the operands of a dot to fp32, and raises TypeError on any other arithmetic in bf16. It
replaces private functions of Triton; `tests/kernels/test_interpreter.py` fails when one of them is gone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter as upstream
from triton.runtime.jit import JITFunction

_Builder = upstream.InterpreterBuilder
_ON_BITS = {np.equal, np.not_equal, np.bitwise_and, np.bitwise_or, np.bitwise_xor}
_exact = False
_twins: dict[int, Any] = {}  # id(JITFunction) -> InterpretedFunction; hashing a JITFunction would parse it again


def _widen(bits: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32)


def _narrow(values: np.ndarray) -> np.ndarray:
    """fp32 -> the bits of the nearest bf16, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits.astype(np.uint64) + ((bits >> 16) & 1) + 0x7FFF) >> 16
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16))


def make_exact() -> None:
    """Repair the interpreter of this process. Does nothing when it is repaired already."""
    global _exact
    if _exact:
        return
    _exact = True
    cast, dot, binary, to_float = (
        _Builder.cast_impl,
        _Builder.create_dot,
        _Builder.binary_op,
        _Builder.create_fp_to_fp,
    )
    reduce = upstream.ReduceOps.apply_impl

    def cast_impl(self, source, target):
        given, wanted = source.dtype.scalar, target.scalar
        if given == tl.float32 and wanted == tl.bfloat16:
            return upstream.TensorHandle(_narrow(source.data), wanted)
        if given == tl.bfloat16 and wanted == tl.float32:
            return upstream.TensorHandle(_widen(source.data), wanted)
        if tl.bfloat16 in (given, wanted) and given != wanted:
            return cast_impl(self, cast_impl(self, source, tl.float32), target)
        return cast(self, source, target)

    def create_dot(self, a, b, accumulator, *rest):
        def operand(x):
            return upstream.TensorHandle(_widen(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x

        return dot(self, operand(a), operand(b), accumulator, *rest)

    def binary_op(self, left, right, operation):
        if left.dtype.scalar == tl.bfloat16 and operation not in _ON_BITS:
            raise TypeError(f"{operation.__name__} on bfloat16 inside a kernel: upcast with .to(tl.float32) first")
        return binary(self, left, right, operation)

    def create_fp_to_fp(self, source, target, rounding):
        if {source.dtype.scalar, target.scalar} == {tl.bfloat16, tl.float32}:
            return cast_impl(self, source, target)
        return to_float(self, source, target, rounding)

    def apply_impl(self, operand):
        first = operand[0] if isinstance(operand, tuple) else operand
        if first.dtype.scalar == tl.bfloat16:
            raise TypeError("a reduction over bfloat16 inside a kernel: upcast with .to(tl.float32) first")
        return reduce(self, operand)

    def get_bf16(self, value):
        """A constant; Triton's own, where it has one (since 3.9), goes the same way."""
        return upstream.TensorHandle(_narrow(np.array([value], dtype=np.float32)), tl.bfloat16)

    convert = upstream._implicit_cvt

    def implicit_cvt(arg):
        """Floats too arrive as scalars of the language (fp32), as on a GPU: kernels may call `.to` on them."""
        if isinstance(arg, float):
            return tl.tensor(upstream.TensorHandle(np.array([arg], dtype=np.float32), tl.float32), tl.float32)
        return convert(arg)

    patch_tensor = upstream._patch_lang_tensor

    def patch_lang_tensor(tensor, scope):
        """Triton 3.6 calls int() on an array of one element for a run-time `range`; numpy refuses that since 2.4."""
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    upstream._implicit_cvt = implicit_cvt
    upstream._patch_lang_tensor = patch_lang_tensor
    _Builder.cast_impl, _Builder.create_dot, _Builder.binary_op = cast_impl, create_dot, binary_op
    _Builder.create_fp_ext = _Builder.create_fp_trunc = cast_impl
    _Builder.create_fp_to_fp, _Builder.get_bf16 = create_fp_to_fp, get_bf16
    upstream.ReduceOps.apply_impl = apply_impl


def _interpreted(function: JITFunction) -> Any:
    twin = _twins.get(id(function))
    if twin is None:
        twin = _twins[id(function)] = upstream.InterpretedFunction(function.fn)
    return twin


@contextmanager
def interpreting() -> Iterator[None]:
    """Inside a `with` block, kernels are interpreted on CPU tensors, as if Python had been started with
    TRITON_INTERPRET=1; outside, they are compiled as ever.
    """
    make_exact()
    before = JITFunction.__call__, JITFunction.run, upstream.InterpretedFunction.__call__
    flag = triton.knobs.runtime.interpret

    def call(self, *args, **kwargs):
        return _interpreted(self)(*args, **kwargs)

    def run(self, *args, grid, warmup, **kwargs):
        return _interpreted(self).run(*args, grid=grid, warmup=warmup, **kwargs)

    def nested(self, *args, **kwargs):
        scope = upstream._patch_lang(self.fn)  # upstream drops this scope and leaves the language patched
        try:
            return self.rewrite()(*args, **kwargs)
        finally:
            scope.restore()

    JITFunction.__call__, JITFunction.run, upstream.InterpretedFunction.__call__ = call, run, nested
    triton.knobs.runtime.interpret = True
    try:
        yield
    finally:
        JITFunction.__call__, JITFunction.run, upstream.InterpretedFunction.__call__ = before
        triton.knobs.runtime.interpret = flag
