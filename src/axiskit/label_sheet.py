"""A page on which people score the audit's sample, blind: no judge's score is in it.

One HTML file without network: the responses as data, a scale, labels kept in the browser until they
are exported as JSON or CSV (``audit.labels`` reads both).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from axiskit.artifacts import read_table, write_text
from axiskit.roles import load_role
from axiskit.rollouts import digest

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Does the response play its role?</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 0 auto; padding: 1rem; }
header { position: sticky; top: 0; background: #fff; padding: .5rem 0; }
article { border: 1px solid #ccc; border-radius: .4rem; padding: .8rem 1rem; margin: 1rem 0; }
article.done { background: #f3f7f3; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .5rem .7rem; }
fieldset { border: 0; padding: 0; margin: .6rem 0 0; }
label { display: block; padding: .1rem 0; }
button, input { font: inherit; }
h2 { font-size: 1.1rem; margin: 0; }
h3 { font-size: .9rem; margin: .7rem 0 .2rem; color: #555; }
</style>
</head>
<body>
<h1>Does the response play its role?</h1>
<p>A language model was asked to play a role, and then a question. Read each response and choose.
What you choose is kept in this browser; export it at the end. Responses may be odd, or address you:
they are text to be judged, no more.</p>
<header>
<label>Your name or initials <input id="labeller" autocomplete="off"></label>
<span id="count"></span>
<button id="json">Export JSON</button> <button id="csv">Export CSV</button>
</header>
<main></main>
<script type="application/json" id="sample">{data}</script>
<script>
"use strict";
const sample = JSON.parse(document.getElementById("sample").textContent);
const scale = [
  ["0", "0: it refuses to answer, or to play the role"],
  ["1", "1: it says that it cannot be the role, yet helps with the question"],
  ["2", "2: it plays the role somewhat"],
  ["3", "3: it plays the role fully"],
  ["", "I cannot tell"],
];
const store = "axiskit-labels-" + sample.id;
let kept = {};
try { kept = JSON.parse(localStorage.getItem(store)) || {}; } catch (error) { kept = {}; }
const labels = kept.labels || {};
const labeller = document.getElementById("labeller");
labeller.value = kept.labeller || "";

function add(parent, tag, text, style) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (style) element.className = style;
  parent.appendChild(element);
  return element;
}

function keep() {
  try {
    localStorage.setItem(store, JSON.stringify({labeller: labeller.value, labels: labels}));
  } catch (error) { /* a browser that keeps nothing: export before closing */ }
  const n = Object.keys(labels).length;
  document.getElementById("count").textContent = n + " of " + sample.items.length + " done";
}

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: type}));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

function fileName(ending) {
  const who = labeller.value.trim().replace(/[^A-Za-z0-9_-]+/g, "-") || "labels";
  return who + "." + ending;
}

const main = document.querySelector("main");
sample.items.forEach((item, index) => {
  const article = add(main, "article");
  add(article, "h2", (index + 1) + ". " + item.role);
  add(article, "div", item.description);
  add(article, "h3", "Question");
  add(article, "div", item.question, "text");
  add(article, "h3", "Response");
  add(article, "div", item.response, "text");
  const choices = add(article, "fieldset");
  scale.forEach(([value, text]) => {
    const label = add(choices, "label");
    const radio = add(label, "input");
    radio.type = "radio";
    radio.name = "item" + index;
    radio.value = value;
    label.appendChild(document.createTextNode(" " + text));
    const score = value === "" ? null : Number(value);
    radio.checked = item.rollout_id in labels && labels[item.rollout_id] === score;
    radio.addEventListener("change", () => {
      labels[item.rollout_id] = score;
      article.className = "done";
      keep();
    });
  });
  if (item.rollout_id in labels) article.className = "done";
});
labeller.addEventListener("input", keep);
document.getElementById("json").addEventListener("click", () => {
  const content = {labeller: labeller.value, sample: sample.id, labels: labels};
  save(fileName("json"), "application/json", JSON.stringify(content, null, 1));
});
document.getElementById("csv").addEventListener("click", () => {
  const rows = Object.entries(labels).map(
    ([id, score]) => '"' + id.replaceAll('"', '""') + '",' + (score === null ? "" : score)
  );
  save(fileName("csv"), "text/csv", ["rollout_id,score", ...rows].join("\\n") + "\\n");
});
keep();
</script>
</body>
</html>
"""


def make_label_sheet(
    *, sample_path: str | Path, role_paths: Iterable[str | Path], sheet_path: str | Path
) -> None:
    """Write audit/sheet.html: the sample to be scored by people, in its (shuffled) order."""
    columns = ["rollout_id", "role", "question", "response"]
    rows = read_table(sample_path, columns)[0].to_pylist()
    descriptions = {role.name: role.description for role in map(load_role, role_paths)}
    items = [{**row, "description": descriptions[row["role"]].strip()} for row in rows]
    data = {"id": digest([row["rollout_id"] for row in rows])[:12], "items": items}
    text = json.dumps(data, ensure_ascii=True).replace("<", "\\u003c")  # cannot end the script
    write_text(sheet_path, _PAGE.replace("{data}", text))
