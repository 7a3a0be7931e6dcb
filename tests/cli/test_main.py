"""The entry point: what it prints, what it imports, and what it answers to errors."""

import json
import subprocess
import sys

import pytest

import weft
from weft.cli import main as entry
from weft.cli.main import COMMANDS, main


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {command} " in printed for command in COMMANDS)


def test_without_a_command_it_explains_itself_and_fails(capsys):
    assert main([]) == 2
    assert "usage: weft COMMAND" in capsys.readouterr().out


def test_unknown_command_is_answered_with_the_nearest(capsys):
    assert main(["valdate"]) == 2
    assert "did you mean 'validate'?" in capsys.readouterr().err


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys; from weft.cli.main import main; main(['--help']); main(['--version'])\n"
        "print(sorted({'lightning', 'rich', 'jsonargparse', 'matplotlib', 'sklearn', 'datasets'} & set(sys.modules)))"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"weft {weft.__version__}\n[]\n")


def test_process_prints_the_families_as_json():
    done = run("-m", "weft", "list", "--json")
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)) == list(weft.families())


def test_process_fails_with_one_line():
    done = run("-m", "weft", "list", "kroneker")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("weft: ") and "did you mean 'kronecker'?" in done.stderr
    assert done.stderr.count("\n") == 1


def test_missing_extra_names_the_package_and_the_remedy(capsys, monkeypatch):
    def refuse(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name="rich.console")

    monkeypatch.setattr(entry.importlib, "import_module", refuse)
    assert main(["list"]) == 2
    assert capsys.readouterr().err == "weft: 'weft list' needs the package 'rich': pip install 'weft[train]'\n"


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("a fault of ours"), ModuleNotFoundError("ours", name="weft.nowhere")]
)
def test_faults_of_the_program_keep_their_traceback(monkeypatch, error):
    def fail(name):
        raise error

    monkeypatch.setattr(entry.importlib, "import_module", fail)
    with pytest.raises(type(error)):
        main(["list"])
