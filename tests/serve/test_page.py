"""The page at / in a headless browser, as a person uses it."""

import json

import browser
import flips
import pytest
import serving
import step_zero

import hypelora_jax
from hypelora_jax import cli
from hypelora_jax.serve import adapter_pool

OF_BARS = """JSON.stringify(Object.fromEntries([...document.querySelectorAll(
"rect.bar")].map(bar => [bar.dataset.name, {}])))"""
BARS = OF_BARS.format("Number(bar.dataset.p)")
WIDTHS = OF_BARS.format("bar.width.baseVal.value")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    plain = step_zero.run_folder(path / "plain", temperature=1.5)
    return str(plain), str(step_zero.run_folder(path / "pairs", task="three"))


@pytest.mark.soak
def test_a_person_types_a_sentence_and_sees_how_sure_it_is(runs, tmp_path):
    plain, pairs = runs
    adapters = adapter_pool.open_pool([plain, pairs], batch_sizes=(8,))
    first = hypelora_jax.load(plain).predict(["ab cd <b>", "zz"])
    (both,) = hypelora_jax.load(pairs).predict([("zz", "ab")])
    with serving.running(adapters) as port, browser.page(tmp_path) as page:
        own = f"http://127.0.0.1:{port}/"
        page.go(own)
        page.wait("document.activeElement?.id === 'text' && !!adapters.length")
        assert page.value("document.getElementById('second').hidden")
        page.type("ab cd <b>")
        page.press_enter()
        page.wait("document.querySelectorAll('rect.bar').length === 2")
        bars = json.loads(page.value(BARS))
        assert bars == pytest.approx(first[0]["probs"], abs=1e-5)
        sure = f"{first[0]['label']}, {100 * first[0]['confidence']:.1f} % sure"
        assert page.value("document.getElementById('said').textContent") == sure
        widths = json.loads(page.value(WIDTHS))
        total = page.value("document.querySelector('rect.rest').width.baseVal.value")
        for name, p in first[0]["probs"].items():
            assert widths[name] == pytest.approx(p * total, rel=1e-3)
        _other_adapter(page, both)
        _no_text(page)
        assert {"predict", "adapters"} <= {x.removeprefix(own) for x in page.requests}
        elsewhere = [x for x in page.requests if not x.startswith((own, "data:"))]
        assert not elsewhere


def _other_adapter(page, wanted):
    """The second adapter wants two texts and knows three classes."""
    page.value(
        "$('adapter').value = 'pairs'; $('adapter').dispatchEvent(new Event('change'))"
    )
    assert not page.value("$('second').hidden")
    page.value("$('text').value = 'zz'; $('text_b').focus()")
    page.type("ab")
    page.value("document.querySelector('button').click()")
    page.wait("document.querySelectorAll('rect.bar').length === 3")
    assert json.loads(page.value(BARS)) == pytest.approx(wanted["probs"], abs=1e-5)


def _no_text(page):
    page.value("$('text').value = ' '; document.querySelector('button').click()")
    page.wait("$('said').className === 'wrong'")
    assert "not empty" in page.value("$('said').textContent")
    assert page.value("document.querySelectorAll('rect.bar').length") == 0


@pytest.mark.soak
def test_a_person_describes_a_task_and_tries_it(tmp_path):
    file, run = flips.write(tmp_path), tmp_path / "run"
    argv = ["train", *flips.FLAGS, f"--config.tasks.file={file}"]
    argv += ["--config.head.kind=label_text", "--config.optim.num_epochs=1"]
    assert cli.main([*argv, f"--workdir={run}"]) == 0
    adapters = adapter_pool.open_pool([str(run)], batch_sizes=(8,))
    question = {"text": "a good film", "description": "Is it good?"}
    with (
        serving.running(adapters) as port,
        browser.page(tmp_path / "profile") as page,
    ):
        _, wanted = serving.ask(port, question)
        _, named = serving.ask(port, {"text": "a good film", "task": "denies"})
        page.go(f"http://127.0.0.1:{port}/")
        page.wait("document.activeElement?.id === 'text' && !!adapters.length")
        assert page.value("['tasks', 'described', 'names'].every(x => !$(x).hidden)")
        page.type("a good film")
        page.value("$('description').focus()")
        page.type("Is it good?")
        _ask(page, 2)
        assert json.loads(page.value(BARS)) == pytest.approx(wanted["probs"], abs=1e-5)
        near = "most like the training task asks, at distance 0.00 of 2"
        assert page.value("$('nearest').textContent").startswith(near)
        page.value("$('labels').focus()")
        page.type("bad, fine,very good")
        _ask(page, 3)
        assert set(json.loads(page.value(BARS))) == {"bad", "fine", "very good"}
        page.value(
            "$('task').value = 'denies'; $('task').dispatchEvent(new Event('change'))"
        )
        assert page.value("$('described').hidden")
        _ask(page, 2)
        assert json.loads(page.value(BARS)) == pytest.approx(named["probs"], abs=1e-5)
        page.value(
            "$('task').value = ''; $('task').dispatchEvent(new Event('change'));"
            "$('description').value = ' '; document.querySelector('button').click()"
        )
        page.wait("$('said').className === 'wrong'")
        assert "the description is ' '" in page.value("$('said').textContent")
        assert page.value("$('nearest').textContent") == ""


def _ask(page, bars):
    page.value("$('picture').replaceChildren(); $('text').focus()")
    page.press_enter()
    page.wait(f"document.querySelectorAll('rect.bar').length === {bars}")


@pytest.mark.soak
def test_the_page_of_the_paths_is_drawn(runs, tmp_path):
    adapters = adapter_pool.open_pool([runs[0]], batch_sizes=(8,))
    with serving.running(adapters) as port, browser.page(tmp_path) as page:
        own = f"http://127.0.0.1:{port}/"
        page.go(f"{own}docs")
        page.wait("document.querySelectorAll('h2').length > 3")
        assert "POST /predict" in page.value("document.body.textContent")
        assert all(x.startswith((own, "data:")) for x in page.requests)
