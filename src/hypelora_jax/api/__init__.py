"""What `import hypelora_jax` offers to programs that do not use the command line.

Each function is short and calls the room that does the work. Nothing here reads or
writes a run folder, and no other room imports this one.
"""
