"""Download, prepare and tokenise everything that a run needs, then exit."""

from argparse import ArgumentParser

from absl import logging

from hypelora_jax.commands.shared import flags
from hypelora_jax.config.settings import Settings


def add_flags(parser: ArgumentParser) -> None:
    """Add the flag of the run's config."""
    flags.add_config(parser)


def run(config: Settings) -> None:
    """Fill the caches of data and model, so that a run needs no network.

    Every text is tokenised once, so that bad rows are found here, not in training. Of a
    set of tasks, each has a line with its rows and the shares of its labels.

    Raises:
      UserError: a download fails, or the data is bad.
    """
    from hypelora_jax import model as model_lib
    from hypelora_jax.commands.shared import names
    from hypelora_jax.data import sources
    from hypelora_jax.data.batches import dataset, warn_of_cuts
    from hypelora_jax.data.sources import unions
    from hypelora_jax.data.tokens import cached
    from hypelora_jax.interop import base as bases
    from hypelora_jax.train import session
    from hypelora_jax.train.conditioning import checks

    names.check(config)
    base = bases.resolve(config.model.path, config.model.revision)
    length = session.max_length(config, base)
    logging.info("model %s %s", base.name, base.revision)
    logging.info("data %s", sources.prepare(config.data, config.tasks))
    words = cached(bases.read_tokenizer(base))
    corpus = session.load_corpus(config)
    model = model_lib.build(config, base.config, corpus.task)
    checks.check(config, model, corpus.tasks)
    datasets = {n: dataset(x, words, length) for n, x in corpus.splits.items()}
    for line in unions.describe(corpus):
        logging.info("%s", line)
    warn_of_cuts(datasets.values(), length)
    for name, data in datasets.items():
        mean = data.lengths.mean() if len(data.ids) else 0.0
        logging.info("%s: %d examples, %.1f tokens each", name, len(data.ids), mean)
