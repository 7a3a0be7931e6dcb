"""``weft approximate``: tables, plot and results that agree, runs that go on, and errors that say what to do."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import save_file
from torch import nn

import weft
from weft.cli.approximate import finetune, sources
from weft.cli.main import main
from weft.models import SmallCNN
from weft.surgery import compare
from weft.train import Classifier

QUICK = ["--families", "low_rank,monarch", "--shares", "0.2,0.5"]

MODELS = '''
import torch
from torch import nn
from weft.models import SmallCNN

def small(hidden=12):
    torch.manual_seed(0)
    return SmallCNN([4, 6], hidden=hidden)

class Skipping(nn.Module):
    """Its layer ``a`` is followed by more than an nn.Sequential."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        x = x.flatten(1)
        return self.b(x + self.a(x).relu())

NOT_A_MODEL = dict
nothing = nn.ReLU()

def empty():
    with torch.device("meta"):
        return small()
'''


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working folder with a module of models, named anew for every test so that none is cached."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"nets_{tmp_path.name.replace('-', '_')}.py").write_text(MODELS)
    return tmp_path


@pytest.fixture
def nets(folder):
    return f"nets_{folder.name.replace('-', '_')}"


@pytest.fixture
def matrix(folder):
    drawn = np.random.default_rng(0).normal(size=(12, 20))
    np.save("w.npy", drawn)
    return torch.from_numpy(drawn)


def rows(path):
    return list(csv.DictReader((path / "results.csv").read_text().splitlines()))


def refused(capsys, *arguments):
    """What is answered to a command that fails; nothing else may be written."""
    capsys.readouterr()
    assert main(["approximate", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("weft: ") and said.count("\n") == 1
    return said


# ---------------------------------------------------------------- one matrix


def test_results_are_those_of_approximate_and_agree_everywhere(matrix, folder, capsys):
    assert main(["approximate", "w.npy", "--families", "low_rank,monarch,hodlr", "--shares", "0.2,0.6"]) == 0
    out = folder / "runs" / "approximate-w"
    assert sorted(path.name for path in out.iterdir()) == ["errors.png", "results.csv", "results.json", "results.md"]
    found = {(row["family"], float(row["share"])): row for row in rows(out)}
    printed, page = capsys.readouterr().out, (out / "results.md").read_text()
    for (name, share), row in found.items():
        (trial,) = compare(matrix, share, [name])
        if trial.member is None:
            assert row["error"] == "" and row["reason"] == trial.reason
            assert f"{name} was skipped at share {share:g}" in printed and trial.reason in page
            continue
        assert float(row["error"]) == pytest.approx(trial.error) and int(row["parameters"]) == trial.parameters
        assert float(row["true_share"]) <= share
        assert f"{trial.error:.4f}" in printed and f"{trial.error:.4f}" in page
    assert len(found) == 6 and found["hodlr", 0.2]["reason"]
    assert imread(out / "errors.png").shape[2] == 4


def test_all_means_every_family(matrix, monkeypatch):
    some = {name: weft.families()[name] for name in ("low_rank", "kronecker")}
    monkeypatch.setattr("weft.cli.approximate.families", lambda: some)
    assert main(["approximate", "w.npy", "--shares", "0.3", "--out", "all"]) == 0
    assert {row["family"]: bool(row["reason"]) for row in rows(sources.Path("all"))} == {
        "low_rank": False, "kronecker": True,
    }  # fmt: skip


def test_second_run_goes_on_and_computes_nothing_twice(matrix, folder, monkeypatch):
    path = folder / "runs" / "approximate-w" / "results.json"
    asked = []

    def interrupting(matrix, share, names, **options):
        asked.append((names[0], share))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return compare(matrix, share, names, **options)

    monkeypatch.setattr("weft.cli.approximate.compare", interrupting)
    assert main(["approximate", "w.npy", *QUICK]) == 130
    half = json.loads(path.read_text())["records"]
    assert [(entry["family"], entry["share"]) for entry in half] == asked[:2]
    assert main(["approximate", "w.npy", *QUICK]) == 0
    assert len(asked) == 5 and asked[3] == asked[2] and len(set(asked)) == 4
    whole = json.loads(path.read_text())["records"]
    assert whole[:2] == half and len(whole) == 4
    assert main(["approximate", "w.npy", *QUICK]) == 0
    assert len(asked) == 5 and json.loads(path.read_text())["records"] == whole


def test_folder_of_other_arguments_or_things_is_left_alone(matrix, folder, capsys):
    assert main(["approximate", "w.npy", *QUICK, "--out", "out"]) == 0
    before = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    assert "seed was 0, now 1" in refused(capsys, "w.npy", *QUICK, "--out", "out", "--seed", "1")
    assert "shares was [0.2, 0.5], now [0.3]" in refused(capsys, "w.npy", *QUICK[:2], "--shares", "0.3", "--out", "out")
    np.save("w.npy", 2 * matrix.numpy())
    assert "matrix was" in refused(capsys, "w.npy", *QUICK, "--out", "out")
    assert {path.name: path.read_bytes() for path in (folder / "out").iterdir()} == before
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.tex").write_text("x")
    assert "holds something else" in refused(capsys, "w.npy", *QUICK, "--out", "mine")
    (folder / "out" / "results.json").write_text("{")
    assert "damaged" in refused(capsys, "w.npy", *QUICK, "--out", "out")


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("kind", ["safetensors", "pt", "lightning", "tensor"])
def test_tensors_of_a_file_are_found_by_name(kind, folder):
    kernel, other = torch.randn(8, 6, 3, 3), torch.randn(5, 4)
    state = {"conv.weight": kernel, "fc.weight": other, "fc.bias": torch.zeros(5)}
    path = folder / f"net.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        content = {"pt": state, "lightning": {"state_dict": state, "epoch": 3}, "tensor": kernel}[kind]
        torch.save(content, path)
    source = sources.from_file(path, None if kind == "tensor" else "conv.weight")
    assert torch.equal(source.matrix, kernel.reshape(8, 54)) and source.positions == 9
    if kind == "pt":
        assert main(["approximate", str(path), "--tensor", "fc.weight", *QUICK[:2], "--shares", "0.5"]) == 0
        assert (folder / "runs" / "approximate-net-fc.weight" / "results.csv").is_file()


def test_files_that_cannot_be_used_are_refused(matrix, folder, capsys):
    save_file({"a": torch.randn(4, 4), "b": torch.randn(4, 6)}, "two.safetensors")
    assert "--tensor NAME: a (4, 4), b (4, 6)" in refused(capsys, "two.safetensors")
    assert "holds no 'c'" in refused(capsys, "two.safetensors", "--tensor", "c")
    np.save("vector.npy", np.ones(3))
    assert "no tensor of two or more dimensions" in refused(capsys, "vector.npy")
    np.save("bad.npy", np.full((4, 4), np.nan))
    assert "not finite" in refused(capsys, "bad.npy")
    np.save("complex.npy", np.ones((4, 4), complex))
    assert "complex" in refused(capsys, "complex.npy")
    torch.save(nn.Linear(2, 2), "code.pt")  # would run code when loaded
    torch.save({"a": torch.ones(4, 4).to_sparse()}, "sparse.pt")
    assert "a is quantized or sparse" in refused(capsys, "sparse.pt")
    torch.save({"a": torch.ones(4, 4, device="meta")}, "meta.pt")
    assert "a is on the device meta, without numbers" in refused(capsys, "meta.pt")
    (folder / "empty.pt").touch()
    assert "empty.pt cannot be read" in refused(capsys, "empty.pt")
    (folder / "letters.pt").write_text("hello world")  # h is torch's sign for what it has seen before
    assert "letters.pt cannot be read" in refused(capsys, "letters.pt")
    for name in ("code.pt", "text.npy", "text.safetensors", "text.pt"):
        if name.startswith("text"):
            (folder / name).write_text("no numbers here")
        assert "cannot be read" in refused(capsys, name)
    assert "there is no file nowhere.npy" in refused(capsys, "nowhere.npy")
    assert "--finetune: only for a model" in refused(capsys, "w.npy", "--finetune")
    assert not (folder / "runs").exists()


def test_arguments_out_of_range_are_refused(matrix, capsys):
    assert "did you mean 'low_rank'" in refused(capsys, "w.npy", "--families", "low_rnk")
    assert "--shares must be in (0, 1]" in refused(capsys, "w.npy", "--shares", "0.1,2")
    least = re.search(
        r"smallest share that works is (0\.\d+)", refused(capsys, "w.npy", *QUICK[:2], "--shares", "0.01")
    )
    assert main(["approximate", "w.npy", *QUICK[:2], "--shares", least[1], "--out", "least"]) == 0
    assert "--patience must be greater than 0" in refused(capsys, "w.npy", "--patience", "0")
    for arguments in (["--shares", "a"], ["--model_options", "[1]"]):
        assert main(["approximate", "w.npy", *arguments]) == 2


def test_matrix_too_large_for_the_memory_is_skipped_with_what_it_needs(matrix, capsys, monkeypatch):
    monkeypatch.setattr("weft.parametrizations.memory._WORTH_ASKING", 0)
    monkeypatch.setattr("weft.parametrizations.memory.free_bytes", lambda device: 2**10)
    said = refused(capsys, "w.npy", *QUICK)
    assert "low_rank: fitting 'low_rank' to a matrix of shape (12, 20) needs about" in said and "GiB are free" in said


# ---------------------------------------------------------------- models


def test_layer_of_a_model_is_the_last_one_or_the_named_one(nets, folder):
    device = torch.device("cpu")
    last = sources.from_model(f"{nets}:small", {}, None, None, device)
    conv = sources.from_model(f"{nets}:small", {"hidden": 16}, None, "features.5", device)
    assert (last.layer, tuple(last.matrix.shape), last.positions) == ("head.2", (10, 12), 1)
    assert (tuple(conv.matrix.shape), conv.positions) == ((6, 36), 9)
    assert torch.equal(conv.matrix, conv.model.features[5].weight.detach().reshape(6, 36))
    assert main(["approximate", f"{nets}:small", *QUICK[:2], "--shares", "0.5", "--layer", "head.0"]) == 0
    assert (folder / "runs" / "approximate-small-head.0" / "errors.png").is_file()


def test_models_that_cannot_be_used_are_refused(nets, capsys):
    assert "no module 'nowhere'" in refused(capsys, "nowhere:model")
    assert "did you mean 'small'" in refused(capsys, f"{nets}:smal")
    assert "--model_options {'width': 3}" in refused(capsys, f"{nets}:small", "--model_options", "{width: 3}")
    assert "must return a torch.nn.Module, got dict" in refused(capsys, f"{nets}:NOT_A_MODEL")
    assert "no linear or convolutional layer" in refused(capsys, f"{nets}:nothing")
    assert "(layers of" in refused(capsys, f"{nets}:small", "--layer", "hed.0")
    assert "--tensor" in refused(capsys, f"{nets}:small", "--tensor", "x")
    assert "model on the device meta" in refused(capsys, f"{nets}:empty")
    for spec in (":small", "..nets:small", f"{nets}:"):
        assert f"given as module:callable, such as torchvision.models:resnet18; got {spec!r}" in refused(capsys, spec)
    for device in ("foo", "cuda:99", "meta"):
        assert f"--device {device} cannot be used here" in refused(capsys, f"{nets}:small", "--device", device)


@pytest.mark.parametrize("lightning", [False, True])
def test_checkpoints_are_loaded_or_refused_by_name(lightning, nets, folder, capsys):
    torch.manual_seed(5)
    trained = SmallCNN([4, 6], hidden=12)
    state = Classifier(trained).state_dict() if lightning else trained.state_dict()
    torch.save({"state_dict": state} if lightning else state, "good.ckpt")
    source = sources.from_model(f"{nets}:small", {}, folder / "good.ckpt", "head.0", torch.device("cpu"))
    assert torch.equal(source.matrix, trained.head[0].weight)
    said = refused(capsys, f"{nets}:small", "--model_options", "{hidden: 16}", "--checkpoint", "good.ckpt")
    assert "does not fit the model" in said and "head.0.weight has the shape (12, 96), the model's (16, 96)" in said
    key = "model.head.2.bias" if lightning else "head.2.bias"
    torch.save({name: value for name, value in state.items() if name != key}, "short.ckpt")
    assert "it lacks head.2.bias" in refused(capsys, f"{nets}:small", "--checkpoint", "short.ckpt")
    assert "no file gone.ckpt" in refused(capsys, f"{nets}:small", "--checkpoint", "gone.ckpt")


# ---------------------------------------------------------------- fine-tuning

TUNE = ["--finetune", "--rounds", "2", "--max_epochs", "8", "--batch_size", "200", "--shares", "0.3"]


def test_fine_tuning_on_stored_features_improves_the_layer(nets, folder, capsys, monkeypatch):
    monkeypatch.setattr(finetune, "_LARGE", 0)
    arguments = ["approximate", f"{nets}:small", "--layer", "head.0", *QUICK[:2], *TUNE]
    arguments += ["--model_options", "{hidden: 32}"]
    assert main(arguments) == 0
    out = folder / "runs" / "approximate-small-head.0"
    printed = capsys.readouterr().out
    for row in rows(out):
        before, after, dense = (float(row[name]) for name in ("approximated", "fine_tuned", "dense"))
        assert after > before + 0.1
        assert f"{dense:.2%}" in printed and f"{after:.2%}" in printed
    assert (out / "features.safetensors").is_file()
    monkeypatch.setattr(finetune, "_watch", None)  # features are not computed again
    found = json.loads((out / "results.json").read_text())
    assert main(arguments) == 0
    assert json.loads((out / "results.json").read_text()) == found
    assert "stored inputs" in found["facts"]["fine_tuning"]


def bench_of(model, layer, folder):
    from rich.progress import Progress

    return finetune.bench(model.eval(), layer, weft.data.ImageData("digits"), folder, Progress(disable=True))


def accuracy_by_hand(model, data):
    model.eval()
    with torch.no_grad():
        images, labels = (torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True))
        return float((model(data.normalise(images)).argmax(1) == labels).float().mean())


@pytest.mark.parametrize(("layer", "split"), [("head.0", True), ("head.2", True), ("features.5", False)])
def test_accuracies_are_those_of_the_whole_model_on_the_test_images(layer, split, folder):
    torch.manual_seed(1)
    model = SmallCNN([4, 6], hidden=12)
    data = weft.data.ImageData("digits")
    data.setup()
    bench = bench_of(model, layer, folder)
    assert ("stored inputs" in bench.how) is split
    assert (
        len(bench.samples["test"][1]) == 360 and len(bench.samples["train"][1]) + len(bench.samples["val"][1]) == 1437
    )
    assert bench.accuracy(bench.wrap(bench.plain)) == pytest.approx(accuracy_by_hand(model, data))
    member = weft.approximate(bench.plain.weight.detach().flatten(1), "low_rank", 0.5,
                              positions=9 if layer.startswith("f") else 1)  # fmt: skip
    replaced = bench.replacement(member)
    module = bench.wrap(replaced)
    changed = weft.surgery.walk.copy_with(model, {model.get_submodule(layer): replaced})
    assert bench.accuracy(module) == pytest.approx(accuracy_by_hand(changed, data))
    frozen = {name: value.clone() for name, value in module.run.state_dict().items()}
    first = replaced.parametrization.left.detach().clone()
    bench.train(module, lr=0.1, rounds=1, max_epochs=2, batch_size=100)
    moved = [name for name, value in module.run.state_dict().items() if not torch.equal(value, frozen[name])]
    inside = [name for name in frozen if name.startswith(f"model.{layer}.") and not split]
    assert set(moved) <= set(inside)  # batch statistics of the rest included
    assert not torch.equal(first, replaced.parametrization.left)


def test_weighted_errors_are_those_of_the_outputs(nets, folder, capsys):
    model = [f"{nets}:small", "--layer", "head.0"]
    assert main(["approximate", *model, *QUICK[:2], *TUNE, "--weighted"]) == 0
    assert "Relative error of the layer's outputs" in capsys.readouterr().out
    source = sources.from_model(*model[:1], {}, None, "head.0", torch.device("cpu"))
    bench = bench_of(source.model, "head.0", folder / "other")
    x = bench.samples["train"][0].double()
    for row in rows(folder / "runs" / "approximate-small-head.0"):
        torch.manual_seed(0)
        member = weft.approximate(source.matrix, row["family"], 0.3, gram=bench.gram())
        lost = x @ (member.dense().detach().double() - source.matrix.double()).T
        want = float(lost.norm() / (x @ source.matrix.double().T).norm())
        assert float(row["error"]) == pytest.approx(want, rel=1e-2)
    assert "--finetune and --data" in refused(capsys, *model, "--weighted")
    assert "--weighted needs a linear layer" in refused(
        capsys, f"{nets}:small", "--layer", "features.5", *TUNE, "--weighted"
    )


def test_layer_that_the_rest_does_not_simply_follow_is_trained_inside_the_model(nets, folder):
    arguments = ["approximate", f"{nets}:Skipping", "--layer", "a", "--families", "low_rank", *TUNE, "--lr", "0.1"]
    assert main(arguments) == 0
    out = folder / "runs" / "approximate-Skipping-a"
    assert "inside the whole model" in (out / "results.md").read_text()
    (row,) = rows(out)
    assert float(row["fine_tuned"]) > float(row["approximated"])
    assert not (out / "features.safetensors").exists()


def test_data_that_do_not_fit_the_model_are_refused(nets, capsys):
    five = ["--model_options", "{}", "--layer", "head.0", *TUNE]
    assert "was not found" in refused(capsys, f"{nets}:small", *five, "--data", "nowhere")
    assert "cannot take images of shape (1, 16, 16)" in refused(capsys, f"{nets}:Skipping", *TUNE, "--resize", "16")
