"""What a saved network may call: an allow-list, because a file is data and not everything that torch registers is safe.

Operators are ATen's own, without effects, of the names below: what networks are captured into. Left out are those that
touch files, devices or memory that is not theirs, and those of sparse, nested and packed tensors. Arguments have the
types of the operator's schema, and words come from a list: no operator is ever handed the name of a file.
"""

import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import SymBool, SymFloat, SymInt, Tensor
from torch.fx import Node

from octavo.errors import QuantizationError, refused

_NAMES = """
__and__ __lshift__ __or__ __rshift__ __xor__ _adaptive_avg_pool2d _adaptive_avg_pool3d _cdist_forward _conj
_conj_physical _convolution _convolution_mode _embedding_bag _embedding_bag_forward_only _euclidean_dist _fft_c2c
_fft_c2r _fft_r2c _fused_rms_norm _log_softmax _logcumsumexp _native_batch_norm_legit
_native_batch_norm_legit_no_training _neg_view _pad_circular _pad_enum _pdist_forward _prelu_kernel _reshape_copy
_safe_softmax _shape_as_tensor _softmax _stack _to_copy _trilinear _unique2 _unsafe_index _unsafe_view
_upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d
_upsample_nearest_exact3d _weight_norm _weight_norm_interface abs absolute acos acosh adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d add addbmm addcdiv
addcmul addmm addmv addr adjoint affine_grid_generator alias all amax amin aminmax angle any arange arccos arccosh
arcsin arcsinh arctan arctan2 arctanh argmax argmin argsort argwhere as_strided as_strided_scatter asin asinh atan
atan2 atanh atleast_1d atleast_2d atleast_3d avg_pool1d avg_pool2d avg_pool3d baddbmm bartlett_window batch_norm
bilinear binary_cross_entropy binary_cross_entropy_with_logits bincount bitwise_and bitwise_left_shift bitwise_not
bitwise_or bitwise_right_shift bitwise_xor blackman_window block_diag bmm broadcast_tensors broadcast_to bucketize
cartesian_prod cat cdist ceil celu chalf channel_shuffle chunk clamp clamp_max clamp_min clip clone col2im
column_stack combinations complex concat concatenate conj conj_physical constant_pad_nd contiguous conv1d conv2d
conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution copy copysign corrcoef cos cosh
cosine_similarity count_nonzero cov cross cummax cummin cumprod cumsum cumulative_trapezoid deg2rad det detach diag
diag_embed diagflat diagonal diagonal_scatter diff digamma dim dist div divide dot dsplit dstack einsum elu embedding
embedding_bag eq erf erfc erfinv exp exp2 expand expand_as expm1 eye fft_fft fft_fft2 fft_fftfreq fft_fftn
fft_fftshift fft_hfft fft_hfft2 fft_hfftn fft_ifft fft_ifft2 fft_ifftn fft_ifftshift fft_ihfft fft_ihfft2 fft_ihfftn
fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftfreq fft_rfftn fill fix flatten flip fliplr flipud
float_power floor floor_divide fmax fmin fmod frac fractional_max_pool2d fractional_max_pool3d frexp frobenius_norm
full full_like gather gcd ge gelu ger glu gradient greater greater_equal grid_sampler grid_sampler_2d grid_sampler_3d
group_norm gru gru_cell gt hamming_window hann_window hardshrink hardsigmoid hardswish hardtanh heaviside histc
histogram hsplit hstack hypot i0 im2col imag index index_add index_fill index_put index_reduce index_select inner
instance_norm inverse is_floating_point isclose isfinite isin isinf isnan isneginf isposinf isreal istft kaiser_window
kl_div kron kthvalue layer_norm lcm ldexp le leaky_relu lerp less less_equal lgamma lift lift_fresh linalg_cross
linalg_det linalg_diagonal linalg_inv linalg_matmul linalg_matrix_exp linalg_matrix_norm linalg_matrix_power
linalg_multi_dot linalg_norm linalg_pinv linalg_qr linalg_slogdet linalg_solve linalg_svd linalg_vecdot
linalg_vector_norm linear linspace log log10 log1p log2 log_sigmoid log_sigmoid_forward log_softmax logaddexp
logaddexp2 logcumsumexp logdet logical_and logical_not logical_or logical_xor logit logspace logsumexp lstm lstm_cell
lt mH mT masked_fill masked_scatter masked_select matmul matrix_H matrix_exp matrix_power max max_pool1d
max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d
max_unpool3d maximum mean median meshgrid min minimum mish mm mode moveaxis movedim msort mul multiply mv mvlgamma
nan_to_num nanmean nanmedian nanquantile nansum narrow native_batch_norm native_channel_shuffle native_group_norm
native_layer_norm ne neg negative new_full new_ones new_zeros nextafter nonzero nonzero_static norm not_equal
nuclear_norm numel numpy_T one_hot ones ones_like outer pad pad_sequence pairwise_distance pdist permute pinverse
pixel_shuffle pixel_unshuffle polar polygamma positive pow prelu prod put qr quantile rad2deg range ravel real
reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6 remainder renorm repeat repeat_interleave
replication_pad1d replication_pad2d replication_pad3d reshape reshape_as resolve_conj resolve_neg rms_norm rnn_relu
rnn_relu_cell rnn_tanh rnn_tanh_cell roll rot90 round row_stack rrelu rsqrt rsub scalar_tensor
scaled_dot_product_attention scatter scatter_add scatter_reduce searchsorted select select_scatter selu sgn sigmoid
sign signbit silu sin sinc sinh size slice slice_scatter softmax softplus softshrink sort special_airy_ai
special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1 special_chebyshev_polynomial_t
special_chebyshev_polynomial_u special_chebyshev_polynomial_v special_chebyshev_polynomial_w special_digamma
special_entr special_erf special_erfc special_erfcx special_erfinv special_exp2 special_expit special_expm1
special_gammainc special_gammaincc special_gammaln special_hermite_polynomial_h special_hermite_polynomial_he
special_i0 special_i0e special_i1 special_i1e special_laguerre_polynomial_l special_legendre_polynomial_p
special_log1p special_log_ndtr special_log_softmax special_logit special_logsumexp special_modified_bessel_i0
special_modified_bessel_i1 special_modified_bessel_k0 special_modified_bessel_k1 special_multigammaln special_ndtr
special_ndtri special_polygamma special_psi special_round special_scaled_modified_bessel_k0
special_scaled_modified_bessel_k1 special_shifted_chebyshev_polynomial_t special_shifted_chebyshev_polynomial_u
special_shifted_chebyshev_polynomial_v special_shifted_chebyshev_polynomial_w special_sinc special_softmax
special_spherical_bessel_j0 special_xlog1py special_xlogy special_zeta split split_with_sizes sqrt square squeeze
stack std std_mean stft sub subtract sum sum_to_size swapaxes swapdims sym_numel sym_size t take take_along_dim tan
tanh tensor_split tensordot threshold tile to topk trace transpose trapezoid trapz tril tril_indices triu triu_indices
true_divide trunc type_as unbind unflatten unfold unique_consecutive unique_dim unique_dim_consecutive unsafe_chunk
unsafe_split unsafe_split_with_sizes unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_linear1d
upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d vander var var_mean vdot view view_as
view_as_complex view_as_real vsplit vstack where xlogy zero zeros zeros_like
"""
NAMES = frozenset(_NAMES.split())

# Functions of Python and torch that compute with sizes.
_OF_OPERATOR = "getitem add sub mul floordiv truediv mod pow neg pos abs eq ne lt le gt ge and_ or_ not_"
_OF_TORCH = "sym_int sym_float sym_max sym_min sym_not sym_ite"
OF_SIZES: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in _OF_OPERATOR.split()},
    **{name: getattr(torch, name) for name in _OF_TORCH.split()},
    **{name: getattr(math, name) for name in ("ceil", "floor", "trunc")},
}
NAME_OF_SIZES: dict[Any, str] = {function: name for name, function in OF_SIZES.items()}

# Every argument that is a word: modes of padding, rounding, reduction, normalization, windows.
_WORD = """
none tanh floor trunc valid same constant reflect replicate circular sum prod mean amax amin max min ij xy left right
fro nuc ortho forward backward reduced complete r linear lower higher nearest midpoint bilinear bicubic L U
"""
_WORDS = frozenset(_WORD.split())
_EQUATION = re.compile(r"[A-Za-z,.> -]{1,200}")  # of einsum
LARGEST = 2**62  # of a whole number in an argument
ENDLESS = 2**63 - 1  # how torch writes the end of x[::2], and nothing else


def operator_named(name: str, site: str, vouched: Collection[str] = ()) -> Callable[..., Any]:
    """The operator or function of sizes that a saved network calls.

    vouched  further operators ("torchvision.nms.default") or whole namespaces ("torchvision") that the caller trusts
    raises   QuantizationError for one that is not allowed, or that this version of torch does not have
    """
    if name in OF_SIZES:
        return OF_SIZES[name]
    namespace, _, rest = name.partition(".")
    if not (namespace == "aten" and rest.partition(".")[0] in NAMES) and not {name, namespace} & set(vouched):
        raise refused(
            site,
            f"it calls {name[:100]!r}, which is none that a network is captured into",
            f'if you trust this file and that operator, pass operators=("{name[:100]}",); else do not load it',
        )
    try:
        family, overload = rest.split(".")
        found = getattr(getattr(getattr(torch.ops, namespace), family), overload)
    except (ValueError, AttributeError) as error:
        raise QuantizationError(
            asked="read a saved network",
            seen=f"torch {torch.__version__} has no operation {name!r}",
            remedy="import the package that registers it, or use the version of torch that the network was saved with",
            site=site,
        ) from error
    if not isinstance(found, torch._ops.OpOverload) or found._schema.is_mutable:
        raise refused(site, f"it calls {name!r}, which writes to its inputs")
    return found


def check_arguments(
    node_name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Raise QuantizationError naming the node if a call does not fit the schema of what it calls."""
    if isinstance(function, torch._ops.OpOverload):
        _check_schema(node_name, function, args, kwargs)
    elif function is operator.getitem:
        if kwargs or len(args) != 2 or not isinstance(_value(args[0]), tuple) or type(args[1]) is not int:
            raise refused(node_name, "it takes an item of what is no tuple")
    elif kwargs or not args or not all(_is_number(argument) for argument in args):
        raise refused(node_name, f"it computes {NAME_OF_SIZES[function]} of what are no numbers")
    elif function is operator.pow and not (len(args) == 2 and type(args[1]) is int and 0 <= args[1] <= 8):
        raise refused(node_name, "it raises a size to a power that no size is raised to")


def _check_schema(site: str, function: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    declared = function._schema.arguments
    positional = [argument for argument in declared if not argument.kwarg_only]
    if len(args) > len(positional):
        raise refused(site, f"{function} takes {len(positional)} arguments, and {len(args)} are given")
    given = {argument.name: value for argument, value in zip(positional, args, strict=False)}
    if given.keys() & kwargs.keys() or kwargs.keys() - {argument.name for argument in declared}:
        raise refused(site, f"{function} does not take the arguments {', '.join(kwargs)[:100]}")
    given |= kwargs
    for argument in declared:
        if argument.name not in given:
            if not argument.has_default_value():
                raise refused(site, f"{function} is not given its {argument.name}")
        elif not (_fits(given[argument.name], str(argument.type)) or _is_endless(function, argument.name, given)):
            raise refused(site, f"{function} is given a {argument.name} that is no {argument.type}")


def _is_endless(function: torch._ops.OpOverload, argument: str, given: Mapping[str, Any]) -> bool:
    """Whether this is the end of a slice that goes to the end."""
    return function._schema.name.startswith("aten::slice") and argument == "end" and given["end"] == ENDLESS


def _fits(value: Any, kind: str) -> bool:
    """Whether `value` can be an argument of the type that a schema calls `kind`."""
    if kind.startswith("Optional["):
        return value is None or _fits(value, kind[len("Optional[") : -1])
    if kind.startswith("List["):
        items = value if isinstance(value, list | tuple) else [value]  # one number may stand for all
        return all(_fits(item, kind[len("List[") : -1]) for item in items)
    return kind in _KINDS and _KINDS[kind](value)


def _value(argument: Any) -> Any:
    """What an argument is or, for a node, what that produces."""
    return argument.meta["val"] if isinstance(argument, Node) else argument


def _is_number(argument: Any) -> bool:
    value = _value(argument)
    if isinstance(value, int):
        return abs(value) <= LARGEST
    return isinstance(value, float | SymInt | SymFloat | SymBool)


def _is_whole(argument: Any) -> bool:
    value = _value(argument)
    return isinstance(value, torch.dtype | torch.layout | torch.memory_format) or (
        isinstance(value, int | SymInt) and _is_number(argument)
    )


_KINDS: dict[str, Callable[[Any], bool]] = {  # {type in a schema: what it takes}
    "Tensor": lambda value: isinstance(_value(value), Tensor) or _is_number(value),
    "int": _is_whole,
    "float": _is_number,
    "number": _is_number,
    "bool": lambda value: isinstance(_value(value), bool | SymBool),
    "str": lambda value: isinstance(value, str) and (value in _WORDS or _EQUATION.fullmatch(value) is not None),
    "Device": lambda value: isinstance(value, torch.device),
}
