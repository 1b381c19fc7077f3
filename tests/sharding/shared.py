"""One process of several that look at a folder together, as a run does at its start."""

import sys

from etils import epath

from hypelora_jax.sharding import processes
from hypelora_jax.types import UserError

if __name__ == "__main__":
    distributed, folder = sys.argv[1:]
    processes.initialize(distributed.removeprefix("--distributed="))
    path = epath.Path(folder)
    try:
        processes.check_shared(path, seconds=1.0)
        if "refused" in folder:
            processes.together(lambda: path.read_text())
    except (UserError, OSError) as error:
        sys.exit(str(error))
