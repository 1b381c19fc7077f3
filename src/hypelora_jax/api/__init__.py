"""What `import hypelora_jax` offers to programs that do not use the command line.

Each function is short and calls the room that does the work. No other room imports this
one, and only `finished_runs` opens and writes run folders.
"""
