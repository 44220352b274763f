"""The network of a published model in PyTorch again, from the weights that its ONNX file holds.

The exporter keeps the names of the weights. A batch norm it has folded into the convolution before it, as a bias named
after that one's weight: here the norm gets that bias and leaves all else as it is. Of a linear layer of sequences it
has turned the weight round, under no name: it is what is multiplied by before the layer's bias is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from exporter.errors import VerifyError
from exporter.onnx import TrainedNetwork
from exporter.recipes.base import Task

_FOLDED = "_bias"


def network_of(task: Task, file: Path) -> TrainedNetwork:
    """The recipe's network with the file's weights. Raises VerifyError where the file does not hold all of them."""
    graph = onnx.load(file).graph
    found = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}
    weights = found | _turned(graph, found)
    network = task.network()
    convolution = ""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            convolution = name
        elif isinstance(module, nn.BatchNorm2d):
            bias = weights.get(f"{convolution}.weight{_FOLDED}")
            if bias is None or len(bias) != module.num_features:
                raise VerifyError(f"{file}: it does not hold {name} as folded into {convolution}")
            ones = torch.ones(module.num_features)
            weights |= {f"{name}.weight": ones, f"{name}.bias": bias}
            weights |= {f"{name}.running_mean": 0 * ones, f"{name}.running_var": ones - module.eps}
            weights[f"{name}.num_batches_tracked"] = torch.tensor(0)
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in weights or weights[name].shape != wanted[name].shape]
    if missing:
        raise VerifyError(f"{file}: it does not hold the weights {', '.join(missing)}")
    network.load_state_dict({name: weights[name] for name in wanted})
    return TrainedNetwork(task, network.eval())


def _turned(graph: onnx.GraphProto, found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of linear layers of sequences, by their names, as PyTorch has them."""
    makers = {name: node for node in graph.node for name in node.output}
    weights = {}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        bias = next((name for name in node.input if name in found and name.endswith(".bias")), "")
        product = next((makers[name] for name in node.input if name in makers), None)
        if bias and product is not None and product.op_type == "MatMul" and product.input[1] in found:
            weights[f"{bias.removesuffix('.bias')}.weight"] = found[product.input[1]].T.contiguous()
    return weights
