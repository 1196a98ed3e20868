"use strict";
// Events of videos do not bubble; they are caught on their way down.
const catching = (name, act) => document.addEventListener(name, (event) => act(event.target), true);
const show = (element, note) => {
  const item = element.closest("li");
  if (item && item.querySelector(note)) item.querySelector(note).hidden = false;
};
// Two dozen rows of knobs would hide what was found: they come with the first play.
const begin = (video) => {
  const frame = video.closest(".frame");
  if (!frame) return;
  frame.classList.add("begun");
  video.controls = true;
};
catching("play", (playing) => {
  begin(playing);
  for (const video of document.querySelectorAll("video")) if (video !== playing) video.pause();
});
catching("loadedmetadata", (video) => {
  if (video.currentSrc.endsWith("/conversion")) show(video, ".converted");
});
catching("click", (button) => {
  if (!button.matches(".frame button")) return;
  const video = button.previousElementSibling;
  begin(video);
  video.focus();
  video.play().catch(() => {});
});
catching("error", (source) => {
  if (source.matches("ol.moments source:last-of-type")) show(source, ".gone");
});
