/** @file Saved searches: save one under a name, open it, delete it. */

import * as api from './api.js';
import { $, fill, h, iconButton } from './dom.js';
import { again } from './history.js';
import { say, saying } from './notices.js';
import { request } from './state.js';

let saved = [];

/** Loads the saved searches into the drawer of the history. */
export async function loadSaved() {
  ({ saved } = await api.saved());
  render();
}

function row(search) {
  const { id, title, query } = search;
  return h('li', { class: 'past' },
    h('button', { type: 'button', class: 'repeat', 'data-key': `saved ${id}`, onclick: () => again(search) }, h('strong', {}, title),
      query.where && h('span', { class: 'hint where' }, query.where)),
    iconButton('trash', `Delete the saved search ${title}`, () => discard(id), { title: 'Delete this saved search' }));
}

function render() {
  fill($('#saved-list'), saved.map(row));
  $('#saved').hidden = !saved.length;
}

const discard = (id) => saying('#history-problem', async () => {
  await api.unsave(id);
  saved = saved.filter((other) => other.id !== id);
  render();
  $('#history-close').focus();
});

function start() {
  if (request().files.length) return say('An image that you upload is not kept, so this search cannot be saved: search by one of the collection.');
  $('#save-form').reset();
  $('#save-problem').textContent = '';
  $('#saving').showModal();
}

function save(event) {
  event.preventDefault();
  const { k, offset, ...query } = request().body; // the same on every page
  saying('#save-problem', async () => {
    await api.save(query, new FormData(event.target).get('title').trim());
    $('#saving').close();
    say('Saved: you find it among your searches.');
  });
}

export function startSaved() {
  $('#save').addEventListener('click', start);
  $('#save-form').addEventListener('submit', save);
}
