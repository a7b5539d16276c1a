"""Scheme: which integers, and how many entries share a scale."""

import pytest
import torch

from octavo.errors import QuantizationError
from octavo.numerics import AFFINE_UINT8, INT8, INT8_PER_CHANNEL, UINT8, Scheme


@pytest.mark.parametrize("bits", range(2, 9))
def test_integer_range_of_every_kind(bits: int) -> None:
    half, full = 2 ** (bits - 1), 2**bits
    expected = {
        Scheme(bits=bits): (-(half - 1), half - 1),
        Scheme(bits=bits, full_range=True): (-half, half - 1),
        Scheme(bits=bits, symmetric=False): (-half, half - 1),
        Scheme(bits=bits, signed=False): (0, full - 1),
        Scheme(bits=bits, signed=False, symmetric=False): (0, full - 1),
    }
    assert {scheme: (scheme.qmin, scheme.qmax) for scheme in expected} == expected


def test_presets() -> None:
    assert (INT8.qmin, INT8.qmax, INT8.dtype, INT8.axis) == (-127, 127, torch.int8, None)
    assert (UINT8.qmin, UINT8.qmax, UINT8.dtype, UINT8.symmetric) == (0, 255, torch.uint8, True)
    assert (AFFINE_UINT8.qmin, AFFINE_UINT8.qmax, AFFINE_UINT8.symmetric) == (0, 255, False)
    assert Scheme(axis=0) == INT8_PER_CHANNEL


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 1}, "bits is 1; choose between 2 and 8 bits"),
        ({"bits": 9}, "bits is 9; choose between 2 and 8 bits"),
        ({"signed": False, "full_range": True}, "full_range is set on integers that already use every code"),
        ({"symmetric": False, "full_range": True}, "full_range is set on integers that already use every code"),
        ({"block": 32}, "block is 32 and axis is None; give blocks a positive length and the axis they lie along"),
        ({"block": 0, "axis": 1}, "block is 0 and axis is 1"),
    ],
)
def test_impossible_schemes_are_explained(fields: dict[str, int], message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        Scheme(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (INT8, []),
        (Scheme(axis=0), [6]),
        (Scheme(axis=-1), [8]),
        (Scheme(axis=1, block=2), [6, 2, 8]),
        (Scheme(axis=-1, block=8), [6, 4, 1]),
    ],
)
def test_scale_shape(scheme: Scheme, expected: list[int]) -> None:
    assert scheme.scale_shape([6, 4, 8]) == expected


@pytest.mark.parametrize(
    ("scheme", "shape", "message"),
    [
        (Scheme(axis=2), [3, 4], "along axis 2, but it has 2 axes; choose an axis between -2 and 1"),
        (Scheme(axis=-3), [3, 4], "along axis -3, but it has 2 axes"),
        (Scheme(axis=0), [], "it has 0 axes; use axis=None"),
        (Scheme(axis=1, block=3), [3, 4], r"in blocks of 3 along axis 1, but 4 is not a multiple of 3"),
    ],
)
def test_shapes_that_do_not_fit_are_explained(scheme: Scheme, shape: list[int], message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        scheme.scale_shape(shape)
