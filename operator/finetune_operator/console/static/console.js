// Renews the sections of a page. One in which somebody types, chooses or selects text waits until that is over.
"use strict";
const sections = document.getElementById("sections");
const waiting = new Map();

function inUse(old) {
  const chosen = document.getSelection();
  return old.contains(document.activeElement) || (!chosen.isCollapsed && old.contains(chosen.anchorNode))
    || old.querySelector("details[open]") !== null;
}

function renew() {
  for (const [id, html] of waiting) {
    const old = document.getElementById(id);
    if (old === null || inUse(old)) continue;
    waiting.delete(id);
    if (old.parentElement !== sections) {
      if (old.textContent !== html) old.textContent = html;
      continue;
    }
    const made = document.createElement("template");
    made.innerHTML = html;
    old.replaceWith(made.content);
  }
}

if (sections !== null) {
  const news = new EventSource(sections.dataset.live);
  news.onmessage = event => {
    for (const [id, html] of Object.entries(JSON.parse(event.data))) waiting.set(id, html);
    renew();
  };
  news.onerror = () => {
    waiting.set("problem", "The console does not answer; this page is not renewed now. Reload it to sign in again.");
    renew();
  };
  for (const kind of ["focusout", "selectionchange", "toggle"]) {
    document.addEventListener(kind, () => setTimeout(renew), true);
  }
}
