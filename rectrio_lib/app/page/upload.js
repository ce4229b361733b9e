/** @file Adding images to the collection, with the same metadata for all and a status for each. */

import * as api from './api.js';
import { $, chooser, count, fill, h, icon, iconButton } from './dom.js';
import { changes, metadataFields, metadataOf } from './fields.js';
import { imagesOf, tooLarge } from './images.js';
import { say } from './notices.js';
import { collectionChanged, may, service } from './state.js';

const AT_ONCE = 8; // files of one request at most, so that progress is seen
const STATES = { waiting: 'Ready', sending: 'Sending …', added: 'Added', known: 'Already in the collection', refused: 'Refused',
  failed: 'Not sent' };
const ICONS = { added: 'check', known: 'check', refused: 'warning', failed: 'warning' };

let items = []; // {file, url, state, reason}
let sending = false;

const waiting = () => items.filter(({ state }) => state === 'waiting' || state === 'failed');

/** Opens the dialog with these files. @param {Iterable<File>} files */
export function addImages(files) {
  if (!may('write')) return say('You may search this collection, but not add to it.');
  if (!sending && !waiting().length) clear();
  for (const file of imagesOf([...files])) {
    const large = tooLarge(file);
    items.push({ file, url: URL.createObjectURL(file), state: large ? 'refused' : 'waiting', reason: large ? 'The file is too large.' : null });
  }
  if (!$('#adding').open) $('#adding').showModal();
  render();
}

function clear() {
  items.forEach(({ url }) => URL.revokeObjectURL(url));
  items = [];
}

function row(item) {
  const { file, url, state, reason } = item;
  return h('li', { class: `file ${state}` }, h('img', { src: url, alt: '', width: 44, height: 44, onerror: ({ target }) => target.classList.add('broken') }),
    h('span', { class: 'name' }, file.name), h('span', { class: 'state' }, ICONS[state] && icon(ICONS[state]),
      reason ? `${STATES[state]}: ${reason}` : STATES[state]),
    state === 'waiting' && !sending && iconButton('close', `Leave out ${file.name}`, () => {
      items = items.filter((other) => other !== item);
      URL.revokeObjectURL(url);
      render();
      $('#add-choose').focus();
    }));
}

function render() {
  fill($('#add-files'), items.map(row));
  const left = waiting().length;
  $('#add-progress').hidden = !sending;
  $('#add-progress').max = items.length;
  $('#add-progress').value = items.filter(({ state }) => !['waiting', 'sending'].includes(state)).length;
  $('#add-send').disabled = sending || !left;
  $('#add-send').textContent = left ? `Add ${count(left, 'image')}` : 'Add images';
  $('#add-choose').disabled = sending;
  const number = (state) => items.filter((item) => item.state === state).length;
  const told = [['added', 'added'], ['known', 'already there'], ['refused', 'refused'], ['failed', 'not sent']];
  $('#add-summary').textContent = sending ? '' : told.filter(([state]) => number(state))
    .map(([state, text]) => `${number(state)} ${text}`).join(', ');
}

/** Parts of the queue that one request can carry. */
function batches(queue) {
  const { most_bytes: most, most_files: many } = service.about;
  const parts = [];
  let room = 0;
  for (const item of queue) {
    if (!parts.length || item.file.size > room || parts.at(-1).length >= Math.min(AT_ONCE, many)) {
      parts.push([]);
      room = most;
    }
    parts.at(-1).push(item);
    room -= item.file.size;
  }
  return parts;
}

async function sendBatch(batch, metadata) {
  batch.forEach((item) => Object.assign(item, { state: 'sending', reason: null }));
  render();
  let answers;
  try {
    answers = (await api.upload(batch.map(({ file }) => file), metadata)).images;
  } catch (failure) {
    answers = failure.problem?.images;
    const state = failure.kind === 'refused' ? 'refused' : 'failed';
    answers ??= batch.map(() => ({ status: state, reason: failure.message }));
  }
  batch.forEach((item, place) => Object.assign(item, { state: answers[place].status, reason: answers[place].reason }));
  return answers.some(({ status }) => status === 'failed');
}

async function send(event) {
  event.preventDefault();
  const metadata = changes({}, metadataOf($('#add-form')));
  const queue = waiting();
  sending = true;
  for (const batch of batches(queue)) {
    if (await sendBatch(batch, metadata)) break;
    render();
  }
  sending = false;
  queue.filter(({ state }) => state === 'sending').forEach((item) => { item.state = 'waiting'; });
  render();
  if (items.some(({ state }) => state === 'added')) collectionChanged({ search: true });
  if ($('#adding').open) $('#add-close').focus();
  else say($('#add-summary').textContent);
}

export function startUpload() {
  $('#add-metadata').append(...metadataFields());
  $('#add').addEventListener('click', () => addImages([]));
  chooser('#add-choose', '#add-chosen', addImages);
  $('#add-form').addEventListener('submit', send);
  $('#add-close').addEventListener('click', () => $('#adding').close());
}
