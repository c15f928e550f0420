// The page: what is asked for (`wanted`), the request, and the answer put on the page. All text is set as text.
"use strict";

const PAGE_SIZE = 24;
const $ = (id) => document.getElementById(id);
let wanted = { text: "", image: null, like: "", filters: {} };
let shown = 0;
let request = null;
let fields = {}; // counts of the first answer, without filters
let answered = wanted; // what the products on the page were found for
let reasons = null; // the request of the dialog

const quoted = (value) => JSON.stringify(value);

function where() {
  return Object.entries(wanted.filters)
    .filter(([, values]) => values.size)
    .map(([field, values]) => `${field} in [${[...values].map(quoted).join(", ")}]`)
    .join(" and ");
}

async function ask(skip) {
  const sizes = { top: PAGE_SIZE, skip };
  if (wanted.image) {
    const form = new FormData();
    form.append("image", wanted.image);
    for (const [name, value] of Object.entries({ text: wanted.text, where: where(), ...sizes })) form.append(name, value);
    return fetch("search", { method: "POST", body: form, signal: request.signal });
  }
  const asked = wanted.like ? { like: wanted.like } : { text: wanted.text };
  return fetch(`search?${new URLSearchParams({ ...asked, where: where(), ...sizes })}`, { signal: request.signal });
}

async function search(more = false) {
  if (!wanted.text.trim() && !wanted.image && !wanted.like) return $("text").focus();
  request?.abort();
  request = new AbortController();
  const mine = request;
  say("Searching ..");
  document.body.classList.add("busy");
  try {
    const begin = performance.now();
    const response = await ask(more ? shown : 0);
    const answer = await response.json();
    if (mine !== request) return;
    if (!response.ok) throw new Error(answer.error || `error ${response.status}`);
    show(answer, more, performance.now() - begin);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!more) clear();
    say(error instanceof TypeError ? "The server does not answer: try again." : error.message, true);
  } finally {
    if (mine === request) document.body.classList.remove("busy");
  }
}

function clear() {
  $("products").replaceChildren();
  shown = 0;
  $("more").hidden = true;
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

function show(answer, more, milliseconds) {
  answered = { ...wanted };
  if (!more) clear();
  for (const product of answer.products) $("products").append(card(product, answer.mode));
  shown += answer.products.length;
  $("more").hidden = !answer.more;
  if (!where()) fields = answer.counts;
  showFilters(answer.counts);
  const times = Object.entries(answer.seconds).map(([stage, s]) => `${stage} ${Math.round(1000 * s)} ms`);
  const found = shown ? `${shown} products` : "No product was found: use other words, or fewer filters.";
  say([found, ...answer.notes, `${times.join(", ")}, in all ${Math.round(milliseconds)} ms`].join(" · "));
}

function card(product, mode) {
  const item = $("card").content.cloneNode(true);
  const image = item.querySelector("img");
  if (product.picture) image.src = product.picture.slice(1);
  const like = item.querySelector(".like");
  like.title = "More like this";
  like.setAttribute("aria-label", `More like ${product.text}`);
  like.addEventListener("click", () => moreLike(product));
  item.querySelector(".text").textContent = product.text;
  item.querySelector(".text").title = product.text;
  item.querySelector(".category").textContent = product.fields.category;
  const why = item.querySelector(".why");
  why.setAttribute("aria-label", `Why ${product.text}`);
  why.addEventListener("click", () => showReason(product));
  item.querySelector(".score").textContent = product.score.toFixed(mode === "hybrid" ? 3 : 2);
  return item;
}

async function askReason(product) {
  const { signal } = reasons;
  if (answered.image && !answered.text.trim()) {
    const form = new FormData();
    form.append("id", product.id);
    form.append("image", answered.image);
    return fetch("explain", { method: "POST", body: form, signal });
  }
  const asked = answered.like ? { like: answered.like } : { text: answered.text };
  return fetch(`explain?${new URLSearchParams({ id: product.id, ...asked })}`, { signal });
}

async function showReason(product) {
  $("reason-parts").hidden = true;
  $("reason-status").textContent = "Explaining ..";
  $("reason-status").classList.remove("wrong");
  $("reason").showModal();
  reasons?.abort();
  reasons = new AbortController();
  try {
    const response = await askReason(product);
    const reason = await response.json();
    if (!response.ok) throw new Error(reason.error || `error ${response.status}`);
    drawReason(reason, product);
  } catch (error) {
    if (error.name === "AbortError") return;
    $("reason-status").textContent = error instanceof TypeError ? "The server does not answer: try again." : error.message;
    $("reason-status").classList.add("wrong");
  }
}

function drawReason(reason, product) {
  const digits = reason.scores_matches ? 2 : 3;
  $("reason-image").src = reason.picture ? reason.picture.slice(1) : $("asked").querySelector("img").src;
  const side = reason.patches.length;
  const values = reason.patches.flat();
  $("reason-cells").style.setProperty("--side", side);
  $("reason-cells").replaceChildren(...values.map((value) => coloured("span", value, strongest(values), digits)));
  const ofWords = reason.words.map(({ value }) => value);
  const words = reason.words.map(({ word, value }) => {
    const mark = coloured("mark", value, strongest(ofWords), digits);
    const said = Object.assign(document.createElement("span"), { className: "hidden" });
    said.textContent = ` (${value > 0 ? "+" : ""}${value.toFixed(digits)})`;
    mark.append(word, said);
    return mark;
  });
  $("reason-words").replaceChildren(...words.flatMap((word) => [word, " "]));
  const kind = reason.scores_matches ? "match score" : "cosine";
  const notes = [`${kind} of these words with this picture ${reason.score.toFixed(digits)}`];
  if (reason.in_text.length) notes.push(`also in its text: ${reason.in_text.join(", ")}`);
  $("reason-notes").textContent = `${notes.join(" · ")}. The search also counts the product's own text.`;
  $("reason-status").textContent = product.text;
  $("reason-parts").hidden = false;
}

const strongest = (values) => Math.max(...values.map(Math.abs), 1e-9);

function coloured(tag, value, most, digits) {
  const part = document.createElement(tag);
  part.className = value > 0 ? "for" : "against";
  part.style.setProperty("--strength", Math.abs(value) / most);
  part.title = value.toFixed(digits);
  return part;
}

function showFilters(counts) {
  const groups = Object.entries(fields).map(([field, values]) => {
    const chosen = wanted.filters[field] ?? new Set();
    const list = document.createElement("ul");
    for (const value of new Set([...chosen, ...Object.keys(values)])) {
      const label = document.createElement("label");
      const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: chosen.has(value) });
      box.addEventListener("change", () => {
        const values = (wanted.filters[field] ??= new Set());
        box.checked ? values.add(value) : values.delete(value);
        search();
      });
      const count = Object.assign(document.createElement("span"), { className: "count" });
      count.textContent = (where() ? counts[field]?.[value] : values[value]) ?? "";
      label.append(box, value, count);
      list.append(Object.assign(document.createElement("li"), {}));
      list.lastChild.append(label);
    }
    const group = document.createElement("section");
    group.append(Object.assign(document.createElement("h2"), { textContent: field }), list);
    return group;
  });
  $("filters").replaceChildren(...groups.filter((group) => group.querySelector("li")));
}

function showAsked(source, text) {
  const image = Object.assign(document.createElement("img"), { src: source, alt: "" });
  const off = Object.assign(document.createElement("button"), { type: "button", textContent: "Remove" });
  off.addEventListener("click", () => {
    wanted = { ...wanted, image: null, like: "" };
    $("image").value = "";
    $("asked").hidden = true;
    if (wanted.text.trim()) search();
    else clear(), say("");
  });
  $("asked").replaceChildren(image, text, off);
  $("asked").hidden = false;
}

function takePicture(file) {
  if (!file) return;
  URL.revokeObjectURL($("asked").querySelector("img")?.src);
  wanted = { ...wanted, image: file, like: "", filters: {} };
  showAsked(URL.createObjectURL(file), "by this picture; words say what should be different");
  search();
}

function moreLike(product) {
  wanted = { text: "", image: null, like: product.id, filters: {} };
  $("text").value = "";
  showAsked(product.picture.slice(1), `more like ${product.text.slice(0, 60)}`);
  window.scrollTo({ top: 0 });
  search();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  wanted = { ...wanted, text: $("text").value, like: "", filters: {} };
  if (!wanted.image) $("asked").hidden = true;
  search();
});
$("image").addEventListener("change", () => takePicture($("image").files[0]));
$("choose").addEventListener("click", () => $("image").click());
$("reason").addEventListener("close", () => reasons?.abort());
$("more").addEventListener("click", () => search(true));
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== $("text")) event.preventDefault(), $("text").focus();
});

let inside = 0;
addEventListener("dragenter", (event) => (event.preventDefault(), inside++, ($("drop").hidden = false)));
addEventListener("dragleave", () => --inside || ($("drop").hidden = true));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  inside = 0;
  $("drop").hidden = true;
  takePicture(event.dataTransfer.files[0]);
});
