"""Hypernetworks from their definition: the generator in numpy with loops, the target once per row."""

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

import weft

KINDS = {
    "full": {},
    "layerwise": {"slot_embedding_dim": 3},
    "chunked": {"chunk_size": 9, "slot_embedding_dim": 5},
    "scaling": {},
    "low_rank": {"rank": 2},
}


def mlp():
    return nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)).double()


def conditional(target, kind="full", size=4, **options):
    """With random numbers in every parameter and buffer that starts as 0 or 1."""
    return scrambled(weft.HyperNetwork(target, condition=size, kind=kind, **(KINDS[kind] | options)))


def of_tasks(target, kind="full", tasks=3, **options):
    return scrambled(weft.HyperNetwork(target, num_tasks=tasks, kind=kind, **(KINDS[kind] | options)))


def scrambled(hyper):
    with torch.no_grad():
        for name, p in hyper.generator.named_parameters():
            if name.endswith("bias"):
                p.add_(0.3 * torch.randn_like(p))
        hyper.generator.scale.mul_(1 + torch.rand_like(hyper.generator.scale))
    return hyper


def generate(hyper, code):
    """{name: tensor} for one code, number by number."""
    state = {name: value.detach().numpy() for name, value in hyper.generator.state_dict().items()}
    scale, slots = state["scale"], hyper.slots

    def hidden(inputs):
        layer = 0
        while f"body.{layer}.weight" in state:
            inputs = np.maximum(state[f"body.{layer}.weight"] @ inputs + state[f"body.{layer}.bias"], 0)
            layer += 2
        return inputs

    def head(name, g):
        total = state[f"{name}.bias"].copy()
        for k, number in enumerate(g):
            total += number * state[f"{name}.weight"][k].reshape(total.shape)
        return total

    code = code.detach().numpy()
    made, bases = {}, 0
    if hyper.kind == "chunked":
        code = code * state["code_scale"]
        numbers = [
            number
            for chunk in state["chunk_embeddings"]
            for number in head("head", hidden(np.concatenate([code, chunk])))
        ]
        for i, slot in enumerate(slots):
            mine, numbers = numbers[: slot.size], numbers[slot.size :]
            made[slot.name] = np.array(mine).reshape(slot.shape) * scale[i] + state["mean"][i]
        assert len(numbers) < hyper.generator.chunk_size, "whole chunks are not used"
    for i, slot in enumerate(slots if hyper.kind != "chunked" else ()):
        extra = [state["slot_embeddings"][i]] if hyper.kind == "layerwise" else []
        g = hidden(np.concatenate([code, *extra]))
        if len(slot.shape) < 2 or hyper.kind in ("full", "layerwise"):
            made[slot.name] = scale[i] * head(f"heads.{i}", g)
        elif hyper.kind == "scaling":
            rows, columns = (scale[i] * head(f"heads.{i}.{side}", g) for side in (0, 1))
            base = state[f"bases.{bases}"].copy()
            bases += 1
            for o, n in np.ndindex(*slot.shape[:2]):
                base[o, n] *= rows[o] * columns[n]
            made[slot.name] = base
        else:
            left, right = (scale[i] * head(f"heads.{i}.{side}", g) for side in (0, 1))
            made[slot.name] = (left @ right).reshape(slot.shape)
    return {name: torch.from_numpy(np.asarray(value)) for name, value in made.items()}


def loop(hyper, target, codes, x, samples=None):
    """The target once per row, with the parameters from the definition; shared ones from the hypernetwork."""
    outputs = []
    for b, code in enumerate(codes):
        state = {name: value.detach() for name, value in hyper.target.state_dict().items()}
        tensors = generate(hyper, code)
        for slot in hyper.slots:
            state |= dict.fromkeys(slot.names, tensors[slot.name])
        outputs.append(functional_call(target, state, (x[b] if samples else x[b : b + 1],)))
    return torch.stack(outputs) if samples else torch.cat(outputs)
