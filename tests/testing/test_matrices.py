"""The test matrices have the structure that their name says, from seeds."""

import pytest
import torch

from weft.testing.matrices import matrices

SHAPES = [(40, 40), (40, 51), (51, 40), (7, 5), (1, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_seeds_and_scale(shape):
    first, again, other = matrices(*shape), matrices(*shape), matrices(*shape, seed=1)
    assert len(first) == 10
    for name, matrix in first.items():
        assert matrix.shape == shape and matrix.dtype == torch.float64 and torch.isfinite(matrix).all()
        assert float(matrix.square().mean()) == pytest.approx(1)
        assert torch.equal(matrix, again[name]) and not torch.equal(matrix, other[name])


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_every_matrix_has_its_structure(shape):
    rows, columns = shape
    drawn = matrices(*shape)
    small = min(shape)
    values = {name: torch.linalg.svdvals(matrix) for name, matrix in drawn.items()}
    assert float(values["orthogonal"].std()) < 1e-12
    assert float(values["low rank"][small // 3 :].max()) < 1e-10
    ratio = values["decaying spectrum"] / values["decaying spectrum"][0]
    torch.testing.assert_close(ratio, torch.linspace(1, 0.1, small, dtype=torch.float64))
    toeplitz, hankel = drawn["Toeplitz"], drawn["Hankel"]
    torch.testing.assert_close(toeplitz[1:, 1:], toeplitz[:-1, :-1])
    torch.testing.assert_close(hankel[1:, :-1], hankel[:-1, 1:])
    assert not torch.allclose(hankel[1:, 1:], hankel[:-1, :-1])
    # A Cauchy matrix has displacement rank one: diag(x) C - C diag(y) is constant.
    cauchy = 1 / drawn["Cauchy"]
    torch.testing.assert_close(cauchy - cauchy[:1], (cauchy - cauchy[:1])[:, :1].expand_as(cauchy))
    assert float(drawn["Cauchy"].abs().max() / drawn["Cauchy"].abs().min()) <= 2.01
    assert torch.linalg.matrix_rank(drawn["hierarchical"][: rows // 2, columns // 2 :]) == 1
    stages = min(30, rows // 2, columns // 2)
    cut_rows = torch.arange(rows) * stages // rows >= stages // 2
    cut_columns = torch.arange(columns) * stages // columns >= stages // 2
    semiseparable = drawn["sequentially semiseparable"]
    assert torch.linalg.matrix_rank(semiseparable[cut_rows][:, ~cut_columns]) <= 5
    assert torch.linalg.matrix_rank(semiseparable[~cut_rows][:, cut_columns]) <= 5
    assert torch.linalg.matrix_rank(semiseparable) == small
    assert (drawn["product of sparse"] != 0).any()
