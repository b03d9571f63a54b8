"""The operators that an exported program may call: those that classifiers export to, and no others.

Each computes values from values. None reads a file, looks at memory that was not written, or views memory with strides
of its own; none is random. A name not listed here is refused, whatever PyTorch registers under it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import torch

from nutlet.errors import ModelError

__all__ = ["ATEN", "function"]

_GROUPS = {
    "layers": """
        conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution linear bilinear embedding
        lstm gru rnn_tanh rnn_relu batch_norm instance_norm layer_norm group_norm rms_norm native_layer_norm
        native_group_norm dropout dropout_ feature_dropout alpha_dropout feature_alpha_dropout
        scaled_dot_product_attention
    """,
    "activations": """
        relu relu_ relu6 relu6_ leaky_relu leaky_relu_ prelu _prelu_kernel rrelu rrelu_ elu elu_ celu celu_ selu selu_
        gelu gelu_ silu silu_ mish mish_ hardswish hardswish_ hardsigmoid hardsigmoid_ hardtanh hardtanh_ softplus
        softshrink hardshrink threshold threshold_ log_sigmoid glu sigmoid sigmoid_ tanh tanh_ softmax _softmax
        log_softmax _log_softmax _safe_softmax logit special_expit
    """,
    "pooling": """
        max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d
        avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
        adaptive_max_pool3d
    """,
    "padding and resizing": """
        pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
        replication_pad3d upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
        _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d
        upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa pixel_shuffle pixel_unshuffle channel_shuffle
        grid_sampler grid_sampler_2d grid_sampler_3d affine_grid_generator im2col col2im
    """,
    "arithmetic": """
        add add_ sub sub_ rsub subtract mul mul_ multiply div div_ divide true_divide floor_divide remainder fmod pow
        pow_ neg neg_ negative abs abs_ absolute exp exp_ exp2 expm1 log log2 log10 log1p sqrt sqrt_ rsqrt rsqrt_ square
        reciprocal sign floor ceil round trunc frac sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh erf
        erfc hypot lerp addcmul addcdiv logaddexp maximum minimum clamp clamp_ clamp_min clamp_min_ clamp_max clamp_max_
        clip clip_ nan_to_num
    """,
    "comparison": """
        eq ne lt le gt ge greater less not_equal logical_and logical_or logical_not logical_xor bitwise_and bitwise_or
        bitwise_not bitwise_xor __and__ __or__ __xor__ where masked_fill masked_fill_ isnan isinf isfinite any all
    """,
    "reductions": """
        sum mean prod max min amax amin aminmax argmax argmin std var std_mean var_mean norm linalg_norm
        linalg_vector_norm frobenius_norm logsumexp cumsum cumprod median nanmean count_nonzero topk sort argsort
    """,
    "products": """
        matmul mm bmm mv dot addmm baddbmm einsum tensordot outer inner cdist cosine_similarity
    """,
    "shape": """
        view view_as reshape reshape_as _unsafe_view flatten unflatten permute transpose transpose_ t mT movedim
        moveaxis swapaxes swapdims numpy_T squeeze squeeze_ unsqueeze unsqueeze_ expand expand_as broadcast_to
        repeat tile repeat_interleave roll flip cat concat concatenate stack hstack vstack dstack column_stack
        chunk unsafe_chunk split split_with_sizes unsafe_split tensor_split hsplit vsplit unbind slice select
        narrow unfold diagonal tril triu index index_select index_put index_put_ gather take_along_dim scatter
        scatter_add one_hot atleast_2d sym_size sym_numel sym_stride bucketize meshgrid
    """,
    "copies and constants": """
        clone contiguous detach detach_ alias lift_fresh lift_fresh_copy to _to_copy type_as copy copy_ fill fill_ zero_
        zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full arange linspace eye scalar_tensor
    """,
}
ATEN = frozenset(name for names in _GROUPS.values() for name in names.split())
"""Names in ``torch.ops.aten`` that a program may call; one that ends in ``_`` writes into a value of the program."""

_TARGET = re.compile(r"torch\.ops\.aten\.(\w+)\.\w+")
_PYTHON = frozenset(
    {"add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "getitem", "eq", "ne", "lt", "le", "gt", "ge"}
)


def function(target: str) -> Callable[..., Any]:
    """Return the operator that ``target`` names, as ``torch.ops.aten.relu.default``.

    Raises:
        ModelError: the operator is not among those that a program may call.
    """
    match = _TARGET.fullmatch(target)
    if match and match[1] in ATEN and hasattr(torch.ops.aten, match[1]):
        # The packet, not the overload: its name is the plain one that walks over the model show.
        return getattr(torch.ops.aten, match[1])  # type: ignore[no-any-return]
    name = target.removeprefix("_operator.")
    if target.startswith("_operator.") and name in _PYTHON:
        return getattr(operator, name)  # type: ignore[no-any-return]
    raise ModelError(
        f"the program calls {target!r}, which is not one of the {len(ATEN)} operators read from a file; expected those "
        "that classifiers export to: name the model's Python factory instead, or express it with common operators "
        "(if it is a common one, please report it)"
    )
