//! The dashboard: one page that needs nothing from anywhere else.

use actix_web::{HttpResponse, get};

const PAGE: &str = include_str!("dashboard.html");
/// The page runs its own inline script and style, talks to its own server, and nothing else.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Shows the dashboard.
#[utoipa::path(
    responses((status = 200, description = "the page", body = String, content_type = "text/html")),
    tag = "dashboard",
)]
#[get("/")]
pub(crate) async fn get_dashboard() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .insert_header(("content-security-policy", POLICY))
        .insert_header(("referrer-policy", "no-referrer"))
        .body(PAGE)
}
