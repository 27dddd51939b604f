// Keeps a page of the dashboard fresh, and sends what people do on it. All texts come rendered and escaped from the
// server; they are put in place as text and attributes, never as markup of our own.
"use strict";

const REFRESH_MILLISECONDS = 2000;
const SHOWN_MILLISECONDS = 10000;
const UNDO_MILLISECONDS = 30000;
const LINES_AT_ONCE = 100;
const TRIED_KEY = "signed-in-elsewhere";
const root = document.documentElement;
const live = document.getElementById("live");
const message = document.getElementById("message");

root.classList.add("script"); // shows what works only with a script

// ------------------------------------------------------------------------------------------ times

const between = new Intl.RelativeTimeFormat(root.lang, { numeric: "auto", style: "short" });
const day = new Intl.DateTimeFormat(root.lang, { dateStyle: "medium", timeStyle: "short" });
const exact = new Intl.DateTimeFormat(root.lang, { dateStyle: "full", timeStyle: "long" });
const UNITS = [["second", 60], ["minute", 60], ["hour", 24]];

// Return a moment as people near it say it; what is more than a day away, by the date in the viewer's zone.
function spoken(date) {
  let distance = (date - Date.now()) / 1000;
  if (Math.abs(distance) < 5) return between.format(0, "second");
  for (const [unit, size] of UNITS) {
    if (Math.abs(distance) < size - 0.5) return between.format(Math.round(distance), unit);
    distance /= size;
  }
  return day.format(date);
}

function showTimes() {
  for (const time of document.querySelectorAll("time[datetime]")) {
    const date = new Date(time.dateTime);
    const text = spoken(date);
    if (time.textContent !== text) time.textContent = text;
    if (time.dataset.shown !== time.dateTime) {
      time.title = exact.format(date);
      time.dataset.shown = time.dateTime;
    }
  }
}

// ------------------------------------------------------------------------------------------ what is said

let silence;
let isLost = false;

function say(text, undo) {
  message.querySelector("p").textContent = text;
  const button = message.querySelector("button");
  if (button) {
    button.hidden = !undo;
    button.onclick = undo || null;
  }
  clearTimeout(silence);
  if (text && !isLost) silence = setTimeout(() => say(""), undo ? UNDO_MILLISECONDS : SHOWN_MILLISECONDS);
}

// Return a sentence with its {names} replaced by what the server answered; of a list, how many it has.
function filled(sentence, answer) {
  return sentence.replace(/\{(\w+)\}/g, (all, name) => {
    const value = answer[name];
    return value === undefined ? all : String(Array.isArray(value) ? value.length : value);
  });
}

// ------------------------------------------------------------------------------------------ the server

// Return an absolute address without the user and password that the page's own may have: fetch() refuses those.
function address(path) {
  return new URL(path, location.origin);
}

let etag = "";

// While a form is open or being filled in, it stays as it is; so does what keeps itself fresh.
function staysAsItIs(shown, fresh) {
  if (!(shown instanceof Element)) return false;
  if (shown.hasAttribute("data-keep") || shown.matches("details[open]")) return true;
  return shown.localName === "time" && shown.dateTime === fresh.dateTime;
}

async function refresh() {
  const here = new URL(location.href);
  here.searchParams.set("fragment", "");
  try {
    const headers = { Accept: "text/html", ...(etag && { "If-None-Match": etag }) };
    const answer = await fetch(address(here.pathname + here.search), { headers });
    if (answer.status === 401) return location.reload(); // the session is over: the page that asks for the token
    if (answer.status !== 304) {
      if (!(answer.headers.get("Content-Type") || "").startsWith("text/html")) throw new Error(String(answer.status));
      show(await answer.text());
      etag = answer.headers.get("ETag") || "";
    }
    if (isLost) {
      isLost = false;
      say("");
    }
  } catch {
    isLost = true;
    say(document.body.dataset.lost);
  }
}

function show(html) {
  const fresh = new DOMParser().parseFromString(`<div id="live" data-live>${html}</div>`, "text/html").getElementById("live");
  Idiomorph.morph(live, fresh.childNodes, {
    morphStyle: "innerHTML",
    ignoreActiveValue: true,
    callbacks: {
      beforeNodeMorphed: (shown, next) => !staysAsItIs(shown, next),
      beforeAttributeUpdated: (name, node) => !(name === "disabled" && node.dataset.busy),
    },
  });
  live.dispatchEvent(new Event("refreshed"));
  shown();
}

const title = document.title;

function shown() {
  showTimes();
  const first = live.querySelector("[data-title]")?.dataset.title;
  document.title = first ? `${first} · ${title}` : title;
}

async function keepFresh() {
  if (!document.hidden) await refresh();
  setTimeout(keepFresh, REFRESH_MILLISECONDS);
}

// Send JSON, which no form of another site can send; return what is answered, or undefined after having said why not.
async function post(path, body) {
  try {
    const answer = await fetch(address(path), {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    const content = await answer.json();
    if (answer.ok) return content;
    say(`${document.body.dataset.refused} ${content.error}`);
  } catch {
    say(document.body.dataset.lost);
  }
  return undefined;
}

// ------------------------------------------------------------------------------------------ actions

function confirmed(question) {
  const dialog = document.getElementById("ask");
  document.getElementById("ask-what").textContent = question;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

async function act(button, path, body, dataset) {
  const data = { ...dataset }; // the button may be another one when the answer is there
  if (data.ask && !(await confirmed(data.ask))) return;
  button.disabled = true;
  button.dataset.busy = "1";
  const answer = await post(path, body);
  delete button.dataset.busy;
  button.disabled = false;
  if (answer === undefined) return;
  const undo = data.undo && (async () => {
    // Where the server tells what was before, that comes back, and what was so already stays.
    for (const was of answer.undo ?? [JSON.parse(data.undoBody)]) if (!(await post(data.undo, was))) return;
    say(document.body.dataset.undone);
    await refresh();
  });
  say(filled(data.done, answer), answer.undo?.length === 0 ? undefined : undo);
  await refresh();
}

// Return what was changed in a form: names with dots are fields of objects, numbers are numbers, empty is null.
function changes(form) {
  const body = JSON.parse(form.dataset.body);
  let count = 0;
  for (const field of form.querySelectorAll("input[name]")) {
    if (field.value.trim() === field.defaultValue) continue;
    const text = field.value.trim();
    if (!text && field.type === "number") continue;
    const names = field.name.split(".");
    const last = names.pop();
    const place = names.reduce((object, name) => (object[name] ??= {}), body);
    place[last] = field.type === "number" ? Number(text) : text || null;
    count += 1;
  }
  return count ? body : undefined;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button === null) return;
  const data = button.dataset;
  if (data.post !== undefined) act(button, data.post, JSON.parse(data.body), data);
  if (data.copy !== undefined) copy(button.closest("form").querySelector("code"));
  if (data.signOut !== undefined) post("/ui/sign-out", {}).then((answer) => answer && location.assign("/"));
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !isLost && !document.querySelector("dialog[open]")) say("");
});

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (form.dataset.once !== undefined) {
    event.preventDefault();
    return void showOnce(form);
  }
  if (form.dataset.post === undefined) return;
  event.preventDefault();
  const body = changes(form);
  if (body === undefined) return say(document.body.dataset.unchanged);
  const details = form.closest("details");
  await act(form.querySelector("button"), form.dataset.post, body, form.dataset);
  if (details) details.open = false;
});

document.addEventListener("change", (event) => {
  if (event.target.localName === "select") event.target.closest("form[data-filter]")?.requestSubmit();
});

// ------------------------------------------------------------------------------------------ adding many lines

function wishes() {
  const value = (id) => document.getElementById(id).value.trim();
  const since = value("since") && Math.floor(new Date(`${value("since")}T00:00`).getTime() / 1000);
  return {
    ...(value("limit") && { limit: Number(value("limit")) }),
    ...(since && { since }),
    ...(value("match") && { match: value("match") }),
    ...(document.getElementById("oldest").checked && { oldest_first: true }),
  };
}

function answerRow(item, words) {
  const row = document.createElement("li");
  row.className = "row";
  const what = document.createElement("div");
  what.className = "what";
  const line = document.createElement("p");
  line.className = "title";
  line.textContent = item.url;
  what.append(line);
  if (item.reason) {
    const reason = document.createElement("p");
    reason.className = "reason";
    reason.textContent = item.reason;
    what.append(reason);
  }
  const badge = document.createElement("span");
  badge.className = `badge ${{ added: "good", rejected: "bad" }[item.state] || ""}`;
  badge.textContent = words[item.state];
  row.append(what, badge);
  return row;
}

async function addLines(form) {
  const area = document.getElementById("lines");
  const lines = area.value.split("\n").map((line) => line.trim()).filter((line) => line && !line.startsWith("#"));
  if (!lines.length) return say(form.dataset.nothing);
  const words = form.dataset;
  const totals = { added: 0, known: 0, rejected: 0 };
  const answers = document.getElementById("answers");
  const heading = document.getElementById("answers-summary");
  const list = answers.querySelector("ol");
  const left = [];
  list.replaceChildren();
  const button = form.querySelector("button.main");
  button.disabled = true;
  const more = {
    category: document.getElementById("category").value.trim(),
    wishes: wishes(),
    again: document.getElementById("again").checked,
    refresh: document.getElementById("refresh").checked,
    watch: Number(document.getElementById("watch").value),
  };
  for (let first = 0; first < lines.length; first += LINES_AT_ONCE) {
    const part = lines.slice(first, first + LINES_AT_ONCE);
    const request = [...crypto.getRandomValues(new Uint32Array(4))].map((one) => one.toString(16)).join("");
    const answer = await post("/ui/add", { urls: part, request, ...more });
    if (answer === undefined) {
      left.push(...lines.slice(first));
      break;
    }
    for (const name of Object.keys(totals)) totals[name] += answer[name];
    left.push(...answer.items.filter((item) => item.state === "rejected").map((item) => item.url));
    const rows = answer.items.map((item) => answerRow(item, words));
    list.append(...rows.filter((row) => row.querySelector(".bad")), ...rows.filter((row) => !row.querySelector(".bad")));
    answers.hidden = false;
    heading.textContent = filled(words.summary, totals);
  }
  area.value = left.join("\n"); // what was not taken is there to be corrected
  button.disabled = false;
  if (!answers.hidden) heading.focus();
}

document.getElementById("add")?.addEventListener("submit", (event) => {
  event.preventDefault();
  addLines(event.target);
});

// ------------------------------------------------------------------------------------------ what is shown once

async function showOnce(form) {
  const button = form.querySelector("button.main");
  button.disabled = true;
  const answer = await post(form.dataset.once, Object.fromEntries(new FormData(form)));
  button.disabled = false;
  if (answer === undefined) return;
  const place = form.querySelector(".once");
  place.querySelector("code").textContent = form.dataset.before + answer[form.dataset.shown];
  place.hidden = false;
  await refresh();
}

// Without TLS a browser gives no clipboard: then the text is selected, to be copied by hand.
async function copy(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    code.closest("form").querySelector("[data-copy]").focus();
  } catch {
    getSelection().selectAllChildren(code);
  }
}

// ------------------------------------------------------------------------------------------ signing in

const signIn = document.getElementById("sign-in");
signIn?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = document.getElementById("password");
  if (await post("/ui/sign-in", { password: field.value })) location.reload();
  else field.select();
});

if (signIn && !sessionStorage.getItem(TRIED_KEY)) {
  // Whoever follows a link from another site comes without the session's cookie; asked from here, the browser sends it.
  sessionStorage.setItem(TRIED_KEY, "1");
  fetch(address("/ui/add"), { headers: { Accept: "text/html" } }).then((answer) => answer.ok && location.replace(location.href));
} else if (!signIn) {
  sessionStorage.removeItem(TRIED_KEY);
}

// ------------------------------------------------------------------------------------------ begin

showTimes();
setInterval(showTimes, 10000);
if (live?.hasAttribute("data-live")) {
  shown();
  document.addEventListener("visibilitychange", () => document.hidden || refresh());
  setTimeout(keepFresh, REFRESH_MILLISECONDS);
}
