"""Analysis of a model's graph.

A model is traced, in inference mode, and its operations are inspected: which
activation it ends in, whether it is random, whether its output depends on its
input differentiably.
"""

import re
from collections.abc import Callable, Container
from typing import Any

import tensorflow as tf

# Operations that return their first input unchanged, up to shape and dtype.
_TRANSPARENT = {"Identity", "Cast", "Reshape", "Squeeze", "ExpandDims"}
_SATURATING = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
# Operations that classifiers end in when their outputs are logits. A
# log-softmax counts: differences of log-probabilities are those of logits.
_LINEAR = {
    "MatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum", "Conv2D", "BiasAdd",
    "Add", "AddV2", "Mean", "LogSoftmax",
}  # fmt: skip
# Operations that average, of tensors and with constants.
_SUMS = {"Add", "AddV2", "AddN", "Pack", "Mean", "Sum"}
_SCALINGS = {"Mul", "RealDiv"}
# Without a gradient with respect to a floating input. Of other operations
# TensorFlow itself says whether they have one.
_STEPS = {
    "ArgMax", "ArgMin", "Bucketize", "Equal", "Greater", "GreaterEqual", "Less",
    "LessEqual", "NotEqual", "Shape", "StopGradient", "ZerosLike", "OnesLike",
}  # fmt: skip
_RANDOM = (
    "Multinomial", "RandomGamma", "RandomPoisson", "RandomShuffle",
    "RandomStandardNormal", "RandomUniform", "StatelessMultinomial",
    "StatelessRandom", "StatelessTruncatedNormal", "TruncatedNormal",
)  # fmt: skip


def trace(call: Callable[[tf.Tensor], Any], spec: tf.TensorSpec) -> Any:
    """A function as a graph.

    Args:
        call: function of one tensor.
        spec: `tf.TensorSpec` of that.

    Returns:
        The concrete function; its `graph` and its `structured_outputs`.

    Raises:
        ValueError: if the call makes variables each time.
    """
    try:
        return tf.function(call, autograph=False).get_concrete_function(spec)
    except ValueError as error:
        if "singleton tf.Variable" not in str(error):
            raise
        raise ValueError(
            "model: expected one that makes its layers and variables once, in "
            "__init__ or build; it makes new ones each time it is called, "
            "which no training would reach."
        ) from error


def ending(tensor: tf.Tensor) -> str | None:
    """The activation of an output: `"softmax"`, `"sigmoid"` or `"linear"`.

    The mean or the sum of softmaxes counts as a softmax: logits are recovered
    by the logarithm, which needs positive values and nothing else.

    Args:
        tensor: (B, n), the output, in its graph.

    Returns:
        One of the three, or None where the graph does not show it.
    """
    op = _origin(tensor)
    if op.type in _SATURATING:
        return _SATURATING[op.type]
    averaged = _averaged(op)
    if averaged:
        return averaged
    # Another mixture of probabilities and other things is no logit.
    mixes = any(_origin(t).type in _SATURATING for t in op.inputs)
    return "linear" if op.type in _LINEAR and not mixes else None


def last_operation(tensor: tf.Tensor) -> str:
    """The type of the operation that an output comes from."""
    return _origin(tensor).type


def _averaged(op):
    """The activation that all summands have in common, or None."""
    if op.type in _SCALINGS:
        factors = [_origin(t) for t in op.inputs]
        summands = [f for f in factors if f.type != "Const"]
        if len(summands) != 1:
            return None
    elif op.type in _SUMS:
        terms = op.inputs if op.type not in ("Mean", "Sum") else op.inputs[:1]
        summands = [_origin(t) for t in terms]
    else:
        return None
    kinds = {_SATURATING.get(s.type) or _averaged(s) for s in summands}
    return kinds.pop() if len(kinds) == 1 else None


def _origin(tensor):
    """The operation a tensor comes from, but for shape and dtype."""
    op = tensor.op
    while op.type in _TRANSPARENT:
        op = op.inputs[0].op
    return op


def differentiable(concrete: Any) -> bool:
    """Whether a function's output depends differentiably on its input.

    Args:
        concrete: what `trace` returned.

    Returns:
        bool. Functions inside of the graph are not inspected.
    """
    graph = concrete.graph
    wanted = {tensor.op.name for tensor in graph.inputs[:1]}
    pending = list(graph.outputs)
    seen = set()
    while pending:
        op = pending.pop().op
        if op.name in wanted:
            return True
        if op.name in seen or op.type in _STEPS:
            continue
        seen.add(op.name)
        pending += [t for t in op.inputs if _has_gradient(t.dtype)]
    return False


def _has_gradient(dtype):
    """Whether tensors of a dtype, or lists of them, can have a gradient."""
    return dtype.is_floating or dtype.is_complex or dtype == tf.variant


def random_operations(concrete: Any) -> list[str]:
    """Names of the random operations that a function's output depends on.

    Args:
        concrete: what `trace` returned.

    Returns:
        list of str; of functions inside of the graph, their own names.
    """
    graph = concrete.graph
    inside = [
        function.signature.name
        for function in graph.as_graph_def().library.function
        if any(n.op.startswith(_RANDOM) for n in function.node_def)
    ]
    found, seen = [], set()
    pending = [tensor.op for tensor in graph.outputs]
    while pending:
        op = pending.pop()
        if op.name in seen:
            continue
        seen.add(op.name)
        if op.type.startswith(_RANDOM) or _calls(op, inside):
            found.append(op.name)
        pending += [tensor.op for tensor in op.inputs]
    return found


def _calls(op, functions):
    """Whether an operation calls one of the functions of these names."""
    called = [
        value.func.name
        for value in op.node_def.attr.values()
        if value.HasField("func")
    ]
    return any(name in functions for name in called)


def layer_at(scope: str, layers: Container[str]) -> str | None:
    """The name of the innermost layer in the name of an operation, or None.

    Args:
        scope: the operation's name, parts divided by "/".
        layers: names of the layers that may be in it.
    """
    for part in reversed(scope.split("/")):
        for name in (part, re.sub(r"_\d+$", "", part)):  # called once more
            if name in layers:
                return name
    return None
