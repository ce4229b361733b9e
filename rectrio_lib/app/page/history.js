/** @file Searches of the past, and saved ones: repeat one, delete one, delete all; and whether they are kept at all. */

import * as api from './api.js';
import { $, date, fill, h, iconButton } from './dom.js';
import { confirmed, say } from './notices.js';
import { loadSaved } from './saved.js';
import { repeat } from './state.js';

let searches = [];
let next = null;
let changes = 0; // made here: an answer that was asked for before one of them is out of date
let changing = Promise.resolve();

async function guarded(action) {
  $('#history-problem').textContent = '';
  try {
    await action();
  } catch (failure) {
    $('#history-problem').textContent = failure.message;
  }
}

/** Does what a person asked for. Whoever loads meanwhile waits for it, or loads again. */
export function change(action) {
  changes += 1;
  changing = guarded(action).finally(() => { changes += 1; });
  return changing;
}

/** What the service answers, not older than what was changed here. @param {function(): Promise} ask */
export async function current(ask) {
  await changing;
  const then = changes;
  const answer = await ask();
  return then === changes ? answer : current(ask);
}

let loading = Promise.resolve(); // one after the other: each page begins where the one before ended

function load(more = false) {
  loading = loading.catch(() => {}).then(async () => {
    if (more && next == null) return;
    const busy = $(more ? '#history-more' : '#history-list');
    busy.ariaBusy = 'true';
    const answer = await current(() => api.searches(more ? next : null)).finally(() => { busy.ariaBusy = null; });
    searches = more ? [...searches, ...answer.searches] : answer.searches;
    next = answer.next;
    renderKeep(answer.keep);
    if (next == null && document.activeElement === busy) $('#history-close').focus();
    render();
  });
  return loading;
}

function renderKeep(keep) {
  Object.assign($('#keep'), { checked: keep, disabled: false }); // until it is known, it cannot be set
  $('#keep-off').hidden = keep;
}

/** Says whether anything is kept from now on. */
async function switchKeep({ target }) {
  const wanted = target.checked;
  renderKeep(wanted);
  await change(async () => {
    try {
      await api.keep(wanted);
    } catch (failure) {
      renderKeep(!wanted);
      throw failure;
    }
  });
}

const onlyFiles = ({ like = [], without = [] }) => [...like, ...without].every(({ file }) => file != null);

/** Makes a search of the past or a saved one the query. */
export function again({ query }) {
  $('#history').close();
  const lost = repeat(query);
  if (lost) say('Images that you upload for a search are not kept: add them again.');
}

function row(search) {
  const { id, title, created, query, results } = search;
  const kept = !onlyFiles(query) || query.where;
  return h('li', { class: 'past' },
    h('button', { type: 'button', class: 'repeat', disabled: !kept, 'data-key': `repeat ${id}`, onclick: () => again(search) },
      h('strong', {}, title), h('span', { class: 'hint' }, date(created, true), !kept && ' · its image was not kept'),
      query.where && h('span', { class: 'hint where' }, query.where),
      results.length > 0 && h('span', { class: 'strip' }, results.slice(0, 6).map((image) => h('img', {
        src: api.address(`thumbnails/${image}`), alt: '', width: 48, height: 48, loading: 'lazy',
        onerror: ({ target }) => target.remove() })))),
    iconButton('trash', `Delete the search ${title}`, () => change(async () => {
      await api.forget(id);
      searches = searches.filter((other) => other.id !== id);
      render();
      $('#history-close').focus();
    }), { title: 'Delete this search', 'data-key': `delete ${id}` }));
}

function render() {
  fill($('#history-list'), searches.map(row));
  $('#history-none').hidden = searches.length > 0;
  $('#history-all').hidden = !searches.length;
  $('#history-more').hidden = next == null;
}

async function forgetAll() {
  if (!await confirmed('Delete all your searches? This cannot be undone.', 'Delete all')) return;
  await change(async () => {
    await api.forget();
    [searches, next] = [[], null];
    render();
    $('#history-close').focus();
  });
}

export function startHistory() {
  $('#open-history').addEventListener('click', () => {
    $('#history').showModal();
    guarded(() => Promise.all([load(), loadSaved()]));
  });
  $('#keep').addEventListener('change', switchKeep);
  $('#history-more').addEventListener('click', () => guarded(() => load(true)));
  $('#history-all').addEventListener('click', forgetAll);
}
