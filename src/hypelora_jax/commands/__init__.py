"""One file per command: its flags, its help text, and the function that runs it.

A command only combines other packages. Work that one of those packages could do itself
belongs there.

A command is a module with

    a docstring       whose first line is the help text
    add_flags(parser) adds the command's flags to an `argparse.ArgumentParser`
    run(...)          takes the flags by name and prints results; a command that checks
                      something returns False if the check fails

Each command has one line in `COMMANDS`. A flag named `config` reaches `run` as
`Settings`, and a flag that is a path is a `shared.flags.PathFlag`. Code that several
commands share is in `shared`. Imports of jax, and of packages that import it, are local
to functions so that help and flag errors respond immediately. A command whose flag
takes the keys of a table imports that table in `add_flags`.
"""

from types import ModuleType

from hypelora_jax.commands import (
    adapt,
    audit,
    calibrate,
    doctor,
    evaluate,
    export,
    import_adapter,
    metrics,
    plan,
    predict,
    prepare,
    report,
    serve,
    train,
    uncertainty,
)

COMMANDS: dict[str, ModuleType] = {  # in the order of the help text
    "train": train,
    "evaluate": evaluate,
    "calibrate": calibrate,
    "uncertainty": uncertainty,
    "audit": audit,
    "adapt": adapt,
    "predict": predict,
    "serve": serve,
    "metrics": metrics,
    "report": report,
    "export": export,
    "import": import_adapter,
    "prepare": prepare,
    "plan": plan,
    "doctor": doctor,
}
