/** @file What is asked: the parts of the query, the filters and the order; kept in the address after the #. */

import { build, parse } from './conditions.js';

/**
 * @typedef {Object} Part
 * @property {'id'|'text'|'file'} kind
 * @property {string} value an id, words, or the number of a file in `files`
 * @property {boolean} without turned away from
 * @property {number} weight
 */

export const PAGE = 24;
export const MOST_PARTS = 32;
export const SURE = 0.9; // the share of the results that is to be right

const EMPTY = () => ({ parts: [], filters: new Map(), rest: '', sort: 'score', descending: true, minimum: null,
  distinct: null, mmr: null, sure: null, feed: false });

export const state = EMPTY();

/** What the service says of itself, once it has answered. */
export const service = { about: null };

export const may = (scope) => Boolean(service.about?.scopes.includes(scope));

/** Images that were dropped, pasted, chosen or photographed: number → {file, url}. They live as long as the page. */
export const files = new Map();

export function keepFile(file) {
  const number = String(files.size + 1);
  files.set(number, { file, url: URL.createObjectURL(file) });
  return number;
}

export const part = (kind, value, without = false, weight = 1) => ({ kind, value, without, weight });
export const where = () => build(state.filters, state.rest);
export const asked = () => state.parts.length > 0;

/** Whether the results can end where they are no longer sure: what scores mean is known of images alone. */
export const canBeSure = () => Boolean(service.about?.calibrated) && asked()
  && state.parts.every(({ kind, without }) => kind !== 'text' && !without);
export const isSure = () => state.sure != null && canBeSure();

/** Whether something is looked for: "without" alone has no direction. */
export const likes = () => state.parts.some(({ without }) => !without);

/** The request of the state, and the files that its parts number. */
export function request(offset = 0) {
  const sent = [];
  const body = { like: [], without: [], k: PAGE, offset, sort: state.sort, descending: state.descending };
  for (const { kind, value, without, weight } of state.parts) {
    const content = kind === 'file' ? sent.push(files.get(value).file) - 1 : value;
    body[without ? 'without' : 'like'].push({ [kind]: content, ...(weight !== 1 && { weight }) });
  }
  if (where()) body.where = where();
  if (asked()) for (const name of ['minimum', 'distinct', 'mmr']) if (state[name] != null) body[name] = state[name];
  if (isSure()) body.sure = state.sure;
  return { body, files: sent };
}

const listeners = [];
export const onChange = (listener) => listeners.push(listener);

const followers = [];
export const onCollection = (listener) => followers.push(listener);

/** Tells that images were added, changed or deleted; with `search` the results are out of date too. */
export const collectionChanged = ({ search = false } = {}) => followers.forEach((listener) => listener(search));

const announce = () => listeners.forEach((listener) => listener());

/**
 * Changes the state, writes it to the address and tells everyone.
 * @param {Partial<state>} changes
 */
export function change(changes, { replace = false } = {}) {
  Object.assign(state, changes);
  if (asked()) state.feed = false;
  write({ replace });
  announce();
}

/** Leaves the query for what is recommended; filters stay. */
export const showFeed = () => change({ ...EMPTY(), filters: state.filters, rest: state.rest, feed: true });

export const clearQuery = () => change({ ...EMPTY(), filters: state.filters, rest: state.rest });

let shown = null; // the image of the large view, or the one that it is about to show

export const isShown = (id) => shown === id;

/** Puts the image that the large view shows into the address, so that "back" closes it. */
export function showing(id, { replace = false } = {}) {
  shown = id;
  write({ replace });
}

function write({ replace }) {
  const hash = encode();
  if (hash === window.location.hash.slice(1)) return;
  const target = `${window.location.pathname}${window.location.search}${hash && `#${hash}`}`;
  window.history[replace ? 'replaceState' : 'pushState'](null, '', target);
}

function encode() {
  const entries = state.parts.map(({ kind, value, without, weight }) =>
    [`${without ? '-' : ''}${kind}${weight === 1 ? '' : `*${weight}`}`, value]);
  if (where()) entries.push(['where', where()]);
  if (state.feed) entries.push(['feed', '1']);
  if (state.sort !== 'score') entries.push(['sort', state.sort]);
  if (!state.descending) entries.push(['ascending', '1']);
  for (const name of ['minimum', 'distinct', 'mmr', 'sure']) if (state[name] != null) entries.push([name, state[name]]);
  if (shown) entries.push(['show', shown]);
  return new URLSearchParams(entries).toString();
}

/** Reads the address. @returns {{show: string|null, changed: boolean, lost: number}} `lost` files are no longer here */
export function read() {
  const now = () => JSON.stringify([request().body, state.feed]);
  const before = now();
  const next = EMPTY();
  let lost = 0;
  shown = null;
  for (const [key, value] of new URLSearchParams(window.location.hash.slice(1))) {
    const [, minus, kind, weight] = key.match(/^(-?)(id|text|file)(?:\*([\d.]+))?$/) ?? [];
    if (kind === 'file' && !files.has(value)) lost += 1;
    else if (kind && value && next.parts.length < MOST_PARTS) {
      next.parts.push(part(kind, value, minus === '-', Number(weight ?? 1) || 1));
    } else if (key === 'where') Object.assign(next, parse(value));
    else if (key === 'sort' && /^[A-Za-z_]\w*$/.test(value)) next.sort = value;
    else if (key === 'ascending') next.descending = false;
    else if (key === 'feed') next.feed = true;
    else if (['minimum', 'distinct', 'mmr', 'sure'].includes(key) && Math.abs(value) <= 1) next[key] = Number(value);
    else if (key === 'show') shown = value;
  }
  Object.assign(state, next);
  if (asked()) state.feed = false;
  return { show: shown, lost, changed: before !== now() };
}

export const reread = announce;

/** Takes over a search of the history. @returns {number} how many of its images were not kept */
export function repeat(query) {
  const parts = (list, without) => (list ?? []).filter((one) => one.file == null).map((one) =>
    part(one.id ? 'id' : 'text', one.id ?? one.text, without, one.weight ?? 1));
  const { sort = 'score', descending = true, minimum = null, distinct = null, mmr = null, sure = null } = query;
  change({ parts: [...parts(query.like, false), ...parts(query.without, true)], ...parse(query.where), sort,
    descending, minimum, distinct, mmr, sure, feed: false });
  return [...(query.like ?? []), ...(query.without ?? [])].filter((one) => one.file != null).length;
}
