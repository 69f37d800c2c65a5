// Connects the page: passes server-sent events to the model and the view.
// Decides when the connection counts as lost. model.js decides the order; view.js draws.

import { Model } from "./model.js";
import { View } from "./view.js";

// The server sends something at least every 15 s. Without two of these heartbeats the connection is lost.
const SILENCE_MS = 40_000;
// The pause before another attempt is between one and two times this, so that many pages do not come back at once.
const RETRY_MS = 2_000;

const model = new Model();
const view = new View(document, model);

let source = null;
let heardAt = 0;
let retry = 0;

function heard() {
  heardAt = performance.now();
}

function on(name, handle) {
  source.addEventListener(name, (event) => {
    heard();
    try {
      handle(JSON.parse(event.data));
    } catch (error) {
      model.unreadable += 1; // it must not stop those that follow
      console.error(error);
    }
    view.draw();
  });
}

function connect() {
  clearTimeout(retry);
  source?.close();
  source = new EventSource("/api/v1/events");
  heard();
  on("snapshot", (slice) => {
    model.snapshot(slice);
    if (slice.last) {
      view.setTotals(slice.live, slice.final, model.ranked().length);
      view.setConnection(true, slice.state);
    }
  });
  on("call", (entry) => model.put(entry));
  on("packet", (entry) => {
    view.noteFinal(entry);
    model.put(entry);
  });
  on("remove", ({ call_id: callId }) => model.remove(callId));
  on("state", ({ state, now }) => {
    model.clock(now);
    view.setConnection(true, state);
  });
  source.addEventListener("error", () => {
    view.setConnection(false, null);
    // The browser closes a refused stream (a 503, a proxy's error page) for good: open another one.
    if (source.readyState === EventSource.CLOSED) retry = setTimeout(connect, RETRY_MS * (1 + Math.random()));
  });
}

setInterval(() => {
  view.tick();
  if (performance.now() - heardAt > SILENCE_MS) {
    view.setConnection(false, null);
    connect();
  }
}, 1000);

connect();
view.draw();
