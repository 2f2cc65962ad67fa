// Keeps the room live: at each server-sent event, <main> is replaced by the server's own rendering.
// What a person is doing survives it: focus, selection, scroll, typed text, opened parts.
"use strict";

const lost = document.getElementById("link-lost");
const live = document.getElementById("live");
const language = document.documentElement.lang;
const REFRESH_MS = 20000; // times left move without any event
const LOST_AFTER_MS = 5000; // a reconnection takes about a second

let updating = false;
let again = false;
let lostTimer = 0;

function reachable(yes) {
  if (yes) {
    clearTimeout(lostTimer);
    lostTimer = 0;
    lost.hidden = true;
  } else if (lostTimer === 0) {
    lostTimer = setTimeout(() => { lost.hidden = false; }, LOST_AFTER_MS);
  }
}

function swap(next) {
  const main = document.getElementById("room");
  const active = document.activeElement;
  const focus = main.contains(active) && active.id ? active.id : "";
  const selection = focus && "selectionStart" in active ? [active.selectionStart, active.selectionEnd] : null;
  for (const old of main.querySelectorAll("textarea[id], input[id]:not([type=hidden])")) {
    const fresh = next.querySelector("#" + CSS.escape(old.id));
    if (fresh) fresh.value = old.value;
  }
  for (const old of main.querySelectorAll("details[id]")) {
    const fresh = next.querySelector("#" + CSS.escape(old.id));
    if (fresh) fresh.open = old.open;
  }
  const scrolls = [...main.querySelectorAll(".scroll")].map((part) => part.scrollLeft);
  const top = window.scrollY;
  main.replaceWith(next);
  next.querySelectorAll(".scroll").forEach((part, number) => { part.scrollLeft = scrolls[number] || 0; });
  window.scrollTo(window.scrollX, top);
  if (focus) {
    const target = document.getElementById(focus) || next;
    target.focus({ preventScroll: true });
    if (selection && target !== next) target.setSelectionRange(...selection);
  }
  if (live.textContent !== next.dataset.live) live.textContent = next.dataset.live;
}

async function update() {
  if (updating) { again = true; return; }
  updating = true;
  do {
    again = false;
    try {
      const answer = await fetch("/fragments/room?lang=" + language, { signal: AbortSignal.timeout(10000) });
      if (!answer.ok) throw new Error(String(answer.status));
      const parsed = new DOMParser().parseFromString(await answer.text(), "text/html");
      // A form that is being sent keeps its fields: the answer replaces the page anyway.
      if (!document.body.dataset.sending) swap(document.adoptNode(parsed.getElementById("room")));
      reachable(true);
    } catch (error) {
      reachable(false);
    }
  } while (again);
  updating = false;
}

document.addEventListener("submit", (event) => {
  if (document.body.dataset.sending) { event.preventDefault(); return; }
  document.body.dataset.sending = "yes";
});
window.addEventListener("pageshow", () => { delete document.body.dataset.sending; });

// Exams that were taken from this reader, here: shown until they say that they saw it, also when a form or
// a link brings another page meanwhile. An event may come again after a reconnection.
const lostBox = document.getElementById("claims-lost");
const reader = document.body.dataset.reader;
const LOST_MAX = 20; // a reader holds one exam, rarely two
const stored = (name) => { try { return sessionStorage.getItem(name); } catch (error) { return null; } };
const store = (name, text) => { try { sessionStorage.setItem(name, text); } catch (error) { /* shown, not kept */ } };
let lostClaims = [];
try { lostClaims = JSON.parse(stored("claims-lost-" + reader)) || []; } catch (error) { lostClaims = []; }

function showLost() {
  store("claims-lost-" + reader, JSON.stringify(lostClaims));
  const say = lostBox.dataset;
  lostBox.querySelector("ul").replaceChildren(...lostClaims.map((lost) => {
    const item = document.createElement("li");
    const by = lost.by ? " " + say.by + " " + lost.by : "";
    const why = lost.why ? " – " + say.why + " " + lost.why : "";
    item.textContent = "⚠ " + say.lost + " " + lost.exam + by + why;
    return item;
  }));
  lostBox.hidden = lostClaims.length === 0;
}

function claimLost(event) {
  const said = JSON.parse(event.data);
  const own = reader && said.details.user === reader && String(said.details.site) === document.body.dataset.site;
  if (!own || lostClaims.some((lost) => lost.cursor === said.cursor)) return;
  const by = said.user && said.user !== reader ? said.user + ", " + said.site_name : "";
  const lost = { cursor: said.cursor, exam: said.exam, by, why: said.details.reason };
  lostClaims = [...lostClaims, lost].slice(-LOST_MAX);
  showLost();
}

document.getElementById("claims-lost-seen").addEventListener("click", () => {
  lostClaims = [];
  showLost();
});
showLost();

// From what the last page of this tab was told: nothing falls between two pages.
const seen = stored("seen") || document.body.dataset.seen;
const events = new EventSource("/api/v1/events?seen=" + encodeURIComponent(seen));
events.addEventListener("claim-lost", claimLost);
events.addEventListener("queue", (event) => store("seen", event.lastEventId));
events.addEventListener("queue", update);
events.addEventListener("error", () => reachable(false));
events.addEventListener("open", () => reachable(true));
setInterval(update, REFRESH_MS);
