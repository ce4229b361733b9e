/** @file A photograph as a query: the camera with a preview, or the device's own camera application. */

import { $, chooser } from './dom.js';

let stream = null;
let latest = 0; // a camera that opens late is switched off
let facing = 'environment';
let give = () => {};

const REASONS = {
  NotAllowedError: 'The browser does not allow this page to use the camera.',
  NotFoundError: 'No camera was found.',
  NotReadableError: 'Another program uses the camera.',
};

function stop() {
  latest += 1;
  $('#shutter').disabled = true;
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $('#camera video').srcObject = null;
}

async function start() {
  stop();
  const turn = latest;
  const dialog = $('#camera');
  dialog.dataset.state = 'waiting';
  try {
    if (!navigator.mediaDevices) throw new DOMException('', 'InsecureContext');
    const opened = await navigator.mediaDevices.getUserMedia({ video: { facingMode: facing, width: { ideal: 1280 } } });
    if (turn !== latest) return opened.getTracks().forEach((track) => track.stop());
    stream = opened;
    $('video', dialog).srcObject = stream;
    await $('video', dialog).play();
    dialog.dataset.state = 'live';
    $('#shutter').disabled = false;
    const cameras = (await navigator.mediaDevices.enumerateDevices()).filter(({ kind }) => kind === 'videoinput');
    $('#turn').hidden = cameras.length < 2;
    $('#shutter').focus();
  } catch (error) {
    if (turn !== latest) return;
    dialog.dataset.state = 'denied';
    $('#no-camera').textContent = REASONS[error.name]
      ?? 'A live picture needs HTTPS, or an address on this computer such as 127.0.0.1.';
    $('#camera-app').focus();
  }
}

function shoot() {
  $('#shutter').disabled = true;
  const video = $('#camera video');
  const canvas = document.createElement('canvas');
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext('2d').drawImage(video, 0, 0);
  canvas.toBlob((blob) => {
    $('#camera').close();
    give(new File([blob], 'photograph.jpg', { type: 'image/jpeg' }));
  }, 'image/jpeg', 0.92);
}

/** Opens the camera and hands the photograph to `use`. @param {function(File): void} use */
export function takePhoto(use) {
  give = use;
  $('#turn').hidden = true;
  $('#camera').showModal();
  start();
}

export function startCamera() {
  $('#shutter').addEventListener('click', shoot);
  $('#turn').addEventListener('click', () => {
    facing = facing === 'environment' ? 'user' : 'environment';
    start();
  });
  $('#camera').addEventListener('close', stop);
  chooser('#camera-app', '#captured', ([file]) => {
    if (!file) return;
    $('#camera').close();
    give(file);
  });
}
