"""pccompile as a user calls it, with `jit=True`."""

import pccompile_module
from worker import Arrays, Problem, Step, serve


def build(problem: Problem) -> tuple[Step, Arrays]:
    """The same call, inference and learning compiled as one function."""
    return pccompile_module.build(problem, jit=True)


if __name__ == "__main__":
    serve(build)
