"""Generated perceptrons against products written out, and what is logged about them."""

import csv

import lightning.pytorch as pl
import pytest
import torch

from weft.data import ImageData
from weft.errors import OptionError, SizeError
from weft.models import MLP, HyperMLP
from weft.train import Classifier, ParameterLog

OPTIONS = {"full": {}, "chunked": {"kind": "chunked", "num_chunks": 7, "slot_embedding_dim": 4, "embedding_dim": 0}}


@pytest.mark.parametrize("kind", OPTIONS)
def test_one_network_for_all_with_biases_of_its_own(kind):
    net = HyperMLP((6, 5, 3), generated="*.weight", **OPTIONS[kind]).double()
    x, made = torch.randn(4, 1, 2, 3).double(), net.hyper.generate()
    hidden = (x.reshape(4, 6) @ made["1.weight"][0].T + net.hyper.target[1].bias).clamp(min=0)
    torch.testing.assert_close(net(x), hidden @ made["3.weight"][0].T + net.hyper.target[3].bias)
    assert set(made) == {"1.weight", "3.weight"}


def test_every_input_through_a_network_of_its_own():
    net = HyperMLP((6, 5, 3), between="slot_swish", bias=False, by_input=True, generated="*.weight").double()
    with torch.no_grad():
        net.hyper.target[2].beta.copy_(torch.randn(5))
    x = torch.randn(7, 2, 3).double()
    scores = net(x)
    slope = torch.nn.functional.softplus(net.hyper.target[2].beta)
    for row in range(7):
        made = net.hyper.generate(condition=x[row].reshape(1, 6))
        hidden = made["1.weight"][0] @ x[row].reshape(6)
        hidden = hidden / (1 + (-slope * hidden).exp()) / 1.1
        torch.testing.assert_close(scores[row], made["3.weight"][0] @ hidden)
    torch.testing.assert_close(net(x[:1]), scores[:1])


def test_tasks_have_networks_of_their_own():
    net = HyperMLP((6, 5, 3), num_tasks=2)
    x = torch.randn(4, 6)
    assert net.num_tasks == 2
    torch.testing.assert_close(net(x, task=torch.tensor([0, 1, 1, 0]))[1], net(x, task=1)[1])
    assert not torch.allclose(net(x, task=0), net(x, task=1))


def test_bad_arguments_are_refused():
    with pytest.raises(SizeError, match="at least those of input and output"):
        HyperMLP((6,))
    with pytest.raises(OptionError, match="drop one"):
        HyperMLP((6, 3), by_input=True, num_tasks=2)
    with pytest.raises(OptionError, match="between must be 'relu' or 'slot_swish', got 'gelu'"):
        HyperMLP((6, 3), between="gelu")
    with pytest.raises(OptionError, match="condition is not an option of HyperMLP"):
        HyperMLP((6, 3), condition=3)


@pytest.mark.filterwarnings("ignore:Starting from v1.9")
def test_parameters_and_embeddings_are_written_beside_the_log(tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="")
    net = HyperMLP((64, 5, 10), generated="*.weight", **OPTIONS["chunked"])
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, limit_train_batches=1, limit_val_batches=1, logger=logger, log_every_n_steps=1,
        callbacks=[ParameterLog()], enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(net), ImageData("digits"))
    table = (tmp_path / "parameters.md").read_text()
    assert f"| trained | | {sum(p.numel() for p in net.parameters()):,} |" in table
    assert "| hyper.target.1.weight | 5 x 64 | 320 generated |" in table
    rows = list(csv.reader((tmp_path / "embeddings.csv").read_text().splitlines()))[1:]
    chunks = [row for row in rows if row[1] == "hyper.generator.chunk_embeddings"]
    assert [(row[0], row[2]) for row in chunks] == [(str(e), str(i)) for e in range(2) for i in range(7)]
    last = torch.tensor([[float(value) for value in row[3:]] for row in chunks[7:]])
    torch.testing.assert_close(last, net.hyper.generator.chunk_embeddings.detach(), rtol=1e-5, atol=1e-6)


def test_parameters_of_a_plain_network():
    assert ParameterLog.table(MLP(2, (), 3)).endswith("| trained | | 9 |")
