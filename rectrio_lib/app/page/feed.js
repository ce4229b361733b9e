/** @file "For you": what will be liked, by what was liked and disliked before. */

import * as api from './api.js';
import { $, count, fill, h } from './dom.js';
import { confirmed, say } from './notices.js';
import { MOST_PARTS, PAGE, change, onCollection, showFeed, state, where } from './state.js';
import { forgetTastes, onTaste, tastes, told, version } from './taste.js';

const MOST = 2 * MOST_PARTS; // examples of one request
const MOST_SEEN = 2000;
const FEW = 30; // thumbnails of what was said

let kept = { key: null, answer: null }; // so that who comes back finds what was there
let unseen = true; // leave out what was shown before
let judgedBefore = 0; // the version of what was said that the suggestions go by

/** The next suggestions, as the answer of a search. @param {string[]} seen ids that are on the page already */
export async function suggestions(seen, signal) {
  await told();
  const key = JSON.stringify([where(), version, unseen]);
  if (!seen.length && kept.key === key) return kept.answer;
  const { liked, disliked } = tastes({ loose: true }); // the others the service remembers
  const examples = (ids) => ids.slice(0, MOST).map((id) => ({ id }));
  const wish = { k: PAGE, seen: seen.slice(-MOST_SEEN), unseen, ...(where() && { where: where() }) };
  if (liked.length || disliked.length) Object.assign(wish, { like: examples(liked), dislike: examples(disliked) });
  judgedBefore = version;
  const answer = await api.recommend(wish, signal);
  const { results } = answer;
  const found = { ...answer, total: results.length, search: null, next: results.length === PAGE ? PAGE : null };
  kept = { key, answer: seen.length ? { ...found, results: [...kept.answer?.results ?? [], ...results] } : found };
  return found;
}

const anew = (changes) => {
  Object.assign(kept, { key: null });
  unseen = changes.unseen;
  change({});
};

/** Suggests other images than before. */
export const renew = () => anew({ unseen: true });

/** Suggests what was shown before, too. */
export const showAgain = () => anew({ unseen: false });

function why({ liked, disliked }) {
  const parts = [liked.length && count(liked.length, 'like'), disliked.length && count(disliked.length, 'dislike')].filter(Boolean);
  if (liked.length) return `By your ${parts.join(' and ')}.`;
  if (disliked.length) return `By your ${parts[0]}: images unlike those. Like some to say what you want more of.`;
  return 'You have not liked anything yet. These images differ as much as they can: like what you want more of, dislike what you do not '
    + 'want, then ask for new suggestions.';
}

function thumbnail(id, disliked, view) {
  const name = disliked ? 'disliked' : 'liked';
  return h('li', { class: name }, h('button', { type: 'button', 'aria-label': `Show an image that you ${name}`, title: `You ${name} this`,
    'data-key': `said ${id}`, onclick: () => view(id) }, h('img', { src: api.address(`thumbnails/${id}`), alt: '', width: 48, height: 48,
    loading: 'lazy', onerror: ({ target }) => target.closest('li').remove() })));
}

let open = () => {};

/** What stands above the suggestions. */
export function renderFeed() {
  $('#feed').hidden = !state.feed;
  if (!state.feed) return;
  const { liked, disliked } = tastes();
  $('#feed-why').textContent = why({ liked, disliked });
  $('#feed-new').classList.toggle('primary', version !== judgedBefore);
  $('#feed-forget').hidden = !liked.length && !disliked.length;
  fill($('#feed-said'), [...liked.slice(0, FEW).map((id) => thumbnail(id, false, open)),
    ...disliked.slice(0, FEW).map((id) => thumbnail(id, true, open))]);
}

async function forget() {
  if (!await confirmed('Delete all your likes, dislikes and “not the same”? This cannot be undone.', 'Delete them')) return;
  try {
    await forgetTastes();
    if (!state.feed) return;
    renew();
    $('#feed-new').focus();
  } catch (failure) {
    say(failure.message);
  }
}

/** @param {function(string): void} view opens an image */
export function startFeed(view) {
  open = view;
  $('#for-you').addEventListener('click', () => (state.feed ? change({ feed: false }) : showFeed()));
  $('#feed-new').addEventListener('click', renew);
  $('#feed-forget').addEventListener('click', forget);
  onTaste(renderFeed);
  onCollection((anew) => { if (anew) kept.key = null; }); // other images, or another encoder
}
