"""A training step: forward and loss, backward, optimiser, on targets that fit the input.

Classifiers learn by cross-entropy, detectors by ultralytics' own loss with its default gains, and
what is neither (blocks, feature extractors) by the mean square of what it returns. The learning
rate is so small that hundreds of steps leave the network what it was: it is the time and the
memory that are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from datbench.inputs import load_targets
from datbench.parts import PartedStep
from datbench.plan import Case

if TYPE_CHECKING:
    import torch
    from torch import nn

LEARNING_RATE = 1e-7
MOMENTUM = 0.9  # of SGD


class TrainStep(PartedStep):
    """Trains a model on one batch, over and over.

    Args:
        case: what was asked for; `optimizer` is "adamw" or "sgd".
        model: on the device, in train mode.
        inputs: (b, c, h, w) on the device.
        autocast: makes the context of the forward and the loss.
        mark: notes the time at this point of the device's work.
        backward: goes back from the loss, by autograd's engine.
        to: moves a target to the device of the inputs.
    """

    parts = ("forward", "backward", "optimizer")

    def __init__(
        self,
        case: Case,
        model: nn.Module,
        inputs: torch.Tensor,
        autocast: Callable[[], Any],
        mark: Callable[[], Any],
        *,
        backward: Callable[[torch.Tensor], None] | None = None,
        to: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        import torch

        super().__init__(mark)
        work = case.workload
        to = to or (lambda tensor: tensor.to(inputs.device))
        self._backward = backward or torch.Tensor.backward
        self.targets = {name: to(t) for name, t in load_targets(work, case.task).items()}
        self._autocast = autocast
        self._loss = _detection_loss if case.task == "detect" else _loss
        self._model, self._inputs = model, inputs
        trained = [p for p in model.parameters() if p.requires_grad]
        together = inputs.device.type == "cuda"  # torch's own choice for plain tensors
        if work.optimizer == "sgd":
            self._optimizer: torch.optim.Optimizer = torch.optim.SGD(
                trained, LEARNING_RATE, momentum=MOMENTUM, foreach=together
            )
        else:
            self._optimizer = torch.optim.AdamW(trained, LEARNING_RATE, foreach=together)
        scaled = work.amp and work.dtype == "float16"
        self._scaler = torch.amp.GradScaler(inputs.device.type, enabled=scaled)

    def __call__(self) -> torch.Tensor:
        """Train for one step.

        Returns:
            The loss, a scalar.
        """
        mark = self.mark
        started = mark()
        self._optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss = self._loss(self._model, self._inputs, self.targets)
        forward = mark()
        self._backward(self._scaler.scale(loss))
        backward = mark()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.marks.append((started, forward, backward, mark()))
        return loss.detach()

    def resident(self) -> list[torch.Tensor]:
        """Tensors beside weights and input that stay between two steps."""
        import torch

        states = self._optimizer.state.values()
        kept = [t for state in states for t in state.values() if torch.is_tensor(t)]
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        return [*self.targets.values(), *gradients, *kept]


def _loss(model: nn.Module, inputs: torch.Tensor, targets: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of each output that can be logits, or else the mean square of all outputs."""
    import torch.nn.functional as F

    from zoo.outputs import tensors_of

    outputs = [y for y in tensors_of(model(inputs)) if y.requires_grad]
    logits = [y for y in outputs if y.ndim == 2 and len(y) == len(inputs)]
    if logits and "labels" in targets:
        labels = targets["labels"]
        losses = [F.cross_entropy(y, labels % y.shape[1]) for y in logits]
    else:
        losses = [y.float().square().mean() for y in outputs]
    return sum(losses[1:], start=losses[0])


def _detection_loss(
    model: nn.Module, inputs: torch.Tensor, targets: dict[str, torch.Tensor]
) -> torch.Tensor:
    from ultralytics.cfg import get_cfg

    detector: Any = model
    if getattr(detector, "criterion", None) is None:
        detector.args = get_cfg()  # gains of the parts of the loss
    parts, _ = detector.loss({"img": inputs, **targets})
    return parts.sum()
