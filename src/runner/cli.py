"""`runner VERB [key=value ...] [Hydra flags]`: a verb is one primary config, conf/VERB.yaml, and one function.

Nothing heavy is imported here: help, a wrong verb and completion of verbs take no time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from runner.protocols import Fault, Mistake
from runner.spelling import did_you_mean
from runner.verbs import DEFAULT_VERB, DONE, FAULT, INTERRUPTED, MISTAKE, VERBS


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words or words[0] in ("--help", "-h"):
            print(help_text())
            return DONE
        if words[0] == "--version":
            import runner

            print(f"runner {runner.__version__}")
            return DONE
        if {"-sc", "--shell-completion"} & set(words):
            from runner.completion import complete

            return complete(words)
        from runner.launch import run_verb

        return run_verb(*split_verb(words))
    except Mistake as error:
        print(error, file=sys.stderr)
        return MISTAKE
    except Fault as error:
        print(error, file=sys.stderr)
        return FAULT
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as end:  # so Hydra ends its own pages, and a stop by a signal ends a sweep
        return end.code if isinstance(end.code, int) else FAULT if end.code else DONE
    except Exception as error:  # the last net: nobody gets a traceback
        from runner.complaints import is_about_input, reason, told_as_fault

        about_input = is_about_input(error)
        print(f"{reason(error)}." if about_input else told_as_fault(error), file=sys.stderr)
        return MISTAKE if about_input else FAULT


def split_verb(words: Sequence[str]) -> tuple[str, list[str]]:
    """The verb and what follows it; without a verb, `train` is meant."""
    first = words[0]
    if first in VERBS:
        return first, list(words[1:])
    if first.startswith(("-", "+", "~")) or "=" in first:
        return DEFAULT_VERB, list(words)
    hint = did_you_mean(first, VERBS, otherwise=f"; there are {', '.join(VERBS)}.")
    raise Mistake(f"{first}: no such verb{hint} A setting is written key=value.")


def help_text() -> str:
    """Each verb's line is the first comment of its primary config."""
    package = Path(__file__).resolve().parent
    conf = package / "conf" if (package / "conf").is_dir() else package.parents[1] / "conf"
    verbs = []
    for verb in VERBS:
        with (conf / f"{verb}.yaml").open(encoding="utf-8") as file:
            verbs.append(f"  {verb:<10}{file.readline().partition(':')[2].strip()}")
    listed = "\n".join(verbs)
    return f"""runner VERB [key=value ...] [Hydra flags]

{listed}

Without a verb, {DEFAULT_VERB} is meant: runner precision=bf16

  runner train --help                     every option, and the config
  runner train --cfg job [key=value ...]  the config as composed
  runner train -m precision=fp32,bf16     a sweep
  runner train --config-dir my_conf ...   with parts, options and experiments of your own
  eval "$(runner -sc install=bash)"       tab completion"""
