"""An ONNX graph that is being rewritten: who writes every value, who reads it, and the constants."""

from dataclasses import dataclass, field
from typing import Self

import onnx
from onnx import NodeProto, TensorProto


@dataclass
class OnnxGraph:
    """What is known of `graph` while its nodes are written anew, in their order.

    graph      holds the constants, to which new ones are added
    writers    {value: the node that returns it}
    readers    {value: the nodes that read it}; the caller, who reads what the graph returns, is one of type "Caller"
    constants  {name: tensor}
    added      nodes to be written before the one that is being rewritten
    """

    graph: onnx.GraphProto
    writers: dict[str, NodeProto]
    readers: dict[str, list[NodeProto]]
    constants: dict[str, TensorProto]
    added: list[NodeProto] = field(default_factory=list)

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> Self:
        """What `graph` holds before it is rewritten."""
        readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for value in node.input:
                readers.setdefault(value, []).append(node)
        for result in graph.output:
            readers.setdefault(result.name, []).append(NodeProto(op_type="Caller", input=[result.name]))
        return cls(
            graph=graph,
            writers={value: node for node in graph.node for value in node.output},
            readers=readers,
            constants={tensor.name: tensor for tensor in graph.initializer},
        )
