"""What stands before and behind a network where it is used: a photograph in, boxes or classes out.

`nms`: the forward and non-maximum suppression, `forward_ms_median` and `postprocess_ms_median`.
`end-to-end`: before that, photographs that are decoded already are resized or letterboxed and
brought to the device, `preprocess_ms_median`; behind it, boxes are scaled to the photographs, and
the answers of classifiers are the five likeliest classes. Beside a runtime with threads of its own
torch does its part on one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from datbench.inputs import opened, prepared
from datbench.parts import PartedStep
from datbench.plan import Case
from datbench.records import Measurement
from datbench.runtimes import Running

if TYPE_CHECKING:
    import torch

CONFIDENCE, OVERLAP, MOST_BOXES = 0.25, 0.7, 300  # what ultralytics predicts with
CLASSES = 5


class DeployedStep(PartedStep):
    """Runs a network with what stands before and behind it.

    Args:
        case: what was asked for; its scope is "nms" or "end-to-end".
        inputs: (b, c, h, w) on the device, from which `running` reads.
        running: the network.
        mark: notes the time at this point of the device's work.
    """

    def __init__(
        self, case: Case, inputs: torch.Tensor, running: Running, mark: Callable[[], Any]
    ) -> None:
        super().__init__(mark)
        work = case.workload
        self._case, self._inputs, self._running = case, inputs, running
        # Two pools of threads that spin would take turns on the cores.
        self._threads = (1, work.threads) if running.own_threads else None
        self._images = opened(work) if work.scope == "end-to-end" else []
        self.parts = ("forward", "postprocess")
        if self._images:
            self.parts = ("preprocess", *self.parts)

    def __call__(self) -> list[Any]:
        """Run once.

        Returns:
            For each image, boxes (n, 6) with corners, score and class, or the likeliest classes.
        """
        import torch

        if self._threads:
            torch.set_num_threads(self._threads[0])
        marks = [self.mark()]
        with torch.inference_mode():
            if self._images:
                work, task = self._case.workload, self._case.task
                for i, pixels in enumerate(prepared(self._images, work, task)):
                    self._inputs[i].copy_(pixels)
                marks.append(self.mark())
            out = self._running.step()
            marks.append(self.mark())
            tensors = self._running.outputs(out)
            found = self._boxes(tensors) if self._case.task == "detect" else _classes(tensors)
        marks.append(self.mark())
        self.marks.append(tuple(marks))
        if self._threads:
            torch.set_num_threads(self._threads[1])
        return found

    def measurements(self) -> Sequence[Measurement]:
        """Count the boxes of a step; random weights find none, so that suppression has no work."""
        if self._case.task != "detect":
            return []
        boxes = sum(len(found) for found in self()) / len(self._inputs)
        doubt = (
            f"no_boxes: no box scores {CONFIDENCE:g}, so that non-maximum suppression had nothing "
            "to do"
        )
        return [Measurement("boxes_img", boxes, () if boxes else (doubt,))]

    def _boxes(self, tensors: Sequence[torch.Tensor]) -> list[Any]:
        from ultralytics.utils.nms import non_max_suppression
        from ultralytics.utils.ops import scale_boxes

        predictions = tensors[0].float()
        found = non_max_suppression(predictions, CONFIDENCE, OVERLAP, max_det=MOST_BOXES)
        if not self._images:
            return found
        for i, boxes in enumerate(found):
            image = self._images[i % len(self._images)]
            scale_boxes(self._inputs.shape[2:], boxes[:, :4], (image.height, image.width))
        return [boxes.cpu() for boxes in found]


def _classes(tensors: Sequence[torch.Tensor]) -> list[Any]:
    scores = tensors[0].float().softmax(-1)
    return scores.topk(min(CLASSES, scores.shape[-1])).indices.tolist()
