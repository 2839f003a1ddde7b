// What scrolls sideways can be reached and scrolled by the keyboard.
const scrolling = "article pre, article .table-wrapper, article p:has(> img)";
const update = () => {
  for (const box of document.querySelectorAll(scrolling)) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
};
addEventListener("load", update);
addEventListener("resize", update);
