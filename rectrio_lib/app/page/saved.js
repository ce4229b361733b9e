/** @file Saved searches: save one under a name, open it, delete it. */

import * as api from './api.js';
import { $, fill, h, iconButton, sent } from './dom.js';
import { again, change, current } from './history.js';
import { say } from './notices.js';
import { request } from './state.js';

let saved = [];
let opened = 0; // an answer that comes later is not about the dialog as it is by then

/** Loads the saved searches into the drawer of the history. */
export async function loadSaved() {
  ({ saved } = await current(api.saved));
  render();
}

function row(search) {
  const { id, title, query } = search;
  return h('li', { class: 'past' },
    h('button', { type: 'button', class: 'repeat', 'data-key': `saved ${id}`, onclick: () => again(search) }, h('strong', {}, title),
      query.where && h('span', { class: 'hint where' }, query.where)),
    iconButton('trash', `Delete the saved search ${title}`, () => discard(id), { title: 'Delete this saved search', 'data-key': `unsave ${id}` }));
}

function render() {
  fill($('#saved-list'), saved.map(row));
  $('#saved').hidden = !saved.length;
}

const discard = (id) => change(async () => {
  await api.unsave(id);
  saved = saved.filter((other) => other.id !== id);
  render();
  $('#history-close').focus();
});

function start() {
  if (request().files.length) return say('An image that you upload is not kept, so this search cannot be saved: search by one of the collection.');
  opened += 1;
  $('#save-form').reset();
  $('#save-form').ariaBusy = null;
  $('#save-problem').textContent = '';
  $('#saving').showModal();
}

async function save(form) {
  const { k, offset, ...query } = request().body; // the same on every page
  const turn = opened;
  try {
    await api.save(query, new FormData(form).get('title').trim());
    if (turn === opened) $('#saving').close();
    say('Saved: you find it among your searches.');
  } catch (failure) {
    if (turn === opened && $('#saving').open) $('#save-problem').textContent = failure.message;
    else say(`The search was not saved: ${failure.message}`);
  }
}

export function startSaved() {
  $('#save').addEventListener('click', start);
  $('#save-form').addEventListener('submit', sent(save));
}
