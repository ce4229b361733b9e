/** @file What stands where no results are: why, and what can be done. */

import { h, score } from './dom.js';
import { showAgain } from './feed.js';
import { addImages } from './upload.js';
import { asked, change, isSure, may, service, state, where } from './state.js';

const action = (label, onclick) => h('button', { type: 'button', class: 'primary', onclick }, label);
const NOTHING = 'Nothing here is like that';

function failed(failure) {
  if (failure.kind === 'session') {
    return [h('h2', {}, 'This page needs a session'), h('p', {}, 'Open the one-time link that the server printed when it started, '
      + 'or one that “rectrio keys link” makes.')];
  }
  if (failure.kind === 'open') return [h('h2', {}, 'What should the results look like?'), h('p', {}, failure.message)];
  return [h('h2', {}, 'This cannot be searched for'), h('p', {}, failure.message),
    (asked() || where() || state.feed) && action('Start anew', () => change({ parts: [], filters: new Map(), rest: '', sort: 'score', feed: false }))];
}

function nothing(reason) {
  const [, why = ''] = reason?.match(/: (.*)$/) ?? [];
  return [h('h2', {}, NOTHING), h('p', {}, why ? `${why.charAt(0).toUpperCase()}${why.slice(1)}` : reason ?? ''),
    action('Show the nearest anyway', () => change({ sure: null }))];
}

/** Elements that explain why nothing is shown. @param {string|null} reason that the service gave */
export function empties(failure, reason) {
  if (failure) return failed(failure);
  if (state.feed && service.about?.images && !where()) {
    return [h('h2', {}, 'You have seen everything'), h('p', {}, 'Every image here was judged by you, or suggested to you lately.'),
      action('Show them again', showAgain)];
  }
  if (isSure() && state.minimum == null && !where()) return nothing(reason);
  if (asked() && state.minimum != null) {
    return [h('h2', {}, `Nothing scores ${score(state.minimum)} or more`), h('p', {}, 'No image here is that close to your query.'),
      action('Show the nearest anyway', () => change({ minimum: null, sure: null }))];
  }
  if (isSure()) {
    return [h('h2', {}, NOTHING), h('p', {}, `${reason ?? ''} Only images that meet your filters were looked at.`),
      action('Show the nearest anyway', () => change({ sure: null }))];
  }
  if (where()) {
    return [h('h2', {}, state.feed ? 'Nothing new meets these filters' : 'No image meets these filters'), h('p', {}, 'Remove one of them, or all.'),
      action('Clear the filters', () => change({ filters: new Map(), rest: '' })), state.feed && action('Show them again', showAgain)];
  }
  if (may('write')) {
    return [h('h2', {}, 'This collection has no images yet'), h('p', {}, 'Add some: they can be found at once.'),
      action('Add images', () => addImages([]))];
  }
  return [h('h2', {}, 'This collection has no images yet'), h('p', {}, 'Whoever runs this service can add some.')];
}
