"""Training on two processes, through torch's gloo."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys, torch, torch.nn.functional as F, lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from weft.data import ImageData
from weft.models import SmallCNN
from weft.train import Classifier

folder, seed, stop_at, resume = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "resume"

class Stop(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == stop_at:
            raise KeyboardInterrupt

torch.set_num_threads(1)
pl.seed_everything(seed, verbose=False)
data = ImageData("digits", batch_size=100, eval_batch_size=77, crop_padding=1)
module = Classifier(SmallCNN((8, 8), parametrization="kronecker", options={"n": 4}), mixup_alpha=0.3)
trainer = pl.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, enable_progress_bar=False,
    enable_model_summary=False, callbacks=[Stop(), ModelCheckpoint(folder, "last", enable_version_counter=False)],
)
try:
    trainer.fit(module, datamodule=data, ckpt_path=folder + "/last.ckpt" if resume else None)
except SystemExit:
    sys.exit(0)
metrics = trainer.test(module, datamodule=data, verbose=False)[0]
if trainer.global_rank == 0:
    images, labels = zip(*ImageData("digits").test_dataloader())
    labels = torch.cat(labels)
    module.eval()
    with torch.no_grad():
        scores = module(data.normalise(torch.cat(images)))
    metrics["expected_loss"] = F.cross_entropy(scores, labels).item()
    metrics["expected_acc"] = (scores.argmax(1) == labels).double().mean().item()
    metrics["steps"] = trainer.global_step
    metrics["weights"] = torch.cat([p.detach().flatten() for p in module.parameters()]).tolist()
    json.dump(metrics, open(folder + "/result.json", "w"))
"""


def run(folder, seed, stop_at=-1, resume=False):
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(SCRIPT)
    subprocess.run(
        [sys.executable, "-W", "ignore", script, folder, str(seed), str(stop_at), "resume" if resume else "fresh"],
        check=True, timeout=300, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    result = folder / "result.json"
    return json.loads(result.read_text()) if result.exists() else None


@pytest.mark.slow
def test_two_processes_share_the_work_and_a_resumed_run_ends_the_same(tmp_path):
    whole = run(tmp_path / "whole", 1)
    assert whole["steps"] == 2 * (1293 // 2 // 100), "each process takes its share of the 1,293 training images"
    assert whole["test/loss"] == pytest.approx(whole["expected_loss"], rel=1e-5)
    assert whole["test/acc"] == pytest.approx(whole["expected_acc"], rel=1e-6)
    assert run(tmp_path / "parts", 1, stop_at=8) is None
    assert run(tmp_path / "parts", 2, resume=True) == whole
