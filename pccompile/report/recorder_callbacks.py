"""A recorder within trainers of other packages: TensorBoard as a sink, callbacks of Lightning and of transformers."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from pccompile.diagnostics import CompileError
from pccompile.report.recorder import Recorder
from pccompile.runtime.module import CompiledModule


class TensorBoard:
    """A sink of a recorder that writes scalars for TensorBoard: `Recorder(TensorBoard("runs/one"))`.

    to: a folder, or a SummaryWriter. Raises CompileError where tensorboard is not installed.
    """

    def __init__(self, to: Any) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise CompileError("tensorboard is not installed", hint="pip install tensorboard") from None
        self.writer: Any = to if isinstance(to, SummaryWriter) else SummaryWriter(to)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of a training step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()


def lightning_callback(
    recorder: Recorder, pc: CompiledModule, args: Any, kwargs: Mapping[str, Any] | None = None, *, target: Any
) -> Any:
    """A `lightning.Callback` that measures `pc` on one batch after training batches, at the trainer's global steps.

    args, kwargs, target: the batch, as for `Recorder.measure`; the trainer's own metrics are logged beside it.
    Raises CompileError where lightning is not installed.
    """
    try:
        from lightning import Callback
    except ImportError:
        raise CompileError("lightning is not installed", hint="pip install lightning") from None

    measure = functools.partial(recorder.measure, pc, args=args, kwargs=kwargs, target=target)

    class Measures(Callback):  # type: ignore[misc,unused-ignore]  # Any where lightning is absent
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            step = trainer.global_step
            if measure(step):
                metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
                if metrics:
                    recorder.log(step, metrics)

    return Measures()


def trainer_callback(
    recorder: Recorder, pc: CompiledModule, args: Any, kwargs: Mapping[str, Any] | None = None, *, target: Any
) -> Any:
    """A `transformers.TrainerCallback` that measures `pc` on one batch after steps, and logs what the trainer logs.

    args, kwargs, target: the batch, as for `Recorder.measure`. Raises CompileError where transformers is not installed.
    """
    try:
        from transformers import TrainerCallback
    except ImportError:
        raise CompileError("transformers is not installed", hint="pip install transformers") from None

    measure = functools.partial(recorder.measure, pc, args=args, kwargs=kwargs, target=target)

    class Measures(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            measure(state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            logs = kwargs.get("logs") or {}
            numbers = {f"trainer/{k}": float(v) for k, v in logs.items() if isinstance(v, int | float)}
            if numbers:
                recorder.log(state.global_step, numbers)

    return Measures()
