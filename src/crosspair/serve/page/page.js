"use strict";

const API = "api/v1";
let library = {};
let query = null; // the last search: { text } or { video }

// Text is only ever inserted as a text node or a property, so titles and file names are not parsed.
function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties))
    name in node ? (node[name] = value) : node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function formatTime(seconds) {
  const pad = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  const rest = pad(Math.floor(seconds) % 60);
  return hours ? `${hours}:${pad(minutes)}:${rest}` : `${minutes}:${rest}`;
}

function shorten(text) {
  return text.length > 300 ? `${text.slice(0, 150)} … ${text.slice(-100)}` : text;
}

async function request(path, options) {
  const response = await fetch(`${API}/${path}`, options).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("the server does not answer");
  });
  if (response.ok) return response.json();
  const { detail } = await response.json().catch(() => ({}));
  throw new Error(detail || response.statusText);
}

async function sendVideo(path, video, fields, options) {
  if (video.size > library.max_upload)
    throw new Error(`${video.name} exceeds the maximum of ${library.max_upload / 1e6} MB`);
  const body = new FormData();
  for (const [name, value] of Object.entries({ video, ...fields })) body.append(name, value);
  return request(path, { ...options, method: "POST", body });
}

// Run a task and show its result or its error. A new task cancels the previous one.
async function show(panel, message, task) {
  const results = panel.querySelector(".results");
  panel.controller?.abort();
  const controller = (panel.controller = new AbortController());
  const waiting = setTimeout(
    () => results.replaceChildren(element("p", { className: "summary" }, message)), 300);
  try {
    const nodes = await task({ signal: controller.signal });
    if (!controller.signal.aborted) results.replaceChildren(...nodes);
  } catch (error) {
    if (!controller.signal.aborted)
      results.replaceChildren(
        element("p", { className: "error", role: "alert" }, `Error: ${shorten(error.message)}`));
  } finally {
    clearTimeout(waiting);
  }
}

function search(panel) {
  if (!query) return;
  const { text, video } = query;
  const folder = panel.querySelector("[name=folder]").value;
  show(panel, video ? `Searching for moments like ${video.name} …` : "Searching …", async (options) => {
    const where = new URLSearchParams({ folder });
    const moments = video
      ? await sendVideo(`search?${where}`, video, {}, options)
      : await request(`search?${where}&${new URLSearchParams({ text })}`, options);
    const count = moments.length ? `${moments.length} moment${moments.length > 1 ? "s" : ""}` : "No results";
    const summary = `${count} ${video ? `like ${video.name}` : `for “${shorten(text)}”`}`
      + (folder && ` in ${folder}`) + (moments.length > 1 ? ", best first" : "");
    return [
      element("p", { className: "summary", role: "status" }, summary),
      element("ol", { className: "moments" }, ...moments.map(momentItem)),
    ];
  });
}

function momentItem(moment, index) {
  const address = `${API}/moments/${moment.key}`;
  const range = `#t=${moment.start.toFixed(2)},${moment.end.toFixed(2)}`;
  const label = `${index + 1}: ${moment.title ?? moment.path}`;
  // A browser plays the first source that it supports.
  const converted = element("source", { src: `${address}?converted=true` });
  const video = element(
    "video",
    { preload: "none", playsInline: true, poster: `${address}/thumbnail`, ariaLabel: label },
    element("source", { src: address + range }), converted);
  const button = element(
    "button", { type: "button", ariaLabel: `play ${label}` },
    element("span", { ariaHidden: "true" }, "▶\uFE0E"));
  const frame = element("div", { className: "frame" }, video, button);
  const note = element(
    "p", { className: "note converted", hidden: true },
    "Converted for the browser: only this moment, without sound.");
  const unavailable = element(
    "p", { className: "unavailable", hidden: true },
    "This video is not playable: the file is missing or damaged, or the server is busy.");
  // The controls only appear after the first play, to keep the results readable.
  const start = () => {
    frame.classList.add("started");
    video.controls = true;
  };
  button.addEventListener("click", () => {
    start();
    video.focus();
    video.play().catch(() => {});
  });
  video.addEventListener("play", () => {
    start();
    for (const other of document.querySelectorAll("video")) if (other !== video) other.pause();
  });
  video.addEventListener("loadedmetadata", () => {
    note.hidden = video.currentSrc !== converted.src;
  });
  converted.addEventListener("error", () => (unavailable.hidden = false));
  return element(
    "li", {}, frame,
    element(
      "p", { className: "times" },
      element("span", {}, `${formatTime(moment.start)}–${formatTime(moment.end)}`),
      element("span", { title: "cosine similarity of query and moment" }, moment.score.toFixed(2).replace("-", "−"))),
    ...(moment.title ? [element("p", { className: "title", dir: "auto" }, moment.title)] : []),
    element("p", { className: "path", dir: "auto" }, moment.path), note, unavailable);
}

function classify(panel) {
  const form = panel.querySelector("form");
  const [file, classes] = [form.video.files[0], form.classes.value];
  show(panel, `Encoding ${file.name} …`, async (options) => {
    const answer = await sendVideo("classify", file, { classes }, options);
    const ranked = Object.entries(answer.classes).sort((a, b) => b[1] - a[1]);
    const summary = `${file.name}, ${formatTime(answer.length)}: ${ranked[0][0]}`;
    const image = `data:image/jpeg;base64,${answer.thumbnail}`;
    const nodes = [
      element("p", { className: "summary", role: "status" }, summary),
      element(
        "div", { className: "upload" }, element("img", { src: image, alt: "frame of the video" }),
        element("ol", { className: "classes" }, ...ranked.map(classItem))),
    ];
    if (answer.timeline.length > 1)
      nodes.push(
        element("h2", {}, "Timeline"),
        element("ol", { className: "timeline" }, ...answer.timeline.map(segmentItem)));
    const note = "The scores of all classes sum to 1: they compare the classes, and do not measure whether any class is right.";
    return [...nodes, element("p", { className: "note" }, note)];
  });
}

function classItem([name, score]) {
  const bar = element("div", {});
  bar.style.width = `${100 * score}%`;
  return element(
    "li", {}, element("span", { className: "name", dir: "auto" }, name),
    element("span", { className: "score" }, score.toFixed(2)),
    element("div", { className: "bar", ariaHidden: "true" }, bar));
}

function segmentItem({ start, end, label, score }) {
  return element(
    "li", {}, element("span", { className: "time" }, `${formatTime(start)}–${formatTime(end)}`),
    element("span", { className: "name", dir: "auto" }, label),
    element("span", { className: "score" }, score.toFixed(2)));
}

function selectTab(selected) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    tab.ariaSelected = String(tab === selected);
    tab.tabIndex = tab === selected ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = tab !== selected;
  }
  selected.focus();
}

async function loadLibrary() {
  const [description, folders] = await Promise.all([request("library"), request("folders")]);
  library = description;
  const count = (number) => number.toLocaleString("en");
  document.title = `${library.name} – crosspair`;
  document.getElementById("name").textContent = library.name;
  document.getElementById("size").textContent =
    `${count(library.videos)} videos, ${count(library.moments)} moments`;
  const select = document.querySelector("[name=folder]");
  select.append(...folders.map((name) => element("option", { value: name }, name)));
  select.closest("label").hidden = !folders.length;
  for (const node of document.querySelectorAll(".limits"))
    node.textContent = `At most ${library.max_length / 60} minutes and ${library.max_upload / 1e6} MB. `
      + "The file is deleted after it has been encoded.";
}

const [searchPanel, classifyPanel] = document.querySelectorAll("section");
searchPanel.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  query = { text: event.target.text.value };
  search(searchPanel);
});
searchPanel.querySelector("[name=folder]").addEventListener("change", () => search(searchPanel));
searchPanel.querySelector("[name=video]").addEventListener("change", (event) => {
  if (!event.target.files.length) return;
  query = { video: event.target.files[0] };
  search(searchPanel);
});
classifyPanel.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  classify(classifyPanel);
});
for (const tab of document.querySelectorAll("[role=tab]")) {
  tab.addEventListener("click", () => selectTab(tab));
  tab.addEventListener("keydown", (event) => {
    if (["ArrowLeft", "ArrowRight"].includes(event.key))
      selectTab(tab.nextElementSibling ?? tab.previousElementSibling);
  });
}
loadLibrary().catch((error) => {
  document.getElementById("size").textContent = `Error: ${error.message}`;
});
