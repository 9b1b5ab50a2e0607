"""What each flag means for the number that it travels with, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping

FLAGS: Mapping[str, str] = {
    "noisy": "The interval of the median latency is more than a tenth of it wide: compare by the "
    "ratio, or measure again with --rigorous or on a quieter machine.",
    "layout_sensitive": "The model is fast or slow by where its memory lies, by more than a tenth "
    "from process to process: the latency is the median over layouts, yours may be any of them.",
    "few_samples": "Too few timed iterations stand behind the latency for its percentiles or even "
    "its interval: allow a longer --budget, or more process pairs.",
    "not_warm": "Times still moved when a process was first timed, so that its latency may be too "
    "long: measure again, with a longer --budget if there was one.",
    "contended": "Something else had the cores while this was timed, so that the latency is too "
    "long: close what the note names, or leave it a core with --threads.",
    "throttled": "Clocks were held down or moved while this was timed, so that the latency holds "
    "for that state alone: let the machine cool, or fix a lower clock.",
    "foreign_process": "Other processes were on the GPU and may have taken time and memory: stop "
    "them, or choose another one with --device.",
    "host_bound": "Python launched kernels more slowly than the GPU ran them, so that the latency "
    "tells of launching: --runtime cudagraph or a larger --batch-size shows what the GPU can do.",
    "wrong_output": "The runtime does not give the answers of eager PyTorch, so that its time says "
    "nothing and gets no verdict: the note says where they differ.",
    "graph_breaks": "Python ran between several graphs of torch.compile, which could not hold the "
    "model in one: the note names reasons and places to change.",
    "recompiles": "Something that torch.compile relied on changed on the same input, so that it "
    "compiled again: the note names what to keep constant.",
    "no_boxes": "The detector found nothing, as random weights do, so that post-processing is "
    "cheaper than it will be: give it trained weights with --checkpoint.",
    "impossible": "A sweep's product holds cases that cannot be, such as a size that a model does "
    "not take; nothing was tried: the row says why.",
    "oom": "The device has too little memory for this model, so that there is no latency: choose a "
    "smaller --batch-size or a smaller type.",
    "simulated": "The device only pretends to work, so that its times and throughput mean nothing: "
    "measure again on a real one.",
    "interrupted": "The run was stopped before its planned end, so that less stands behind the "
    "figures than was asked for: go on with --resume.",
    "uncounted_ops": "Operators without a rule are missing from the multiply-adds, which are too "
    "few by what these cost: see which by `datbench profile MODEL --by-op`.",
    "macs_disagree": "The two counters of multiply-adds differ by more than 2 %, so that one of "
    "them is wrong: look at the modules in the note before the figure is quoted.",
    "one_counter": "Only one counter saw some or all of the multiply-adds, so that nothing checks "
    "them: hold the figure against a published one.",
    "not_counted": "Neither counter could follow the model, so that there are no multiply-adds: "
    "the note tells what stopped them.",
}
