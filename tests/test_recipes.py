"""Every shipped recipe, through the command line: checked, then run for two steps, tiny."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Picture

from weft.cli.main import main
from weft.cli.study.plan import read

# Lightning's command line runs on jsonargparse's older interface, which says so whenever it is built.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

FOLDER = Path(__file__).parents[1] / "recipes"
STUDIES = sorted((FOLDER / "studies").glob("*.yaml"))
RECIPES = sorted(path for path in FOLDER.glob("*.yaml") if "model" in yaml.safe_load(path.read_text()))
# What makes a run tiny.
MIMO = ["--model.model.init_args.width=0.25", "--model.model.init_args.initial_width=0.25", "--data.batch_size=8"]
TINY_MODELS = {
    "weft.models.HyperMLP": ["--model.model.init_args.hidden=[4]"],
    "weft.models.SmallCNN": ["--model.model.init_args.widths=[4,4,8]"],
    "weft.models.CifarResNet": ["--model.model.init_args.widths=[4,4,8]"],
    "weft.models.overparameterized": ["--model.model.init_args.model.init_args.widths=[4,4,8]"],
    "weft.models.mimonet": MIMO,
    "weft.models.wide_resnet": MIMO,
    "weft.models.wide_isorelunet": MIMO,
}
TINY = [
    "--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1",
    "--data.batch_size=4", "--data.eval_batch_size=4",
    "--data.val_share=0.25",  # at least one of each class
]  # fmt: skip
TINY_SERIES = [
    "--trainer.check_val_every_n_epoch=1",
    "--model.init_args.rtol=0.1",
    "--model.init_args.atol=0.1",
    "--data.init_args.batch_size=3",
]
# The sources that recipes name, as the hub lays them out: image column, shape of an image.
SOURCES = {"fashion_mnist": ("image", (28, 28)), "mnist": ("image", (28, 28)), "cifar10": ("img", (32, 32, 3))}


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    """Folders named and laid out as the real ones, with 40 pictures of noise each."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WEFT_DATA", str(tmp_path))
    noise = np.random.default_rng(0)
    for name, (column, shape) in SOURCES.items():
        (tmp_path / name).mkdir()
        features = Features({column: Image(), "label": ClassLabel(num_classes=10)})
        for split in ("train", "test"):
            pictures = [Picture.fromarray(noise.integers(0, 256, shape, dtype=np.uint8)) for _ in range(40)]
            rows = {column: pictures, "label": [i % 10 for i in range(40)]}
            Dataset.from_dict(rows, features=features).to_parquet(tmp_path / name / f"{split}-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def series_folder(tmp_path_factory):
    """Recorded series as they are laid out, short and of noise."""
    folder = tmp_path_factory.mktemp("data") / "timeseries"
    (folder / "ETT-small").mkdir(parents=True)
    noise = np.random.default_rng(0).uniform(1, 99, (320, 7)).round(1).tolist()
    for name, header, rows in (
        ("hudson-bay-lynx-hare.csv", "Year, Lynx, Hare", [row[:2] for row in noise[:21]]),
        ("sunspots_yearly.csv", '"YEAR","SUNACTIVITY"', [row[:1] for row in noise[:250]]),
        ("ETT-small/ETTh1.csv", "date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT", noise),
    ):
        lines = [",".join(map(str, [1700 + i, *row])) for i, row in enumerate(rows)]
        (folder / name).write_text("\n".join([header, *lines]))
    return folder.parent


def is_series(recipe):
    return "SeriesData" in recipe.read_text()


def tiny(recipe):
    """What makes a run of the recipe tiny."""
    if is_series(recipe):
        return [*(each for each in TINY if not each.startswith("--data.")), *TINY_SERIES]
    return [*TINY, *tiny_model(recipe)]


def tiny_model(recipe):
    content = yaml.safe_load(recipe.read_text())
    section = content["model"].get("init_args", content["model"])
    size = ["--data.train_size=20"] if "train_size" in content["data"] else []
    if "steps_per_task" in content["data"].get("init_args", {}):
        size = ["--data.steps_per_task=2"]
    return [*TINY_MODELS[section["model"]["class_path"]], *size]


def test_all_recipes_were_found():
    counts = (len(RECIPES), len(STUDIES))
    assert counts == (25, 7), "a recipe was added or lost: change the numbers here together with the recipes"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_has_no_unknown_keys(recipe, capsys):
    assert main(["check", str(recipe)]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_header_says_what_how_where_and_with_what_result(recipe):
    header = [line for line in recipe.read_text().splitlines() if line.startswith("#")]
    for word in ("Reproduces:", f"Command:    weft fit --config recipes/{recipe.name}", "Machine:", "Time:", "Result:"):
        assert any(line.startswith(f"# {word}") for line in header), word
    result = re.compile(r"^# Result: .*(accuracy 0\.\d+|error \d\.\d+|not run here)")
    assert any(result.search(line) for line in header), "the result is a number, or its absence is stated"


# They differ from the others in a number, an activation, a kind or in their data only.
ALIKE = {
    *(f"mimo_cifar10_{name}" for name in ("mimonet28_n1", "mimonet28_n2", "mimonet28_n4", "wideisorelunet28")),
    *(f"hypernet_ode_{name}" for name in ("etth1", "sunspots", "oscillators")),
    "hypernet_mnist_chunked",
    "hypernet_permuted_mnist",
}


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(path, marks=[pytest.mark.slow] if path.stem in ALIKE else [], id=path.stem) for path in RECIPES],
)
def test_recipe_trains_and_tests(recipe, tmp_path, data_folder, series_folder, monkeypatch, capsys):
    if is_series(recipe):
        monkeypatch.setenv("WEFT_DATA", str(series_folder))
    arguments = ["--config", str(recipe), "--run_dir", str(tmp_path / "run"), *tiny(recipe)]
    assert main(["fit", *arguments]) == 0, capsys.readouterr().err
    assert main(["test", *arguments]) == 0, capsys.readouterr().err
    rows = (tmp_path / "run" / "logs" / "version_0" / "metrics.csv").read_text().splitlines()
    columns = rows[0].split(",")
    wanted = {"val/mse", "val/persistence_mse"} if is_series(recipe) else {"train/acc", "val/acc"}
    assert {"loss", "train/loss", "val/loss", *wanted} <= set(columns)
    assert (tmp_path / "run" / "forecast.png").is_file() == is_series(recipe)
    steps = [float(row.split(",")[columns.index("loss")]) for row in rows[1:] if row.split(",")[columns.index("loss")]]
    assert len(steps) == 2
    assert all(0 < loss < 100 for loss in steps)


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_every_arm_of_a_study_trains(study, tmp_path, data_folder, series_folder, monkeypatch, capsys):
    plan = read(study)
    for number, (arm, (recipe, _)) in enumerate(plan.arms.items()):
        run = plan.run(arm, plan.seeds[0], None if plan.select is None else plan.select.values[0])
        place = ["--config", str(recipe), "--run_dir", str(tmp_path / str(number))]
        if is_series(recipe):
            monkeypatch.setenv("WEFT_DATA", str(series_folder))
        small = [*tiny(recipe), "--trainer.limit_train_batches=1"]
        assert main(["fit", *place, *run.arguments, *small]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_study_sets_keys_that_its_recipes_know(study):
    assert read(study).arms
