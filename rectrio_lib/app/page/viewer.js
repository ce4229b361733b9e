/** @file The large view of one image: metadata, neighbours by the arrow keys, edit and delete. */

import * as api from './api.js';
import { $, date, fill, h, icon, number, percent, score, sent, titled, written } from './dom.js';
import { changes, metadataFields, metadataOf, titleOf } from './fields.js';
import { answered, confirmed, say, trouble } from './notices.js';
import { like, without } from './query.js';
import { more, replaced, shown } from './results.js';
import { asked, collectionChanged, may, showing, state } from './state.js';
import { judging } from './taste.js';

const EDITABLE = ['label', 'category', 'price', 'tags'];
let image = null;
let latest = 0; // a slow answer does not replace what was asked for later

const place = (of = image.id) => shown.results.findIndex(({ id }) => id === of);
const views = (id) => $('#viewer').open && image?.id === id;

/** Shows an image; one that is not among the results is fetched. */
export async function view(id, { address = true } = {}) {
  const dialog = $('#viewer');
  const turn = latest += 1;
  try {
    const known = shown.results.find((result) => result.id === id);
    const found = known ?? await api.image(id);
    if (turn !== latest) return;
    if (!known) answered();
    image = found;
  } catch (failure) {
    if (turn !== latest) return;
    if (address || failure.status === 404) showing(null, { replace: true });
    if (failure.status === 404) say('This image is not in the collection any more.');
    else if (dialog.open) problem(failure);
    else trouble(failure, () => view(id, { address }));
    return;
  }
  if (address) showing(id, { replace: dialog.open });
  render();
  if (!dialog.open) dialog.showModal();
}

export function closeViewer() {
  latest += 1;
  if ($('#viewer').open) $('#viewer').close();
}

function lines() {
  const { width, height, ...rest } = image.metadata;
  const names = [...new Set([...EDITABLE, ...Object.keys(rest)])].filter((name) => {
    const value = rest[name];
    return name !== 'label' && name !== 'uploaded' && value != null && value !== '' && !(Array.isArray(value) && !value.length);
  });
  const pairs = names.map((name) => [titled(name), name === 'created' ? date(rest[name], true) : written(name, rest[name])]);
  if (width && height) pairs.push(['Size', `${number(width)} × ${number(height)} pixels`]);
  pairs.push(['Id', image.id]);
  return h('dl', { class: 'metadata' }, pairs.map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, value))));
}

function render() {
  $('#viewer-problem').textContent = '';
  const at = place();
  const name = titleOf(image);
  const picture = $('#viewer-image');
  if (picture.src !== api.address(image.view)) {
    picture.removeAttribute('src'); // or the one before would stay until this one is here
    picture.src = api.address(image.view);
  }
  picture.alt = name;
  $('#viewer-title').textContent = name;
  renderPlace();
  const act = (action) => () => {
    const chosen = image;
    image = null; // the focus goes to the new results, not back to the card
    closeViewer();
    action(chosen);
    $('#status').focus();
    window.scrollTo({ top: 0 });
  };
  fill($('#viewer-actions'),
    h('button', { type: 'button', class: 'primary', 'data-key': 'like', onclick: act(like) }, icon('similar'), 'More like this'),
    asked() && h('button', { type: 'button', 'data-key': 'without', onclick: act(without) }, icon('minus'), 'Without this'),
    h('div', { class: 'row' }, judging(image, () => (place() >= 0 ? shown.search : null), { words: true })));
  fill($('#viewer-body'), lines());
  renderOwner();
  for (const near of [shown.results[at + 1], at > 0 && shown.results[at - 1]]) {
    if (at >= 0 && near) new Image().src = api.address(near.view); // so that the next step is immediate
  }
}

/** Where the image stands among the results, which may come while it is looked at. */
export function renderPlace() {
  if (!image) return;
  const at = place();
  const { score: value, probability: sure } = shown.results[at] ?? {};
  $('#viewer-score').textContent = value == null || state.feed ? '' : `Score ${score(value)}${sure == null ? '' : `, ${percent(sure)} sure`}`;
  const cut = state.minimum != null || state.distinct != null;
  const all = shown.next == null || cut ? `${number(shown.results.length)}${shown.next == null ? '' : '+'}` : number(shown.total);
  $('#viewer-place').textContent = at < 0 ? '' : `${number(at + 1)} of ${all}`;
  $('#previous').disabled = at <= 0;
  $('#next').disabled = at < 0 || (at === shown.results.length - 1 && shown.next == null);
  if ($('.step:focus:disabled')) $('#viewer').focus();
}

/** The buttons of who may write, once the service has said who that is; while something is edited they are away. */
export function renderOwner() {
  $('#viewer-owner').hidden = !may('write') || Boolean($('#viewer .editor'));
}

async function step(by) {
  const from = image;
  const at = place();
  if (at < 0 || at + by < 0) return;
  if (at + by >= shown.results.length && !await more()) return;
  if (views(from.id) && shown.results[at + by]) view(shown.results[at + by].id);
}

function editor() {
  return h('form', { class: 'editor', onsubmit: sent(save) }, metadataFields(image.metadata),
    h('div', { class: 'row' }, h('button', { type: 'submit', class: 'primary' }, 'Save'),
      h('button', { type: 'button', onclick: () => {
        render();
        $('#edit').focus();
      } }, 'Cancel')));
}

async function save(form) {
  const edited = image;
  const changed = changes(edited.metadata, metadataOf(form));
  try {
    if (Object.keys(changed).length) {
      const updated = await api.update(edited.id, changed);
      Object.assign(edited, updated);
      replaced(edited.id, updated);
      collectionChanged();
      say('Saved.');
    }
    if (!form.isConnected) return; // something else is shown by now
    render();
    $('#edit').focus();
  } catch (failure) {
    problem(failure, edited.id);
  }
}

/** A modal dialog hides the banner, so what went wrong in it is said in it, while it shows this image. */
function problem(failure, id = image.id) {
  if (views(id)) $('#viewer-problem').textContent = failure.message;
  else say(failure.message);
}

async function discard() {
  const { id } = image;
  if (!await confirmed('Delete this image from the collection? This cannot be undone.', 'Delete the image')) return;
  try {
    await api.remove(id);
  } catch (failure) {
    return problem(failure, id);
  }
  const at = place(id);
  replaced(id, null);
  collectionChanged();
  say('Deleted.');
  if (!views(id)) return;
  const next = at < 0 ? null : shown.results[Math.min(at, shown.results.length - 1)];
  if (next) view(next.id);
  else closeViewer();
}

export function startViewer() {
  const dialog = $('#viewer');
  $('#previous').addEventListener('click', () => step(-1));
  $('#next').addEventListener('click', () => step(1));
  $('#edit').addEventListener('click', () => {
    fill($('#viewer-body'), editor());
    renderOwner();
    $('#viewer-body input').focus();
  });
  $('#delete').addEventListener('click', discard);
  let start = 0;
  $('.stage', dialog).addEventListener('touchstart', ({ touches }) => { start = touches[0].clientX; }, { passive: true });
  $('.stage', dialog).addEventListener('touchend', ({ changedTouches }) => {
    const way = changedTouches[0].clientX - start;
    if (Math.abs(way) > 50) step(way < 0 ? 1 : -1);
  });
  dialog.addEventListener('keydown', (event) => {
    if ($('.editor', dialog) || $('#confirm').open) return;
    if (event.key === 'ArrowLeft') step(-1);
    if (event.key === 'ArrowRight') step(1);
  });
  dialog.addEventListener('close', () => {
    latest += 1;
    showing(null, { replace: true });
    $('#viewer-image').removeAttribute('src');
    const card = [...$('#grid').children].find(({ dataset }) => dataset.id === image?.id);
    if (card) $('.open', card).focus();
    else if (document.activeElement === document.body) $('#results').focus({ preventScroll: true });
  });
}
