"use strict";
// A map of features: a point for each example, its thumbnail under the pointer, and a class picked from the legend.
const maps = JSON.parse(document.getElementById("maps").textContent);
const tip = document.getElementById("tip");
const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, EDGE, SIDE, COLUMNS] = [1000, 640, 30, 64, 25];

// Hues a golden angle apart, so that classes with neighboring numbers differ; gray has no class.
const colorOf = (c) => (c < 0 ? "#808894" : `hsl(${(c * 137.5) % 360} 65% ${[45, 60, 52][c % 3]}%)`);

function show(point, classes, x, y) {
  tip.firstElementChild.style.backgroundPosition =
    `${-(point.t % COLUMNS) * SIDE}px ${-Math.floor(point.t / COLUMNS) * SIDE}px`;
  tip.lastElementChild.textContent = point.c < 0 ? point.n : `${classes[point.c]}: ${point.n}`;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 4))}px`;
  tip.style.top = `${y + 14 + box.height > innerHeight ? Math.max(4, y - box.height - 10) : y + 14}px`;
}

function choose(map, circles, points, chosen) {
  map.classList.toggle("chosen", chosen !== null);
  circles.forEach((circle, i) => circle.classList.toggle("on", points[i].c === chosen));
}

for (const map of document.querySelectorAll("[data-map]")) {
  const { points, classes } = maps[map.dataset.map];
  const svg = map.querySelector("svg");
  const circles = points.map((point) => {
    const circle = document.createElementNS(SVG, "circle");
    circle.setAttribute("cx", EDGE + point.x * (WIDTH - 2 * EDGE));
    circle.setAttribute("cy", EDGE + point.y * (HEIGHT - 2 * EDGE));
    circle.setAttribute("r", 7);
    circle.setAttribute("fill", colorOf(point.c));
    circle.addEventListener("pointerenter", (event) => show(point, classes, event.clientX, event.clientY));
    circle.addEventListener("pointerleave", () => { tip.hidden = true; });
    svg.append(circle);
    return circle;
  });
  let kept = null;  // a class that was clicked stays chosen
  classes.forEach((name, c) => {
    const item = document.createElement("li");
    const dot = document.createElement("i");
    dot.style.background = colorOf(c);
    item.append(dot, name);
    item.addEventListener("pointerenter", () => choose(map, circles, points, c));
    item.addEventListener("pointerleave", () => choose(map, circles, points, kept));
    item.addEventListener("click", () => {
      kept = kept === c ? null : c;
      choose(map, circles, points, kept);
    });
    map.querySelector(".legend").append(item);
  });
}
addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
