"""Array helpers against the plain formulas they shorten."""

import math

import jax
import numpy as np
import pytest
from array_api_compat import torch
from hypothesis import given
from hypothesis import strategies as st

from p2penv.core.arrays import SHORT, clip, column, order, row_sum, row_sums, scalar, smaller, some, vector


@pytest.mark.parametrize("shape", [(3,), (1,), (1, 3), (4, 3), (1, 1, 3), (2, 1, 3), (0, 3), (1, 2 * SHORT)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, bool])
def test_row_sum(shape, dtype):
    values = np.random.default_rng(0).uniform(-2, 2, shape).astype(dtype)
    wanted = np.array([math.fsum(row) for row in values.reshape(-1, shape[-1])]).reshape(shape[:-1])
    found = row_sum(values)
    np.testing.assert_allclose(found, wanted, rtol=1e-5 if dtype == np.float32 else 1e-12, atol=1e-4)
    assert np.shape(found) == shape[:-1]
    if dtype in (np.float64, np.float32):
        assert found.dtype == dtype


@pytest.mark.parametrize("shape", [(), (1,), (4,), (1, 1), (2, 4)])
@pytest.mark.parametrize("rows", [(3,), (1, 3), (4, 3), (2, 4, 3)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_column_broadcasts_as_an_axis_for_the_agents(shape, rows, dtype):
    rng = np.random.default_rng(0)
    values, parameters = np.asarray(rng.uniform(size=shape), dtype), rng.uniform(size=rows).astype(dtype)
    wanted = parameters * values[..., None]
    for either in (values, values[()]):  # an array, and a NumPy scalar where it is a single number
        found = parameters * column(either, parameters)
        np.testing.assert_array_equal(found, wanted)
        assert found.shape == wanted.shape
        assert found.dtype == wanted.dtype
    found = torch.asarray(parameters) * column(torch.asarray(values), torch.asarray(parameters))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_scalars_are_clipped_as_arrays_are(dtype):
    for number in (-2.0, -0.5, 0.5, 2.0, np.nan):
        value = dtype(number)
        for low, high in ((-1.0, 1.0), (dtype(-1.0), dtype(0.0)), (np.array(-1.0), np.array(1.0))):
            np.testing.assert_array_equal(clip(value, low, high), clip(np.array([value]), low, high)[0])
    assert smaller(dtype(1.0), dtype(2.0)) == smaller(dtype(2.0), dtype(1.0)) == 1.0
    np.testing.assert_array_equal(smaller(np.array([1.0, 4.0]), np.array([3.0, 2.0])), [1.0, 2.0])


def test_one_number_and_back():
    one, two = np.array([0.5], np.float32), np.array([0.5, 1.0])
    assert isinstance(scalar(one), np.float32)
    np.testing.assert_array_equal(vector(scalar(one)), one)
    assert vector(scalar(one)).dtype == np.float32
    for kept in (two, np.array([[1.0]]), torch.asarray(one)):
        assert scalar(kept) is kept
        assert vector(kept) is kept


@given(st.integers(1, 20), st.integers(1, 3), st.sampled_from([np.float32, np.float64]))
def test_sums_of_rows_are_those_of_each(size, envs, dtype):
    rng = np.random.default_rng(size)
    rows = rng.normal(size=(3, envs, size)).astype(dtype)
    for total, row in zip(row_sums(*rows), rows, strict=True):
        np.testing.assert_allclose(np.reshape(total, -1), row.sum(axis=-1), rtol=1e-5, atol=1e-5)
        assert np.ndim(total) == (len(row) > 1)
        assert np.result_type(total) == dtype


@pytest.mark.parametrize("xp", [np, jax.numpy, torch], ids=["numpy", "jax", "torch"])
def test_some_is_any_and_order_sorts(xp):
    for mask in ([False, False], [False, True], [[False], [True]], False, True):
        assert some(xp.asarray(mask)) == np.any(mask)
    assert some(np.float64(1.0) > 0.0)
    assert not some(False)
    values = np.random.default_rng(0).normal(size=(3, 7))
    np.testing.assert_array_equal(np.asarray(order(xp.asarray(values))), np.argsort(values, axis=-1))
