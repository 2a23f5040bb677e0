"use strict";
const slider = document.getElementById("layer");
if (slider) {
  const told = document.getElementById("told");
  const tokens = [...document.querySelectorAll("[data-layers]")];
  const show = () => {
    const layer = Number(slider.value), counts = [0, 0, 0];
    for (const token of tokens) {
      const state = Number(token.dataset.layers[layer]);
      counts[state]++;
      token.classList.toggle("gone", state === 0);
      token.classList.toggle("keys", state === 1);
    }
    told.textContent = `layer ${layer}: ${counts[2]} full rows, ${counts[1]} keys only, ${counts[0]} gone`;
  };
  slider.addEventListener("input", show);
  show();
}
// inside of another page: say how high this one is
if (parent !== window) new ResizeObserver(() => {
  parent.postMessage({ drawing: document.documentElement.getBoundingClientRect().height }, "*");
}).observe(document.documentElement);
