/** @file The query: words, images that are dropped, pasted, chosen or photographed, and their chips. */

import * as api from './api.js';
import { takePhoto } from './camera.js';
import { $, chooser, count, fill, h, icon } from './dom.js';
import { titleOf } from './fields.js';
import { forQuery } from './images.js';
import { say } from './notices.js';
import { MOST_PARTS, asked, change, clearQuery, files, keepFile, may, part, service, state } from './state.js';
import { addImages } from './upload.js';

const known = new Map(); // id → image, for the chips

/** Remembers an image of the collection, so that its chip has a picture and a name at once. */
export const remember = (image) => known.set(image.id, image);

/** Searches for images that look like these, together with what is asked already. @param {Iterable<File>} list */
export async function ask(list) {
  const images = await forQuery([...list]);
  const room = MOST_PARTS - state.parts.length;
  if (images.length > room) say(`A query has at most ${MOST_PARTS} parts: the first ${count(room, 'image')} were taken.`);
  const added = images.slice(0, room).map((file) => part('file', keepFile(file)));
  if (added.length) change({ parts: [...state.parts, ...added] });
}

/** "More like this": the image alone becomes the query. "Without this": it is added, to be turned away from. */
export function like(image) {
  remember(image);
  change({ parts: [part('id', image.id)], minimum: null, feed: false });
}

export function without(image) {
  remember(image);
  const others = state.parts.filter(({ kind, value }) => kind !== 'id' || value !== image.id);
  change({ parts: [...others, part('id', image.id, true)].slice(0, MOST_PARTS) });
  say('Results that look like this image now rank lower.');
}

function commitWords() {
  const words = $('#words').value.trim();
  if (!words) return;
  $('#words').value = '';
  if (state.parts.length >= MOST_PARTS) return say(`A query has at most ${MOST_PARTS} parts.`);
  change({ parts: [...state.parts, part('text', words)] });
}

function chip({ kind, value, without: away, weight }, place) {
  const image = known.get(value);
  const name = kind === 'text' ? `“${value}”` : kind === 'file' ? 'Your image' : image ? titleOf(image) : 'Image';
  const address = kind === 'file' ? files.get(value).url : kind === 'id' && api.address(`thumbnails/${value}`);
  const replaced = (changes) => state.parts.map((one, index) => (index === place ? { ...one, ...changes } : one));
  return h('li', { class: away ? 'chip away' : 'chip' },
    address ? h('img', { src: address, alt: '', width: 40, height: 40, draggable: 'false' }) : icon('words'),
    away && h('span', { class: 'sign' }, 'without'),
    h('span', { class: 'name' }, name, weight !== 1 && ` × ${weight}`),
    (away || state.parts.filter((one) => !one.without).length > 1) && h('button', {
      type: 'button', class: 'chip-button', 'aria-pressed': String(away), 'aria-label': `Without ${name}`,
      title: away ? 'Search for what is like this' : 'Turn away from what is like this', 'data-key': `sign ${place}`,
      onclick: () => change({ parts: replaced({ without: !away }) }),
    }, icon(away ? 'plus' : 'minus')),
    h('button', {
      type: 'button', class: 'chip-button', 'aria-label': `Remove ${name}`, title: 'Remove', 'data-key': `remove ${place}`,
      onclick: () => {
        change({ parts: state.parts.filter((_, index) => index !== place) });
        focusComposer();
      },
    }, icon('close')));
}

const focusComposer = () => ($('#words').hidden ? $('#choose') : $('#words')).focus();

export function renderQuery() {
  fill($('#chips'), state.parts.map(chip));
  $('#chips').hidden = !asked();
  $('#clear').hidden = !asked();
  $('#words').placeholder = asked() ? 'Add words' : 'Describe an image';
  $('#for-you').setAttribute('aria-pressed', String(state.feed));
  document.body.classList.toggle('asked', asked() || state.feed);
}

/** Names for the chips of images that came by the address or the history. */
export async function nameParts() {
  const unknown = state.parts.filter(({ kind, value }) => kind === 'id' && !known.has(value));
  if (!unknown.length) return;
  const images = await Promise.allSettled(unknown.map(({ value }) => api.image(value)));
  images.filter(({ value }) => value).forEach(({ value }) => remember(value));
  renderQuery();
}

/** What may be asked depends on the encoder. */
export function renderAbilities() {
  const { texts } = service.about;
  for (const element of [$('#words'), $('#search')]) element.hidden = !texts;
  $('#no-words').hidden = texts;
  $('#drop-add').hidden = !may('write');
}

function watchDrops() {
  const drop = $('#drop');
  const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes('Files');
  const blocked = () => $('dialog[open]:not(#adding)');
  window.addEventListener('dragenter', (event) => {
    if (carriesFiles(event) && !$('dialog[open]')) drop.hidden = false;
  });
  window.addEventListener('dragover', (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    const onAdd = Boolean(event.target.closest?.('#drop-add'));
    $('#drop-add').classList.toggle('over', onAdd);
    $('#drop-ask').classList.toggle('over', !onAdd);
  });
  window.addEventListener('dragleave', (event) => { if (!event.relatedTarget) drop.hidden = true; });
  window.addEventListener('drop', (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    drop.hidden = true;
    if (blocked()) return;
    const dropped = event.dataTransfer.files;
    if ($('#adding').open || event.target.closest?.('#drop-add')) addImages(dropped);
    else ask(dropped);
  });
  window.addEventListener('paste', (event) => {
    const pasted = [...(event.clipboardData?.files ?? [])];
    if (!pasted.length || blocked()) return;
    event.preventDefault();
    if ($('#adding').open) addImages(pasted);
    else ask(pasted);
  });
}

export function startQuery() {
  $('#composer').addEventListener('submit', (event) => {
    event.preventDefault();
    commitWords();
  });
  $('#words').addEventListener('keydown', (event) => {
    if (event.key !== 'Backspace' || $('#words').value || !asked()) return;
    const last = state.parts.at(-1);
    event.preventDefault();
    change({ parts: state.parts.slice(0, -1) });
    if (last.kind === 'text') $('#words').value = last.value;
  });
  chooser('#choose', '#chosen', ask);
  $('#photograph').addEventListener('click', () => takePhoto((file) => ask([file])));
  $('#clear').addEventListener('click', () => {
    clearQuery();
    focusComposer();
  });
  document.addEventListener('keydown', (event) => {
    if (event.key !== '/' || event.target.closest('input, textarea, select, dialog')) return;
    event.preventDefault();
    focusComposer();
  });
  watchDrops();
}
