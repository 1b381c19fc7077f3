"""configs/paper.py against the protocol of the paper's authors."""

import jax
import pytest

from hypelora_jax import cli, trees
from hypelora_jax import model as model_lib
from hypelora_jax.config.settings import from_dict
from hypelora_jax.configs import paper
from hypelora_jax.data.tasks import unnamed
from hypelora_jax.errors import UserError
from hypelora_jax.families import preset
from hypelora_jax.interop import base as bases

RUNS = [
    (size, *name.split(), task)
    for (size, name), rows in paper.ROWS.items()
    for task in rows
]


def settings(*arguments: str):
    return from_dict(cli.load_config(f"paper:{','.join(arguments)}").to_dict())


@pytest.mark.parametrize("run", RUNS, ids="-".join)
def test_every_row_is_a_valid_run(run):
    size, method, *a, task = run
    arguments = [f"size={size}", f"method={method}", f"task={task}"]
    config = settings(*arguments, *(f"a={x}" for x in a))
    assert config.method == method and config.data.task == task
    assert config.model.path == f"FacebookAI/roberta-{size}"
    assert config.optim.batch_size % config.optim.accumulate == 0
    assert (config.optim.weight_decay, config.lora.rank) == (0.1, 8)
    assert config.optim.head_lr == config.optim.trunk_lr == 0


@pytest.mark.parametrize(
    ("arguments", "lr", "epochs", "batch", "accumulate", "length", "alpha", "seeds"),
    [  # METHOD, section B, written down a second time
        (("method=full",), 2e-5, 10, 32, 2, 128, None, (11, 3)),
        (("method=full", "task=mnli"), 2e-5, 10, 32, 2, 512, None, (11, 1)),
        (("method=lora",), 4e-4, 80, 32, 1, 512, 8, (42, 3)),
        (("method=lora", "task=sst2"), 5e-4, 60, 16, 1, 512, 8, (11, 3)),
        (("method=lora", "task=qqp"), 5e-4, 25, 16, 1, 512, 8, (11, 3)),
        ((), 4e-5, 80, 32, 1, 512, 8, (11, 3)),
        (("a=fixed", "task=sst2"), 1e-5, 60, 32, 1, 512, 8, (11, 3)),
        (("task=rte",), 4e-6, 80, 32, 1, 512, 8, (11, 3)),
        (("method=hyper_transformer",), 4e-4, 80, 32, 2, 512, 16, (11, 3)),
        (
            ("method=hyper_transformer", "a=random", "task=rte"),
            *(1e-5, 80, 64, 2, 512, 16, (11, 3)),
        ),
        (("size=large", "method=full"), 1e-5, 10, 32, 8, 128, None, (11, 1)),
        (("size=large", "method=lora"), 2e-4, 20, 4, 1, 128, 16, (12, 2)),
        (
            ("size=large", "method=lora", "task=rte"),
            *(4e-4, 20, 8, 1, 512, 16, (12, 2)),
        ),
        (("size=large",), 4e-5, 80, 32, 1, 512, 8, (11, 3)),
    ],
)
def test_rows_hold_the_protocols_numbers(
    arguments, lr, epochs, batch, accumulate, length, alpha, seeds
):
    config = settings(*arguments)
    optim = config.optim
    assert (optim.lr, optim.num_epochs, optim.batch_size) == (lr, epochs, batch)
    assert (optim.accumulate, config.data.max_length) == (accumulate, length)
    assert alpha is None or config.lora.alpha == alpha
    assert (config.seed, config.num_seeds) == seeds


@pytest.mark.parametrize(
    ("arguments", "network"),
    [  # METHOD, A.4
        (("a=generated",), 33_838_080),
        (("a=fixed",), 21_249_024),
        (("method=hyper_transformer",), 4_228_864),
        (("method=hyper_transformer", "a=fixed"), 4_227_328),
        (("method=lora",), 294_912),
    ],
)
def test_models_have_as_many_weights_as_the_authors(arguments, network):
    config, sizes = settings(*arguments), preset("roberta_base")
    model = model_lib.build(config, sizes, unnamed(2))
    base = bases.Base(sizes, None, "", "")

    def make(key):
        params = model.init(key, bases.load(base, 2, key))
        return model.split(params)[0]

    trainable = jax.eval_shape(make, jax.random.key(0))
    head = trees.count(trainable.pop("head"))
    assert (trees.count(trainable), head) == (network, 592_130)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("size=huge",), "size is 'huge'; expected one of base, large"),
        (
            ("task=wnli",),
            "no run of hyper_mlp generated on 'wnli'; expected one of cola",
        ),
        (("a=random",), "no runs of hyper_mlp random; expected one of full, lora"),
        (("method=head",), "no runs of head; expected one of full, lora"),
        (("sise=large",), "argument 'sise=large' is unknown"),
    ],
)
def test_what_the_paper_did_not_run_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        settings(*arguments)
