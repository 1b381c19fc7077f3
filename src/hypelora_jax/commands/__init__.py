"""One file a command: its flags, its help, and the function that runs it.

Only what a command composes of other rooms comes in, never something that one of those
rooms could do itself.

A command is a module with

    a docstring       whose first line is the help text
    add_flags(parser) adds the command's flags to an `argparse.ArgumentParser`
    run(...)          takes the flags by name and prints results; a command that checks
                      something returns False for "no"

and has its place in `cli.COMMANDS`. A flag named `config` reaches `run` as `Settings`.
Flags that several commands share are in `flags`. Imports of jax, and of rooms that
import it, are local to functions so that help and flag errors respond immediately; a
command whose flag takes the keys of a table imports that table in `add_flags`.
"""
