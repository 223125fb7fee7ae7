// The dashboard works without this file. With it: no whole page is loaded twice, times are the reader's own, lists answer to keys.

const assets = JSON.parse(document.querySelector('meta[name="assets"]').content);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);
const isTyping = (element) => element instanceof HTMLElement && (element.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(element.tagName));

// ── Times ──

const exactly = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const moment = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const toMilliseconds = new Intl.DateTimeFormat(undefined, {
  year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3,
});
const relative = new Intl.RelativeTimeFormat(undefined, { numeric: "auto", style: "short" });
const STEPS = [[60, 1, "second"], [3600, 60, "minute"], [86400, 3600, "hour"], [7 * 86400, 86400, "day"]];

function told(at) {
  const seconds = (at - Date.now()) / 1000;
  // Of what is long past one wants to know when it was, not about how long ago.
  if (seconds < -86400 && seconds > -300 * 86400) return moment.format(at);
  for (const [below, size, unit] of STEPS) {
    if (Math.abs(seconds) < below) return relative.format(Math.trunc(seconds / size), unit);
  }
  return day.format(at);
}

function tellTimes(root = document) {
  for (const element of all("time[datetime]", root)) {
    const at = new Date(element.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    element.textContent = "exact" in element.dataset ? toMilliseconds.format(at) : told(at);
    element.title = `${exactly.format(at)} (${element.dateTime})`;
  }
}

// ── Copying ──

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Plain http has no clipboard of its own.
    const field = document.createElement("textarea");
    field.value = text;
    field.className = "sr-only";
    (one("dialog[open]") || document.body).append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
}

export async function copied(button, text) {
  await copy(text);
  const label = one("span", button) || button;
  const before = label.textContent;
  label.textContent = "Copied";
  setTimeout(() => { label.textContent = before; }, 1500);
}

// ── Forms ──

function makeRows(editor) {
  const list = one("[data-list]", editor);
  const show = () => {
    for (const button of all("[data-remove]", list)) button.hidden = list.children.length < 2;
  };
  const add = one("[data-add]", editor);
  add.hidden = false;
  add.onclick = () => {
    const next = Math.max(-1, ...all("[name]", list).map((field) => Number(field.name.split(".")[1]))) + 1;
    const row = list.lastElementChild.cloneNode(true);
    for (const error of all(".error", row)) error.remove();
    for (const field of all("[name]", row)) {
      field.name = field.name.replace(/\.\d+\./, `.${next}.`);
      field.removeAttribute("aria-invalid");
      field.removeAttribute("aria-describedby");
      if (field.tagName === "INPUT") field.value = "";
    }
    list.append(row);
    show();
    one("input", row).focus();
  };
  list.addEventListener("click", (event) => {
    const button = event.target.closest("[data-remove]");
    if (!button) return;
    button.closest("[data-row]").remove();
    show();
  });
  show();
}

function makeBulk(form) {
  const bar = one("[data-bulk-bar]", form);
  const every = one("[data-all]", form);
  if (!bar || !every) return;
  const boxes = () => all('tbody input[type="checkbox"]', form);
  const show = () => {
    const ticked = boxes().filter((box) => box.checked).length;
    bar.hidden = ticked === 0;
    one("[data-bulk-count]", bar).textContent = `${ticked} selected`;
    every.checked = ticked > 0 && ticked === boxes().length;
    every.indeterminate = ticked > 0 && ticked < boxes().length;
  };
  every.onchange = () => {
    for (const box of boxes()) box.checked = every.checked;
    show();
  };
  form.addEventListener("change", show);
  show();
}

function makeFilter(form) {
  let pause;
  form.addEventListener("input", (event) => {
    if (event.target.tagName === "SELECT") return;
    clearTimeout(pause);
    pause = setTimeout(() => form.isConnected && form.requestSubmit(), 350);
  });
  form.addEventListener("change", (event) => {
    if (event.target.tagName === "SELECT") form.requestSubmit();
  });
}

// A form on its way is out of reach until its answer is here: the answer would wipe out whatever was typed meanwhile.
const held = new WeakMap();

function hold(form) {
  if (!(form instanceof HTMLFormElement) || form.method !== "post" || held.has(form)) return;
  const fields = [...form.elements].filter((field) => !field.disabled);
  held.set(form, { fields, focused: document.activeElement });
  form.setAttribute("aria-busy", "true");
  for (const field of fields) field.disabled = true;
}

function release(form) {
  const kept = held.get(form);
  if (!kept) return;
  held.delete(form);
  form.removeAttribute("aria-busy");
  for (const field of kept.fields) field.disabled = false;
  if (form.contains(kept.focused)) kept.focused.focus();
}

// Sections that the reader has opened stay open when a form comes back with what is wrong in it.
let opened = [];

const titleOf = (summary) => summary.textContent.trim();

function noteOpened(source) {
  opened = source instanceof HTMLFormElement ? all("details[open] > summary").map(titleOf) : [];
}

function openAgain() {
  for (const summary of all("details:not([open]) > summary")) {
    if (opened.includes(titleOf(summary))) summary.parentElement.open = true;
  }
  opened = [];
}

// ── The keyboard ──

let selected = null;

function rows() {
  return all("table[data-nav] tbody tr").filter((row) => one("[data-open]", row));
}

function select(row) {
  for (const other of all('tr[aria-selected="true"]')) other.removeAttribute("aria-selected");
  selected = row;
  if (!row) return;
  row.setAttribute("aria-selected", "true");
  one("[data-open]", row).focus({ preventScroll: true });
  row.scrollIntoView({ block: "nearest" });
}

function step(by) {
  const found = rows();
  if (!found.length) return;
  const at = found.indexOf(selected);
  select(found[Math.min(Math.max(at + by, 0), found.length - 1)]);
}

const PLACES = { o: "/admin/", u: "/admin/usage", k: "/admin/keys", m: "/admin/models", a: "/admin/audit", p: "/admin/playground", s: "/admin/settings" };
let isGoing = false;

function go(path) {
  const link = all(".side nav a").find((each) => each.getAttribute("href") === path);
  if (link) link.click();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    if (isTyping(document.activeElement)) document.activeElement.blur();
    select(null);
    one("#menu")?.classList.remove("open");
    return;
  }
  if (isTyping(event.target) || one("dialog[open]")) return;
  if (isGoing) {
    isGoing = false;
    if (PLACES[event.key]) go(PLACES[event.key]);
    return;
  }
  switch (event.key) {
    case "/": event.preventDefault(); one("#find").focus(); one("#find").select(); break;
    case "j": step(1); break;
    case "k": step(-1); break;
    case "g": isGoing = true; setTimeout(() => { isGoing = false; }, 1200); break;
    case "x": {
      const box = selected && one('input[type="checkbox"]', selected);
      if (box) box.click();
      break;
    }
    case "?": one("#keys-help").showModal(); break;
  }
});

// ── Clicks, wherever they fall ──

document.addEventListener("click", (event) => {
  const copying = event.target.closest("[data-copy]");
  if (copying) copied(copying, copying.dataset.copy);
  if (event.target.closest("[data-menu]")) {
    event.preventDefault();
    one("#menu").classList.toggle("open");
  } else if (!event.target.closest("#menu")) {
    one("#menu")?.classList.remove("open");
  }
});
document.addEventListener("focusin", (event) => {
  if (event.target.matches("[data-select]")) event.target.select();
});
document.addEventListener("submit", (event) => {
  const form = event.target.closest("[data-theme-form]");
  if (!form) return;
  event.preventDefault();
  event.stopPropagation();
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  document.cookie = `ag_theme=${root.dataset.theme}; path=/admin; max-age=31536000; samesite=lax`;
  document.dispatchEvent(new Event("theme"));
}, true);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("theme")));

// ── Every page, however it came ──

const enhanced = new WeakSet();

function once(selector, make) {
  for (const element of all(selector)) {
    if (enhanced.has(element)) continue;
    enhanced.add(element);
    make(element);
  }
}

function enhance() {
  tellTimes();
  for (const button of all("[data-copy][hidden]")) button.hidden = false;
  once("[data-rows]", makeRows);
  once("[data-bulk]", makeBulk);
  once("[data-filter]", makeFilter);
  once("#series", () => import(assets.charts).then((module) => module.start(assets)));
  once("[data-playground]", (form) => import(assets.playground).then((module) => module.start(form, copied)));
  const wrong = one('[aria-invalid="true"]');
  if (wrong && !enhanced.has(wrong)) {
    enhanced.add(wrong);
    wrong.focus();
  }
}

for (const name of ["htmx:after:swap", "htmx:after:settle"]) document.addEventListener(name, enhance);
document.addEventListener("htmx:before:request", (event) => {
  selected = null;
  hold(event.detail.ctx.sourceElement);
});
document.addEventListener("htmx:finally:request", (event) => release(event.detail.ctx.sourceElement));
document.addEventListener("htmx:before:swap", (event) => noteOpened(event.detail.ctx.sourceElement));
document.addEventListener("htmx:after:swap", openAgain);
setInterval(tellTimes, 30000);
enhance();
document.documentElement.dataset.ready = "yes";
