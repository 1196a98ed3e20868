"use strict";
// Media events do not bubble, so the listeners are registered for the capture phase.
const listen = (name, handler) =>
  document.addEventListener(name, (event) => handler(event.target), true);
const showNote = (element, selector) => {
  const note = element.closest("li")?.querySelector(selector);
  if (note) note.hidden = false;
};
// The controls of a video only appear after its first play, to keep the results readable.
const showControls = (video) => {
  const frame = video.closest(".frame");
  if (!frame) return;
  frame.classList.add("started");
  video.controls = true;
};
listen("play", (playing) => {
  showControls(playing);
  for (const video of document.querySelectorAll("video")) if (video !== playing) video.pause();
});
listen("loadedmetadata", (video) => {
  if (video.currentSrc.endsWith("/conversion")) showNote(video, ".converted");
});
listen("click", (button) => {
  if (!button.matches(".frame button")) return;
  const video = button.previousElementSibling;
  showControls(video);
  video.focus();
  video.play().catch(() => {});
});
listen("error", (source) => {
  if (source.matches("ol.moments source:last-of-type")) showNote(source, ".unavailable");
});
