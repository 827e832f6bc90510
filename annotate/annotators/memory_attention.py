"""SAM 2's memory attention, made so that the keys and values of a remembered frame are computed once.

transformers projects and rotates the memories of seven frames again for every frame and in every layer. On a GPU that took
more time than the attention itself. A key is a linear function of three things: a memory, the positions of its cells, and
its age in frames. So the part of memory and positions is computed when the frame is seen, and the part of the age, which
is the same for all frames, when the model is loaded. Results differ from transformers' only by the order of sums.

A CPU would gain little from that. There `PlainMemoryAttention` computes what transformers does, bit by bit, with fewer copies.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F


class Memory(NamedTuple):
    """What a frame leaves for later ones, of several lanes (objects that are followed together).

    Attributes:
        keys, values: of each layer, (lanes, heads, cells, channels).
        pointer: the object pointer, (lanes, channels).
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    pointer: torch.Tensor

    def of(self, lanes: int) -> "Memory":
        """The memory of the first lanes."""
        return Memory(
            [key[:lanes] for key in self.keys], [value[:lanes] for value in self.values], self.pointer[:lanes]
        )


def joined(memories: Sequence[Memory]) -> Memory:
    """The memory of several lanes, of those of each."""
    keys, values = (
        [torch.cat(layer) for layer in zip(*(getattr(memory, name) for memory in memories), strict=True)]
        for name in ("keys", "values")
    )
    return Memory(keys, values, torch.cat([memory.pointer for memory in memories]))


class MemoryAttention:
    """Computes what a `Sam2VideoMemoryAttention` does, but for the order of sums."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        """Use the memory attention of a `Sam2VideoModel`, which has its device already and computes in a dtype."""
        self._module, self._dtype = model.memory_attention, dtype
        with torch.no_grad():
            cosines, sines = self._module.rotary_emb(model.no_memory_embedding, self._module.position_ids)
            self._turns = torch.complex(cosines[0, :, ::2], sines[0, :, ::2])  # (cells, channels / 2)
            self._ages = self._keys_of_ages(model.memory_temporal_positional_encoding)

    def _keys_of_ages(self, ages: torch.Tensor) -> list[torch.Tensor]:
        """The part of the keys that comes from the ages, (ages, 1, 1, 64): of each layer (ages, heads, cells, channels)."""
        found = []
        for attention in self._over_memory():
            keys = _heads(attention, F.linear(ages[:, 0], attention.k_proj.weight))
            found.append(self._turned(keys.expand(-1, -1, len(self._turns), -1)).to(self._dtype))
        return found

    def remember(self, features: torch.Tensor, encoding: torch.Tensor, pointer: torch.Tensor) -> Memory:
        """The memory of a frame.

        Args:
            features: of the memory encoder, (cells, lanes, 64).
            encoding: their position encoding, of the same shape.
            pointer: the object pointer, (lanes, channels).
        """
        memory = features.transpose(0, 1).to(self._dtype)
        located = (features + encoding).transpose(0, 1).to(self._dtype)
        keys, values = [], []
        for attention in self._over_memory():
            keys.append(self._turned(_heads(attention, attention.k_proj(located))))
            values.append(_heads(attention, attention.v_proj(memory)))
        return Memory(keys, values, pointer)

    def __call__(
        self,
        features: torch.Tensor,
        encoding: torch.Tensor,
        memories: Sequence[tuple[int, Memory]],
        pointers: torch.Tensor,
        pointer_encoding: torch.Tensor,
    ) -> torch.Tensor:
        """The features of the frames at hand, with what is remembered in them: (lanes, cells, channels).

        Args:
            features: (cells, lanes, channels).
            encoding: their position encoding, of the same shape.
            memories: with their ages in frames, 0 for the prompted frame.
            pointers, pointer_encoding: object pointers as tokens and their encoding in time, (tokens, lanes, 64).
        """
        queries = (features + 0.1 * encoding).transpose(0, 1)
        remembered = self._remembered(memories, pointers, pointer_encoding)
        for layer, (keys, values) in zip(self._module.layers, remembered, strict=True):
            attention, read = layer.self_attn, layer.layer_norm1(queries).to(self._dtype)
            own = self._turned(_heads(attention, attention.k_proj(read)))
            queries = queries + self._attend(attention, read, own, _heads(attention, attention.v_proj(read)))
            read = layer.layer_norm2(queries).to(self._dtype)
            queries = queries + self._attend(layer.cross_attn_image, read, keys, values)
            read = layer.layer_norm3(queries)
            queries = queries + layer.linear2(layer.activation(layer.linear1(read)))
        return self._module.layer_norm(queries)

    def _remembered(
        self, memories: Sequence[tuple[int, Memory]], pointers: torch.Tensor, pointer_encoding: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Of each layer the keys and values of all memories and pointers, (lanes, heads, tokens, channels)."""
        tokens, located = (each.transpose(0, 1).to(self._dtype) for each in (pointers, pointers + pointer_encoding))
        known = len(memories) * len(self._turns)
        for number, attention in enumerate(self._over_memory()):
            new = _heads(attention, attention.k_proj(located)), _heads(attention, attention.v_proj(tokens))
            keys = torch.cat([*(memory.keys[number] for _, memory in memories), new[0]], dim=2)
            # The last of the ages is that of the prompted frame.
            keys[:, :, :known] += torch.cat([self._ages[number][age - 1] for age, _ in memories], dim=1)
            yield keys, torch.cat([*(memory.values[number] for _, memory in memories), new[1]], dim=2)

    def _over_memory(self) -> list[Any]:
        return [layer.cross_attn_image for layer in self._module.layers]

    def _attend(self, attention: Any, read: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        queries = self._turned(_heads(attention, attention.q_proj(read)))
        found = F.scaled_dot_product_attention(queries, keys, values, scale=attention.scaling)
        return attention.o_proj(found.transpose(1, 2).flatten(2))

    def _turned(self, tokens: torch.Tensor) -> torch.Tensor:
        """Rotary position encoding of (..., cells, channels): each pair of channels is turned as a complex number.

        The cells may be those of several frames, one frame after the other.
        """
        pairs = torch.view_as_complex(tokens.float().unflatten(-1, (-1, 2)).unflatten(-3, (-1, len(self._turns))))
        return torch.view_as_real(pairs * self._turns).flatten(-2).flatten(-3, -2).to(tokens.dtype)


class PlainMemoryAttention(MemoryAttention):
    """Computes what a `Sam2VideoMemoryAttention` does, bit by bit.

    Of a memory, keys and values are the features and the position encoding that it is made of, (lanes, cells, 64).
    """

    def _keys_of_ages(self, ages: torch.Tensor) -> list[torch.Tensor]:
        return list(ages)  # no keys yet: the encodings themselves

    def remember(self, features: torch.Tensor, encoding: torch.Tensor, pointer: torch.Tensor) -> Memory:
        """As `MemoryAttention.remember`."""
        return Memory([features.transpose(0, 1)], [encoding.transpose(0, 1)], pointer)

    def _remembered(
        self, memories: Sequence[tuple[int, Memory]], pointers: torch.Tensor, pointer_encoding: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        tokens = torch.cat([*(memory.keys[0] for _, memory in memories), pointers.transpose(0, 1)], dim=1).float()
        aged = [memory.values[0] + self._ages[age - 1] for age, memory in memories]
        located = tokens + torch.cat([*aged, pointer_encoding.transpose(0, 1)], dim=1)
        known = len(memories) * len(self._turns)
        for attention in self._over_memory():
            keys = _heads(attention, attention.k_proj(located))
            keys[:, :, :known] = self._turned(keys[:, :, :known])
            yield keys, _heads(attention, attention.v_proj(tokens))


def _heads(attention: Any, tokens: torch.Tensor) -> torch.Tensor:
    """(lanes, tokens, heads x channels) -> (lanes, heads, tokens, channels)."""
    return tokens.unflatten(-1, (attention.num_attention_heads, attention.head_dim)).transpose(1, 2)
