"""One optimizer step's gradients: every head its own task's, the shared trunk a weighted sum of all.

Each head's loss goes back as far as the frames that the trunk handed out. What arrives there is combined as the
weighting method says, and goes on through the trunk once: K tasks cost no more than their summed loss would, and the
trunk's gradient is exactly the weighted sum of the tasks' own. A method that looks at the gradients' inner products
sees those of the gradients with respect to these frames, all blocks together.

A loss is summed over its labelled utterances and divided by their number in the whole step, over all processes and
accumulated batches: an utterance without a label, and a batch without a task, change nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from speech_mtl.data import Batch
from speech_mtl.model import SpeechModel
from speech_mtl.tasks import Frames
from speech_mtl.weighting import Weighting

Targets = dict[str, dict[str, Tensor]]
"""By task: what `Task.targets` gives."""


class Part(nn.Module):
    """Modules of a model with the method that runs them: what the engine prepares for several processes."""

    def __init__(self, run: Callable[..., Any], *modules: nn.Module):
        super().__init__()
        self.run, self.modules_used = run, nn.ModuleList(modules)

    def forward(self, *inputs: Any) -> Any:
        return self.run(*inputs)


class SharedGradients:
    """The model's trunk and heads, prepared apart, so that each is exchanged when its own backward pass ends."""

    def __init__(self, accelerator: Accelerator, model: SpeechModel, weighting: Weighting):
        self.accelerator, self.model, self.weighting = accelerator, model, weighting
        model.train()  # a new model says that it is, and its frozen parts are not yet as in use
        self.names = model.learning()
        self.trunk_learns = any(p.requires_grad for p in model.encoder.parameters())
        self.trunk = self._prepared(Part(model.trunk, model.features, model.encoder))
        self.heads = {name: self._prepared(Part(model.head, *model.own_parts(name))) for name in self.names}

    def parts(self) -> list[nn.Module]:
        """Those that learn."""
        return [*([self.trunk] if self.trunk_learns else []), *self.heads.values()]

    def backward(
        self, group: list[Batch], targets: list[Targets], scales: dict[str, float], augment: bool
    ) -> tuple[Tensor, Tensor]:
        """Add one step's gradients up in the weights' `.grad`; returns (mean losses (K,), tasks with a label (K,)).

        The K tasks are those of `names`; the others' losses reach no weight that is trained. `scales`: each task's
        factor where its gradient enters the trunk; the weighting method is told the losses of those that enter it.
        `augment`: with SpecAugment and company.
        """
        accelerator = self.accelerator
        device, processes, K = accelerator.device, accelerator.num_processes, len(self.names)
        counts = [[t[name]["mask"].sum().item() for name in self.names] for t in targets]
        counts_K = accelerator.reduce(torch.tensor(counts, device=device).sum(0), "sum")
        present_K = counts_K.cpu() > 0
        entering_K = present_K & torch.tensor([scales[name] != 0 for name in self.names])  # a probe changes no trunk
        gram_KK = torch.zeros(K, K, dtype=torch.float64, device=device)
        losses_K = torch.zeros(K, device=device)
        held: list[tuple[list[Tensor], list[list[Tensor]]]] = []
        if not self.model.training:  # passing over a large frozen trunk's modules takes time
            self.model.train()
        for i, (batch, batch_targets) in enumerate(zip(group, targets, strict=True)):
            last = i == len(group) - 1
            shared = self._trunk_frames(batch, augment, last)
            # the trunk's frames as the heads' inputs: their gradients end here
            leaves = [block.detach().requires_grad_(block.requires_grad) for block in shared.blocks]
            arriving = []
            for k, name in enumerate(self.names):
                own = {key: value.to(device) for key, value in batch_targets[name].items()}
                with accelerator.autocast(), self._exchange(self.heads[name], last):
                    output = self.heads[name](name, shared._replace(blocks=leaves), own["mask"])
                    loss = self.model.task(name).loss(output, own)
                    # times the processes: the engine averages over them, the count is already of all of them
                    loss = loss * processes / counts_K[k].clamp(min=1)
                    if loss.requires_grad:  # not that of a frozen head on blocks below those that are trained
                        loss.backward()
                losses_K[k] += loss.detach()
                arriving.append(self._arrived(leaves, scales[name]))
                for leaf in leaves:
                    leaf.grad = None
            held.append((shared.blocks if self.trunk_learns else [], arriving))
            if self.weighting.needs_gram:
                gram_KK += gram(arriving) if any(arriving) else 0  # the weights wait for the whole step's
            else:
                self._into_trunk(held, self.weighting.weights(None, entering_K), last)
        if self.weighting.needs_gram:
            gram_KK = accelerator.reduce(gram_KK, "sum").cpu() / processes**2
            self._into_trunk(held, self.weighting.weights(gram_KK, entering_K), True)
        losses_K = (accelerator.reduce(losses_K, "sum") / processes).cpu()
        self.weighting.after_step(losses_K, entering_K)
        return losses_K, present_K

    def _trunk_frames(self, batch: Batch, augment: bool, last: bool) -> Frames:
        """The trunk's frames of a batch; without a graph where it is frozen, read where they are kept."""
        device = self.accelerator.device
        if batch.frames is not None:
            return batch.frames.to(device)
        with self.accelerator.autocast(), self._exchange(self.trunk, last), torch.set_grad_enabled(self.trunk_learns):
            return self.trunk(batch.audio_BN.to(device), batch.samples_B.to(device), augment)

    def _arrived(self, leaves: list[Tensor], scale: float) -> list[Tensor]:
        """One task's gradients with respect to the trunk's frames; none where nothing is to be done with them."""
        if not self.trunk_learns:
            return []
        return [torch.zeros_like(x) if x.grad is None else x.grad * scale for x in leaves]

    def _into_trunk(self, held: list[tuple[list[Tensor], list[list[Tensor]]]], weights_K: Tensor, last: bool) -> None:
        """Send the weighted sum of the tasks' gradients through the trunk of every held batch, and let these go."""
        while held:
            blocks, arriving = held.pop(0)
            trained = [i for i, block in enumerate(blocks) if block.requires_grad]
            if trained:
                weighted = list(zip(weights_K.tolist(), arriving, strict=True))
                with self._exchange(self.trunk, last and not held):
                    torch.autograd.backward([blocks[i] for i in trained], [sum_of(weighted, i) for i in trained])

    def _prepared(self, part: Part) -> nn.Module:
        """A part with nothing to train needs no exchange, and may have none."""
        # it speaks of the stride of a dimension of size 1, which is never used: nothing is copied
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return self.accelerator.prepare(part) if any(p.requires_grad for p in part.parameters()) else part

    def _exchange(self, part: nn.Module, last: bool) -> AbstractContextManager:
        """Gradients are exchanged between processes only with the last of the accumulated batches."""
        return nullcontext() if last else self.accelerator.no_sync(part)


def sum_of(weighted: list[tuple[float, list[Tensor]]], i: int) -> Tensor:
    return torch.stack([weight * gradients[i] for weight, gradients in weighted]).sum(0)


def gram(gradients: list[list[Tensor]]) -> Tensor:
    """Inner products (K, K), float64, of K gradients, each a list of tensors."""
    K = len(gradients)
    products = torch.zeros(K, K, dtype=torch.float64, device=gradients[0][0].device)
    for i in range(K):
        for j in range(i, K):
            products[i, j] = products[j, i] = sum(
                (x.double() * y.double()).sum() for x, y in zip(gradients[i], gradients[j], strict=True)
            )
    return products
