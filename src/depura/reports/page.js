"use strict";
// Each trajectory gets a slider that shows one of its frames at a time. Without this script all frames stand side by side.
for (const trajectory of document.querySelectorAll(".trajectory")) {
  const frames = [...trajectory.querySelectorAll(".frames figure")];
  const row = document.createElement("div");
  const slider = document.createElement("input");
  const all = document.createElement("button");
  row.className = "slider";
  slider.type = "range";
  slider.min = 0;
  slider.max = frames.length - 1;
  slider.value = 0;
  slider.setAttribute("aria-label", "step of the reverse process, from the clean image to the purified one");
  all.type = "button";
  const show = () => {
    const chosen = Number(slider.value);
    frames.forEach((frame, k) => frame.classList.toggle("shown", k === chosen));
    slider.setAttribute("aria-valuetext", frames[chosen].querySelector("figcaption").textContent);
  };
  const slide = (on) => {
    trajectory.classList.toggle("sliding", on);
    slider.hidden = !on;
    all.textContent = on ? "all frames" : "one at a time";
  };
  slider.addEventListener("input", show);
  all.addEventListener("click", () => slide(!trajectory.classList.contains("sliding")));
  row.append(slider, all);
  trajectory.querySelector(".frames").before(row);
  show();
  slide(true);
}
