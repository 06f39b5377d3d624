"""What a shell completes a command line by, generated from the grammar."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pccompile.algorithms import ALGORITHMS
from pccompile.cli.grammar import Grammar, parser, setting_options
from pccompile.cli.targets import COMMANDS
from pccompile.diagnostics import EXIT_DONE, CompileError

FILES = ("data", "report", "explore", "plot", "chip")
FOLDERS = ("output", "dump_dir")
MODELS = {
    "bash": '_pccompile_models() { compgen -f -- "$1"; compgen -W "%s" -- "$1"; }',
    "zsh": "_pccompile_models() { _alternative 'commands:command:(%s)' 'files:file:_files'; }",
    "fish": "function _pccompile_models; __fish_complete_path (commandline -ct); printf '%%s\\n' %s; end",
}
"""What may stand first: a command, or a file."""


def completed_grammar() -> Grammar:
    """The grammar with the settings of all algorithms, and with what kind of thing each option takes."""
    import shtab

    p = parser()
    for name in ALGORITHMS:
        setting_options(p, name)
    for action in p._actions:
        if action.dest == "model":
            action.complete = dict.fromkeys(MODELS, "_pccompile_models") | {"fish": "(_pccompile_models)"}  # type: ignore[attr-defined]
        elif action.dest in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.dest in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.dest in ("algorithm", "beside"):
            action.choices = tuple(ALGORITHMS)
        if action.help == argparse.SUPPRESS:
            action.help = ""
    return p


def print_completion(argv: Sequence[str]) -> int:
    """Print the script of the shell that is named behind `--print-completion`. Raises UsageError and CompileError."""
    p = Grammar(prog="pccompile", allow_abbrev=False)
    p.add_argument("--print-completion", choices=tuple(MODELS))
    print(script(p.parse_args(argv).print_completion))
    return EXIT_DONE


def script(shell: str) -> str:
    """The script of one shell. Raises CompileError where shtab is not installed."""
    try:
        import shtab
    except ImportError:
        raise CompileError("shtab is not installed", hint='pip install "pccompile[completion]"') from None
    return shtab.complete(completed_grammar(), shell=shell, preamble=MODELS[shell] % " ".join(COMMANDS))
