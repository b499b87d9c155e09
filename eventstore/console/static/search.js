// The search page: empty conditions stay out of the address, and a span of time is chosen on the chart, by
// dragging over bars or with the arrow keys. Without this file the bars are links, and the form is a form.
"use strict";

(() => {
  const NS = "http://www.w3.org/2000/svg";
  const STILL_PX = 4; // less of a movement is a click

  function form() {
    return document.getElementById("search-form");
  }

  // The browser sends a field that is disabled no more than one that is not there.
  document.addEventListener("formdata", (event) => {
    if (event.target !== form()) return;
    for (const [name, value] of [...event.formData.entries()]) {
      if (!value.trim()) event.formData.delete(name);
    }
  });

  function choose(first, last) {
    const fields = form().elements;
    fields.recorded_from.value = first.dataset.from;
    fields.recorded_to.value = last.dataset.to;
    form().requestSubmit();
  }

  function brush(svg) {
    const bars = [...svg.querySelectorAll("a")];
    if (!bars.length) return;
    const band = document.createElementNS(NS, "rect");
    band.setAttribute("class", "brush");
    band.setAttribute("y", "0");
    band.setAttribute("height", "120");
    band.setAttribute("pointer-events", "none");
    let drag = null; // {start, from, to}: x in pixels, the bars at both ends by number
    let ends = null; // [anchor, moving] of a choice by keyboard

    function barAt(clientX) {
      const box = svg.getBoundingClientRect();
      const x = ((clientX - box.left) / box.width) * 1000;
      const found = bars.findIndex((bar) => x < Number(bar.dataset.x) + Number(bar.dataset.width));
      return found < 0 ? bars.length - 1 : found;
    }

    function show(one, other) {
      const first = bars[Math.min(one, other)];
      const last = bars[Math.max(one, other)];
      const x = Number(first.dataset.x);
      band.setAttribute("x", String(x));
      band.setAttribute("width", String(Number(last.dataset.x) + Number(last.dataset.width) - x));
      svg.append(band);
    }

    function take(one, other) {
      choose(bars[Math.min(one, other)], bars[Math.max(one, other)]);
    }

    function stop() {
      drag = null;
      ends = null;
      band.remove();
    }

    svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      const at = barAt(event.clientX);
      drag = { start: event.clientX, from: at, to: at };
    });
    svg.addEventListener("pointermove", (event) => {
      if (!drag || Math.abs(event.clientX - drag.start) < STILL_PX) return;
      if (!svg.hasPointerCapture(event.pointerId)) svg.setPointerCapture(event.pointerId);
      drag.moved = true;
      drag.to = barAt(event.clientX);
      show(drag.from, drag.to);
    });
    svg.addEventListener("pointerup", () => {
      if (drag && drag.moved) take(drag.from, drag.to);
      else stop();
    });
    svg.addEventListener("pointercancel", stop);
    // A drag that ends on a bar is no click on it.
    svg.addEventListener("click", (event) => { if (drag && drag.moved) event.preventDefault(); }, true);
    svg.addEventListener("dragstart", (event) => event.preventDefault());

    // One stop for the Tab key; arrows go from bar to bar, with Shift they choose several.
    bars.forEach((bar, index) => bar.setAttribute("tabindex", index === bars.length - 1 ? "0" : "-1"));
    svg.addEventListener("keydown", (event) => {
      const at = bars.indexOf(document.activeElement);
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -bars.length, End: bars.length }[event.key];
      if (event.key === "Escape") stop();
      if (event.key === "Enter" && ends) {
        event.preventDefault();
        take(...ends);
      }
      if (at < 0 || step === undefined) return;
      event.preventDefault();
      const next = Math.max(0, Math.min(bars.length - 1, at + step));
      if (event.shiftKey) {
        ends = [ends ? ends[0] : at, next];
        show(...ends);
      } else {
        stop();
      }
      bars.forEach((bar) => bar.setAttribute("tabindex", bar === bars[next] ? "0" : "-1"));
      bars[next].focus();
    });
  }

  function begin() {
    for (const svg of document.querySelectorAll("[data-search-chart]:not([data-ready])")) {
      svg.dataset.ready = "";
      brush(svg);
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    begin();
    document.body.addEventListener("htmx:load", begin);
  });
})();
