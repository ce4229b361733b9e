/** @file Starts the page and connects its parts. */

import * as api from './api.js';
import { startCamera } from './camera.js';
import { $, count } from './dom.js';
import { startFeed } from './feed.js';
import { forgetFacets, renderChosen, renderFilters, startFilters } from './filters.js';
import { startHistory } from './history.js';
import { startInsights } from './insights.js';
import { later, onCalm, say, warn } from './notices.js';
import { nameParts, renderAbilities, renderQuery, startQuery } from './query.js';
import { refresh, renderAbout, renderOrder, startResults } from './results.js';
import { startSaved } from './saved.js';
import { isShown, may, onChange, onCollection, read, reread, service, state } from './state.js';
import { startTaste } from './taste.js';
import { startUpload } from './upload.js';
import { closeViewer, renderOwner, renderPlace, startViewer, view } from './viewer.js';

let asking = 0;
let answer = 0; // which one is shown: an older one does not replace it

async function loadAbout() {
  const turn = asking += 1;
  try {
    const about = await api.about();
    if (turn < answer) return;
    [answer, service.about] = [turn, about];
  } catch (failure) {
    later(failure, state.sure == null ? loadAbout : search); // the search beside it says what is wrong
    return;
  }
  const { collection, images, encoder } = service.about;
  $('#collection').textContent = collection;
  $('#images').textContent = count(images, 'image');
  $('#images').title = `Encoder: ${encoder}`;
  document.title = `${collection} · RecTrio`;
  $('#add').hidden = !may('write');
  $('#open-insights').hidden = !may('admin');
  warn(service.about);
  renderAbilities();
  renderAbout();
  renderOwner();
}

/** Shows the results once it is known what they mean, so that nothing moves; in any case after a moment. */
const uncover = () => document.body.classList.remove('starting');

async function search() {
  renderQuery();
  renderChosen();
  renderOrder();
  const about = service.about ? null : loadAbout().finally(uncover);
  renderFilters();
  if (state.sure != null) await about; // which says whether that can be asked for
  await Promise.all([about, refresh()]);
}

/** Counts are stale: images were added, changed or deleted. */
function recount(anew) {
  forgetFacets();
  renderFilters();
  loadAbout();
  if (anew) refresh();
}

function follow() {
  const { show, changed, lost } = read();
  if (changed) reread();
  if (show) view(show, { address: false });
  else closeViewer();
  return lost;
}

function startTheme() {
  const root = document.documentElement;
  const system = window.matchMedia('(prefers-color-scheme: dark)');
  const dark = () => (root.dataset.theme ?? (system.matches ? 'dark' : 'light')) === 'dark';
  const render = () => $('#theme').setAttribute('aria-pressed', String(dark()));
  $('#theme').addEventListener('click', () => {
    root.dataset.theme = dark() ? 'light' : 'dark';
    try {
      localStorage.setItem('rectrio-theme', root.dataset.theme);
    } catch {
      // Not remembered where storage is forbidden.
    }
    render();
  });
  system.addEventListener('change', render);
  render();
}

function startDialogs() {
  for (const dialog of document.querySelectorAll('dialog')) {
    for (const button of dialog.querySelectorAll('.close')) button.addEventListener('click', () => dialog.close());
    dialog.addEventListener('close', () => document.body.append($('#toast')));
    dialog.addEventListener('mousedown', ({ target, detail: clicks, clientX: x, clientY: y }) => {
      const { left, right, top, bottom } = dialog.getBoundingClientRect();
      if (clicks > 1) return; // the first of a double click may have opened it
      if (target === dialog && (x < left || x > right || y < top || y > bottom)) dialog.close();
    });
  }
}

const { show, lost } = read();
[startTheme, startDialogs, startQuery, startCamera, startFilters, startViewer, startUpload, startHistory,
  startSaved, startInsights].forEach((start) => start());
startResults(view, renderPlace);
startFeed(view);
startTaste();
onChange(() => {
  search();
  nameParts();
});
onCollection(recount);
$('.skip').addEventListener('click', (event) => {
  event.preventDefault(); // the part of the address after the # is the query
  $('#results').focus();
});
onCalm(() => {
  loadAbout();
  renderFilters();
});
setTimeout(uncover, 400);
window.addEventListener('popstate', follow);
await search();
nameParts();
if (show && isShown(show)) view(show, { address: false }); // unless another one was opened meanwhile
if (lost) say('An image that you upload for a search is not kept after a reload: add it again.');
