/** @file What people say of images: like, dislike, "not the same"; pressed again it is taken back. */

import * as api from './api.js';
import { h, icon, iconButton } from './dom.js';
import { titleOf } from './fields.js';
import { later, say } from './notices.js';
import { asked } from './state.js';

/** What can be said: its name, how a button says it, and the key for it. */
const KINDS = {
  like: { label: 'Like', key: 'L', done: 'Liked: “For you” goes by it.' },
  dislike: { label: 'Dislike', key: 'D', done: 'Disliked: “For you” turns away from it.' },
  different: { label: 'Not the same', key: 'N', done: 'Noted: this is not the same as what you asked for.' },
};

const said = new Map(); // id → {taste: 'like', 'dislike' or null, different: the ids it is not the same as, loose: not kept by the service}
let kept = true; // whether the service keeps what is said now; else it counts as long as the page is open
let loaded; // what was said in the past, as far as it can be
let queue = Promise.resolve(); // one after the other, so that the last one counts
const listeners = [];

/** Grows with every judgement. */
export let version = 0;

/** Resolves when the page knows what was said before, and the service what was said since. */
export const told = () => loaded.then(() => queue);

/** Calls `listener` when something was judged. */
export const onTaste = (listener) => listeners.push(listener);

const of = (id) => said.get(id) ?? { taste: null, different: [] };

/** The images that were liked and disliked, latest first: all, or those alone that the service does not know of. */
export function tastes({ loose = false } = {}) {
  const all = [...said].reverse().filter(([, one]) => !loose || one.loose);
  const having = (kind) => all.filter(([, { taste }]) => taste === kind).map(([id]) => id);
  return { liked: having('like'), disliked: having('dislike') };
}

let asks = []; // the parts of the query that the results answer

/** Tells what the results are compared with. @param {Part[]} parts */
export const comparedWith = (parts) => { asks = parts; };

/** The image that the results are compared with; where there is none in the collection, the query behind a "=". */
function anchor() {
  const wanted = asks.filter(({ without }) => !without);
  return wanted.find(({ kind }) => kind === 'id')?.value ?? `=${wanted.map(({ kind, value }) => `${kind} ${value}`)}`;
}

const ifImage = (at) => (at && !at.startsWith('=') ? { anchor: at } : {});

const pressed = (id, kind) => (kind === 'different' ? of(id).different.includes(anchor()) : of(id).taste === kind);

/** Brings every button on the page up to date. */
function mark() {
  for (const button of document.querySelectorAll('[data-judge]')) {
    button.setAttribute('aria-pressed', String(pressed(button.dataset.image, button.dataset.judge)));
  }
  listeners.forEach((listener) => listener());
}

/**
 * The buttons that judge an image, with words in the large view.
 * @param {{id: string, metadata: Object}} image
 * @param {function(): string|null} search the id of the search that found it
 */
export function judging(image, search, { words = false } = {}) {
  const name = titleOf(image);
  return Object.entries(KINDS).filter(([kind]) => kind !== 'different' || asked()).map(([kind, { label, key }]) => {
    const about = { class: words ? 'judge' : 'icon-button judge', 'aria-pressed': String(pressed(image.id, kind)), 'data-judge': kind,
      'data-image': image.id, 'data-key': `${kind} ${image.id}`, 'aria-keyshortcuts': key, title: `${label} (${key})` };
    const onclick = () => judge(image.id, kind, search());
    return words ? h('button', { type: 'button', onclick, ...about }, icon(kind), label)
      : iconButton(kind, `${label} ${name}`, onclick, about);
  });
}

function judge(id, kind, search) {
  const before = of(id);
  const back = pressed(id, kind);
  const at = anchor();
  const after = kind === 'different'
    ? { ...before, different: back ? before.different.filter((one) => one !== at) : [...before.different, at] }
    : { ...before, taste: back ? null : kind };
  const one = { image: id, kind, ...(search && { search }), ...(kind === 'different' && ifImage(at)) };
  const list = back ? [{ image: id, kind: 'undo' }, ...again(id, after)] : [one];
  set(id, after);
  const revert = () => {
    Object.assign(after, before); // something may have been said since
    set(id, of(id));
  };
  queue = queue.then(() => send(list, back ? 'Taken back.' : KINDS[kind].done, revert));
}

/** What is still said of an image when the rest was taken back. */
const again = (id, { taste, different }) => [
  ...(taste ? [{ image: id, kind: taste }] : []),
  ...different.map((at) => ({ image: id, kind: 'different', ...ifImage(at) })),
];

function set(id, judgement) {
  said.delete(id); // the latest goes last
  if (judgement.taste || judgement.different.length) said.set(id, judgement);
  version += 1;
  mark();
}

/** Sends judgements; one of a search that was deleted meanwhile is sent without it. */
async function keep(list) {
  try {
    return await api.feedback(list);
  } catch (failure) {
    if (failure.status !== 404 || !list.some(({ search }) => search)) throw failure;
    return api.feedback(list.map(({ search, ...one }) => one));
  }
}

async function send(list, done, revert) {
  try {
    const answer = await keep(list);
    if (answer.ignored.length) {
      revert();
      return say('This image is not in the collection any more.');
    }
    kept = answer.kept > 0;
    if (!kept && said.has(list[0].image)) said.get(list[0].image).loose = true;
    say(kept ? done : `${done} It is not kept: it counts until the page is closed.`);
  } catch (failure) {
    revert();
    say(`This was not noted: ${failure.message}`);
  }
}

const looked = new Set(); // each counts once for a search

/** Tells that an image of a search was looked at. */
export function clicked(id, search) {
  if (!kept || !search || looked.has(`${search} ${id}`)) return;
  looked.add(`${search} ${id}`);
  api.feedback({ image: id, kind: 'click', search }).catch(() => {}); // whoever looks is not bothered with it
}

/** Deletes everything that was said. */
export async function forgetTastes() {
  const before = new Set(said.values());
  const answer = queue.then(api.forgetJudgements);
  queue = answer.catch(() => {});
  await answer;
  for (const [id, one] of said) if (before.has(one)) said.delete(id);
  version += 1;
  mark();
}

async function load() {
  try {
    await queue;
    const then = version;
    const { judgements } = await api.judgements();
    if (then !== version) return await load(); // something was said meanwhile
    for (const { image, kind, anchor: at } of judgements.reverse()) {
      if (kind === 'click') continue;
      const { taste, different } = of(image);
      said.delete(image);
      said.set(image, kind === 'different' ? { taste, different: [...new Set([...different, at ?? ''])] } : { taste: kind, different });
    }
    version += 1;
    mark();
  } catch (failure) {
    later(failure, load); // the search says what is wrong
  }
}

export function startTaste() {
  document.addEventListener('keydown', (event) => {
    const [kind] = Object.entries(KINDS).find(([, { key }]) => key === event.key.toUpperCase()) ?? [];
    if (!kind || event.ctrlKey || event.metaKey || event.altKey || event.target.closest('input, textarea, select')) return;
    const button = event.target.closest('.card, #viewer')?.querySelector(`[data-judge="${kind}"]`);
    if (!button) return;
    event.preventDefault();
    button.click();
  });
  loaded = load();
}
