"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));
const tip = document.getElementById("tip");
const said = value => {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(1) : String(Number(value.toPrecision(3)));
};

// Charts: the values at the step nearest to the pointer.
for (const svg of all("svg[data-chart]")) {
  const chart = JSON.parse(svg.dataset.chart), cursor = svg.querySelector(".cursor");
  const [low, high] = chart.x, xs = [...new Set(chart.lines.flatMap(([, points]) => points.map(point => point[0])))];
  const hide = () => { cursor.style.visibility = "hidden"; tip.hidden = true; };
  const show = event => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const across = ((event.clientX - box.left) * scale - chart.left) / (chart.right - chart.left);
    const wanted = low + across * (high - low);
    const x = xs.reduce((best, step) => Math.abs(step - wanted) < Math.abs(best - wanted) ? step : best);
    const at = high > low ? chart.left + (x - low) / (high - low) * (chart.right - chart.left) : (chart.left + chart.right) / 2;
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    cursor.style.visibility = "visible";
    const rows = chart.lines.map(([label, points]) => [label, points.find(point => point[0] === x)])
      .filter(([, point]) => point).map(([label, point]) => [label, said(point[1])]);
    speak("step " + x, rows, event.clientX, event.clientY);
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}

function speak(title, rows, x, y) {
  tip.replaceChildren();
  const head = document.createElement("b"), table = document.createElement("table");
  head.textContent = title;
  for (const cells of rows) {
    const row = table.insertRow();
    for (const cell of cells) row.insertCell().textContent = cell;
  }
  tip.append(head, table);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(8, Math.min(x + 14, innerWidth - box.width - 8)) + "px";
  tip.style.top = (y + 20 + box.height > innerHeight ? Math.max(8, y - box.height - 14) : y + 20) + "px";
}

// Groups.
const groups = all(".group").map(element => ({
  element,
  data: data.groups[Number(element.dataset.group)],
  cells: all(".cell", element),
  bars: element.querySelector(".note.bars"),
  answers: all(".answers li", element).map(answer => ({ element: answer, tokens: all(".tokens i", answer) })),
}));
const scales = new Map(data.scales.map(scale => [scale.name, scale]));
let signal = data.scales.length ? data.scales[0].name : null, lookedBy = data.frame_signals.length ? data.frame_signals[0][0] : null;
let picked = null;

function shade() {
  const scale = scales.get(signal);
  for (const group of groups) group.answers.forEach((answer, a) => {
    const values = (group.data.tokens[signal] || [])[a] || [];
    answer.tokens.forEach((token, t) => {
      const value = values[t];
      let share = 0;
      if (value !== null && value !== undefined)
        share = scale.signed ? Math.abs(value) / scale.high : scale.high > scale.low ? (value - scale.low) / (scale.high - scale.low) : .3;
      share = Math.max(0, Math.min(1, share));
      token.style.setProperty("--v", share.toFixed(3));
      token.classList.toggle("deep", share > .58);
      token.classList.toggle("minus", value < 0);
    });
  });
  const ramp = document.querySelector(".ramp");
  ramp.replaceChildren(document.createElement("b"));
  ramp.classList.toggle("signed", scale.signed);
  ramp.dataset.low = (scale.beyond && scale.signed ? "≤ " : "") + said(scale.low);
  ramp.dataset.high = (scale.beyond ? "≥ " : "") + said(scale.high);
  document.querySelector(".legend .says").textContent = scale.says;
}

function look(group, answer = null, token = null) {
  const answers = group.data.frames[lookedBy];
  if (!answers || !group.cells.length) return;
  let values, whose;
  const rows = token !== null && group.data.token_frames[lookedBy];
  if (rows && rows[answer] && rows[answer][token]) {
    values = rows[answer][token];
    whose = "of the token “" + group.answers[answer].tokens[token].textContent.trim() + "”";
  } else if (answer !== null) {
    values = answers[answer];
    whose = "of this answer";
  } else {
    const known = answers.filter(Boolean);
    values = known[0].map((_, frame) => known.reduce((sum, of) => sum + of[frame], 0) / known.length);
    whose = "mean of " + known.length + " answers";
  }
  const total = values.reduce((sum, value) => sum + value, 0), most = Math.max(...values);
  group.cells.forEach((cell, frame) => {
    const heat = cell.querySelector(".heat"), height = most > 0 ? values[frame] / most : 0;
    heat.style.height = (100 * height).toFixed(1) + "%";
    heat.style.setProperty("--v", height.toFixed(3));
    cell.querySelector("output").textContent = total > 0 ? Math.round(100 * values[frame] / total) + "%" : "";
  });
  group.bars.textContent = "Bars: " + data.frame_signals.find(([name]) => name === lookedBy)[2] + ", " + whose + ".";
}

function pick(group, a, t, x, y) {
  drop();
  const token = group.answers[a].tokens[t];
  picked = { group, a, t };
  token.classList.add("on");
  look(group, a, t);
  const rows = data.scales.map(scale => [scale.title, (group.data.tokens[scale.name] || [])[a]])
    .filter(([, values]) => values).map(([title, values]) => [title, said(values[t])]);
  const box = token.getBoundingClientRect();
  speak(JSON.stringify(token.textContent).slice(1, -1) + "  ", rows, x ?? box.left, y ?? box.bottom - 14);
}

function drop() {
  if (picked) {
    picked.group.answers[picked.a].tokens[picked.t].classList.remove("on");
    look(picked.group);
  }
  picked = null;
  tip.hidden = true;
}

for (const group of groups) {
  look(group);
  group.answers.forEach((answer, a) => {
    answer.element.addEventListener("pointerover", event => {
      const t = answer.tokens.indexOf(event.target);
      if (t >= 0) pick(group, a, t, event.clientX, event.clientY);
      else { drop(); look(group, a); }
    });
    answer.element.addEventListener("pointerleave", event => { if (event.pointerType !== "touch") { drop(); look(group); } });
    answer.element.addEventListener("focus", () => { if (!picked) look(group, a); });
    answer.element.addEventListener("keydown", event => {
      const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") drop();
      if (!way || !answer.tokens.length) return;
      event.preventDefault();
      const from = picked && picked.group === group && picked.a === a ? picked.t : way > 0 ? -1 : answer.tokens.length;
      pick(group, a, Math.max(0, Math.min(answer.tokens.length - 1, from + way)));
    });
  });
}
document.addEventListener("pointerdown", event => { if (!event.target.closest(".answers li, svg")) drop(); });

function sort(by) {
  for (const group of groups) {
    const rank = a => by === "reward" ? -group.data.rewards[a] : a;
    const order = group.answers.map((_, a) => a).sort((a, b) => rank(a) - rank(b) || a - b);
    const list = group.element.querySelector(".answers");
    for (const a of order) list.append(group.answers[a].element);
  }
}

function at(step) {
  for (const group of groups) group.element.hidden = step !== "" && group.element.dataset.step !== step;
}

function choose(attribute, act) {
  const buttons = all("button[data-" + attribute + "]");
  for (const button of buttons) button.addEventListener("click", () => {
    for (const one of buttons) one.setAttribute("aria-pressed", one === button);
    act(button.dataset[attribute]);
  });
}
choose("signal", name => { signal = name; shade(); });
choose("sort", sort);
choose("bars", name => { lookedBy = name; groups.forEach(group => look(group)); });
choose("step", at);
if (groups.length) { shade(); sort("reward"); at(groups[groups.length - 1].element.dataset.step); }
if (matchMedia("(max-width: 40rem)").matches) for (const later of all("details.later")) later.open = false;
