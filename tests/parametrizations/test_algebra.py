"""Tables of algebras against independent arithmetic, their laws, and products in few multiplications."""

import itertools
import math
import time

import numpy as np
import pytest
import torch

from weft.errors import OptionError, SizeError, UnknownNameError
from weft.parametrizations import (
    algebra_distance,
    algebras,
    check_laws,
    fast_product,
    laws,
    multiplication_table,
)
from weft.parametrizations.algebra import decompose, dimension, expected_rank
from weft.parametrizations.cp import amplification
from weft.testing import oracles

CLIFFORDS = [f"cl({p},{q},{r})" for p, q, r in itertools.product(range(4), repeat=3) if 1 <= p + q + r <= 3]
CLIFFORDS += ["cl(4,0)", "cl(1,3)", "cl(3,0,1)"]


def product(algebra):
    """Multiplication in an algebra, from its table by a loop over the basis."""
    table = multiplication_table(algebra, dtype=torch.float64).numpy()

    def multiply(a, b):
        total = np.zeros(len(table))
        for i, q in itertools.product(range(len(table)), repeat=2):
            total += a[i] * b[q] * table[i, :, q]
        return total

    return multiply


def unit(n, i):
    return np.eye(n)[i]


def random_numbers(n, count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, n))


# ---------------------------------------------------------------- tables against other arithmetic


def test_there_are_seven_named_algebras():
    names = {"complex", "split_complex", "dual", "quaternion", "split_quaternion", "octonion", "tessarine"}
    assert set(algebras()) == names
    assert {name: dimension(name) for name in names} == {
        name: {"complex": 2, "split_complex": 2, "dual": 2, "octonion": 8}.get(name, 4) for name in names
    }


def test_complex_numbers_are_pythons():
    multiply = product("complex")
    for a, b in zip(random_numbers(2, 20), random_numbers(2, 20, 1), strict=True):
        want = complex(*a) * complex(*b)
        np.testing.assert_allclose(multiply(a, b), [want.real, want.imag], atol=1e-14)


def test_dual_numbers_differentiate_polynomials():
    multiply, coefficients = product("dual"), [0.3, -1.2, 0.5, 2.0]
    for x in (-1.5, 0.2, 3.0):
        value = np.zeros(2)
        for coefficient in reversed(coefficients):  # Horner at x + epsilon
            value = multiply(value, np.array([x, 1.0])) + coefficient * unit(2, 0)
        polynomial = np.polynomial.Polynomial(coefficients)
        np.testing.assert_allclose(value, [polynomial(x), polynomial.deriv()(x)], atol=1e-12)


def test_split_complex_numbers_are_pairs_of_reals():
    multiply = product("split_complex")
    pair = lambda a: np.array([a[0] + a[1], a[0] - a[1]])
    for a, b in zip(random_numbers(2, 20), random_numbers(2, 20, 1), strict=True):
        np.testing.assert_allclose(pair(multiply(a, b)), pair(a) * pair(b), atol=1e-14)


def test_tessarines_are_pairs_of_complex_numbers():
    """t = w + z j with complex w, z and j^2 = 1 is the pair (w + z, w - z)."""
    multiply = product("tessarine")
    pair = lambda t: np.array([complex(t[0] + t[2], t[1] + t[3]), complex(t[0] - t[2], t[1] - t[3])])
    for a, b in zip(random_numbers(4, 20), random_numbers(4, 20, 1), strict=True):
        np.testing.assert_allclose(pair(multiply(a, b)), pair(a) * pair(b), atol=1e-13)


def test_quaternions_are_hamiltons():
    multiply = product("quaternion")
    for a, b in zip(random_numbers(4, 20), random_numbers(4, 20, 1), strict=True):
        np.testing.assert_allclose(multiply(a, b), oracles.hamilton_product(a, b), atol=1e-13)


FANO = [(1, 2, 3), (1, 4, 5), (1, 7, 6), (2, 4, 6), (2, 5, 7), (3, 4, 7), (3, 6, 5)]  # lines: e_a e_b = e_c, cyclically


def test_octonions_follow_the_fano_plane():
    want = np.zeros((8, 8, 8))
    want[0] = np.eye(8)
    for i in range(1, 8):
        want[i, i, 0], want[i, 0, i] = 1, -1
    for line in FANO:
        for a, b, c in (line, line[1:] + line[:1], line[2:] + line[:2]):
            want[a, c, b], want[b, c, a] = 1, -1
    np.testing.assert_array_equal(multiplication_table("octonion").numpy(), want)


def blade_product(word, squares):
    """Sign and sorted generators of a product of generators: swap neighbours (each swap a minus), cancel equal ones."""
    word, sign = list(word), 1
    position = 0
    while position < len(word) - 1:
        a, b = word[position : position + 2]
        if a == b:
            sign *= squares[a]
            del word[position : position + 2]
            position = max(position - 1, 0)
        elif a > b:
            word[position : position + 2] = b, a
            sign = -sign
            position = max(position - 1, 0)
        else:
            position += 1
    return sign, tuple(word)


@pytest.mark.parametrize("name", CLIFFORDS)
def test_clifford_algebras_multiply_blades(name):
    p, q, r = ([int(count) for count in name[3:-1].split(",")] + [0])[:3]
    squares = [1] * p + [-1] * q + [0] * r
    blades = [tuple(g for g in range(len(squares)) if index >> g & 1) for index in range(2 ** len(squares))]
    table = multiplication_table(name).numpy()
    want = np.zeros_like(table)
    for i, k in itertools.product(range(len(blades)), repeat=2):
        sign, blade = blade_product(blades[i] + blades[k], squares)
        want[i, blades.index(blade), k] = sign
    np.testing.assert_array_equal(table, want)


PAULI = [np.array(m) for m in ([[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]])]
SWAP, FLIP, TURN = (np.array(m) for m in ([[0, 1], [1, 0]], [[1, 0], [0, -1]], [[0, -1], [1, 0]]))


@pytest.mark.parametrize(
    ("name", "generators"),
    [
        ("cl(0,1)", [np.array([[1j]])]),
        ("cl(2,0)", [FLIP, SWAP]),
        ("cl(1,1)", [SWAP, TURN]),
        ("cl(0,2)", [1j * PAULI[0], 1j * PAULI[1]]),
        ("cl(3,0)", PAULI),
        ("cl(0,3)", [np.kron(FLIP, 1j * s) for s in PAULI]),  # two copies, in which e123 is +1 and -1
        ("split_quaternion", [TURN, FLIP]),
        ("quaternion", [-1j * PAULI[0], -1j * PAULI[1]]),
    ],
)
def test_algebras_are_their_matrix_representations(name, generators):
    """e_i -> products of matrices is one to one and turns the product of the algebra into that of matrices."""
    matrices = [np.eye(len(generators[0]))]
    for generator in generators:  # 1, e1, e2, e12, e3, ...
        matrices += [matrix @ generator for matrix in matrices]
    stacked = np.array(matrices).reshape(len(matrices), -1)
    assert np.linalg.matrix_rank(np.concatenate([stacked.real, stacked.imag], axis=1)) == len(matrices)
    table = multiplication_table(name).numpy()
    for i, q in itertools.product(range(len(matrices)), repeat=2):
        want = sum(table[i, p, q] * matrices[p] for p in range(len(matrices)))
        np.testing.assert_allclose(matrices[i] @ matrices[q], want, atol=1e-12)


@pytest.mark.parametrize(
    ("first", "second"),
    [("cl(0,1)", "complex"), ("cl(0,2)", "quaternion"), ("cl(1,0)", "split_complex"), ("cl(0,0,1)", "dual")],
)
def test_small_clifford_algebras_are_the_named_ones(first, second):
    assert torch.equal(multiplication_table(first), multiplication_table(second))


# ---------------------------------------------------------------- laws

LAWS = {
    "complex": {"unital", "commutative", "associative", "alternative", "normed"},
    "split_complex": {"unital", "commutative", "associative", "alternative"},
    "dual": {"unital", "commutative", "associative", "alternative"},
    "tessarine": {"unital", "commutative", "associative", "alternative"},
    "quaternion": {"unital", "associative", "alternative", "normed"},
    "split_quaternion": {"unital", "associative", "alternative"},
    "octonion": {"unital", "alternative", "normed"},
    "cl(3,0)": {"unital", "associative", "alternative"},
    "cl(0,3)": {"unital", "associative", "alternative"},
    "cl(1,3)": {"unital", "associative", "alternative"},
    "cl(0,0,2)": {"unital", "associative", "alternative"},
}


def sedenions():
    """The doubled octonions, by the definition: (a, b)(c, d) = (a c - d* b, d a + b c*)."""
    multiply, conjugation = product("octonion"), np.array([1] + [-1] * 7)
    table = np.zeros((16, 16, 16))
    for i, q in itertools.product(range(16), repeat=2):
        (a, b), (c, d) = unit(16, i).reshape(2, 8), unit(16, q).reshape(2, 8)
        first = multiply(a, c) - multiply(conjugation * d, b)
        table[i, :, q] = np.concatenate([first, multiply(d, a) + multiply(b, conjugation * c)])
    return torch.from_numpy(table)


def left_alternative():
    """a(ab) = (aa)b but not (ba)a = b(aa): pairs (a, v)(b, w) = (a b, r(a) w), r(a)^2 = r(a^2), r(a) r(b) != r(a b).

    a, b run over 1, x, y with x^2 = y^2 = x y = 0; r(x) and r(y) anticommute: Grassmann's e1 and e2.
    """
    grassmann = multiplication_table("cl(0,0,2)", dtype=torch.float64)
    table = torch.zeros(7, 7, 7, dtype=torch.float64)
    for i in range(3):
        table[0, i, i] = table[i, i, 0] = 1
        table[i, 3:, 3:] = grassmann[i]
    return table


def measured_laws(algebra):
    """Whether each law holds for random numbers."""
    multiply, n = product(algebra), dimension(algebra)
    a, b, c = random_numbers(n, 3, seed=7)
    one = unit(n, 0)
    same = lambda x, y: bool(np.allclose(x, y, atol=1e-9))
    return {
        "unital": same(multiply(one, a), a) and same(multiply(a, one), a),
        "commutative": same(multiply(a, b), multiply(b, a)),
        "associative": same(multiply(multiply(a, b), c), multiply(a, multiply(b, c))),
        "alternative": same(multiply(a, multiply(a, b)), multiply(multiply(a, a), b))
        and same(multiply(multiply(b, a), a), multiply(b, multiply(a, a))),
        "normed": same(np.linalg.norm(multiply(a, b)), np.linalg.norm(a) * np.linalg.norm(b)),
    }


@pytest.mark.parametrize("name", LAWS)
def test_laws_are_those_of_the_mathematics(name):
    found = laws(name)
    assert {law for law, holds in found.items() if holds} == LAWS[name]
    assert found == measured_laws(name)


@pytest.mark.parametrize(
    "table",
    [
        sedenions(),  # unital only
        torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0)),  # nothing
        multiplication_table("quaternion").flip(0),  # e_0 is not the one
        multiplication_table("quaternion").permute(2, 1, 0) * 2,  # twice the opposite algebra: associative, no norm
        multiplication_table("octonion").permute(2, 1, 0),  # the opposite algebra
        torch.stack([torch.eye(2), torch.zeros(2, 2)]),  # e_0 is a one from the left only
        torch.stack([torch.eye(2), torch.zeros(2, 2)]).permute(2, 1, 0),  # from the right only
        left_alternative(),
        left_alternative().permute(2, 1, 0),
    ],
    ids=["sedenion", "random", "flipped", "opposite", "octonion_opposite", "left_one", "right_one", "left", "right"],
)
def test_laws_of_other_tables_are_those_measured(table):
    assert laws(table) == measured_laws(table)


def test_half_alternative_algebras_are_what_they_are_built_for():
    multiply = product(left_alternative())
    a, b = random_numbers(7, 2)
    np.testing.assert_allclose(multiply(a, multiply(a, b)), multiply(multiply(a, a), b), atol=1e-12)
    assert not np.allclose(multiply(multiply(b, a), a), multiply(b, multiply(a, a)))


def test_laws_hold_up_to_a_tolerance():
    table = multiplication_table("octonion", dtype=torch.float64) * 1.0
    table[3, 4, 7] += 1e-6
    assert not any(laws(table)[law] for law in ("alternative", "normed"))
    assert laws(table, tolerance=1e-4) == laws("octonion")


def test_a_table_that_is_no_algebra_of_the_stated_kind_is_refused():
    check_laws("octonion", ["unital", "alternative", "normed"])
    message = "not commutative, not associative .laws that hold: unital, alternative, normed.*e_i e_q"
    with pytest.raises(OptionError, match=message):
        check_laws("octonion", ["commutative", "unital", "associative"])
    wrong = multiplication_table("quaternion")
    wrong[1] = -wrong[1]
    with pytest.raises(OptionError, match="not unital, not associative"):
        check_laws(wrong.tolist(), ["unital", "associative"])
    with pytest.raises(OptionError, match="laws that hold: none"):
        check_laws(torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0)), ["unital"])
    with pytest.raises(UnknownNameError, match="got 'comutative'; did you mean 'commutative'"):
        check_laws("complex", ["comutative"])


# ---------------------------------------------------------------- names and tables of one's own


def test_tables_of_ones_own_are_taken_as_they_are():
    nested = [[[1, 0], [0, 1]], [[0, 5], [1, 0]]]
    table = multiplication_table(nested, dtype=torch.float64)
    assert table.tolist() == nested
    assert dimension(nested) == 2
    assert multiplication_table("complex").dtype == torch.get_default_dtype()


def test_returned_tables_may_be_written_to():
    multiplication_table("complex", dtype=torch.float64).zero_()
    assert multiplication_table("complex").abs().sum() == 4
    mine = torch.zeros(2, 2, 2, dtype=torch.float64)
    multiplication_table(mine, dtype=torch.float64).fill_(1)
    assert mine.abs().sum() == 0


@pytest.mark.parametrize(
    ("algebra", "error", "match"),
    [
        ("octonions", UnknownNameError, r"cl\(p,q,r\).*got 'octonions'; did you mean 'octonion'"),
        ("cl(5,0)", OptionError, "dimension 32; p . q . r must be at most 4"),
        ("cl(x,0)", UnknownNameError, "got 'cl.x,0.'"),
        (torch.zeros(2, 2), SizeError, r"shape \(n, n, n\), got \(2, 2\)"),
        (torch.zeros(2, 2, 3), SizeError, r"got \(2, 2, 3\)"),
        ([[[torch.nan]]], SizeError, "finite"),
    ],
    ids=str,
)
def test_what_is_no_table_is_refused(algebra, error, match):
    with pytest.raises(error, match=match):
        multiplication_table(algebra)


def test_names_of_clifford_algebras_may_have_spaces():
    assert torch.equal(multiplication_table("cl(2, 1)"), multiplication_table("cl(2,1)"))
    assert expected_rank("cl(0, 2)", 4) == expected_rank("cl(0,2)", 4) == 8
    for first, second in zip(fast_product("cl(2, 1)"), fast_product("cl(2,1)"), strict=True):
        assert torch.equal(first, second)


# ---------------------------------------------------------------- products in few multiplications

PRODUCTS = {
    "complex": 3,
    "split_complex": 2,
    "dual": 3,
    "quaternion": 8,
    "split_quaternion": 7,
    "tessarine": 6,
    "octonion": 25,
    "cl(0,1)": 3,
    "cl(1,0)": 2,
    "cl(0,0,1)": 3,
    "cl(0,2)": 8,
    "cl(2,0)": 7,
    "cl(1,1)": 7,
    "cl(3,0)": 21,
    "cl(2,1)": 14,
    "cl(1,2)": 21,
    "cl(0,3)": 16,
    # with generators that square to 0: three times the products of the algebra without one, or known better ones
    "cl(0,0,2)": 8,
    "cl(1,0,1)": 6,
    "cl(0,1,1)": 8,
    "cl(2,0,1)": 21,
    "cl(1,1,1)": 21,
    "cl(0,2,1)": 24,
    "cl(1,0,2)": 18,
    "cl(0,1,2)": 24,
    "cl(0,0,3)": 24,
    "cl(3,0,1)": 63,
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_fast_products_multiply_in_as_few_steps_as_promised(name):
    a, b, c = (factor.numpy() for factor in fast_product(name))
    n, multiply = dimension(name), product(name)
    assert a.shape == b.shape == c.shape == (n, PRODUCTS[name])
    assert expected_rank(name, n) == PRODUCTS[name]
    table = multiplication_table(name, dtype=torch.float64).numpy()
    for i, q in itertools.product(range(n), repeat=2):
        np.testing.assert_allclose(b @ (a[i] * c[q]), table[i, :, q], rtol=0, atol=1e-12)
    x, y = random_numbers(n, 2, seed=3)
    np.testing.assert_allclose(b @ ((a.T @ x) * (c.T @ y)), multiply(x, y), atol=1e-11)


def test_all_clifford_algebras_of_up_to_three_generators_have_fast_products_at_once():
    """Whatever the generators square to; the factors are as many as were promised."""
    fast_product.cache_clear()
    start = time.perf_counter()
    for name in CLIFFORDS:
        if dimension(name) > 8:
            continue
        a, b, c = (factor.numpy() for factor in fast_product(name))
        assert a.shape[1] == expected_rank(name, dimension(name)) < max(dimension(name) ** 2, 2)
        multiply, (x, y) = product(name), random_numbers(dimension(name), 2, seed=5)
        np.testing.assert_allclose(b @ ((a.T @ x) * (c.T @ y)), multiply(x, y), rtol=0, atol=1e-12)
    assert time.perf_counter() - start < 5, "19 algebras, a search would take seconds each"


def test_synonyms_have_the_same_fast_product():
    for first, second in (("dual", "cl(0,0,1)"), ("complex", "cl(0,1,0)"), ("quaternion", "cl(0, 2, 0)"),
                          ("cl(3,0,0)", "cl(3,0)"), ("split_complex", "cl(1,0)")):  # fmt: skip
        assert expected_rank(first, 0) == expected_rank(second, 0)
        for one, other in zip(fast_product(first), fast_product(second), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_known_algorithms_multiply_sums_of_few_coefficients():
    """The exact algorithms have small integers, so that they lose no digits."""
    for name in (
        "complex",
        "split_complex",
        "dual",
        "quaternion",
        "split_quaternion",
        "cl(2,0)",
        "cl(1,1)",
        "cl(0,0,2)",
    ):
        left, result, right = fast_product(name)
        assert set(left.unique().tolist()) | set(right.unique().tolist()) <= {-1.0, 0.0, 1.0, 2.0}
        assert (4 * result - (4 * result).round()).abs().max() < 1e-12


def test_decompositions_find_the_smallest_rank_they_can():
    """The search begins at the rank that almost every table needs: 7 for n = 4, where tessarines need 6."""
    for name in ("complex", "dual", "split_complex", "quaternion", "split_quaternion", "tessarine"):
        factors, error = decompose(multiplication_table(name))
        assert error <= 1e-11
        assert factors[0].shape[1] == (7 if name == "tessarine" else PRODUCTS[name])


def test_ranks_below_the_smallest_are_not_claimed():
    for name, rank, wanted in (("complex", 2, 0.5), ("quaternion", 7, 0.35)):
        _, error = decompose(multiplication_table(name), rank)
        assert error == pytest.approx(wanted, abs=0.01)


def test_rounding_errors_stay_small_in_fast_products():
    """Terms much larger than their sum would lose digits; 8 keeps large layers below 1e-5 in single precision."""
    for name in PRODUCTS:
        assert amplification(fast_product(name)) < 4


@pytest.mark.parametrize("name", ["cl(4,0)", "cl(1,3)", "cl(2,2,0)"])
def test_sixteen_components_are_refused_at_once(name):
    start = time.perf_counter()
    with pytest.raises(
        OptionError, match=r"no fast product is known for algebra 'cl\(.,.\)' of n = 16: choose one of n at"
    ):
        fast_product(name)
    assert time.perf_counter() - start < 1


def test_no_fast_product_is_expected_where_none_is_known():
    assert expected_rank("cl(4,0)", 16) is None
    assert expected_rank("table", 4) is None
    assert expected_rank(None, 1) is None
    assert expected_rank(None, 16) is None
    assert [expected_rank(None, n) for n in (2, 3, 4, 8)] == [2, 5, 7, 24]


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.1, math.pi / 2])
def test_distance_of_spaces_at_a_known_angle(angle):
    first, second = torch.zeros(2, 2, 2, dtype=torch.float64), torch.zeros(2, 2, 2, dtype=torch.float64)
    for i in range(2):  # both principal angles are the given one
        first[i, 0, i] = 1
        second[i, 0, i], second[i, 1, i] = math.cos(angle), math.sin(angle)
    recombined = torch.einsum("ij,jpq->ipq", torch.tensor([[2.0, 1.0], [-1.0, 0.5]], dtype=torch.float64), second)
    assert algebra_distance(first, recombined) == pytest.approx(math.sin(angle), abs=1e-7)


def test_distance_needs_the_same_dimension():
    with pytest.raises(SizeError, match="same n, got 2 and 4"):
        algebra_distance(multiplication_table("complex"), "quaternion")
