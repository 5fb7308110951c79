"""MuonAdamW: one optimizer for one to many ranks; matrices by Muon, everything else by AdamW.

There is no DDP wrapper: `step` reduces gradients itself. Each rank computes its mean loss over its own rows;
the step uses the mean of the ranks' gradients. Stacks of equal matrices and large tensors are
reduce-scattered, each rank updates its part and holds only that part's state, and the parts are all-gathered;
tensors below 1,024 elements are all-reduced and updated everywhere. Knows nothing of schedules or of what the
loss is.

State is keyed by parameter name, so any number of ranks loads what any other number saved:
`<name>/momentum`, `<name>/second` of a Muon matrix; `<name>/exp_avg@<offset>`, `<name>/exp_avg_sq@<offset>`,
flat from element <offset>, of an AdamW tensor; `step`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.adamw import adamw

from nanochat.errors import DataError
from nanochat.optim.groups import OptimHyper, Rule, muon_lr, stacks_by_shape
from nanochat.optim.muon import muon_update, second_moment_size

SMALL = 1024  # elements below which sharding costs more than it saves


@dataclass(slots=True)
class _Stack:
    """Matrices of one shape. The parameters are views of `weight_KMN`, so updates need no copy."""

    names: list[str]
    parameters: list[nn.Parameter]
    rule: Rule
    weight_KMN: Tensor
    first: int
    """Index of the first matrix of this rank."""
    count: int
    """Matrices per rank; the last ranks may hold zero padding."""
    momentum: Tensor
    second: Tensor


@dataclass(slots=True)
class _Flat:
    """One AdamW tensor; this rank's part is elements first .. first + exp_avg.numel()."""

    name: str
    parameter: nn.Parameter
    rule: Rule
    first: int
    chunk: int
    """Elements per rank; the last ranks may hold fewer."""
    exp_avg: Tensor
    exp_avg_sq: Tensor
    sharded: bool


class MuonAdamW:
    """Trains the parameters of a GPT; see the module's docstring for ranks and state.

    Build it after the model is on its device. Not thread-safe; with several ranks every rank must call `step`
    in the same order, and a parameter without gradient counts as gradient 0.
    """

    def __init__(
        self,
        model: nn.Module,
        hyper: OptimHyper,
        *,
        group: dist.ProcessGroup | None = None,
        ranks: bool = True,
    ) -> None:
        """Take over `model`'s parameters; alone without a process group or with `ranks` False."""
        together = ranks and dist.is_available() and dist.is_initialized()
        self.group = group
        self.world_size = dist.get_world_size(group) if together else 1
        self.rank = dist.get_rank(group) if together else 0
        self.hyper = hyper
        self.steps_done = 0
        self._muon_dtype = torch.bfloat16 if hyper.muon_bf16 else torch.float32
        self._update: Callable[..., None] = (
            torch.compile(muon_update, dynamic=False) if hyper.compiled else muon_update
        )
        named = dict(model.named_parameters())
        rules = {name: hyper.rule(name) for name in named}
        matrices = [(n, (p.size(0), p.size(1))) for n, p in named.items() if rules[n].kind == "muon"]
        self._stacks = [
            self._make_stack(names, named, rules[names[0]]) for names in stacks_by_shape(matrices).values()
        ]
        self._flats = [
            self._make_flat(name, p, rules[name]) for name, p in named.items() if rules[name].kind == "adamw"
        ]
        self._parameters = list(named.values())

    @torch.no_grad()
    def _make_stack(self, names: list[str], named: Mapping[str, nn.Parameter], rule: Rule) -> _Stack:
        parameters = [named[name] for name in names]
        rows, columns = parameters[0].shape
        count = -(-len(names) // self.world_size)
        weight = parameters[0].new_zeros(count * self.world_size, rows, columns)
        for slot, parameter in zip(weight, parameters, strict=False):
            slot.copy_(parameter)
            parameter.data = slot
        return _Stack(
            names=names,
            parameters=parameters,
            rule=rule,
            weight_KMN=weight,
            first=self.rank * count,
            count=count,
            momentum=weight.new_zeros(count, rows, columns, dtype=torch.float32),
            second=weight.new_zeros(second_moment_size(count, rows, columns), dtype=torch.float32),
        )

    def _make_flat(self, name: str, parameter: nn.Parameter, rule: Rule) -> _Flat:
        size = parameter.numel()
        sharded = self.world_size > 1 and size >= SMALL
        chunk = -(-size // self.world_size) if sharded else size
        first = min(self.rank * chunk, size) if sharded else 0
        own = min(chunk, size - first)
        return _Flat(
            name=name,
            parameter=parameter,
            rule=rule,
            first=first,
            chunk=chunk,
            exp_avg=parameter.new_zeros(own, requires_grad=False),
            exp_avg_sq=parameter.new_zeros(own, requires_grad=False),
            sharded=sharded,
        )

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, *, lr_mult: float, muon_momentum: float, muon_wd: float) -> None:
        """Update every parameter with the mean of the ranks' gradients.

        All reductions start first; a group is updated as soon as its own arrives, and its gather overlaps
        the next group's update.
        """
        self.steps_done += 1
        stacks = [(stack, *self._reduce_stack(stack)) for stack in self._stacks]
        flats = [(flat, *self._reduce_flat(flat)) for flat in self._flats]
        gathers: list[Callable[[], None]] = []
        for flat, grad, work in flats:
            _wait(work)
            self._step_flat(flat, grad, lr_mult)
            gathers.append(self._gather_flat(flat))
        for stack, grads, work in stacks:
            _wait(work)
            self._step_stack(stack, grads, lr_mult, muon_momentum, muon_wd)
            gathers.append(self._gather_stack(stack))
        for finish in gathers:
            finish()

    def _reduce_stack(self, stack: _Stack) -> tuple[list[Tensor], dist.Work | None]:
        grads = [_gradient(parameter) for parameter in stack.parameters]
        if self.world_size == 1:
            return grads, None
        send = stack.weight_KMN.new_zeros(stack.weight_KMN.shape)
        for slot, grad in zip(send, grads, strict=False):
            slot.copy_(grad)
        receive = torch.empty_like(stack.momentum, dtype=send.dtype)
        work = dist.reduce_scatter_tensor(receive, send, group=self.group, async_op=True)
        return [receive], work

    def _reduce_flat(self, flat: _Flat) -> tuple[Tensor, dist.Work | None]:
        grad = _gradient(flat.parameter).reshape(-1)
        if self.world_size == 1:
            return grad, None
        if not flat.sharded:
            grad = grad.clone()
            return grad, dist.all_reduce(grad, group=self.group, async_op=True)
        send = grad.new_zeros(flat.chunk * self.world_size)
        send[: grad.numel()] = grad
        receive = grad.new_empty(flat.chunk)
        work = dist.reduce_scatter_tensor(receive, send, group=self.group, async_op=True)
        return receive[: flat.exp_avg.numel()], work

    def _step_flat(self, flat: _Flat, grad: Tensor, lr_mult: float) -> None:
        if self.world_size > 1:
            grad = grad / self.world_size
        own = flat.parameter.view(-1)[flat.first : flat.first + flat.exp_avg.numel()]
        if not own.numel():
            return
        adamw(
            [own],
            [grad],
            [flat.exp_avg],
            [flat.exp_avg_sq],
            [],
            [torch.tensor(float(self.steps_done - 1), device=own.device)],
            fused=own.device.type in ("cpu", "cuda", "mps"),
            amsgrad=False,
            beta1=flat.rule.betas[0],
            beta2=flat.rule.betas[1],
            lr=flat.rule.lr * lr_mult,
            weight_decay=flat.rule.weight_decay,
            eps=self.hyper.eps,
            maximize=False,
        )

    def _step_stack(
        self, stack: _Stack, grads: list[Tensor], lr_mult: float, momentum: float, decay: float
    ) -> None:
        if self.world_size > 1:
            grads = list((grads[0] / self.world_size).unbind())
        rows, columns = stack.weight_KMN.shape[1:]
        self._update(
            stack.weight_KMN[stack.first : stack.first + stack.count],
            grads,
            stack.momentum,
            stack.second,
            lr=_scalar(muon_lr(stack.rule.lr, rows, columns) * lr_mult, stack.momentum),
            mu=_scalar(momentum, stack.momentum),
            decay=_scalar(decay, stack.momentum),
            dtype=self._muon_dtype,
        )

    def _gather_stack(self, stack: _Stack) -> Callable[[], None]:
        if self.world_size == 1:
            return _nothing
        own = stack.weight_KMN[stack.first : stack.first + stack.count].clone()
        work = dist.all_gather_into_tensor(stack.weight_KMN, own, group=self.group, async_op=True)
        return lambda: _wait(work)

    def _gather_flat(self, flat: _Flat) -> Callable[[], None]:
        if not flat.sharded:
            return _nothing
        whole = flat.parameter.view(-1)
        own = whole.new_zeros(flat.chunk)
        own[: flat.exp_avg.numel()] = whole[flat.first : flat.first + flat.exp_avg.numel()]
        receive = whole.new_empty(flat.chunk * self.world_size)
        work = dist.all_gather_into_tensor(receive, own, group=self.group, async_op=True)

        def finish() -> None:
            _wait(work)
            whole.copy_(receive[: whole.numel()])

        return finish

    def state_tensors(self) -> dict[str, Tensor]:
        """Return this rank's part of the state (views, not copies); the union over ranks is the whole."""
        state: dict[str, Tensor] = {}
        for stack in self._stacks:
            for i, name in enumerate(stack.names[stack.first : stack.first + stack.count]):
                state[f"{name}/momentum"] = stack.momentum[i]
                state[f"{name}/second"] = stack.second[i]
        for flat in self._flats:
            if flat.exp_avg.numel() and (flat.sharded or self.rank == 0):
                state[f"{flat.name}/exp_avg@{flat.first}"] = flat.exp_avg
                state[f"{flat.name}/exp_avg_sq@{flat.first}"] = flat.exp_avg_sq
        if self.rank == 0:
            state["step"] = torch.tensor([self.steps_done], dtype=torch.int64)
        return state

    @torch.no_grad()
    def load_state_tensors(self, state: Mapping[str, Tensor]) -> None:
        """Load the union of all ranks' `state_tensors`, saved by any number of ranks.

        Raises:
            DataError: a tensor is missing or has another size.
        """
        self.steps_done = int(_take(state, "step", (1,)).item())
        for stack in self._stacks:
            for i, name in enumerate(stack.names[stack.first : stack.first + stack.count]):
                stack.momentum[i].copy_(_take(state, f"{name}/momentum", tuple(stack.momentum[i].shape)))
                stack.second[i].copy_(_take(state, f"{name}/second", tuple(stack.second[i].shape)))
        parts = _parts_by_tensor(state)
        for flat in self._flats:
            for kind, own in (("exp_avg", flat.exp_avg), ("exp_avg_sq", flat.exp_avg_sq)):
                name = f"{flat.name}/{kind}"
                whole = _join(name, parts.get(name, []), flat.parameter.numel())
                own.copy_(whole[flat.first : flat.first + own.numel()])


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _scalar(value: float, beside: Tensor) -> Tensor:
    """Return a 0-d tensor on the device of another; filling it there needs no copy from the host."""
    return torch.full((), value, dtype=torch.float32, device=beside.device)


def _nothing() -> None:
    return None


def _wait(work: dist.Work | None) -> None:
    if work is not None:
        work.wait()


def _take(state: Mapping[str, Tensor], name: str, size: tuple[int, ...]) -> Tensor:
    if name not in state:
        raise DataError(f"optimizer state has no `{name}`")
    if tuple(state[name].shape) != size:
        raise DataError(f"optimizer state `{name}` has shape {tuple(state[name].shape)}, expected {size}")
    return state[name]


def _parts_by_tensor(state: Mapping[str, Tensor]) -> dict[str, list[tuple[int, Tensor]]]:
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    for key, tensor in state.items():
        name, at, offset = key.rpartition("@")
        if at:
            parts.setdefault(name, []).append((int(offset), tensor))
    return parts


def _join(name: str, parts: list[tuple[int, Tensor]], size: int) -> Tensor:
    """Return the flat tensor whose parts start at the given offsets."""
    end = 0
    for offset, part in sorted(parts, key=lambda item: item[0]):
        if offset != end:
            break
        end += part.numel()
    if end != size or not parts:
        raise DataError(f"optimizer state `{name}` is incomplete at element {end} of {size}")
    return torch.cat([part.reshape(-1) for _, part in sorted(parts, key=lambda item: item[0])])
