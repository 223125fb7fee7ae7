// A file of its own because the page's policy allows no inline script.
window.addEventListener("DOMContentLoaded", () => {
  window.SwaggerUIBundle({
    url: "openapi.json",
    dom_id: "#docs",
    deepLinking: true,
    displayRequestDuration: true,
    persistAuthorization: false, // a key typed here is gone with the tab
    validatorUrl: null, // the badge would send the document to a public validator
  });
});
