"""The generated file's `step` under torch.compile."""

import pccompile_file
import torch
from worker import Arrays, Problem, Step, serve


def build(problem: Problem) -> tuple[Step, Arrays]:
    """The same call, compiled by inductor."""
    return pccompile_file.build(problem, lambda run: torch.compile(run, fullgraph=True))


if __name__ == "__main__":
    serve(build)
