"""Kronecker sums whose algebra is run in R products: the same matrix, trained, fitted, drawn and refused."""

import copy
import re

import pytest
import torch

from weft.errors import OptionError, SizeError
from weft.parametrizations import Kronecker, algebras, kronecker, multiplication_table
from weft.parametrizations.algebra import decompose, dimension, expected_rank
from weft.parametrizations.cp import amplification, compose
from weft.parametrizations.kronecker_fit import nearest_kronecker_sum, nearest_of_rank
from weft.testing import assert_same, oracles

NAMES = [*algebras(), "cl(2,0)", "cl(0,2)", "cl(1,1)", "cl(3,0)", "cl(0,3)", "cl(0,0,1)", "cl(2,0,1)", "cl(0,1,2)"]
LEARNED = [{"n": n} for n in (2, 3, 4)] + [
    {"n": n, "rank": rank} for n, rank in ((2, 2), (3, 4), (4, 4), (4, 7), (8, 8))
]
MEMBERS = [{"algebra": name} for name in NAMES] + LEARNED


def make(options, multiples=(2, 3), dtype=torch.float64, **more):
    n = options.get("n") or dimension(options["algebra"])
    torch.manual_seed(0)
    return Kronecker((multiples[0] * n, multiples[1] * n), dtype=dtype, **options, **more)


def table_of(member):
    """A of a member, by the definition: its table, its entries, or the sum of its products."""
    if member.rank is None:
        return member.mixing
    return sum(
        torch.einsum("i,p,q->ipq", member.block_mix[:, r], member.output_mix[:, r], member.input_mix[:, r])
        for r in range(member.rank)
    )


def matrix_of(member):
    return oracles.sum_of_kroneckers(table_of(member), member.blocks)


# ---------------------------------------------------------------- the same matrix


@pytest.mark.parametrize("options", MEMBERS, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["fp32", "fp64"])
def test_stages_are_the_dense_matrix(options, dtype, tolerance):
    member = make(options, multiples=(5, 7), dtype=dtype)
    stages = member.stages()
    assert [stage.inner for stage in stages] == [7, 1, 5]
    assert len(stages[1].matrix) == member.rank or expected_rank(member.algebra, member.n) <= len(stages[1].matrix)
    x = torch.randn(50, member.shape[1], dtype=dtype)
    want = x.double() @ matrix_of(member).T
    assert_same(oracles.apply_stages(stages, x), want, tolerance, "the product of the stages")
    assert_same(member.linear(x), want, tolerance, "linear")
    assert_same(member.dense(), matrix_of(member), tolerance, "dense()")


@pytest.mark.parametrize("options", MEMBERS, ids=str)
def test_shapes_of_the_stages_are_known_beforehand(options):
    member = make(options)
    shapes, stages = member.stage_shapes(evaluation=True), member.stages()
    for shape, stage in zip(shapes, stages, strict=True):
        assert (shape.rows, shape.inner) == (stage.matrix.shape[1], stage.inner) or options == {
            "n": 2
        }  # 2 or 3 products
        assert shape.groups <= len(stage.matrix)
    learned = "algebra" not in options and "rank" not in options
    assert (member.stage_shapes(evaluation=False) is None) == learned, "a learned A has no stages in training"


def test_half_precision_and_one_component_have_no_stages_on_offer():
    assert make({"algebra": "quaternion"}, dtype=torch.bfloat16).stage_shapes(True) is None
    assert Kronecker((4, 4), n=1).stage_shapes(True) is None
    assert make({"algebra": "cl(4,0)"}).stages() is None  # no fast product is known


def test_decomposition_follows_the_learned_algebra():
    """A trained on is decomposed anew, from where the last search ended."""
    member = make({"n": 4})
    x = torch.randn(9, 12, dtype=torch.float64)
    for _ in range(4):
        assert_same(
            oracles.apply_stages(member.stages(), x), x @ matrix_of(member).T, 1e-10, "the product of the stages"
        )
        with torch.no_grad():
            member.mixing.add_(0.1 * torch.randn_like(member.mixing))
    assert set(member.state_dict()) == {"mixing", "blocks"}


# ---------------------------------------------------------------- single precision


def nearly_cancelling(size):
    """The factors of a table of n = 2 whose only decomposition into two terms has them ``size`` times as large."""
    torch.manual_seed(0)
    u, v = torch.randn(2, 3, 2, dtype=torch.float64)
    return tuple(
        torch.stack([w * sign, w + z / size], 1) for w, z, sign in zip(u * size, v * size, (-1, 1, 1), strict=True)
    )


@pytest.mark.parametrize(("n", "size", "seeds"), [(2, 1024, 6), (4, 256, 6), (4, 1024, 4), (8, 1024, 1)])
def test_products_of_learned_algebras_err_by_less_than_1e_5_in_single_precision(n, size, seeds):
    for seed in range(seeds):
        torch.manual_seed(seed)
        member = Kronecker((size, size), n=n, dtype=torch.float32)
        x = torch.randn(64, size)
        want = x.double() @ oracles.sum_of_kroneckers(member.mixing, member.blocks).double().T
        assert_same(oracles.apply_stages(member.stages(), x), want, 5e-6, "the product of the stages")


def test_cancelling_terms_give_way_to_one_more_product():
    table = compose(nearly_cancelling(1e4))
    factors, error = decompose(table)
    assert factors[0].shape == (2, 3) and error < 1e-11 and amplification(factors) < 8
    assert amplification(decompose(table, most=2)[0]) > 8
    member = Kronecker((256, 256), n=2, dtype=torch.float32)
    with torch.no_grad():
        member.mixing.copy_(table)
    assert member.stages() is None  # three products of four win nothing


def test_an_algebra_of_complex_type_has_no_stages():
    member = Kronecker((8, 8), n=2, dtype=torch.float64)
    with torch.no_grad():
        member.mixing.copy_(multiplication_table("complex"))
    assert member.stages() is None
    member.mixing.data.copy_(multiplication_table("split_complex"))
    assert len(member.stages()[1].matrix) == 2


def test_where_all_terms_are_too_large_there_are_no_stages(monkeypatch):
    """And the search that found nothing calm is not where the next one begins."""
    bad, starts = nearly_cancelling(1e4), []
    good = tuple(torch.randn(2, 2, dtype=torch.float64) for _ in range(3))
    assert amplification(good) < 8 < amplification(bad)
    member = make({"n": 2})
    for factors, calm in ((good, True), (bad, False), (bad, False), (good, True), (good, True)):

        def found(table, start=None, most=None, factors=factors):
            starts.append(start)
            return factors, 0.0

        monkeypatch.setattr(kronecker, "decompose", found)
        assert (member.stages() is not None) == calm
    assert [start is None for start in starts] == [True, False, True, True, False]


def test_a_bad_start_is_left():
    member = make({"n": 4})
    member._last_factors = tuple(1e3 * torch.randn(4, 7, dtype=torch.float64) for _ in range(3))
    x = torch.randn(9, 12, dtype=torch.float64)
    assert_same(oracles.apply_stages(member.stages(), x), x @ matrix_of(member).T, 1e-10, "the product of the stages")
    assert amplification(member._last_factors) < 8


def test_members_survive_changes_of_dtype_exactly():
    """Constants come back in full precision, not as half precision left them."""
    member = make({"algebra": "split_quaternion"}).bfloat16().double()
    x = torch.randn(9, 12, dtype=torch.float64)
    assert_same(oracles.apply_stages(member.stages(), x), x @ matrix_of(member).T, 1e-10, "the product of the stages")
    assert_same(member.mixing, multiplication_table("split_quaternion", dtype=torch.float64), 0, "the table")


def test_copies_and_loaded_states_are_the_same_members():
    member = make({"n": 4, "rank": 7})
    assert_same(copy.deepcopy(member).dense(), member.dense(), 0, "the copy")
    other = make({"n": 4, "rank": 7})
    with torch.no_grad():
        other.block_mix.zero_()
    other.load_state_dict(member.state_dict(), strict=True)
    assert_same(other.dense(), member.dense(), 0, "the loaded member")


# ---------------------------------------------------------------- numbers


def test_stored_numbers_with_rank():
    member = Kronecker((8, 12), n=4, rank=5)
    assert {name: tuple(p.shape) for name, p in member.named_parameters()} == {
        **dict.fromkeys(("block_mix", "output_mix", "input_mix"), (4, 5)),
        "blocks": (4, 2, 3),
    }
    assert member.num_parameters == 3 * 4 * 5 + 8 * 12 // 4
    assert "n=4, algebra=learned, rank=5" in repr(member)
    assert "rank" not in repr(Kronecker((8, 12), n=4))
    assert Kronecker((8, 12), algebra="tessarine").num_parameters == 8 * 12 // 4


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("rank", [3, 4, 7])
def test_gradients_reach_every_factor(rank):
    member = make({"n": 4, "rank": rank})
    x, g = torch.randn(5, 12, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    names, parameters = zip(*member.named_parameters(), strict=True)
    assert names == ("block_mix", "output_mix", "input_mix", "blocks")
    by_stages = torch.autograd.grad(oracles.apply_stages(member.stages(), x), parameters, g)
    by_linear = torch.autograd.grad(member.linear(x), parameters, g)
    values = [p.detach().clone().requires_grad_() for p in parameters]
    dense = sum(torch.kron(a, s) for a, s in zip(compose(tuple(values[:3])), values[3], strict=True))
    by_definition = torch.autograd.grad(x @ dense.T, values, g)
    for name, first, second, want in zip(names, by_stages, by_linear, by_definition, strict=True):
        assert want.abs().max() > 0, f"{name} gets no gradient"
        assert_same(first, want, 1e-10, f"the gradient of {name} through the stages")
        assert_same(second, want, 1e-10, f"the gradient of {name} through linear")


def test_learned_algebra_of_rank_n_learns_the_split_complex_numbers():
    """R = n is enough for a diagonalisable algebra, here two real numbers side by side."""
    table = multiplication_table("split_complex")
    blocks, x = torch.randn(2, 3, 3), torch.randn(64, 6)
    y = x @ oracles.sum_of_kroneckers(table, blocks).float().T
    member = Kronecker((6, 6), n=2, rank=2)
    optimizer = torch.optim.Adam(member.parameters(), lr=0.02)
    for _ in range(400):
        loss = (member.linear(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1e-3 * y.square().mean()


@pytest.mark.parametrize(("n", "rank"), [(2, 2), (3, 4), (4, 4), (4, 7)])
@pytest.mark.parametrize("variance", [None, 0.37])
def test_initial_law_with_rank(n, rank, variance):
    shape = (4 * n, 6 * n)
    member = Kronecker(shape, n=n, rank=rank, variance=variance, dtype=torch.float64)
    wanted = 1 / (3 * shape[1]) if variance is None else variance
    draws = []
    for seed in range(400):
        torch.manual_seed(seed)
        member.reset_parameters()
        draws.append(member.dense().detach().clone())
    entries = torch.stack(draws)
    assert float(entries.square().mean()) == pytest.approx(wanted, rel=0.05)
    assert abs(float(entries.mean())) < 0.02 * wanted**0.5
    assert float(entries.square().mean((1, 2)).min()) > 0.2 * wanted, "a draw is almost zero"
    by_component = entries.reshape(400, n, 4, n, 6).square().mean((0, 2, 4)) / wanted
    assert float(by_component.min()) > 0.7, "some components start much smaller than others"
    assert float(by_component.max()) < 1.3, "some components start much larger than others"


# ---------------------------------------------------------------- fits


def test_fit_with_rank_finds_members_again():
    for n, rank in ((2, 2), (3, 3), (4, 4), (4, 7)):
        source = make({"n": n, "rank": rank}, multiples=(4, 5))
        target = matrix_of(source)
        member = make({"n": n, "rank": rank}, multiples=(4, 5))
        with torch.no_grad():
            for parameter in member.parameters():
                parameter.normal_()
        assert member.fit_(target) < 1e-8
        assert_same(matrix_of(member), target, 1e-7, "the fitted matrix")


def test_fit_with_rank_tells_its_error_and_improves_with_rank():
    target = torch.randn(16, 20, dtype=torch.float64)
    errors = []
    for rank in (2, 4, 7):
        member = make({"n": 4, "rank": rank}, multiples=(4, 5))
        errors.append(member.fit_(target))
        assert errors[-1] == pytest.approx(oracles.weighted_error(matrix_of(member), target), abs=1e-9)
    free = make({"n": 4}, multiples=(4, 5))
    assert errors[0] > errors[1] > errors[2] >= free.fit_(target) - 1e-9
    assert errors[2] == pytest.approx(free.fit_error, rel=0.02), "almost every A of n = 4 has seven products"


def test_fit_with_rank_alternates_until_little_is_left_to_gain():
    """Several rounds are better than one, and a general search from there lowers the error by less than a hundredth."""
    target = torch.randn(16, 20, dtype=torch.float64)
    mixing, blocks = nearest_kronecker_sum(target, 4)
    errors = []
    for sweeps in (1, 10):
        factors, new_blocks = nearest_of_rank(mixing, blocks, target, None, 4, sweeps)
        errors.append(oracles.weighted_error(oracles.sum_of_kroneckers(compose(factors), new_blocks), target))
    assert errors[1] < 0.999 * errors[0]
    member = make({"n": 4, "rank": 4}, multiples=(4, 5))
    assert member.fit_(target) == pytest.approx(errors[1])
    optimizer = torch.optim.LBFGS(member.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = (member.dense() - target).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    assert oracles.weighted_error(member.dense(), target) > 0.99 * errors[1]


@pytest.mark.parametrize(("n", "rank", "multiples"), [(2, 2, (4, 4)), (4, 4, (4, 5)), (4, 5, (2, 3)), (4, 5, (2, 2))])
def test_fit_with_rank_ends_in_terms_that_lose_no_digits(n, rank, multiples):
    """Often there is no nearest A: the error falls for ever, ever more slowly, while the terms grow."""
    for seed in range(6):
        torch.manual_seed(seed)
        member = make({"n": n, "rank": rank}, multiples=multiples)
        target = torch.randn(member.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        member.fit_(target)
        assert amplification(tuple(factor.detach() for factor in member._products())) < 10
        single = member.float()
        x = torch.randn(50, member.shape[1])
        want = x.double() @ matrix_of(single).double().T
        assert_same(oracles.apply_stages(single.stages(), x), want, 1e-5, "the product of the stages")


def test_members_of_nearly_parallel_terms_are_found_again():
    """Also from single precision, where the target is a member up to rounding errors only."""
    found = 0
    for seed in range(6):
        source = make({"n": 4, "rank": 4}, multiples=(4, 5))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for factor in source._products():
                common, own = (torch.randn(4, k, dtype=torch.float64, generator=generator) for k in (1, 4))
                factor.copy_(common + 0.3 * own)
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
            member = make({"n": 4, "rank": 4}, multiples=(4, 5), dtype=dtype)
            found += member.fit_(matrix_of(source).detach().to(dtype)) < tolerance
    assert found >= 10, f"{found} of 12 were found"


def test_weighted_fit_with_rank_is_no_worse():
    target = torch.randn(16, 20, dtype=torch.float64)
    x = torch.randn(100, 20, dtype=torch.float64) * torch.logspace(-2, 0, 20, dtype=torch.float64)
    plain, weighted = (make({"n": 4, "rank": 7}, multiples=(4, 5)) for _ in range(2))
    plain.fit_(target)
    error = weighted.fit_(target, x.T @ x)
    assert error == pytest.approx(oracles.weighted_error(matrix_of(weighted), target, x), abs=1e-6)
    assert error < 0.9 * oracles.weighted_error(matrix_of(plain), target, x)


# ---------------------------------------------------------------- tables of one's own


NESTED = [[[1, 0], [0, 1]], [[0, 3], [1, 0]]]  # the numbers with i^2 = 3


@pytest.mark.parametrize("rank", [None, 2, 3])
def test_tables_of_ones_own_as_nested_lists(rank):
    member = Kronecker((4, 6), algebra=NESTED, rank=rank, dtype=torch.float64)
    assert (member.n, member.algebra, member.num_parameters) == (2, "table", 12)
    assert "algebra=table" in repr(member)
    assert_same(member.mixing, torch.tensor(NESTED), 0, "the table")
    want = oracles.sum_of_kroneckers(torch.tensor(NESTED), member.blocks)
    assert_same(member.dense(), want, 1e-12, "dense()")
    if rank is not None:
        stages = member.stages()
        assert len(stages[1].matrix) == rank
        assert_same(oracles.apply_stages(stages, torch.eye(6).double()).T, want, 1e-10, "the product of the stages")


@pytest.mark.parametrize("algebra", ["complex", "dual", "quaternion", "cl(0,0,2)", NESTED], ids=str)
def test_initial_law_of_tables(algebra):
    """Also where the table has more zeros or larger entries than that of a division algebra."""
    n = dimension(algebra)
    member = Kronecker((4 * n, 5 * n), algebra=algebra, dtype=torch.float64)
    draws = []
    for seed in range(400):
        torch.manual_seed(seed)
        member.reset_parameters()
        draws.append(member.dense().detach().clone())
    assert float(torch.stack(draws).square().mean()) == pytest.approx(1 / (3 * 5 * n), rel=0.05)


def test_gradients_do_not_reach_fixed_tables():
    member = Kronecker((4, 6), algebra=NESTED, rank=3)
    assert [name for name, _ in member.named_parameters()] == ["blocks"]
    assert member.learned_algebra() is None
    assert Kronecker((4, 6), n=2).learned_algebra() is not None


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("table", "rank", "found", "error"),
    [(multiplication_table("complex"), 2, 3, r"0\.5"), (multiplication_table("quaternion"), 7, 8, r"0\.35")],
    ids=["complex", "quaternion"],
)
def test_ranks_that_cannot_represent_a_table_are_refused(table, rank, found, error):
    message = (
        rf"rank={rank} cannot represent.*relative error {error}; the smallest rank found is {found}; leave rank out"
    )
    with pytest.raises(OptionError, match=message):
        Kronecker((8, 8), algebra=table, rank=rank)
    assert len(Kronecker((8, 8), algebra=table, rank=found).stages()[1].matrix) == found


@pytest.mark.parametrize("rank", [0, -1, 17])
def test_ranks_out_of_range_are_refused(rank):
    with pytest.raises(OptionError, match=re.escape(f"rank must be in 1..n^2 = 1..16 products, got {rank}")):
        Kronecker((8, 8), n=4, rank=rank)


def test_tables_must_be_cubes_of_the_stated_size():
    with pytest.raises(SizeError, match=r"\(n, n, n\)"):
        Kronecker((4, 4), algebra=[[1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(OptionError, match=r"n must be at least 1 and that of the algebra \(2\), got 4"):
        Kronecker((4, 4), algebra=NESTED, n=4)


def test_sizes_that_n_does_not_divide_name_the_n_that_do():
    with pytest.raises(SizeError, match="3 does not divide 8; nearest sizes for n=3: 6 or 9; nearest n for 8: 1, 2, 4"):
        Kronecker((8, 9), n=3, rank=3)
    with pytest.raises(
        SizeError, match="8 does not divide 12; nearest sizes for n=8: 8 or 16; nearest n for 12: 4, 6, 12"
    ):
        Kronecker((8, 12), algebra="octonion")
