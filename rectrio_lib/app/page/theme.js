// Not a module, so that it runs before the first paint: a remembered choice of light or dark must not flash.
(() => {
  try {
    const theme = localStorage.getItem('rectrio-theme');
    if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
  } catch {
    // Storage is forbidden in some frames: the system's choice holds.
  }
})();
