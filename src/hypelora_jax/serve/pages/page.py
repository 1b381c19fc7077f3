"""The page at /, which shows the calibrated probabilities of a sentence as bars.

With a run that makes an adapter for each task, a person names or describes the task. It
fetches answers from this service only; its content policy forbids everything else.
"""

import base64
import hashlib

STYLE = """
:root { color-scheme: light dark; --bar: #3b6fb6; --rest: #8884 }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 44rem;
       padding: 0 1rem }
h1 { font-size: 1.4rem }
h2 { font-size: 1.1rem; margin: 1.8rem 0 .3rem }
label { display: block; margin: .8rem 0 .2rem }
textarea, select, input { box-sizing: border-box; font: inherit; padding: .5rem;
                          width: 100% }
button { font: inherit; margin: 1rem 0; padding: .4rem 1.2rem }
svg { display: block; font: 15px system-ui, sans-serif; width: 100% }
svg text { fill: currentColor }
.rest { fill: var(--rest) }
.bar { fill: var(--bar) }
.best { font-weight: bold }
#said { font-size: 1.15rem; min-height: 1.6em; overflow-wrap: anywhere }
.wrong { color: #c22 }
td { border-bottom: 1px solid #8884; padding: .2rem .8rem .2rem 0; vertical-align: top }
pre { overflow-x: auto }
"""

SCRIPT = """
"use strict";
const $ = id => document.getElementById(id);
let adapters = [];

function chosen() { return adapters[$("adapter").selectedIndex]; }

function fit() {  // the form to the chosen adapter
  const one = chosen();
  $("second").hidden = !one.pair;
  $("about").textContent = one.labels.length
    ? "one of " + one.labels.join(", ") : "a number";
  $("tasks").hidden = !one.tasks.length;
  const described = one.describes ? [new Option("the one described here", "")] : [];
  $("task").replaceChildren(...described, ...one.tasks.map(name => new Option(name)));
  fitTask();
}

function fitTask() {  // the form to the chosen task
  $("described").hidden = !!$("task").value;
  $("names").hidden = !chosen().names_labels;
}

function ofTask() {  // what the question says about its task
  if (!chosen().tasks.length) return {};
  if ($("task").value) return {task: $("task").value};
  const labels = $("labels").value.split(",").map(name => name.trim()).filter(Boolean);
  const said = {description: $("description").value};
  return chosen().names_labels && labels.length ? {...said, labels} : said;
}

function element(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function draw(answer) {
  const picture = $("picture");
  picture.replaceChildren();
  const probs = Object.entries(answer.probs ?? {});
  const width = picture.clientWidth || 640, row = 46, full = width - 8;
  picture.setAttribute("viewBox", `0 0 ${width} ${row * probs.length}`);
  picture.setAttribute("height", row * probs.length);
  probs.forEach(([name, p], i) => {
    const y = i * row, best = name === answer.label ? "best" : "";
    const within = answer.set?.includes(name) ? "  (in the set)" : "";
    picture.append(
      element("text", {x: 0, y: y + 16, class: best}, name + within),
      element("text", {x: full, y: y + 16, class: best, "text-anchor": "end"},
              (100 * p).toFixed(1) + " %"),
      element("rect", {x: 0, y: y + 22, width: full, height: 14, rx: 3, class: "rest"}),
      element("rect", {x: 0, y: y + 22, width: Math.max(full * p, 1), height: 14,
                       rx: 3, class: "bar", "data-name": name, "data-p": p}));
  });
}

function say(text, wrong) {
  $("said").textContent = text;
  $("said").className = wrong ? "wrong" : "";
}

function compare(answer) {  // the task with those of training
  $("nearest").textContent = answer.nearest === undefined ? ""
    : `most like the training task ${answer.nearest}, at distance `
      + `${answer.distance.toFixed(2)} of 2; far from all, nothing is known about `
      + "how sure it is";
}

async function ask(event) {
  event?.preventDefault();
  const question = {text: $("text").value, adapter: chosen().name, ...ofTask()};
  if (chosen().pair) question.text_b = $("text_b").value;
  try {
    const got = await fetch("predict", {
      method: "POST", headers: {"content-type": "application/json"},
      body: JSON.stringify(question)});
    const answer = await got.json();
    draw(got.ok ? answer : {});
    compare(answer);
    if (!got.ok) say(answer.error, true);
    else if ("score" in answer) say(answer.score.toPrecision(6));
    else if (answer.abstained) say("no label: not sure enough");
    else say(`${answer.label}, ${(100 * answer.confidence).toFixed(1)} % sure`);
  } catch (error) {
    draw({});
    compare({});
    say("the service does not answer", true);
  }
}

async function start() {
  adapters = await (await fetch("adapters")).json();
  for (const one of adapters) $("adapter").append(new Option(one.name));
  $("which").hidden = adapters.length < 2;
  $("adapter").addEventListener("change", fit);
  $("task").addEventListener("change", fitTask);
  $("question").addEventListener("submit", ask);
  $("text").addEventListener("keydown", event => {
    if (event.key === "Enter" && !event.shiftKey) ask(event);
  });
  fit();
  $("text").focus();
}
start();
"""

HTML = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>hypelora serve</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
<main>
<h1>How sure is it?</h1>
<form id="question">
<div id="which"><label for="adapter">Adapter</label><select id="adapter"></select></div>
<div id="tasks" hidden><label for="task">Task</label><select id="task"></select>
<div id="described"><label for="description">What it asks</label>
<textarea id="description" rows="2"></textarea>
<div id="names"><label for="labels">Labels, with commas between them</label>
<input id="labels"></div></div></div>
<label for="text">Text</label><textarea id="text" rows="3"></textarea>
<div id="second" hidden><label for="text_b">Second text</label>
<textarea id="text_b" rows="3"></textarea></div>
<button>Ask</button> for <span id="about"></span>
</form>
<p id="said" role="status"></p>
<p id="nearest"></p>
<svg id="picture" role="img" aria-label="calibrated probabilities" height="0"></svg>
<p><a href="docs">API</a> &middot; <a href="metrics">metrics</a></p>
</main>
<script>{SCRIPT}</script>
</html>
"""


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


POLICY = (
    f"default-src 'none'; script-src 'sha256-{_digest(SCRIPT)}'; "
    f"style-src 'sha256-{_digest(STYLE)}'; connect-src 'self'; img-src data:; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
