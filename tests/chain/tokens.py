"""Layers that take tokens: only the first of a model can be one."""

from __future__ import annotations

from typing import ClassVar

from chain.layer import Layer, layer_kind

__all__ = ["Embedding", "OneHot"]


@layer_kind
class OneHot(Layer):
    """Token in ``[0, num_classes)`` -> one-hot vector (``torch.nn.functional.one_hot``)."""

    num_classes: int
    kind: ClassVar[str] = "one_hot"
    takes_tokens: ClassVar[bool] = True

    @property
    def input_size(self) -> int:
        return self.num_classes

    @property
    def output_size(self) -> int:
        return self.num_classes

    @property
    def work(self) -> int:
        return 0  # a column of the next layer's weights is looked up


@layer_kind
class Embedding(Layer):
    """Token -> row of a table (``torch.nn.Embedding``)."""

    num_embeddings: int
    embedding_dim: int
    kind: ClassVar[str] = "embedding"
    takes_tokens: ClassVar[bool] = True

    @property
    def input_size(self) -> int:
        return self.num_embeddings

    @property
    def output_size(self) -> int:
        return self.embedding_dim

    @property
    def work(self) -> int:
        return self.embedding_dim

    def tensors(self) -> dict[str, tuple[int, ...]]:
        return {f"{self.name}.weight": (self.num_embeddings, self.embedding_dim)}
