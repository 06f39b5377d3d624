"""Normalisations, softmax, pooling and losses: ATen's own backward kernels are the rules, fed with saved results."""

from __future__ import annotations

import functools
from typing import Any

import torch

from pccompile.ir import Node, Ref
from pccompile.ops import compositions
from pccompile.ops.builder import Builder
from pccompile.ops.functions import STOP
from pccompile.ops.registry import Sample, define, normal, rewrite
from pccompile.ops.trace import traced_rule

STATISTICS = ("", "mean", "inv_std", "running_mean", "running_var")


def composite(name: str, rule: Any, *samples: Sample, **more: Any) -> None:
    """Define an operation whose message is one fused kernel; `more` are fields of its OpDef."""
    define(name, "composite", rule, samples=samples, **more)


def normalisation(
    name: str,
    kernel: Any,
    *samples: Sample,
    unread: tuple[str, ...] = (),
    statistics: Any = traced_rule,
    dense: tuple[str, ...] = (),
    compose: Any = compositions.batch_norm,
    **more: Any,
) -> None:
    """Define a normalisation: kernel(b, node, err, mask) yields the messages to input, weight and bias together.

    The mask is the full one wherever a message goes to the input, since the kernel needs the same sums for all three.
    The result does not depend on the arguments called `unread`.
    statistics: the rule where the mean and the deviation that it also returns are read. `more` are fields of its OpDef.
    """

    def rule(b: Builder, n: Node, errors: tuple[Ref | None, ...]) -> Any:
        if any(e is not None for e in errors[1:]):
            return statistics(b, n, errors)
        return {**_by_argument(b, n, kernel, errors[0]), **dict.fromkeys(unread)}

    more |= {"equation": "γ (x − μ) / σ + β", "dense": dense, "compose": compose, "ends_layer": True}
    composite(name, rule, *samples, results=STATISTICS, **more)


def _by_argument(b: Builder, n: Node, kernel: Any, e: Ref | None) -> dict[str, Ref]:
    mask = tuple(n.args.get(a) in b.wants for a in ("input", "weight", "bias"))
    call = kernel(b, n, e, mask)
    return {a: b.get(call, i) for i, a in enumerate(("input", "weight", "bias")) if mask[i]}


def _batch_norm_kernel(b: Builder, n: Node, e: Ref, mask: tuple[bool, ...]) -> Ref:
    """Outside training the statistics are the running ones."""
    training = n.args.get("training", False)
    saved = (b.get(Ref(n.name), 1), b.get(Ref(n.name), 2))
    running = (None, None) if training else (n.args.get("running_mean"), n.args.get("running_var"))
    kernel = "aten.native_batch_norm_backward.default"
    return b(kernel, e, n["input"], n["weight"], *running, *saved, training, n["eps"], mask)


normalisation(
    "aten._native_batch_norm_legit_functional.default",
    _batch_norm_kernel,
    lambda: (normal(4, 3, 2), normal(3), normal(3), normal(3), normal(3).abs(), True, 0.1, 1e-5),
    lambda: (normal(4, 3, 2), normal(3), normal(3), normal(3), normal(3).abs(), False, 0.1, 1e-5),
    unread=("running_mean", "running_var"),
    of_the_batch=True,
)
normalisation(
    "aten._native_batch_norm_legit.no_stats",
    _batch_norm_kernel,
    lambda: (normal(4, 3, 2), normal(3), normal(3), True, 0.1, 1e-5),
    of_the_batch=True,
)
normalisation(
    "aten._native_batch_norm_legit_no_training.default",
    _batch_norm_kernel,
    lambda: (normal(4, 3, 2), normal(3), normal(3), normal(3), normal(3).abs(), 0.1, 1e-5),
    compose=compositions.batch_norm_running,
)


def _empty_norm(b: Builder, n: Node) -> Ref:
    """Of no entries torch takes no statistics: the weight's and the bias's first entry act on what is not there."""
    y: Any = n["input"]
    for name, op in (("weight", "aten.mul.Tensor"), ("bias", "aten.add.Tensor")):
        if n[name] is not None:
            y = b(op, y, b("aten.select.int", n[name], 0, 0))
    return y


def _batch_norm(b: Builder, n: Node) -> Ref:
    x, weight, bias, mean, var = (n[a] for a in ("input", "weight", "bias", "running_mean", "running_var"))
    if b.numel(b.shape(x)) == 0:
        return _empty_norm(b, n)
    rest = (n["momentum"], n["eps"])
    if not n["training"]:
        return b.get(b("aten._native_batch_norm_legit_no_training.default", x, weight, bias, mean, var, *rest), 0)
    if mean is None:
        return b.get(b("aten._native_batch_norm_legit.no_stats", x, weight, bias, True, *rest), 0)
    mean_now, var_now = (now if (now := b.current(old)) == old else b(STOP, now) for old in (mean, var))
    call = b("aten._native_batch_norm_legit_functional.default", x, weight, bias, mean_now, var_now, True, *rest)
    b.update(mean, b.get(call, 3))
    b.update(var, b.get(call, 4))
    return b.get(call, 0)


rewrite("aten.batch_norm.default", _batch_norm, of_the_batch=True)


def _layer_norm_kernel(b: Builder, n: Node, e: Ref, mask: tuple[bool, ...]) -> Ref:
    saved = (b.get(Ref(n.name), 1), b.get(Ref(n.name), 2))
    return b(
        "aten.native_layer_norm_backward.default",
        e,
        n["input"],
        n["normalized_shape"],
        *saved,
        n["weight"],
        n["bias"],
        mask,
    )


normalisation(
    "aten.native_layer_norm.default",
    _layer_norm_kernel,
    lambda: (normal(4, 3, 5), [5], normal(5), normal(5), 1e-5),
    compose=compositions.layer_norm,
    rows="input",
    along="normalized_shape",
)
define("aten.native_layer_norm_backward.default", "traced", gradients=True)
rewrite(
    "aten.layer_norm.default",
    lambda b, n: b.get(
        b("aten.native_layer_norm.default", n["input"], n["normalized_shape"], n["weight"], n["bias"], n["eps"]), 0
    ),
)


def _group_norm_kernel(b: Builder, n: Node, e: Ref, mask: tuple[bool, ...]) -> Ref:
    saved = (b.get(Ref(n.name), 1), b.get(Ref(n.name), 2))
    sizes = (n["N"], n["C"], n["HxW"], n["group"])
    return b("aten.native_group_norm_backward.default", e, n["input"], *saved, n["weight"], *sizes, mask)


def _group_statistics(b: Builder, n: Node, errors: tuple[Ref | None, ...]) -> dict[str, Ref | None]:
    """Messages with those of the groups' means m and inverse deviations r: (ε₁ − ε₂ r³ (x − m)) / M, M entries a group.

    torch's own formula is wrong there: it leaves both out where the normalised values are not read.
    """
    sent_on: dict[str, Ref | None] = {"weight": None, "bias": None}
    if errors[0] is not None:
        sent_on |= _by_argument(b, n, _group_norm_kernel, errors[0])
    if n["input"] not in b.wants:
        return sent_on
    mean, inverse = (b("aten.unsqueeze.default", b.get(Ref(n.name), i), -1) for i in (1, 2))
    x = b.view(n["input"], (n["N"], n["group"], n["C"] // n["group"] * n["HxW"]))
    sent: Any = None
    if errors[1] is not None:
        sent = b("aten.unsqueeze.default", errors[1], -1)
    if errors[2] is not None:
        cube = b("aten.pow.Tensor_Scalar", inverse, 3)
        pull = b.mul(b.mul(b("aten.unsqueeze.default", errors[2], -1), cube), b("aten.sub.Tensor", mean, x))
        sent = pull if sent is None else b("aten.add.Tensor", pull, sent)
    sent = b.view(b.expand_to(b("aten.div.Tensor", sent, b.shape(x)[-1]), b.shape(x)), b.shape(n["input"]))
    if "input" in sent_on:
        sent = b("aten.add.Tensor", sent_on["input"], sent)
    return {**sent_on, "input": sent}


normalisation(
    "aten.native_group_norm.default",
    _group_norm_kernel,
    lambda: (normal(2, 4, 3), normal(4), normal(4), 2, 4, 3, 2, 1e-5),
    statistics=_group_statistics,
    compose=compositions.group_norm,
    dense=("input", "weight", "bias"),
)
define("aten.native_group_norm_backward.default", "traced", gradients=True, dense=("grad_out", "input", "weight"))
define("aten.native_batch_norm_backward.default", "traced", gradients=True)


def _group_norm(b: Builder, n: Node) -> Ref:
    count, channels, *rest = b.shape(n["input"])
    sizes = (count, channels, b.numel(rest), n["num_groups"], n["eps"])
    return b.get(b("aten.native_group_norm.default", n["input"], n["weight"], n["bias"], *sizes), 0)


rewrite("aten.group_norm.default", _group_norm)


def _along(*options: Any) -> tuple[Any, ...]:
    return (normal(4, 3), *options)


def _softmax_rule(kernel: str) -> Any:
    return lambda b, n, e: {"self": b(kernel, e, Ref(n.name), n["dim"], b.type(n["self"]).dtype)}


for name, kernel, spelling, composition in (
    ("aten._softmax.default", "aten._softmax_backward_data.default", "torch.softmax", compositions.softmax),
    (
        "aten._safe_softmax.default",
        "aten._softmax_backward_data.default",
        "torch.ops.aten._safe_softmax",
        compositions.safe_softmax,
    ),
    (
        "aten._log_softmax.default",
        "aten._log_softmax_backward_data.default",
        "torch.log_softmax",
        compositions.log_softmax,
    ),
):
    composite(
        name,
        _softmax_rule(kernel),
        functools.partial(_along, 1, *(() if "safe" in name else (False,))),
        spell=f"{spelling}(self, dim)",
        compose=composition,
        ends_layer=True,
        distribution=True,
        sent={"self": "v̂ ⊙ ({e} − ⟨v̂, {e}⟩)"} if name == "aten._softmax.default" else {},
        rows="self",
        along="dim",
    )


def _typed_softmax(name: str) -> Any:
    def expand(b: Builder, n: Node) -> Ref:
        x: Any = n["self"]
        if n["dtype"] is not None and n["dtype"] != b.type(x).dtype:
            x = b("aten._to_copy.default", x, dtype=n["dtype"])
        return b(name, x, n["dim"], False)

    return expand


for name, of_variance in (
    ("var", compositions.variance),
    ("std", compositions.deviation),
    ("var_mean", compositions.variance_and_mean),
    ("std_mean", compositions.deviation_and_mean),
):
    define(
        f"aten.{name}.correction",
        "traced",
        compose=of_variance,
        samples=(
            lambda: (normal(4, 3), [1], {"correction": 1}),
            lambda: (normal(4, 3), None, {"correction": 0, "keepdim": True}),
        ),
    )
for name, samples in (
    ("aten.prod.default", (lambda: (normal(4, 3),),)),
    ("aten.prod.dim_int", (lambda: (normal(4, 3), 1), lambda: (normal(4, 3), 0, True))),
):
    define(name, "traced", compose=compositions.product, samples=samples)
define(
    "aten.native_batch_norm.default",
    "traced",
    compose=compositions.batch_norm,
    samples=(lambda: (normal(4, 3, 2), normal(3), normal(3), None, None, True, 0.1, 1e-5),),
    ends_layer=True,
    of_the_batch=True,
)
define(
    "aten.grid_sampler_2d.default",
    "traced",
    compose=compositions.grid_sample,
    samples=(
        lambda: (normal(2, 3, 4, 5), normal(2, 3, 2, 2) / 3, 0, 0, False),
        lambda: (normal(2, 3, 4, 5), normal(2, 3, 2, 2), 0, 1, True),
        lambda: (normal(1, 2, 3, 3), torch.tensor([[[[0.0, 0.0], [0.5, 0.0]]]], dtype=torch.float64), 0, 0, True),
    ),
)
define(
    "aten.logsumexp.default",
    "traced",
    compose=compositions.logsumexp,
    samples=(lambda: (normal(4, 3), [1]), lambda: (normal(4, 3), [0, 1], True)),
)
rewrite("aten.softmax.int", _typed_softmax("aten._softmax.default"))
rewrite("aten.log_softmax.int", _typed_softmax("aten._log_softmax.default"))


def _nll_rule(kernel: str) -> Any:
    def rule(b: Builder, n: Node, errors: tuple[Ref | None, ...]) -> dict[str, Ref]:
        rest = (n["target"], n["weight"], n["reduction"], n["ignore_index"])
        return {"self": b(kernel, errors[0], n["self"], *rest, b.get(Ref(n.name), 1))}

    return rule


composite("aten.nll_loss_forward.default", _nll_rule("aten.nll_loss_backward.default"),
          lambda: (normal(4, 3), torch.tensor([0, 2, 1, 1]), None, 1, -100))  # fmt: skip
composite(
    "aten.nll_loss2d_forward.default",
    _nll_rule("aten.nll_loss2d_backward.default"),
    lambda: (normal(2, 3, 2, 2), torch.randint(3, (2, 2, 2)), None, 1, -100),
    dense=("self", "target"),
)
define("aten.nll_loss_backward.default", "traced", form_only="self")
define("aten.nll_loss2d_backward.default", "traced", form_only="self", dense=("self", "target"))


def _two(*options: Any) -> tuple[Any, ...]:
    return (normal(4, 3), normal(4, 3), *options)


def _symmetric(name: str, *options: str) -> None:
    """Define a loss of self − target, whose kernel serves both with the roles exchanged."""
    kernel = f"{name}_backward.default"

    def rule(b: Builder, n: Node, e: Ref) -> dict[str, Ref | None]:
        x, target = n["self"], n["target"]
        rest = (n["reduction"], *(n[o] for o in options))
        return {
            "self": b(kernel, e, x, target, *rest) if x in b.wants else None,
            "target": b(kernel, e, target, x, *rest) if target in b.wants else None,
        }

    function = name.removeprefix("aten.")

    def spell(a: Any) -> str:
        more = "".join(f", {o}={o}" for o in options)
        return f"F.{function}(self, target, reduction='{('none', 'mean', 'sum')[a['reduction']]}'{more})"

    reductions = [functools.partial(_two, r) for r in (0, 1, 2)]
    composite(f"{name}.default", rule, *reductions, spell=spell)


_symmetric("aten.mse_loss")
_symmetric("aten.smooth_l1_loss", "beta")
_symmetric("aten.huber_loss", "delta")


def _spell_logits(a: Any) -> str:
    """torch's own function of this name has other defaults."""
    weights = "".join(f", {o}={o}" for o in ("weight", "pos_weight") if a[o] is not None)
    reduction = ("none", "mean", "sum")[a["reduction"]]
    return f"F.binary_cross_entropy_with_logits(self, target{weights}, reduction='{reduction}')"


define("aten.binary_cross_entropy_with_logits.default", "traced", spell=_spell_logits,
             samples=(lambda: (normal(4, 3), normal(4, 3), None, None, 1),))  # fmt: skip


def _avg_pool(rank: int) -> None:
    name = f"aten.avg_pool{rank}d"

    def rule(b: Builder, n: Node, e: Ref) -> dict[str, Ref]:
        options = [
            n[a] for a in ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        ]
        return {"self": b(f"{name}_backward.default", e, n["self"], *options)}

    composite(f"{name}.default", rule, lambda: (normal(2, 3, *(5,) * rank), [2] * rank), averages=True)


_avg_pool(2)
_avg_pool(3)
composite(
    "aten._adaptive_avg_pool2d.default",
    lambda b, n, e: {"self": b("aten._adaptive_avg_pool2d_backward.default", e, n["self"])},
    lambda: (normal(2, 3, 5, 4), [3, 2]),
    spell="F.adaptive_avg_pool2d(self, output_size)",
)


def _adaptive(b: Builder, n: Node) -> Ref:
    sizes: Any = n["output_size"]
    if sizes == (1, 1):
        return b("aten.mean.dim", n["self"], (-2, -1), True)
    return b("aten._adaptive_avg_pool2d.default", n["self"], sizes)


rewrite("aten.adaptive_avg_pool2d.default", _adaptive)
define("aten._cdist_backward.default", "traced", dense=("grad", "x1", "x2", "cdist"))
define("aten._weight_norm_interface_backward.default", "traced", dense=("grad_w", "saved_v", "saved_g"))
