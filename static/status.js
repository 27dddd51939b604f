// Refreshes the status page every two seconds, and retries what failed. All texts come rendered and escaped from
// the server; they are put in place as text and attributes, never as markup.
"use strict";

const REFRESH_MILLISECONDS = 2000;
const message = document.getElementById("message");

document.documentElement.classList.add("script"); // shows what works only with a script

// Change `shown` into `fresh` in place, so that focus, selection and scrolling stay where they are.
function update(shown, fresh) {
  for (const { name } of [...shown.attributes]) {
    if (!fresh.hasAttribute(name)) shown.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (shown.getAttribute(name) !== value) shown.setAttribute(name, value);
  }
  const before = [...shown.childNodes];
  const after = [...fresh.childNodes];
  after.forEach((node, index) => {
    const old = before[index];
    if (old === undefined) {
      shown.append(node);
    } else if (old.nodeName !== node.nodeName) {
      old.replaceWith(node);
    } else if (old.nodeType === Node.ELEMENT_NODE) {
      update(old, node);
    } else if (old.textContent !== node.textContent) {
      old.textContent = node.textContent;
    }
  });
  before.slice(after.length).forEach((node) => node.remove());
}

function say(text, isBad) {
  message.textContent = text;
  message.classList.toggle("bad", Boolean(isBad));
}

let isLost = false;

// Return an absolute address without the user and password that the page's own may have: fetch() refuses those, and
// the browser sends them anyway.
function address(path) {
  return new URL(path, location.origin);
}

async function refresh() {
  try {
    const answer = await fetch(address("/?fragment"), { headers: { Accept: "text/html" } });
    if (!(answer.headers.get("Content-Type") || "").startsWith("text/html")) {
      throw new Error(String(answer.status));
    }
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("content");
    update(document.getElementById("content"), document.adoptNode(fresh));
    if (isLost) say("");
    isLost = false;
  } catch {
    say(message.dataset.lost, true);
    isLost = true;
  }
}

async function redrive(button, body) {
  button.disabled = true;
  try {
    const answer = await fetch(address("/redrive"), {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    const content = await answer.json();
    if (answer.ok) {
      say(`${message.dataset.redriven} ${content.redriven}`);
    } else {
      say(`${message.dataset.refused} ${content.error}`, true);
    }
    await refresh();
  } catch {
    say(message.dataset.lost, true);
    isLost = true;
  } finally {
    button.disabled = false;
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button === null) return;
  if (button.dataset.redrive !== undefined) redrive(button, { urls: [button.dataset.redrive] });
  if (button.dataset.redriveAll !== undefined) redrive(button, { all: true });
});

async function keepFresh() {
  if (!document.hidden) await refresh();
  setTimeout(keepFresh, REFRESH_MILLISECONDS);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) refresh();
});
setTimeout(keepFresh, REFRESH_MILLISECONDS);
