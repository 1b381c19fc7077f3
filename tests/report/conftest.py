from run_folders import make_run, make_seeds

__all__ = ["make_run", "make_seeds"]
