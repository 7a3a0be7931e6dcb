"""The tutorials run, and the ones about learned algebras really find them."""

import runpy
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parent.parent / "tutorials"


def run(name: str, monkeypatch: pytest.MonkeyPatch) -> dict:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(pyplot, "show", lambda: pyplot.close("all"))
    return runpy.run_path(str(TUTORIALS / f"{name}.py"))


@pytest.mark.parametrize("name", ["plot_phm_learns_hamilton", "plot_phc_learns_quaternion_convolution"])
def test_mixing_matrices_are_recovered(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run(name, monkeypatch)
    assert names["error"] < 1e-4
    assert names["losses"][0] > 1 and names["losses"][-1] < 1e-4


def test_sign_table_of_the_quaternion_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    signs = run("plot_phc_learns_quaternion_convolution", monkeypatch)["signs"]
    assert signs.round().int().tolist() == [[1, -1, -1, -1], [1, 1, -1, 1], [1, 1, 1, -1], [1, -1, 1, 1]]


def test_each_student_is_nearest_to_its_teachers_algebra(monkeypatch: pytest.MonkeyPatch) -> None:
    distances = run("plot_which_algebra", monkeypatch)["distances"]
    for student in range(4):
        assert distances[student].argmin() == student and distances[student, student] < 0.02
    assert distances[4].min() > 0.5


@pytest.mark.slow
def test_toy_regressions_have_the_published_sizes_and_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("plot_toy_regressions", monkeypatch)
    assert names["counts"] == {"real": 21_504, "quaternion": 5_604, "PHM, n = 4": 5_796}
    assert names["curves"]["PHM, n = 4"][-1] < 0.02
