"use strict";
// Events of videos do not bubble; they are caught on their way down.
const catching = (name, act) => document.addEventListener(name, (event) => act(event.target), true);
const show = (element, note) => {
  const item = element.closest("li");
  if (item && item.querySelector(note)) item.querySelector(note).hidden = false;
};
catching("play", (playing) => {
  for (const video of document.querySelectorAll("video")) if (video !== playing) video.pause();
});
catching("loadedmetadata", (video) => {
  if (video.currentSrc.endsWith("/conversion")) show(video, ".converted");
});
catching("error", (source) => {
  if (source.matches("ol.moments source:last-of-type")) show(source, ".gone");
});
