"""Programs whose arguments and results are objects, and architectures with masks, caches and graphs of their own."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from zoo.programs import Call, Layers, normal, program


def drawn(g: Generator, scale: float, *shape: int) -> Tensor:
    return scale * torch.randn(shape, generator=g, dtype=torch.float64)


# transformers with masks of their own


def translation(mask: Callable[[Generator, int], dict[str, Any]]) -> Callable[[Generator, float], Call]:
    return lambda g, scale: ((drawn(g, scale, 2, 5, 4), drawn(g, scale, 2, 3, 4)), mask(g, 3))


def causal(g: Generator, n: int) -> dict[str, Any]:
    return {"tgt_mask": nn.Transformer.generate_square_subsequent_mask(n, dtype=torch.float64), "tgt_is_causal": True}


def undeclared(g: Generator, n: int) -> dict[str, Any]:
    return {"tgt_mask": nn.Transformer.generate_square_subsequent_mask(n, dtype=torch.float64)}


def padded(g: Generator, n: int) -> dict[str, Any]:
    source, target = torch.zeros(2, 5, dtype=torch.bool), torch.zeros(2, n, dtype=torch.bool)
    source[0, 3:], target[1, 2:] = True, True
    return {"src_key_padding_mask": source, "memory_key_padding_mask": source, "tgt_key_padding_mask": target}


def boolean(g: Generator, n: int) -> dict[str, Any]:
    ahead = torch.triu(torch.ones(n, n, dtype=torch.bool), 1)
    near = (torch.arange(5)[:, None] - torch.arange(5)).abs() > 2
    return {"src_mask": near, "tgt_mask": ahead, "memory_mask": torch.zeros(n, 5, dtype=torch.bool)}


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Transformer(4, 2, 1, 1, 6, dropout=0.0, batch_first=True)

    def forward(self, src: Tensor, tgt: Tensor, **masks: Any) -> Tensor:
        return self.body(src, tgt, **masks)


program("transformer_causal", translation(causal))(Translator)
program("transformer_mask_undeclared", translation(undeclared))(Translator)
program("transformer_padded", translation(padded))(Translator)
program("transformer_boolean", translation(boolean), slow=True)(Translator)


@program("encoder_with_own_mask", normal(2, 4, 4))
class EncoderWithOwnMask(nn.Module):
    """The mask is made in forward, of the argument's own padding."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        padding = x[..., 0] < -0.8
        padding = padding & ~padding.all(1, keepdim=True)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return self.body(x, mask=mask, src_key_padding_mask=padding)


# graphs


def graph(g: Generator, scale: float) -> tuple[Tensor, Tensor]:
    edges = (
        torch.tensor([[0, 1, 2, 3, 0, 4], [1, 2, 0, 4, 3, 1]]) if scale > 1.5 else torch.tensor([[0, 2, 3], [1, 2, 4]])
    )
    return drawn(g, scale, 5, 3), edges


class Convolution(nn.Module):
    """A graph convolution (Kipf & Welling 2017), as PyG writes it: self loops, normalisation, a cache, scatter."""

    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.lin, self.bias = nn.Linear(size, out, bias=False), nn.Parameter(torch.zeros(out))
        self.cached = False
        self._cached: tuple[Tensor, Tensor] | None = None

    def norm(self, edges: Tensor, weight: Tensor | None, count: int, dtype: Any) -> tuple[Tensor, Tensor]:
        weight = torch.ones(edges.shape[1], dtype=dtype) if weight is None else weight
        row, col = edges
        kept = row != col
        loops = torch.arange(count)
        own = torch.ones(count, dtype=dtype)
        own[row[~kept]] = weight[~kept]
        edges = torch.cat([edges[:, kept], torch.stack([loops, loops])], 1)
        weight = torch.cat([weight[kept], own])
        row, col = edges
        degree = torch.zeros(count, dtype=dtype).scatter_add_(0, col, weight)
        inverse = degree.pow_(-0.5)
        inverse.masked_fill_(inverse == float("inf"), 0)
        return edges, inverse[row] * weight * inverse[col]

    def forward(self, x: Tensor, edges: Tensor, weight: Tensor | None = None) -> Tensor:
        if edges.numel() > 0 and int(edges.max()) >= x.shape[0]:
            raise ValueError("an edge leads nowhere")
        edges, weight = self.norm(edges, weight, x.shape[0], x.dtype)
        h = self.lin(x)
        message = weight[:, None] * h.index_select(0, edges[0])
        out = torch.zeros(x.shape[0], h.shape[1], dtype=h.dtype)
        return out.scatter_add_(0, edges[1][:, None].expand_as(message), message) + self.bias


class Data:
    """Nodes and edges in one object, as PyG's `Data`: attributes kept in a store behind `__getattr__`."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__["_store"] = dict(fields)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_store"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def num_nodes(self) -> int:
        return int(self.x.shape[0])


@program("graph_convolution", lambda g, scale: (graph(g, scale), {}))
class GraphConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Convolution(3, 4), Convolution(4, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.two(self.one(x, edges).relu(), edges)


@program("graph_object", lambda g, scale: ((Data(**dict(zip(("x", "edges"), graph(g, scale), strict=True))),), {}))
class GraphObject(GraphConvolution):
    def forward(self, data: Data) -> Tensor:  # type: ignore[override]
        h = super().forward(data.x, data.edges)
        return h.sum(0) / data.num_nodes


# objects in and out


@dataclass
class Batch:
    x: Tensor
    scale: float = 2.0
    more: Tensor | None = None


@dataclass
class Answer:
    logits: Tensor
    hidden: tuple[Tensor, ...]
    loss: Tensor | None = None


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


@program("dataclass_in_and_out", lambda g, scale: ((Batch(drawn(g, scale, 5, 3), 1.5),), {}))
class DataclassInAndOut(Layers):
    def forward(self, batch: Batch) -> Answer:
        h = self.first(batch.x).tanh() * batch.scale
        return Answer(self.last(h), (h, self.second(h)))


@program("dict_in_and_out", lambda g, scale: (({"x": drawn(g, scale, 5, 3), "flags": {"on": True}},), {}))
class DictInAndOut(Layers):
    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        h = self.first(batch["x"]).tanh()
        return OrderedDict(logits=self.last(h), hidden=[h] if batch["flags"]["on"] else [], name="answer")


@program("namedtuple_in_and_out", lambda g, scale: ((Pair(drawn(g, scale, 5, 3), drawn(g, scale, 5, 4)),), {}))
class NamedtupleInAndOut(Layers):
    def forward(self, pair: Pair) -> Pair:
        h = self.first(pair.a).tanh() + pair.b
        return Pair(self.last(h), h)


@program("dict_written_to", lambda g, scale: (({"x": drawn(g, scale, 5, 3)},), {}))
class DictWrittenTo(Layers):
    """Forward leaves a value in its argument."""

    def forward(self, batch: dict[str, Any]) -> Tensor:
        batch["hidden"] = self.first(batch["x"]).tanh()
        return self.last(batch["hidden"])


@dataclass(frozen=True, slots=True)
class Frozen:
    x: Tensor
    more: Pair


@program("frozen_with_slots", lambda g, scale: ((Frozen(drawn(g, scale, 5, 3), Pair(*[drawn(g, scale, 4)] * 2)),), {}))
class FrozenWithSlots(Layers):
    def forward(self, batch: Frozen) -> tuple[Frozen, list[Batch]]:
        h = self.first(batch.x) + batch.more.a * batch.more.b
        return Frozen(self.last(h), batch.more), [Batch(h)]


class Typed:
    """A tensor, beside a dtype and a function, which are no leaves."""

    def __init__(self, x: Tensor) -> None:
        self.dtype, self.apply, self.x = x.dtype, torch.tanh, x


@program("object_with_a_dtype", lambda g, scale: ((Typed(drawn(g, scale, 5, 3)),), {}))
class ObjectWithADtype(Layers):
    def forward(self, typed: Typed) -> Typed:
        return Typed(self.last(typed.apply(self.first(typed.x.to(typed.dtype)))))


class Encoding(UserDict[str, Any]):
    """A mapping with attributes, as a tokenizer returns it."""

    def __getattr__(self, name: str) -> Any:
        if name == "data":
            raise AttributeError(name)
        return self.data[name]


@program("mapping_in", lambda g, scale: ((Encoding(ids=torch.randint(0, 5, (2, 4), generator=g)),), {}))
class MappingIn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 2)

    def forward(self, batch: Any) -> Tensor:
        return self.head(self.table(batch.ids).mean(1))


class Box:
    """An object with a tensor, and a method that works on it."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def moved(self, by: float) -> Box:
        return Box(self.x + by)


@program("object_in_and_out", lambda g, scale: ((Box(drawn(g, scale, 5, 3)),), {}))
class ObjectInAndOut(Layers):
    def forward(self, box: Box) -> Box:
        return Box(self.last(self.first(box.moved(0.5).x).tanh()))


@program("keywords", lambda g, scale: ((drawn(g, scale, 5, 3),), {"shift": drawn(g, scale, 4), "scale": 2.0}))
class Keywords(Layers):
    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.last((self.first(x) + kwargs.pop("shift")) * kwargs.get("scale", 1.0) + kwargs.get("none", 0))


@program("keywords_and_a_branch", lambda g, scale: ((drawn(g, scale, 5, 3),), {"batch": Batch(drawn(g, scale, 5, 4))}))
class KeywordsAndABranch(Layers):
    def forward(self, x: Tensor, *rest: Any, **kwargs: Any) -> dict[str, Tensor]:
        h = self.first(x) + kwargs["batch"].x
        return {"y": self.last(self.second(h).tanh() if h.sum() > 0 else h.sin())}


# architectures


@program("speech_features", normal(2, 60))
class SpeechFeatures(nn.Module):
    """As wav2vec2: convolutions over a wave, a span mask by numpy-like draws, layers left out at random."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv1d(1, 4, 6, 3), nn.Conv1d(4, 4, 3, 2)])
        self.norm, self.masked = nn.GroupNorm(4, 4), nn.Parameter(torch.rand(4))
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True) for _ in range(2))

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        h = wave[:, None]
        for conv in self.convs:
            h = F.gelu(conv(h))
        h = self.norm(h).transpose(1, 2)
        if self.training:
            starts = torch.randint(0, h.shape[1] - 2, (h.shape[0],)).tolist()
            mask = torch.zeros(h.shape[:2], dtype=torch.bool)
            for i, start in enumerate(starts):
                mask[i, start : start + 2] = True
            h = h.clone()
            h[mask] = self.masked.to(h.dtype)
        for layer in self.layers:
            if self.training and torch.rand([]) < 0.3:
                continue
            h = layer(h)
        return h.mean(1)


class Cache:
    """Keys and values of the layers up to now, as a DynamicCache."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(self, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if len(self.keys) <= layer:
            self.keys.append(k)
            self.values.append(v)
        else:
            self.keys[layer] = torch.cat([self.keys[layer], k], -2)
            self.values[layer] = torch.cat([self.values[layer], v], -2)
        return self.keys[layer], self.values[layer]


@program("own_cache", normal(2, 3, 4))
class OwnCache(nn.Module):
    """Positions come one by one, and look back through a cache made in forward, which is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.ModuleList(nn.Linear(4, 12) for _ in range(2)), nn.Linear(4, 2)

    def forward(self, x: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        cache, steps = cache or Cache(), []
        for t in range(x.shape[1]):
            h = x[:, t : t + 1]
            for i, layer in enumerate(self.qkv):
                q, k, v = layer(h).chunk(3, -1)
                k, v = cache.update(k, v, i)
                h = h + F.scaled_dot_product_attention(q, k, v)
            steps.append(self.out(h))
        return torch.cat(steps, 1), cache


def before(g: Generator, scale: float) -> Call:
    cache = Cache()
    for i in range(2):
        cache.update(drawn(g, scale, 2, 2, 4), drawn(g, scale, 2, 2, 4), i)
    return (drawn(g, scale, 2, 3, 4), cache), {}


program("cache_in_and_out", before)(OwnCache)
