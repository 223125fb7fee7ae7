// A file of its own because the page's policy allows no inline script. The bundle stays as its makers published it (its hash is
// checked), so what it would do against our policy is turned off here, before it starts:
// - its menu loads a logo from the makers' host; nothing on this page may ask another origin for anything;
// - with workers it compiles its search index from a string, which the policy forbids; without them it searches in the page.
function isForeign(address) {
  const url = new URL(address, document.baseURI);
  return url.protocol !== "data:" && url.origin !== location.origin;
}

// React sets an image's address both ways: as the attribute, and once more as the property.
const setAttribute = Element.prototype.setAttribute;
Element.prototype.setAttribute = function (name, value) {
  if (this instanceof HTMLImageElement && name === "src" && isForeign(value)) {
    this.hidden = true;
    return;
  }
  setAttribute.call(this, name, value);
};
const source = Object.getOwnPropertyDescriptor(HTMLImageElement.prototype, "src");
Object.defineProperty(HTMLImageElement.prototype, "src", {
  ...source,
  set(value) {
    if (!isForeign(value)) source.set.call(this, value);
  },
});
window.Worker = undefined;

const docs = document.querySelector("#docs");
const { init } = await import(docs.dataset.bundle);
init("openapi.json", {}, docs);
