// The model of the page: the entries by call_id, their order and the server's clock.
// Decides the order, which entries are kept, and which cannot be shown. view.js draws; main.js connects.

// Finals kept in the page, the highest of the queue: more than a snapshot carries.
const MAX_FINALS = 1000;

const NOT_SHOWN = "This call cannot be shown, because its record is damaged. Its caller may need help.";

const isText = (value) => typeof value === "string";
const isNumber = Number.isFinite;
const isList = (of) => (value) => Array.isArray(value) && value.every(of);
const isPart = (part) => isText(part.reason) && isNumber(part.points) && isList((item) => item !== null)(part.evidence);

function hasRanking({ ranking }) {
  return isNumber(ranking?.weight) && isNumber(ranking.priority) && isText(ranking.created_at);
}

// Whether view.js can draw the entry.
function canBeShown(entry) {
  const { risk, audio, nlp } = entry;
  return (
    hasRanking(entry) &&
    [entry.summary, entry.partial, risk.level, nlp.transcript, nlp.category, nlp.emotion.label].every(isText) &&
    [risk.score, audio.distress_score, audio.distress_max, audio.distress_now, audio.voiced_seconds,
      audio.audio_seconds, nlp.emotion.intensity].every(isNumber) &&
    [entry.services, entry.unknowns, nlp.tags].every(isList(isText)) &&
    isList(isPart)(entry.parts)
  );
}

// The entry, or in place of one that cannot be drawn one that says so: it must not hide the others. Without a ranking
// it stands at the top.
export function shownAs(entry) {
  try {
    if (canBeShown(entry)) return entry;
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // a field is missing
  }
  return {
    call_id: entry.call_id,
    not_shown: true,
    final: entry.final === true,
    call_status: entry.final === true ? "ENDED" : "ACTIVE",
    summary: NOT_SHOWN,
    partial: "",
    risk: { level: "UNKNOWN", score: 0 },
    ranking: hasRanking(entry) ? entry.ranking : { priority: 1, weight: 1000, created_at: new Date().toISOString() },
    audio: {
      distress_score: 0, distress_max: 0, distress_now: 0, voiced: false, voiced_seconds: 0, audio_seconds: 0,
      missing_frames: 0,
    },
    nlp: { transcript: "", transcript_omitted: 0, category: "UNKNOWN", tags: [], emotion: { label: "UNKNOWN", intensity: 0 } },
    services: [],
    parts: [],
    unknowns: [],
    degraded: null,
  };
}

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

  // Events that could not be read at all.
  unreadable = 0;

  // Takes one slice of a snapshot. The entries from before stay until the last slice is in.
  snapshot(slice) {
    if (slice.first) this.#incoming = new Map();
    this.clock(slice.now);
    if (this.#incoming === null) return;
    for (const entry of slice.entries) this.#incoming.set(entry.call_id, shownAs(entry));
    if (slice.last) {
      this.#entries = this.#incoming;
      this.#incoming = null;
      this.#ranked = null;
    }
  }

  put(entry) {
    this.#entries.set(entry.call_id, shownAs(entry));
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

  // How many calls are in the lists only as calls that cannot be shown.
  notShown() {
    return this.ranked().filter((entry) => entry.not_shown).length;
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
