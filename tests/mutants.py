"""Plant faults in the library one by one; a fault that no test notices is a missing test.

.venv/bin/python tests/mutants.py            every fault; exits 1 if one survives
.venv/bin/python tests/mutants.py cache fold  those whose file or reason contains one of the words
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 2
TIMEOUT_S = 240
# What runs for a fault in a file or a folder of the package, fastest first; a fault may name its own.
LAYERS = "tests/layers"
TESTS = {
    "parametrizations": ("tests/parametrizations", "tests/test_contract.py"),
    "layers/conv.py": (f"{LAYERS}/test_geometry.py", f"{LAYERS}/test_paths.py"),
    "layers/cache.py": (f"{LAYERS}/test_cache_staleness.py", f"{LAYERS}/test_cache.py"),
    "modes.py": (f"{LAYERS}/test_cache_staleness.py", f"{LAYERS}/test_cache.py"),
    "layers/paths.py": (f"{LAYERS}/test_paths.py",),
    "layers/named.py": (f"{LAYERS}/test_named.py",),
    "layers/chunks.py": (f"{LAYERS}/test_chunks.py", f"{LAYERS}/test_stages.py"),
    "layers/linear.py": (f"{LAYERS}/test_chunks.py", f"{LAYERS}/test_stages.py", f"{LAYERS}/test_plain.py"),
    "layers/embedding.py": (f"{LAYERS}/test_embedding.py",),
    "layers/recurrent.py": (f"{LAYERS}/test_recurrent.py",),
    "layers/attention.py": (f"{LAYERS}/test_attention.py",),
    "layers/composite.py": (f"{LAYERS}/test_recurrent.py", f"{LAYERS}/test_attention.py"),
    "layers": tuple(
        f"{LAYERS}/test_{part}.py" for part in ("plain", "weight", "paths", "cache", "cache_staleness", "initial_law")
    ),
    "overparam": ("tests/overparam/test_forms.py", "tests/overparam/test_states.py"),
    "hypernet/ode.py": ("tests/hypernet/test_ode.py",),
    "hypernet/by_func.py": ("tests/hypernet/test_by_func.py",),
    "data/timeseries.py": ("tests/data/test_timeseries.py",),
    "train/ode.py": ("tests/train/test_ode.py",),
    "train/base.py": ("tests/train/test_ode.py", "tests/train/test_resume.py"),
    "hypernet": tuple(f"tests/hypernet/test_{part}.py" for part in ("rows", "hypernetwork", "init", "continual")),
    "superposition": ("tests/superposition",),
    "models/wide_resnet.py": ("tests/models/test_wide_resnet.py",),
    "train/superposed.py": ("tests/train/test_superposed.py",),
    "train/continual.py": ("tests/train/test_continual.py",),
    "data/tasks.py": ("tests/data/test_tasks.py",),
    "train/rank_experiment.py": ("tests/train/test_rank_bias.py",),
    "cli/study": ("tests/cli/test_study.py",),
    "cli/mimo": ("tests/cli/test_mimo.py",),
    "surgery": ("tests/surgery",),
    "cli/approximate": ("tests/cli/test_approximate.py",),
}


@dataclass(frozen=True)
class Fault:
    file: str  # below src/weft
    old: str  # occurs exactly once
    new: str
    why: str
    tests: tuple[str, ...] = ()

    def arguments(self) -> tuple[str, ...]:
        folders = (self.file.rsplit("/", parts)[0] for parts in range(self.file.count("/") + 1))
        return self.tests or next(TESTS[folder] for folder in folders if folder in TESTS)


def interop(words: str) -> tuple[str, ...]:
    return ("tests/test_interop.py", "-k", words)


OVERPARAMETERIZE = ("tests/surgery/test_overparameterize.py",)
NAMES = ("tests/parametrizations/test_registry.py",)
EVERY, REFINE = (
    ("tests/parametrizations/test_every_family.py", "-k", "learn or weighs"),
    ("tests/parametrizations/test_refine.py",),
)
PLAIN, EP_PROTOCOL = (f"{LAYERS}/test_plain.py",), ("tests/overparam/test_protocol.py",)
WALK, ATTENTION = ("tests/surgery/test_walk.py",), (f"{LAYERS}/test_attention.py",)
FIT_TESTS, IMAGES = ("tests/cli/test_fit.py", "-k"), ("tests/data/test_images.py", "-k", "fewer or single")
LOCKED = ("tests/cli/test_study.py", "-k", "another_process or waits")
BASE, RANK, KRON = "parametrizations/base.py", "parametrizations/low_rank.py", "parametrizations/kronecker.py"
HODLR = "parametrizations/hodlr.py"
PSM, PSM_TESTS = "parametrizations/psm", ("tests/parametrizations/test_psm.py",)
SPARSE, BUTTERFLY = "parametrizations/sparse_product.py", "parametrizations/butterfly.py"
BUTTERFLY_TESTS = ("tests/parametrizations/test_butterfly.py",)
FIT, ALGEBRA, CP = "parametrizations/kronecker_fit.py", "parametrizations/algebra.py", "parametrizations/cp.py"
SEMI = "parametrizations/semiseparable.py"
TOEPLITZ = "parametrizations/toeplitz"
TOEPLITZ_TESTS = ("tests/parametrizations/test_toeplitz_like.py",)
REGISTRY, FORMULAS = "parametrizations/registry.py", "parametrizations/formulas.py"
LEARNING_RATES = ("tests/parametrizations/test_learning_rates.py",)
LDR, KRYLOV, LDR_FIT = (f"parametrizations/ldr{part}.py" for part in ("", "_krylov", "_fit"))
LDR_TESTS = ("tests/parametrizations/test_ldr.py",)
BY_FUNC, BY_FUNC_TESTS = "hypernet/by_func.py", ("tests/hypernet/test_by_func.py",)
ROWS = ("tests/hypernet/test_rows.py",)
LAYER, CONV, CACHE, PATHS = "layers/base.py", "layers/conv.py", "layers/cache.py", "layers/paths.py"
MODES, CHUNKS = "modes.py", "layers/chunks.py"

FAULTS = [
    Fault("hypernet/ode.py", "error[:, state], error[:, adjoint]", "error[:, state]", "adjoint steps unaware of it"),
    Fault("hypernet/ode.py", "if bool(solution.status.any()):", "if False:", "unreached states returned as numbers"),
    Fault("data/timeseries.py", 'ends["val"] - self.observed', 'ends["val"]', "test windows that begin too late"),
    Fault(
        "train/ode.py",
        "observed[:, -1:].expand_as(future)",
        "observed[:, :1].expand_as(future)",
        "persistence of the first",
    ),
    Fault(
        "overparam/compose.py",
        "if mean.dim() == 2:",
        "if False:",
        "statistics of every S at once",
        ("tests/superposition/test_mimo.py",),
    ),
    Fault(
        "overparam/base.py",
        '(norm.eps, getattr(norm, "row", 0))',
        "()",
        "a collapsed layer of another S",
        ("tests/superposition/test_mimo.py",),
    ),
    Fault("superposition/statistics.py", "    if module in made:", "    if False:", "a norm in two places becomes two"),
    Fault("superposition/mimo.py", "self._switch(value)", "pass", "the setter leaves the statistics"),
    Fault(
        "superposition/regularization.py",
        "plain_precision(weight.device.type)",
        "plain_precision('meta')",
        "an isometry penalty in bf16",
    ),
    Fault("train/superposed.py", "and not self._statistics:", "and True:", "statistics of the last micro-batch"),
    Fault("train/base.py", "self._resumed = checkpoint.get", "checkpoint.get", "random numbers of another run"),
    # ------------------------------------------------------------ parametrizations
    Fault(BASE, "1 / (3 * in_features)", "1 / in_features", "variance of Glorot instead of nn.Linear's"),
    Fault(BASE, "or in_features % positions", "", "positions that do not divide the columns"),
    Fault(BASE, "return math.sqrt(error / size)", "return error / size", "squared relative error"),
    Fault(BASE, "if not torch.isfinite(target).all() or ", "if ", "NaN targets are fitted"),
    Fault(BASE, "torch.autocast(device.type, enabled=False)", "torch.no_grad()", "fits in bf16 under autocast"),
    Fault(BASE, "if not 0 < share <= 1:", "if not 0 < share:", "a share above 1"),
    Fault(BASE, "int(share * math.prod(shape))", "round(share * math.prod(shape) + 0.5)", "budget rounded up"),
    Fault(
        "parametrizations/dense.py", "self.weight.copy_(target)", "self.weight.data = target", "fit aliases its target"
    ),
    Fault(
        RANK,
        "return u[:, :rank] * root, root[:, None] * vh[:rank]",
        "return u[:, :rank] * root, vh[:rank]",
        "scale lost",
    ),
    Fault(RANK, "(values.clamp(min=0) + ridge).sqrt()", "(values.clamp(min=0) + ridge)", "whitens twice"),
    Fault(RANK, "self.shape[1] / self.rank) ** 0.5", "self.shape[1]) ** 0.5", "initial variance grows with the rank"),
    Fault(RANK, "self.right), self.left, bias)", "self.right), self.left)", "bias forgotten by the fast product"),
    Fault(
        RANK, "min(budget // sum(shape), *shape)", "min((budget - 1) // sum(shape), *shape)", "not the largest member"
    ),
    Fault(
        RANK, "return rows * self.rank * sum(self.shape)", "return rows * self.rank * self.shape[0]", "half the cost"
    ),
    Fault(
        BASE, "if share is None or share > 1 else share", "if share is None else share", "an impossible smallest share"
    ),
    # ------------------------------------------------------------ products of sparse matrices
    Fault(f"{PSM}.py", "strict=True))[::-1]", "strict=True))", "factors in the wrong order, evaluation", PSM_TESTS),
    Fault(f"{PSM}.py", "in reversed(self._sparse()):", "in self._sparse():", "wrong order, training", PSM_TESTS),
    Fault(
        f"{PSM}.py",
        "in reversed(list(zip(self._sparse(), self.sides, strict=True))):",
        "in zip(self._sparse(), self.sides, strict=True):",
        "factors in the wrong order, gathers",
        PSM_TESTS,
    ),
    Fault(f"{PSM}.py", "wanted ** (1 / self.factors)", "wanted", "variance of one factor", ("tests/test_contract.py",)),
    Fault(f"{PSM}.py", "2 * nonzeros / factors - last", "nonzeros / factors", "counts not linear", PSM_TESTS),
    Fault(f"{PSM}.py", "len(self.column_index) + ", "", "indices not counted", PSM_TESTS),
    Fault(
        f"{PSM}.py",
        "if not self.starts.is_meta:  # a fit",
        "if False:  # a fit",
        "counts of a loaded pattern",
        PSM_TESTS,
    ),
    Fault(f"{PSM}.py", "min((2, 3), key=error)", "2", "the number of factors is not chosen", PSM_TESTS),
    Fault(f"{PSM}_fit.py", "counts[::-1], macs", "counts, macs", "counts of the transposed not turned", PSM_TESTS),
    Fault(
        f"{PSM}_fit.py", "in reversed(result.factors)", "in result.factors", "factors transposed in place", PSM_TESTS
    ),
    Fault(f"{PSM}_fit.py", "factors[-1] * scale]", "factors[-1]]", "an error that is not the factors'", PSM_TESTS),
    Fault(f"{PSM}_fit.py", "if not shared or rest < 1:", "if True:", "worse than the largest entries", PSM_TESTS),
    Fault(f"{PSM}_moves.py", "values[dropped.indices[:pairs]] = 0", "pass", "swaps add and drop nothing", PSM_TESTS),
    Fault(f"{PSM}_moves.py", "= heights * widths", "= heights + 0 * widths", "scales of one side", PSM_TESTS),
    Fault(f"{PSM}_moves.py", "return slope / self.widths", "return slope", "unbalanced weighted slope", PSM_TESTS),
    Fault(f"{PSM}_moves.py", "moved = moved - slope", "moved = moved + slope", "uphill", PSM_TESTS),
    Fault(
        SPARSE, "ctx.pattern, not ctx.transposed)", "ctx.pattern, ctx.transposed)", "gradient by S, not S^T", PSM_TESTS
    ),
    Fault(SPARSE, "(x, slope) if ctx.transposed else (slope, x)", "slope, x", "sides of values of S^T", PSM_TESTS),
    Fault(SPARSE, "for each in (pattern.rows, values)", "for each in (pattern.columns, values)", "no order", PSM_TESTS),
    Fault(
        SPARSE, "apply(slope, left, ctx.pattern, True)", "apply(slope, left, ctx.pattern, False)", "twice", PSM_TESTS
    ),
    Fault(BUTTERFLY, "low + high]", "high + low]", "factors in the wrong order", BUTTERFLY_TESTS),
    Fault(
        BUTTERFLY,
        "for index in range(first, self.depth):",
        "for index in reversed(range(first, self.depth)):",
        "butterflies in the wrong order",
        BUTTERFLY_TESTS,
    ),
    Fault(BUTTERFLY, "0.5 / (self.levels * self.depth)", "0.5 / self.levels", "variance of one", BUTTERFLY_TESTS),
    Fault(BUTTERFLY, '"depth": budget // numbers', '"depth": 1', "budget not used", BUTTERFLY_TESTS),
    Fault(HODLR, "level) ^ 1) + 2", "level)) + 2", "a leaf meets its own sums, not those of the other side"),
    Fault(HODLR, "self.variance * size / self.rank", "self.variance * size", "initial variance grows with the rank"),
    Fault(
        HODLR,
        "wanted = w[a, c] - _share_of(w[a] - target[a], gram, c)",
        "wanted = target[a, c]",
        "a weighted fit that forgets that the blocks of a row compete",
    ),
    Fault(HODLR, "if left < least:", "if left > least or least == math.inf:", "the depth that leaves most"),
    Fault(HODLR, "F.pad(right, (0, beside))", "F.pad(right, (beside, 0))", "uneven leaves shifted"),
    Fault(f"{TOEPLITZ}_products.py", "cat([-v, v], 1)", "cat([v, v], 1)", "circulant on both sides", TOEPLITZ_TESTS),
    Fault(
        f"{TOEPLITZ}_products.py",
        "(math.pi / order)",
        "(2 * math.pi / order)",
        "whole frequencies for the skew-circulant factor",
        TOEPLITZ_TESTS,
    ),
    Fault(
        f"{TOEPLITZ}_products.py",
        "torch.fft.irfft(product, order) * signs",
        "torch.fft.irfft(product, order)",
        "signs of odd orders are not taken back",
        TOEPLITZ_TESTS,
    ),
    Fault(f"{TOEPLITZ}_fit.py", "(lower - upper) / 2", "(lower + upper) / 2", "no skew-circulant part", TOEPLITZ_TESTS),
    Fault(
        f"{TOEPLITZ}_fit.py",
        "(matrix * target).sum() / size, 0)",
        "torch.ones_like(size), 0)",
        "a displacement that is not scaled",
        TOEPLITZ_TESTS,
    ),
    Fault(
        f"{TOEPLITZ}_fit.py",
        "left = _least_squares(left, right, target)",
        "pass",
        "wide rectangles are not completed",
        TOEPLITZ_TESTS,
    ),
    Fault(
        f"{TOEPLITZ}_like.py",
        "            refine(worker, wanted, steps=steps)\n            if",
        "            if",
        "no descent after the closed form",
        TOEPLITZ_TESTS,
    ),
    Fault(f"{TOEPLITZ}_like.py", "or not is_plain() ", "", "complex numbers inside transforms", TOEPLITZ_TESTS),
    Fault(
        f"{TOEPLITZ}_like.py",
        "self.rank * self.order)) ** 0.5",
        "self.rank)) ** 0.5",
        "initial variance grows with the order",
        ("tests/test_contract.py", "-k", "toeplitz and initial"),
    ),
    Fault(
        "parametrizations/partition.py",
        "np.maximum(np.maximum(a * channels - d * rows, c * rows - b * channels), 0)",
        "np.maximum(np.maximum(a - d, c - b), 0) * channels",
        "distances in rows and columns, not in parts of the sides",
    ),
    Fault(
        "parametrizations/hierarchical_ranks.py",
        "alone = values[block, index] / sizes.sum(1)[block]",
        "alone = values[block, index]",
        "what a number gains forgets the price of its vector",
    ),
    Fault(
        "parametrizations/hierarchical_ranks.py",
        "        elif owner not in stuck:",
        "        else:",
        "a block gets a later step without the earlier ones",
    ),
    Fault(
        "parametrizations/hierarchical_product.py",
        "source = np.full(left_panels.shape, panels * width + across.size * takes_input)  # the zero",
        "source = np.zeros(left_panels.shape, dtype=np.int64)",
        "panels of u that are filled up take another number than zero",
    ),
    Fault(
        "parametrizations/hierarchical.py",
        "            self._arrange(ranks)\n        else:\n            args",
        "            pass\n        else:\n            args",
        "loaded ranks are forgotten",
    ),
    Fault(
        "parametrizations/hierarchical.py",
        "self.variance * math.prod(self.shape) / float(stored)",
        "self.variance",
        "blocks of rank 0 are not made up for",
    ),
    Fault(
        "plots.py",
        "(block.columns, block.rows)",
        "(block.rows, block.columns)",
        "ranks written into mirrored blocks",
        ("tests/test_plots.py",),
    ),
    Fault(FIT, "mixing.reshape(n, n * n).T @", "mixing.mT.reshape(n, n * n).T @", "A transposed in dense()"),
    Fault(
        "parametrizations/semiseparable_chains.py",
        "states[stages - 1 :].flip(0)",
        "states[stages - 1 :]",
        "states of the upper chain not turned",
    ),
    Fault(SEMI, "max(1, rows / columns) ** 0.5", "1.0", "states that grow lose their size"),
    Fault(
        "parametrizations/semiseparable_sizes.py",
        "min(state, before, shape[0] - over)",
        "min(state, before)",
        "states larger than a cut needs",
    ),
    Fault(SEMI, "> error:  # directions", "< error:  # directions", "the best weighted outputs are thrown away"),
    Fault(KRYLOV, "operator[2].roll(1), operator[1]", "operator[2], operator[1]", "a shifted transpose", LDR_TESTS),
    Fault(KRYLOV, "x[: reach + pieces * length - side]", "x[: reach]", "stretches that do not fit the side", LDR_TESTS),
    Fault(KRYLOV, "(count - have) * width], sizes", "sizes.reach * width], sizes", "a last step too long", LDR_TESTS),
    Fault(LDR, "matrix = few + krylov", "matrix = krylov", "terms forgotten by Horner's rule", LDR_TESTS),
    Fault(LDR, "* self.terms)) ** 0.25", ")) ** 0.25", "initial variance grows with the terms"),
    Fault(LDR, "torch.autocast(device, enabled=False)", "torch.autocast(device)", "half-precision powers", LDR_TESTS),
    Fault(LDR, "(budget - operators) // sum", "(budget - 3 * operators) // sum", "not the largest rank", LDR_TESTS),
    Fault(LDR_FIT, "return (1.0, -1.0) if", "return (1.0, -1.0) if True or", "eigenvalues that meet", LDR_TESTS),
    Fault(LDR_FIT, "column_values if hankel else", "column_values if False else", "no Hankel start", LDR_TESTS),
    Fault(KRON, "self._mixing().permute(1, 2, 0)", "self._mixing().permute(2, 1, 0)", "A transposed in linear()"),
    Fault(KRON, "self.mixing.norm(dim=0,", "self.mixing.norm(dim=1,", "A normalised along the wrong side"),
    Fault(FIT, "mixing[:count] = u[:, :count].T * scale", "mixing[:count] = u[:, :count].T", "fit off by a factor"),
    Fault(FIT, "scale = n / math.sqrt(count)", "scale = 1.0", "a fitted A has another scale than a fresh one"),
    Fault(
        FIT,
        "(torch.linalg.pinv(normal, hermitian=True) @ right).reshape",
        "(right / n).reshape",
        "projection of an orthogonal A only",
    ),
    Fault(
        FIT,
        "_solve(normal, right).reshape(n, n, n).transpose(1, 2)",
        "_solve(normal, right).reshape(n, n, n)",
        "weighted A transposed",
    ),
    Fault(
        KRON,
        "self.shape[1] // positions)\n        self._constant",
        "self.shape[1])\n        self._constant",
        "n cuts kernels of a channel",
    ),
    Fault(KRON, "self.mixing.copy_(self._constant)", "pass", "a lost table is not restored"),
    Fault(KRON, '"blocks": True}', "}", "a parameter without a decay rule"),
    Fault(
        FIT,
        "for _ in range(sweeps):\n        new_blocks",
        "for _ in range(0):\n        new_blocks",
        "no alternation",
    ),
    Fault(ALGEBRA, "if a & b & (1 << bit):", "if a & (1 << bit):", "signs of the blades"),
    Fault(ALGEBRA, "square * torch.einsum(", "torch.einsum(", "split algebras are not split"),
    Fault(ALGEBRA, "table.permute(0, 2, 1).reshape", "table.reshape", "fast product of the transposed table"),
    Fault(ALGEBRA, "(-1.0) ** index.bit_count()", "1.0", "a generator that squares to 0 commutes"),
    Fault(ALGEBRA, "(table - table.permute(2, 1, 0))", "(table - table)", "every algebra commutes"),
    Fault(ALGEBRA, "1 - cosines.square()", "1 - cosines", "distance of algebras"),
    Fault(CP, "step = -(jacobian.T", "step = (jacobian.T", "steps uphill"),
    Fault(CP, "return 5 if n == 3 else", "return", "rank of 3 x 3 x 3"),
    Fault(KRON, "Stage(c.T.unsqueeze(0), columns)", "Stage(b.T.unsqueeze(0), columns)", "factors of A exchanged"),
    Fault(
        KRON,
        "if error > LEARNED_TOLERANCE or ",
        "if ",
        "a bad decomposition is used",
        (f"{LAYERS}/test_stages.py",),
    ),
    Fault(KRON, " or amplification(factors) > LARGEST_AMPLIFICATION:", ":", "terms much larger than their sum"),
    Fault(CP, "tolerance, 1.0, _CALMING, 1e-3)", "tolerance, 1.0)", "decompositions in large terms"),
    Fault("parametrizations/registry.py", "nearest_name(option, known)", "''", "no suggestion for a misspelt option"),
    # ------------------------------------------------------------ layers
    Fault(
        CONV,
        "return blocks.transpose(1, 2).reshape(self.in_channels,",
        "return blocks.reshape(self.in_channels,",
        "layout of a transposed convolution",
    ),
    Fault(CONV, "kernel = kernel.transpose(1, 2)", "kernel = kernel.flip(-1)", "factored transposed convolution"),
    Fault(CONV, "bias if index == last else None", "bias if index == 0 else None", "bias before the last stage"),
    Fault(CONV, "mode=self.padding_mode), 0", "mode=self.padding_mode), self.padding", "pads twice"),
    Fault(CONV, "if shapes is None or self.groups != 1 or", "if shapes is None or", "stages under groups"),
    Fault(CONV, "inner // positions if index < spatial else inner", "inner", "positions counted as channels"),
    Fault(
        CONV, "(size + pad - d * (k - 1) - 1) // s + 1", "(size + pad - d * (k - 1)) // s + 1", "wrong number of rows"
    ),
    Fault(CONV, "flatten(channels - 2, channels)", "flatten(channels - 2, channels).mul(2)", "scale of a mixing stage"),
    Fault(LAYER, "self._bias_bound = fan_in**-0.5", "self._bias_bound = fan_in**-1", "bias too small"),
    Fault(LAYER, '"he": 2 / fan_in', '"he": 1 / fan_in', "He's law without its factor"),
    Fault(
        LAYER,
        ".detach().clone(memory_format=torch.contiguous_format)",
        ".detach().contiguous()",
        "folded weight is shared",
    ),
    Fault(LAYER, "return plain.train(self.training)", "return plain", "fold forgets the mode"),
    Fault(
        LAYER,
        "with plain_arithmetic(next(self.parameters()).device.type):",
        "with torch.no_grad():",
        "fold under autocast in bf16",
    ),
    Fault(LAYER, "return layer.train(module.training)", "return layer", "from_dense forgets the mode"),
    Fault(
        LAYER, "if weight.shape != wanted:", "if weight.numel() != wanted.numel():", "a checkpoint of another layout"
    ),
    Fault(LAYER, "state_dict.update(self.state_dict(prefix=prefix))", "pass", "a failing load changes the bias"),
    Fault(
        LAYER,
        'if name == "weight":\n            raise AttributeError(_READ_ONLY)\n        super().__setattr__',
        "super().__setattr__",
        "weight can be assigned",
    ),
    Fault(LAYER, "if in_transform():", "if False:", "fold inside vmap"),
    Fault(LAYER, 'if self.path != "factored" or not ways:', "if True:", "path='factored' is ignored"),
    Fault(
        LAYER,
        "return not self.training and self._caches and",
        "return self._caches and",
        "explain promises a cache in training",
    ),
    Fault(LAYER, "self.parametrization.fit_error = None", "pass", "an old fit error after a reset"),
    Fault(
        LAYER,
        "self._replan()  # assigns, so it forgets the cached weight too",
        "pass",
        "cache and plan kept by .to()",
    ),
    Fault(
        LAYER,
        "            if torch.compiler.is_exporting():\n                return self._export_way\n",
        "",
        "export branches on rows",
        interop("low_rank and exports or twelve"),
    ),
    Fault(
        "layers/named.py",
        '{"algebra": "quaternion"}',
        '{"algebra": "complex"}',
        "quaternion names of the wrong algebra",
    ),
    # ------------------------------------------------------------ cache
    Fault(CACHE, "and epoch == _epoch", "", "optimizer steps that versions do not show"),
    Fault(CACHE, "or source._version != source_version\n", "\n", "edits without gradients"),
    Fault(CACHE, "or source.data_ptr() != address\n", "\n", "p.data = new"),
    Fault(CACHE, "names.get(name) is not source\n                        or", "", "replaced parameters"),
    Fault(CACHE, "if names.get(name) is not child:", "if False:", "replaced parts of a nested parametrization"),
    Fault(CACHE, "and kept_as is autocast", "", "autocast switched on or off"),
    Fault(CACHE, "and _version(built) == version", "", "edits of the returned weight"),
    Fault(CACHE, "or (grad and source.requires_grad)\n", "\n", "gradients asked for later"),
    Fault(CACHE, "if grad and source.requires_grad:", "if False:", "no gradients in evaluation mode"),
    Fault(MODES, "torch._C._len_torch_dispatch_stack() == 0\n        and ", "", "a dispatch mode sees no build"),
    Fault(MODES, "and forward_ad._current_level < 0\n", "\n", "no tangents"),
    Fault(CACHE, "source.is_inference() or ", "", "tensors without version counters"),
    Fault(CACHE, "type(source) not in _PLAIN_TYPES or", "", "tensor subclasses"),
    Fault(CACHE, " or len(tensors) != num_sources", "", "parameters taken away by FSDP1"),
    Fault(
        MODES,
        "with torch.inference_mode(False), torch.no_grad()",
        "with torch.no_grad()",
        "a weight made in inference mode",
    ),
    Fault(
        CACHE,
        "__deepcopy__(self, memo: dict[int, Any]) -> WeightCache:\n        return WeightCache()",
        "__deepcopy__(self, memo: dict[int, Any]) -> WeightCache:\n        return self",
        "copies share a cache",
    ),
    Fault(
        CACHE,
        "if cast is not None and weight.dtype != torch.float64:",
        "if cast is not None:",
        "double precision under autocast",
        interop("autocast"),
    ),
    Fault(CACHE, "    if not _watching:", "    if True:", "a hook for every cached weight"),
    Fault(
        LAYER,
        "self.clear_cache()\n\n    def __delattr__",
        "pass\n\n    def __delattr__",
        "train() and eval() do not forget",
    ),
    # ------------------------------------------------------------ paths
    Fault(PATHS, "self.few if rows < FEW_ROWS", "self.few if rows <= FEW_ROWS", "threshold off by one"),
    Fault(PATHS, 'macs += parametrization.build_cost() if path == "dense" else 0', "pass", "build not counted"),
    Fault(PATHS, "if all(a <= b", "if any(a <= b", "wins at one end of the range only"),
    Fault(
        LAYER,
        "if self._sensitive and way",
        "if False and way",
        "stages in half precision",
        (f"{LAYERS}/test_stages.py",),
    ),
    Fault(
        LAYER,
        "return [Stage(stage.matrix.detach(), stage.inner)",
        "return [Stage(stage.matrix.detach() * 1.01, stage.inner)",
        "kept stages differ from the parameters",
        (f"{LAYERS}/test_stages.py",),
    ),
    Fault(PATHS, "self.many if rows < MOST_ROWS", "self.many if rows <= MOST_ROWS", "last threshold off by one"),
    # ------------------------------------------------------------ products of stages
    Fault(CHUNKS, "result[first : first + chunk]", "result[:chunk]", "every chunk is written to the first rows"),
    Fault(CHUNKS, "torch.add(y, bias.to(y.dtype).view(y.shape[1:]), out=part)", "part.copy_(y)", "no bias in chunks"),
    Fault("layers/linear.py", ">= 2 * chunk_rows(self._traffic)", ">= 0", "few rows in chunks too"),
    Fault("layers/linear.py", "if y.shape[0] == parts:", "if True:", "features are not cut anew"),
    Fault(
        CONV,
        "return torch.cat([self._by_stages(part, stages, bias, output_size) for part in parts])",
        "return self._by_stages(parts[0], stages, bias, output_size)",
        "only the first samples are convolved",
        (f"{LAYERS}/test_stages.py",),
    ),
    # ------------------------------------------------------------ modules of several weights
    Fault("parametrizations/stacked.py", "member.fit_(part, gram)", "member.fit_(part)", "parts fitted unweighted"),
    Fault("parametrizations/stacked.py", "else bias.split(sizes)", "else bias.split(sizes)[::-1]", "biases swapped"),
    Fault("layers/embedding.py", "y.masked_fill((input == self.padding_idx)[..., None], 0)", "y", "padding not zero"),
    Fault("layers/embedding.py", "matrix.masked_fill(padding[:, None], 0)", "matrix", "padding row in the table"),
    Fault("layers/embedding.py", "_default_variance = 1.0", "_default_variance = None", "initial law of a product"),
    Fault("layers/embedding.py", "rows_cost(count) < building", "rows_cost(count) < 0", "the table built in training"),
    Fault(
        "layers/recurrent.py", 'gates = 1 if name.startswith("weight_hr")', "gates = 1 if True", "one member a weight"
    ),
    Fault(
        "layers/recurrent.py", "variance = 1 / (3 * self.hidden_size)", "variance = None", "initial law of a product"
    ),
    Fault("layers/recurrent.py", "return steps * sum", "return sum", "multiply-adds of one step"),
    Fault("layers/attention.py", "depth**-0.5", "self.embed_dim**-0.5", "scores scaled by the whole width"),
    Fault("layers/attention.py", "(0, self._appends())", "(0, 0)", "masks too short for appended keys"),
    Fault("layers/attention.py", "masks.append(padding[:, None, None])", "pass", "padding is attended to"),
    Fault("layers/attention.py", "self.dropout if self.training else 0.0", "self.dropout", "dropout in evaluation"),
    Fault("layers/attention.py", 'not in ("cached", "dense"):', "is None:", "factored paths never run in evaluation"),
    Fault("layers/attention.py", "_qkv_same_embed_dim = False", "_qkv_same_embed_dim = True", "fused encoder kernel"),
    Fault("layers/attention.py", "2 / (4 * embed_dim if together", "2 / (2 * embed_dim if together", "initial law"),
    Fault("layers/composite.py", 'return make("dense", shape, **common)', "raise", "what does not fit stops the rest"),
    Fault("layers/composite.py", "del state_dict[prefix + name]", "continue", "plain checkpoints are not taken"),
    Fault(
        "layers/composite.py",
        "inner.update(module.modules())",
        "pass",
        "parts reported beside the whole",
        (f"{LAYERS}/test_recurrent.py", "tests/surgery"),
    ),
    Fault(
        "layers/composite.py",
        "return max(errors, default=None)",
        "return min(errors, default=None)",
        "best error shown",
    ),
    Fault(
        CACHE,
        "and not (grad and wants_gradients)",
        "",
        "a kept weight of frozen sources asks for gradients",
        (f"{LAYERS}/test_cache_staleness.py", f"{LAYERS}/test_cache.py"),
    ),
    Fault(
        "surgery/convert.py",
        "or module in done",
        "",
        "parts of a replaced module are replaced too",
        (f"{LAYERS}/test_attention.py",),
    ),
    # ------------------------------------------------------------ surgery
    Fault("surgery/fold.py", "if not moved <= rtol:", "if moved > 1e9 * rtol:", "fold does not check"),
    Fault("surgery/walk.py", "carry_hooks(old, new, copies)", "pass", "hooks are lost"),
    Fault("surgery/walk.py", "carry_hooks(old, new, copies)", "carry_hooks(old, new)", "hooks call the old model"),
    Fault("layers/foldable.py", "new._is_full_backward_hook =", "_ =", "full backward hooks never run", WALK),
    Fault(
        "surgery/walk.py",
        "set_fastpath_enabled(False)",
        "set_fastpath_enabled(True)",
        "zeros in padded rows",
        ATTENTION,
    ),
    Fault("layers/attention.py", "return _NoTensor()", "raise AttributeError", "torch's encoders crash on padding"),
    Fault(
        "surgery/walk.py",
        "tree_map_only(Tensor, Tensor.clone, example)",
        "tree_map(lambda x: x, example)",
        "examples change",
    ),
    Fault(
        "surgery/walk.py",
        "value.to(torch.promote_types(value.dtype, torch.float64))",
        "value.double()",
        "real parts only",
    ),
    Fault("surgery/convert.py", 'if "forward" in module.__dict__:', "if False:", "a forward of its own is lost"),
    Fault(
        "layers/composite.py",
        "yield from holder.parametrization.parameters()",
        "yield from holder.parameters()",
        "folding unfreezes",
    ),
    Fault(
        "layers/embedding.py",
        "if not is_recording():",
        "if False:",
        "rows of no index",
    ),
    Fault("surgery/compare.py", "if tensor.is_complex():", "if False:", "imaginary parts are lost"),
    Fault("surgery/convert.py", "if len(sharing) > 1:", "if len(sharing) > 2:", "tied weights are untied"),
    Fault("surgery/convert.py", "if not converted:", "if False:", "nothing matched, nothing said"),
    Fault("surgery/walk.py", "module.training = mode", "pass", "modes are not restored"),
    Fault(
        "surgery/groups.py",
        "parameter.requires_grad and parameter not in seen",
        "parameter not in seen",
        "frozen parameters are optimised",
    ),
    Fault(
        "surgery/groups.py",
        "record.weight_decay.get(name, True) if record else True",
        "True",
        "decay rules of the record ignored",
    ),
    Fault("surgery/approximate.py", "return min(found,", "return max(found,", "the worst family is kept"),
    Fault("surgery/compare.py", "make(name, shape, target=matrix,", "make(name, shape,", "sizes not for the matrix"),
    Fault("surgery/compare.py", "except WeftError as error:", "except Exception as error:", "faults become reasons"),
    Fault("surgery/compare.py", "fitted(name, matrix, gram,", "fitted(name, matrix, None,", "Gram matrix ignored"),
    Fault(
        "parametrizations/memory.py",
        "if free is not None and",
        "if False and",
        "too little memory, nothing said",
        ("tests/surgery/test_compare.py",),
    ),
    Fault(LAYER, "target=weight.detach(),", "", "from_dense searches no sizes", (f"{LAYERS}/test_sizes.py",)),
    Fault(
        "layers/named.py",
        'options["target"] = initial_weight =',
        "initial_weight =",
        "initial weight not looked at",
        (f"{LAYERS}/test_sizes.py",),
    ),
    Fault(
        "layers/composite.py",
        "suited(holder.parametrization, part.detach())",
        "holder.parametrization",
        "gates and projections keep their first sizes",
        (f"{LAYERS}/test_sizes.py",),
    ),
    Fault(
        "layers/composite.py",
        "        new._count_sources()\n",
        "",
        "the cache of an attention is wrong",
        (f"{LAYERS}/test_sizes.py",),
    ),
    # ------------------------------------------------------------ command line
    Fault("cli/approximate/results.py", "if before.get(key) != arguments.get(key)]", "if False]", "runs are mixed up"),
    Fault(
        "cli/approximate/results.py", "for r in records if not r.reason}", "for r in records[:0]}", "nothing resumed"
    ),
    Fault(
        "cli/approximate/finetune.py", "super().train(False)", "super().train(mode)", "the rest trains its statistics"
    ),
    Fault(
        "cli/approximate/finetune.py",
        'self.samples["test"], batch',
        'self.samples["val"], batch',
        "accuracy on another split",
    ),
    Fault("cli/approximate/sources.py", "math.prod(tensor.shape[2:])", "1", "kernel positions forgotten"),
    Fault("surgery/groups.py", "(lr * multiplier,", "(lr,", "learning-rate multipliers ignored"),
    # ------------------------------------------------------------ over-parametrisation
    Fault(
        "parametrizations/chain.py",
        "s[:rank] ** (1 / self.depth)",
        "s[:rank] ** 0.5",
        "chain factors have unequal parts",
        ("tests/parametrizations/test_chain.py",),
    ),
    Fault(
        "parametrizations/chain.py",
        "min(self.shape) + self.shape[0]",
        "max(self.shape) + self.shape[0]",
        "the chain is multiplied in the dearer order",
        ("tests/parametrizations/test_chain.py",),
    ),
    Fault("superposition/binding.py", "(size - 1) // 2 - rows", "size // 2 - rows", "centre of the circulant matrix"),
    Fault("superposition/binding.py", "y.roll((size - 1) // 2", "y.roll(size // 2", "centre of the Fourier path"),
    Fault(
        "superposition/binding.py", "keys.unflatten(0, (-1, num_superposed)).sum(0)", "keys[:num_superposed]", "S < N"
    ),
    Fault(
        "superposition/binding.py", "(waves + signs @ real) / size", "(waves + real.sum(0)) / size", "signs are fixed"
    ),
    Fault("superposition/unbinding.py", "slots.mean(1)", "slots.sum(1)", "slots are added and not averaged"),
    Fault(
        "superposition/mimo.py", "torch.arange(missing, device=z.device) % x.shape[0]", "[0] * missing", "what fills up"
    ),
    Fault("superposition/mimo.py", "v[: x.shape[0]]", "v[-x.shape[0] :]", "answers of another input"),
    Fault("superposition/statistics.py", "self.running_mean[self.row]", "self.running_mean[0]", "one mean for every S"),
    Fault(
        "superposition/statistics.py", "each.momentum, each.training = None, True", "each.training = True", "last batch"
    ),
    Fault("superposition/regularization.py", "part.shape[1] < part.shape[0]", "part.shape[1] > part.shape[0]", "axes"),
    Fault("superposition/regularization.py", "shifts * step for", "shifts for", "shifts of no stride"),
    Fault("models/wide_resnet.py", "stride = 2 if index > 0", "stride = 2 if index > 1", "one stage is not halved"),
    Fault(
        "train/superposed.py",
        "            parameter.grad.add_(gradient)",
        "            pass",
        "isometry is not trained",
    ),
    Fault("train/superposed.py", "buffer.copy_(before)", "pass", "a skipped step moves the batch norms"),
    Fault("train/superposed.py", "each.grad = None", "pass", "no step is skipped"),
    Fault(
        "train/superposed.py",
        '["gradient_filter"] = self._filter.state()',
        '["gradient_filter"] = {}',
        "threshold lost",
    ),
    Fault("train/continual.py", "self.optimizers().optimizer.state.clear()", "pass", "momentum of the task before"),
    Fault("train/continual.py", "return accuracies.diagonal()[:last] -", "return accuracies[0, :last] -", "forgetting"),
    Fault(
        "train/continual.py", '["regularizer"] = self.regularizer', '["other"] = self.regularizer', "the past is lost"
    ),
    Fault(
        "data/tasks.py", "yield images[own], labels[own] % self.num_classes", "yield images[own], labels[own]", "labels"
    ),
    Fault("data/tasks.py", "self._orders[task])", "self._orders[-1])", "one permutation for all tasks"),
    Fault("train/rank_experiment.py", "scale * gradient", "gradient", "gradients are not clipped"),
    Fault("cli/study/__init__.py", '(max if choice.mode == "max" else min)', "max", "the worst value is chosen"),
    Fault(
        "cli/study/__init__.py",
        "if not results.fitted(self.folder, run):",
        "if True:",
        "what has ended is fitted again",
    ),
    Fault(
        "cli/study/__init__.py", "made += 1\n                    self.keep()", "made += 1", "results at the end only"
    ),
    Fault("cli/study/__init__.py", "found is None and ours", "found is None", "two processes make one run", LOCKED),
    Fault("cli/study/__init__.py", "while self.busy and self.made", "while False", "arms are left undone", LOCKED),
    Fault(
        "cli/study/__init__.py",
        "if len(tried) < len(tries)",
        "if not tried",
        "an arm chooses before all trials",
        LOCKED,
    ),
    Fault("cli/lock.py", "fcntl.LOCK_NB", "0", "processes wait for one another", LOCKED),
    Fault(
        "cli/study/plan.py",
        'slug if slug.strip(".") else "arm"',
        "slug",
        "an arm's folder is outside",
        ("tests/cli/test_study.py", "-k", "inside"),
    ),
    Fault(
        "cli/lightning.py",
        "if self._begun is None and self._before is not None:",
        "if False:",
        "a start that trains nothing forgets what the run came to",
        (*FIT_TESTS, "nothing_left"),
    ),
    Fault(
        "cli/lightning.py",
        "members.insert(members.index(float), int)",
        "members.append(int)",
        "one batch becomes all batches",
        ("tests/cli/test_study.py", "-k", "stays_one"),
    ),
    Fault(
        "cli/lightning.py",
        "and not self.trainer.fast_dev_run",
        "",
        "a trial of the code writes",
        (*FIT_TESTS, "trial_of"),
    ),
    Fault(
        "cli/lightning.py",
        "if _STRANGE_MODEL not in str(error)",
        "if True",
        "another model is a traceback",
        (*FIT_TESTS, "no_whole"),
    ),
    Fault(
        "cli/lightning.py",
        'check_families(chosen.model.as_dict(), "model")',
        "[]",
        "families of the command line",
        (*FIT_TESTS, "mistake"),
    ),
    Fault(
        "torch_file.py",
        "weights_only=not trusted",
        "weights_only=False",
        "a checkpoint runs code",
        (*FIT_TESTS, "run_code"),
    ),
    Fault("data/images.py", "taken[order[: size - taken.sum()]] += 1", "pass", "too few images", IMAGES),
    Fault("data/images.py", "random.random(len(counts)), -lost", "random.random(len(counts)), lost", "ties", IMAGES),
    Fault("cli/mimo/options.py", "known if known in DATASETS else", "", "spelling makes another run"),
    Fault("cli/mimo/train.py", 'SuperposedClassifier(build(training.pop("model")), **training)', "pass", "left folder"),
    Fault("cli/mimo/validate.py", 'trained.get("final")', "False", "training images as validation"),
    Fault(
        "cli/study/__init__.py", "        if last.is_file():\n", "        if True:\n", "a diverged run ends the study"
    ),
    Fault("cli/study/plan.py", "    _check(study, path.name)\n", "", "a wrong key is found hours later"),
    Fault(
        "cli/study/results.py", "        _compare(asked, run)", "        pass", "runs of another study are taken over"
    ),
    Fault("cli/study/__init__.py", '"--ckpt_path", "last"])', '"--ckpt_path", "best"])', "best weights are tested"),
    Fault("overparam/compose.py", "(k // 2, k - 1 - k // 2)", "(k - 1 - k // 2, k // 2)", "centre of even kernels"),
    Fault("overparam/compose.py", "variance + norm.eps", "variance + 1e-5", "eps of the norm is ignored"),
    Fault("overparam/compose.py", "_add(bias, passed)", "bias", "biases do not pass along skips"),
    Fault("overparam/compose.py", "kernel.flatten(2).sum(2)", "kernel.flatten(2).mean(2)", "bias through a kernel"),
    Fault("overparam/conv.py", "self.dilation[dim] * (k // 2)", "k // 2", "skips forget the dilation"),
    Fault("overparam/conv.py", "if end == self.depth else 1", "if end < 0 else 1", "skips forget the stride"),
    Fault("overparam/base.py", "expanded or (self.training and len(self.norms))", "expanded", "norms do not train"),
    Fault("overparam/base.py", "if self.training and self.batch_norm:", "if False:", "folded in training"),
    Fault("overparam/base.py", "if module is self.layers[-1] else 1.0", "if module is None else 1.0", "last gain"),
    Fault(
        "layers/cache.py",
        "sum(part._version for part in built if part is not None)",
        "sum(0 for part in built if part is not None)",
        "writes to a kept kernel are not seen",
        ("tests/overparam/test_states.py",),
    ),
    Fault("overparam/factor.py", "s ** (1 / depth)", "s ** 0.5", "factors of a kernel", ("tests/surgery",)),
    Fault(REGISTRY, "evaluate(rule, numbers) if", "1.0 if", "formulas of learning rates ignored"),
    Fault(REGISTRY, 'if optimizer == "sgd" else', "if not optimizer else", "SGD with the multipliers of Adam"),
    Fault(
        FORMULAS, "(3 * columns * member.variance) ** 0.5", "1.0", "rates deaf to the initial variance", LEARNING_RATES
    ),
    Fault(RANK, "0.17/(1 + out/rank)^0.5", "1", "SGD rate of the right factor", LEARNING_RATES),
    Fault(SEMI, "num_stages/12", "num_stages*9", "SGD rate of the diagonal", LEARNING_RATES),
    # ------------------------------------------------------------ hypernetworks
    Fault("hypernet/rows.py", "* self.scale.to(y.dtype)", "", "fixed scale forgotten by the contraction"),
    Fault(
        "hypernet/rows.py",
        "self.in_scale.repeat(1, channels // self.base.shape[1])",
        "self.in_scale.repeat_interleave(channels // self.base.shape[1], 1)",
        "scales of channels in another order in groups",
    ),
    Fault(BY_FUNC, 'randomness="different"', 'randomness="same"', "one dropout mask for all rows", ROWS),
    Fault(BY_FUNC, "last), name)", "last, name), name)", "a layer of two names keeps what was put into it"),
    Fault(BY_FUNC, "(RuntimeError, ValueError)", "(OverflowError,)", "what vmap cannot do is an error"),
    Fault(BY_FUNC, "rnn.__dict__.update", "dict().update", "recurrent layers keep the weights of a call"),
    Fault(BY_FUNC, "part.padding_idx is not None", "False", "gradients of padding"),
    Fault(BY_FUNC, "if slow:  #", "if False:  #", "attention without gradients"),
    Fault(BY_FUNC, "_drop_dead(part, before)", "pass", "tensors of a vmap that is over stay"),
    Fault(BY_FUNC, "buffer.copy_(copy)", "pass", "a buffer that a refused call has moved"),
    Fault(BY_FUNC, "lambda y: y[:rows], out", "lambda y: y, out", "a row for an empty batch"),
    Fault(
        "hypernet/rows.py",
        "(flat * self.scale).to(self.bias.dtype)",
        "(flat * self.scale)",
        "bf16 parameters under autocast",
        BY_FUNC_TESTS,
    ),
    Fault("hypernet/hypernetwork.py", "and not self.generator.training ", "", "draws in the generator are kept"),
    Fault("hypernet/hypernetwork.py", "task = task.long()", "pass", "uint8 ids are a mask"),
    Fault(
        "hypernet/hypernetwork.py",
        "named_buffers(remove_duplicate=False)",
        "named_buffers()",
        "a norm's second place has other statistics",
        ROWS,
    ),
    Fault(RANK, "left.masked_fill(zero.unsqueeze(-2), 0)", "left", "what is revived changes the matrix", EVERY),
    Fault(RANK, "if not zero.any():", "if True:", "zero terms have no gradients", EVERY),
    Fault(
        "parametrizations/monarch.py", "revived(u, v, negligible(target))", "(u, v)", "zero parts never learn", EVERY
    ),
    Fault(
        "parametrizations/chain.py",
        "int((s > negligible(target)).sum())",
        "len(s)",
        "zero directions never learn",
        EVERY,
    ),
    Fault(
        "parametrizations/psm.py", "self.values[: self.counts[0]] = 0", "self.values.zero_()", "zero stays zero", EVERY
    ),
    Fault(
        "parametrizations/hierarchical.py",
        "            self._clear_left()",
        "            self.values.zero_()",
        "zero blocks never learn",
        EVERY,
    ),
    Fault("overparam/factor.py", "torch.where(alive, root, 1)", "root", "zero directions in the middle", EP_PROTOCOL),
    Fault(
        "layers/base.py", "_move(self.parametrization, weight)", "pass", "assigned states leave buffers behind", PLAIN
    ),
    Fault("layers/base.py", "_move(fitted, weight)", "pass", "assigned states of mixed dtype", PLAIN),
    Fault("parametrizations/refine.py", "wide.to(target.dtype)", "pass", "half precision is refined as it is", REFINE),
    Fault(
        "surgery/summary.py",
        "if p in seen)\n            dense += size",
        "if False)\n            dense += size",
        "shared counts twice",
    ),
    Fault("surgery/summary.py", "- _dense_again(ours[module], size, seen)", "", "shared dense weights count twice"),
    Fault("surgery/summary.py", "macs.get(module.out_proj, 0) + count", "0", "the output projection costs nothing"),
    Fault(
        "surgery/summary.py",
        "x.data if isinstance(x, PackedSequence) else x",
        "x[0]",
        "packed sequences are not counted",
    ),
    Fault("surgery/fold.py", "    _tie(replacements)", "", "ties are lost in folding"),
    Fault(
        "surgery/convert.py",
        "if where is not None and not callable(where):",
        "if False:",
        "names called as functions",
        NAMES,
    ),
    Fault("parametrizations/registry.py", "isinstance(value, Integral)", "isinstance(value, Real)", "rank 2.7", NAMES),
    Fault(
        "parametrizations/registry.py", "if option in options]", "if False]", "given options are passed twice", NAMES
    ),
    Fault(
        "parametrizations/base.py",
        "gram is not None and gram.any() else None",
        "gram is not None else None",
        "zero Gram",
        EVERY,
    ),
    Fault("surgery/groups.py", "isinstance(module, FHRR) or", "", "phases of FHRR decay"),
    Fault("surgery/groups.py", "or parameter.dim() == 0 ", "", "gates of one number decay"),
    Fault(
        "surgery/convert.py",
        "if parameter.is_meta and needs_values:",
        "if parameter.is_meta:",
        "no values are asked for",
    ),
    Fault(
        "overparam/base.py",
        "requires_grad=shifts)",
        "requires_grad=trained)",
        "folding unfreezes biases",
        OVERPARAMETERIZE,
    ),
    Fault(
        "overparam/base.py",
        "if bias is None else bias.requires_grad",
        "",
        "biases freeze as the weight",
        OVERPARAMETERIZE,
    ),
    Fault(
        "hypernet/slots.py",
        "for p, group in chosen.items() if p.numel()}",
        "for p, group in chosen.items()}",
        "heads for parameters without numbers",
    ),
    Fault(
        "hypernet/gradients.py",
        "& ~(a.isnan() & b.isnan())",
        "",
        "NaN differs from NaN",
        ("tests/hypernet/test_gradients.py",),
    ),
    Fault("hypernet/ode.py", "dynamics.of(weights, buffers)", "dynamics.of(weights)", "statistics of no task"),
    Fault("hypernet/generators.py", "math.ceil(total / size)\n", "total // size\n", "the last numbers are not covered"),
    Fault("hypernet/generators.py", " / square.mean().sqrt()", "", "what chunks give a tensor is not measured"),
    Fault("hypernet/init.py", "return 2 * a * b / (a + b)", "return 2 * (a + b)", "a harmonic mean that is none"),
    Fault("hypernet/hypernetwork.py", "lookup(self, task,", "lookup(self, 0,", "the kept tensors of another task"),
    Fault(
        "hypernet/hypernetwork.py", "lookup(self, task,", "lookup(self.generator, task,", "a cache blind to embeddings"
    ),
    Fault(
        "hypernet/continual.py", "self.beta / number", "self.beta / len(self.tasks)", "a biased subset of past tasks"
    ),
    Fault("hypernet/continual.py", "part[drawn] for part", "part[: len(drawn)] for part", "targets of other tasks"),
    Fault(
        "hypernet/gradients.py",
        "if moves() and slope is None:",
        "if False:",
        "a broken graph reported as unused",
        ("tests/hypernet/test_gradients.py",),
    ),
]


def run_tests(source: Path, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """The tests against a copy of the package, stopping at the first failure."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow"]
    command += [*arguments, "--deselect", "tests/test_interop.py::test_two_processes_train_like_one"]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def copy_source(folder: str) -> Path:
    source = Path(folder, "src")
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
    return source


def check_copy_is_tested() -> None:
    """The copy is what gets imported, and without a fault it passes."""
    with tempfile.TemporaryDirectory() as folder:
        source = copy_source(folder)
        environment = {**os.environ, "PYTHONPATH": str(source)}
        command = [sys.executable, "-c", "import weft; print(weft.__file__)"]
        imported = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
        if not Path(imported.strip()).is_relative_to(source):
            sys.exit(f"the tests would import {imported.strip()} and not the copy in {source}")
        folders = sorted({argument for tests in TESTS.values() for argument in tests})  # the protocol has its own run
        with ThreadPoolExecutor(WORKERS) as pool:
            for run in pool.map(lambda tests: run_tests(source, (tests,)), folders):
                if run.returncode:
                    sys.exit(f"the tests fail without any fault:\n{run.stdout[-3000:]}{run.stderr[-2000:]}")


def plant(fault: Fault) -> tuple[str, str]:
    """Try one fault: (killed, survived, misplaced or broken; the test that noticed, or a reason)."""
    with tempfile.TemporaryDirectory() as folder:
        source = copy_source(folder)
        path = source / "weft" / fault.file
        text = path.read_text()
        if text.count(fault.old) != 1:
            return "misplaced", f"the old text occurs {text.count(fault.old)} times"
        path.write_text(text.replace(fault.old, fault.new))
        try:
            compile(path.read_text(), str(path), "exec")
        except SyntaxError as error:
            return "broken", f"not Python: {error}"
        try:
            run = run_tests(source, fault.arguments())
        except subprocess.TimeoutExpired:
            return "killed", f"more than {TIMEOUT_S} s"
    failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if run.returncode == 1 and failed:
        return "killed", failed[0].split(" ", 1)[1].split(" - ")[0].split("/", 1)[-1]
    if run.returncode == 0:
        return "survived", ""
    return "broken", " ".join((failed or run.stderr.splitlines() or run.stdout.splitlines())[-1:])[:120]


def main() -> int:
    words = sys.argv[1:]
    faults = [fault for fault in FAULTS if not words or any(word in f"{fault.file} {fault.why}" for word in words)]
    start = time.monotonic()
    check_copy_is_tested()
    bad = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        for fault, (outcome, detail) in zip(faults, pool.map(plant, faults), strict=True):
            bad += outcome != "killed"
            print(f"{outcome:9}  {fault.file:32}  {fault.why:48}  {detail}", flush=True)
    print(f"{len(faults)} faults, {len(faults) - bad} killed, {bad} not, {time.monotonic() - start:.0f} s")
    return 1 if bad or not faults else 0


if __name__ == "__main__":
    sys.exit(main())
