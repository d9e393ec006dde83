// The page Live reloads its lists every two seconds, unless it is paused or in the background.
(() => {
  const frame = document.getElementById("live");
  const said = document.getElementById("live-said");
  const button = document.getElementById("live-pause");
  const EVERY = 2000;
  let paused = false;
  let asking = false;

  // Written only when it changes, because screen readers read each change.
  const say = (what) => {
    if (said.textContent === said.dataset[what]) return;
    said.textContent = said.dataset[what];
    said.classList.toggle("ls-lost", what === "lost");
  };

  // The row with the keyboard focus keeps it when its list is replaced.
  const draw = (text) => {
    const focused = frame.contains(document.activeElement) ? document.activeElement.dataset.row : null;
    const known = new Set([...frame.querySelectorAll("[data-row]")].map((row) => row.dataset.row));
    frame.innerHTML = text;
    for (const row of frame.querySelectorAll("[data-row]")) {
      if (!known.has(row.dataset.row)) row.classList.add("ls-new");
      if (row.dataset.row === focused) row.focus({ preventScroll: true });
    }
  };

  const ask = async () => {
    if (paused || asking || document.hidden) return;
    asking = true;
    try {
      const answer = await fetch(frame.dataset.url, {
        headers: { "HX-Request": "true" },
        signal: AbortSignal.timeout(5000),
      });
      const text = await answer.text();
      if (answer.redirected || answer.status === 403) {
        window.location.reload(); // logged out meanwhile
      } else if (!answer.ok) {
        say("lost");
      } else if (!paused) {
        draw(text);
        say("going");
      }
    } catch {
      if (!paused) say("lost");
    } finally {
      asking = false;
    }
  };

  button.hidden = false;
  button.addEventListener("click", () => {
    paused = !paused;
    button.setAttribute("aria-pressed", String(paused));
    button.querySelector("[data-said]").textContent = paused ? "Go on" : "Pause";
    button.querySelector(".material-symbols-outlined").textContent = paused ? "play_arrow" : "pause";
    say(paused ? "paused" : "going");
    ask();
  });
  document.addEventListener("visibilitychange", ask);
  say("going");
  setInterval(ask, EVERY);
})();
