// The description of the API, drawn by Swagger UI, which comes with the service: nothing is fetched from elsewhere.
window.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  validatorUrl: null,
  tryItOutEnabled: true,
});
