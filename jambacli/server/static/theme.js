// Before the first paint: the theme that was chosen here. Without a choice the system's holds.
try {
  const chosen = localStorage.getItem("theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
} catch {
  // Storage may be switched off; then the system's theme holds.
}
