//! The OpenAPI document: made of the routes themselves, then completed by what every route shares.
//!
//! Guarantee: every answer a route can give is documented, which a test asks of a running node. Routes name what is their
//! own; what the surroundings add (keys, limits, bodies that do not read, a part that is down) is added here once, so
//! that no route can forget it.

use actix_web::{App, HttpResponse, get, web};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use utoipa::OpenApi;
use utoipa_actix_web::AppExt;
use utoipa_actix_web::service_config::ServiceConfig;

use crate::error::{Error, Result};
use crate::problem::PROBLEM_JSON;
use crate::server::ApiState;

/// Paths anybody may ask, key or no key.
pub(crate) const OPEN_PATHS: [&str; 4] = ["/", "/livez", "/readyz", "/openapi.json"];

#[derive(OpenApi)]
#[openapi(info(
    title = "Count Twice",
    description = "Counts ad clicks twice: within seconds for dashboards, and again from the archive for invoices.",
))]
struct Info;

/// The OpenAPI document, and the paths and methods it names.
pub(crate) struct Document {
    json: Bytes,
    /// (template, methods as `Allow` lists them).
    paths: Vec<(String, String)>,
}

impl Document {
    /// Builds the document from the routes that `configure` adds.
    pub fn build(configure: fn(&mut ServiceConfig<'_>)) -> Result<Self> {
        let (_, document) =
            App::new().into_utoipa_app().openapi(Info::openapi()).configure(configure).split_for_parts();
        let failed =
            |source| Error::Internal { what: "writing the OpenAPI document", source: Some(Box::new(source)) };
        let mut json = serde_json::to_value(&document).map_err(failed)?;
        complete(&mut json);
        let paths = json["paths"].as_object().into_iter().flatten();
        let paths = paths.map(|(template, item)| (template.clone(), methods(item))).collect();
        let json = serde_json::to_vec(&json).map_err(failed)?.into();
        Ok(Self { json, paths })
    }

    /// Returns the methods `path` answers, if it is a path of ours.
    pub fn allow(&self, path: &str) -> Option<&str> {
        let fits = |template: &str| {
            let mut parts = path.split('/');
            let all = template.split('/').all(|expected| {
                parts
                    .next()
                    .is_some_and(|part| part == expected || (expected.starts_with('{') && !part.is_empty()))
            });
            all && parts.next().is_none()
        };
        self.paths.iter().find(|(template, _)| fits(template)).map(|(_, methods)| methods.as_str())
    }
}

/// Shows this document.
#[utoipa::path(
    responses((status = 200, description = "OpenAPI", body = serde_json::Value)),
    tag = "health",
)]
#[get("/openapi.json")]
pub(crate) async fn get_openapi(state: web::Data<ApiState>) -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(state.document.json.clone())
}

fn methods(item: &Value) -> String {
    let operations = item.as_object().into_iter().flat_map(Map::keys);
    operations.map(|method| method.to_ascii_uppercase()).collect::<Vec<_>>().join(", ")
}

/// Adds keys, the answers every operation shares, and the media type of problems.
fn complete(document: &mut Value) {
    document["components"]["securitySchemes"] = json!({
        "key": {"type": "http", "scheme": "bearer", "description": "an API key, as `twice keys create` prints it"},
    });
    allow_absent_columns(&mut document["components"]["schemas"]);
    let Some(paths) = document["paths"].as_object_mut() else { return };
    for (template, item) in paths {
        let open = OPEN_PATHS.contains(&template.as_str());
        for operation in item.as_object_mut().into_iter().flat_map(Map::values_mut) {
            if !open {
                operation["security"] = json!([{"key": []}]);
            }
            for (status, description) in shared_answers(operation, open) {
                let answers = &mut operation["responses"][status];
                if answers.is_null() {
                    *answers = json!({"description": description});
                }
            }
            let answers = operation["responses"].as_object_mut().into_iter().flatten();
            for (_, answer) in answers.filter(|(status, _)| !status.starts_with('2')) {
                answer_with_problem(answer);
            }
        }
    }
}

/// Lists the answers an operation gives beside those its route names.
fn shared_answers(operation: &Value, open: bool) -> Vec<(&'static str, &'static str)> {
    let mut answers = vec![
        ("500", "the server failed; its log has the cause under the request id"),
        ("431", "path, query and headers are larger than allowed"),
    ];
    if !open {
        answers.push(("401", "no API key, or one that is not valid"));
        answers.push(("403", "the key does not allow this"));
        answers.push(("429", "over the limit of the key; `Retry-After` says when to come back"));
        answers
            .push(("503", "a part this answer needs does not answer; `Retry-After` says when to ask again"));
    }
    let parameters = operation["parameters"].as_array();
    let body = operation.get("requestBody").is_some();
    if parameters.is_some_and(|parameters| !parameters.is_empty()) || body {
        answers.push(("400", "the request cannot be read"));
        answers.push(("404", "what the request names does not exist"));
        answers.push(("422", "the request reads, but cannot be answered as it stands"));
    }
    if body {
        answers.push(("408", "the body came too slowly"));
        answers.push(("413", "the body is too large"));
        answers.push(("415", "the body's type is not read here"));
    }
    answers
}

/// Says that an answer is, or may also be, a problem document.
fn answer_with_problem(answer: &mut Value) {
    let is_problem = |content: &Value| {
        let reference = content["schema"]["$ref"].as_str();
        reference.is_some_and(|reference| reference.ends_with("/Problem"))
    };
    if let Some(contents) = answer["content"].as_object_mut() {
        contents.retain(|_, content| !is_problem(content));
    }
    answer["content"][PROBLEM_JSON] = json!({"schema": {"$ref": "#/components/schemas/Problem"}});
}

/// Mends the schemas of rows whose billing columns may be absent: a flattened `Option` is described as "these columns or
/// null", which no row without them fits.
fn allow_absent_columns(schemas: &mut Value) {
    for schema in schemas.as_object_mut().into_iter().flat_map(Map::values_mut) {
        for part in schema.get_mut("allOf").and_then(Value::as_array_mut).into_iter().flatten() {
            let choices = part.get("oneOf").and_then(Value::as_array);
            if let Some(choices) = choices
                && choices.iter().any(|choice| choice["type"] == "null")
            {
                let kept = choices.iter().filter(|choice| choice["type"] != "null").cloned();
                *part = json!({"anyOf": kept.chain([json!({"type": "object"})]).collect::<Vec<_>>()});
            }
        }
    }
}
