"""The two programs of superposed networks, on the bundled digits."""

import json
import shlex
import shutil

import pytest
import torch
import yaml

from weft.cli.main import main
from weft.cli.mimo import options, train
from weft.errors import OptionError

# Lightning's command line runs on jsonargparse's older interface, which says so whenever it is built.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
TINY = ["-b", "8", "-a", "0", "--trainer.limit_train_batches=3", "--trainer.log_every_n_steps=1", *QUIET]
NET = ["MIMONet-10", "digits", "HRR", "2"]


TRAIN = ["mimo", "train", *NET, "-x", "7", "-e", "1", "-s", "1", "-u", "0.5", "-f", *TINY]


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """One run, which the tests copy."""
    folder = tmp_path_factory.mktemp("runs")
    assert main([*TRAIN, "-c", str(folder)]) == 0
    return folder


@pytest.fixture
def trained(once, tmp_path):
    shutil.copytree(once, tmp_path, dirs_exist_ok=True)
    (folder,) = (tmp_path / "Experiment7" / "MIMONet-10" / "digits" / "hrr" / "2").iterdir()
    return folder


def test_training_writes_options_recipe_checkpoint_and_test(trained):
    assert {"options.json", "recipe.yaml", "test.json", "checkpoints", "logs"} <= {
        each.name for each in trained.iterdir()
    }
    assert len(trained.name) == 8
    assert json.loads((trained / "options.json").read_text())["sup_low"] == 1
    assert main(["check", str(trained / "recipe.yaml")]) == 0
    (result,) = json.loads((trained / "test.json").read_text())
    assert {"test/acc", "test/acc_S1", "test/acc_S2"} <= result.keys()


def test_the_same_command_goes_on_and_another_seed_is_another_run(once, capsys):
    (last,) = once.glob("**/last.ckpt")
    before = torch.load(last, weights_only=True)["global_step"]
    assert main([*TRAIN, "-c", str(once)]) == 0
    assert "going on in" in capsys.readouterr().out
    assert torch.load(last, weights_only=True)["global_step"] == before
    assert main([*TRAIN, "-c", str(once), "-r", "1"]) == 0
    made = sorted(path.parents[1] for path in once.glob("**/last.ckpt"))
    assert len(made) == 2
    shutil.rmtree(next(each for each in made if each != last.parents[1]))


def test_validating_measures_every_s(trained, capsys):
    command = ["mimo", "validate", *NET, "-b", "8", "--groupings", "2", "--limit", "60"]
    assert main([*command, "-c", str(trained)]) == 0, capsys.readouterr().err
    rows = json.loads((trained / "validate_mimo.json").read_text())["rows"]
    assert [row["S"] for row in rows] == [1, 2]
    assert rows[0]["changed"] == 0
    assert all(row["seconds_per_image"] > 0 and row["images"] == 60 for row in rows)
    assert "accuracy" in capsys.readouterr().out
    held_out = [*command, "-c", str(trained / "checkpoints" / "last.ckpt"), "-s", "1", "--split", "val"]
    assert main(held_out) == 2
    assert "was trained with --final, on all training images; use --split test" in capsys.readouterr().err
    given = json.loads((trained / "options.json").read_text())
    (trained / "options.json").write_text(json.dumps({**given, "final": False}))
    assert main(held_out) == 0, capsys.readouterr().err
    (row,) = json.loads((trained / "validate_mimo.2.json").read_text())["rows"]
    assert row["S"] == 1


def test_a_checkpoint_of_another_configuration_is_refused_by_its_first_difference(trained, capsys):
    assert main(["mimo", "validate", "MIMONet-10", "digits", "HRR", "4", "-c", str(trained)]) == 2
    assert "was trained with num=2, validate was asked for num=4" in capsys.readouterr().err
    assert main(["mimo", "validate", *NET, "-w", "2", "-c", str(trained)]) == 2
    assert "width=1.0" in capsys.readouterr().err
    (trained / "options.json").unlink()
    assert main(["mimo", "validate", *NET, "-w", "2", "-c", str(trained)]) == 2
    assert (
        "its tensor trunk.0.branch.2.weight has shape (16, 16, 3, 3), this one needs (32, 16, 3, 3)"
        in capsys.readouterr().err
    )


def test_spelling_makes_no_other_run(trained, tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(
        train.lightning, "run", lambda command, argv: seen.append(argv[argv.index("--run_dir") + 1]) or 1
    )
    same = (["MIMONet-28", "mnist", "HRR", "2"], ["mimonet", "MNI_ST", "hrr", "2", "-w", "1", "-i", "1.0"],
            ["MIMONET28", "Mnist", "Hrr", "2", "--width=1"])  # fmt: skip
    for given in (*same, ["MIMONet-28", "mnist", "HRR", "2", "-w", "2"]):
        assert main(["mimo", "train", *given, "-x", "1", "-c", str(tmp_path / "runs")]) == 1, capsys.readouterr().err
    assert len(set(seen[:3])) == 1 and len(set(seen)) == 2
    assert seen[0].startswith(str(tmp_path / "runs" / "Experiment1" / "MIMONet-28" / "mnist" / "hrr" / "2"))
    given = json.loads((trained / "options.json").read_text())
    assert (given["width"], given["binding"]) == (1.0, "hrr")
    (trained / "options.json").write_text(json.dumps({**given, "width": 1, "binding": "HRR", "model": "mimonet10"}))
    validate = ["mimo", "validate", "mimonet-10", "digits", "hrr", "2", "-w", "1", "-b", "8", "--limit", "8"]
    assert main([*validate, "--groupings", "2", "-c", str(trained)]) == 0, capsys.readouterr().err


def test_files_that_are_no_checkpoint_are_refused(trained, tmp_path, capsys):
    (tmp_path / "text.ckpt").write_text("hello world")
    torch.save([1], tmp_path / "list.ckpt")
    for name, message in (("text", "cannot be read"), ("list", "is no checkpoint of a run")):
        assert main(["mimo", "validate", *NET, "-c", str(tmp_path / f"{name}.ckpt")]) == 2
        assert message in capsys.readouterr().err
    (trained / "options.json").write_text("[")
    assert main(["mimo", "validate", *NET, "-c", str(trained)]) == 2
    assert "options.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--limit=0", "limit must be at least 1, got 0"), ("--limit=-5", "limit must be at least 1, got -5"),
        ("--calibration_batches=0", "calibration_batches must be at least 1"),
        ("--groupings=1", "groupings must be at least 2, got 1"),
    ],
)  # fmt: skip
def test_measures_out_of_range_are_refused(once, option, message, capsys):
    (last,) = once.glob("**/last.ckpt")
    assert main(["mimo", "validate", *NET, option, "-c", str(last)]) == 2
    assert message in capsys.readouterr().err


def recipe(*arguments):
    args, _ = train._arguments("mimo train", [*arguments, "-x", "1"])
    return options.recipe_of(args)


def test_short_and_long_options_mean_the_same():
    short = recipe(
        *NET,
        *shlex.split("-w 2 -i 3 -p 0.4 -k -q -z -v -j 0.2 -o 1e-3 -u 0.8 -s 1 -b 4 -l 0.1 -d 1e-4 -a 0.5 -g 5"),
        *("-t", __file__),
    )
    long = recipe(
        *NET, "--width=2", "--initial_width=3", "--relu_parameter_init=0.4", "--skip_init", "--dirac_init",
        "--batch_norm_disabled", "--trainable_keys_disabled", "--binding_regularization=0.2",
        "--orthogonal_regularization=1e-3", "--sup_frequency=0.8", "--sup_low=1", "--batch_size=4", "--lr=0.1",
        "--weight_decay=1e-4", "--mixup_alpha=0.5", "--gradient_clipping=5", f"--transfer_learning_path={__file__}",
    )  # fmt: skip
    assert short == long
    args = short["model"]["init_args"]
    assert args["model"]["init_args"] == {
        "depth": 10, "width": 2, "initial_width": 3, "num_inputs": 2, "binding": "hrr", "trainable_keys": False,
        "skip_init": True, "dirac_init": True, "batch_norm": False, "relu_parameter": 0.4, "num_classes": 10,
        "in_channels": 1,
    }  # fmt: skip
    assert args["gradient_filter"] == 5
    assert short["data"]["batch_size"] == 8
    assert short["data"]["passes"] == 2


def test_defaults_are_the_published_ones():
    made = recipe("WideISOReLUNet-28", "cifar10", "None", "1")
    args = made["model"]["init_args"]
    wanted = {
        "sup_low": None, "sup_frequency": 1.0, "binding_regularization": 0.1, "orthogonal_regularization": 1e-4,
        "gradient_filter": 10.0, "mixup_alpha": 1.0, "lr": 0.2, "weight_decay": 1e-5, "transfer_from": None,
    }  # fmt: skip
    assert {key: args[key] for key in wanted} == wanted
    assert made["data"]["crop_mode"] == "reflect"
    assert made["data"]["batch_size"] == 128
    assert recipe("WideResNet-28", "cifar10", "None", "1")["model"]["init_args"]["orthogonal_regularization"] == 0
    assert recipe("mimonet", "mnist", "hrr", "1")["model"]["init_args"]["model"]["init_args"]["depth"] == 28
    assert "flip" not in recipe("mimonet", "mnist", "hrr", "1")["data"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["MIMONet-11", "digits", "HRR", "2"], "depth must be 6k"),
        (["MINOnet-10", "digits", "HRR", "2"], "did you mean 'MIMONet'"),
        (["MIMONet-10", "digits", "HHR", "2"], "did you mean 'hrr'"),
        (["MIMONet-10", "nothing", "HRR", "2"], "dataset must be one of cifar10"),
        (["MIMONet-10", "digits", "HRR", "4", "-s", "3"], "sup_low: num_superposed must divide num_inputs=4"),
        (["MIMONet-10", "digits", "HRR", "0"], "num must be at least 1"),
        (["MIMONet-10", "digits", "HRR", "two"], "argument num: invalid int value"),
        (["MIMONet-10", "digits", "HRR", "2", "--finale"], "unknown argument --finale"),
        (["MIMONet-10", "digits", "FHRR", "2", "-i", "0.0625"], "channels must be even"),
        (["WideResNet-10", "digits", "HRR", "2", "-p", "1"], "relu_parameter_init is for"),
        (["MIMONet-10", "mnits", "HRR", "2"], "; did you mean 'mnist'? (source='mnits' was not found"),
        ([*NET, "-w", "nan"], "width must be above 0 and finite, got nan"),
        ([*NET, "-i", "0"], "initial_width must be above 0 and finite, got 0.0"),
        ([*NET, "-r", "-1"], "random_seed must be in [0, 2**32), got -1"),
        ([*NET, "-r", "99999999999999"], "random_seed must be in"),
        ([*NET, "-u", "2"], "sup_frequency must be in [0, 1], got 2.0"),
        ([*NET, "-g", "-1"], "gradient_filter must be above 0, or None, got -1.0"),
        ([*NET, "-t", "none.ckpt"], "transfer_learning_path: there is no checkpoint none.ckpt"),
        ([*NET, "-e", "0"], "epochs must be at least 1, got 0"),
    ],
)
def test_bad_input_ends_with_code_2_and_a_line(arguments, words, tmp_path, capsys):
    assert main(["mimo", "train", *arguments, "-x", "1", "-c", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_help_and_unknown_programs(capsys):
    assert main(["mimo", "--help"]) == 0
    assert main(["mimo"]) == 2
    assert "train" in capsys.readouterr().out
    assert main(["mimo", "trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err
    assert main(["mimo", "validate", "--help"]) == 0
    assert "the only S to measure; all by default, a divisor of N" in " ".join(capsys.readouterr().out.split())
    assert main(["mimo", "validate", *NET, "-c", "nowhere"]) == 2
    assert "there is no checkpoint nowhere" in capsys.readouterr().err


def test_a_run_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="is a file"):
        train.write_into(tmp_path / "file", "a", "b")
    train.write_into(tmp_path / "new", "a.yaml", yaml.safe_dump({"a": 1}))
    assert (tmp_path / "new" / "a.yaml").read_text() == "a: 1\n"
