// Buttons that copy the text of an element: <button data-copy="its id" hidden>.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  if (!navigator.clipboard) return; // not offered over plain http, where the text can still be selected
  for (const button of document.querySelectorAll("[data-copy]")) {
    const name = button.textContent;
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Not copied: select the text instead";
      }
      setTimeout(() => { button.textContent = name; }, 2000);
    });
  }
});
