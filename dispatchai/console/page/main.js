// Connects the page: server-sent events into the model, the pointer and the keyboard into the view.
// Decides when the connection counts as lost. Leaves order to model.js and drawing to view.js.

import { Model } from "./model.js";
import { View } from "./view.js";

// The server says something every 15 s at least; two silences and a bit are a loss.
const SILENCE_MS = 40_000;
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
    handle(JSON.parse(event.data));
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
    // A refused stream (a 503, a proxy's error page) is closed for good by the browser: open another.
    if (source.readyState === EventSource.CLOSED) retry = setTimeout(connect, RETRY_MS);
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
