// Draws the model. A caller's text goes into the page as textContent, never as markup.
// Decides what is drawn and when the order is held. model.js decides the order and the clock.

import { HeldOrder } from "./model.js";

// More rows and cards than anybody reads. The others are counted.
const MAX_ROWS = 200;
const MAX_CARDS = 60;
// Characters of the end of a transcript that a card shows. The call's detail shows all of it.
const CARD_TEXT = 1200;

const STATE_TEXT = {
  LIVE: "live",
  STARTING: "reading the queue…",
  RECONNECTING: "reconnecting to Kafka…",
  STOPPED: "stopped",
};
const DEGRADED_TEXT = {
  STARTING: "The queue is still being read: calls may be missing.",
  RECONNECTING: "Kafka cannot be reached. What is shown may be out of date.",
  STOPPED: "The server is stopping. What is shown may be out of date.",
};
const OFFLINE_TEXT = "No connection to the server. What is shown may be out of date.";

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function setHidden(element, hidden) {
  if (element.hidden !== hidden) element.hidden = hidden;
}

// Calls `rebuild` only if `value` has changed since the last call for this element.
const drawn = new WeakMap();
function whenChanged(element, value, rebuild) {
  const text = JSON.stringify(value);
  if (drawn.get(element) === text) return;
  drawn.set(element, text);
  rebuild();
}

// Gives `parent` these children in this order, and moves only those in the wrong place: an element that is not moved
// keeps its focus, its scroll position and its selection.
function arrange(parent, children) {
  const wanted = new Set(children);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  children.forEach((child, index) => {
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
}

function span(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor((whole % 3600) / 60);
  const rest = String(whole % 60).padStart(2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

function words(name) {
  return name.toLowerCase().replaceAll("_", " ");
}

function sentence(name) {
  const text = words(name);
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function score(value) {
  return value.toFixed(2);
}

function services(entry) {
  if (entry.services.length) return entry.services.join(" + ");
  return entry.nlp.category === "UNKNOWN" ? "Service not known yet" : entry.nlp.category;
}

function caller(entry) {
  return entry.from_masked ? `Caller ${entry.from_masked}` : "Number withheld";
}

function callState(entry) {
  if (entry.final) return "FINAL";
  return entry.call_status === "RINGING" ? "RINGING" : entry.call_status === "ENDED" ? "HUNG UP" : "LIVE";
}

// The level in words, with bars beside it: not everybody sees colours.
const LEVEL_BARS = { CRITICAL: 4, HIGH: 3, MEDIUM: 2, LOW: 1, UNKNOWN: 0 };
class Badge {
  element = make("span", "badge");
  #bars = make("span", "bars");
  #text = make("span", "level");

  constructor() {
    this.#bars.setAttribute("aria-hidden", "true");
    this.#bars.append(make("i"), make("i"), make("i"), make("i"));
    this.element.append(this.#bars, this.#text);
  }

  set(level) {
    setText(this.#text, level);
    this.element.dataset.level = level;
    this.#bars.dataset.count = LEVEL_BARS[level] ?? 0;
  }
}

class Tags {
  element = make("span", "tags");

  set(tags) {
    whenChanged(this.element, tags, () => {
      this.element.replaceChildren(...tags.map((tag) => make("span", "tag", words(tag))));
    });
    setHidden(this.element, tags.length === 0);
  }
}

class Row {
  element = make("li");
  button = make("button", "row");
  #rank = make("span", "rank");
  #badge = new Badge();
  #service = make("span", "service");
  #state = make("span", "state");
  #summary = make("span", "summary");
  #tags = new Tags();
  #caller = make("span", "caller");
  #time = make("span", "time");
  #entry = null;

  constructor(callId, select) {
    this.button.type = "button";
    this.button.dataset.callId = callId;
    this.button.addEventListener("click", () => select(callId));
    this.button.append(
      this.#rank,
      make("span", "top", this.#badge.element, this.#service, this.#state),
      this.#time,
      this.#summary,
      make("span", "under", this.#caller, this.#tags.element),
    );
    this.element.append(this.button);
  }

  set(entry, rank, selected, now) {
    this.#entry = entry;
    setText(this.#rank, String(rank));
    this.#badge.set(entry.risk.level);
    setText(this.#service, services(entry));
    setText(this.#state, callState(entry));
    this.#state.dataset.state = callState(entry);
    setText(this.#summary, entry.summary);
    this.#tags.set(entry.nlp.tags);
    setText(this.#caller, caller(entry));
    this.button.dataset.level = entry.risk.level;
    this.button.setAttribute("aria-pressed", String(selected));
    this.tick(now);
  }

  tick(now) {
    const entry = this.#entry;
    const seconds = (now - Date.parse(entry.ranking.created_at)) / 1000;
    setText(this.#time, entry.final ? `waiting ${span(seconds)}` : `on the line ${span(seconds)}`);
  }
}

class Transcript {
  element = make("div", "transcript");
  #before = make("span", "before");
  #final = make("span", "final");
  #partial = make("span", "partial");
  #none = make("span", "none", "Nothing said yet.");
  #limit;

  constructor(limit) {
    this.#limit = limit;
    this.element.append(this.#before, " ", this.#final, " ", this.#partial, this.#none);
    this.element.tabIndex = 0;
    this.element.setAttribute("role", "region");
    this.element.setAttribute("aria-label", "Transcript");
  }

  // `before`: characters in front of the transcript that are left out of it.
  set(transcript, partial, before) {
    const atEnd = this.element.scrollHeight - this.element.scrollTop - this.element.clientHeight < 24;
    const cut = transcript.length > this.#limit;
    setText(this.#final, cut ? transcript.slice(-this.#limit) : transcript);
    setText(this.#partial, partial);
    const shown = before > 0 && !cut ? `… ${before.toLocaleString("en")} characters before` : "…";
    setText(this.#before, shown);
    setHidden(this.#before, !cut && !(before > 0));
    setHidden(this.#none, Boolean(transcript || partial));
    if (atEnd) this.element.scrollTop = this.element.scrollHeight;
  }
}

class Meter {
  element = make("div", "meter");
  #bar = make("span", "fill");
  #mark = make("span", "mark");
  #value = make("span", "value");
  #track = make("span", "track", this.#bar, this.#mark);

  constructor() {
    this.#track.setAttribute("role", "meter");
    this.#track.setAttribute("aria-label", "Distress in the voice");
    this.#track.setAttribute("aria-valuemin", "0");
    this.#track.setAttribute("aria-valuemax", "1");
    this.element.append(make("span", "label", "Voice distress"), this.#track, this.#value);
  }

  set(audio, final) {
    const value = final ? audio.distress_score : audio.distress_now;
    const text = `${score(value)} ${final ? "mean" : "now"} · ${score(audio.distress_max)} max`;
    this.#bar.style.inlineSize = `${100 * value}%`;
    this.#mark.style.insetInlineStart = `${100 * audio.distress_max}%`;
    this.#track.setAttribute("aria-valuenow", String(value));
    this.#track.setAttribute("aria-valuetext", text);
    setText(this.#value, text);
  }
}

class Reasons {
  element = make("div", "why");
  #list = make("dl", "parts");
  #unknowns = make("p", "unknowns");

  constructor() {
    this.element.append(make("h4", "", "Why here"), this.#list, this.#unknowns);
  }

  set(entry) {
    whenChanged(this.#list, [entry.parts, entry.risk.score], () => {
      // Enough digits for the parts on the screen to add up to the score on the screen.
      const digits = entry.parts.every((part) => Math.abs(100 * part.points - Math.round(100 * part.points)) < 1e-6) ? 2 : 3;
      const rows = entry.parts.map((part) => {
        const reason = make("dt", "", part.reason);
        const said = part.evidence.map((item) => item.text).filter(Boolean);
        if (said.length) reason.append(" ", make("q", "", said.join(" … ")));
        return make("div", "", reason, make("dd", "", `${part.points < 0 ? "−" : "+"}${Math.abs(part.points).toFixed(digits)}`));
      });
      if (!rows.length) rows.push(make("div", "nothing", make("dt", "", "Nothing recognised yet"), make("dd", "", "")));
      rows.push(make("div", "total", make("dt", "", "Risk score"), make("dd", "", entry.risk.score.toFixed(digits))));
      this.#list.replaceChildren(...rows);
    });
    setText(this.#unknowns, entry.unknowns.length ? `not stated: ${entry.unknowns.join(", ")}` : "");
    setHidden(this.#unknowns, entry.unknowns.length === 0);
  }
}

class Card {
  element = make("article", "card");
  #badge = new Badge();
  #title = make("h3", "service");
  #state = make("span", "state");
  #time = make("span", "time");
  #summary = make("p", "summary");
  #trouble = make("p", "trouble");
  #transcript = new Transcript(CARD_TEXT);
  #meter = new Meter();
  #emotion = make("p", "emotion");
  #reasons = new Reasons();
  #entry = null;

  constructor(callId) {
    this.element.dataset.callId = callId;
    this.element.append(
      make("div", "top", this.#badge.element, this.#title, this.#state, this.#time),
      make("div", "heard", this.#summary, this.#trouble, this.#transcript.element, this.#meter.element, this.#emotion),
      this.#reasons.element,
    );
  }

  set(entry, now) {
    this.#entry = entry;
    this.#badge.set(entry.risk.level);
    setText(this.#title, services(entry));
    setText(this.#state, callState(entry));
    this.#state.dataset.state = callState(entry);
    setText(this.#summary, entry.summary);
    setText(this.#trouble, entry.degraded ?? "");
    setHidden(this.#trouble, !entry.degraded);
    this.#transcript.set(entry.nlp.transcript, entry.partial, entry.final ? 0 : entry.nlp.transcript_omitted);
    this.#meter.set(entry.audio, entry.final);
    setText(this.#emotion, `${caller(entry)} · ${emotionText(entry)}${entry.audio.voiced ? " · speaking" : ""}`);
    this.#reasons.set(entry);
    this.element.dataset.level = entry.risk.level;
    this.element.setAttribute("aria-label", `${entry.risk.level}, ${services(entry)}, ${caller(entry)}`);
    this.tick(now);
  }

  tick(now) {
    setText(this.#time, span((now - Date.parse(this.#entry.ranking.created_at)) / 1000));
  }
}

function emotionText(entry) {
  const { label, intensity } = entry.nlp.emotion;
  return label === "UNKNOWN" ? "state not known" : `${words(label)} ${score(intensity)}`;
}

class Detail {
  callId = null;
  #root;
  #title;
  #badge = new Badge();
  #service = make("span", "service");
  #state = make("span", "state");
  #summary = make("p", "summary");
  #facts = make("dl", "facts");
  #tags = new Tags();
  #transcript = new Transcript(Infinity);
  #meter = new Meter();
  #reasons = new Reasons();
  #number = null;
  #opener = null;

  constructor(root, title, body) {
    this.#root = root;
    this.#title = title;
    body.append(
      make("div", "top", this.#badge.element, this.#service, this.#state),
      this.#summary,
      this.#tags.element,
      this.#facts,
      make("h4", "", "Transcript"),
      this.#transcript.element,
      this.#meter.element,
      this.#reasons.element,
    );
  }

  open(callId) {
    this.#opener = document.activeElement;
    this.callId = callId;
    this.#number = "…";
    setHidden(this.#root, false);
    this.#root.scrollTop = 0;
    this.#root.focus({ preventScroll: true });
    this.#fetchNumber(callId);
  }

  close() {
    if (this.callId === null) return;
    this.callId = null;
    setHidden(this.#root, true);
    if (this.#opener?.isConnected) this.#opener.focus();
  }

  // The lists carry masked numbers. The whole number is loaded when a call is opened.
  async #fetchNumber(callId) {
    let number = "could not be loaded";
    try {
      const response = await fetch(`/api/v1/calls/${encodeURIComponent(callId)}`);
      if (response.ok) {
        const call = await response.json();
        number = (call.packet ?? call.live).from_number ?? "withheld";
      }
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // fetch reports a network failure as a TypeError
    }
    if (this.callId === callId) {
      this.#number = number;
      this.onNumber?.();
    }
  }

  set(entry) {
    setText(this.#title, `Call ${entry.call_id}`);
    this.#badge.set(entry.risk.level);
    setText(this.#service, services(entry));
    setText(this.#state, callState(entry));
    this.#state.dataset.state = callState(entry);
    setText(this.#summary, entry.summary);
    this.#tags.set(entry.nlp.tags);
    this.#transcript.set(entry.nlp.transcript, entry.partial, entry.final ? 0 : entry.nlp.transcript_omitted);
    this.#meter.set(entry.audio, entry.final);
    this.#reasons.set(entry);
    const facts = [
      ["Call back", this.#number],
      ["Number called", entry.to ?? "not known"],
      ["Caller's state", emotionText(entry)],
      ["Priority", `${entry.ranking.priority} · weight ${entry.ranking.weight}`],
      ["Started", clockTime(entry.started_at)],
      ["Hung up", entry.ended_at ? `${clockTime(entry.ended_at)} · ${words(entry.hangup_cause ?? "cause not known")}` : "no"],
      ["Voice", `${entry.audio.voiced_seconds.toFixed(1)} s of ${entry.audio.audio_seconds.toFixed(1)} s of audio`],
    ];
    if (entry.final) facts.push(["Packet", `version ${entry.version}${entry.complete ? "" : ", incomplete"}`]);
    if (entry.degraded) facts.push(["Degraded", entry.degraded]);
    if (entry.audio.missing_frames) facts.push(["Missing audio", `${entry.audio.missing_frames} frames`]);
    whenChanged(this.#facts, facts, () => {
      this.#facts.replaceChildren(
        ...facts.map(([name, value]) => make("div", "", make("dt", "", name), make("dd", "", value))),
      );
    });
  }
}

// Says what the held order keeps from moving up: a critical call at the end of the list must not go unseen.
function heldText(rising) {
  if (!rising.length) return "order held";
  const critical = rising.filter((entry) => entry.risk.level === "CRITICAL").length;
  return `order held · ${rising.length} to move up${critical ? `, ${critical} CRITICAL` : ""}`;
}

function clockTime(text) {
  return text ? new Date(text).toLocaleTimeString([], { hourCycle: "h23" }) : "not known";
}

export class View {
  #model;
  #at;
  #rows = new Map();
  #cards = new Map();
  #rowOrder = new HeldOrder();
  #cardOrder = new HeldOrder();
  #detail;
  #frame = 0;
  #hiddenFinals = 0;
  #critical = null;

  constructor(document, model) {
    this.#model = model;
    const ids = [
      "queue", "queue-empty", "queue-more", "held", "live", "live-empty", "live-more", "detail", "detail-title",
      "detail-body", "detail-close", "connection", "connection-text", "degraded", "live-count", "final-count",
      "clock", "spoken", "not-shown",
    ];
    this.#at = Object.fromEntries(ids.map((id) => [id, document.getElementById(id)]));
    this.#detail = new Detail(this.#at.detail, this.#at["detail-title"], this.#at["detail-body"]);
    this.#detail.onNumber = () => this.draw();
    this.#at["detail-close"].addEventListener("click", () => this.#select(null));
    document.addEventListener("keydown", (event) => this.#key(event));
    this.#holdUnderPointer(this.#at.queue, this.#rowOrder);
    this.#holdUnderPointer(this.#at.live, this.#cardOrder);
  }

  // Draws once at the next frame, for all events until then. A hidden tab draws when it is shown.
  draw() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#drawNow();
    });
  }

  tick() {
    const now = this.#model.now();
    for (const row of this.#rows.values()) row.tick(now);
    for (const card of this.#cards.values()) card.tick(now);
    setText(this.#at.clock, new Date(now).toLocaleTimeString([], { hourCycle: "h23" }));
  }

  setConnection(connected, state) {
    const good = connected && state === "LIVE";
    const text = connected ? (STATE_TEXT[state] ?? words(state)) : "reconnecting…";
    document.body.dataset.connection = good ? "live" : "degraded";
    setText(this.#at["connection-text"], text);
    const degraded = connected ? (DEGRADED_TEXT[state] ?? "") : OFFLINE_TEXT;
    setText(this.#at.degraded, good ? "" : degraded);
    setHidden(this.#at.degraded, good);
  }

  // Counts the calls that the server has and did not send.
  setTotals(live, final, sent) {
    this.#hiddenFinals = Math.max(0, live + final - sent);
  }

  noteFinal(entry) {
    const known = this.#model.get(entry.call_id);
    if (known && !known.final) this.#say(`Call over: ${entry.risk.level}, ${entry.summary}`);
  }

  #say(text) {
    setText(this.#at.spoken, text);
  }

  // Nothing moves under a mouse pointer or the keyboard's focus. A touch does not hold the order: it does not rest.
  #holdUnderPointer(element, order) {
    const release = () => {
      order.hold(false);
      this.draw();
    };
    element.addEventListener("pointerenter", (event) => {
      if (event.pointerType === "mouse") order.hold(true);
    });
    element.addEventListener("pointerleave", release);
    element.addEventListener("focusin", (event) => {
      if (event.target.matches(":focus-visible")) order.hold(true);
    });
    element.addEventListener("focusout", (event) => {
      if (!element.contains(event.relatedTarget) && !element.matches(":hover")) release();
    });
  }

  #select(callId) {
    if (callId === null || callId === this.#detail.callId) this.#detail.close();
    else this.#detail.open(callId);
    this.draw();
  }

  #key(event) {
    if (event.key === "Escape") return this.#select(null);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const row = document.activeElement?.closest?.("#queue li");
    if (!step || !row) return undefined;
    const next = step > 0 ? row.nextElementSibling : row.previousElementSibling;
    next?.querySelector("button").focus();
    return event.preventDefault();
  }

  #drawNow() {
    const ranked = this.#model.ranked();
    const now = this.#model.now();
    this.#drawQueue(ranked, now);
    const live = this.#model.live();
    this.#drawCards(live, now);
    setText(this.#at["live-count"], String(live.length));
    setText(this.#at["final-count"], String(ranked.length - live.length + this.#hiddenFinals));
    const open = this.#detail.callId === null ? undefined : this.#model.get(this.#detail.callId);
    if (open) this.#detail.set(open);
    else this.#detail.close();
    this.#announceCritical(ranked);
    this.#drawNotShown();
    this.tick();
  }

  #drawNotShown() {
    const calls = this.#model.notShown();
    const texts = [];
    if (calls) texts.push(`${calls} ${calls === 1 ? "call" : "calls"} in the lists cannot be shown.`);
    if (this.#model.unreadable) texts.push(`Updates that could not be read: ${this.#model.unreadable}.`);
    setText(this.#at["not-shown"], texts.join(" "));
    setHidden(this.#at["not-shown"], texts.length === 0);
  }

  #drawQueue(ranked, now) {
    const ranks = new Map(ranked.map((entry, index) => [entry.call_id, index + 1]));
    const ids = this.#rowOrder.next(ranked.slice(0, MAX_ROWS).map((entry) => entry.call_id));
    for (const id of [...this.#rows.keys()]) if (!ids.includes(id)) this.#rows.delete(id);
    const rows = ids.map((id) => {
      let row = this.#rows.get(id);
      if (!row) this.#rows.set(id, (row = new Row(id, (callId) => this.#select(callId))));
      row.set(this.#model.get(id), ranks.get(id), id === this.#detail.callId, now);
      return row.element;
    });
    arrange(this.#at.queue, rows);
    setHidden(this.#at["queue-empty"], ids.length > 0);
    const more = ranked.length - ids.length + this.#hiddenFinals;
    setText(this.#at["queue-more"], `${more} more of lower rank`);
    setHidden(this.#at["queue-more"], more <= 0);
    setText(this.#at.held, heldText(ids.filter((id, index) => ranks.get(id) < index + 1).map((id) => this.#model.get(id))));
    setHidden(this.#at.held, !this.#rowOrder.held);
  }

  #drawCards(live, now) {
    const ids = this.#cardOrder.next(live.slice(0, MAX_CARDS).map((entry) => entry.call_id));
    for (const id of [...this.#cards.keys()]) if (!ids.includes(id)) this.#cards.delete(id);
    const cards = ids.map((id) => {
      let card = this.#cards.get(id);
      if (!card) this.#cards.set(id, (card = new Card(id)));
      card.set(this.#model.get(id), now);
      return card.element;
    });
    arrange(this.#at.live, cards);
    setHidden(this.#at["live-empty"], ids.length > 0);
    const more = live.length - ids.length;
    setText(this.#at["live-more"], `${more} more live calls of lower rank`);
    setHidden(this.#at["live-more"], more <= 0);
  }

  // Announces once each call that becomes critical.
  #announceCritical(ranked) {
    const critical = ranked.filter((entry) => entry.risk.level === "CRITICAL");
    const known = this.#critical;
    this.#critical = new Set(critical.map((entry) => entry.call_id));
    if (known === null) return;
    const news = critical.find((entry) => !known.has(entry.call_id));
    if (news) this.#say(`Critical call: ${sentence(services(news))}, ${news.summary}`);
  }
}
