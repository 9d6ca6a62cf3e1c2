"use strict";
// Everything of a text, a label or a run enters the page as text, never as markup.

const CHUNK = 64, PAGE = 50; // texts that are sent at a time at most, and that are shown at a time
const SPACE = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/; // as Python parts words
const at = (id) => document.getElementById(id);
let about = { runs: {}, explains: [], limit: 1 }, scored = [], shown = 0, table = null, turn = 0;

function make(tag, content, attributes = {}) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (content !== undefined && content !== null) made.append(...[content].flat());
  return made;
}

async function ask(path, body, raw = false) {
  const headers = { "content-type": raw ? "application/octet-stream" : "application/json" };
  const options = body === undefined ? {} : { method: "POST", headers, body: raw ? body : JSON.stringify(body) };
  let response;
  try { response = await fetch(path, options); } catch { throw new Error("the server does not answer"); }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw Object.assign(new Error(answer.error || `the server answers ${response.status}`), { status: response.status });
  return answer;
}

async function patiently(path, body) { // a full queue is not the end of a long file
  for (let pause = 500; ; pause = Math.min(2 * pause, 8000)) {
    try { return await ask(path, body); } catch (error) {
      if (error.status !== 503) throw error;
      await new Promise((go) => setTimeout(go, pause));
    }
  }
}

const chosen = () => [...document.querySelectorAll("#runs input:checked")].map((box) => box.value);

function fail(error) { at("error").textContent = error.message; at("status").textContent = ""; }

async function score(rows, column) {
  const mine = ++turn, begun = performance.now();
  for (const id of ["error", "status"]) at(id).textContent = "";
  await known; // who asks before the runs have come waits for them
  if (mine !== turn) return;
  const runs = chosen();
  if (!runs.length) return fail(new Error("choose a saved run"));
  scored = []; shown = 0; at("results").replaceChildren(); at("download").hidden = at("more").hidden = at("legend").hidden = true;
  const kept = rows.filter((row) => String(row[column] ?? "").trim());
  if (!kept.length) return fail(new Error("no text to score"));
  const many = Math.max(1, Math.min(CHUNK, Math.floor(about.limit / runs.length))); // more would never be let in
  try {
    for (let i = 0; i < kept.length; i += many) {
      at("status").textContent = `${i} of ${kept.length} texts scored`;
      const some = kept.slice(i, i + many), texts = some.map((row) => String(row[column]));
      const answer = await patiently("/predict", { texts, runs });
      if (mine !== turn) return; // another was asked for meanwhile
      some.forEach((row, j) => scored.push({ row, text: texts[j], said: Object.fromEntries(runs.map((run) => [run, answer[run][j]])) }));
      at("legend").hidden = false;
      if (shown < PAGE) show(PAGE - shown);
    }
  } catch (error) { if (mine === turn) fail(error); return; }
  const left = rows.length - kept.length;
  const took = performance.now() - begun, time = took < 1000 ? `${took.toFixed(0)} ms` : `${(took / 1000).toFixed(1)} s`;
  at("status").textContent = `${kept.length} texts scored in ${time}${left ? `; ${left} empty ones left out` : ""}`;
  at("download").hidden = false;
}

function show(count) {
  for (const item of scored.slice(shown, shown + count)) at("results").append(result(item, ++shown));
  at("more").hidden = shown >= scored.length;
}

const words = (text) => text.split(SPACE).filter((word) => word);

function result(item, number) {
  const article = make("article", make("h3", `Text ${number}`));
  const marking = [];
  for (const [run, said] of Object.entries(item.said)) {
    for (const [task, of] of Object.entries(about.runs[run].tasks)) if (of.about === "words") marking.push([run, task, of, said]);
  }
  if (!marking.length) article.append(make("p", item.text, { class: "post" }));
  for (const [run, task, of, said] of marking) {
    const cut = of.thresholds ? of.thresholds[0] : 0.5, scores = said[`pred_${task}_scores`].split(" ").map(Number);
    const marked = words(item.text).map((word, i) => [word, scores[i] >= Math.fround(cut) ? "rationale" : "", scores[i]]);
    article.append(make("p", [make("span", marking.length > 1 ? `${run}, ${task}: ` : "", { class: "legend" }), ...line(marked)], { class: "post" }));
  }
  article.append(...grids(item));
  if (about.explains.length) article.append(why(item));
  return article;
}

function line(marked) { // words, each with the kind of its mark and its score
  return marked.flatMap(([word, kind, score], i) => {
    const title = Number.isFinite(score) ? { title: `${word}: ${score.toFixed(3)}` } : {};
    return [i ? " " : "", kind ? make("mark", word, { class: kind, ...title }) : make("span", word, title)];
  });
}

function grids(item) { // a table a task, a column a run
  const runs = Object.keys(item.said), tasks = new Map();
  for (const run of runs) for (const [task, of] of Object.entries(about.runs[run].tasks)) if (of.about !== "words") tasks.set(task, [...(tasks.get(task) || []), [run, of]]);
  return [...tasks].map(([task, having]) => {
    const labels = [...new Set(having.flatMap(([, of]) => of.labels))];
    const predicted = having.map(([run]) => `${having.length > 1 ? `${run}: ` : ""}${item.said[run][`pred_${task}`] || "none"}`).join("; ");
    const head = make("tr", [make("th", "label", { scope: "col" }), ...having.map(([run]) => make("th", run, { scope: "col" }))]);
    const body = labels.map((label) => make("tr", [make("th", label, { scope: "row" }), ...having.map(([run, of]) => cell(item.said[run], task, label, of))]));
    const grid = make("table", [make("caption", `${task}: ${predicted}`), make("thead", head), make("tbody", body)]);
    return make("div", grid, { class: "box", role: "region", tabindex: "0", "aria-label": `Scores of ${task}` });
  });
}

function cell(said, task, label, of) {
  const score = said[`pred_${task}_${label}`];
  if (typeof score !== "number") return make("td", "");
  if (of.kind === "score") return make("td", score.toFixed(3), { class: "score" });
  const place = of.labels.indexOf(label), cut = of.thresholds ? of.thresholds[place] : null;
  const yes = cut === null ? said[`pred_${task}`] === label : score >= Math.fround(cut); // scores are of single precision
  const content = [make("meter", `${score.toFixed(3)}`, { min: 0, max: 1, value: score, "aria-hidden": "true" }), ` ${score.toFixed(3)}`];
  if (yes) content.push(" ✓");
  if (cut !== null) content.push(make("small", ` from ${cut.toFixed(2)}`));
  return make("td", content, { class: yes ? "score yes" : "score" });
}

function why(item) {
  const select = (name, options) => { const made = make("select", options.map((o) => make("option", o, { value: o })), { "aria-label": name }); return made; };
  const askable = (run) => Object.entries(about.runs[run].tasks).filter(([, of]) => of.about !== "words");
  const runs = Object.keys(item.said).filter((run) => askable(run).length), place = make("p", "", { class: "post", "aria-live": "polite" });
  const run = select("Saved run", runs), task = make("select", [], { "aria-label": "Task" }), label = make("select", [], { "aria-label": "Label" });
  const by = select("Method", about.explains), button = make("button", "Show", { type: "button" });
  const options = (of, names) => of.replaceChildren(...names.map((name) => make("option", name, { value: name })));
  const labels = () => options(label, about.runs[run.value].tasks[task.value].labels);
  const tasks = () => { options(task, askable(run.value).map(([name]) => name)); labels(); };
  run.addEventListener("change", tasks); task.addEventListener("change", labels);
  if (runs.length) tasks();
  button.addEventListener("click", async () => {
    button.disabled = true; place.textContent = "…";
    try {
      const answer = await ask("/explain", { text: item.text, run: run.value, task: task.value, label: label.value, by: by.value });
      const most = Math.max(...answer.words.map(([, share]) => Math.abs(share))) || 1;
      const marked = answer.words.map(([word, share]) => [word, Math.abs(share) < most / 5 ? "" : share > 0 ? "for" : "against", share]);
      place.replaceChildren(...line(marked), make("br"), make("mark", "for", { class: "for" }), " or ", make("mark", "against", { class: "against" }), ` ${answer.label}; hold the pointer over a word for its share`);
    } catch (error) { place.textContent = error.message; }
    button.disabled = false;
  });
  return make("details", [make("summary", "Which words?"), make("div", [...(runs.length > 1 ? [run] : []), task, label, by, button], { class: "row" }), place], { class: "why" });
}

async function read(file, column) {
  at("error").textContent = ""; at("status").textContent = `reading ${file.name}`;
  const query = new URLSearchParams({ name: file.name, ...(column ? { text: column } : {}) });
  try {
    table = await ask(`/table?${query}`, file, true);
    at("columns").replaceChildren(...table.columns.map((name) => make("option", name, { value: name })));
    at("columns").value = table.text; at("column").hidden = table.columns.length < 2;
    await score(table.rows, table.text);
  } catch (error) { fail(error); }
}

function save() {
  const lines = scored.flatMap(({ row, said }) => Object.entries(said).map(([run, one]) => {
    const { text, ...rest } = one;
    return JSON.stringify({ ...row, ...(Object.keys(said).length > 1 ? { run } : {}), ...rest });
  }));
  const link = make("a", "", { download: "scored.jsonl", href: URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "application/jsonl" })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault(); at("column").hidden = true;
  score(at("texts").value.split("\n").filter((text) => text.trim()).map((text) => ({ text })), "text");
});
at("texts").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("ask").requestSubmit(); });
at("file").addEventListener("change", () => { if (at("file").files[0]) read(at("file").files[0]); });
at("columns").addEventListener("change", () => score(table.rows, at("columns").value));
at("save").addEventListener("click", save);
at("next").addEventListener("click", () => show(PAGE));
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) document.addEventListener(name, (event) => {
  event.preventDefault(); at("drop").classList.toggle("over", name.startsWith("dragen") || name === "dragover");
  if (name === "drop" && event.dataTransfer.files[0]) read(event.dataTransfer.files[0]);
});

const known = ask("/runs").then((answer) => {
  about = answer;
  for (const run of Object.keys(about.runs)) {
    const box = make("input", null, { type: "checkbox", value: run, checked: "" });
    at("runs").append(make("label", [box, ` ${run}`]));
  }
  at("runs").hidden = Object.keys(about.runs).length < 2;
}).catch(fail);
