// What the page knows: the entries by call_id, their order and the state of the connection.
// Decides order and what is kept. Leaves drawing to view.js and the connection to main.js.

// Finals kept in the page, the highest of the queue: as many as a snapshot carries, twice.
const MAX_FINALS = 1000;

// The server's order: weight descending, then created_at, then call_id. created_at is RFC 3339 in UTC with six
// digits, so that text order is time order. The status of a call has no part in it.
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

  // One slice of a snapshot. What was known before stays in place until the last slice is in.
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

  // The server's clock in milliseconds since the Unix epoch: waiting times do not hang on this machine's clock.
  clock(serverMs) {
    this.#skewMs = serverMs - Date.now();
  }

  now() {
    return Date.now() + this.#skewMs;
  }
}

// The order in which things are drawn. While it is held nothing moves: what is new is added at the end, what is
// gone is taken out, and the true order comes back with the release.
export class HeldOrder {
  #order = [];
  #held = false;

  get held() {
    return this.#held;
  }

  hold(held) {
    this.#held = held;
  }

  // ids in their true order; returns them in the order to draw.
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
