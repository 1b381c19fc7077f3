"""Download, prepare and tokenise all that a run needs, ahead of the job."""

from absl import logging

from hypelora_jax import families
from hypelora_jax.config.settings import Settings
from hypelora_jax.data import sources
from hypelora_jax.data.batches import dataset, warn_of_cuts
from hypelora_jax.data.tokens import tokenizer
from hypelora_jax.interop import base as bases
from hypelora_jax.train import session


def prepare(settings: Settings) -> None:
    """Fill the caches of data and model; a run with these settings needs no network.

    Every text is tokenised once, so that bad rows are found here and not in the job.

    Raises:
      UserError: a download fails, or the data is bad.
    """
    base = bases.resolve(settings.model.path, settings.model.revision)
    length = session.max_length(settings, base)
    logging.info("model %s %s", base.name, base.revision)
    logging.info("data %s", sources.prepare(settings.data))
    words = tokenizer(base.folder, families.of(base.config).tokens, base.config.pad_id)
    datasets = {
        name: dataset(table, words, length)
        for name, table in session.load_corpus(settings).splits.items()
    }
    warn_of_cuts(datasets.values(), length)
    for name, data in datasets.items():
        mean = data.lengths.mean() if len(data.ids) else 0.0
        logging.info("%s: %d examples, %.1f tokens each", name, len(data.ids), mean)
