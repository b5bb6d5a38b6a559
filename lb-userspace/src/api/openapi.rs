//! The description of the API for programs, made from the code.
//!
//! `docs/openapi.json` is a committed copy; a test keeps both equal. To update it:
//! `UPDATE_DOCS=1 cargo test -p lb-userspace openapi`.

use utoipa::OpenApi;

use super::handlers;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Wattline",
        version = "1",
        description = "JSON over HTTP on the agent's Unix socket. Every answer carries schema_version.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    paths(
        handlers::status,
        handlers::services,
        handlers::service,
        handlers::add_service,
        handlers::set_service,
        handlers::delete_service,
        handlers::backends,
        handlers::service_backends,
        handlers::backend,
        handlers::add_backend,
        handlers::set_backend,
        handlers::set_admin,
        handlers::delete_backend,
        handlers::config,
        handlers::apply_config,
        handlers::save_config,
        handlers::health,
        handlers::stats,
        handlers::route,
        handlers::attach,
        handlers::detach,
    )
)]
struct Document;

/// The description as JSON text.
pub fn json() -> String {
    // The description is made of texts and maps with text keys only, so there is nothing that JSON lacks.
    let mut text =
        serde_json::to_string_pretty(&Document::openapi()).expect("the description has a JSON form");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_committed_openapi_description_is_the_present_one() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            crate::config::file::write_atomic(&path, json().as_bytes()).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        let hint = "run UPDATE_DOCS=1 cargo test -p lb-userspace openapi";
        assert!(committed == json(), "docs/openapi.json is stale; {hint}");
    }

    #[test]
    fn every_answer_carries_the_schema_version() {
        let document: serde_json::Value = serde_json::from_str(&json()).unwrap();
        let schemas = &document["components"]["schemas"];
        let mut seen = 0;
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                for (status, response) in operation["responses"].as_object().unwrap() {
                    let reference = response["content"]["application/json"]["schema"]["$ref"].as_str();
                    let name = reference.and_then(|reference| reference.rsplit('/').next());
                    let schema = &schemas[name.unwrap_or_else(|| panic!("{method} {path} {status}"))];
                    let text = schema.to_string();
                    assert!(text.contains("\"schema_version\""), "{method} {path} {status}: {text}");
                    seen += 1;
                }
            }
        }
        assert!(seen > 40, "only {seen} answers were looked at");
    }
}
