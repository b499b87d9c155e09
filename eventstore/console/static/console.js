// What every page has: the switch of light and dark, questions before what cannot be undone, and a word when
// a part of the page could not be had. Hooked by attributes; nothing here is needed to use the console.
"use strict";

(() => {
  const root = document.documentElement;

  function dark() {
    const chosen = root.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  function theme() {
    const button = document.querySelector("[data-theme-switch]");
    if (!button) return;
    const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
    button.setAttribute("aria-label", "Change between light and dark");
    button.hidden = false;
    name();
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      // The server writes it into the next page, so that no page flashes in the other colours.
      document.cookie = `eventstore-theme=${root.dataset.theme}; Path=/console; Max-Age=31536000; SameSite=Lax`;
      name();
    });
  }

  function trouble(text) {
    const place = document.getElementById("trouble");
    if (place) place.textContent = text;
  }

  function failed(event) {
    const status = event.detail.xhr ? event.detail.xhr.status : 0;
    if (status === 429) trouble("Too many requests: wait a moment, then try again.");
    else if (status === 403) trouble("This was refused. Load the page again; you may have to sign in again.");
    else if (status) trouble(`This part of the page could not be had (${status}). Load the page again.`);
    else trouble("The server does not answer. What is shown may be old; try again in a moment.");
  }

  document.addEventListener("DOMContentLoaded", () => {
    theme();
    document.body.addEventListener("htmx:responseError", failed);
    document.body.addEventListener("htmx:sendError", failed);
    document.body.addEventListener("htmx:timeout", failed);
    document.body.addEventListener("htmx:afterOnLoad", (event) => {
      if (event.detail.successful) trouble("");
    });
  });

  // <form data-confirm="Release this hold?">: asks before it is sent.
  document.addEventListener("submit", (event) => {
    const question = event.target.dataset.confirm;
    if (question && !window.confirm(question)) event.preventDefault();
  });
})();
