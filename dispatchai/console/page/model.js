// The model of the page: the entries by call_id, their order and the server's clock.
// Decides the order and which entries are kept. view.js draws; main.js connects.

// Finals kept in the page, the highest of the queue: twice as many as a snapshot carries.
const MAX_FINALS = 1000;

// The server's order: weight descending, then created_at, then call_id. created_at is RFC 3339 in UTC with six
// digits, so that the order of the texts is that of the times. The status of a call does not matter.
export function compareEntries(a, b) {
  if (a.ranking.weight !== b.ranking.weight) return b.ranking.weight - a.ranking.weight;
  if (a.ranking.created_at !== b.ranking.created_at) return a.ranking.created_at < b.ranking.created_at ? -1 : 1;
  return a.call_id < b.call_id ? -1 : a.call_id > b.call_id ? 1 : 0;
}

export class Model {
  #entries = new Map();
  #incoming = null;
  #ranked = null;
  #skewMs = 0;

  // Takes one slice of a snapshot. The entries from before stay until the last slice is in.
  snapshot(slice) {
    if (slice.first) this.#incoming = new Map();
    this.clock(slice.now);
    if (this.#incoming === null) return;
    for (const entry of slice.entries) this.#incoming.set(entry.call_id, entry);
    if (slice.last) {
      this.#entries = this.#incoming;
      this.#incoming = null;
      this.#ranked = null;
    }
  }

  put(entry) {
    this.#entries.set(entry.call_id, entry);
    this.#ranked = null;
    if (entry.final && this.#entries.size > MAX_FINALS) {
      const finals = this.ranked().filter((known) => known.final);
      for (const surplus of finals.slice(MAX_FINALS)) this.remove(surplus.call_id);
    }
  }

  remove(callId) {
    if (this.#entries.delete(callId)) this.#ranked = null;
  }

  get(callId) {
    return this.#entries.get(callId);
  }

  ranked() {
    this.#ranked ??= [...this.#entries.values()].sort(compareEntries);
    return this.#ranked;
  }

  live() {
    return this.ranked().filter((entry) => !entry.final);
  }

  // Takes the server's clock in milliseconds since the Unix epoch: waiting times do not depend on this machine's clock.
  clock(serverMs) {
    this.#skewMs = serverMs - Date.now();
  }

  now() {
    return Date.now() + this.#skewMs;
  }
}

// The order in which things are drawn. While it is held nothing moves: new things are added at the end, things that are
// gone are removed, and the true order returns on release.
export class HeldOrder {
  #order = [];
  #held = false;

  get held() {
    return this.#held;
  }

  hold(held) {
    this.#held = held;
  }

  // Takes the ids in their true order; returns them in the order to draw.
  next(ids) {
    if (this.#held) {
      const present = new Set(ids);
      const kept = this.#order.filter((id) => present.has(id));
      const known = new Set(kept);
      this.#order = [...kept, ...ids.filter((id) => !known.has(id))];
    } else {
      this.#order = [...ids];
    }
    return this.#order;
  }
}
