"""Compiled training: one graph, the same loss, gradients and updates as eager."""

import pytest
import torch

from nanochat.device import TorchProbe
from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW, OptimHyper
from nanochat.shape import Shape

SHAPE = Shape.from_depth(2, vocab_size=130, seq_len=160)  # a window of 128 below a context of 160

pytestmark = pytest.mark.skipif(TorchProbe().compiler() is not None, reason="no C++ compiler or Python.h")


def build() -> GPT:
    model = GPT(SHAPE)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def test_a_compiled_step_equals_an_eager_one():
    ids = torch.randint(130, (2, 161), generator=torch.Generator().manual_seed(2))
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    targets[0, :20] = -1
    models, losses, grads = [build(), build()], [], []
    for model, compiled in zip(models, (False, True), strict=True):
        loss = torch.compile(model, dynamic=False, fullgraph=True) if compiled else model
        optimizer = MuonAdamW(model, OptimHyper.for_shape(SHAPE, muon_bf16=False, compiled=compiled))
        losses.append(loss(inputs, targets))
        losses[-1].backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
        for parameter in model.parameters():  # full rank: null directions of Muon amplify rounding
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
        optimizer.step(lr_mult=1.0, muon_momentum=0.9, muon_wd=0.1)
    torch.testing.assert_close(losses[1], losses[0])
    for name, grad in grads[0].items():
        torch.testing.assert_close(
            grads[1][name], grad, atol=1e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
